//! The parts of `l2b bench`, one after the other, each into the record.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use super::alone::Alone;
use super::case::{Case, Ceilings, Shape, Sizes};
use super::machine::{self, Nvml};
use super::measure::{Quantiles, Windows, device_seconds, time};
use super::record::{CeilingRow, LoaderRow, MemoryRow, OperationRow, PhaseRow, Record, StepRow};
use super::trace::operations;
use super::workload::{OBJECTIVES, Workload, augment, batches};
use crate::arch::Architecture;
use crate::budget::MetaDepth;
use crate::device::choice::DeviceChoice;
use crate::device::{ALIGN, Device, Region};
use crate::engine::required_bytes;
use crate::inputs::InputLayout;
use crate::net::{Plan, Program, Reuse};
use crate::phase::Phase;
use crate::step::Objective;
use crate::{Error, Result};

/// What is measured beside the ceilings, in this order: what says most comes first, should the run be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Device memory of each objective
    Memory,
    /// Whole steps of each objective, in turn
    Steps,
    /// The phases of an L2B step
    Phases,
    /// Every operation of a step, alone, at the network's shapes
    Operations,
    /// Batches from mapped shards
    Loader,
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Job {
    /// The device's choice, resolved.
    pub device: DeviceChoice,
    pub architecture: Architecture,
    /// n and m.
    pub sizes: (usize, usize),
    pub meta_depth: MetaDepth,
    pub windows: Windows,
    pub parts: Vec<Part>,
    /// Dataset of the loader, as `--data` takes it.
    pub data: PathBuf,
}

/// How far it is.
pub enum Event<'a> {
    /// The next figure, and its place among those of its part.
    Begins {
        what: &'a str,
        done: usize,
        of: usize,
    },
    Ceilings,
    Done(Part),
}

/// Called with the record so far.
pub type Report<'a> = &'a mut dyn FnMut(&Record, Event) -> Result<()>;

/// The operations of a step of each objective, but for those that are no work for the device.
struct Traces {
    by_objective: Vec<(Objective, Vec<(Phase, Case)>)>,
}

impl Traces {
    fn new<D: Device>(device: &D, job: &Job) -> Result<Self> {
        let trace = |(_, objective)| {
            let shape = augment(&job.architecture, job.sizes.0);
            let all = operations(&job.architecture, objective, job.sizes, job.meta_depth, shape)?;
            let mut list = Vec::with_capacity(all.len());
            for (phase, case) in all {
                if Alone::is_work(device, &case)? {
                    list.push((phase, case));
                }
            }
            Ok((objective, list))
        };
        Ok(Traces {
            by_objective: OBJECTIVES.into_iter().map(trace).collect::<Result<_>>()?,
        })
    }

    fn of(&self, objective: Objective) -> &[(Phase, Case)] {
        let found = self.by_objective.iter().find(|(o, _)| *o == objective);
        found.map_or(&[], |(_, list)| list)
    }
}

fn sizes<D: Device>() -> Sizes {
    Sizes {
        act: size_of::<D::Act>(),
        real: size_of::<D::Real>(),
    }
}

/// Measures everything that `job` asks for; `record` has empty parts.
///
/// # Errors
/// Those of the device, the dataset and of `report`.
pub fn run<D: Device>(device: D, job: &Job, mut record: Record, report: Report) -> Result<Record> {
    record.ceilings = ceilings(&device, &job.windows)?;
    report(&record, Event::Ceilings)?;
    let ceilings = Ceilings {
        flops: record.ceilings.matrix.median,
        bytes: record.ceilings.copy.median,
    };
    let traces = Traces::new(&device, job)?;
    let device = whole(device, job, &traces, ceilings, &mut record, report)?;
    if job.parts.contains(&Part::Operations) {
        measure_operations(&device, job, &traces, ceilings, &mut record, report)?;
        report(&record, Event::Done(Part::Operations))?;
    }
    if job.parts.contains(&Part::Loader) {
        record.loader = Some(loader(job)?);
        report(&record, Event::Done(Part::Loader))?;
    }
    record.complete = true;
    record.date = machine::now();
    Ok(record)
}

