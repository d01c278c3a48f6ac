//! Safetensors files with a check: weights, checkpoints, per-sample weights.
//!
//! Metadata: one key `l2b`, a JSON object of strings with what the writer adds, `tensors_sha256` (of names, types, shapes
//! and bytes of all tensors) and `check` (of all other entries). safetensors itself has no checksum; with these two, a
//! flipped bit anywhere is found. One key, because the order of several is not fixed and equal files should be equal
//! bytes. Nothing but tensors of the caller's names is stored, so that PyTorch loads weights strictly.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::data::dataset::hex;
use crate::device::Element;
use crate::{Error, Result, atomic};

/// The one key of the file's metadata.
const METADATA: &str = "l2b";
/// Key of the hash over all tensors.
pub const TENSORS_SHA256: &str = "tensors_sha256";
/// Key of the hash over all other metadata.
const CHECK: &str = "check";

/// One stored tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Little-endian.
    pub bytes: Vec<u8>,
}

/// A file's content.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorFile {
    pub tensors: BTreeMap<String, Stored>,
    pub metadata: BTreeMap<String, String>,
}

/// The bytes of a safetensors file.
///
/// # Errors
/// `Internal` for tensors whose bytes do not fit their shape.
pub fn encode(
    tensors: &BTreeMap<String, Stored>,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>> {
    let internal = |e: safetensors::SafeTensorError| Error::Internal(format!("safetensors: {e}"));
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, t)| Ok((name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes)?)))
        .collect::<Result<_, _>>()
        .map_err(internal)?;
    safetensors::serialize(views, metadata).map_err(internal)
}

/// Tensors and metadata of any safetensors file.
///
/// # Errors
/// `Io`; `Data` for a file that is not safetensors.
pub fn read(path: &Path) -> Result<(BTreeMap<String, Stored>, HashMap<String, String>)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let broken = |e: safetensors::SafeTensorError| {
        let hint = "the file is damaged: restore it from a copy, or write it again";
        Error::data(path, "file", "a safetensors file", e.to_string(), hint)
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let views = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let stored = |view: &TensorView| Stored {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    let tensors = views
        .iter()
        .map(|(name, view)| (name.to_owned(), stored(&view)))
        .collect();
    Ok((tensors, header.metadata().clone().unwrap_or_default()))
}

impl Stored {
    /// Floats in the storage type `T`.
    pub fn floats<T: Element>(shape: &[usize], values: &[f64]) -> Self {
        let values: Vec<T> = values.iter().map(|&v| T::from_f64(v)).collect();
        Stored {
            dtype: if size_of::<T>() == 8 {
                Dtype::F64
            } else {
                Dtype::F32
            },
            shape: shape.to_vec(),
            bytes: bytemuck::cast_slice(&values).to_vec(),
        }
    }

    /// Integers.
    pub fn integers(shape: &[usize], values: impl IntoIterator<Item = i64>) -> Self {
        Stored {
            dtype: Dtype::I64,
            shape: shape.to_vec(),
            bytes: values.into_iter().flat_map(i64::to_le_bytes).collect(),
        }
    }

    /// Values of an F32 or F64 tensor; None for other types.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        match self.dtype {
            Dtype::F32 => Some(
                self.bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&b| f64::from(f32::from_le_bytes(b)))
                    .collect(),
            ),
            Dtype::F64 => Some(
                self.bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|&b| f64::from_le_bytes(b))
                    .collect(),
            ),
            _ => None,
        }
    }
}

impl TensorFile {
    /// Hash over all tensors, in lower-case hex.
    pub fn tensors_sha256(&self) -> String {
        let mut hash = Sha256::new();
        for (name, tensor) in &self.tensors {
            let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
            let head = format!("{name}\0{:?}\0{}\0", tensor.dtype, shape.join(","));
            hash.update(head);
            hash.update(&tensor.bytes);
        }
        hex(&hash.finalize())
    }

    fn check(&self) -> String {
        let mut hash = Sha256::new();
        for (key, value) in self.metadata.iter().filter(|(key, _)| *key != CHECK) {
            for part in [key, value] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        hex(&hash.finalize())
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// `Io`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut sealed = TensorFile {
            tensors: BTreeMap::new(),
            metadata: self.metadata.clone(),
        };
        sealed
            .metadata
            .insert(TENSORS_SHA256.into(), self.tensors_sha256());
        sealed.metadata.insert(CHECK.into(), sealed.check());
        let text = serde_json::to_string(&sealed.metadata).map_err(|e| Error::Internal(e.to_string()))?;
        let metadata = HashMap::from([(METADATA.to_owned(), text)]);
        atomic::write_file(path, &encode(&self.tensors, Some(metadata))?)
    }

