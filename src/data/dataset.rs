//! A dataset folder, open for reading: `dataset.toml` and its shards, all checked before the first batch.
//!
//! A shard is a safetensors file with `images` u8 `[N,H,W,C]` and `labels` i64 `[N]`, and optionally `clean_labels`
//! i64 `[N]`, `masks` u8 `[N,H,W]` and `ids` i64 `[N]` (the
//! writer's own number of each sample). All shards of a split carry the same optional tensors.
//!
//! A *sample id* is a sample's place in its split, counted through the shards in the order of the manifest.

use super::manifest::Manifest;
use super::source::{Access, Column, Source};
use crate::{Error, Result};
use safetensors::Dtype;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tensors a shard may hold.
const TENSORS: [&str; 5] = ["images", "labels", "clean_labels", "masks", "ids"];

/// An open dataset.
#[derive(Debug)]
pub struct Dataset {
    folder: PathBuf,
    manifest: Manifest,
    splits: BTreeMap<String, Arc<Split>>,
}

/// One split: labels in memory, images and masks on disk.
#[derive(Debug)]
pub struct Split {
    name: String,
    image_shape: [usize; 3],
    shards: Vec<Shard>,
    labels: Vec<i32>,
    clean_labels: Option<Vec<i32>>,
    ids: Option<Vec<i64>>,
    fingerprint: String,
}

#[derive(Debug)]
struct Shard {
    source: Source,
    /// Sample id of its first sample.
    first: u32,
    images: Column,
    masks: Option<Column>,
    sha256: Option<String>,
}

/// What [`Dataset::verify`] could check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub shards: usize,
    /// Shards whose whole content was compared with the manifest's sha256.
    pub hashed: usize,
    /// Shards whose images carry block checksums.
    pub checksummed: usize,
}

