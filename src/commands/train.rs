//! `l2b train`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{print, progress_bar};
use crate::budget::{self, MetaDepth};
use crate::config::RunConfig;
use crate::data::meta_draw::MetaDraw;
use crate::device::Device;
use crate::device::choice::{DeviceChoice, Visitor, resolve, with_device};
use crate::epoch_log::EpochRecord;
use crate::recipe::ConfigArgs;
use crate::run_folder::{RunWriter, Summary, prepare};
use crate::task::Task;
use crate::train::{Memory, Trainer, architecture, memory};
use crate::{Error, Result, atomic};

/// Train a network; without options: the bundled digits, 40 % noise, L2B
#[derive(Args, Debug)]
pub struct TrainArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Go on with the run in this folder, from its last complete epoch
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
}

/// Runs `l2b train`, printing a row an epoch and the summary to `out`.
///
/// # Errors
/// Whatever the library reports.
pub fn run(args: &TrainArgs, out: &mut dyn Write) -> Result<()> {
    match &args.resume {
        None => {
            let mut config = args.config.load()?;
            let precision = *config.precision.get_or_insert(config.device.training_precision());
            // A resume computes where the run began, or not at all: another device gives other bits.
            config.device = resolve(config.device, precision);
            if let Some(out) = &config.out {
                let hint =
                    "a run never writes into an existing folder: choose another name, or go on with --resume";
                atomic::require_free("--out", out, hint)?;
            }
            start(config, None, out)
        }
        Some(folder) => {
            // The other options are those of the run; threads change no result.
            if let Some(option) = args.config.given().find(|&name| name != "threads") {
                let what = format!("--{} beside --resume", option.replace('_', "-"));
                let hint = "a run goes on with the configuration in its folder";
                return Err(Error::config(what, "no option but --threads", "one", hint));
            }
            let threads = args.config.load_with(|_| ())?.threads;
            let (folder, config) = RunWriter::open(folder)?;
            let config = RunConfig {
                threads: threads.or(config.threads),
                ..config
            };
            let (device, path) = (config.device, folder.path().to_owned());
            start(config, Some(folder), out).map_err(|error| elsewhere(error, device, &path))
        }
    }
}

/// Says how to begin the run anew where its device is not there.
fn elsewhere(error: Error, device: DeviceChoice, folder: &Path) -> Error {
    match error {
        Error::Device { what, detail, .. } if what == device.to_string() => {
            let config = folder.join("config.toml").display().to_string();
            let hint = format!(
                "a run goes on on its own device alone; to begin it anew on another: \
                 l2b train --config {config} --device auto --out NEW"
            );
            Error::device(what, detail, hint)
        }
        other => other,
    }
}

fn start(mut config: RunConfig, folder: Option<RunWriter>, out: &mut dyn Write) -> Result<()> {
    let task = prepare(&mut config)?;
    let (device, precision, threads) = (config.device, config.precision(), config.threads);
    with_device(
        device,
        precision,
        threads,
        Run {
            config,
            task,
            folder,
            out,
        },
    )
}

/// A run on a device yet to be chosen.
struct Run<'a> {
    config: RunConfig,
    task: Task,
    /// None: a new one.
    folder: Option<RunWriter>,
    out: &'a mut dyn Write,
}

impl Visitor for Run<'_> {
    type Output = ();

    fn visit<D: Device>(self, device: D) -> Result<()> {
        let Run {
            config,
            task,
            folder,
            out,
        } = self;
        let memory = memory(&device, &config, &task)?;
        print(out, &head(&device, &config, &task, memory)?)?;
        let mut trainer = Trainer::with(device, config, task, memory.keep)?;
        let folder = match folder {
            Some(folder) => {
                folder.restore(&mut trainer)?;
                print(out, &format!("resumed after epoch {}\n", trainer.state.epoch))?;
                folder
            }
            None => RunWriter::create(&trainer)?,
        };
        let per_epoch = u64::from(trainer.task.train.len());
        let bar = progress_bar(
            per_epoch * u64::from(trainer.config.epochs),
            "{prefix} {bar:30} {percent:>3} %, {eta} left; {msg}",
        );
        bar.set_position(per_epoch * u64::from(trainer.state.epoch));
        print(out, HEADER)?;
        while !trainer.is_done() {
            bar.set_prefix(format!("epoch {}", trainer.state.epoch + 1));
            let record = trainer
                .epoch(|images| bar.inc(images as u64))
                .map_err(|error| kept(error, &folder))?;
            folder.save_epoch(&trainer, &record)?;
            bar.set_message(format!(
                "test {:.2} %, loss {:.3}, {:.0} images/s",
                100.0 * record.test_accuracy,
                record.train_loss,
                record.images_per_second
            ));
            bar.suspend(|| print(out, &row(&record)))?;
        }
        bar.finish_and_clear();
        let summary = folder.finish(&trainer)?;
        print(out, &tail(&summary, folder.path()))
    }
}

