//! Several methods on the same data: for each seed and noise rate, all of them get the same clean set, the same noisy
//! labels and the same initial weights. A method with a meta pass may be there at several budgets.

mod table;
mod text;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use clap::ValueEnum;
use serde::Serialize;

use crate::budget::{MetaBudget, MetaDepth};
use crate::config::{Method, RunConfig};
use crate::cost::{self, StepCost};
use crate::data::meta_draw::MetaDraw;
use crate::device::Device;
use crate::device::choice::{DeviceChoice, Visitor, resolve, with_device};
use crate::run_folder::{Summary, prepare, summary};
use crate::task::Task;
use crate::train::{Trainer, architecture};
use crate::{Error, Result};

pub use table::{Cell, Difference, Spread};

/// What to compare.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything but method, budget, noise and seed.
    pub base: RunConfig,
    pub methods: Vec<Method>,
    /// Settings of the methods with a meta pass, every combination of these; empty: that of `base`.
    pub meta_budgets: Vec<MetaBudget>,
    pub meta_batches: Vec<u32>,
    pub meta_draws: Vec<MetaDraw>,
    pub meta_depths: Vec<MetaDepth>,
    /// Nominal rates.
    pub noise: Vec<f64>,
    /// How many seeds, from `base.seed` on.
    pub seeds: u32,
}

/// What is trained: a method, and where several meta passes are compared one of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Variant {
    pub method: Method,
    pub meta_budget: Option<MetaBudget>,
    pub meta_batch: Option<u32>,
    pub meta_draw: Option<MetaDraw>,
    pub meta_depth: Option<MetaDepth>,
}

impl From<Method> for Variant {
    fn from(method: Method) -> Self {
        Variant {
            method,
            meta_budget: None,
            meta_batch: None,
            meta_draw: None,
            meta_depth: None,
        }
    }
}

impl Variant {
    /// In words.
    pub fn name(&self) -> String {
        fn word<T: ValueEnum>(value: T) -> Option<String> {
            Some(value.to_possible_value()?.get_name().to_owned())
        }
        let budget = self.meta_budget.and_then(word);
        let batch = self.meta_batch.map(|m| format!("m = {m}"));
        let draw = self.meta_draw.and_then(word);
        let depth = self.meta_depth.map(|depth| match depth {
            MetaDepth::All => "all".to_owned(),
            MetaDepth::Stages(0) => "head".to_owned(),
            MetaDepth::Stages(count) => format!("last {count}"),
        });
        let method = Some(self.method.name().to_owned());
        let parts = [method, budget, batch, draw, depth];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Whether it sets a meta pass apart from that of the base.
    fn varies_meta_pass(&self) -> bool {
        *self != Variant::from(self.method)
    }

    fn configure(&self, base: &RunConfig) -> RunConfig {
        RunConfig {
            method: self.method,
            meta_budget: self.meta_budget.unwrap_or(base.meta_budget),
            meta_batch: self.meta_batch.or(base.meta_batch),
            meta_draw: self.meta_draw.or(base.meta_draw),
            meta_depth: self.meta_depth.or(base.meta_depth),
            ..base.clone()
        }
    }
}

/// One run of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// [`Variant::name`].
    pub variant: String,
    pub noise: f64,
    #[serde(flatten)]
    pub summary: Summary,
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
    pub runs: Vec<Row>,
}

impl Plan {
    /// What is compared, method by method.
    pub fn variants(&self) -> Vec<Variant> {
        /// Each variant with each of the values; as it is where there are none.
        fn each<T: Copy>(variants: Vec<Variant>, values: &[T], set: fn(&mut Variant, T)) -> Vec<Variant> {
            if values.is_empty() {
                return variants;
            }
            let with = |variant: Variant| {
                values.iter().map(move |&value| {
                    let mut variant = variant;
                    set(&mut variant, value);
                    variant
                })
            };
            variants.into_iter().flat_map(with).collect()
        }
        let of = |&method: &Method| {
            let plain = vec![Variant::from(method)];
            if !method.objective().is_meta() {
                return plain;
            }
            let variants = each(plain, &self.meta_budgets, |v, budget| {
                v.meta_budget = Some(budget)
            });
            let variants = each(variants, &self.meta_batches, |v, m| v.meta_batch = Some(m));
            let variants = each(variants, &self.meta_draws, |v, draw| v.meta_draw = Some(draw));
            each(variants, &self.meta_depths, |v, depth| v.meta_depth = Some(depth))
        };
        self.methods.iter().flat_map(of).collect()
    }

    /// Configurations of all runs, by noise, then seed, then variant.
    ///
    /// # Errors
    /// `Config` for the first that cannot be.
    pub fn runs(&self) -> Result<Vec<(Variant, RunConfig)>> {
        let mut runs = Vec::new();
        for &noise in &self.noise {
            for seed in 0..u64::from(self.seeds) {
                for variant in self.variants() {
                    let config = RunConfig {
                        noise: Some(noise),
                        seed: self.base.seed + seed,
                        ..variant.configure(&self.base)
                    };
                    runs.push((variant, config.resolve()?));
                }
            }
        }
        Ok(runs)
    }

