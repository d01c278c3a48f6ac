//! Running a program: forward, tangent, backward, each one walk over the nodes. What a node does in the three passes
//! stands in `src/layer`, side by side.

use super::plan::{Contribution, Plan};
use super::program::{NormId, ParamId, Program, ValueId, ValueKind};
use super::reach::Reach;
use crate::Result;
use crate::device::{Device, Epilogue, Mem, Norm, Region, Source, Statistics, Sums, Tangent};
use crate::layer;

/// What the backward pass makes of each layer's adjoint.
pub enum Sink<'a, D: Device> {
    /// The gradient of every parameter, in a flat arena of parameter layout: overwritten.
    Gradient(Mem<'a, D>),
    /// out `[n]` += ⟨v, ∇f_i⟩, layer by layer; exact under [`Statistics::Running`] only.
    Contraction {
        out: Mem<'a, D>,
        /// Flat, parameter layout.
        v: Mem<'a, D>,
        /// Flat, parameter layout: overwritten.
        scratch: Mem<'a, D>,
    },
}

/// One program, planned, at given parameters, on a device.
pub struct Pass<'a, D: Device> {
    pub device: &'a D,
    pub program: &'a Program,
    pub plan: &'a Plan<D::Algorithm>,
    /// Holds everything that the plan places.
    pub arena: &'a D::Arena,
    /// Where each parameter lies in a flat arena.
    pub layout: &'a [Region],
    /// θ, flat.
    pub params: Mem<'a, D>,
    /// Where each norm's running mean and variance lie.
    pub running_layout: &'a [[Region; 2]],
    pub running: Mem<'a, D>,
    pub statistics: Statistics,
    /// What tangent and backward pass are restricted to. Elsewhere v is not read and no gradient written.
    pub reach: &'a Reach,
}

impl<'a, D: Device> Pass<'a, D> {
    /// Arranges the filters of θ for the forward pass, and for the others as far as they reach: before them, after every
    /// change of θ. Passes over other batches may follow, of the same program in the same arena.
    pub fn arrange(&self) -> Result<()> {
        let nodes = 0..self.program.nodes.len();
        let filters: Vec<_> = nodes.filter_map(|index| layer::filters(self, index)).collect();
        self.device.arrange_filters(&filters)
    }

    /// The same of v, before a tangent pass or contractions along it.
    pub fn arrange_along(&self, v: Mem<'a, D>) -> Result<()> {
        let nodes = self.program.nodes.iter().enumerate();
        let filters: Vec<_> = nodes
            .filter(|(_, node)| self.reach.takes(node))
            .filter_map(|(index, _)| layer::filters_along(self, index, v))
            .collect();
        self.device.arrange_filters(&filters)
    }

    /// Logits of the images in [`Pass::input`], after [`Pass::arrange`]; keeps what the other passes need.
    pub fn forward(&self) -> Result<()> {
        for index in 0..self.program.nodes.len() {
            layer::forward(self, index)?;
        }
        Ok(())
    }

    /// Tangent of the logits along v (flat, parameter layout), after [`Pass::forward`] and [`Pass::arrange_along`].
    pub fn tangent(&self, v: Mem<'a, D>) -> Result<()> {
        for (index, node) in self.program.nodes.iter().enumerate() {
            if !self.reach.takes(node) {
                continue;
            }
            layer::tangent(self, index, v)?;
            for &dead in self.plan.poison_after_tangent(index) {
                self.device.fill(dead.of(self.arena), 0xff)?;
            }
        }
        Ok(())
    }

    /// From the adjoint of the logits in [`Pass::output_adjoint`], after [`Pass::forward`]; overwrites that adjoint's memory.
    pub fn backward(&self, sink: &Sink<'a, D>) -> Result<()> {
        for (index, node) in self.program.nodes.iter().enumerate().rev() {
            if !self.reach.takes(node) {
                continue;
            }
            layer::backward(self, index, sink)?;
            for &dead in self.plan.poison_after_backward(index) {
                self.device.fill(dead.of(self.arena), 0xff)?;
            }
        }
        Ok(())
    }

