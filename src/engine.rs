//! A model with everything that training it needs, planned once: activations, gradients, inputs, per-entry results.
//!
//! Inputs are uploaded before a step ([`Engine::feed`]), results are read after it ([`Engine::outcome`]); the step itself
//! (`step.rs`) allocates nothing, uploads nothing and waits for nothing, so that it is recorded once and replayed
//! (`recordings.rs`). [`Engine::submit`] and [`Engine::collect`] do all of that without waiting in between.

use std::collections::{BTreeMap, BTreeSet};

use crate::budget::MetaDepth;
use crate::device::{Device, Layout, LossShape, Mem, Normalise, Region, Statistics, StepParams, Targets};
use crate::inputs::{InputLayout, Inputs};
use crate::model::{Model, read};
use crate::net::{Pass, Plan, Program, Reach, Reuse};
use crate::phase::{Began, Phases};
use crate::recordings::{Recordings, Work};
use crate::{Error, Result};

pub use crate::inputs::{Images, KeptSet, Samples, Slot};
pub use crate::outcome::{Lane, Outcome};

/// Where v = ∇f_val is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum VirtualStep {
    /// At θ: the virtual step is plain SGD (paper, eq. 5).
    Plain,
    /// At θ − λ(μ·buf + wd·θ): the virtual step is the real optimizer's (METHOD 1.5).
    Momentum,
}

/// How ⟨v, ∇f_i⟩ is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum InnerProduct {
    /// One tangent pass; exact also through batch statistics.
    Tangent,
    /// Per-sample weight gradients contracted with v, layer by layer; exact where samples are uncoupled.
    Contraction,
}

/// Which statistics training uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum NormMode {
    /// Those of each batch; running ones follow the train batches.
    Batch,
    /// The running statistics as constants.
    Frozen,
}

/// How raw weights become weights (METHOD 2.4).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// Negative ones to zero, then divided by their sum
    #[default]
    Org,
    /// softmax(raw / temperature)
    Softmax,
    /// Logistic function, then divided by their sum
    Sigmoid,
    /// softmax(raw), entries at or below the threshold to zero
    Hard,
}

impl Weights {
    /// The device's rule, for weights of given and pseudo-labels together.
    pub fn normalise(self, temperature: f64, threshold: f64) -> Normalise {
        match self {
            Weights::Org => Normalise::Rectify,
            Weights::Softmax => Normalise::Softmax { temperature },
            Weights::Sigmoid => Normalise::Sigmoid,
            Weights::Hard => Normalise::Hard { threshold },
        }
    }
}

/// What is fixed for a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineOptions {
    pub virtual_step: VirtualStep,
    pub meta_depth: MetaDepth,
    pub inner_product: InnerProduct,
    pub norm: NormMode,
    pub normalise: Normalise,
    /// Share of the given label in the bootstrap loss.
    pub bootstrap: f64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            virtual_step: VirtualStep::Momentum,
            meta_depth: MetaDepth::All,
            inner_product: InnerProduct::Tangent,
            norm: NormMode::Batch,
            normalise: Normalise::Rectify,
            bootstrap: 0.8,
        }
    }
}

/// Per-entry results of a batch of n: where they lie in one arena.
#[derive(Clone, Copy)]
pub(crate) struct Entries {
    /// [n] each.
    pub loss_real: Region,
    pub loss_pseudo: Region,
    /// [2][n]: given label, pseudo-label.
    pub raw: Region,
    pub weights: Region,
    /// [1].
    pub gradient_norm: Region,
    /// i32 [n].
    pub pseudo: Region,
    /// All of the above.
    pub results: Region,
    /// [n], where this is the size of the meta batch.
    pub loss_meta: Region,
    /// Constants [n] each: 1, 1/n, and the bootstrap shares over n.
    pub ones: Region,
    pub uniform: Region,
    pub bootstrap_real: Region,
    pub bootstrap_pseudo: Region,
}

