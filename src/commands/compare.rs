//! `l2b compare`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::{print, progress_bar};
use crate::budget::{MetaBudget, MetaDepth};
use crate::compare::{Comparison, Ending, Plan};
use crate::config::Method;
use crate::data::meta_draw::MetaDraw;
use crate::recipe::ConfigArgs;
use crate::run_folder::RUNS;
use crate::task::Task;
use crate::{Error, Result, atomic};

/// Train several methods on the same noisy data and tabulate them
#[derive(Debug)]
pub struct CompareArgs {
    config: ConfigArgs,
    methods: Vec<Method>,
    /// Empty: what the configuration has, which is none with labels of a file.
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
                    "Costs of the meta pass by name, separated by commas; of this and the next three every combination. They say nothing \
                     to a method without a meta pass",
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
        // Lists are for the methods that they vary: no other depends on which value is the first.
        let lists = ["meta_budget", "meta_batch", "meta_draw", "meta_depth"];
        Ok(CompareArgs {
            config: ConfigArgs::from_arg_matches(matches)?.without(&lists),
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

/// Runs `l2b compare`, printing the tables to `out`. The folder holds them, of the runs so far, from the first run's end
/// on.
///
/// # Errors
/// Whatever the library reports; runs that diverge are in the tables and no error.
pub fn run(args: &CompareArgs, out: &mut dyn Write) -> Result<()> {
    // The method of a recipe is not asked for; a warm-up is checked against each method of the comparison.
    let base = args.config.load_with(|config| config.method = Method::Ce)?;
    let resolved = base.clone().resolve()?;
    if let Some(path) = &base.out {
        let hint = "a comparison never writes into an existing folder: choose another name";
        atomic::require_free("--out", path, hint)?;
    }
    let per_epoch = u64::from(Task::open(&resolved)?.train.len());
    let plan = Plan {
        base,
        methods: args.methods.clone(),
        meta_budgets: args.meta_budgets.clone(),
        meta_batches: args.meta_batches.clone(),
        meta_draws: args.meta_draws.clone(),
        meta_depths: args.meta_depths.clone(),
        noise: match args.noise.is_empty() {
            true => vec![resolved.noise],
            false => args.noise.iter().copied().map(Some).collect(),
        },
        seeds: args.seeds,
    };
    let runs = plan.runs()?;
    plan.check(&runs)?;
    let costs = plan.costs()?;
    let folder = new_folder(plan.base.out.as_deref())?;

    let bar = progress_bar(
        per_epoch * u64::from(resolved.epochs) * runs.len() as u64,
        "{bar:40} {percent:>3} %, {eta} left",
    );
    let say = |line: String| {
        if bar.is_hidden() {
            // Nobody may be listening any more: no reason to stop.
            let _ = writeln!(std::io::stderr(), "{line}");
        } else {
            bar.println(line);
        }
    };
    let (comparison, trained) = plan.run(
        &runs,
        &costs,
        |images| bar.inc(images as u64),
        |ending, so_far| {
            say(line(ending));
            if let Err(error) = save(so_far, &folder) {
                say(format!("not saved: {error}"));
            }
        },
    );
    bar.finish_and_clear();
    if comparison.finished() == 0 {
        // It is empty; if it is not, it stays.
        let _ = std::fs::remove_dir(&folder);
        return trained;
    }
    let saved = save(&comparison, &folder);
    print(
        out,
        &format!("{}\nfolder {}\n", comparison.markdown(), folder.display()),
    )?;
    trained.and(saved)
}

/// Makes `out`, or else `runs/compare-N` for the lowest N from 1 that is free.
fn new_folder(out: Option<&Path>) -> Result<PathBuf> {
    let base = Path::new(RUNS).join("compare");
    let folder = out.unwrap_or(&base).parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let make = |path: &Path| std::fs::create_dir(path);
    match out {
        Some(out) => atomic::first_free([out.to_owned()], make),
        None => atomic::first_free(atomic::numbered(&base), make),
    }
}

fn save(comparison: &Comparison, folder: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(comparison).map_err(|e| Error::Internal(e.to_string()))?;
    for (name, text) in [
        ("compare.md", comparison.markdown()),
        ("compare.json", json + "\n"),
        ("compare.csv", comparison.csv()),
    ] {
        atomic::write_file(&folder.join(name), text.as_bytes())?;
    }
    Ok(())
}

fn line(ending: &Ending) -> String {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    match ending {
        Ending::Done(row) => {
            let s = &row.summary;
            format!(
                "{:<20}  noise {:>8}  seed {:>3}  last {:>8}  best {:>8}  {:>5.1} s",
                row.variant,
                s.noise_realised.map_or("unknown".to_owned(), percent),
                s.seed,
                percent(s.last_accuracy),
                percent(s.best_accuracy),
                s.seconds
            )
        }
        Ending::Diverged(failure) => format!(
            "{:<20}  noise {:>8}  seed {:>3}  {}",
            failure.variant,
            failure.noise.map_or("of file".to_owned(), percent),
            failure.seed,
            failure.failure
        ),
    }
}
