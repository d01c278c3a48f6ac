//! `l2b compare`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use indicatif::{ProgressBar, ProgressStyle};

use super::print;
use crate::atomic::{self, NewFolder};
use crate::budget::{MetaBudget, MetaDepth};
use crate::compare::{Comparison, Plan, Variant};
use crate::config::Method;
use crate::data::meta_draw::MetaDraw;
use crate::recipe::ConfigArgs;
use crate::run_folder::{RUNS, Summary};
use crate::task::Task;
use crate::{Error, Result};

/// Train several methods on the same noisy data and tabulate them
#[derive(Debug)]
pub struct CompareArgs {
    config: ConfigArgs,
    methods: Vec<Method>,
    /// Empty: what the configuration has.
    noise: Vec<f64>,
    meta_budgets: Vec<MetaBudget>,
    meta_batches: Vec<u32>,
    meta_draws: Vec<MetaDraw>,
    meta_depths: Vec<MetaDepth>,
    seeds: u32,
}

/// The options of a run, with lists where a comparison has several values.
impl Args for CompareArgs {
    fn augment_args(command: Command) -> Command {
        ConfigArgs::augment_args(command)
            .about("Train several methods on the same noisy data and tabulate them")
            .mut_arg("method", |arg| {
                arg.long("methods")
                    .value_delimiter(',')
                    .default_values(["ce", "bootstrap", "l2rw", "l2b", "clean"])
                    .action(ArgAction::Append)
                    .help("Methods, separated by commas")
            })
            .mut_arg("noise", |arg| {
                arg.value_delimiter(',')
                    .action(ArgAction::Append)
                    .help("Nominal noise rates, separated by commas")
            })
            .mut_arg("meta_budget", |arg| {
                arg.value_delimiter(',').action(ArgAction::Append).help(
                    "Costs of the meta pass by name, separated by commas; of this and the next three every combination",
                )
            })
            .mut_arg("meta_batch", |arg| {
                arg.value_delimiter(',')
                    .action(ArgAction::Append)
                    .help("Clean images per step, separated by commas")
            })
            .mut_arg("meta_draw", |arg| {
                arg.value_delimiter(',')
                    .action(ArgAction::Append)
                    .help("How they are drawn, separated by commas")
            })
            .mut_arg("meta_depth", |arg| {
                arg.value_delimiter(',').action(ArgAction::Append).help(
                    "Stages that the meta gradient covers with the head, from the last one on (0: the head alone), or all; \
                     separated by commas",
                )
            })
            .mut_arg("seed", |arg| arg.help("First seed"))
            .arg(
                Arg::new("seeds")
                    .long("seeds")
                    .help_heading("Method")
                    .value_parser(clap::value_parser!(u32).range(1..=10_000))
                    .default_value("5")
                    .help("Number of seeds"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for CompareArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let methods = matches.get_many("method").unwrap_or_default().copied();
        Ok(CompareArgs {
            config: ConfigArgs::from_arg_matches(matches)?,
            methods: distinct(methods),
            noise: listed(matches, "noise"),
            meta_budgets: listed(matches, "meta_budget"),
            meta_batches: listed(matches, "meta_batch"),
            meta_draws: listed(matches, "meta_draw"),
            meta_depths: listed(matches, "meta_depth"),
            seeds: matches.get_one("seeds").copied().unwrap_or(1),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Each value once, in the order of its first.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for value in values {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// The values of an option on the command line.
fn listed<T: Copy + PartialEq + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Vec<T> {
    match matches.value_source(name) {
        Some(ValueSource::CommandLine) => distinct(matches.get_many(name).unwrap_or_default().copied()),
        _ => Vec::new(),
    }
}

/// Runs `l2b compare`, printing the tables to `out`.
///
/// # Errors
/// Whatever the library reports.
pub fn run(args: &CompareArgs, out: &mut impl Write) -> Result<()> {
    // The method of a recipe is not asked for; a warm-up is checked against each method of the comparison.
    let base = args.config.load_with(|config| config.method = Method::Ce)?;
    let resolved = base.clone().resolve()?;
    let Some(default) = resolved.noise else {
        let hint = "every run draws its own noise: give --noise instead";
        return Err(Error::config("--labels", "none in a comparison", "a file", hint));
    };
    let noise = if args.noise.is_empty() {
        vec![default]
    } else {
        args.noise.clone()
    };
    let base_name = std::path::Path::new(RUNS).join("compare");
    let free = |path: &std::path::PathBuf| std::fs::symlink_metadata(path).is_err();
    let target = base
        .out
        .clone()
        .or_else(|| atomic::numbered(&base_name).find(free));
    let target = target.ok_or_else(|| Error::Internal("numbers do not run out".into()))?;
    let hint = "a comparison never writes into an existing folder: choose another name";
    atomic::require_free("--out", &target, hint)?;
    let per_epoch = u64::from(Task::open(&resolved)?.train.len());
    let plan = Plan {
        base,
        methods: args.methods.clone(),
        meta_budgets: args.meta_budgets.clone(),
        meta_batches: args.meta_batches.clone(),
        meta_draws: args.meta_draws.clone(),
        meta_depths: args.meta_depths.clone(),
        noise,
        seeds: args.seeds,
    };
    let runs = plan.runs()?;
    // Before the first run: a folder that cannot be written should cost nothing.
    let folder = NewFolder::create(&target)?;

    let bar = progress_bar(per_epoch * u64::from(resolved.epochs) * runs.len() as u64);
    let comparison = plan.run(&runs, |images, finished| {
        bar.inc(images as u64);
        if let Some((variant, summary)) = finished {
            let line = line(variant, summary);
            if bar.is_hidden() {
                eprintln!("{line}");
            } else {
                bar.println(line);
            }
        }
    });
    bar.finish_and_clear();
    let comparison = comparison?;
    save(&comparison, folder)?;
    print(
        out,
        &format!("{}\nfolder {}\n", comparison.markdown(), target.display()),
    )
}

fn save(comparison: &Comparison, folder: NewFolder) -> Result<()> {
    let json = serde_json::to_string_pretty(comparison).map_err(|e| Error::Internal(e.to_string()))?;
    for (name, text) in [
        ("compare.md", comparison.markdown()),
        ("compare.json", json + "\n"),
        ("compare.csv", comparison.csv()),
    ] {
        atomic::write_file(&folder.path().join(name), text.as_bytes())?;
    }
    folder.commit()
}

/// Images of all runs; draws on a terminal only.
fn progress_bar(images: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(images);
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn line(variant: &Variant, s: &Summary) -> String {
    format!(
        "{:<20}  noise {:>5.2} %  seed {:>3}  last {:>6.2} %  best {:>6.2} %  {:>5.1} s",
        variant.name(),
        100.0 * s.noise_realised.unwrap_or(0.0),
        s.seed,
        100.0 * s.last_accuracy,
        100.0 * s.best_accuracy,
        s.seconds
    )
}
