//! What a precision does to the numbers of a step: the same L2B steps on the same real batches, from the same states of a
//! run, in each precision on the chosen device and in f64 on the CPU.
//!
//! A state is parameters, momentum and running statistics at the start, in the middle and at the end of a training run.
//! From it every precision takes the same step, with the engine that trains; nothing is computed another way here.

mod text;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::RunConfig;
use crate::data::loader::{Batch, Loader, LoaderConfig};
use crate::device::Device;
use crate::device::choice::{DeviceChoice, Precision, Visitor, with_device};
use crate::engine::{Engine, Images, Slot};
use crate::evaluate::set_table;
use crate::model::{Model, Tensor};
use crate::net::Reuse;
use crate::random::{META_VIEW, TRAIN_VIEW};
use crate::run_folder::RunFolder;
use crate::step::Objective;
use crate::task::Task;
use crate::train::{Trainer, architecture};
use crate::{Error, Result};

/// Values below this share of the largest are near enough to 0 for their sign to be an accident.
const SIGNED: f64 = 0.01;

/// A run at one moment.
#[derive(Clone, Debug)]
pub struct State {
    pub epoch: u32,
    pub step: u32,
    params: BTreeMap<String, Tensor>,
    momentum: BTreeMap<String, Tensor>,
    running: BTreeMap<String, Tensor>,
}

impl State {
    fn of<D: Device>(trainer: &Trainer<D>) -> Result<Self> {
        let (device, model) = (&trainer.engine.device, &trainer.engine.model);
        Ok(State {
            epoch: trainer.state.epoch,
            step: trainer.state.step,
            params: model.read_flat(device, &model.params)?,
            momentum: model.read_flat(device, &model.momentum)?,
            running: model.read_running(device)?,
        })
    }

    fn put<D: Device>(&self, device: &D, model: &Model<D>) -> Result<()> {
        for (index, param) in model.program.params.iter().enumerate() {
            model.write_flat(device, &model.params, index, &self.params[&param.name])?;
            model.write_flat(device, &model.momentum, index, &self.momentum[&param.name])?;
        }
        for (index, (name, _)) in model.running_names().iter().enumerate() {
            model.write_running(device, index, &self.running[name].values)?;
        }
        Ok(())
    }
}

/// Where the states come from.
pub enum Source<'a> {
    /// A training run of the configuration: its start, its middle and its end.
    Train,
    /// The state that a run's folder holds.
    Folder(&'a RunFolder),
}

/// States of a run, on the device and in the precision of the configuration. `progress` hears of the images of each step.
///
/// # Errors
/// Those of training.
pub fn states(
    config: &RunConfig,
    task: Task,
    source: Source,
    progress: impl FnMut(usize),
) -> Result<Vec<State>> {
    struct Run<'a, F> {
        config: RunConfig,
        task: Task,
        source: Source<'a>,
        progress: F,
    }
    impl<F: FnMut(usize)> Visitor for Run<'_, F> {
        type Output = Vec<State>;

        fn visit<D: Device>(mut self, device: D) -> Result<Vec<State>> {
            let middle = self.config.epochs / 2;
            let mut trainer = Trainer::new(device, self.config, self.task)?;
            if let Source::Folder(folder) = self.source {
                folder.restore(&mut trainer)?;
                return Ok(vec![State::of(&trainer)?]);
            }
            let mut states = vec![State::of(&trainer)?];
            while !trainer.is_done() {
                trainer.epoch(&mut self.progress)?;
                if trainer.state.epoch == middle || trainer.is_done() {
                    states.push(State::of(&trainer)?);
                }
            }
            Ok(states)
        }
    }
    let (device, precision, threads) = (config.device, config.precision(), config.threads);
    let run = Run {
        config: config.clone(),
        task,
        source,
        progress,
    };
    with_device(device, precision, threads, run)
}

/// What one step computes.
struct Values {
    pseudo_labels: Vec<i32>,
    /// By name, in the order of [`QUANTITIES`].
    vectors: [Vec<f64>; 6],
}

/// What is compared. `update` is the momentum buffer after the step: θ moves by −lr times it.
pub const QUANTITIES: [&str; 6] = ["alpha_raw", "beta_raw", "alpha", "beta", "gradient", "update"];
/// Those with one value per pseudo-label.
const OF_PSEUDO_LABELS: [usize; 2] = [1, 3];

/// One step from a state.
struct Step<'a> {
    config: &'a RunConfig,
    task: &'a Task,
    state: &'a State,
    /// Counter of the step's random numbers.
    step: u32,
    train: &'a Batch,
    meta: &'a Batch,
}

