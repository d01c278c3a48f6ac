//! The folder of a run: resumed, read, locked, named, damaged.

use std::fs;
use std::process::Stdio;

use super::bench::{Bench, TINY, hash, records, text};

/// Reads the state of a run, as little as there is to do with it.
const READ: [&str; 7] = [
    "numerics",
    "--run",
    "run",
    "--batches",
    "1",
    "--precisions",
    "f32",
];

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

/// While a run goes on, others may read its folder but not train it.
#[test]
fn one_process_trains_a_run() {
    let bench = Bench::new();
    let words = ["train", "--out", "run", "--epochs", "100000", "--threads", "1"];
    let mut trainer = bench.command(&[&words[..], &TINY[..4], &TINY[8..]].concat());
    let mut trainer = trainer.stdout(Stdio::null()).spawn().unwrap();
    while !bench.path("run/metrics.jsonl").exists() {
        assert!(trainer.try_wait().unwrap().is_none(), "the trainer ended");
        std::thread::yield_now();
    }
    // As a writer leaves it between two calls.
    let half = bench.path("run/.last.safetensors.tmp-1-1");
    fs::write(&half, "half").unwrap();
    let read = bench.run(&READ);
    let second = bench.run(&["train", "--resume", "run"]);
    let still_there = half.exists();
    trainer.kill().unwrap();
    trainer.wait().unwrap();
    assert!(read.status.success(), "{}", text(&read.stderr));
    let error = text(&second.stderr);
    assert_eq!(second.status.code(), Some(2), "{error}");
    assert!(
        error.contains("--resume") && error.contains("run, which one does"),
        "{error}"
    );
    assert!(still_there, "removed under the trainer's hands");

    // With the trainer gone its lock is, and what it left is removed. The resume is to end.
    let config = bench.path("run/config.toml");
    let text_of = fs::read_to_string(&config).unwrap();
    // More than those of the warm-up, and than were done.
    let epochs = 3.max(1 + records(&bench.path("run")).len());
    fs::write(
        &config,
        text_of.replace("epochs = 100000", &format!("epochs = {epochs}")),
    )
    .unwrap();
    bench.ok(&["train", "--resume", "run"]);
    assert!(!half.exists());
}

/// Reading takes the checkpoint before a damaged one, and leaves both where they are.
#[test]
fn reading_changes_nothing() {
    let bench = Bench::new();
    bench.train("run", &[]);
    let checkpoint = bench.path("run/checkpoint.safetensors");
    let bytes = fs::read(&checkpoint).unwrap();
    fs::write(&checkpoint, &bytes[..bytes.len() - 1]).unwrap();
    let before = bench.names("run");
    let shown = bench.ok(&READ);
    assert!(shown.contains("after epoch 2"), "{shown}");
    assert_eq!(bench.names("run"), before);
    assert_eq!(fs::read(&checkpoint).unwrap().len(), bytes.len() - 1);
    let error = text(&bench.run(&["numerics", "--run", "."]).stderr);
    assert!(
        error.starts_with("error: --run: expected a run folder"),
        "{error}"
    );
}

/// Runs of one method and seed, started together without a name.
#[test]
fn runs_without_a_name_do_not_collide() {
    let bench = Bench::new();
    let words = [
        &["train", "--method", "ce", "--epochs", "1", "--threads", "1"],
        &TINY[..4],
        &TINY[6..],
    ]
    .concat();
    let runs = [(); 3].map(|()| bench.command(&words).stdout(Stdio::null()).spawn().unwrap());
    for mut run in runs {
        assert!(run.wait().unwrap().success());
    }
    assert_eq!(bench.names("runs"), ["ce-0-1", "ce-0-2", "ce-0-3"]);
    let summaries = ["ce-0-1", "ce-0-2", "ce-0-3"].map(|run| bench.json(&format!("runs/{run}/summary.json")));
    assert_eq!(hash(&summaries[0]), hash(&summaries[2]));
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

    // A configuration that no longer fits the state is noticed.
    let config = bench.path("run/config.toml");
    let text_of = fs::read_to_string(&config).unwrap();
    fs::write(&config, text_of.replace("batch = 32", "batch = 64")).unwrap();
    let output = bench.run(&["train", "--resume", "run"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("config.toml has been changed"), "{error}");
    fs::write(&config, text_of).unwrap();

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

/// `config.toml` names the device that computed; another machine does not go on on another in silence.
#[test]
fn a_run_stays_on_its_device() {
    let bench = Bench::new();
    bench.ok(&[
        "train", "--out", "run", "--method", "ce", "--width", "4", "--blocks", "1", "--epochs", "1",
    ]);
    let path = bench.path("run/config.toml");
    let config = fs::read_to_string(&path).unwrap();
    let device = config.lines().find(|line| line.starts_with("device")).unwrap();
    assert!(
        device != "device = \"auto\"" && config.contains("precision = "),
        "{config}"
    );
    fs::write(&path, config.replace(device, "device = \"cuda:99\"")).unwrap();
    let refused = |words: &[&str], parts: &[&str]| {
        let output = bench.run(words);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{error}");
        for part in ["cuda:99", "--device auto"].iter().chain(parts) {
            assert!(error.contains(part), "{error}");
        }
    };
    refused(
        &["train", "--resume", "run"],
        &["--config run/config.toml", "--out"],
    );
    refused(&["train", "--config", "run/config.toml", "--out", "new"], &[]);
    assert!(!bench.path("new").exists());
    bench.ok(&[
        "train",
        "--config",
        "run/config.toml",
        "--device",
        "auto",
        "--out",
        "new",
    ]);
}