/// The parts that want a whole engine, whose memory is given back afterwards.
fn whole<D: Device>(
    device: D,
    job: &Job,
    traces: &Traces,
    ceilings: Ceilings,
    record: &mut Record,
    report: Report,
) -> Result<D> {
    let parts = [Part::Memory, Part::Steps, Part::Phases];
    if !job.parts.iter().any(|part| parts.contains(part)) {
        return Ok(device);
    }
    if job.parts.contains(&Part::Memory) {
        record.memory = planned_memory(&device, &job.architecture.program()?, job.sizes)?;
    }
    // What the ceilings took is given back when their work has ended.
    device.synchronize()?;
    let free = device.free_bytes();
    let mut workload = Workload::random(device, &job.architecture, job.sizes, job.meta_depth)?;
    workload.engine.device.synchronize()?;
    // On a CPU, other programs come and go.
    let seen = free
        .zip(workload.engine.device.free_bytes())
        .filter(|_| matches!(job.device, DeviceChoice::Cuda(_)))
        .map(|(before, after)| before.saturating_sub(after));
    if let Some(row) = record.memory.last_mut() {
        row.seen_bytes = seen;
        report(record, Event::Done(Part::Memory))?;
    }
    if job.parts.contains(&Part::Steps) {
        let nvml = Nvml::open(job.device);
        record.steps = steps(&mut workload, job, traces, ceilings, |what, done, of| {
            record.clocks = nvml.as_ref().and_then(Nvml::clocks).or(record.clocks);
            report(record, Event::Begins { what, done, of })
        })?;
        report(record, Event::Done(Part::Steps))?;
    }
    if job.parts.contains(&Part::Phases) {
        record.phases = phases(&mut workload, job, traces, ceilings)?;
        report(record, Event::Done(Part::Phases))?;
    }
    Ok(workload.engine.device)
}

/// Largest copy: source and target together are several times any cache.
const COPY_BYTES: usize = 128 << 20;

/// What the device can do where nothing holds it up.
///
/// # Errors
/// Those of the device; `Device` where its results are no numbers.
pub fn ceilings<D: Device>(device: &D, windows: &Windows) -> Result<CeilingRow> {
    let bytes = device.peak_bytes();
    let arena = device.alloc(bytes.max(ALIGN))?;
    let memory = Region { offset: 0, bytes }.of(&arena);
    // Rounds enough for a window of their own.
    let mut rounds = 1;
    let mut flops = 0.0;
    loop {
        let seconds = device_seconds(device, || {
            flops = device.peak(memory, rounds)?;
            Ok(())
        })?;
        if seconds > 2e-3 || rounds >= 1 << 24 {
            break;
        }
        rounds *= 2;
    }
    let values = crate::model::read::<D>(device, memory)?;
    if values.iter().any(|v| !v.is_finite()) || values.iter().all(|v| *v == 0.0) {
        let detail = "multiply-adds gave no numbers";
        return Err(Error::device("peak", detail, "the device computes wrong values"));
    }
    let matrix = time(device, windows, || device.peak(memory, rounds).map(drop))?;

    let most = device
        .free_bytes()
        .map_or(COPY_BYTES, |free| COPY_BYTES.min(free / 8));
    let len = most / ALIGN * ALIGN / size_of::<D::Act>();
    let copy = Alone::new(
        device,
        Case {
            operation: super::case::Operation::Copy,
            shape: Shape::Length(len.max(ALIGN)),
            form: super::case::Form::PLAIN,
        },
    )?;
    copy.verify()?;
    let copy_bytes = len.max(ALIGN) * size_of::<D::Act>();
    let seconds = time(device, windows, || copy.call())?;
    Ok(CeilingRow {
        matrix: matrix.inverse(flops),
        instruction: device.peak_instruction().into(),
        copy: seconds.inverse(2.0 * copy_bytes as f64),
        copy_bytes,
    })
}

