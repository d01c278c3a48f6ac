//! `l2b numerics`.

use std::io::Write;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};
use indicatif::ProgressBar;
use serde::Serialize;

use super::{print, progress_bar};
use crate::bench::machine::{COMMIT, DIRTY};
use crate::config::{Method, RunConfig};
use crate::device::choice::{Precision, resolve};
use crate::numerics::{Report, Source, states};
use crate::recipe::ConfigArgs;
use crate::run_folder::{RunFolder, prepare};
use crate::{Error, Result, atomic};

/// Compare the numbers of a step in each precision with f64
#[derive(Debug)]
pub struct NumericsArgs {
    config: ConfigArgs,
    run: Option<PathBuf>,
    precisions: Vec<Precision>,
    batches: u32,
}

/// The options of a run, and what to compare.
impl Args for NumericsArgs {
    fn augment_args(command: Command) -> Command {
        ConfigArgs::augment_args(command)
            .about("Train briefly, then compare a step in each precision with f64 on real batches")
            .mut_arg("method", |arg| arg.hide(true))
            .mut_arg("precision", |arg| arg.help("Number format to train in"))
            .mut_arg("out", |arg| {
                arg.value_name("FILE")
                    .help("JSON record to write, which must not exist")
            })
            .arg(
                Arg::new("run")
                    .long("run")
                    .value_name("DIR")
                    .value_parser(value_parser!(PathBuf))
                    .help("Do not train: take the state of the run in this folder"),
            )
            .arg(
                Arg::new("precisions")
                    .long("precisions")
                    .value_delimiter(',')
                    .value_parser(value_parser!(Precision))
                    .default_values(["f32", "tf32", "bf16"])
                    .help("Number formats to compare, separated by commas"),
            )
            .arg(
                Arg::new("batches")
                    .long("batches")
                    .value_parser(value_parser!(u32).range(1..=10_000))
                    .default_value("8")
                    .help("Steps compared from each state; the worst of them counts"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for NumericsArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut precisions: Vec<Precision> = matches
            .get_many("precisions")
            .unwrap_or_default()
            .copied()
            .collect();
        let mut seen = Vec::new();
        precisions.retain(|p| !seen.contains(p) && (seen.push(*p), true).1);
        Ok(NumericsArgs {
            config: ConfigArgs::from_arg_matches(matches)?,
            run: matches.get_one("run").cloned(),
            precisions,
            batches: matches.get_one("batches").copied().unwrap_or(1),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What the JSON record holds.
#[derive(Serialize)]
struct Record<'a> {
    command: &'static str,
    commit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    dirty: Option<bool>,
    /// The device compared with the CPU in f64.
    device: String,
    batches: u32,
    config: &'a RunConfig,
    #[serde(flatten)]
    report: &'a Report,
}

fn require_l2b(what: &str, config: &RunConfig) -> Result<()> {
    let hint = "other methods have no β to compare";
    match config.method {
        Method::L2b => Ok(()),
        other => Err(Error::config(what, "l2b", other.name(), hint)),
    }
}

/// Runs `l2b numerics`, printing the table to `out`.
///
/// # Errors
/// Whatever the library reports.
pub fn run(args: &NumericsArgs, out: &mut dyn Write) -> Result<()> {
    let given = args.config.load_with(|_| ())?;
    let target = given.out.clone();
    if let Some(path) = &target {
        atomic::require_free(
            "--out",
            path,
            "records are never overwritten: choose another name",
        )?;
    }
    let (folder, mut config) = match &args.run {
        None => {
            require_l2b("--method", &given)?;
            (None, given.resolve()?)
        }
        Some(path) => {
            let not_of_the_run = |name: &&str| !["threads", "device", "out"].contains(name);
            if let Some(option) = args.config.given().find(not_of_the_run) {
                let what = format!("--{} beside --run", option.replace('_', "-"));
                let hint = "the configuration is that in the run's folder";
                return Err(Error::config(
                    what,
                    "no option of a run but --device, --threads and --out",
                    "one",
                    hint,
                ));
            }
            let (folder, config) = RunFolder::open("--run", path)?;
            require_l2b("method of --run", &config)?;
            let device_given = args.config.given().any(|name| name == "device");
            let config = RunConfig {
                device: if device_given { given.device } else { config.device },
                threads: given.threads.or(config.threads),
                ..config
            };
            (Some(folder), config)
        }
    };
    let task = prepare(&mut config)?;
    let source = folder.as_ref().map_or(Source::Train, Source::Folder);
    let bar = match source {
        Source::Train => progress_bar(
            u64::from(task.train.len()) * u64::from(config.epochs),
            "training {bar:30} {percent:>3} %, {eta} left",
        ),
        Source::Folder(_) => ProgressBar::hidden(),
    };
    let states = states(&config, task, source, |images| bar.inc(images as u64));
    bar.finish_and_clear();
    let states = states?;
    let task = crate::task::Task::open(&config)?;
    let report = Report::new(&config, &task, &states, &args.precisions, args.batches)?;
    let device = resolve(config.device, args.precisions[0]);
    print(
        out,
        &format!(
            "{device} against f64 on the CPU; the worst of {} batches of {} + {} images\n\n{}",
            args.batches,
            config.batch,
            config.meta_batch.unwrap_or(0),
            report.markdown()
        ),
    )?;
    let Some(path) = target else { return Ok(()) };
    let record = Record {
        command: "numerics",
        commit: COMMIT,
        dirty: DIRTY,
        device: device.to_string(),
        batches: args.batches,
        config: &RunConfig { out: None, ..config },
        report: &report,
    };
    let json = serde_json::to_string_pretty(&record).map_err(|e| Error::Internal(e.to_string()))?;
    atomic::write_file(&path, (json + "\n").as_bytes())?;
    print(out, &format!("\nrecord     {}\n", path.display()))
}
