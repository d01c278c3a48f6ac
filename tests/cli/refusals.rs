//! What the binary says to bad input, and what it leaves behind.

use std::fs;

use super::bench::{Bench, TINY, text};

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
    fs::write(bench.path("ce.toml"), "method = \"ce\"\n").unwrap();
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
        (
            &["train", "--device", "cuda:99"],
            4,
            &["cuda:99", "--device auto"],
        ),
        (
            &["train", "--schedule", "step"],
            2,
            &["--milestones", "below 30", "[150]"],
        ),
        (&["numerics", "--method", "l2rw"], 2, &["--method", "l2b", "l2rw"]),
        (
            &["numerics", "--config", "ce.toml"],
            2,
            &["--method", "l2b", "ce"],
        ),
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
        (&["train", "--meta-depth", "4"], 2, &["--meta-depth", "to 3", "4"]),
        (
            &["train", "--meta-depth", "deep"],
            2,
            &["--meta-depth", "deep", "all"],
        ),
        (&["train", "--meta-budget", "free"], 2, &["free", "fast"]),
        (
            &["compare", "--meta-depth", "all,4"],
            2,
            &["--meta-depth", "to 3", "4"],
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
        (
            &["train", "--method", "l2rw", "--weights", "softmax"],
            2,
            &["l2rw", "org or sigmoid", "softmax"],
        ),
        (
            &["compare", "--methods", "ce", "--out", "/proc/none/here"],
            1,
            &["/proc/none"],
        ),
        (&["train", "--warm-up", "30"], 2, &["--warm-up", "0 to 29", "30"]),
        (
            &["train", "--inner-product", "contraction"],
            2,
            &["contraction", "--norm frozen"],
        ),
        (&["train", "--width", "0"], 2, &["width"]),
        (&["train", "--blocks", "1,0"], 2, &["blocks"]),
        (&["train", "--out", "taken"], 2, &["--out", "taken", "--resume"]),
        (&["train", "--resume", "taken"], 2, &["--resume", "taken"]),
        (
            &["train", "--resume", "taken", "--lr", "1"],
            2,
            &["--lr", "--resume"],
        ),
        (&["train", "--width", "16384"], 2, &["parameters"]),
        (&["eval", "--weights", "none"], 1, &["none"]),
        (&["eval", "--weights", "junk"], 3, &["junk", "safetensors"]),
        (&["eval", "--weights", "short"], 3, &["short", "safetensors"]),
        (&["predict", "--weights", "junk", "--out", "p.csv"], 3, &["junk"]),
        (&["compare", "--methods", "ce,best"], 2, &["best"]),
        (&["compare", "--seeds", "0"], 2, &["--seeds"]),
        (
            &["compare", "--out", "taken"],
            2,
            &["--out", "taken", "a comparison"],
        ),
        (&["compare", "--labels", "junk"], 3, &["junk"]),
        (
            &["compare", "--methods", "ce,l2rw", "--meta-batch", "8,101"],
            2,
            &["--meta-batch", "1 to 100", "101"],
        ),
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
