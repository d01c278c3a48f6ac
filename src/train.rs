//! A run: epochs of the step in `step.rs`, each followed by an evaluation.
//!
//! ```text
//! dataset -> clean set -> noise                         Task
//! train images -> loader -> Slot::Train  \
//! clean images -> loader -> Slot::Meta   -> step        θ, weights of the samples (EpochLog)
//! test images  -> probabilities          -> Scores      accuracy, best and last
//! ```
//!
//! [`Trainer`] keeps everything in memory and writes nothing; `run_folder.rs` turns its records into files.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::arch::{Architecture, ModelName};
use crate::config::{Method, RunConfig};
use crate::data::loader::{Batch, Loader, LoaderConfig};
use crate::data::split::Subset;
use crate::device::{AugmentShape, Device, StepParams};
use crate::engine::{Engine, Images, Slot, required_bytes};
use crate::epoch_log::{EpochLog, EpochRecord, SampleWeights};
use crate::evaluate::{Scores, batch_sizes, plain, probabilities, set_table};
use crate::model::Model;
use crate::net::{Program, Reuse};
use crate::random::{META_VIEW, TRAIN_VIEW};
use crate::step::Objective;
use crate::task::Task;
use crate::weights::Description;
use crate::{Error, Result};

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

/// Completes a resolved configuration with what depends on the data: the clean images of a step.
///
/// # Errors
/// `Config` for batches of more images than there are.
pub fn fit_to_task(config: &mut RunConfig, task: &Task) -> Result<()> {
    let most = task.meta.len();
    if config.method.needs_clean() {
        config.meta_batch.get_or_insert(config.batch.min(most));
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

/// All batch sizes that a run needs.
fn sizes(config: &RunConfig, task: &Task) -> Vec<usize> {
    let mut sizes = BTreeSet::new();
    if config.method != Method::Clean {
        sizes.extend(batch_sizes(task.train.len(), config.batch));
    }
    if config.method.needs_clean() {
        sizes.extend(config.meta_batch.map(|m| m as usize));
    }
    sizes.extend(batch_sizes(task.test.len(), config.eval_batch));
    sizes.into_iter().collect()
}

/// Device memory that the run will hold.
///
/// # Errors
/// `Device`, naming need, free memory and the largest batch that fits, where it is more than there is; `Config` for a
/// batch that no device can index.
pub fn memory<D: Device>(device: &D, config: &RunConfig, task: &Task) -> Result<usize> {
    memory_within(device, config, task, device.free_bytes())
}

fn memory_within<D: Device>(
    device: &D,
    config: &RunConfig,
    task: &Task,
    free: Option<usize>,
) -> Result<usize> {
    let program = architecture(config, task).program()?;
    let bytes = needed(device, &program, &sizes(config, task))?;
    let Some(free) = free.filter(|&free| free < bytes) else {
        return Ok(bytes);
    };
    // Weights normalise over the batch, so a batch cannot be cut in pieces: it fits, or the run is another one.
    let fits = |batch: u32| {
        let smaller = RunConfig {
            batch,
            meta_batch: config.meta_batch.map(|m| m.min(batch)),
            eval_batch: config.eval_batch.min(batch),
            ..config.clone()
        };
        needed(device, &program, &sizes(&smaller, task)).is_ok_and(|bytes| bytes <= free)
    };
    let (mut most, mut over) = (
        0,
        config
            .batch
            .max(config.eval_batch)
            .max(config.meta_batch.unwrap_or(0)),
    );
    while over - most > 1 {
        let middle = most + (over - most) / 2;
        if fits(middle) {
            most = middle
        } else {
            over = middle
        }
    }
    let hint = match most {
        0 => "this network does not fit at any batch size: choose a smaller one".to_owned(),
        _ => format!("the largest batch that fits is {most} (--batch, --meta-batch and --eval-batch)"),
    };
    let detail = format!("{bytes} bytes needed, {free} free");
    Err(Error::device(
        format!("memory of {}", device.name()),
        detail,
        hint,
    ))
}

fn needed<D: Device>(device: &D, program: &Program, sizes: &[usize]) -> Result<usize> {
    sizes.iter().try_for_each(|&size| program.check_batch(size))?;
    required_bytes(device, program, sizes, Reuse::ByLifetime)
}

impl<D: Device> Trainer<D> {
    /// A run at its start. The configuration is resolved and fits the task.
    ///
    /// # Errors
    /// As [`memory`], [`Model::new`] and [`Loader::start`].
    pub fn new(device: D, config: RunConfig, task: Task) -> Result<Self> {
        memory(&device, &config, &task)?;
        let program = architecture(&config, &task).program()?;
        let model = Model::new(&device, program, config.init, config.seed)?;
        let sizes = sizes(&config, &task);
        let engine = Engine::new(device, model, config.engine_options(), &sizes, Reuse::ByLifetime)?;
        set_table(&engine, &task.manifest)?;
        let loader = loader(&config, &task, 0)?;
        Ok(Trainer {
            sample_weights: SampleWeights::new(&task),
            state: State::default(),
            config,
            task,
            engine,
            loader,
        })
    }

    /// Goes on from `state`; parameters, momentum and statistics are already those of that state.
    ///
    /// # Errors
    /// As [`Loader::start`].
    pub fn continue_from(&mut self, state: State) -> Result<()> {
        self.loader = loader(&self.config, &self.task, state.step)?;
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
        for _ in 0..self.loader.steps_per_epoch() {
            let Some(step) = self.loader.next_step()? else {
                return Err(Error::Internal(format!("no steps left in epoch {epoch}")));
            };
            // Training on the clean images alone is training on what the others get as meta batch.
            let (train, meta) = match (self.config.method, &step.meta) {
                (Method::Clean, Some(clean)) => (clean, None),
                (_, meta) => (&step.train, meta.as_ref()),
            };
            let view = if self.config.method == Method::Clean {
                META_VIEW
            } else {
                TRAIN_VIEW
            };
            self.feed(Slot::Train, train, view)?;
            if let Some(meta) = meta.filter(|_| objective.is_meta()) {
                self.feed(Slot::Meta, meta, META_VIEW)?;
            }
            self.engine.step(objective, &self.step_params())?;
            let outcome = self.engine.outcome(objective)?;
            self.state.step += 1;
            self.engine.check(u64::from(self.state.step), &outcome)?;
            log.add(&self.task, train, &outcome, &mut self.sample_weights);
            progress(train.len());
            self.loader.recycle(step);
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

    /// Scores on the test split, with the running statistics.
    ///
    /// # Errors
    /// Those of the dataset and the device; `Diverged` for logits that are not finite.
    pub fn evaluate(&mut self) -> Result<Scores> {
        let p =
            probabilities(&mut self.engine, &self.task.test, self.config.eval_batch).map_err(|error| {
                match error {
                    Error::Diverged {
                        what, value, hint, ..
                    } => Error::Diverged {
                        step: u64::from(self.state.step),
                        what,
                        value,
                        hint,
                    },
                    other => other,
                }
            })?;
        Ok(Scores::new(&p, &labels(&self.task.test), self.task.classes()))
    }

    fn step_params(&self) -> StepParams {
        let lr = self.config.lr_at(self.state.epoch);
        StepParams {
            lr,
            // The virtual step is the real one's size (METHOD 1.5).
            lambda: lr,
            eta: self.config.eta,
            mu: self.config.momentum,
            weight_decay: self.config.weight_decay,
            clip: self.config.clip,
            seed: self.config.seed,
            step: self.state.step,
            reserved: 0,
        }
    }

    fn feed(&mut self, slot: Slot, batch: &Batch, view: u16) -> Result<()> {
        let augment = AugmentShape {
            pad: self.config.pad as i32,
            flip: i32::from(self.config.flip),
            view: i32::from(view),
            ..plain(batch.len(), self.task.train.split().image_shape())
        };
        let images = Images::Pixels {
            bytes: &batch.images,
            ids: &batch.ids,
            augment,
        };
        self.engine.feed(slot, images, &batch.labels)
    }
}

/// Labels of a set, in its order.
pub fn labels(set: &Subset) -> Vec<i32> {
    set.ids().iter().map(|&id| set.label(id)).collect()
}

fn loader(config: &RunConfig, task: &Task, from: u32) -> Result<Loader> {
    let meta_from = if !config.method.needs_clean() {
        config.epochs
    } else {
        config.warm_up_epochs()
    };
    let sizes = LoaderConfig {
        seed: config.seed,
        batch: config.batch,
        meta_batch: config.meta_batch.unwrap_or(0),
        meta_from,
        epochs: config.epochs,
    };
    Loader::start(task.train.clone(), task.meta.clone(), sizes, from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::run_folder::prepare;

    #[test]
    fn a_batch_that_does_not_fit_names_the_largest_that_does() {
        let device = Cpu::<f32>::new(Some(1)).unwrap();
        let with_batch = |batch| {
            let mut config = RunConfig {
                batch,
                eval_batch: 16,
                ..RunConfig::default()
            }
            .resolve()
            .unwrap();
            let task = prepare(&mut config).unwrap();
            (config, task)
        };
        let need = |batch| {
            let (config, task) = with_batch(batch);
            memory_within(&device, &config, &task, None).unwrap()
        };
        let (config, task) = with_batch(300);
        let largest = |free| {
            let error = memory_within(&device, &config, &task, Some(free)).unwrap_err();
            assert_eq!(error.exit_code(), 4);
            error.to_string()
        };
        assert_eq!(
            memory_within(&device, &config, &task, Some(need(300))).unwrap(),
            need(300)
        );
        let message = largest(need(299));
        assert!(
            message.contains(&format!("{} bytes needed, {} free", need(300), need(299))),
            "{message}"
        );
        assert!(message.contains("that fits is 299 "), "{message}");
        assert!(largest(need(64)).contains("that fits is 64 "));
        assert!(largest(1000).contains("does not fit at any batch size"));
        // The estimate is what the engine then holds.
        let need = need(300);
        let trainer = Trainer::new(device, config.clone(), Task::open(&config).unwrap()).unwrap();
        assert_eq!(trainer.engine.bytes(), need);
    }
}