impl Entries {
    /// Places for a batch of `size`, and the bytes they take.
    fn layout(size: usize, real: usize) -> (Self, usize) {
        let mut layout = Layout::default();
        let (loss_real, loss_pseudo) = (layout.push(size * real), layout.push(size * real));
        let (raw, weights) = (layout.push(2 * size * real), layout.push(2 * size * real));
        let gradient_norm = layout.push(real);
        let pseudo = layout.push(size * size_of::<i32>());
        let results = Region {
            offset: 0,
            bytes: layout.bytes(),
        };
        let mut row = || layout.push(size * real);
        let entries = Entries {
            loss_real,
            loss_pseudo,
            raw,
            weights,
            gradient_norm,
            pseudo,
            results,
            loss_meta: row(),
            ones: row(),
            uniform: row(),
            bootstrap_real: row(),
            bootstrap_pseudo: row(),
        };
        (entries, layout.bytes())
    }
}

fn distinct(sizes: &[usize]) -> BTreeSet<usize> {
    sizes.iter().copied().collect()
}

/// Device memory that an engine for batches of these sizes will hold, its model included: what [`Engine::bytes`] says
/// once it exists. A size given twice counts once.
pub fn required_bytes<D: Device>(
    device: &D,
    program: &Program,
    sizes: &[usize],
    reuse: Reuse,
) -> Result<usize> {
    let (act, real) = (size_of::<D::Act>(), size_of::<D::Real>());
    let (_, flat) = program.param_layout(real);
    let (_, running) = program.running_layout(real);
    let mut arena = 0;
    let mut entries = 0;
    for size in distinct(sizes) {
        arena = arena.max(Plan::new(program, device, size, reuse)?.bytes);
        entries += Entries::layout(size, real).1;
    }
    let largest = sizes.iter().copied().max().unwrap_or(0);
    let inputs = InputLayout::new(program, largest, act);
    let table = program.values[program.input()].channels * 256 * real;
    // θ, momentum, gradient, v, θ̂.
    Ok(arena
        + entries
        + 5 * flat
        + running
        + device.gradient_norm_scratch_bytes(flat / real)
        + size_of::<u32>()
        + table
        + inputs.bytes)
}

/// Device memory of an [`Engine::lane`] of that engine.
pub fn lane_bytes<D: Device>(program: &Program, sizes: &[usize], images: usize) -> usize {
    let largest = sizes.iter().copied().max().unwrap_or(0);
    InputLayout::new(program, largest, size_of::<D::Act>()).room(images)
}

/// Weights that depend on the size of the batch alone: 1/n, and the bootstrap shares over n.
pub(crate) fn constants(options: &EngineOptions, size: usize) -> [f64; 3] {
    [1.0, options.bootstrap, 1.0 - options.bootstrap].map(|share| share / size as f64)
}

pub(crate) struct Batch<D: Device> {
    pub plan: Plan<D::Algorithm>,
    pub entries: Entries,
    pub entry_arena: D::Arena,
}

/// A model and its memory on a device.
pub struct Engine<D: Device> {
    pub device: D,
    pub model: Model<D>,
    pub options: EngineOptions,
    /// The whole network.
    full: Reach,
    /// The part that v covers.
    meta_reach: Reach,
    /// For a forward pass alone.
    nothing: Reach,
    pub(crate) batches: BTreeMap<usize, Batch<D>>,
    pub(crate) arena: D::Arena,
    /// Flat arenas in parameter layout.
    pub gradient: D::Arena,
    pub v: D::Arena,
    pub(crate) theta_hat: D::Arena,
    pub(crate) norm_scratch: D::Arena,
    stopped: D::Arena,
    pub(crate) inputs: Inputs<D>,
    pub(crate) recordings: Recordings<D>,
    pub(crate) bytes: usize,
    pub(crate) phases: Phases<D>,
}

