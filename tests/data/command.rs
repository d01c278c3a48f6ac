//! `l2b data` from the command line: output, exit codes, messages.

use crate::hostile_files::write_idx_set;
use assert_cmd::Command;
use l2b::data::dataset::Dataset;
use l2b::data::source::Access;
use std::fs;
use std::path::Path;

fn l2b(folder: &Path, arguments: &str) -> Command {
    let mut command = Command::cargo_bin("l2b").unwrap();
    command
        .current_dir(folder)
        .env("XDG_CACHE_HOME", folder)
        .args(arguments.split(' '));
    command
}

#[track_caller]
fn ok(folder: &Path, arguments: &str) -> String {
    let output = l2b(folder, arguments).assert().success().get_output().clone();
    assert!(output.stderr.is_empty(), "progress is for terminals");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn fails(folder: &Path, arguments: &str, code: i32, word: &str) {
    let output = l2b(folder, arguments).assert().code(code).get_output().clone();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(word) && !text.contains("panicked"), "{text}");
    assert!(output.stdout.is_empty());
}

#[test]
fn pack_noise_info() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("raw")).unwrap();
    write_idx_set(&at.join("raw"), 100, 10, |i| (i % 5) as u8);
    let text = ok(at, "data pack raw --out mini --classes a,b,c,d,e");
    assert!(text.starts_with("mini: 5 classes, images 1 × 2 × 3"), "{text}");
    assert!(text.contains("\na         2     20\n"), "{text}");
    fails(at, "data pack raw --out mini", 2, "does not exist yet");
    fails(at, "data pack nowhere --out other", 3, "train-images");
    assert!(!at.join("other").exists());

    let text = ok(
        at,
        "data noise mini --out n.st --kind uniform-other --rate 0.25 --meta-per-class 4 --seed 2",
    );
    assert!(
        text.contains("uniform-other            20  25.00 %   25.00 %"),
        "{text}"
    );
    assert!(text.contains("expected changed: 25.00 %"), "{text}");
    fails(at, "data noise mini --out n.st --rate 0.25", 2, "n.st");
    fails(at, "data noise mini --out m.st --rate nan", 2, "noise rate");
    fails(
        at,
        "data noise mini --out m.st --rate 0.2 --kind asymmetric",
        2,
        "10 classes",
    );
    fails(
        at,
        "data noise mini --out m.st --rate 0.2 --meta-per-class 21",
        2,
        "\"a\" with 20",
    );
    fails(
        at,
        "data noise mini --out m.st --rate 0.2 --split val",
        2,
        "\"val\"",
    );
    assert!(!at.join("m.st").exists());

    let text = ok(at, "data info mini --verify --labels n.st");
    let dataset = Dataset::open(&at.join("mini"), Access::Map).unwrap();
    for split in dataset.splits() {
        assert!(text.contains(split.fingerprint()), "{text}");
    }
    assert!(text.contains("n.st    train  uniform-other"), "{text}");
    assert!(
        text.contains("verified 2 shards: 2 equal their sha256, 2 their checksums"),
        "{text}"
    );
    fails(at, "data info digits --labels n.st", 3, "another dataset");
    fails(at, "data info nowhere", 3, "dataset.toml");
    let shard = at.join("mini/test-00000.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(shard, bytes).unwrap();
    fails(at, "data info mini --verify", 3, "test-00000.safetensors");
}

#[test]
fn the_bundled_dataset_is_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let text = ok(folder.path(), "data info --no-mmap --verify");
    assert!(
        text.contains("digits: 10 classes") && text.contains("train    1437"),
        "{text}"
    );
    assert_eq!(fs::read_dir(folder.path().join("l2b")).unwrap().count(), 1);
}