    /// Images, `Act` `[N,H,W,C]`.
    pub fn input(&self) -> Mem<'a, D> {
        self.value(self.program.input())
    }

    /// Logits, `Real` `[N][classes]`.
    pub fn output(&self) -> Mem<'a, D> {
        self.value(self.program.output())
    }

    /// Tangent of the logits.
    pub fn output_tangent(&self) -> Mem<'a, D> {
        self.plan.tangents[self.program.output()].of(self.arena)
    }

    /// Adjoint of the logits: written by the loss, before [`Pass::backward`].
    pub fn output_adjoint(&self) -> Mem<'a, D> {
        self.adjoint(self.program.output())
    }

    // ---- for the layers

    /// A stored value.
    pub(crate) fn value(&self, id: ValueId) -> Mem<'a, D> {
        self.plan.values[id].of(self.arena)
    }

    /// Adjoint of a value.
    pub(crate) fn adjoint(&self, id: ValueId) -> Mem<'a, D> {
        self.plan.adjoints[id].of(self.arena)
    }

    /// A parameter's place in a flat arena (θ, v, gradient).
    pub(crate) fn param(&self, flat: Mem<'a, D>, id: ParamId) -> Mem<'a, D> {
        flat.slice(self.layout[id].offset, self.layout[id].bytes)
    }

    /// How a value is read.
    pub(crate) fn source(&self, id: ValueId) -> Source<'a, D::Arena> {
        match self.program.values[id].kind {
            ValueKind::Stored { .. } => Source {
                x: self.value(id),
                affine: None,
                relu: false,
            },
            ValueKind::Pending { of, norm, relu } => Source {
                x: self.value(of),
                affine: norm.map(|norm| self.plan.norms[norm].affine.of(self.arena)),
                relu,
            },
        }
    }

    /// How a value's tangent is read.
    pub(crate) fn source_tangent(&self, id: ValueId) -> Tangent<'a, D::Arena> {
        let (of, norm) = match self.program.values[id].kind {
            ValueKind::Stored { .. } => (id, None),
            ValueKind::Pending { of, norm, .. } => (of, norm),
        };
        Tangent {
            tx: self
                .reach
                .moves(of)
                .then(|| self.plan.tangents[of].of(self.arena)),
            slope: norm
                .filter(|_| self.reach.moves(id))
                .map(|norm| self.plan.norms[norm].slope.of(self.arena)),
        }
    }

    /// How the backward pass of a node writes the adjoint of its input number `slot`; None where none is wanted.
    pub(crate) fn contribution(&self, node: usize, slot: usize) -> Option<Contribution> {
        let input = self.program.nodes[node].inputs()[slot];
        self.plan.nodes[node].adjoints[slot].filter(|_| self.reach.moves(input))
    }

    /// The statistics through which the tangent of norm `id` depends on that of its input: none where that is zero.
    pub(crate) fn tangent_statistics(&self, id: NormId) -> Statistics {
        if self.reach.moves(self.program.norms[id].of) {
            self.statistics
        } else {
            Statistics::Running
        }
    }

    /// What follows the writing of stored value `id`: the statistics of the norm pending on it.
    pub(crate) fn forward_epilogue(&self, id: ValueId) -> Epilogue<'a, D::Arena> {
        let sums = match (self.norm_on(id), self.statistics) {
            (Some(norm), Statistics::Batch { .. }) => Sums::Moments {
                partials: self.plan.norms[norm].partials.of(self.arena),
            },
            _ => Sums::None,
        };
        Epilogue {
            addend: None,
            mask: None,
            sums,
        }
    }

    /// What follows the writing of the tangent of stored value `id`.
    pub(crate) fn tangent_epilogue(&self, id: ValueId) -> Epilogue<'a, D::Arena> {
        let sums = match (self.norm_on(id), self.statistics) {
            (Some(norm), Statistics::Batch { .. }) => self.dot(norm),
            _ => Sums::None,
        };
        Epilogue {
            addend: None,
            mask: None,
            sums,
        }
    }

    /// What follows a contribution to the adjoint of value `id`: mask and sums of a pending one, once it is complete.
    pub(crate) fn adjoint_epilogue(&self, id: ValueId, contribution: Contribution) -> Epilogue<'a, D::Arena> {
        match self.program.values[id].kind {
            ValueKind::Pending { norm, relu, .. } if contribution.last => Epilogue {
                addend: None,
                mask: relu.then(|| self.source(id)),
                sums: norm.map_or(Sums::None, |norm| self.dot(norm)),
            },
            _ => Epilogue::none(),
        }
    }

    fn dot(&self, norm: NormId) -> Sums<'a, D::Arena> {
        let plan = &self.plan.norms[norm];
        Sums::Dot {
            x: self.value(self.program.norms[norm].of),
            statistics: plan.statistics.of(self.arena),
            partials: plan.partials.of(self.arena),
        }
    }

    fn norm_on(&self, id: ValueId) -> Option<NormId> {
        match self.program.values[id].kind {
            ValueKind::Stored { norm } => norm,
            ValueKind::Pending { .. } => None,
        }
    }

    /// A norm's memory.
    pub(crate) fn norm(&self, id: NormId) -> Norm<'a, D::Arena> {
        let layer = &self.program.norms[id];
        let plan = &self.plan.norms[id];
        let [mean, var] = self.running_layout[id];
        Norm {
            shape: self.program.rows(layer.of, self.plan.batch),
            eps: layer.eps,
            momentum: layer.momentum,
            gamma: self.param(self.params, layer.gamma),
            beta: self.param(self.params, layer.beta),
            running_mean: self.running.slice(mean.offset, mean.bytes),
            running_var: self.running.slice(var.offset, var.bytes),
            statistics: plan.statistics.of(self.arena),
            affine: plan.affine.of(self.arena),
            slope: plan.slope.of(self.arena),
            partials: plan.partials.of(self.arena),
        }
    }
}
