//! A run: epochs of the step in `step.rs`, each followed by an evaluation.
//!
//! ```text
//! dataset -> clean set -> noise                         Task
//! train images -> loader -> Slot::Train  \
//! clean images -> loader -> Slot::Meta   -> step        θ, weights of the samples (EpochLog)
//! test images  -> probabilities          -> Scores      accuracy, best and last
//! ```
//!
//! The host asks for steps ahead of the device and looks at their results a few steps later, so that neither waits for the
//! other. The images lie on the device where they fit (`train_memory.rs`); else a step's cross beside the step before it.
//!
//! [`Trainer`] keeps everything in memory and writes nothing; `run_folder.rs` turns its records into files.

use std::collections::VecDeque;
use std::time::Instant;

use crate::arch::{Architecture, ModelName};
use crate::config::{Method, RunConfig};
use crate::data::loader::{Batch, Loader, LoaderConfig, Step};
use crate::data::split::Subset;
use crate::device::{Device, StepParams};
use crate::engine::{Engine, Images, Lane, Slot};
use crate::epoch_log::{EpochLog, EpochRecord, SampleWeights};
use crate::evaluate::{Scores, images, probabilities, set_table};
use crate::model::Model;
use crate::net::Reuse;
use crate::random::{META_VIEW, TRAIN_VIEW};
use crate::step::Objective;
use crate::task::Task;
use crate::train_memory::{Sets, sent_images, sizes};
use crate::weights::Description;
use crate::{Error, Result};

pub use crate::train_memory::{Memory, memory};

/// How far a run is; with parameters, momentum and statistics all that a resume needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// Epochs done.
    pub epoch: u32,
    /// Steps done.
    pub step: u32,
    /// Test accuracy of the best epoch so far, and its number from 1.
    pub best_accuracy: f64,
    pub best_epoch: u32,
    /// Test accuracy of the last epoch.
    pub last_accuracy: f64,
    /// Wall-clock time of all epochs, evaluations included.
    pub seconds: f64,
    /// Time of the train steps alone, and images they took.
    pub train_seconds: f64,
    pub train_images: u64,
}

/// A run in progress.
pub struct Trainer<D: Device> {
    pub config: RunConfig,
    pub task: Task,
    pub engine: Engine<D>,
    pub state: State,
    /// Per train sample, of the last epoch.
    pub sample_weights: SampleWeights,
    loader: Loader,
    sets: Sets,
    /// Lanes not in use.
    lanes: Vec<Lane<D>>,
}

/// Steps under way at once: the one that the device works on, the ones that it finds when it is done, and the one whose
/// results the host looks at.
pub(crate) const LANES: usize = 4;

/// A step asked for, until its results have been looked at.
struct Submitted<D: Device> {
    lane: Lane<D>,
    step: Step,
    params: StepParams,
}

/// Network of a configuration on a task.
pub fn architecture(config: &RunConfig, task: &Task) -> Architecture {
    let manifest = &task.manifest;
    Architecture {
        model: ModelName::PreactResnet18,
        width: config.width,
        blocks: config.blocks.clone(),
        in_channels: manifest.channels as usize,
        image_size: [manifest.height as usize, manifest.width as usize],
        num_classes: task.classes(),
    }
}

/// Completes a resolved configuration with what depends on the data: the clean images, and those of a step.
///
/// # Errors
/// `Config` for batches of more images than there are.
pub fn fit_to_task(config: &mut RunConfig, task: &Task) -> Result<()> {
    config.meta_per_class = task.meta_per_class;
    let most = task.meta.len();
    if config.method.needs_clean() {
        let usual = config.budget().meta_batch(config.batch).min(most);
        config.meta_batch.get_or_insert(usual);
    }
    for (what, batch, most, of) in [
        ("batch", Some(config.batch), task.train.len(), "train images"),
        (
            "meta-batch",
            config.meta_batch.filter(|_| config.method.needs_clean()),
            most,
            "clean images",
        ),
    ] {
        if let Some(batch) = batch.filter(|&b| b > most) {
            let expected = format!("1 to {most}, the number of {of}");
            let hint = "choose a smaller batch or more images";
            return Err(Error::config(
                format!("--{what}"),
                expected,
                batch.to_string(),
                hint,
            ));
        }
    }
    Ok(())
}