/// Each distinct operation of the steps, alone.
fn measure_operations<D: Device>(
    device: &D,
    job: &Job,
    traces: &Traces,
    ceilings: Ceilings,
    record: &mut Record,
    report: Report,
) -> Result<()> {
    let mut cases: Vec<Case> = Vec::new();
    for (_, list) in &traces.by_objective {
        for (_, case) in list {
            if !cases.contains(case) {
                cases.push(*case);
            }
        }
    }
    // Stable: within an operation the network's order.
    cases.sort_by_key(|case| case.operation);
    let count = |objective, case: &Case| traces.of(objective).iter().filter(|(_, c)| c == case).count();
    for (done, case) in cases.iter().enumerate() {
        let (what, of) = (case.name(), cases.len());
        report(
            record,
            Event::Begins {
                what: &what,
                done,
                of,
            },
        )?;
        let mut row = operation(device, *case, &job.windows, ceilings)?;
        row.calls_ce = count(Objective::CrossEntropy, case);
        row.calls_l2b = count(Objective::L2b, case);
        record.operations.push(row);
    }
    Ok(())
}

/// One operation alone; calls in a step are not known here.
///
/// # Errors
/// Those of the device; `Device` for results that are no numbers.
pub fn operation<D: Device>(
    device: &D,
    case: Case,
    windows: &Windows,
    ceilings: Ceilings,
) -> Result<OperationRow> {
    let alone = Alone::new(device, case)?;
    alone.verify()?;
    let seconds = time(device, windows, || alone.call())?;
    let (flops, bytes) = (case.flops(), case.bytes(sizes::<D>()));
    Ok(OperationRow {
        operation: case.operation,
        shape: case.shape.to_string(),
        form: case.form.to_string(),
        calls_ce: 0,
        calls_l2b: 0,
        seconds,
        flops,
        bytes,
        bound_seconds: case.bound(sizes::<D>(), ceilings),
        bound_by_matrix: flops / ceilings.flops > bytes / ceilings.bytes,
    })
}

/// The phases of L2B steps, by marks in the device's work.
fn phases<D: Device>(
    workload: &mut Workload<D>,
    job: &Job,
    traces: &Traces,
    ceilings: Ceilings,
) -> Result<Vec<PhaseRow>> {
    let objective = Objective::L2b;
    let calls = Windows::calls(workload.steps(objective, 1)?.device_seconds);
    let mut seconds = BTreeMap::<Phase, Vec<f64>>::new();
    let (start, mut done) = (Instant::now(), 0);
    while job.windows.more(done, start) {
        workload.engine.record_phases(true);
        workload.steps(objective, calls)?;
        let began = workload.engine.record_phases(false);
        let mut sums = BTreeMap::<Phase, f64>::new();
        for pair in began.windows(2) {
            if let [(Some(phase), from), (_, to)] = pair {
                *sums.entry(*phase).or_default() += workload.engine.device.seconds(from, to)?;
            }
        }
        for (phase, sum) in sums {
            seconds.entry(phase).or_default().push(sum / calls as f64);
        }
        done += 1;
    }
    let list = traces.of(objective);
    let sum = |phase: Phase, f: &dyn Fn(&Case) -> f64| -> f64 {
        list.iter()
            .filter(|(p, _)| *p == phase)
            .map(|(_, case)| f(case))
            .sum()
    };
    Ok(seconds
        .into_iter()
        .map(|(phase, seconds)| PhaseRow {
            phase,
            seconds: Quantiles::of(&seconds),
            bound_seconds: sum(phase, &|case| case.bound(sizes::<D>(), ceilings)),
            e_floor_seconds: sum(phase, &|case| case.e_floor(sizes::<D>(), ceilings)),
        })
        .collect())
}