    /// Reads a file and compares its hashes. One without our metadata (written by another program) passes unchecked.
    ///
    /// # Errors
    /// `Io`; `Data` for a file that is damaged or not safetensors.
    pub fn load(path: &Path) -> Result<Self> {
        let (tensors, mut header) = read(path)?;
        let damaged = |what: &str, expected: &str, found: String| {
            Error::data(
                path,
                what,
                expected,
                found,
                "the file is damaged: restore it from a copy, or write it again",
            )
        };
        let mut file = TensorFile {
            tensors,
            metadata: BTreeMap::new(),
        };
        if let Some(text) = header.remove(METADATA) {
            file.metadata = serde_json::from_str(&text)
                .map_err(|e| damaged("metadata l2b", "a JSON object of strings", e.to_string()))?;
        }
        let checks = [
            (CHECK, TensorFile::check as fn(&_) -> _),
            (TENSORS_SHA256, TensorFile::tensors_sha256),
        ];
        for (key, compute) in checks.into_iter().filter(|_| !file.metadata.is_empty()) {
            let (expected, found) = (file.metadata.get(key), compute(&file));
            if expected != Some(&found) {
                return Err(damaged(key, expected.map_or("none", String::as_str), found));
            }
        }
        Ok(file)
    }

    /// A tensor of floats of the given shape.
    ///
    /// # Errors
    /// `Data` naming `path` and the tensor.
    pub fn floats(&self, path: &Path, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
        let what = format!("tensor {name}");
        let expected = format!("floats of shape {shape:?}");
        let Some(tensor) = self.tensors.get(name) else {
            return Err(Error::data(
                path,
                what,
                expected,
                "no such tensor",
                "names are PyTorch's",
            ));
        };
        match tensor.to_f64() {
            Some(values) if tensor.shape == shape => Ok(values),
            _ => {
                let found = format!("{:?} of shape {:?}", tensor.dtype, tensor.shape);
                Err(Error::data(path, what, expected, found, ""))
            }
        }
    }

    /// A metadata value, as JSON.
    ///
    /// # Errors
    /// `Data` naming `path` and the key.
    pub fn json<T: serde::de::DeserializeOwned>(&self, path: &Path, key: &str) -> Result<T> {
        let what = format!("metadata {key}");
        let Some(text) = self.metadata.get(key) else {
            let hint = "files of weights that l2b wrote carry it";
            return Err(Error::data(path, what, "a JSON value", "no such key", hint));
        };
        serde_json::from_str(text).map_err(|e| Error::data(path, what, "a JSON value", e.to_string(), ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> TensorFile {
        let mut file = TensorFile::default();
        file.tensors
            .insert("a.weight".into(), Stored::floats::<f32>(&[2, 1], &[0.5, -3.25]));
        file.tensors.insert("n".into(), Stored::integers(&[], [7]));
        file.metadata.insert("note".into(), "\"é\"".into());
        file
    }

    #[test]
    fn round_trip_keeps_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        small().save(&path).unwrap();
        let read = TensorFile::load(&path).unwrap();
        assert_eq!(read.tensors, small().tensors);
        assert_eq!(read.json::<String>(&path, "note").unwrap(), "é");
        assert_eq!(read.metadata[TENSORS_SHA256], small().tensors_sha256());
        assert_eq!(read.floats(&path, "a.weight", &[2, 1]).unwrap(), [0.5, -3.25]);
        for (name, shape) in [("a.weight", &[2][..]), ("n", &[]), ("b", &[1])] {
            assert_eq!(
                read.floats(&path, name, shape).unwrap_err().exit_code(),
                3,
                "{name}"
            );
        }
    }

    #[test]
    fn every_flip_and_every_cut_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        small().save(&path).unwrap();
        let good = std::fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            TensorFile::load(&path).map_err(|e| e.exit_code())
        };
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match damaged(&bytes) {
                Err(code) => assert_eq!(code, 3, "bit {bit}"),
                // Under another name there is no metadata of ours; whoever needs it says that it is missing.
                Ok(read) => {
                    assert_eq!(read.tensors, small().tensors, "bit {bit}");
                    assert_eq!(read.metadata, BTreeMap::new(), "bit {bit}");
                }
            }
        }
        for length in 0..good.len() {
            assert_eq!(damaged(&good[..length]), Err(3), "cut at {length}");
        }
    }
}
