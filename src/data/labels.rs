//! Labels beside a dataset: an overlay file gives a split noisy labels and names its clean images, and never touches
//! the images. It may lie anywhere.
//!
//! A safetensors file with `labels` i64 `[N]`, `clean_labels` i64 `[N]`, `meta_index` i64 `[M]` (ascending sample ids whose
//! labels are clean) and, in its metadata, `fingerprint` and `split` of the split it belongs to, `kind`, `realised`
//! (fraction of the samples outside `meta_index` whose label is wrong) and, where they exist, `nominal`, `seed` and
//! `check` (CRC-32 of the other values, hex).

use super::dataset::{Split, read_i64, read_labels};
use super::noise::{Noise, changed};
use super::source::{Access, Source, encode};
use super::split::remaining;
use super::writer::i64_tensor;
use crate::{Error, Result, atomic};
use safetensors::Dtype;
use std::collections::HashMap;
use std::path::Path;

/// Labels of one split: observed, true, and which samples form the clean set.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlay {
    /// `[N]`, observed.
    pub labels: Vec<i32>,
    /// `[N]`, true.
    pub clean_labels: Vec<i32>,
    /// `[M]`, ascending sample ids.
    pub meta_index: Vec<u32>,
    /// `fingerprint` of the split.
    pub fingerprint: String,
    /// Name of the split.
    pub split: String,
    /// Name of the noise.
    pub kind: String,
    /// Nominal rate.
    pub nominal: Option<f64>,
    /// Fraction of the samples outside the clean set whose label is wrong.
    pub realised: f64,
    /// Seed of the noise.
    pub seed: Option<u64>,
}

/// Keys of the metadata, in the order of `check`.
const KEYS: [&str; 6] = ["fingerprint", "split", "kind", "nominal", "realised", "seed"];

impl Overlay {
    /// Draws noise for the samples of a split outside `meta_index` (ascending). The true labels are the split's
    /// `clean_labels`, or else its labels.
    ///
    /// # Errors
    /// `Config` if the kind of noise does not fit.
    pub fn draw(split: &Split, n_classes: u32, meta_index: Vec<u32>, noise: Noise) -> Result<Self> {
        let clean = split.clean_labels().unwrap_or(split.labels());
        let samples = remaining(split.len(), &meta_index);
        let labels = noise.apply(clean, &samples, n_classes)?;
        Ok(Overlay {
            realised: changed(&labels, clean, &samples) as f64 / samples.len().max(1) as f64,
            labels,
            clean_labels: clean.to_vec(),
            meta_index,
            fingerprint: split.fingerprint().to_owned(),
            split: split.name().to_owned(),
            kind: noise.kind.name().to_owned(),
            nominal: Some(noise.rate),
            seed: Some(noise.seed),
        })
    }

    /// The labels a split comes with, and `meta_index` (ascending) as its clean set.
    pub fn none(split: &Split, meta_index: Vec<u32>) -> Self {
        let clean = split.clean_labels().unwrap_or(split.labels());
        let mut labels = split.labels().to_vec();
        for &id in &meta_index {
            labels[id as usize] = clean[id as usize];
        }
        let samples = remaining(split.len(), &meta_index);
        Overlay {
            realised: changed(&labels, clean, &samples) as f64 / samples.len().max(1) as f64,
            labels,
            clean_labels: clean.to_vec(),
            meta_index,
            fingerprint: split.fingerprint().to_owned(),
            split: split.name().to_owned(),
            kind: "as given".to_owned(),
            nominal: None,
            seed: None,
        }
    }

