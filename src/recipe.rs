//! Where a run's configuration comes from: options on the command line over a TOML recipe over defaults. An option also wins
//! over what the recipe holds only because of the option's old value.

use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches, value_parser};
use serde::Deserialize;

use crate::config::RunConfig;
use crate::{Error, Result};

impl RunConfig {
    /// Reads a recipe; unknown keys are refused.
    ///
    /// # Errors
    /// `Io`; `Config` naming file, line and key.
    pub fn from_toml(path: &Path) -> Result<Self> {
        parse_recipe(path).map(|(config, _)| config)
    }
}

/// A recipe, and its text as a table.
fn parse_recipe(path: &Path) -> Result<(RunConfig, toml::Table)> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let refuse = |e: toml::de::Error| {
        Error::config(
            format!("recipe {}", path.display()),
            "keys and values of a run",
            e.to_string().trim().to_owned(),
            "keys are the long options of `l2b train`, with _ for -",
        )
    };
    // First the whole, so that an error names its line.
    let config = toml::from_str(&text).map_err(refuse)?;
    Ok((config, toml::from_str(&text).map_err(refuse)?))
}

/// Keys of a recipe that an option makes void unless they are options too: what follows from its value where nothing else is
/// asked for, as a run's `config.toml` holds it resolved, and what cannot stand beside it.
const VOIDS: [(&str, &[&str]); 9] = [
    ("labels", &["noise", "meta_per_class"]),
    ("noise", &["labels"]),
    ("meta_split", &["meta_per_class"]),
    ("meta_per_class", &["meta_split"]),
    ("meta_budget", &["meta_batch", "meta_draw", "meta_depth"]),
    ("batch", &["meta_batch"]),
    ("blocks", &["meta_depth"]),
    ("epochs", &["warm_up"]),
    ("device", &["precision"]),
];

/// A run's options on the command line: those given, and the recipe they win over.
#[derive(Clone, Debug)]
pub struct ConfigArgs {
    recipe: Option<PathBuf>,
    given: toml::Table,
    /// Keys that they make void in the recipe.
    void: Vec<&'static str>,
}

impl ConfigArgs {
    /// Options over recipe over defaults, resolved and checked.
    ///
    /// # Errors
    /// `Config`, `Io`.
    pub fn load(&self) -> Result<RunConfig> {
        self.load_with(|_| ()).and_then(RunConfig::resolve)
    }

    /// Options over recipe over defaults, then `change`; not yet resolved.
    ///
    /// # Errors
    /// `Config`, `Io`.
    pub fn load_with(&self, change: impl FnOnce(&mut RunConfig)) -> Result<RunConfig> {
        let mut table = match &self.recipe {
            Some(path) => parse_recipe(path)?.1,
            None => toml::Table::new(),
        };
        table.retain(|key, _| !self.void.contains(&key));
        table.extend(self.given.clone());
        let mut config =
            RunConfig::deserialize(table).map_err(|e| Error::Internal(format!("options: {e}")))?;
        change(&mut config);
        Ok(config)
    }

    /// Without some options of the command line, by key: recipe or default are not won over.
    pub fn without(mut self, keys: &[&str]) -> Self {
        self.given.retain(|key, _| !keys.contains(&key));
        self
    }

    /// Names of the options given, a recipe included.
    pub fn given(&self) -> impl Iterator<Item = &str> {
        self.given
            .keys()
            .map(String::as_str)
            .chain(self.recipe.as_ref().map(|_| "config"))
    }
}

