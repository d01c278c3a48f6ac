//! `dataset.toml`: what a dataset folder holds. Unknown keys are refused; every field is checked at open.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

/// Name of the manifest inside a dataset folder.
pub const MANIFEST: &str = "dataset.toml";

/// A manifest of a hundred thousand shards stays below this; a larger file is not one.
const MAX_BYTES: u64 = 64 << 20;

/// A set of which one byte in a million differs by 1 has about this: less is a mistake.
const LOWEST_STD: f64 = 1e-6;

/// Content of `dataset.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: String,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    pub channels: u32,
    pub height: u32,
    pub width: u32,
    /// Per channel, of u8 / 255.
    pub mean: Vec<f64>,
    /// Per channel, of u8 / 255.
    pub std: Vec<f64>,
    /// Shards of each split; sample ids run through them in this order.
    pub splits: BTreeMap<String, Vec<ShardEntry>>,
}

/// One shard of a split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name inside the dataset folder.
    pub file: String,
    /// Number of samples.
    pub count: u32,
    /// Hash of the whole file in lower-case hex, for `l2b data info --verify`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Manifest {
    /// Reads and checks the manifest of a dataset folder.
    ///
    /// # Errors
    /// `Io` if it cannot be read, `Data` naming the key that is wrong.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let size = match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => found.len(),
            Ok(_) => return Err(not_a_dataset(folder, "something that is not a file")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(not_a_dataset(folder, "no such file"));
            }
            Err(e) => return Err(Error::io(&path, e)),
        };
        if size > MAX_BYTES {
            let found = format!("{size} bytes");
            return Err(Error::data(
                &path,
                "size",
                format!("at most {MAX_BYTES} bytes"),
                found,
                "",
            ));
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let manifest: Manifest = std::str::from_utf8(&bytes)
            .map_err(|e| e.to_string())
            .and_then(|text| toml::from_str(text).map_err(|e| e.to_string()))
            .map_err(|found| {
                let hint = "the keys are name, classes, channels, height, width, mean, std and [[splits.NAME]] \
                            with file, count and optionally sha256";
                Error::data(&path, "manifest", "valid TOML", found.trim(), hint)
            })?;
        manifest.check(&path)?;
        Ok(manifest)
    }

    /// Checks every field; `path` is named in the error.
    ///
    /// # Errors
    /// `Data` naming the key.
    pub fn check(&self, path: &Path) -> Result<()> {
        let refuse = |what: &str, expected: String, found: String, hint: &str| {
            Err(Error::data(path, what, expected, found, hint))
        };
        if !(2..=65_536).contains(&self.classes.len()) {
            let found = self.classes.len().to_string();
            return refuse("classes", "2 to 65536 names".into(), found, "");
        }
        let mut names = BTreeSet::new();
        if let Some(name) = self.classes.iter().find(|n| n.is_empty() || !names.insert(*n)) {
            let expected = "names that differ and are not empty".into();
            return refuse("classes", expected, format!("{name:?} again or empty"), "");
        }
        for (what, size, most) in [
            ("channels", self.channels, 64),
            ("height", self.height, 16_384),
            ("width", self.width, 16_384),
        ] {
            if !(1..=most).contains(&size) {
                return refuse(what, format!("1 to {most}"), size.to_string(), "");
            }
        }
        let channels = self.channels as usize;
        for (what, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != channels {
                let expected = format!("{channels} values, one per channel");
                return refuse(what, expected, values.len().to_string(), "");
            }
            // Written so that NaN fails.
            let lowest = if what == "std" { LOWEST_STD } else { 0.0 };
            if let Some(bad) = values.iter().find(|&&v| !(lowest..=1.0).contains(&v)) {
                let expected = match what {
                    "std" => "finite values from 1e-6 to 1",
                    _ => "finite values from 0 to 1",
                };
                return refuse(what, expected.into(), bad.to_string(), "values are of u8 / 255");
            }
        }
        self.check_splits(path)
    }

    fn check_splits(&self, path: &Path) -> Result<()> {
        if self.splits.is_empty() {
            return Err(Error::data(
                path,
                "splits",
                "at least one [[splits.NAME]]",
                "none",
                "",
            ));
        }
        let mut files = BTreeSet::new();
        for (split, shards) in &self.splits {
            let refuse = |what: String, expected: &str, found: String| {
                Err(Error::data(path, what, expected, found, ""))
            };
            if !is_split_name(split) {
                let expected = "letters, digits, - and _";
                return refuse("name of a split".into(), expected, format!("{split:?}"));
            }
            if shards.is_empty() {
                return refuse(format!("splits.{split}"), "at least one shard", "none".into());
            }
            let mut total = 0u32;
            for (number, shard) in shards.iter().enumerate() {
                let what = |key| format!("splits.{split}[{number}].{key}");
                if !is_plain_file_name(&shard.file) {
                    let expected = "the name of a file in the dataset folder";
                    return refuse(what("file"), expected, format!("{:?}", shard.file));
                }
                // A shard in two splits would let test images into training.
                if !files.insert(&shard.file) {
                    let expected = "a file that no other entry names";
                    return refuse(what("file"), expected, format!("{:?} again", shard.file));
                }
                total = match total.checked_add(shard.count) {
                    Some(total) if shard.count > 0 && total <= i32::MAX as u32 => total,
                    _ => {
                        let expected = "at least 1, and a sum per split below 2^31";
                        return refuse(what("count"), expected, shard.count.to_string());
                    }
                };
                let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
                if let Some(hash) = &shard.sha256
                    && (hash.len() != 64 || !hash.bytes().all(hex))
                {
                    let expected = "64 lower-case hex digits";
                    return refuse(what("sha256"), expected, format!("{hash:?}"));
                }
            }
        }
        Ok(())
    }

    /// Bytes of one image, H·W·C.
    pub fn image_bytes(&self) -> usize {
        self.height as usize * self.width as usize * self.channels as usize
    }
}

/// Names of splits go into file names.
pub(super) fn is_split_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !name.is_empty() && name.chars().all(plain)
}

/// One path component and nothing else: no folder, no `..`, no separator of another system.
fn is_plain_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['\\', '\0', ':'])
}

fn not_a_dataset(folder: &Path, found: &str) -> Error {
    let hint = "a dataset is a folder that holds dataset.toml; `l2b data pack` makes one";
    Error::data(folder, MANIFEST, "a manifest in this folder", found, hint)
}
