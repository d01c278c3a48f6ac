//! Several methods on the same data: for each seed and noise rate, all of them get the same clean set, the same noisy
//! labels and the same initial weights; with labels of a file, a seed is initial weights and order. A method with a meta
//! pass may be there at several budgets.
//!
//! A comparison takes hours, so what would be refused is refused before the first run ([`Plan::check`]), what has ended is
//! told at once ([`Plan::run`]), and a run that diverges is a result like another.

mod plan;
mod table;
mod text;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::config::RunConfig;
use crate::cost::{self, StepCost};
use crate::device::Device;
use crate::device::choice::{DeviceChoice, Visitor, resolve, with_device};
use crate::run_folder::{Summary, prepare, summary};
use crate::task::Task;
use crate::train::{Trainer, architecture};
use crate::{Error, Result};

pub use plan::{Plan, Run, Variant};
pub use table::{Cell, Difference, Spread};

/// A run that ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// [`Variant::name`].
    pub variant: String,
    /// Nominal; null where the labels are those of a file.
    pub noise: Option<f64>,
    #[serde(flatten)]
    pub summary: Summary,
}

/// A run that diverged.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    /// [`Variant::name`].
    pub variant: String,
    pub noise: Option<f64>,
    pub seed: u64,
    /// In words.
    pub failure: String,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    Done(Box<Row>),
    Diverged(Failure),
}

/// The step of a variant with a meta pass.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    pub variant: String,
    #[serde(flatten)]
    pub step: StepCost,
}

/// All of it, as `compare.json` holds it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub table: Vec<Cell>,
    pub differences: Vec<Difference>,
    /// Where several budgets are compared.
    pub costs: Vec<Cost>,
    /// Runs that went on side by side: times are those under this load.
    pub side_by_side: usize,
    /// CPU threads of a run and of a measured step; null: one per core.
    pub threads: Option<usize>,
    /// Runs asked for. Those neither in `runs` nor in `failures` are still to come, or were given up.
    pub planned: usize,
    pub runs: Vec<Row>,
    pub failures: Vec<Failure>,
}

impl Comparison {
    /// Runs that ended or failed.
    pub fn finished(&self) -> usize {
        self.runs.len() + self.failures.len()
    }
}

impl Plan {
    /// Sets up every run of the first seed and trains none: what a run is refused for does not depend on its seed.
    ///
    /// # Errors
    /// As [`prepare`] and [`Trainer::new`].
    pub fn check(&self, runs: &[Run]) -> Result<()> {
        let (_, threads) = self.side_by_side();
        let mut first_seed = runs.iter().filter(|run| run.config.seed == self.base.seed);
        first_seed.try_for_each(|run| {
            let stop = AtomicBool::new(true);
            train(run.config.clone(), threads, &stop, &|_| ()).map(drop)
        })
    }

    /// What a step of each variant with a meta pass costs, one after the other; nothing where budgets are not compared, nor
    /// for a step that diverges, as the variant's runs then tell.
    ///
    /// # Errors
    /// Those of the data and the device.
    pub fn costs(&self) -> Result<Vec<Cost>> {
        let (_, threads) = self.side_by_side();
        let mut costs = Vec::new();
        for variant in self.variants().iter().filter(|v| v.varies_meta_pass()) {
            let mut config = variant.configure(&self.base).resolve()?;
            let task = prepare(&mut config)?;
            let program = architecture(&config, &task).program()?;
            match cost::measure(&config, program, threads) {
                Err(Error::Diverged { .. }) => {}
                step => costs.push(Cost {
                    variant: variant.name(),
                    step: step?,
                }),
            }
        }
        Ok(costs)
    }

