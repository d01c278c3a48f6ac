//! Batches, network and settings on a device, for steps that are timed: every window starts from the same state.

use std::path::Path;
use std::time::Instant;

use crate::arch::Architecture;
use crate::budget::MetaDepth;
use crate::data::loader::{Loader, LoaderConfig};
use crate::data::meta_draw::MetaDraw;
use crate::data::split::Subset;
use crate::device::{AugmentShape, Device, Element, Mem, StepParams};
use crate::engine::{Engine, EngineOptions, Images, InnerProduct, Slot};
use crate::evaluate::plain;
use crate::meta_step::{self, Loaded};
use crate::model::{Init, Model};
use crate::net::Reuse;
use crate::random::{META_VIEW, Purpose, Stream, TRAIN_VIEW};
use crate::recordings::Work;
use crate::step::Objective;
use crate::{Error, Result, task};

/// Objectives by their names on the command line, the plain one first.
pub const OBJECTIVES: [(&str, Objective); 3] = [
    ("ce", Objective::CrossEntropy),
    ("l2rw", Objective::Reweight),
    ("l2b", Objective::L2b),
];

/// Rates as in training, small enough that many steps on one batch stay finite.
const PARAMS: StepParams = StepParams {
    lr: 0.01,
    lambda: 0.01,
    eta: 1.0,
    mu: 0.9,
    weight_decay: 5e-4,
    clip: 1.0,
    seed: 0,
    step: 0,
    reserved: 0,
};

/// How images of a network are augmented here: crops of a border of an eighth, mirrored.
pub fn augment(architecture: &Architecture, n: usize) -> AugmentShape {
    let [height, width] = architecture.image_size;
    AugmentShape {
        pad: (height.min(width) / 8) as i32,
        flip: 1,
        ..plain(n, [height, width, architecture.in_channels])
    }
}

/// Time of some steps.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// From the first call until the device had done everything.
    pub seconds: f64,
    pub device_seconds: f64,
}

/// An engine with batches fed, and the state that each window starts from.
pub struct Workload<D: Device> {
    pub engine: Engine<D>,
    /// Train and meta images of a step.
    pub sizes: (usize, usize),
    pub(super) params: StepParams,
    initial: [Vec<u8>; 3],
}

impl<D: Device> Workload<D> {
    /// A network with He weights on random images and labels.
    ///
    /// # Errors
    /// `Config` for a network or batch that cannot be; those of the device.
    pub fn random(
        device: D,
        architecture: &Architecture,
        (n, m): (usize, usize),
        meta_depth: MetaDepth,
    ) -> Result<Self> {
        let program = architecture.program()?;
        program.check_batch(n.max(m))?;
        let model = Model::new(&device, program, Init::He, 1)?;
        let options = EngineOptions {
            meta_depth,
            ..EngineOptions::default()
        };
        let mut engine = Engine::new(device, model, options, &[n, m], Reuse::ByLifetime)?;
        let table: Vec<D::Real> = (0..architecture.in_channels * 256)
            .map(|i| D::Real::from_f64(((i % 256) as f64 - 127.5) / 64.0))
            .collect();
        engine.set_table(&table)?;
        let mut stream = Stream::new(1, Purpose::Init).view(1);
        for (slot, size, view) in [(Slot::Train, n, TRAIN_VIEW), (Slot::Meta, m, META_VIEW)] {
            let shape = AugmentShape {
                view: i32::from(view),
                ..augment(architecture, size)
            };
            let pixels = size * (shape.h * shape.w * shape.c) as usize;
            let bytes: Vec<u8> = (0..pixels).map(|_| stream.word() as u8).collect();
            let ids: Vec<u32> = (0..size as u32).collect();
            let classes = architecture.num_classes as u32;
            let labels: Vec<i32> = (0..size).map(|_| stream.below(classes) as i32).collect();
            let images = Images::Pixels {
                bytes: &bytes,
                ids: &ids,
                augment: shape,
            };
            engine.feed(slot, images, &labels)?;
        }
        Self::new(engine, PARAMS, (n, m))
    }