/// Says where the last good state is.
fn kept(error: Error, folder: &RunWriter) -> Error {
    match error {
        Error::Diverged {
            step,
            what,
            value,
            hint,
        } => {
            let path = folder.path().display();
            let hint = format!("{hint}; the state of the last complete epoch is kept in {path}");
            Error::Diverged {
                step,
                what,
                value,
                hint,
            }
        }
        other => other,
    }
}

fn head<D: Device>(device: &D, config: &RunConfig, task: &Task, memory: Memory) -> Result<String> {
    let program = architecture(config, task).program()?;
    let budget = if config.method.objective().is_meta() {
        let m = config.meta_batch.unwrap_or(config.batch);
        format!(
            "meta    {m} clean images a step{}, {}; {:.2} ordinary steps by operation count\n",
            match config.draw() {
                MetaDraw::Uniform => "",
                MetaDraw::Stratified => " stratified by class",
            },
            match config.depth() {
                MetaDepth::All => "gradient of the whole network".to_owned(),
                MetaDepth::Stages(0) => "gradient of the head".to_owned(),
                MetaDepth::Stages(count) => format!(
                    "gradient of the last {count} of {} stages and the head",
                    program.stages.len()
                ),
            },
            budget::operations(
                &program,
                config.batch as usize,
                m as usize,
                &config.depth().reach(&program)?
            ),
        )
    } else {
        String::new()
    };
    let trusted = match task.meta_per_class.filter(|_| task.trusts_given_labels()) {
        Some(k) => {
            format!("clean   {k} images of each class by their given labels, which are taken as right\n")
        }
        None => String::new(),
    };
    Ok(format!(
        "data    {}: {} train, {} clean, {} test images\n{trusted}labels  {}\nnetwork width {}, blocks {:?}, {} parameters\n\
         {budget}device  {}, {}, {:.1} MB{}\n",
        task.manifest.name,
        task.train.len(),
        task.meta.len(),
        task.test.len(),
        noise(
            task.overlay.nominal,
            task.clean_known.then_some(task.overlay.realised),
            &task.overlay.kind
        ),
        config.width,
        config.blocks,
        program.parameter_count(),
        device.name(),
        config.precision().name(),
        memory.bytes as f64 / 1e6,
        if memory.keep {
            ", all images among them"
        } else {
            ""
        },
    ))
}

/// Noise in words: nominal and realised rate.
fn noise(nominal: Option<f64>, realised: Option<f64>, kind: &str) -> String {
    let nominal = nominal.map_or(String::new(), |r| format!(", nominal {:.1} %", 100.0 * r));
    let realised = realised.map_or("unknown".to_owned(), |r| format!("{:.2} %", 100.0 * r));
    format!("{kind}{nominal}, realised (wrong labels) {realised}")
}

/// Weights are means over an epoch, times 1000.
const HEADER: &str = "epoch       lr  train loss  train acc  (clean)  test acc    best  \
                      α clean  α wrong  β clean  β wrong  images/s  seconds\n";

fn row(r: &EpochRecord) -> String {
    let percent = |share: f64| format!("{:.2}", 100.0 * share);
    let weight = |mean: Option<f64>| mean.map_or("-".to_owned(), |w| format!("{:.2}", 1000.0 * w));
    format!(
        "{:>5}  {:.5}  {:>10.4}  {:>9}  {:>7}  {:>8}  {:>6}  {:>7}  {:>7}  {:>7}  {:>7}  {:>8.0}  {:>7.2}\n",
        r.epoch,
        r.lr,
        r.train_loss,
        percent(r.train_accuracy),
        r.train_clean_accuracy.map_or("-".to_owned(), percent),
        percent(r.test_accuracy),
        percent(r.best_accuracy),
        weight(r.alpha_clean),
        weight(r.alpha_corrupted),
        weight(r.beta_clean),
        weight(r.beta_corrupted),
        r.images_per_second,
        r.seconds,
    )
}

fn tail(s: &Summary, folder: &Path) -> String {
    format!(
        "test accuracy  last epoch {:.2} %, best {:.2} % (epoch {}, chosen on the test images)\n\
         noise          {}\ntime           {:.1} s, {:.0} images/s\nrun folder     {}\n",
        100.0 * s.last_accuracy,
        100.0 * s.best_accuracy,
        s.best_epoch,
        noise(s.noise_nominal, s.noise_realised, &s.noise_kind),
        s.seconds,
        s.images_per_second,
        folder.display(),
    )
}
