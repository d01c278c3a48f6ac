//! One safetensors file read in place: the header checked once, ranges of tensors copied out on demand.
//!
//! A file that is cut short while open ends in an error naming it, not in a signal: bytes are copied out of the map
//! under a guard that catches missing pages, and the length is looked at afterwards (the rest of a file's last page
//! reads as zeros). [`Access::Read`] (`--no-mmap`) does without a map, for file systems that map badly.
//!
//! Tensors of our own files carry a checksum table `crc32.NAME`, u32 [ceil(bytes / 65536)]: the CRC-32 (IEEE) of each
//! block of 64 KiB of tensor NAME, checked the first time a block is read. safetensors itself has no checksum.

use super::guard;
use crate::{Error, Result};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes per checksum.
pub const CRC_BLOCK: usize = 64 << 10;

/// Prefix of checksum tables.
const CRC_PREFIX: &str = "crc32.";

/// safetensors' own limit on the header.
const MAX_HEADER: u64 = 100_000_000;

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Memory map.
    #[default]
    Map,
    /// Positional reads.
    Read,
}

/// An open safetensors file.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    map: Option<Mmap>,
    /// A page went missing: what the map shows of it is not the file's.
    broken: AtomicBool,
    /// Length of the file at open; 8 + header + payload.
    length: u64,
    /// Where the payload starts.
    payload: u64,
    header: Metadata,
}

/// A tensor of a [`Source`]: where its bytes are, and which of them have been checked.
#[derive(Debug)]
pub struct Column {
    name: &'static str,
    shape: Vec<usize>,
    /// Bytes of the file.
    range: Range<u64>,
    /// Checksum of each block, and whether it has been verified; `None` for files without a table.
    blocks: Option<Vec<(u32, AtomicBool)>>,
}

impl Column {
    /// Shape as stored.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Bytes of the tensor.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Checksum table, empty if the file has none.
    pub fn checksums(&self) -> impl Iterator<Item = u32> + '_ {
        self.blocks.iter().flatten().map(|(crc, _)| *crc)
    }

    /// Whether the file carries checksums of this tensor.
    pub fn has_checksums(&self) -> bool {
        self.blocks.is_some()
    }
}