impl<D: Device> Trainer<D> {
    /// A run at its start. The configuration is resolved and fits the task.
    ///
    /// # Errors
    /// As [`memory`] and [`Trainer::with`].
    pub fn new(device: D, config: RunConfig, task: Task) -> Result<Self> {
        let keep = memory(&device, &config, &task)?.keep;
        Self::with(device, config, task, keep)
    }

    /// The same with the images kept on the device or not, which changes no bit of the results.
    ///
    /// # Errors
    /// As [`Model::new`] and [`Loader::start`], those of the dataset.
    pub fn with(device: D, config: RunConfig, task: Task, keep: bool) -> Result<Self> {
        let program = architecture(&config, &task).program()?;
        let model = Model::new(&device, program, config.init, config.seed)?;
        let sizes = sizes(&config, &task);
        let mut engine = Engine::new(device, model, config.engine_options(), &sizes, Reuse::ByLifetime)?;
        set_table(&engine, &task.manifest)?;
        let sets = if keep {
            Sets::keep(&mut engine, &config, &task)?
        } else {
            Sets::default()
        };
        let images = if keep { 0 } else { sent_images(&config, &task) };
        let lanes = (0..LANES).map(|_| engine.lane(images)).collect::<Result<_>>()?;
        let loader = loader(&config, &task, 0, keep)?;
        Ok(Trainer {
            sample_weights: SampleWeights::new(&task),
            state: State::default(),
            config,
            task,
            engine,
            loader,
            sets,
            lanes,
        })
    }

    /// Goes on from `state`; parameters, momentum and statistics are already those of that state.
    ///
    /// # Errors
    /// As [`Loader::start`].
    pub fn continue_from(&mut self, state: State) -> Result<()> {
        self.loader = loader(&self.config, &self.task, state.step, self.sets.train.is_some())?;
        self.state = state;
        Ok(())
    }

    /// Whether all epochs are done.
    pub fn is_done(&self) -> bool {
        self.state.epoch == self.config.epochs
    }

    /// Steps of one epoch.
    pub fn steps_per_epoch(&self) -> u32 {
        self.loader.steps_per_epoch()
    }

    /// Steps that the running statistics have seen.
    pub fn statistics_updates(&self) -> u64 {
        match self.config.norm {
            crate::engine::NormMode::Batch => u64::from(self.state.step),
            crate::engine::NormMode::Frozen => 0,
        }
    }

    /// What a weights file says about the network.
    pub fn description(&self) -> Description {
        Description {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            architecture: architecture(&self.config, &self.task),
            classes: self.task.manifest.classes.clone(),
            mean: self.task.manifest.mean.clone(),
            std: self.task.manifest.std.clone(),
            dataset: self.task.manifest.name.clone(),
            epoch: self.state.epoch,
        }
    }

    /// One epoch and its evaluation; `progress` is called after every step with the images of it.
    ///
    /// # Errors
    /// `Diverged` within the step in which something stops being a finite number; those of the dataset and the device.
    pub fn epoch(&mut self, mut progress: impl FnMut(usize)) -> Result<EpochRecord> {
        let start = Instant::now();
        let epoch = self.state.epoch;
        let objective = if epoch < self.config.warm_up_epochs() {
            Objective::CrossEntropy
        } else {
            self.config.method.objective()
        };
        let mut log = EpochLog::new(objective);
        let steps = self.loader.steps_per_epoch();
        let mut under_way = VecDeque::new();
        for ahead in 0..steps {
            let lane = match self.lanes.pop() {
                Some(lane) => lane,
                None => self.settle(&mut under_way, objective, &mut log, &mut progress)?,
            };
            let number = epoch * steps + ahead;
            under_way.push_back(self.submit(lane, objective, number)?);
        }
        while !under_way.is_empty() {
            let lane = self.settle(&mut under_way, objective, &mut log, &mut progress)?;
            self.lanes.push(lane);
        }
        let train_seconds = start.elapsed().as_secs_f64();
        let scores = self.evaluate()?;
        let state = &mut self.state;
        state.epoch += 1;
        state.last_accuracy = scores.accuracy;
        if state.best_epoch == 0 || scores.accuracy > state.best_accuracy {
            (state.best_accuracy, state.best_epoch) = (scores.accuracy, state.epoch);
        }
        state.train_seconds += train_seconds;
        state.train_images += log.images();
        let seconds = start.elapsed().as_secs_f64();
        state.seconds += seconds;
        Ok(log.finish(state, self.config.lr_at(epoch), &scores, train_seconds, seconds))
    }