/// Steps of each objective in turn, so that a drift of the clocks meets them all.
fn steps<D: Device>(
    workload: &mut Workload<D>,
    job: &Job,
    traces: &Traces,
    ceilings: Ceilings,
    mut report: impl FnMut(&str, usize, usize) -> Result<()>,
) -> Result<Vec<StepRow>> {
    let calls = Windows::calls(workload.steps(Objective::CrossEntropy, 1)?.device_seconds);
    let mut device = [const { Vec::new() }; OBJECTIVES.len()];
    let mut wall = [const { Vec::new() }; OBJECTIVES.len()];
    let (start, mut done) = (Instant::now(), 0);
    while job.windows.more(done, start) {
        for (i, (_, objective)) in OBJECTIVES.into_iter().enumerate() {
            let taken = workload.steps(objective, calls)?;
            device[i].push(taken.device_seconds / calls as f64);
            wall[i].push(taken.seconds / calls as f64);
        }
        done += 1;
        report("steps of ce, l2rw, l2b", done, job.windows.count)?;
    }
    let floor = |objective| {
        let list = traces.of(objective).iter();
        list.map(|(_, case)| case.e_floor(sizes::<D>(), ceilings)).sum()
    };
    let row = |(i, (name, objective)): (usize, (&str, Objective))| {
        let ratios: Vec<f64> = device[i].iter().zip(&device[0]).map(|(t, ce)| t / ce).collect();
        let seconds = Quantiles::of(&device[i]);
        StepRow {
            objective: name.into(),
            seconds,
            wall_seconds: Quantiles::of(&wall[i]),
            ratio_to_ce: Quantiles::of(&ratios),
            images_per_second: workload.sizes.0 as f64 / seconds.median,
            e_floor_seconds: floor(objective),
        }
    };
    Ok(OBJECTIVES.into_iter().enumerate().map(row).collect())
}

/// Memory by the plan: of the engine as it is for the meta objectives, and of what cross-entropy alone would need: no
/// tangents, no v and θ̂, no filters of v, no meta batch.
fn planned_memory<D: Device>(
    device: &D,
    program: &Program,
    (n, m): (usize, usize),
) -> Result<Vec<MemoryRow>> {
    let reuse = Reuse::ByLifetime;
    let (act, real) = (size_of::<D::Act>(), size_of::<D::Real>());
    let plan = Plan::new(program, device, n, reuse)?;
    let lasting = plan.values.iter().chain(&plan.adjoints).chain([&plan.scratch]);
    let without_tangents = lasting
        .map(|r| r.end().next_multiple_of(ALIGN))
        .max()
        .unwrap_or(0);
    let alone = required_bytes(device, program, &[n], reuse)?;
    let (_, flat) = program.param_layout(real);
    let meta_feed = InputLayout::new(program, n, act).slot_bytes();
    let along = plan.nodes.iter().map(|node| node.filters.along.bytes);
    let filters: usize = along.map(|bytes| bytes.next_multiple_of(ALIGN)).sum();
    let plain = alone - (plan.bytes - without_tangents) - filters - 2 * flat - meta_feed;
    let meta = required_bytes(device, program, &[n, m], reuse)?;
    Ok(OBJECTIVES
        .into_iter()
        .map(|(name, objective)| MemoryRow {
            objective: name.into(),
            planned_bytes: if objective.is_meta() { meta } else { plain },
            seen_bytes: None,
        })
        .collect())
}

/// Steps in one window of the loader: many more than it holds ready ahead.
const LOADED: u32 = 32;

/// Batches as training takes them, from a dataset's train split; its pages have been read once before.
fn loader(job: &Job) -> Result<LoaderRow> {
    let steps = (job.windows.count as u32 + 1).saturating_mul(LOADED);
    let (mut loader, image_bytes) = batches(&job.data, job.sizes, steps)?;
    let epoch = loader.steps_per_epoch();
    let mut take = |count: u32| -> Result<usize> {
        let mut images = 0;
        for _ in 0..count {
            let Some(step) = loader.next_step()? else {
                return Err(Error::Internal("the loader has no steps left".into()));
            };
            images += step.train.len() + step.meta.as_ref().map_or(0, |m| m.len());
            loader.recycle(step);
        }
        Ok(images)
    };
    // Reads every page once.
    take(epoch)?;
    let mut rates = Vec::new();
    let start = Instant::now();
    while job.windows.more(rates.len(), start) {
        let window = Instant::now();
        let images = take(LOADED)?;
        rates.push(images as f64 / window.elapsed().as_secs_f64());
    }
    Ok(LoaderRow {
        images_per_second: Quantiles::of(&rates),
        image_bytes,
    })
}
