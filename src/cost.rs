//! What a meta step costs beside an ordinary one, measured: both kinds of step in turn, on one engine and one batch.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::bench::measure::Quantiles;
use crate::config::RunConfig;
use crate::device::choice::{Visitor, with_device};
use crate::device::{Device, StepParams};
use crate::engine::{Engine, Images, Slot};
use crate::model::Model;
use crate::net::{Program, Reuse};
use crate::random::{Purpose, Stream};
use crate::step::Objective;
use crate::{Error, Result, budget};

/// Windows of one ordinary and one meta step each: at least so many, and for at least so long, but no more than so many.
const FEWEST: usize = 9;
const SHORTEST: Duration = Duration::from_secs(2);
const MOST: usize = 401;

/// A meta step in ordinary steps: cross-entropy on the same train batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepCost {
    pub train_batch: usize,
    pub meta_batch: usize,
    /// By operation count, see [`budget::operations`].
    pub operations: f64,
    /// Measured: median, 10th and 90th percentile of the windows' ratios.
    pub ratio: f64,
    pub ratio_p10: f64,
    pub ratio_p90: f64,
    pub windows: usize,
    /// Medians.
    pub ordinary_seconds: f64,
    pub meta_seconds: f64,
}

/// Measures the step of a run whose method has a meta pass and whose batches are set, on images of noise.
///
/// # Errors
/// Those of the device.
pub fn measure(config: &RunConfig, program: Program, threads: Option<usize>) -> Result<StepCost> {
    with_device(
        config.device,
        config.precision(),
        threads,
        Measurement { config, program },
    )
}

struct Measurement<'a> {
    config: &'a RunConfig,
    program: Program,
}

impl Visitor for Measurement<'_> {
    type Output = StepCost;

    fn visit<D: Device>(self, device: D) -> Result<StepCost> {
        let Measurement { config, program } = self;
        let (n, m) = (
            config.batch as usize,
            config.meta_batch.unwrap_or(config.batch) as usize,
        );
        let operations = budget::operations(&program, n, m, &config.depth().reach(&program)?);
        let pixels = program.rows(program.input(), 1).len();
        let classes = program.classes() as u32;
        let model = Model::new(&device, program, config.init, config.seed)?;
        let mut engine = Engine::new(device, model, config.engine_options(), &[n, m], Reuse::ByLifetime)?;
        let mut stream = Stream::new(config.seed, Purpose::Init).view(1);
        for (slot, size) in [(Slot::Train, n), (Slot::Meta, m)] {
            let images: Vec<f64> = (0..size * pixels)
                .map(|_| 2.0 * stream.uniform_f64() - 1.0)
                .collect();
            let labels: Vec<i32> = (0..size).map(|_| stream.below(classes) as i32).collect();
            engine.feed(slot, Images::Values(&images), &labels)?;
        }
        // Steps of no length: every window does the same work.
        let params = StepParams {
            lr: 0.0,
            ..config.step_params(0, 0)
        };
        let objective = config.method.objective();
        let mut timed = |objective: Objective| -> Result<f64> {
            let start = Instant::now();
            engine.step(objective, &params)?;
            let outcome = engine.outcome(objective)?;
            let seconds = start.elapsed().as_secs_f64();
            engine.check(0, &outcome)?;
            Ok(seconds)
        };
        // The first steps of a kind are slower.
        timed(Objective::CrossEntropy)?;
        timed(objective)?;
        let (mut ordinary, mut meta) = (Vec::new(), Vec::new());
        let start = Instant::now();
        while ordinary.len() < FEWEST || (start.elapsed() < SHORTEST && ordinary.len() < MOST) {
            ordinary.push(timed(Objective::CrossEntropy)?);
            meta.push(timed(objective)?);
        }
        let ratios: Vec<f64> = meta.iter().zip(&ordinary).map(|(m, o)| m / o).collect();
        if ratios.iter().any(|r| !r.is_finite()) {
            return Err(Error::Internal("the clock did not move during a step".into()));
        }
        let ratio = Quantiles::of(&ratios);
        Ok(StepCost {
            train_batch: n,
            meta_batch: m,
            operations,
            ratio: ratio.median,
            ratio_p10: ratio.p10,
            ratio_p90: ratio.p90,
            windows: ratio.windows,
            ordinary_seconds: Quantiles::of(&ordinary).median,
            meta_seconds: Quantiles::of(&meta).median,
        })
    }
}
