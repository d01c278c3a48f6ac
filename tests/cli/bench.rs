//! The binary in a folder of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A network that trains in a fraction of a second, on what every machine has.
pub const TINY: [&str; 10] = [
    "--width", "8", "--blocks", "1,1", "--epochs", "3", "--batch", "32", "--device", "cpu",
];

/// `l2b` in a folder of its own, which is removed at the end.
pub struct Bench(tempfile::TempDir);

impl Bench {
    pub fn new() -> Self {
        Bench(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_l2b"));
        // The bundled dataset is unpacked here, not in the user's cache.
        command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
        command.current_dir(self.0.path()).args(words);
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Standard output of a run that must succeed.
    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub fn train(&self, out: &str, more: &[&str]) -> Value {
        let words: Vec<&str> = ["train", "--out", out]
            .iter()
            .chain(&TINY)
            .chain(more)
            .copied()
            .collect();
        self.ok(&words);
        self.json(&format!("{out}/summary.json"))
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    /// Names in the folder, sorted.
    pub fn names(&self, folder: &str) -> Vec<String> {
        names(&self.path(folder))
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn hash(summary: &Value) -> &str {
    summary["weights_sha256"]
        .as_str()
        .filter(|h| h.len() == 64)
        .unwrap()
}

/// Records of `metrics.jsonl` without what the clock says.
pub fn records(folder: &Path) -> Vec<Value> {
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