impl<D: Device> Engine<D> {
    /// Plans and allocates for batches of the given sizes; one given twice is planned once.
    pub fn new(
        device: D,
        model: Model<D>,
        options: EngineOptions,
        sizes: &[usize],
        reuse: Reuse,
    ) -> Result<Self> {
        let program = &model.program;
        let full = Reach::full(program);
        let nothing = Reach::nothing(program);
        let meta_reach = options.meta_depth.reach(program)?;
        if options.inner_product == InnerProduct::Contraction
            && options.norm == NormMode::Batch
            && meta_reach.couples_samples(program)
        {
            return Err(Error::config(
                "inner-product contraction",
                "frozen statistics, or no batch-norm above the parameters of v",
                "batch statistics, which couple the samples of a batch",
                "use --inner-product tangent, --norm frozen, or --meta-depth 0",
            ));
        }
        let (act, real) = (size_of::<D::Act>(), size_of::<D::Real>());
        let mut bytes = 0;
        let mut alloc = |size: usize| -> Result<D::Arena> {
            bytes += size;
            device.alloc(size)
        };
        let mut batches = BTreeMap::new();
        let mut arena_bytes = 0;
        for size in distinct(sizes) {
            let plan = Plan::new(program, &device, size, reuse)?;
            arena_bytes = arena_bytes.max(plan.bytes);
            let (entries, entry_bytes) = Entries::layout(size, real);
            let entry_arena = alloc(entry_bytes)?;
            // What an objective leaves unwritten is read back with the rest.
            device.fill(entries.results.of(&entry_arena), 0)?;
            let [uniform, bootstrap_real, bootstrap_pseudo] = constants(&options, size);
            for (region, value) in [
                (entries.ones, 1.0),
                (entries.uniform, uniform),
                (entries.bootstrap_real, bootstrap_real),
                (entries.bootstrap_pseudo, bootstrap_pseudo),
            ] {
                crate::model::write::<D>(&device, region.of(&entry_arena), &vec![value; size])?;
            }
            batches.insert(
                size,
                Batch {
                    plan,
                    entries,
                    entry_arena,
                },
            );
        }
        let arena = alloc(arena_bytes)?;
        let flat = model.flat_bytes();
        let (gradient, v, theta_hat) = (alloc(flat)?, alloc(flat)?, alloc(flat)?);
        // The padding between parameters takes part in norms and updates: it has to be zero.
        for arena in [&gradient, &v, &theta_hat] {
            device.fill(model.flat(arena), 0)?;
        }
        let norm_scratch = alloc(device.gradient_norm_scratch_bytes(flat / real))?;
        let stopped = alloc(size_of::<u32>())?;
        let whole = Region {
            offset: 0,
            bytes: size_of::<u32>(),
        };
        device.fill(whole.of(&stopped), 0)?;
        let channels = program.values[program.input()].channels;
        let table = alloc(channels * 256 * real)?;
        let largest = sizes.iter().copied().max().unwrap_or(0);
        let layout = InputLayout::new(program, largest, act);
        let inputs = Inputs::new(alloc(layout.bytes)?, layout, table);
        bytes += 2 * flat + model.running().bytes;
        Ok(Engine {
            batches,
            arena,
            gradient,
            v,
            theta_hat,
            norm_scratch,
            stopped,
            inputs,
            recordings: Recordings::default(),
            device,
            model,
            options,
            full,
            meta_reach,
            nothing,
            bytes,
            phases: Phases::new(),
        })
    }

    /// Device memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Begins (`true`) or ends recording where the phases of each step begin; returns what was recorded.
    pub fn record_phases(&self, on: bool) -> Vec<Began<D>> {
        self.phases.record(on)
    }

    /// The normalised value of every byte: `[C][256]`.
    pub fn set_table(&self, table: &[D::Real]) -> Result<()> {
        self.inputs.set_table(&self.device, table)
    }

