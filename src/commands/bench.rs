//! `l2b bench`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::{DeviceArgs, print, progress_bar};
use crate::arch::Architecture;
use crate::bench::case::{Case, Ceilings, Form, Operation, Shape};
use crate::bench::machine::{COMMIT, DIRTY, Machine, now};
use crate::bench::measure::{Quantiles, Windows};
use crate::bench::record::{CeilingRow, Record, SCHEMA, Settings};
use crate::bench::run::{self, Event, Job, Part};
use crate::bench::workload::Workload;
use crate::bench::{alone, compare, preact, serve, table};
use crate::budget::MetaDepth;
use crate::config::BUNDLED;
use crate::device::Device;
use crate::device::choice::{DeviceChoice, Visitor, resolve};
use crate::{Error, Result, atomic};

/// Measure operations, phases, steps and the loader against what the device could do
#[derive(Args, Debug)]
pub struct BenchArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Channels of the network's first stage
    #[arg(long, default_value_t = 64, value_parser = whole(1 << 14))]
    width: u64,
    /// Residual blocks of each stage
    #[arg(long, value_delimiter = ',', default_values_t = [2, 2, 2, 2])]
    blocks: Vec<usize>,
    /// Images: height, width, channels
    #[arg(long, value_delimiter = ',', num_args = 1, default_values_t = [32, 32, 3])]
    image: Vec<usize>,
    /// Number of classes
    #[arg(long, default_value_t = 10)]
    classes: usize,
    /// Train images per step, n [default: 512 on a GPU, else 32]
    #[arg(long, value_parser = whole(1 << 20))]
    batch: Option<u64>,
    /// Clean images per step, m [default: as --batch]
    #[arg(long, value_parser = whole(1 << 20))]
    meta_batch: Option<u64>,
    /// Stages that the meta gradient covers, as of `l2b train`
    #[arg(long, default_value_t = MetaDepth::All)]
    meta_depth: MetaDepth,
    /// Windows of each measurement
    #[arg(long, default_value_t = 30, value_parser = whole(100_000))]
    windows: u64,
    /// Fewer windows, but at least 3, where a measurement takes longer than this
    #[arg(long)]
    seconds: Option<f64>,
    /// What to measure beside the ceilings, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Memory, Part::Steps, Part::Phases, Part::Operations, Part::Loader])]
    parts: Vec<Part>,
    /// Dataset of the loader: `digits` (in the binary) or a folder
    #[arg(long, default_value = BUNDLED)]
    data: PathBuf,
    /// JSON record to write, which must not exist
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Compare with a record of an earlier run
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,

    /// Measure one operation alone, as under a profiler
    #[arg(long, value_name = "NAME", requires = "shape", conflicts_with_all = ["serve", "out", "compare", "parts"])]
    kernel: Option<Operation>,
    /// Its shape: numbers separated by commas, e.g. n,h,w,c,k,r,stride,pad of a convolution
    #[arg(long, requires = "kernel")]
    shape: Option<String>,
    /// What it does beside its core: plain, or some of pending, tangent, bias, add, mask, sums, second, linear, backward joined by + [default: as networks use it]
    #[arg(long, requires = "kernel")]
    form: Option<Form>,
    /// Call it this often and measure nothing
    #[arg(long, value_name = "N", requires = "kernel", value_parser = whole(1_000_000))]
    repeat: Option<u64>,

    /// Do steps on request: JSON lines on standard input and output
    #[arg(long, conflicts_with_all = ["out", "compare", "parts"])]
    serve: bool,
    /// Network, batches and settings of --serve from a meta-step file
    #[arg(long, value_name = "FILE", requires = "serve", conflicts_with_all = ["width", "blocks", "image", "classes", "batch", "meta_batch", "meta_depth"])]
    batch_file: Option<PathBuf>,
}

fn whole(most: u64) -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(1..=most)
}

/// Runs `l2b bench`, printing tables or answers to `out`.
///
/// # Errors
/// `Config`, and whatever the library reports.
pub fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<()> {
    args.device.visit(Bench { args, out })
}

struct Bench<'a> {
    args: &'a BenchArgs,
    out: &'a mut dyn Write,
}

impl Visitor for Bench<'_> {
    type Output = ();

    fn visit<D: Device>(self, device: D) -> Result<()> {
        let Bench { args, out } = self;
        match args.kernel {
            Some(operation) => one_operation(args, operation, &device, out),
            None if args.serve => answer(args, device, out),
            None => measure(args, device, out),
        }
    }
}

impl BenchArgs {
    fn choice(&self) -> DeviceChoice {
        resolve(self.device.device, self.device.precision)
    }

    fn windows(&self) -> Result<Windows> {
        let seconds = self.seconds.unwrap_or(f64::INFINITY);
        if seconds.is_nan() || seconds < 0.0 {
            return Err(Error::config("--seconds", "0 or more", seconds.to_string(), ""));
        }
        Ok(Windows {
            count: self.windows as usize,
            seconds,
        })
    }