    /// Writes the overlay to a new file.
    ///
    /// # Errors
    /// `Config` if the file exists, `Io`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let hint = "labels are never changed once written: choose another name";
        atomic::require_free("--out", path, hint)?;
        let wide = |labels: &[i32]| {
            labels
                .iter()
                .map(|&l| i64::from(l))
                .collect::<Vec<_>>()
                .into_iter()
        };
        let tensors = [
            i64_tensor("labels", wide(&self.labels)),
            i64_tensor("clean_labels", wide(&self.clean_labels)),
            i64_tensor("meta_index", self.meta_index.iter().map(|&id| i64::from(id))),
        ];
        let values = [
            Some(self.fingerprint.clone()),
            Some(self.split.clone()),
            Some(self.kind.clone()),
            self.nominal.map(|rate| format!("{rate:?}")),
            Some(format!("{:?}", self.realised)),
            self.seed.map(|seed| seed.to_string()),
        ];
        let check = check_value(values.iter().map(|v| v.as_deref()));
        let pairs = KEYS
            .iter()
            .zip(values)
            .filter_map(|(key, value)| Some((key.to_string(), value?)));
        let metadata: HashMap<_, _> = pairs.chain([("check".to_owned(), check)]).collect();
        atomic::write_file(path, &encode(&tensors, metadata)?)
    }

    /// Name of the split that an overlay file says it belongs to.
    ///
    /// # Errors
    /// `Data` if it is no overlay, `Io`.
    pub fn split_name(path: &Path) -> Result<String> {
        let source = Source::open(path, Access::Read)?;
        Ok(required(&source, "split")?.to_owned())
    }

    /// Reads an overlay and checks that it belongs to `split` and holds what it says.
    ///
    /// # Errors
    /// `Data` naming the field, `Io`.
    pub fn load(path: &Path, split: &Split, n_classes: u32) -> Result<Self> {
        let source = Source::open(path, Access::Read)?;
        source.check_names(&["labels", "clean_labels", "meta_index"])?;
        let refuse = |what: &str, expected: &str, found: &str, hint: &str| {
            Err(Error::data(path, what, expected, found, hint))
        };
        if let Some(key) = source
            .metadata_keys()
            .find(|key| !KEYS.contains(key) && *key != "check")
        {
            return refuse(
                "metadata",
                &format!("only {} and check", KEYS.join(", ")),
                key,
                "",
            );
        }
        let text = |key| required(&source, key);
        if let Some(check) = source.metadata("check") {
            let expected = check_value(KEYS.iter().map(|key| source.metadata(key)));
            if check != expected {
                return refuse("check", &expected, check, "the file is damaged");
            }
        }
        let fingerprint = text("fingerprint")?;
        if fingerprint != split.fingerprint() {
            let hint = "these labels were made for another dataset or another split";
            return refuse("fingerprint", split.fingerprint(), fingerprint, hint);
        }
        let name = text("split")?;
        if name != split.name() {
            return refuse("split", split.name(), name, "");
        }
        let rate = |key: &str, value: &str| match value.parse::<f64>() {
            Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(rate),
            _ => Err(Error::data(path, key, "a number from 0 to 1", value, "")),
        };
        let nominal = source
            .metadata("nominal")
            .map(|value| rate("nominal", value))
            .transpose()?;
        let seed = match source.metadata("seed").map(str::parse::<u64>) {
            None => None,
            Some(Ok(seed)) => Some(seed),
            Some(Err(e)) => return refuse("seed", "a whole number", &e.to_string(), ""),
        };
        let n = split.len() as usize;
        let label_column = |name: &'static str| {
            let column = source.column(name, Dtype::I64)?;
            if column.shape() != [n] {
                let found = format!("{:?}", column.shape());
                return Err(Error::data(
                    path,
                    format!("shape of {name}"),
                    format!("[{n}]"),
                    found,
                    "",
                ));
            }
            read_labels(&source, &column, name, n_classes)
        };
        let (labels, clean_labels) = (label_column("labels")?, label_column("clean_labels")?);
        let truth = split.clean_labels().unwrap_or(split.labels());
        if let Some(id) = (0..n).find(|&id| clean_labels[id] != truth[id]) {
            let (expected, found) = (truth[id].to_string(), clean_labels[id].to_string());
            let hint = "the true labels are those of the dataset";
            return refuse(&format!("clean_labels[{id}]"), &expected, &found, hint);
        }
        let column = source.column("meta_index", Dtype::I64)?;
        if column.shape().len() != 1 {
            let found = format!("{:?}", column.shape());
            return refuse("shape of meta_index", "one dimension", &found, "");
        }
        let mut meta_index: Vec<u32> = Vec::new();
        for (row, value) in read_i64(&source, &column)?.into_iter().enumerate() {
            let least = meta_index.last().map_or(0, |&last| i64::from(last) + 1);
            if !(least..n as i64).contains(&value) {
                let expected = format!("{least} to {} (ascending sample ids)", n - 1);
                return refuse(&format!("meta_index[{row}]"), &expected, &value.to_string(), "");
            }
            let id = value as usize;
            if labels[id] != clean_labels[id] {
                let (expected, found) = (clean_labels[id].to_string(), labels[id].to_string());
                return refuse(
                    &format!("labels[{id}]"),
                    &expected,
                    &found,
                    "clean images keep their labels",
                );
            }
            meta_index.push(id as u32);
        }
        let samples = remaining(split.len(), &meta_index);
        let found = rate("realised", text("realised")?)?;
        let realised = changed(&labels, &clean_labels, &samples) as f64 / samples.len().max(1) as f64;
        // Equal but for the rounding of a decimal form.
        if (found - realised).abs() > 1e-9 {
            return refuse("realised", &realised.to_string(), &found.to_string(), "");
        }
        Ok(Overlay {
            labels,
            clean_labels,
            meta_index,
            fingerprint: fingerprint.to_owned(),
            split: name.to_owned(),
            kind: text("kind")?.to_owned(),
            nominal,
            realised,
            seed,
        })
    }
}

/// A value that the metadata must have.
fn required<'a>(source: &'a Source, key: &str) -> Result<&'a str> {
    source.metadata(key).ok_or_else(|| {
        let hint = "this is no labels file; `l2b data noise` writes one";
        Error::data(source.path(), "metadata", format!("a key {key}"), "none", hint)
    })
}

/// CRC-32 of the metadata values in the order of [`KEYS`], absent ones apart from empty ones.
fn check_value<'a>(values: impl Iterator<Item = Option<&'a str>>) -> String {
    let mut hash = crc32fast::Hasher::new();
    for value in values {
        hash.update(&[u8::from(value.is_some())]);
        hash.update(value.unwrap_or_default().as_bytes());
        hash.update(&[0xFF]); // in no UTF-8 text
    }
    format!("{:08x}", hash.finalize())
}