    /// Takes a set of `bytes` bytes of images onto the device; `read` hands out its parts in order.
    pub fn keep(
        &mut self,
        bytes: usize,
        read: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<KeptSet> {
        let arena = self.device.alloc(bytes)?;
        let whole = Region { offset: 0, bytes }.of(&arena);
        let mut at = 0;
        read(&mut |part| {
            self.device.upload(whole.slice(at, part.len()), part)?;
            at += part.len();
            Ok(())
        })?;
        self.bytes += bytes;
        Ok(self.inputs.keep(arena, bytes))
    }

    /// Uploads a batch: images and labels (i32, each below the number of classes).
    pub fn feed(&mut self, slot: Slot, images: Images, labels: &[i32]) -> Result<()> {
        self.require_planned(labels.len())?;
        self.inputs.feed(&self.device, slot, images, labels)
    }

    pub(crate) fn require_planned(&self, batch: usize) -> Result<()> {
        if self.batches.contains_key(&batch) {
            return Ok(());
        }
        Err(Error::Internal(format!("a batch of {batch} was not planned")))
    }

    /// Samples fed to a slot.
    pub fn fed(&self, slot: Slot) -> usize {
        self.inputs.fed(slot).batch
    }

    pub(crate) fn batch(&self, slot: Slot) -> &Batch<D> {
        &self.batches[&self.fed(slot)]
    }

    pub(crate) fn labels(&self, slot: Slot) -> Targets<'_, D::Arena> {
        Targets::Hard(self.inputs.labels(slot))
    }

    pub(crate) fn loss_shape(&self, slot: Slot) -> LossShape {
        LossShape {
            entries: self.fed(slot) as i32,
            classes: self.model.program.classes() as i32,
        }
    }

    pub(crate) fn step_span(&self) -> Mem<'_, D> {
        self.inputs.params()
    }

    /// See [`Device::watch`].
    pub(crate) fn stopped(&self) -> Mem<'_, D> {
        Region {
            offset: 0,
            bytes: size_of::<u32>(),
        }
        .of(&self.stopped)
    }

    /// The pass of a slot's batch at parameters θ.
    pub(crate) fn pass<'a>(&'a self, slot: Slot, params: Mem<'a, D>, statistics: Statistics) -> Pass<'a, D> {
        Pass {
            device: &self.device,
            program: &self.model.program,
            plan: &self.batch(slot).plan,
            arena: &self.arena,
            layout: &self.model.layout,
            params,
            running_layout: &self.model.running_layout,
            running: self.model.running(),
            statistics,
            reach: &self.full,
        }
    }

    /// The same pass, its derivatives restricted to what v covers.
    pub(crate) fn within_meta_reach<'a>(&'a self, pass: &Pass<'a, D>) -> Pass<'a, D> {
        Pass {
            reach: &self.meta_reach,
            ..*pass
        }
    }

    /// Brings a slot's images into the network's input.
    pub(crate) fn load_input(&self, slot: Slot, input: Mem<D>) -> Result<()> {
        self.inputs.load(&self.device, slot, input)
    }

    /// Sets the step parameters: before a step, and before [`Engine::logits`] of augmented images.
    pub fn set_step(&self, params: &StepParams) -> Result<()> {
        self.device.upload(self.step_span(), bytemuck::bytes_of(params))
    }

    /// Logits `[n][classes]` of the batch in the train slot, with the running statistics.
    pub fn logits(&mut self) -> Result<Vec<f64>> {
        self.run(Work::Logits)?;
        self.read_logits()
    }

    pub(crate) fn logits_directly(&self) -> Result<()> {
        let pass = Pass {
            reach: &self.nothing,
            ..self.pass(Slot::Train, self.model.theta(), Statistics::Running)
        };
        self.load_input(Slot::Train, pass.input())?;
        pass.arrange()?;
        pass.forward()
    }

    /// Logits `[n][classes]` of the train batch as the last step saw them.
    pub fn read_logits(&self) -> Result<Vec<f64>> {
        let pass = self.pass(Slot::Train, self.model.theta(), Statistics::Running);
        read::<D>(&self.device, pass.output())
    }

    pub(crate) fn entry(&self, slot: Slot, region: impl Fn(&Entries) -> Region) -> Mem<'_, D> {
        let batch = self.batch(slot);
        region(&batch.entries).of(&batch.entry_arena)
    }
}
