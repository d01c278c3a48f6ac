//! One training step, with the L2B weights from their closed form (METHOD 1.4, 1.5):
//!
//! ```text
//! meta batch   -> forward(θ̂) -> loss -> backward     v = ∇f_val(θ̂)
//! train batch  -> forward(θ)                         z
//! saved, v     -> tangent                            ż
//! z, ż, labels -> inner products                     α_i = ηλ (p_i − e_y)·ż_i, β_i likewise with the pseudo-label
//! α, β         -> rectify, normalise                 α̃, β̃
//! z, α̃, β̃     -> backward                           g = Σ α̃_i ∇f_i + β̃_i ∇g_i
//! g            -> clip, SGD                          θ, momentum
//! ```

use crate::Result;
use crate::device::{Device, Mem, Normalise, Statistics, StepParams, Targets};
use crate::engine::{Engine, InnerProduct, NormMode, Slot, VirtualStep};
use crate::net::{Pass, Sink};
use crate::phase::Phase;
use crate::recordings::Work;

/// What a step minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// Mean cross-entropy against the given labels.
    CrossEntropy,
    /// Hard bootstrapping with a fixed share of the given label (METHOD 1.2, eq. 2).
    Bootstrap,
    /// Given labels, weighted by the meta gradient: L2RW, L2B without its pseudo-label row.
    Reweight,
    /// Given and pseudo-labels, both weighted.
    L2b,
}

impl Objective {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Objective::CrossEntropy => "cross_entropy",
            Objective::Bootstrap => "bootstrap",
            Objective::Reweight => "reweight",
            Objective::L2b => "l2b",
        }
    }

    /// Whether weights come from a meta batch.
    pub fn is_meta(self) -> bool {
        matches!(self, Objective::Reweight | Objective::L2b)
    }
}

impl<D: Device> Engine<D> {
    /// One step on the batches fed: updates θ, momentum and running statistics.
    pub fn step(&mut self, objective: Objective, params: &StepParams) -> Result<()> {
        self.set_step(params)?;
        self.run(Work::Step(objective))
    }

    /// The step's work, call by call, step parameters already on the device: what is recorded, and what recordings are
    /// tested against.
    pub fn step_directly(&self, objective: Objective) -> Result<()> {
        if objective.is_meta() {
            self.meta_gradient()?;
        }
        self.enter(Phase::TrainForward)?;
        let statistics = self.statistics(true);
        let pass = self.pass(Slot::Train, self.model.theta(), statistics);
        self.load_input(Slot::Train, pass.input())?;
        // Without look-ahead the meta pass was at θ, and has arranged its filters.
        let arranged = objective.is_meta() && self.options.virtual_step == VirtualStep::Plain;
        if !arranged {
            pass.arrange()?;
        }
        pass.forward()?;
        self.losses(&pass)?;
        if objective.is_meta() {
            self.inner_products(objective, &self.within_meta_reach(&pass))?;
            self.device.weights(
                self.weighed(objective, self.entry(Slot::Train, |e| e.weights)),
                self.weighed(objective, self.entry(Slot::Train, |e| e.raw)),
                self.normalise(objective),
                self.step_span(),
            )?;
        }
        self.enter(Phase::Backward)?;
        let (real, pseudo) = self.weights_of(objective);
        self.device.cross_entropy_backward(
            self.loss_shape(Slot::Train),
            pass.output_adjoint(),
            pass.output(),
            (self.labels(Slot::Train), real),
            pseudo.map(|weights| (self.pseudo_labels(), weights)),
        )?;
        pass.backward(&Sink::Gradient(self.model.flat(&self.gradient)))?;
        self.enter(Phase::Optimizer)?;
        self.update(objective)?;
        self.phases.enter(&self.device, None)
    }

    fn enter(&self, phase: Phase) -> Result<()> {
        self.phases.enter(&self.device, Some(phase))
    }

    /// v ← ∇ mean f_val at θ̂, over the parameters that v covers; it stays zero elsewhere. Leaves θ, momentum and running
    /// statistics alone.
    pub fn meta_gradient(&self) -> Result<()> {
        self.enter(Phase::MetaForward)?;
        let theta_hat = match self.options.virtual_step {
            VirtualStep::Plain => self.model.theta(),
            VirtualStep::Momentum => {
                let out = self.model.flat(&self.theta_hat);
                self.device
                    .lookahead(out, self.model.theta(), self.model.buf(), self.step_span())?;
                out
            }
        };
        let whole = self.pass(Slot::Meta, theta_hat, self.statistics(false));
        let pass = self.within_meta_reach(&whole);
        match self.options.virtual_step {
            // For the train batch too, whose derivatives reach further.
            VirtualStep::Plain => whole.arrange()?,
            VirtualStep::Momentum => pass.arrange()?,
        }
        self.load_input(Slot::Meta, pass.input())?;
        pass.forward()?;
        let shape = self.loss_shape(Slot::Meta);
        let labels = self.labels(Slot::Meta);
        self.device
            .cross_entropy(shape, self.meta_loss(), pass.output(), labels)?;
        self.enter(Phase::MetaBackward)?;
        let uniform = self.entry(Slot::Meta, |e| e.uniform);
        self.device.cross_entropy_backward(
            shape,
            pass.output_adjoint(),
            pass.output(),
            (labels, uniform),
            None,
        )?;
        pass.backward(&Sink::Gradient(self.model.flat(&self.v)))
    }