    /// Network, batches and settings of a meta-step file.
    ///
    /// # Errors
    /// Those of [`meta_step::load`].
    pub fn from_file(device: D, path: &Path) -> Result<Self> {
        let Loaded {
            engine,
            params,
            sizes,
        } = meta_step::load(device, path, InnerProduct::Tangent)?;
        Self::new(engine, params, sizes)
    }

    /// Does a step of every objective, so that what is timed is warm and gives numbers.
    fn new(engine: Engine<D>, params: StepParams, sizes: (usize, usize)) -> Result<Self> {
        let read = |mem: Mem<D>| {
            let mut bytes = vec![0; mem.bytes];
            engine.device.download(&mut bytes, mem).map(|()| bytes)
        };
        let model = &engine.model;
        let initial = [read(model.theta())?, read(model.buf())?, read(model.running())?];
        let mut workload = Workload {
            engine,
            sizes,
            params,
            initial,
        };
        for (name, objective) in OBJECTIVES {
            workload.reset()?;
            workload.engine.step(objective, &workload.params)?;
            let outcome = workload.engine.outcome(objective)?;
            workload.engine.check(0, &outcome)?;
            // L2RW and L2B may find no entry worth a positive weight; a plain step always learns.
            if outcome.gradient_norm == 0.0 && objective == Objective::CrossEntropy {
                let what = format!("step of {name}");
                return Err(Error::device(what, "the gradient is zero", "nothing was timed"));
            }
        }
        Ok(workload)
    }

    /// Parameters, momentum and running statistics as they were at the start; a step that stopped the others is forgotten.
    fn reset(&self) -> Result<()> {
        let model = &self.engine.model;
        let memory = [model.theta(), model.buf(), model.running()];
        for (mem, bytes) in memory.into_iter().zip(&self.initial) {
            self.engine.device.upload(mem, bytes)?;
        }
        self.engine.device.fill(self.engine.stopped(), 0)?;
        self.engine.device.synchronize()
    }

    /// `count` steps from the initial state.
    ///
    /// # Errors
    /// `Diverged` where the last step's results are not finite, as after any step whose were not; those of the device.
    pub fn steps(&mut self, objective: Objective, count: usize) -> Result<Taken> {
        self.reset()?;
        self.engine.set_step(&self.params)?;
        let start = Instant::now();
        let from = self.engine.device.mark()?;
        for _ in 0..count {
            // Without the upload of what stays the same, which would wait for the step before.
            self.engine.run(Work::Step(objective))?;
        }
        let to = self.engine.device.mark()?;
        self.engine.device.synchronize()?;
        let taken = Taken {
            seconds: start.elapsed().as_secs_f64(),
            device_seconds: self.engine.device.seconds(&from, &to)?,
        };
        self.engine
            .check(count as u64, &self.engine.outcome(objective)?)?;
        Ok(taken)
    }
}

/// Train and meta batches of a dataset's train split, as training takes them: an epoch, then at least `steps` more. Also the
/// bytes of one image. Batches are no larger than the split.
///
/// # Errors
/// `Io`, `Data`.
pub fn batches(data: &Path, (n, m): (usize, usize), steps: u32) -> Result<(Loader, usize)> {
    let dataset = task::open(data, false)?;
    let set = Subset::clean(dataset.split(task::TRAIN)?);
    let size = |batch: usize| batch.min(set.len() as usize) as u32;
    let per_epoch = set.len().div_ceil(size(n));
    let config = LoaderConfig {
        seed: 0,
        batch: size(n),
        meta_batch: size(m),
        meta_draw: MetaDraw::Uniform,
        meta_from: 0,
        epochs: steps.div_ceil(per_epoch) + 1,
        train_images: true,
        meta_images: true,
    };
    let image = set.split().image_shape().iter().product();
    Ok((Loader::start(set.clone(), set, config, 0)?, image))
}