impl Step<'_> {
    fn feed<D: Device>(&self, engine: &mut Engine<D>, slot: Slot, batch: &Batch, view: u16) -> Result<()> {
        let image = self.task.train.split().image_shape();
        let augment = self.config.augment(batch.len(), image, view);
        let images = Images::Pixels {
            bytes: &batch.images,
            ids: &batch.ids,
            augment,
        };
        engine.feed(slot, images, &batch.labels)
    }
}

impl Visitor for &Step<'_> {
    type Output = Values;

    fn visit<D: Device>(self, device: D) -> Result<Values> {
        let config = self.config;
        let program = architecture(config, self.task).program()?;
        let model = Model::new(&device, program, config.init, config.seed)?;
        let sizes = [self.train.len(), self.meta.len()];
        let mut engine = Engine::new(device, model, config.engine_options(), &sizes, Reuse::ByLifetime)?;
        set_table(&engine, &self.task.manifest)?;
        self.state.put(&engine.device, &engine.model)?;
        self.feed(&mut engine, Slot::Train, self.train, TRAIN_VIEW)?;
        self.feed(&mut engine, Slot::Meta, self.meta, META_VIEW)?;
        let epoch = self.state.epoch.min(config.epochs - 1);
        engine.step(Objective::L2b, &config.step_params(epoch, self.step))?;
        let outcome = engine.outcome(Objective::L2b)?;
        engine.check(u64::from(self.step), &outcome)?;
        let flat = |arena: &D::Arena| -> Result<Vec<f64>> {
            let tensors = engine.model.read_flat(&engine.device, arena)?;
            Ok(tensors.into_values().flat_map(|tensor| tensor.values).collect())
        };
        Ok(Values {
            pseudo_labels: outcome.pseudo_labels,
            vectors: [
                outcome.alpha_raw,
                outcome.beta_raw,
                outcome.alpha,
                outcome.beta,
                flat(&engine.gradient)?,
                flat(&engine.model.momentum)?,
            ],
        })
    }
}

/// How near one vector is to its reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// Of the angle between them.
    pub cosine: f64,
    /// Share of the values above 1 % of the largest whose signs agree.
    pub sign: f64,
    /// ‖difference‖ / ‖reference‖.
    pub relative_error: f64,
}

impl Agreement {
    /// Of a vector with its reference. Two vectors of zeros agree; one of zeros alone is at a right angle.
    pub fn of(values: &[f64], reference: &[f64]) -> Self {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (size, reference_size) = (dot(values, values).sqrt(), dot(reference, reference).sqrt());
        let difference: Vec<f64> = values.iter().zip(reference).map(|(a, b)| a - b).collect();
        let error = dot(&difference, &difference).sqrt();
        if error == 0.0 {
            return Agreement {
                cosine: 1.0,
                sign: 1.0,
                relative_error: 0.0,
            };
        }
        let largest = reference.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        let signed = || {
            let pairs = values.iter().zip(reference);
            pairs.filter(|(_, r)| r.abs() > SIGNED * largest)
        };
        let agree = signed().filter(|(v, r)| *v * *r > 0.0).count();
        Agreement {
            cosine: match size * reference_size {
                0.0 => 0.0,
                product => dot(values, reference) / product,
            },
            sign: match signed().count() {
                0 => 1.0,
                count => agree as f64 / count as f64,
            },
            relative_error: error / reference_size,
        }
    }

    /// The worse of both in every figure; not a number is worst.
    fn worse(self, other: Self) -> Self {
        let least = |a: f64, b: f64| if a <= b || a.is_nan() { a } else { b };
        let most = |a: f64, b: f64| if a >= b || a.is_nan() { a } else { b };
        Agreement {
            cosine: least(self.cosine, other.cosine),
            sign: least(self.sign, other.sign),
            relative_error: most(self.relative_error, other.relative_error),
        }
    }
}

/// One quantity in one precision at one state: the worst of the batches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub epoch: u32,
    pub precision: Precision,
    pub quantity: &'static str,
    #[serde(flatten)]
    pub agreement: Agreement,
}

/// Pseudo-labels that differ from the reference's, over all batches of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flips {
    pub epoch: u32,
    pub precision: Precision,
    pub flips: usize,
    pub of: usize,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Smallest cosine and sign agreement, largest error of the batches of each state.
    pub rows: Vec<Row>,
    pub flips: Vec<Flips>,
}