impl Source {
    /// Opens a file and checks its header: length, JSON, offsets without holes or overlaps, sizes that match shapes,
    /// nothing behind the last tensor.
    ///
    /// # Errors
    /// `Io` if it cannot be read, `Data` if it is no safetensors file or has been cut.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let io = |e| Error::io(path, e);
        // Before opening: a pipe would block.
        let kind = std::fs::metadata(path).map_err(io)?.file_type();
        let hint = "the file is cut short or is not a safetensors file";
        let refuse =
            |what: &str, expected: String, found: String| Err(Error::data(path, what, expected, found, hint));
        if !kind.is_file() {
            return refuse("kind of file", "a regular file".into(), "another kind".into());
        }
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length < 8 {
            return refuse("size", "at least 8 bytes".into(), format!("{length} bytes"));
        }
        let mut prefix = [0; 8];
        file.read_exact_at(&mut prefix, 0).map_err(io)?;
        let header_bytes = u64::from_le_bytes(prefix);
        let most = MAX_HEADER.min(length - 8);
        if header_bytes > most {
            let expected = format!("at most {most} bytes in a file of {length}");
            return refuse("header length", expected, format!("{header_bytes} bytes"));
        }
        let mut text = vec![0; header_bytes as usize];
        file.read_exact_at(&mut text, 8).map_err(io)?;
        let header: Metadata = match serde_json::from_slice(&text) {
            Ok(header) => header,
            Err(e) => return refuse("header", "valid safetensors JSON".into(), e.to_string()),
        };
        let expected = (8 + header_bytes).saturating_add(header.data_len() as u64);
        if length != expected {
            return refuse("size", format!("{expected} bytes"), format!("{length} bytes"));
        }
        let map = match access {
            Access::Read => None,
            // SAFETY: a map is sound as long as its bytes do not change and its pages exist. Datasets are immutable
            // by contract and by how they are written (whole files are renamed into place, never rewritten); bytes
            // are only copied out as u8, for which any value is valid; `guard` deals with pages that go missing.
            Access::Map => Some(unsafe { Mmap::map(&file) }.map_err(io)?),
        };
        Ok(Source {
            path: path.to_owned(),
            file,
            map,
            broken: AtomicBool::new(false),
            length,
            payload: 8 + header_bytes,
            header,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A value of the header's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Keys of the header's metadata.
    pub fn metadata_keys(&self) -> impl Iterator<Item = &str> {
        self.header
            .metadata()
            .iter()
            .flat_map(|map| map.keys().map(String::as_str))
    }

    /// Refuses tensors that are neither in `known` nor checksum tables of these: a misspelt optional tensor would
    /// otherwise be ignored in silence.
    ///
    /// # Errors
    /// `Data`, naming the tensor.
    pub fn check_names(&self, known: &[&str]) -> Result<()> {
        for name in self.header.offset_keys() {
            if !known.contains(&name.strip_prefix(CRC_PREFIX).unwrap_or(&name)) {
                let expected = format!("only {}, and their checksums", known.join(", "));
                return Err(Error::data(
                    &self.path,
                    "tensors",
                    expected,
                    format!("{name:?}"),
                    "",
                ));
            }
        }
        Ok(())
    }

    /// Looks up a tensor that must be there, of this type, with its checksum table if there is one.
    ///
    /// # Errors
    /// `Data`, naming the tensor; `Io`.
    pub fn column(&self, name: &'static str, dtype: Dtype) -> Result<Column> {
        self.optional_column(name, dtype)?.ok_or_else(|| {
            let found = self.header.offset_keys().join(", ");
            Error::data(&self.path, "tensors", format!("one called {name:?}"), found, "")
        })
    }

    /// Looks up a tensor that may be there.
    ///
    /// # Errors
    /// `Data`, naming the tensor, if it has another type or its checksum table does not fit; `Io`.
    pub fn optional_column(&self, name: &'static str, dtype: Dtype) -> Result<Option<Column>> {
        let table = format!("{CRC_PREFIX}{name}");
        let Some((shape, range)) = self.tensor(name, dtype)? else {
            return match self.header.info(&table) {
                Some(_) => Err(Error::data(&self.path, table, "its tensor", "none", "")),
                None => Ok(None),
            };
        };
        let blocks = match self.tensor(&table, Dtype::U32)? {
            None => None,
            Some((table_shape, table_range)) => {
                let count = (range.end - range.start).div_ceil(CRC_BLOCK as u64) as usize;
                if table_shape != [count] {
                    let found = format!("{table_shape:?}");
                    return Err(Error::data(
                        &self.path,
                        table,
                        format!("shape [{count}]"),
                        found,
                        "",
                    ));
                }
                let mut bytes = vec![0; count * 4];
                self.read_raw(table_range.start, &mut bytes)?;
                let words = bytes.as_chunks().0.iter();
                Some(
                    words
                        .map(|&w| (u32::from_le_bytes(w), AtomicBool::new(false)))
                        .collect(),
                )
            }
        };
        Ok(Some(Column {
            name,
            shape,
            range,
            blocks,
        }))
    }

    fn tensor(&self, name: &str, dtype: Dtype) -> Result<Option<(Vec<usize>, Range<u64>)>> {
        let Some(info) = self.header.info(name) else {
            return Ok(None);
        };
        if info.dtype != dtype {
            let (expected, found) = (dtype.to_string(), info.dtype.to_string());
            return Err(Error::data(
                &self.path,
                format!("type of {name}"),
                expected,
                found,
                "",
            ));
        }
        let (start, end) = info.data_offsets;
        let range = self.payload + start as u64..self.payload + end as u64;
        Ok(Some((info.shape.clone(), range)))
    }

    /// Copies bytes `start..start + out.len()` of a tensor, checking the blocks they lie in on first touch.
    ///
    /// # Errors
    /// `Data` if the file has been cut or a checksum does not match, `Io`, `Internal` outside the tensor.
    pub fn read(&self, column: &Column, start: u64, out: &mut [u8]) -> Result<()> {
        let end = start
            .checked_add(out.len() as u64)
            .filter(|&e| e <= column.bytes());
        let Some(end) = end else {
            let (name, bytes) = (column.name, column.bytes());
            return Err(Error::Internal(format!(
                "read at byte {start} of {name}, which has {bytes}"
            )));
        };
        self.check_blocks(column, start..end)?;
        self.read_raw(column.range.start + start, out)
    }

    /// Checks every block of a tensor again, touched before or not.
    ///
    /// # Errors
    /// `Data` naming the block, `Io`.
    pub fn verify(&self, column: &Column) -> Result<()> {
        for (_, seen) in column.blocks.iter().flatten() {
            seen.store(false, Ordering::Relaxed);
        }
        self.check_blocks(column, 0..column.bytes())
    }

    fn check_blocks(&self, column: &Column, range: Range<u64>) -> Result<()> {
        let (Some(blocks), false) = (&column.blocks, range.is_empty()) else {
            return Ok(());
        };
        let first = range.start as usize / CRC_BLOCK;
        let last = (range.end - 1) as usize / CRC_BLOCK;
        let mut buffer = Vec::new();
        for (number, (expected, seen)) in blocks.iter().enumerate().take(last + 1).skip(first) {
            // Two threads may both check a block; that costs time and harms nothing.
            if seen.load(Ordering::Relaxed) {
                continue;
            }
            let start = number as u64 * CRC_BLOCK as u64;
            buffer.resize(CRC_BLOCK.min((column.bytes() - start) as usize), 0);
            self.read_raw(column.range.start + start, &mut buffer)?;
            let found = crc32fast::hash(&buffer);
            if found != *expected {
                let what = format!("{}, checksum of block {number}", column.name);
                let (expected, found) = (format!("{expected:08x}"), format!("{found:08x}"));
                let hint = "the file is damaged: write the dataset again or restore it from a copy";
                return Err(Error::data(&self.path, what, expected, found, hint));
            }
            seen.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies bytes of the file.
    fn read_raw(&self, at: u64, out: &mut [u8]) -> Result<()> {
        let cut = |found: u64| {
            let (expected, found) = (format!("{} bytes", self.length), format!("{found} bytes"));
            let hint = "the file was cut while it was open; datasets must not change while they are in use";
            Err(Error::data(&self.path, "size", expected, found, hint))
        };
        let size = || Ok(self.file.metadata().map_err(|e| Error::io(&self.path, e))?.len());
        match &self.map {
            Some(map) => {
                if guard::copy(&map[at as usize..at as usize + out.len()], out).is_err() {
                    self.broken.store(true, Ordering::Relaxed);
                }
                // After the copy: a cut before its end shows, one after it does not matter.
                match size()? {
                    found if found < self.length || self.broken.load(Ordering::Relaxed) => cut(found),
                    _ => Ok(()),
                }
            }
            None => match self.file.read_exact_at(out, at) {
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => cut(size()?),
                result => result.map_err(|e| Error::io(&self.path, e)),
            },
        }
    }
}

/// A tensor to be written.
pub struct Tensor<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Little-endian values.
    pub bytes: std::borrow::Cow<'a, [u8]>,
}

/// A safetensors file with a checksum table for each tensor.
///
/// # Errors
/// `Internal` if bytes and shape do not match.
pub fn encode(tensors: &[Tensor], metadata: HashMap<String, String>) -> Result<Vec<u8>> {
    let internal = |e: safetensors::SafeTensorError| Error::Internal(e.to_string());
    let tables: Vec<Vec<u8>> = tensors
        .iter()
        .map(|t| {
            t.bytes
                .chunks(CRC_BLOCK)
                .flat_map(|b| crc32fast::hash(b).to_le_bytes())
                .collect()
        })
        .collect();
    let mut views = Vec::new();
    for (tensor, table) in tensors.iter().zip(&tables) {
        let view = safetensors::tensor::TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
        views.push((tensor.name.to_owned(), view.map_err(internal)?));
        let view = safetensors::tensor::TensorView::new(Dtype::U32, vec![table.len() / 4], table);
        views.push((format!("{CRC_PREFIX}{}", tensor.name), view.map_err(internal)?));
    }
    let metadata = (!metadata.is_empty()).then_some(metadata);
    safetensors::serialize(views, metadata).map_err(internal)
}

/// Little-endian i64, as labels and ids are stored.
pub fn i64_bytes(values: impl IntoIterator<Item = i64>) -> Vec<u8> {
    values.into_iter().flat_map(i64::to_le_bytes).collect()
}
