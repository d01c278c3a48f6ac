//! Small datasets with distinct bytes, and ways to spoil them.

use l2b::Error;
use l2b::data::dataset::Dataset;
use l2b::data::manifest::Manifest;
use l2b::data::source::Access;
use l2b::data::writer::{DatasetWriter, Samples};
use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

/// Both ways of reading.
pub const ACCESS: [Access; 2] = [Access::Map, Access::Read];

/// 3 classes, images of 2×3 with 2 channels.
pub fn manifest() -> Manifest {
    Manifest {
        name: "tiny".into(),
        classes: ["ant", "bee", "cat"].map(str::to_owned).to_vec(),
        channels: 2,
        height: 2,
        width: 3,
        mean: vec![],
        std: vec![],
        splits: Default::default(),
    }
}

pub const IMAGE: usize = 12;
pub const MASK: usize = 6;

/// Values of a split that no other place repeats nearby.
pub struct Values {
    pub images: Vec<u8>,
    pub labels: Vec<i32>,
    pub clean_labels: Vec<i32>,
    pub masks: Vec<u8>,
    pub ids: Vec<i64>,
}

pub fn values(n: usize, salt: usize) -> Values {
    Values {
        images: (0..n * IMAGE).map(|i| ((i + salt) * 89 % 251) as u8).collect(),
        labels: (0..n).map(|i| ((i + salt) % 3) as i32).collect(),
        clean_labels: (0..n).map(|i| ((i + salt) * 2 % 3) as i32).collect(),
        masks: (0..n * MASK).map(|i| ((i * 5 + salt) % 7) as u8).collect(),
        ids: (0..n).map(|i| (i as i64 - 2) * 1_000_000_007).collect(),
    }
}

impl Values {
    /// The shard of samples `rows`.
    pub fn shard(&self, rows: std::ops::Range<usize>, optional: bool) -> Samples<'_> {
        Samples {
            images: &self.images[rows.start * IMAGE..rows.end * IMAGE],
            labels: &self.labels[rows.clone()],
            clean_labels: optional.then_some(&self.clean_labels[rows.clone()]),
            masks: optional.then_some(&self.masks[rows.start * MASK..rows.end * MASK]),
            ids: optional.then_some(&self.ids[rows]),
        }
    }
}

/// Train of 7 samples in shards of 4 and 3 with all optional tensors, test of 2 without; in `folder/set`.
///
/// Written once by the writer, then copied: syncing to disk hundreds of times would take most of the tests' time.
pub fn tiny(folder: &TempDir) -> PathBuf {
    static FILES: OnceLock<Vec<(OsString, Vec<u8>)>> = OnceLock::new();
    let files = FILES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = write_tiny(&folder);
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap()))
            .collect()
    });
    let path = folder.path().join("set");
    std::fs::create_dir(&path).unwrap();
    files
        .iter()
        .for_each(|(name, bytes)| std::fs::write(path.join(name), bytes).unwrap());
    path
}

fn write_tiny(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("set");
    let mut writer = DatasetWriter::create(&path, manifest()).unwrap();
    let (train, test) = (values(7, 0), values(2, 40));
    writer.write_shard("train", train.shard(0..4, true)).unwrap();
    writer.write_shard("train", train.shard(4..7, true)).unwrap();
    writer.write_shard("test", test.shard(0..2, false)).unwrap();
    writer.finish(vec![0.25, 0.5], vec![0.125, 0.375]).unwrap();
    path
}

/// Rewrites a text file.
pub fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    std::fs::write(path, change(std::fs::read_to_string(path).unwrap())).unwrap();
}

/// Takes the hashes out of the manifest, so that only what is inside a shard protects it.
pub fn without_hashes(set: &Path) {
    edit(&set.join("dataset.toml"), |text| {
        text.lines()
            .filter(|line| !line.starts_with("sha256"))
            .map(|line| format!("{line}\n"))
            .collect()
    });
}

/// Opens, verifies and reads everything.
pub fn read_all(set: &Path, access: Access) -> Result<Vec<String>, Error> {
    let dataset = Dataset::open(set, access)?;
    dataset.verify()?;
    let mut all = vec![format!("{:?}", dataset.manifest())];
    for split in dataset.splits() {
        let samples: Vec<u32> = (0..split.len()).collect();
        let mut images = vec![0; samples.len() * IMAGE];
        split.read_images(&samples, &mut images)?;
        let mut masks = vec![
            0;
            if split.has_masks() {
                samples.len() * MASK
            } else {
                0
            }
        ];
        if split.has_masks() {
            split.read_masks(&samples, &mut masks)?;
        }
        let labels = (split.labels(), split.clean_labels(), split.ids());
        all.push(format!("{} {images:?} {masks:?} {labels:?}", split.name()));
    }
    Ok(all)
}

/// Asserts that an error is of this class, names the file and mentions every one of `words`.
#[track_caller]
pub fn assert_error<T>(result: Result<T, Error>, exit_code: u8, words: &[&str]) {
    let error = result.err().expect("an error");
    let text = error.to_string();
    assert_eq!(error.exit_code(), exit_code, "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// A safetensors file from its parts, unchecked.
pub fn raw_safetensors(header: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(payload);
    bytes
}

/// Calls `check` with the number of each bit of a file while that bit is flipped. The byte is changed in place: writing
/// the file anew each time would wait for the disk.
pub fn for_every_flipped_bit(path: &Path, mut check: impl FnMut(usize)) {
    let good = std::fs::read(path).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    for (at, &byte) in good.iter().enumerate() {
        for bit in 0..8 {
            file.write_all_at(&[byte ^ 1 << bit], at as u64).unwrap();
            check(at * 8 + bit);
        }
        file.write_all_at(&[byte], at as u64).unwrap();
    }
}

/// Calls `check` with each length shorter than a file's, longest first, while the file is cut to it; then restores it.
pub fn for_every_truncation(path: &Path, mut check: impl FnMut(usize)) {
    let good = std::fs::read(path).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    for length in (0..good.len()).rev() {
        file.set_len(length as u64).unwrap();
        check(length);
    }
    file.write_all_at(&good, 0).unwrap();
}