    /// Pseudo-labels, and the losses of both kinds of label.
    fn losses(&self, pass: &Pass<D>) -> Result<()> {
        let shape = self.loss_shape(Slot::Train);
        let z = pass.output();
        self.device
            .pseudo_labels(shape, self.entry(Slot::Train, |e| e.pseudo), z)?;
        let given = self.entry(Slot::Train, |e| e.loss_real);
        self.device
            .cross_entropy(shape, given, z, self.labels(Slot::Train))?;
        let pseudo = self.entry(Slot::Train, |e| e.loss_pseudo);
        self.device.cross_entropy(shape, pseudo, z, self.pseudo_labels())
    }

    /// raw ← ⟨v, ∇f_i⟩ and, for L2B, ⟨v, ∇g_i⟩.
    fn inner_products(&self, objective: Objective, pass: &Pass<D>) -> Result<()> {
        self.enter(Phase::Tangent)?;
        let shape = self.loss_shape(Slot::Train);
        let v = self.model.flat(&self.v);
        let rows = [self.labels(Slot::Train), self.pseudo_labels()];
        let rows = rows
            .into_iter()
            .take(if objective == Objective::L2b { 2 } else { 1 });
        pass.arrange_along(v)?;
        match self.options.inner_product {
            InnerProduct::Tangent => {
                pass.tangent(v)?;
                self.enter(Phase::Weights)?;
                for (row, targets) in rows.enumerate() {
                    let raw = self.row(self.entry(Slot::Train, |e| e.raw), row);
                    self.device
                        .tangent_dot(shape, raw, pass.output(), pass.output_tangent(), targets)?;
                }
            }
            InnerProduct::Contraction => {
                let ones = self.entry(Slot::Train, |e| e.ones);
                for (row, targets) in rows.enumerate() {
                    let raw = self.row(self.entry(Slot::Train, |e| e.raw), row);
                    self.device.fill(raw, 0)?;
                    self.device.cross_entropy_backward(
                        shape,
                        pass.output_adjoint(),
                        pass.output(),
                        (targets, ones),
                        None,
                    )?;
                    pass.backward(&Sink::Contraction {
                        out: raw,
                        v,
                        scratch: self.model.flat(&self.gradient),
                    })?;
                }
                self.enter(Phase::Weights)?;
            }
        }
        Ok(())
    }

    /// Clip and SGD with the gradient in [`Engine::gradient`]; not where anything that [`Engine::check`] looks at is not finite.
    fn update(&self, objective: Objective) -> Result<()> {
        let g = self.model.flat(&self.gradient);
        let norm = self.entry(Slot::Train, |e| e.gradient_norm);
        let scratch = crate::device::Region {
            offset: 0,
            bytes: self
                .device
                .gradient_norm_scratch_bytes(g.bytes / size_of::<D::Real>()),
        };
        self.device
            .gradient_norm(norm, g, scratch.of(&self.norm_scratch))?;
        let given = self.entry(Slot::Train, |e| e.loss_real);
        let mut watched = vec![norm, given];
        if objective.is_meta() {
            watched.push(self.weighed(objective, self.entry(Slot::Train, |e| e.raw)));
            watched.push(self.meta_loss());
        }
        self.device.watch(self.stopped(), &watched, self.step_span())?;
        self.device.sgd(
            self.model.theta(),
            self.model.buf(),
            g,
            norm,
            self.stopped(),
            self.step_span(),
        )
    }

    /// Weights of the given labels, and of the pseudo-labels where the objective has any.
    fn weights_of(&self, objective: Objective) -> (Mem<'_, D>, Option<Mem<'_, D>>) {
        let weights = self.entry(Slot::Train, |e| e.weights);
        match objective {
            Objective::CrossEntropy => (self.entry(Slot::Train, |e| e.uniform), None),
            Objective::Bootstrap => (
                self.entry(Slot::Train, |e| e.bootstrap_real),
                Some(self.entry(Slot::Train, |e| e.bootstrap_pseudo)),
            ),
            Objective::Reweight => (self.row(weights, 0), None),
            Objective::L2b => (self.row(weights, 0), Some(self.row(weights, 1))),
        }
    }

    /// METHOD 2.4: without the pseudo-label row, raw weights are clamped before the sigmoid.
    fn normalise(&self, objective: Objective) -> Normalise {
        match (objective, self.options.normalise) {
            (Objective::Reweight, Normalise::Sigmoid) => Normalise::RectifiedSigmoid,
            (_, normalise) => normalise,
        }
    }

    /// The entries that are normalised jointly.
    fn weighed<'a>(&self, objective: Objective, both: Mem<'a, D>) -> Mem<'a, D> {
        if objective == Objective::L2b {
            both
        } else {
            self.row(both, 0)
        }
    }

    /// One row of a [2][n] array.
    fn row<'a>(&self, both: Mem<'a, D>, row: usize) -> Mem<'a, D> {
        let bytes = both.bytes / 2;
        both.slice(row * bytes, bytes)
    }

    /// Per-entry losses of the meta batch.
    fn meta_loss(&self) -> Mem<'_, D> {
        self.entry(Slot::Meta, |e| e.loss_meta)
    }

    fn pseudo_labels(&self) -> Targets<'_, D::Arena> {
        Targets::Hard(self.entry(Slot::Train, |e| e.pseudo))
    }

    fn statistics(&self, update: bool) -> Statistics {
        match self.options.norm {
            NormMode::Batch => Statistics::Batch { update },
            NormMode::Frozen => Statistics::Running,
        }
    }
}
