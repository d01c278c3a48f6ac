//! A model with everything that training it needs, planned once: activations, gradients, inputs, per-entry results.
//!
//! Inputs are uploaded before a step ([`Engine::feed`]), results are read after it ([`Engine::outcome`]); the step itself
//! (`step.rs`) allocates nothing, uploads nothing and waits for nothing.

use std::collections::BTreeMap;

use crate::budget::MetaDepth;
use crate::device::{
    AugmentShape, Device, Element, Layout, LossShape, Mem, Normalise, Region, Statistics, StepParams, Targets,
};
use crate::model::{Model, read};
use crate::net::{Pass, Plan, Program, Reach, Reuse};
use crate::phase::{Began, Phases};
use crate::{Error, Result};

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

/// Which of the two inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Train,
    Meta,
}

/// Images of a batch, `[N,H,W,C]`.
pub enum Images<'a> {
    /// Bytes, augmented and normalised on the device; ids are the samples' numbers in the dataset.
    Pixels {
        bytes: &'a [u8],
        ids: &'a [u32],
        augment: AugmentShape,
    },
    /// Network inputs as they are.
    Values(&'a [f64]),
}

/// Memory of one input.
struct Feed<D: Device> {
    arena: D::Arena,
    images: Region,
    ids: Region,
    labels: Region,
    /// Samples in it, 0 before the first feed.
    batch: usize,
    /// None: the images are network inputs.
    augment: Option<AugmentShape>,
}

/// Per-entry results of a batch of n: where they lie in one arena.
#[derive(Clone, Copy)]
pub(crate) struct Entries {
    /// i32 [n].
    pub pseudo: Region,
    /// [n] each.
    pub loss_real: Region,
    pub loss_pseudo: Region,
    /// [n], where this is the size of the meta batch.
    pub loss_meta: Region,
    /// [2][n]: given label, pseudo-label.
    pub raw: Region,
    pub weights: Region,
    /// [1].
    pub gradient_norm: Region,
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
        let mut row = |count: usize| layout.push(count * real);
        let entries = Entries {
            loss_real: row(size),
            loss_pseudo: row(size),
            loss_meta: row(size),
            raw: row(2 * size),
            weights: row(2 * size),
            gradient_norm: row(1),
            ones: row(size),
            uniform: row(size),
            bootstrap_real: row(size),
            bootstrap_pseudo: row(size),
            pseudo: layout.push(size * size_of::<i32>()),
        };
        (entries, layout.bytes())
    }
}

/// Places of images, ids and labels of one input, and the bytes they take.
pub(crate) fn feed_layout(program: &Program, largest: usize, act: usize) -> ([Region; 3], usize) {
    let mut layout = Layout::default();
    let image = program.rows(program.input(), 1).len();
    let regions = [
        layout.push(largest * image * act),
        layout.push(largest * size_of::<u32>()),
        layout.push(largest * size_of::<i32>()),
    ];
    (regions, layout.bytes())
}

/// Device memory that an engine for batches of these sizes will hold, its model included: what [`Engine::bytes`] says
/// once it exists.
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
    for &size in sizes {
        arena = arena.max(Plan::new(program, device, size, reuse)?.bytes);
        entries += Entries::layout(size, real).1;
    }
    let largest = sizes.iter().copied().max().unwrap_or(0);
    let (_, feed) = feed_layout(program, largest, act);
    let table = program.values[program.input()].channels * 256 * act;
    // θ, momentum, gradient, v, θ̂; two inputs.
    Ok(arena
        + entries
        + 5 * flat
        + running
        + device.gradient_norm_scratch_bytes(flat / real)
        + size_of::<StepParams>()
        + table
        + 2 * feed)
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
    pub(crate) batches: BTreeMap<usize, Batch<D>>,
    pub(crate) arena: D::Arena,
    /// Flat arenas in parameter layout.
    pub gradient: D::Arena,
    pub v: D::Arena,
    pub(crate) theta_hat: D::Arena,
    pub(crate) norm_scratch: D::Arena,
    pub(crate) step_params: D::Arena,
    table: D::Arena,
    train: Feed<D>,
    meta: Feed<D>,
    bytes: usize,
    pub(crate) phases: Phases<D>,
}

/// What one step computed, on the host. Losses, raw weights and weights per entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub pseudo_labels: Vec<i32>,
    pub loss_real: Vec<f64>,
    pub loss_pseudo: Vec<f64>,
    /// ηλ⟨v, ∇f_i⟩ and ηλ⟨v, ∇g_i⟩; empty where the objective has no meta pass.
    pub alpha_raw: Vec<f64>,
    pub beta_raw: Vec<f64>,
    /// Weights of the given and the pseudo-label.
    pub alpha: Vec<f64>,
    pub beta: Vec<f64>,
    /// Losses of the meta batch; empty likewise.
    pub val_loss: Vec<f64>,
    /// Of the weighted loss, before clipping.
    pub gradient_norm: f64,
}

impl Outcome {
    /// Σ α_i f_i + β_i g_i.
    pub fn loss(&self) -> f64 {
        let dot = |w: &[f64], l: &[f64]| w.iter().zip(l).map(|(w, l)| w * l).sum::<f64>();
        dot(&self.alpha, &self.loss_real) + dot(&self.beta, &self.loss_pseudo)
    }

    /// Mean loss of the meta batch.
    pub fn mean_val_loss(&self) -> f64 {
        self.val_loss.iter().sum::<f64>() / self.val_loss.len() as f64
    }
}