    /// Asks for the loader's next step.
    fn submit(&mut self, mut lane: Lane<D>, objective: Objective, number: u32) -> Result<Submitted<D>> {
        let Some(step) = self.loader.next_step()? else {
            return Err(Error::Internal(format!("no step {number}")));
        };
        let params = self.config.step_params(self.state.epoch, number);
        let (train, meta) = self.batches(&step, objective);
        let train = (train.0, &train.1.labels[..]);
        let meta = meta.map(|(images, batch)| (images, &batch.labels[..]));
        self.engine.submit(&mut lane, objective, &params, train, meta)?;
        Ok(Submitted { lane, step, params })
    }

    /// Looks at the oldest step under way, and gives its lane back.
    fn settle(
        &mut self,
        under_way: &mut VecDeque<Submitted<D>>,
        objective: Objective,
        log: &mut EpochLog,
        progress: &mut impl FnMut(usize),
    ) -> Result<Lane<D>> {
        let oldest = under_way.pop_front();
        let Submitted {
            mut lane,
            step,
            params,
        } = oldest.ok_or_else(|| Error::Internal("no lane and no step in one".into()))?;
        let outcome = self.engine.collect(&mut lane)?;
        self.state.step += 1;
        if outcome.not_finite().is_some() {
            // The gradient is a later step's by now. Parameters are still those of this one.
            let (train, meta) = self.batches(&step, objective);
            self.engine.feed(Slot::Train, train.0, &train.1.labels)?;
            if let Some((images, batch)) = meta {
                self.engine.feed(Slot::Meta, images, &batch.labels)?;
            }
            self.engine.step(objective, &params)?;
        }
        self.engine.check(u64::from(self.state.step), &outcome)?;
        let train = self.trained_on(&step);
        log.add(&self.task, train, &outcome, &mut self.sample_weights);
        progress(train.len());
        self.loader.recycle(step);
        Ok(lane)
    }

    /// Scores on the test split, with the running statistics.
    ///
    /// # Errors
    /// Those of the dataset and the device; `Diverged` for logits that are not finite.
    pub fn evaluate(&mut self) -> Result<Scores> {
        let p = probabilities(
            &mut self.engine,
            &self.task.test,
            self.config.eval_batch,
            self.sets.test,
        );
        let p = p.map_err(|error| match error {
            Error::Diverged {
                what, value, hint, ..
            } => Error::Diverged {
                step: u64::from(self.state.step),
                what,
                value,
                hint,
            },
            other => other,
        })?;
        Ok(Scores::new(&p, &labels(&self.task.test), self.task.classes()))
    }

    /// The batch of a step that is trained on: for the clean images alone what the other methods get as meta batch.
    fn trained_on<'a>(&self, step: &'a Step) -> &'a Batch {
        match (self.config.method, &step.meta) {
            (Method::Clean, Some(clean)) => clean,
            _ => &step.train,
        }
    }

    /// Batches of a step, with their images.
    fn batches<'a>(&self, step: &'a Step, objective: Objective) -> (Taken<'a>, Option<Taken<'a>>) {
        let taken = |batch: &'a Batch, set, view| {
            let image = self.task.train.split().image_shape();
            let augment = self.config.augment(batch.len(), image, view);
            (images(batch, set, augment), batch)
        };
        let train = self.trained_on(step);
        match self.config.method {
            Method::Clean => (taken(train, self.sets.meta, META_VIEW), None),
            _ => {
                let meta = step.meta.as_ref().filter(|_| objective.is_meta());
                (
                    taken(train, self.sets.train, TRAIN_VIEW),
                    meta.map(|meta| taken(meta, self.sets.meta, META_VIEW)),
                )
            }
        }
    }
}

/// A batch and where its images are.
type Taken<'a> = (Images<'a>, &'a Batch);

/// Labels of a set, in its order.
pub fn labels(set: &Subset) -> Vec<i32> {
    set.ids().iter().map(|&id| set.label(id)).collect()
}

fn loader(config: &RunConfig, task: &Task, from: u32, kept: bool) -> Result<Loader> {
    let meta_from = if !config.method.needs_clean() {
        config.epochs
    } else {
        config.warm_up_epochs()
    };
    let sizes = LoaderConfig {
        seed: config.seed,
        batch: config.batch,
        meta_batch: config.meta_batch.unwrap_or(0),
        meta_draw: config.draw(),
        meta_from,
        epochs: config.epochs,
        train_images: !kept && config.method != Method::Clean,
        meta_images: !kept,
    };
    Loader::start(task.train.clone(), task.meta.clone(), sizes, from)
}