impl Report {
    /// Compares `batches` steps from each state. β is compared where the pseudo-labels agree.
    ///
    /// # Errors
    /// `Config` for a precision that the device has not; `Diverged`; those of the dataset and the device.
    pub fn new(
        config: &RunConfig,
        task: &Task,
        states: &[State],
        precisions: &[Precision],
        batches: u32,
    ) -> Result<Self> {
        let mut report = Report::default();
        for state in states {
            let mut rows: Vec<Row> = Vec::new();
            let mut flips: Vec<Flips> = Vec::new();
            let steps = steps(config, task, state, batches)?;
            for (number, (train, meta)) in steps.iter().enumerate() {
                let step = Step {
                    config,
                    task,
                    state,
                    step: state.step + number as u32,
                    train,
                    meta,
                };
                let threads = config.threads;
                let reference = with_device(DeviceChoice::Cpu, Precision::F64, threads, &step)?;
                for &precision in precisions {
                    let values = with_device(config.device, precision, threads, &step)?;
                    let pairs = values.pseudo_labels.iter().zip(&reference.pseudo_labels);
                    let same: Vec<bool> = pairs.map(|(a, b)| a == b).collect();
                    for (i, quantity) in QUANTITIES.into_iter().enumerate() {
                        let kept = |values: &[f64]| -> Vec<f64> {
                            let all = values.iter().enumerate();
                            all.filter(|(k, _)| !OF_PSEUDO_LABELS.contains(&i) || same[*k])
                                .map(|(_, &v)| v)
                                .collect()
                        };
                        let agreement =
                            Agreement::of(&kept(&values.vectors[i]), &kept(&reference.vectors[i]));
                        let known = rows
                            .iter_mut()
                            .find(|row| row.precision == precision && row.quantity == quantity);
                        match known {
                            Some(row) => row.agreement = row.agreement.worse(agreement),
                            None => rows.push(Row {
                                epoch: state.epoch,
                                precision,
                                quantity,
                                agreement,
                            }),
                        }
                    }
                    let flipped = same.iter().filter(|same| !**same).count();
                    match flips.iter_mut().find(|row| row.precision == precision) {
                        Some(row) => (row.flips, row.of) = (row.flips + flipped, row.of + same.len()),
                        None => flips.push(Flips {
                            epoch: state.epoch,
                            precision,
                            flips: flipped,
                            of: same.len(),
                        }),
                    }
                }
            }
            report.rows.extend(rows);
            report.flips.extend(flips);
        }
        Ok(report)
    }
}

/// The next whole batches of a state, each with its clean images.
fn steps(config: &RunConfig, task: &Task, state: &State, count: u32) -> Result<Vec<(Batch, Batch)>> {
    let sizes = LoaderConfig {
        seed: config.seed,
        batch: config.batch,
        meta_batch: config.meta_batch.unwrap_or(0),
        meta_draw: config.draw(),
        meta_from: 0,
        // A run at its end has no step left of its own: the epochs that would follow.
        epochs: config.epochs + count,
        train_images: true,
        meta_images: true,
    };
    let mut loader = Loader::start(task.train.clone(), task.meta.clone(), sizes, state.step)?;
    let mut steps = Vec::new();
    while steps.len() < count as usize {
        match loader.next_step()? {
            Some(crate::data::loader::Step {
                train,
                meta: Some(meta),
                ..
            }) => {
                if train.len() == config.batch as usize {
                    steps.push((train, meta));
                }
            }
            _ => return Err(Error::Internal("a step without clean images".into())),
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_of_small_vectors() {
        let of = |values: &[f64], reference: &[f64]| {
            let Agreement {
                cosine,
                sign,
                relative_error,
            } = Agreement::of(values, reference);
            [cosine, sign, relative_error]
        };
        assert_eq!(of(&[1.0, 2.0], &[1.0, 2.0]), [1.0, 1.0, 0.0]);
        assert_eq!(of(&[0.0, 0.0], &[0.0, 0.0]), [1.0, 1.0, 0.0]);
        // The last value is below 1 % of the largest: its sign does not count.
        assert_eq!(of(&[3.0, -4.0, -0.03], &[3.0, 4.0, 0.03])[1], 0.5);
        assert_eq!(of(&[0.0, 0.0], &[3.0, 4.0]), [0.0, 0.0, 1.0]);
        assert_eq!(of(&[-6.0, -8.0], &[3.0, 4.0]), [-1.0, 0.0, 3.0]);
        let nan = Agreement::of(&[f64::NAN, 1.0], &[1.0, 1.0]);
        let good = Agreement::of(&[1.0], &[1.0]);
        assert!(nan.worse(good).cosine.is_nan() && good.worse(nan).cosine.is_nan());
        assert!(good.worse(nan).relative_error.is_nan());
    }
}