impl<D: Device> Engine<D> {
    /// Plans and allocates for batches of the given sizes.
    pub fn new(
        device: D,
        model: Model<D>,
        options: EngineOptions,
        sizes: &[usize],
        reuse: Reuse,
    ) -> Result<Self> {
        let program = &model.program;
        let full = Reach::full(program);
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
        for &size in sizes {
            let plan = Plan::new(program, &device, size, reuse)?;
            arena_bytes = arena_bytes.max(plan.bytes);
            let (entries, entry_bytes) = Entries::layout(size, real);
            let entry_arena = alloc(entry_bytes)?;
            let n = size as f64;
            for (region, value) in [
                (entries.ones, 1.0),
                (entries.uniform, 1.0 / n),
                (entries.bootstrap_real, options.bootstrap / n),
                (entries.bootstrap_pseudo, (1.0 - options.bootstrap) / n),
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
        let step_params = alloc(size_of::<StepParams>())?;
        let channels = program.values[program.input()].channels;
        let table = alloc(channels * 256 * act)?;
        let largest = sizes.iter().copied().max().unwrap_or(0);
        let mut feed = || -> Result<Feed<D>> {
            let ([images, ids, labels], bytes) = feed_layout(program, largest, act);
            Ok(Feed {
                arena: alloc(bytes)?,
                images,
                ids,
                labels,
                batch: 0,
                augment: None,
            })
        };
        let (train, meta) = (feed()?, feed()?);
        bytes += 2 * flat + model.running().bytes;
        Ok(Engine {
            batches,
            arena,
            gradient,
            v,
            theta_hat,
            norm_scratch,
            step_params,
            table,
            train,
            meta,
            device,
            model,
            options,
            full,
            meta_reach,
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
    pub fn set_table(&self, table: &[D::Act]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(table);
        let region = Region {
            offset: 0,
            bytes: bytes.len(),
        };
        self.device.upload(region.of(&self.table), bytes)
    }

    /// Uploads a batch: images and labels (i32, each below the number of classes).
    pub fn feed(&mut self, slot: Slot, images: Images, labels: &[i32]) -> Result<()> {
        let batch = labels.len();
        assert!(
            self.batches.contains_key(&batch),
            "batch of {batch} was not planned"
        );
        let feed = match slot {
            Slot::Train => &mut self.train,
            Slot::Meta => &mut self.meta,
        };
        let put = |region: Region, bytes: &[u8]| {
            self.device
                .upload(region.of(&feed.arena).slice(0, bytes.len()), bytes)
        };
        put(feed.labels, bytemuck::cast_slice(labels))?;
        match images {
            Images::Pixels { bytes, ids, augment } => {
                put(feed.images, bytes)?;
                put(feed.ids, bytemuck::cast_slice(ids))?;
                feed.augment = Some(augment);
            }
            Images::Values(values) => {
                let values: Vec<D::Act> = values.iter().map(|&v| D::Act::from_f64(v)).collect();
                put(feed.images, bytemuck::cast_slice(&values))?;
                feed.augment = None;
            }
        }
        feed.batch = batch;
        Ok(())
    }

    /// Samples fed to a slot.
    pub fn fed(&self, slot: Slot) -> usize {
        self.feed_of(slot).batch
    }

    fn feed_of(&self, slot: Slot) -> &Feed<D> {
        match slot {
            Slot::Train => &self.train,
            Slot::Meta => &self.meta,
        }
    }

    pub(crate) fn batch(&self, slot: Slot) -> &Batch<D> {
        &self.batches[&self.fed(slot)]
    }

    pub(crate) fn labels(&self, slot: Slot) -> Targets<'_, D::Arena> {
        let feed = self.feed_of(slot);
        Targets::Hard(
            feed.labels
                .of(&feed.arena)
                .slice(0, feed.batch * size_of::<i32>()),
        )
    }

    pub(crate) fn loss_shape(&self, slot: Slot) -> LossShape {
        LossShape {
            entries: self.fed(slot) as i32,
            classes: self.model.program.classes() as i32,
        }
    }

    pub(crate) fn step_span(&self) -> Mem<'_, D> {
        Region {
            offset: 0,
            bytes: size_of::<StepParams>(),
        }
        .of(&self.step_params)
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
        let feed = self.feed_of(slot);
        let images = feed.images.of(&feed.arena);
        let Some(augment) = feed.augment else {
            return self.device.copy(input, images.slice(0, input.bytes));
        };
        let pixels = input.bytes / size_of::<D::Act>();
        let table = Region {
            offset: 0,
            bytes: augment.c as usize * 256 * size_of::<D::Act>(),
        };
        self.device.augment(
            augment,
            input,
            images.slice(0, pixels),
            feed.ids.of(&feed.arena).slice(0, feed.batch * size_of::<u32>()),
            table.of(&self.table),
            self.step_span(),
        )
    }

    /// Sets the step parameters: before a step, and before [`Engine::logits`] of augmented images.
    pub fn set_step(&self, params: &StepParams) -> Result<()> {
        self.device.upload(self.step_span(), bytemuck::bytes_of(params))
    }

    /// Logits `[n][classes]` of the batch in the train slot, with the running statistics.
    pub fn logits(&self) -> Result<Vec<f64>> {
        let pass = self.pass(Slot::Train, self.model.theta(), Statistics::Running);
        self.load_input(Slot::Train, pass.input())?;
        pass.forward()?;
        self.read_logits()
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

    pub(crate) fn read_entry(&self, slot: Slot, region: impl Fn(&Entries) -> Region) -> Result<Vec<f64>> {
        read::<D>(&self.device, self.entry(slot, region))
    }
}