    fn architecture(&self) -> Result<Architecture> {
        let [height, width, channels] = *self.image.as_slice() else {
            let found = format!("{} of them", self.image.len());
            let hint = "for example 32,32,3";
            return Err(Error::config("--image", "height,width,channels", found, hint));
        };
        let network = preact(
            self.width as usize,
            self.blocks.clone(),
            [height, width],
            channels,
            self.classes,
        );
        let program = network.program()?;
        self.meta_depth.reach(&program).map(|_| network)
    }

    fn sizes(&self) -> (usize, usize) {
        let default = match self.choice() {
            DeviceChoice::Cuda(_) => 512,
            _ => 32,
        };
        let n = self.batch.unwrap_or(default);
        (n as usize, self.meta_batch.unwrap_or(n) as usize)
    }

    /// A record without figures.
    fn record(&self, device: String, network: &Architecture, (n, m): (usize, usize)) -> Record {
        let [height, width] = network.image_size;
        let none = Quantiles::of(&[0.0]);
        Record {
            schema: SCHEMA,
            l2b: env!("CARGO_PKG_VERSION").into(),
            commit: COMMIT.into(),
            dirty: DIRTY,
            date: now(),
            complete: false,
            machine: Machine::new(self.choice(), device, self.device.threads),
            settings: Settings {
                precision: self.device.precision,
                width: network.width,
                blocks: network.blocks.clone(),
                image: [height, width, network.in_channels],
                classes: network.num_classes,
                batch: n,
                meta_batch: m,
                meta_depth: self.meta_depth,
                data: self.data.display().to_string(),
                caches: "warm".into(),
            },
            clocks: None,
            ceilings: CeilingRow {
                matrix: none,
                instruction: String::new(),
                copy: none,
                copy_bytes: 0,
            },
            operations: Vec::new(),
            phases: Vec::new(),
            steps: Vec::new(),
            loader: None,
            memory: Vec::new(),
        }
    }
}

fn measure<D: Device>(args: &BenchArgs, device: D, out: &mut dyn Write) -> Result<()> {
    let job = Job {
        device: args.choice(),
        architecture: args.architecture()?,
        sizes: args.sizes(),
        meta_depth: args.meta_depth,
        windows: args.windows()?,
        parts: args.parts.clone(),
        data: args.data.clone(),
    };
    let record = args.record(device.name(), &job.architecture, job.sizes);
    if let Some(path) = &args.out {
        atomic::require_free(
            "--out",
            path,
            "records are never overwritten: choose another name",
        )?;
    }
    let old = args
        .compare
        .as_deref()
        .map(|path| Record::read(path).map(|r| (path, r)));
    let old = old.transpose()?;
    // Before anything is measured: what cannot be compared should cost nothing.
    if let Some((path, old)) = &old {
        compare::refuse_others(old, &record, path)?;
    }

    print(out, &table::head(&record))?;
    let bar = progress_bar(0, "{bar:30} {pos}/{len} {msg}");
    // No thread of its own beside what is timed.
    bar.disable_steady_tick();
    let record = run::run(device, &job, record, &mut |record, event| {
        let text = match event {
            Event::Begins { what, done, of } => {
                bar.set_length(of as u64);
                bar.set_position(done as u64);
                bar.set_message(what.to_owned());
                return Ok(());
            }
            Event::Ceilings => table::ceilings(record),
            Event::Done(part) => table::part(record, part),
        };
        // After each part, so that an interruption loses one part at most.
        if let Some(path) = &args.out {
            record.write(path)?;
        }
        bar.suspend(|| print(out, &text))
    });
    bar.finish_and_clear();
    let record = record?;
    if let Some(path) = &args.out {
        record.write(path)?;
        print(out, &format!("\nrecord     {}\n", path.display()))?;
    }
    match &old {
        Some((path, old)) => {
            let rows = compare::compare(old, &record, path)?;
            print(out, &format!("\n{}", compare::table(&rows)))
        }
        None => Ok(()),
    }
}

fn one_operation<D: Device>(
    args: &BenchArgs,
    operation: Operation,
    device: &D,
    out: &mut dyn Write,
) -> Result<()> {
    let case = Case {
        operation,
        shape: Shape::parse(operation, args.shape.as_deref().unwrap_or_default())?,
        form: args.form.unwrap_or(operation.usual_form()),
    };
    if let Some(repeat) = args.repeat {
        let alone = alone::Alone::new(device, case)?;
        (0..repeat).try_for_each(|_| alone.call())?;
        device.synchronize()?;
        return print(out, &format!("{}: called {repeat} times\n", case.name()));
    }
    let windows = args.windows()?;
    let ceilings = run::ceilings(device, &windows)?;
    let limits = Ceilings {
        flops: ceilings.matrix.median,
        bytes: ceilings.copy.median,
    };
    let row = run::operation(device, case, &windows, limits)?;
    print(out, &table::operations(&[row]))
}

fn answer<D: Device>(args: &BenchArgs, device: D, out: &mut dyn Write) -> Result<()> {
    let mut workload = match &args.batch_file {
        Some(path) => Workload::from_file(device, path)?,
        None => Workload::random(device, &args.architecture()?, args.sizes(), args.meta_depth)?,
    };
    let precision = args.device.precision.name();
    serve::serve(&mut workload, precision, std::io::stdin().lock(), out)
}