    /// How many runs go on side by side, and the CPU threads of each. Runs are independent, so one thread each wastes
    /// nothing on waiting within a step: two runs of the bundled network (8 epochs) took 2.3 s side by side, and 3.2
    /// and 3.6 s one after the other with two threads, on two cores with other load. A GPU does one at a time.
    fn side_by_side(&self) -> (usize, Option<usize>) {
        if resolve(self.base.device, self.base.precision()) != DeviceChoice::Cpu {
            return (1, self.base.threads);
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        (self.base.threads.unwrap_or(cores), Some(1))
    }

    /// Trains the runs. `step` hears of the images of every step, from several threads; `ended` of every run that has
    /// ended, with the comparison so far.
    ///
    /// Returns the comparison of the runs that ended, and the error, other than divergence, that stopped it: the other
    /// runs are then given up.
    pub fn run(
        &self,
        runs: &[Run],
        costs: &[Cost],
        step: impl Fn(usize) + Sync,
        ended: impl FnMut(&Ending, &Comparison) + Send,
    ) -> (Comparison, Result<()>) {
        struct Shared<F> {
            /// Of each run.
            endings: Vec<Option<Ending>>,
            error: Option<Error>,
            ended: F,
        }
        let (side_by_side, threads) = self.side_by_side();
        let side_by_side = side_by_side.min(runs.len()).max(1);
        let comparison = |endings: &[Option<Ending>]| {
            let (mut rows, mut failures) = (Vec::new(), Vec::new());
            for ending in endings.iter().flatten().cloned() {
                match ending {
                    Ending::Done(row) => rows.push(*row),
                    Ending::Diverged(failure) => failures.push(failure),
                }
            }
            let (table, differences) = table::tabulate(self, &rows, &failures);
            Comparison {
                table,
                differences,
                costs: costs.to_vec(),
                side_by_side,
                threads,
                planned: runs.len(),
                runs: rows,
                failures,
            }
        };
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let shared = Mutex::new(Shared {
            endings: vec![None; runs.len()],
            error: None,
            ended,
        });
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(run) = runs.get(index) else {
                    return;
                };
                let ending = run.train(threads, &stop, &step);
                // After a panic of another thread what it had to tell is still worth keeping.
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                match ending {
                    Ok(None) => {}
                    Ok(Some(ending)) => {
                        shared.endings[index] = Some(ending.clone());
                        let so_far = comparison(&shared.endings);
                        (shared.ended)(&ending, &so_far);
                    }
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        shared.error.get_or_insert(error);
                    }
                }
            }
        };
        let panicked = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..side_by_side).map(|_| scope.spawn(work)).collect();
            work();
            helpers
                .into_iter()
                .filter_map(|helper| helper.join().err())
                .count()
        });
        let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        let result = match shared.error {
            Some(error) => Err(error),
            None if panicked > 0 => Err(Error::Internal("a thread of the comparison panicked".into())),
            None => Ok(()),
        };
        (comparison(&shared.endings), result)
    }
}

impl Run {
    /// Trains it in memory. None where it was given up.
    ///
    /// # Errors
    /// Those of a run but `Diverged`.
    fn train(
        &self,
        threads: Option<usize>,
        stop: &AtomicBool,
        step: &(impl Fn(usize) + Sync),
    ) -> Result<Option<Ending>> {
        let (variant, noise) = (self.variant.name(), self.config.noise);
        match train(self.config.clone(), threads, stop, step) {
            Ok(summary) => Ok(summary.map(|summary| {
                Ending::Done(Box::new(Row {
                    variant,
                    noise,
                    summary,
                }))
            })),
            Err(error @ Error::Diverged { .. }) => {
                let text = error.to_string();
                Ok(Some(Ending::Diverged(Failure {
                    variant,
                    noise,
                    seed: self.config.seed,
                    // Without the hint.
                    failure: text.lines().next().unwrap_or_default().to_owned(),
                })))
            }
            Err(error) => Err(error),
        }
    }
}

/// Trains one run in memory. None where `stop` was set before its end: it is looked at before every epoch.
fn train(
    mut config: RunConfig,
    threads: Option<usize>,
    stop: &AtomicBool,
    step: &(impl Fn(usize) + Sync),
) -> Result<Option<Summary>> {
    let task = prepare(&mut config)?;
    let (device, precision) = (config.device, config.precision());
    let training = Training {
        config,
        task,
        stop,
        step,
    };
    with_device(device, precision, threads, training)
}

struct Training<'a, F> {
    config: RunConfig,
    task: Task,
    stop: &'a AtomicBool,
    step: &'a F,
}

impl<F: Fn(usize)> Visitor for Training<'_, F> {
    type Output = Option<Summary>;

    fn visit<D: Device>(self, device: D) -> Result<Option<Summary>> {
        let mut trainer = Trainer::new(device, self.config, self.task)?;
        while !trainer.is_done() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            trainer.epoch(self.step)?;
        }
        summary(&trainer).map(Some)
    }
}