impl Dataset {
    /// Opens a dataset folder and checks the manifest, every shard's header, shapes, types and lengths, and the range
    /// of every label.
    ///
    /// # Errors
    /// `Io`, or `Data` naming file and field.
    pub fn open(folder: &Path, access: Access) -> Result<Self> {
        let manifest = Manifest::read(folder)?;
        let mut splits = BTreeMap::new();
        for name in manifest.splits.keys() {
            splits.insert(
                name.clone(),
                Arc::new(Split::open(folder, &manifest, name, access)?),
            );
        }
        Ok(Dataset {
            folder: folder.to_owned(),
            manifest,
            splits,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// All splits by name.
    pub fn splits(&self) -> impl Iterator<Item = &Arc<Split>> {
        self.splits.values()
    }

    /// A split by name.
    ///
    /// # Errors
    /// `Config` listing the splits there are.
    pub fn split(&self, name: &str) -> Result<Arc<Split>> {
        self.splits.get(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = self.splits.keys().map(String::as_str).collect();
            let what = format!("split of {}", self.folder.display());
            Error::config(
                what,
                format!("one of {}", names.join(", ")),
                format!("{name:?}"),
                "",
            )
        })
    }

    /// Compares every shard in full with its sha256 where the manifest has one, and with its checksums where it carries
    /// them; a shard with neither has only passed the checks of [`Dataset::open`].
    ///
    /// # Errors
    /// `Data` naming shard and hash or block, `Io`.
    pub fn verify(&self) -> Result<Verified> {
        let mut verified = Verified::default();
        for shard in self.splits.values().flat_map(|split| &split.shards) {
            verified.shards += 1;
            let source = &shard.source;
            for column in std::iter::once(&shard.images).chain(&shard.masks) {
                source.verify(column)?;
            }
            verified.checksummed += usize::from(shard.images.has_checksums());
            if let Some(expected) = &shard.sha256 {
                let found = sha256_file(source.path())?;
                if found != *expected {
                    let hint = "the shard is not the one that the manifest was written for, or it is damaged";
                    return Err(Error::data(source.path(), "sha256", expected, found, hint));
                }
                verified.hashed += 1;
            }
        }
        Ok(verified)
    }
}

impl Split {
    fn open(folder: &Path, manifest: &Manifest, name: &str, access: Access) -> Result<Self> {
        let (mut shards, mut labels, mut first) = (Vec::new(), Vec::new(), 0);
        let (mut clean_labels, mut ids) = (Some(Vec::new()), Some(Vec::new()));
        let mut kinds: Option<([bool; 3], PathBuf)> = None;
        let [n_classes, c, h, w] = [
            manifest.classes.len() as u32,
            manifest.channels,
            manifest.height,
            manifest.width,
        ];
        let [c, h, w] = [c, h, w].map(|x| x as usize);
        for entry in &manifest.splits[name] {
            let path = folder.join(&entry.file);
            let source = Source::open(&path, access)?;
            source.check_names(&TENSORS)?;
            let n = entry.count as usize;
            let shaped = |column: Column, name: &str, expected: &[usize]| {
                if column.shape() == expected {
                    return Ok(column);
                }
                let (expected, found) = (format!("{expected:?}"), format!("{:?}", column.shape()));
                let hint = "images are [N,H,W,C]; N, H, W and C stand in dataset.toml";
                Err(Error::data(
                    &path,
                    format!("shape of {name}"),
                    expected,
                    found,
                    hint,
                ))
            };
            let images = shaped(source.column("images", Dtype::U8)?, "images", &[n, h, w, c])?;
            let masks = match source.optional_column("masks", Dtype::U8)? {
                Some(masks) => Some(shaped(masks, "masks", &[n, h, w])?),
                None => None,
            };
            let column = shaped(source.column("labels", Dtype::I64)?, "labels", &[n])?;
            labels.extend(read_labels(&source, &column, "labels", n_classes)?);
            let clean = source.optional_column("clean_labels", Dtype::I64)?;
            let own_ids = source.optional_column("ids", Dtype::I64)?;
            let here = [clean.is_some(), masks.is_some(), own_ids.is_some()];
            let (kinds, before) = kinds.get_or_insert_with(|| (here, path.clone()));
            if *kinds != here {
                let expected = format!("the optional tensors of {}", before.display());
                let hint = "clean_labels, masks and ids are in all shards of a split or in none";
                return Err(Error::data(&path, "tensors", expected, "others", hint));
            }
            match (clean, &mut clean_labels) {
                (Some(column), Some(all)) => {
                    let column = shaped(column, "clean_labels", &[n])?;
                    all.extend(read_labels(&source, &column, "clean_labels", n_classes)?);
                }
                _ => clean_labels = None,
            }
            match (own_ids, &mut ids) {
                (Some(column), Some(all)) => all.extend(read_i64(&source, &shaped(column, "ids", &[n])?)?),
                _ => ids = None,
            }
            let sha256 = entry.sha256.clone();
            shards.push(Shard {
                source,
                first,
                images,
                masks,
                sha256,
            });
            first += entry.count;
        }
        let mut split = Split {
            name: name.to_owned(),
            image_shape: [h, w, c],
            shards,
            labels,
            clean_labels,
            ids,
            fingerprint: String::new(),
        };
        split.fingerprint = split.compute_fingerprint(manifest);
        Ok(split)
    }

    /// Its name in the manifest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of samples; at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a split is never empty")]
    pub fn len(&self) -> u32 {
        self.labels.len() as u32
    }

    /// `[H, W, C]`.
    pub fn image_shape(&self) -> [usize; 3] {
        self.image_shape
    }

    /// Observed label of each sample, in [0, classes).
    pub fn labels(&self) -> &[i32] {
        &self.labels
    }

    /// True label of each sample, where the dataset knows it.
    pub fn clean_labels(&self) -> Option<&[i32]> {
        self.clean_labels.as_deref()
    }

    /// The writer's own number of each sample.
    pub fn ids(&self) -> Option<&[i64]> {
        self.ids.as_deref()
    }

    /// Whether there are masks.
    pub fn has_masks(&self) -> bool {
        self.shards.iter().all(|shard| shard.masks.is_some())
    }

    /// Names this split's content in overlays: sha256 over name, classes, image shape, count, labels and, where shards
    /// carry them, the checksums of the images; the folder's name and the cut into shards do not matter without them.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Copies the images of samples, in the order given, into `out` `[n,H,W,C]`.
    ///
    /// # Errors
    /// `Data` naming the shard if it is damaged or cut, `Io`, `Internal` for an id or a length that does not fit.
    pub fn read_images(&self, samples: &[u32], out: &mut [u8]) -> Result<()> {
        let bytes = self.image_shape.iter().product();
        self.read_rows(samples, out, bytes, |shard| Some(&shard.images))
    }

    /// Copies the masks of samples, in the order given, into `out` `[n,H,W]`.
    ///
    /// # Errors
    /// As [`Split::read_images`]; `Internal` if there are no masks.
    pub fn read_masks(&self, samples: &[u32], out: &mut [u8]) -> Result<()> {
        let bytes = self.image_shape[0] * self.image_shape[1];
        self.read_rows(samples, out, bytes, |shard| shard.masks.as_ref())
    }

    fn read_rows<'a>(
        &'a self,
        samples: &[u32],
        out: &mut [u8],
        bytes: usize,
        column: impl Fn(&'a Shard) -> Option<&'a Column>,
    ) -> Result<()> {
        if out.len() != samples.len() * bytes {
            let found = format!("{} samples of {bytes} bytes into {}", samples.len(), out.len());
            return Err(Error::Internal(found));
        }
        for (&sample, row) in samples.iter().zip(out.chunks_exact_mut(bytes)) {
            if sample >= self.len() {
                return Err(Error::Internal(format!("sample {sample} of {}", self.len())));
            }
            let shard = &self.shards[self.shards.partition_point(|s| s.first <= sample) - 1];
            let column = column(shard).ok_or_else(|| Error::Internal("no such tensor".into()))?;
            let start = u64::from(sample - shard.first) * bytes as u64;
            shard.source.read(column, start, row)?;
        }
        Ok(())
    }

    fn compute_fingerprint(&self, manifest: &Manifest) -> String {
        let mut hash = Sha256::new();
        let mut text = |part: &str| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        for part in ["l2b split 1", &manifest.name, &self.name] {
            text(part);
        }
        manifest.classes.iter().for_each(|class| text(class));
        let [h, w, c] = self.image_shape;
        for size in [manifest.classes.len(), h, w, c, self.labels.len()] {
            hash.update((size as u64).to_le_bytes());
        }
        for label in &self.labels {
            hash.update(label.to_le_bytes());
        }
        for crc in self.shards.iter().flat_map(|shard| shard.images.checksums()) {
            hash.update(crc.to_le_bytes());
        }
        hex(&hash.finalize())
    }
}

/// A label tensor, read in full and checked against the number of classes.
pub(super) fn read_labels(source: &Source, column: &Column, name: &str, n_classes: u32) -> Result<Vec<i32>> {
    let values = read_i64(source, column)?;
    let label = |(row, value): (usize, i64)| match u32::try_from(value) {
        Ok(label) if label < n_classes => Ok(label as i32),
        _ => {
            let expected = format!("0 to {}", n_classes - 1);
            let hint = "labels are indices into the classes of dataset.toml";
            Err(Error::data(
                source.path(),
                format!("{name}[{row}]"),
                expected,
                value.to_string(),
                hint,
            ))
        }
    };
    values.into_iter().enumerate().map(label).collect()
}

/// An i64 tensor, read in full. Decoding byte by byte serves payloads at any alignment.
pub(super) fn read_i64(source: &Source, column: &Column) -> Result<Vec<i64>> {
    let mut bytes = vec![0; column.bytes() as usize];
    source.read(column, 0, &mut bytes)?;
    Ok(bytes
        .as_chunks()
        .0
        .iter()
        .map(|&b| i64::from_le_bytes(b))
        .collect())
}

/// sha256 of a file in lower-case hex.
fn sha256_file(path: &Path) -> Result<String> {
    let io = |e| Error::io(path, e);
    let mut file = std::fs::File::open(path).map_err(io)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
