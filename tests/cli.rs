//! The binary from outside: train, evaluate, predict, resume, compare; and what it says to bad input.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A network that trains in a fraction of a second.
const TINY: [&str; 8] = [
    "--width", "4", "--blocks", "1,1", "--epochs", "3", "--batch", "128",
];

/// `l2b` in a folder of its own, which is removed at the end.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Bench(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_l2b"));
        // The bundled dataset is unpacked here, not in the user's cache.
        command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
        command.current_dir(self.0.path()).args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Standard output of a run that must succeed.
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn train(&self, out: &str, more: &[&str]) -> Value {
        let words: Vec<&str> = ["train", "--out", out]
            .iter()
            .chain(&TINY)
            .chain(more)
            .copied()
            .collect();
        self.ok(&words);
        self.json(&format!("{out}/summary.json"))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    /// Names in the folder, sorted.
    fn names(&self, folder: &str) -> Vec<String> {
        names(&self.path(folder))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn hash(summary: &Value) -> &str {
    summary["weights_sha256"]
        .as_str()
        .filter(|h| h.len() == 64)
        .unwrap()
}

/// Records of `metrics.jsonl` without what the clock says.
fn records(folder: &Path) -> Vec<Value> {
    let lines = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let record = |line| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        for key in ["seconds", "images_per_second"] {
            assert!(
                record
                    .as_object_mut()
                    .unwrap()
                    .remove(key)
                    .unwrap()
                    .as_f64()
                    .unwrap()
                    > 0.0
            );
        }
        record
    };
    lines.lines().map(record).collect()
}

#[test]
fn train_then_eval_then_predict() {
    let bench = Bench::new();
    let words: Vec<&str> = ["train"].iter().chain(&TINY).copied().collect();
    let shown = bench.ok(&words);
    assert!(
        shown.contains("nominal 40.0 %") && shown.contains("run folder     runs/l2b-0-1"),
        "{shown}"
    );
    assert_eq!(
        bench.names("runs/l2b-0-1"),
        [
            "best.safetensors",
            "checkpoint.previous.safetensors",
            "checkpoint.safetensors",
            "config.toml",
            "last.safetensors",
            "metrics.jsonl",
            "sample_weights.safetensors",
            "summary.json"
        ]
    );
    let summary = bench.json("runs/l2b-0-1/summary.json");
    assert_eq!(
        (summary["method"].as_str(), summary["device"].as_str()),
        (Some("l2b"), Some("cpu"))
    );
    assert_eq!(
        (summary["precision"].as_str(), summary["epochs"].as_u64()),
        (Some("f32"), Some(3))
    );
    assert_eq!(summary["noise_nominal"].as_f64(), Some(0.4));
    // 36 % of 1337 labels, σ = 1.3 %; 5σ.
    let realised = summary["noise_realised"].as_f64().unwrap();
    assert!((realised - 0.36).abs() < 0.066, "{realised}");
    let last = summary["last_accuracy"].as_f64().unwrap();
    assert!(
        last > 0.3 && last <= summary["best_accuracy"].as_f64().unwrap(),
        "{last}"
    );
    let records = records(&bench.path("runs/l2b-0-1"));
    assert_eq!(records.len(), 3);
    assert_eq!(records[2]["test_accuracy"].as_f64(), Some(last));
    // Two epochs of warm-up, then weights that favour right labels.
    assert_eq!(
        (
            records[1]["objective"].as_str(),
            records[1]["alpha_clean"].as_f64()
        ),
        (Some("cross_entropy"), None)
    );
    assert_eq!(records[2]["objective"].as_str(), Some("l2b"));
    let mean = |key: &str| records[2][key].as_f64().unwrap();
    assert!(
        mean("alpha_clean") > 2.0 * mean("alpha_corrupted"),
        "{}",
        records[2]
    );

    let weights = "runs/l2b-0-1/last.safetensors";
    let scores: Value = serde_json::from_str(&bench.ok(&["eval", "--weights", weights, "--json"])).unwrap();
    assert_eq!(scores["accuracy"].as_f64(), Some(last));
    let total: u64 = scores["confusion"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .map(|n| n.as_u64().unwrap())
        .sum();
    assert_eq!((total, scores["samples"].as_u64()), (360, Some(360)));
    assert!(
        bench
            .ok(&["eval", "--weights", weights])
            .contains("balanced accuracy")
    );

    bench.ok(&[
        "predict",
        "--weights",
        weights,
        "--eval-batch",
        "50",
        "--out",
        "p.csv",
    ]);
    let csv = fs::read_to_string(bench.path("p.csv")).unwrap();
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("id,label,p0,p1,p2,p3,p4,p5,p6,p7,p8,p9"));
    for (id, line) in lines.clone().enumerate() {
        let cells: Vec<f64> = line.split(',').map(|c| c.parse().unwrap()).collect();
        assert_eq!((cells.len(), cells[0]), (12, id as f64));
        assert!((cells[2..].iter().sum::<f64>() - 1.0).abs() < 1e-7, "{line}");
        let top = cells[2..].iter().copied().fold(0.0, f64::max);
        assert_eq!(cells[2 + cells[1] as usize], top);
    }
    assert_eq!(lines.count(), 360);
    // An existing file is never replaced.
    let again = bench.run(&["predict", "--weights", weights, "--out", "p.csv"]);
    assert_eq!(again.status.code(), Some(2));
    assert_eq!(fs::read_to_string(bench.path("p.csv")).unwrap(), csv);
}

#[test]
fn bits_depend_on_the_seed_and_not_on_the_threads() {
    let bench = Bench::new();
    let one = bench.train("one", &["--threads", "1", "--pad", "1", "--flip"]);
    let two = bench.train("two", &["--threads", "2", "--pad", "1", "--flip"]);
    let other = bench.train("other", &["--pad", "1", "--flip", "--seed", "1"]);
    assert_eq!(hash(&one), hash(&two));
    assert_ne!(hash(&one), hash(&other));
    assert_eq!(records(&bench.path("one")), records(&bench.path("two")));
    let weights = |run: &str| fs::read(bench.path(run).join("last.safetensors")).unwrap();
    assert_eq!(weights("one"), weights("two"));
}

#[test]
fn every_method_and_option_runs() {
    let bench = Bench::new();
    for (number, words) in [
        &["--method", "ce", "--schedule", "step", "--milestones", "1,2"][..],
        &[
            "--method",
            "bootstrap",
            "--schedule",
            "constant",
            "--clip",
            "0.25",
        ],
        &[
            "--method",
            "l2rw",
            "--virtual-step",
            "plain",
            "--weights",
            "sigmoid",
        ],
        &["--method", "clean", "--meta-batch", "50"],
        &[
            "--weights",
            "softmax",
            "--init",
            "uniform",
            "--warm-up",
            "0",
            "--noise-kind",
            "pair",
        ],
        &["--weights", "hard", "--threshold", "0.001", "--precision", "f64"],
        &[
            "--norm",
            "frozen",
            "--inner-product",
            "contraction",
            "--lr",
            "0.01",
        ],
    ]
    .into_iter()
    .enumerate()
    {
        let mut words = words.to_vec();
        words.extend(["--epochs", "2"]);
        let out = number.to_string();
        let words: Vec<&str> = ["train", "--out", &out]
            .iter()
            .chain(&TINY[..4])
            .chain(&TINY[6..])
            .chain(&words)
            .copied()
            .collect();
        bench.ok(&words);
        let summary = bench.json(&format!("{number}/summary.json"));
        // A class at random is right in 10 %.
        let chance = if words.contains(&"frozen") || words.contains(&"hard") {
            0.05
        } else {
            0.2
        };
        assert!(
            summary["last_accuracy"].as_f64().unwrap() > chance,
            "{words:?}: {summary}"
        );
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let bench = Bench::new();
    let straight = bench.train("straight", &[]);
    let words: Vec<&str> = ["train", "--out", "killed"]
        .iter()
        .chain(&TINY)
        .copied()
        .collect();
    let mut child = bench.command(&words).stdout(Stdio::null()).spawn().unwrap();
    // Killed as soon as the first epoch is on record, in whatever it does then; if it is faster, nothing is left to
    // do for the resume, and the assertions hold all the same.
    while !bench.path("killed/metrics.jsonl").exists() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let shown = bench.ok(&["train", "--resume", "killed", "--threads", "1"]);
    assert!(shown.contains("resumed after epoch"), "{shown}");
    assert_eq!(hash(&bench.json("killed/summary.json")), hash(&straight));
    assert_eq!(records(&bench.path("killed")), records(&bench.path("straight")));
    assert_eq!(bench.names("killed"), bench.names("straight"));
    for name in [
        "best.safetensors",
        "last.safetensors",
        "sample_weights.safetensors",
    ] {
        let [a, b] = ["killed", "straight"].map(|run| fs::read(bench.path(run).join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }

    // A finished run has nothing left to do.
    bench.ok(&["train", "--resume", "straight"]);
    assert_eq!(hash(&bench.json("straight/summary.json")), hash(&straight));
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before() {
    let bench = Bench::new();
    let straight = bench.train("run", &[]);
    let damage = |name: &str| {
        let path = bench.path("run").join(name);
        let mut bytes = fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    damage("checkpoint.safetensors");
    let shown = bench.ok(&["train", "--resume", "run"]);
    assert!(shown.contains("resumed after epoch 2"), "{shown}");
    assert_eq!(hash(&bench.json("run/summary.json")), hash(&straight));

    // The repaired run has two good ones again; with both damaged the message names the file.
    damage("checkpoint.safetensors");
    damage("checkpoint.previous.safetensors");
    let output = bench.run(&["train", "--resume", "run"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        text(&output.stderr).contains("checkpoint.safetensors"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn labels_files_and_recipes() {
    let bench = Bench::new();
    bench.ok(&[
        "data",
        "noise",
        "--out",
        "labels",
        "--rate",
        "0.4",
        "--meta-per-class",
        "10",
    ]);
    let drawn = bench.train("drawn", &[]);
    let given = bench.train("given", &["--labels", "labels"]);
    assert_eq!(hash(&drawn), hash(&given));

    // The resolved configuration is a recipe for the same run.
    let config = bench.path("drawn/config.toml");
    let recipe = fs::read_to_string(&config).unwrap();
    let recipe: Vec<&str> = recipe.lines().filter(|line| !line.starts_with("out")).collect();
    fs::write(bench.path("recipe.toml"), recipe.join("\n")).unwrap();
    bench.ok(&["train", "--config", "recipe.toml", "--out", "again"]);
    assert_eq!(hash(&bench.json("again/summary.json")), hash(&drawn));
}

#[test]
fn compare_tabulates_the_same_runs() {
    let bench = Bench::new();
    let words: Vec<&str> = [
        "compare",
        "--methods",
        "ce,l2b",
        "--noise",
        "0.2,0.6",
        "--seeds",
        "2",
        "--out",
        "c",
    ]
    .iter()
    .chain(&TINY)
    .copied()
    .collect();
    let shown = bench.ok(&words);
    assert!(
        shown.contains("| 60 % |") && shown.contains("l2b − ce"),
        "{shown}"
    );
    assert_eq!(bench.names("c"), ["compare.csv", "compare.json", "compare.md"]);
    let comparison = bench.json("c/compare.json");
    let runs = comparison["runs"].as_array().unwrap();
    assert_eq!(
        (runs.len(), comparison["table"].as_array().unwrap().len()),
        (8, 4)
    );
    assert_eq!(
        fs::read_to_string(bench.path("c/compare.csv"))
            .unwrap()
            .lines()
            .count(),
        9
    );
    // Alone or side by side with others: the same bits.
    let alone = bench.train("alone", &["--noise", "0.6", "--seed", "1"]);
    let same = |r: &&Value| r["method"] == "l2b" && r["noise"] == 0.6 && r["seed"] == 1;
    let row = runs.iter().find(same).unwrap();
    assert_eq!(hash(row), hash(&alone));
    // Both methods of a seed saw the same labels.
    let realised: Vec<f64> = runs
        .iter()
        .filter(|r| r["noise"] == 0.6 && r["seed"] == 1)
        .map(|r| r["noise_realised"].as_f64().unwrap())
        .collect();
    assert_eq!((realised.len(), realised[0]), (2, realised[1]));
}

#[test]
fn divergence_keeps_the_last_good_state() {
    let bench = Bench::new();
    let words: Vec<&str> = ["train", "--out", "run", "--lr", "1e30", "--method", "ce"]
        .iter()
        .chain(&TINY)
        .copied()
        .collect();
    let output = bench.run(&words);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{error}");
    for part in ["diverged at step", "--lr", "kept in run"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(bench.names("run").contains(&"checkpoint.safetensors".to_owned()));
    assert!(!bench.path("run/summary.json").exists());
}

/// Each: options, exit code, parts of the message. All leave the folder as it was.
#[test]
fn bad_input_is_refused_by_name_and_leaves_nothing() {
    let bench = Bench::new();
    fs::create_dir(bench.path("taken")).unwrap();
    fs::create_dir(bench.path("empty")).unwrap();
    fs::write(bench.path("bad.toml"), "epochs = 3\nlearning_rate = 0.1\n").unwrap();
    fs::write(bench.path("junk"), "not weights").unwrap();
    fs::write(bench.path("short"), [255; 6]).unwrap();
    let before = bench.names(".");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["train", "--learning-rate", "1"], 2, &["--learning-rate"]),
        (&["train", "--epochs", "many"], 2, &["--epochs", "many"]),
        (&["train", "--method", "l2c"], 2, &["l2c", "bootstrap"]),
        (&["train", "--precision", "f16"], 2, &["f16", "f32"]),
        (&["train", "--device", "gpu"], 2, &["gpu", "cuda:N"]),
        (
            &["train", "--device", "cuda", "--precision", "f64"],
            2,
            &["--precision", "f64", "cpu"],
        ),
        (&["train", "--device", "cuda:99"], 4, &["cuda:99", "hint"]),
        (
            &["train", "--config", "bad.toml"],
            2,
            &["bad.toml", "learning_rate", "line 2"],
        ),
        (&["train", "--config", "none.toml"], 1, &["none.toml"]),
        (&["train", "--data", "nowhere"], 3, &["nowhere", "dataset.toml"]),
        (
            &["train", "--data", "empty"],
            3,
            &["empty", "dataset.toml", "data pack"],
        ),
        (&["train", "--labels", "junk"], 3, &["junk"]),
        (&["train", "--noise", "1.4"], 2, &["--noise", "0 to 1", "1.4"]),
        (&["train", "--noise-kind", "salt"], 2, &["salt", "uniform"]),
        (
            &["train", "--batch", "1338"],
            2,
            &["--batch", "1 to 1337", "1338"],
        ),
        (
            &["train", "--meta-batch", "101"],
            2,
            &["--meta-batch", "1 to 100", "101"],
        ),
        (
            &["train", "--meta-per-class", "4000"],
            2,
            &["clean images per class", "4000"],
        ),
        (
            &["train", "--meta-split", "validation"],
            2,
            &["validation", "train"],
        ),
        (&["train", "--meta-split", "test"], 2, &["--meta-split", "test"]),
        (&["train", "--warm-up", "30"], 2, &["--warm-up", "0 to 29", "30"]),
        (
            &["train", "--inner-product", "contraction"],
            2,
            &["contraction", "--norm frozen"],
        ),
        (&["train", "--width", "0"], 2, &["width"]),
        (&["train", "--blocks", "1,0"], 2, &["blocks"]),
        (&["train", "--out", "taken"], 2, &["--out", "taken"]),
        (&["train", "--resume", "taken"], 2, &["--resume", "taken"]),
        (
            &["train", "--resume", "taken", "--lr", "1"],
            2,
            &["--lr", "--resume"],
        ),
        (&["train", "--width", "65536"], 4, &["bytes needed", "free"]),
        (&["eval", "--weights", "none"], 1, &["none"]),
        (&["eval", "--weights", "junk"], 3, &["junk", "safetensors"]),
        (&["eval", "--weights", "short"], 3, &["short", "safetensors"]),
        (&["predict", "--weights", "junk", "--out", "p.csv"], 3, &["junk"]),
        (&["compare", "--methods", "ce,best"], 2, &["best"]),
        (&["compare", "--seeds", "0"], 2, &["--seeds"]),
        (&["compare", "--out", "taken"], 2, &["taken"]),
        (&["compare", "--labels", "junk"], 2, &["--labels"]),
        (&["compare", "--warm-up", "30"], 2, &["--warm-up"]),
        (&["meta-step", "--input", "junk", "--output", "o"], 3, &["junk"]),
        (&["dance"], 2, &["dance"]),
    ];
    for (words, code, parts) in cases {
        let output = bench.run(words);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{words:?}: {error}");
        for part in *parts {
            assert!(error.contains(part), "{words:?}: {part:?} is not in: {error}");
        }
        assert!(
            !error.contains("panicked") && !error.contains("internal error"),
            "{words:?}: {error}"
        );
        assert_eq!(bench.names("."), before, "{words:?}");
    }
}

#[test]
fn version_and_devices_say_what_can_compute() {
    let bench = Bench::new();
    for words in [["--version"], ["devices"]] {
        let shown = bench.ok(&words);
        assert!(
            shown.contains(env!("CARGO_PKG_VERSION")) && shown.contains("cpu"),
            "{shown}"
        );
    }
}
