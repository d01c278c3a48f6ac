//! Train, evaluate, predict; recipes.

use std::collections::BTreeSet;
use std::fs;

use l2b::tensor_file::TensorFile;
use serde_json::Value;

use super::bench::{Bench, TINY, hash, records, text};

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
            "events.out.tfevents.l2b",
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
        last > 0.6 && last <= summary["best_accuracy"].as_f64().unwrap(),
        "{last}"
    );
    let records = records(&bench.path("runs/l2b-0-1"));
    assert_eq!(records.len(), 3);
    assert_eq!(records[2]["test_accuracy"].as_f64(), Some(last));
    // Two epochs of warm-up, then weights.
    assert_eq!(
        (
            records[1]["objective"].as_str(),
            records[1]["alpha_clean"].as_f64()
        ),
        (Some("cross_entropy"), None)
    );
    assert_eq!(records[2]["objective"].as_str(), Some("l2b"));
    for key in ["alpha_clean", "alpha_corrupted", "beta_clean", "beta_corrupted"] {
        let mean = records[2][key].as_f64().unwrap();
        // 64 weights of a batch sum to 1.
        assert!(mean > 0.0 && mean < 4.0 / 64.0, "{key}: {mean}");
    }

    let weights = "runs/l2b-0-1/last.safetensors";
    let scores: Value =
        serde_json::from_str(&bench.ok(&["eval", "--device", "cpu", "--weights", weights, "--json"]))
            .unwrap();
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
        "--device",
        "cpu",
        "--weights",
        weights,
        "--eval-batch",
        "50",
        "--out",
        "p.csv",
    ]);
    let csv = fs::read_to_string(bench.path("p.csv")).unwrap();
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("id,label,p0,p1,p2,p3,p4,p5,p6,p7,p8,p9,given"));
    let mut right = 0.0;
    for (id, line) in lines.clone().enumerate() {
        let cells: Vec<f64> = line.split(',').map(|c| c.parse().unwrap()).collect();
        assert_eq!((cells.len(), cells[0]), (13, id as f64));
        let probabilities = &cells[2..12];
        assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-7, "{line}");
        let top = probabilities.iter().copied().fold(0.0, f64::max);
        assert_eq!(probabilities[cells[1] as usize], top);
        right += f64::from(u8::from(cells[1] == cells[12]));
    }
    approx::assert_relative_eq!(right / 360.0, last, max_relative = 1e-12);
    assert_eq!(lines.count(), 360);
    // An existing file is never replaced.
    let again = bench.run(&["predict", "--weights", weights, "--out", "p.csv"]);
    assert_eq!(again.status.code(), Some(2));
    let error = text(&again.stderr);
    assert!(
        error.contains("--out") && error.contains("predictions are never"),
        "{error}"
    );
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
    let cases: [(&str, &[&str]); 7] = [
        (
            "cross_entropy",
            &["--method", "ce", "--schedule", "step", "--milestones", "1,2"],
        ),
        (
            "bootstrap",
            &[
                "--method",
                "bootstrap",
                "--schedule",
                "constant",
                "--clip",
                "0.25",
            ],
        ),
        (
            "reweight",
            &[
                "--method",
                "l2rw",
                "--virtual-step",
                "plain",
                "--weights",
                "sigmoid",
            ],
        ),
        ("cross_entropy", &["--method", "clean", "--meta-batch", "50"]),
        (
            "l2b",
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
        ),
        (
            "l2b",
            &["--weights", "hard", "--threshold", "0.001", "--precision", "f64"],
        ),
        (
            "l2b",
            &[
                "--norm",
                "frozen",
                "--inner-product",
                "contraction",
                "--lr",
                "0.01",
            ],
        ),
    ];
    let mut hashes = BTreeSet::new();
    for (number, (objective, words)) in cases.into_iter().enumerate() {
        let out = number.to_string();
        let summary = bench.train(&out, words);
        let records = records(&bench.path(&out));
        assert_eq!(records[2]["objective"].as_str(), Some(objective), "{words:?}");
        // A class at random is right in 10 % of 360, σ = 1.6 %.
        let best = summary["best_accuracy"].as_f64().unwrap();
        assert!(best > 0.18, "{words:?}: {best}");
        hashes.insert(hash(&summary).to_owned());
    }
    assert_eq!(hashes.len(), 7);
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

    // Other labels in the file's place are noticed; a checkpoint from before they were noted is not refused.
    fs::remove_file(bench.path("labels")).unwrap();
    let again = "data noise --out labels --rate 0.4 --meta-per-class 10 --seed 1";
    bench.ok(&again.split(' ').collect::<Vec<_>>());
    let output = bench.run(&["train", "--resume", "given"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(
        error.contains("labels_sha256") && error.contains("labels has been replaced"),
        "{error}"
    );
    let path = bench.path("given/checkpoint.safetensors");
    let mut checkpoint = TensorFile::load(&path).unwrap();
    checkpoint.metadata.remove("labels_sha256").unwrap();
    checkpoint.save(&path).unwrap();
    bench.ok(&["train", "--resume", "given"]);

    // The resolved configuration is a recipe for the same run.
    let config = bench.path("drawn/config.toml");
    let recipe = fs::read_to_string(&config).unwrap();
    let recipe: Vec<&str> = recipe.lines().filter(|line| !line.starts_with("out")).collect();
    fs::write(bench.path("recipe.toml"), recipe.join("\n")).unwrap();
    bench.ok(&["train", "--config", "recipe.toml", "--out", "again"]);
    assert_eq!(hash(&bench.json("again/summary.json")), hash(&drawn));
}

/// Options win over a run's own configuration and what it derived from them: other budgets are other runs.
#[test]
fn compare_takes_budgets_over_a_runs_configuration() {
    let bench = Bench::new();
    bench.train("run", &[]);
    let shown = bench.ok(&[
        "compare",
        "--config",
        "run/config.toml",
        "--methods",
        "l2b",
        "--meta-budget",
        "full,fast",
        "--seeds",
        "1",
        "--out",
        "c",
    ]);
    assert!(shown.contains("l2b, fast − l2b, full"), "{shown}");
    let runs = bench.json("c/compare.json")["runs"].clone();
    assert_eq!(hash(&runs[0]), hash(&bench.json("run/summary.json")));
    assert_ne!(hash(&runs[0]), hash(&runs[1]));
}

/// A budget by name is the run with its numbers; numbers win over it.
#[test]
fn budgets_have_names() {
    let bench = Bench::new();
    let fast = bench.train("fast", &["--meta-budget", "fast"]);
    let split = |options: &'static str| options.split(' ').collect::<Vec<_>>();
    let numbers = split("--meta-batch 12 --meta-draw stratified --meta-depth 2");
    let numbers = bench.train("numbers", &numbers);
    assert_eq!(hash(&fast), hash(&numbers));
    // The clean images alone are trained on without a meta pass, which a budget is of.
    let clean = bench.train("clean", &split("--method clean"));
    let budget = bench.train("clean fast", &split("--method clean --meta-budget fast"));
    assert_eq!(hash(&clean), hash(&budget));
    let full = split("--meta-budget fast --meta-batch 32 --meta-draw uniform --meta-depth all");
    let full = bench.train("full", &full);
    assert_eq!(hash(&full), hash(&bench.train("default", &[])));
    assert_ne!(hash(&full), hash(&fast));
    let config = fs::read_to_string(bench.path("fast/config.toml")).unwrap();
    for line in [
        "meta_budget = \"fast\"",
        "meta_batch = 12",
        "meta_draw = \"stratified\"",
        "meta_depth = 2",
    ] {
        assert!(config.contains(line), "{line}: {config}");
    }
}

/// The same run through the CUDA kernels: loader, augmentation, steps, evaluation.
#[cfg(feature = "emulator")]
#[test]
fn the_cuda_kernels_train_as_the_cpu_does() {
    let bench = Bench::new();
    let options = [
        "--width",
        "5",
        "--blocks",
        "1,1",
        "--epochs",
        "2",
        "--warm-up",
        "1",
        "--pad",
        "1",
        "--flip",
        // A budget of its own: the whole meta step is what the fixtures check.
        "--meta-batch",
        "16",
        "--meta-depth",
        "1",
    ];
    let run = |device: &str| {
        let words = ["train", "--device", device, "--out", device];
        bench.ok(&words.iter().chain(&options).copied().collect::<Vec<_>>());
        records(&bench.path(device))
    };
    let (cpu, cuda) = (run("cpu"), run("emulator"));
    assert_eq!(bench.json("emulator/summary.json")["device"], "emulator");
    assert_eq!((cpu.len(), cuda.len()), (2, 2));
    for (cpu, cuda) in cpu.iter().zip(&cuda) {
        for key in [
            "train_loss",
            "objective_loss",
            "test_loss",
            "gradient_norm",
            "train_accuracy",
        ] {
            let (cpu, cuda) = (cpu[key].as_f64().unwrap(), cuda[key].as_f64().unwrap());
            // f32 roundings, grown over 42 steps; a wrong label, crop or weight shows in the second digit.
            approx::assert_relative_eq!(cpu, cuda, max_relative = 2e-3);
        }
    }
}
