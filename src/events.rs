//! TensorBoard event files: the curves of a run for `tensorboard --logdir`.
//!
//! A file is a row of records, each `length (u64), masked CRC-32C of the length, payload, masked CRC-32C of the payload`,
//! little-endian; a payload is the protocol buffer `Event { wall_time = 1, step = 2, file_version = 3, summary = 5 }`
//! with `Summary { value = 1 { tag = 1, simple_value = 2 } }`. These few fields are written by hand.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::epoch_log::EpochRecord;
use crate::{Error, Result, atomic};

/// Replaces the file by one event an epoch. Epochs are given the times at which they must have ended, the last one now.
///
/// # Errors
/// `Io`.
pub fn rewrite(path: &Path, records: &[EpochRecord]) -> Result<()> {
    let mut bytes = header();
    let mut end = now() - records.iter().map(|r| r.seconds).sum::<f64>();
    for r in records {
        end += r.seconds;
        bytes.extend(event(end, r));
    }
    atomic::write_file(path, &bytes)
}

/// Adds the event of an epoch that has just ended: a TensorBoard that watches the file sees it.
///
/// # Errors
/// `Io`.
pub fn append(path: &Path, r: &EpochRecord) -> Result<()> {
    if !path.exists() {
        atomic::write_file(path, &header())?;
    }
    let mut file = OpenOptions::new()
        .append(true)
        .open(path)
        .map_err(|e| Error::io(path, e))?;
    file.write_all(&event(now(), r)).map_err(|e| Error::io(path, e))
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |d| d.as_secs_f64())
}

fn header() -> Vec<u8> {
    let mut payload = Vec::new();
    double(&mut payload, 1, now());
    bytes(&mut payload, 3, b"brain.Event:2");
    framed(&payload)
}

/// The scalars of an epoch, at its number as step.
fn event(wall_time: f64, r: &EpochRecord) -> Vec<u8> {
    let scalars = [
        ("learning_rate", Some(r.lr)),
        ("train/loss", Some(r.train_loss)),
        ("train/accuracy", Some(r.train_accuracy)),
        ("train/clean_accuracy", r.train_clean_accuracy),
        ("train/gradient_norm", Some(r.gradient_norm)),
        ("meta/loss", r.meta_loss),
        ("test/loss", Some(r.test_loss)),
        ("test/accuracy", Some(r.test_accuracy)),
        ("alpha/clean", r.alpha_clean),
        ("alpha/corrupted", r.alpha_corrupted),
        ("beta/clean", r.beta_clean),
        ("beta/corrupted", r.beta_corrupted),
        ("images_per_second", Some(r.images_per_second)),
    ];
    let mut summary = Vec::new();
    for (tag, value) in scalars {
        let Some(scalar) = value else { continue };
        let mut value = Vec::new();
        bytes(&mut value, 1, tag.as_bytes());
        // Wire type 5: four bytes.
        value.push(2 << 3 | 5);
        value.extend((scalar as f32).to_le_bytes());
        bytes(&mut summary, 1, &value);
    }
    let mut payload = Vec::new();
    double(&mut payload, 1, wall_time);
    // Wire type 0: a variable-length integer.
    payload.push(2 << 3);
    varint(&mut payload, u64::from(r.epoch));
    bytes(&mut payload, 5, &summary);
    framed(&payload)
}

/// Wire type 1: eight bytes.
fn double(out: &mut Vec<u8>, field: u8, value: f64) {
    out.push(field << 3 | 1);
    out.extend(value.to_le_bytes());
}

/// Wire type 2: a length and that many bytes.
fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn framed(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(payload.len() + 16);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(payload);
    out.extend(masked(payload).to_le_bytes());
    out
}

/// TFRecord's mask: a checksum of data that holds checksums would else be degenerate.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header record as TensorFlow's own writer frames the same payload.
    #[test]
    fn records_are_framed_as_tensorflow_does() {
        let mut payload = Vec::new();
        double(&mut payload, 1, 1.5);
        bytes(&mut payload, 3, b"brain.Event:2");
        let framed = framed(&payload);
        assert_eq!(&framed[..8], 24u64.to_le_bytes());
        assert_eq!(framed.len(), 8 + 4 + 24 + 4);
        assert_eq!(&framed[12..14], [0x09, 0]);
        assert_eq!(masked(&framed[..8]).to_le_bytes(), framed[8..12]);
        // CRC-32C of "123456789" is 0xe3069283; rotated and shifted by the mask.
        assert_eq!(
            masked(b"123456789"),
            0xe306_9283u32.rotate_right(15).wrapping_add(0xa282_ead8)
        );
        let mut long = Vec::new();
        varint(&mut long, 300);
        assert_eq!(long, [0xac, 2]);
    }
}