impl Args for ConfigArgs {
    fn augment_args(command: Command) -> Command {
        let recipe = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("TOML recipe with any of these options; those of the command line win over it and what it derives from them");
        RunConfig::augment_args(command).arg(recipe)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let internal = |e: &dyn std::fmt::Display| clap::Error::raw(clap::error::ErrorKind::Io, e);
        for key in ["data", "labels", "out"] {
            if let Ok(Some(path)) = matches.try_get_one::<PathBuf>(key)
                && path.to_str().is_none()
            {
                let path = path.display();
                let text =
                    format!("--{key}: expected a path in UTF-8, which a run folder can note, found {path}\n");
                return Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, text));
            }
        }
        let config = RunConfig::from_arg_matches(matches)?;
        let mut given = toml::Table::try_from(config).map_err(|e| internal(&e))?;
        given.retain(|key, _| matches.value_source(key) == Some(ValueSource::CommandLine));
        let voids = VOIDS
            .into_iter()
            .filter(|(option, _)| given.contains_key(*option));
        Ok(ConfigArgs {
            recipe: matches.get_one("config").cloned(),
            void: voids.flat_map(|(_, void)| void).copied().collect(),
            given,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Method;
    use crate::device::choice::Precision;

    fn args(words: &[&str]) -> ConfigArgs {
        let command = ConfigArgs::augment_args(Command::new("l2b"));
        let matches = command.get_matches_from(std::iter::once(&"l2b").chain(words));
        ConfigArgs::from_arg_matches(&matches).unwrap()
    }

    fn recipe(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path.to_str().unwrap().to_owned())
    }

    #[test]
    fn command_line_over_recipe_over_default() {
        let (_folder, path) = recipe("lr = 0.2\nepochs = 7\nflip = true\nblocks = [2, 2]\nmethod = \"ce\"\n");
        let config = args(&[
            "--config",
            &path,
            "--lr",
            "0.05",
            "--flip=false",
            "--noise",
            "0.6",
        ])
        .load()
        .unwrap();
        // 0.05 is also the default: given on the command line, it wins all the same.
        assert_eq!((config.lr, config.epochs, config.flip), (0.05, 7, false));
        assert_eq!(
            (config.blocks, config.method, config.batch),
            (vec![2, 2], Method::Ce, 64)
        );
        assert_eq!(
            (config.noise, config.meta_per_class, config.warm_up),
            (Some(0.6), Some(10), Some(2))
        );
    }

    #[test]
    fn resolved_configuration_reads_back() {
        let config = args(&[
            "--labels", "a b", "--device", "cuda:3", "--clip", "0.25", "--epochs", "1",
        ])
        .load()
        .unwrap();
        assert_eq!(
            (config.noise, config.meta_per_class, config.warm_up),
            (None, None, Some(0))
        );
        let (_folder, path) = recipe(&config.to_toml().unwrap());
        assert_eq!(RunConfig::from_toml(Path::new(&path)).unwrap(), config);
        let resolved = RunConfig::default().resolve().unwrap();
        assert_eq!(resolved.clone().resolve().unwrap(), resolved);
    }

    /// Each: options over a run's own configuration, and keys with what they then are; `-`: left to the defaults.
    #[test]
    fn an_option_voids_what_followed_from_its_old_value() {
        let resolved = args(&["--meta-budget", "full", "--blocks", "1,1,1"])
            .load()
            .unwrap();
        let run = RunConfig {
            meta_batch: Some(64),
            precision: Some(Precision::Bf16),
            ..resolved
        };
        let (_folder, path) = recipe(&run.to_toml().unwrap());
        for (words, want) in [
            (
                "",
                "noise 0.4, meta_batch 64, meta_draw \"uniform\", meta_depth \"all\", warm_up 2, precision \"bf16\"",
            ),
            (
                "--meta-budget fast",
                "meta_batch -, meta_draw \"stratified\", meta_depth 2, batch 64",
            ),
            (
                "--meta-budget fast --meta-batch 64 --meta-depth 1",
                "meta_batch 64, meta_draw \"stratified\", meta_depth 1",
            ),
            ("--batch 128", "batch 128, meta_batch -, meta_draw \"uniform\""),
            ("--blocks 1,1,1,1 --meta-budget fast", "meta_depth 2"),
            ("--labels f", "labels \"f\", noise -, meta_per_class -"),
            (
                "--meta-split clean",
                "meta_split \"clean\", meta_per_class -, noise 0.4",
            ),
            ("--epochs 1", "epochs 1, warm_up 0, meta_batch 64"),
            ("--epochs 9 --warm-up 4", "epochs 9, warm_up 4"),
            ("--device cpu", "device \"cpu\", precision -"),
            ("--device cpu --precision tf32", "precision \"tf32\""),
            (
                "--seed 3",
                "seed 3, meta_batch 64, meta_draw \"uniform\", warm_up 2, precision \"bf16\"",
            ),
        ] {
            let options = words.split(' ').filter(|word| !word.is_empty());
            let words: Vec<&str> = ["--config", &path].into_iter().chain(options).collect();
            let table = toml::Table::try_from(args(&words).load().unwrap()).unwrap();
            for pair in want.split(", ") {
                let (key, value) = pair.split_once(' ').unwrap();
                let found = table.get(key).map_or("-".to_owned(), toml::Value::to_string);
                assert_eq!(found, value, "{key} after {words:?}");
            }
        }
        // The reverse: a recipe with labels or a clean split, options with noise or clean images per class.
        let (_folder, path) = recipe("labels = \"f\"\n");
        let config = args(&["--config", &path, "--noise", "0.2"]).load().unwrap();
        assert_eq!(
            (config.labels, config.noise, config.meta_per_class),
            (None, Some(0.2), Some(10))
        );
        let (_folder, path) = recipe("meta_split = \"clean\"\nnoise = 0.2\n");
        let config = args(&["--config", &path, "--meta-per-class", "3"])
            .load()
            .unwrap();
        assert_eq!((config.meta_split, config.meta_per_class), (None, Some(3)));
        // What the command line itself contradicts is refused as ever, and labels are never dropped for clean images.
        let (_folder, path) = recipe("labels = \"f\"\n");
        for words in [
            &["--labels", "g", "--noise", "0.2"][..],
            &["--meta-per-class", "3"],
        ] {
            let words = [&["--config", &path], words].concat();
            assert_eq!(args(&words).load().unwrap_err().exit_code(), 2, "{words:?}");
        }
    }

    /// Every name of the table is a key of a run.
    #[test]
    fn voided_keys_exist() {
        let help = ConfigArgs::augment_args(Command::new("l2b"));
        let known = |name: &str| help.get_arguments().any(|arg| arg.get_id() == name);
        for (option, void) in VOIDS {
            assert!(known(option) && void.iter().all(|key| known(key)), "{option}");
        }
    }

    #[test]
    fn unknown_keys_and_wrong_values_name_line_and_key() {
        for (text, part) in [
            ("lr = 0.1\nmomentun = 0.9\n", "momentun"),
            ("epochs = -3\n", "line 1"),
            ("method = \"l2c\"\n", "l2c"),
            ("device = \"gpu\"\n", "cuda:N"),
            ("lr = \n", "line 1"),
        ] {
            let (_folder, path) = recipe(text);
            let error = args(&["--config", &path]).load().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        assert_eq!(
            args(&["--config", "no/such/file"])
                .load()
                .unwrap_err()
                .exit_code(),
            1
        );
    }

    #[test]
    fn values_out_of_range_name_the_option() {
        for (words, option) in [
            (&["--noise", "1.5"][..], "--noise"),
            (&["--noise", "nan"], "--noise"),
            (&["--lr", "0"], "--lr"),
            (&["--lr", "inf"], "--lr"),
            (&["--momentum", "1"], "--momentum"),
            (&["--weight-decay=-1"], "--weight-decay"),
            (&["--clip=-0.1"], "--clip"),
            (&["--bootstrap", "2"], "--bootstrap"),
            (&["--temperature", "0"], "--temperature"),
            (&["--eta", "0"], "--eta"),
            (&["--batch", "0"], "--batch"),
            (&["--epochs", "0"], "--epochs"),
            (&["--eval-batch", "0"], "--eval-batch"),
            (&["--meta-batch", "0"], "--meta-batch"),
            (&["--meta-per-class", "0"], "--meta-per-class"),
            (&["--threads", "0"], "--threads"),
            (&["--pad", "5000"], "--pad"),
            (&["--warm-up", "30"], "--warm-up"),
            (&["--labels", "x", "--noise", "0.4"], "--noise"),
            (
                &["--meta-split", "x", "--meta-per-class", "4"],
                "--meta-per-class",
            ),
            (&["--labels", "x", "--meta-per-class", "4"], "--meta-per-class"),
        ] {
            let error = args(words).load().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{words:?}");
            assert!(error.to_string().starts_with(option), "{words:?}: {error}");
        }
        // Cross-entropy has no warm-up that could swallow it.
        args(&["--method", "ce", "--warm-up", "30"]).load().unwrap();
    }
}