    /// What a step of each variant with a meta pass costs, one after the other; nothing where budgets are not compared.
    fn costs(&self, threads: Option<usize>) -> Result<Vec<Cost>> {
        let variants = self.variants().into_iter();
        variants
            .filter(Variant::varies_meta_pass)
            .map(|variant| {
                let mut config = variant.configure(&self.base).resolve()?;
                let task = prepare(&mut config)?;
                let program = architecture(&config, &task).program()?;
                Ok(Cost {
                    variant: variant.name(),
                    step: cost::measure(&config, program, threads)?,
                })
            })
            .collect()
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

    /// Trains everything in [`Plan::runs`]. `progress` hears of every step (images, None) and of every run's end (0, its
    /// variant and summary), from several threads.
    ///
    /// # Errors
    /// The first run's that fails; the others are given up.
    pub fn run(
        &self,
        runs: &[(Variant, RunConfig)],
        progress: impl Fn(usize, Option<(&Variant, &Summary)>) + Sync,
    ) -> Result<Comparison> {
        let (side_by_side, threads) = self.side_by_side();
        let side_by_side = side_by_side.min(runs.len()).max(1);
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let done: Mutex<Vec<(usize, Result<Summary>)>> = Mutex::new(Vec::new());
        let work = || {
            while !failed.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((variant, config)) = runs.get(index) else {
                    return;
                };
                let result = train(config.clone(), threads, &failed, &|images| progress(images, None));
                if let Ok(summary) = &result {
                    progress(0, Some((variant, summary)));
                }
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                done.lock()
                    .expect("no thread panics while it holds this")
                    .push((index, result));
            }
        };
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..side_by_side).map(|_| scope.spawn(work)).collect();
            work();
            helpers.into_iter().try_for_each(|helper| {
                helper
                    .join()
                    .map_err(|_| Error::Internal("a thread of the comparison panicked".into()))
            })
        })?;
        let mut done = done.into_inner().expect("no thread panics while it holds this");
        done.sort_unstable_by_key(|(index, _)| *index);
        let mut rows = Vec::new();
        for (index, result) in done {
            let (variant, config) = &runs[index];
            rows.push(Row {
                variant: variant.name(),
                noise: config.noise.unwrap_or(0.0),
                summary: result?,
            });
        }
        let (table, differences) = self.tabulate(&rows);
        Ok(Comparison {
            table,
            differences,
            costs: self.costs(threads)?,
            side_by_side,
            threads,
            runs: rows,
        })
    }
}

/// Trains one run in memory.
fn train(
    mut config: RunConfig,
    threads: Option<usize>,
    given_up: &AtomicBool,
    progress: &(impl Fn(usize) + Sync),
) -> Result<Summary> {
    let task = prepare(&mut config)?;
    let (device, precision) = (config.device, config.precision());
    with_device(
        device,
        precision,
        threads,
        Run {
            config,
            task,
            given_up,
            progress,
        },
    )
}

struct Run<'a, P> {
    config: RunConfig,
    task: Task,
    given_up: &'a AtomicBool,
    progress: &'a P,
}

impl<P: Fn(usize)> Visitor for Run<'_, P> {
    type Output = Summary;

    fn visit<D: Device>(self, device: D) -> Result<Summary> {
        let mut trainer = Trainer::new(device, self.config, self.task)?;
        while !trainer.is_done() && !self.given_up.load(Ordering::Relaxed) {
            trainer.epoch(self.progress)?;
        }
        summary(&trainer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_meta_passes_and_no_other_method_twice() {
        let plan = Plan {
            base: RunConfig::default(),
            methods: vec![Method::Ce, Method::L2b],
            meta_budgets: vec![MetaBudget::Full, MetaBudget::Fast],
            meta_batches: Vec::new(),
            meta_draws: vec![MetaDraw::Uniform, MetaDraw::Stratified],
            meta_depths: vec![MetaDepth::Stages(1)],
            noise: vec![0.4],
            seeds: 1,
        };
        let names: Vec<_> = plan.variants().iter().map(Variant::name).collect();
        let want = [
            "ce",
            "l2b, full, uniform, last 1",
            "l2b, full, stratified, last 1",
            "l2b, fast, uniform, last 1",
            "l2b, fast, stratified, last 1",
        ];
        assert_eq!(names, want);
        let runs = plan.runs().unwrap();
        let draws: Vec<_> = runs[1..].iter().map(|(_, config)| config.draw()).collect();
        assert_eq!(draws, [MetaDraw::Uniform, MetaDraw::Stratified].repeat(2));
    }
}
