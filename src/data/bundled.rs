//! The dataset inside the binary: 1797 handwritten digits of 8×8 pixels (data/digits/SOURCE has origin and licence).
//! It is unpacked to a cache folder and then mapped like any other; a damaged cache is repaired.

use crate::atomic::{self, NewFolder};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

macro_rules! digits_file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../data/digits/", $name)))
    };
}

/// Files of the folder; SOURCE goes with the data, as its licence asks.
const DIGITS: [(&str, &[u8]); 4] = [
    digits_file!("dataset.toml"),
    digits_file!("train-00000.safetensors"),
    digits_file!("test-00000.safetensors"),
    digits_file!("SOURCE"),
];

/// Folder of the digits, ready to open: below `$XDG_CACHE_HOME/l2b`, else `~/.cache/l2b`, else the system's folder for
/// temporary files.
///
/// # Errors
/// `Io` if none of these can be written.
pub fn digits() -> Result<PathBuf> {
    let absolute = |key| {
        std::env::var_os(key)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    // SAFETY: getuid has no preconditions and cannot fail. One folder per user: another user's cannot be written.
    let user = unsafe { libc::getuid() };
    let temporary = std::env::temp_dir().join(format!("l2b-{user}"));
    match cache.map(|cache| unpack_digits(&cache.join("l2b"))) {
        Some(Ok(folder)) => Ok(folder),
        _ => unpack_digits(&temporary),
    }
}

/// Makes sure that `root/digits-…` holds the digits, byte for byte, and returns it. Files that are missing or differ
/// are replaced, each in one step, so that other processes never see half of one.
///
/// # Errors
/// `Io`.
pub fn unpack_digits(root: &Path) -> Result<PathBuf> {
    // Versions of this program with other digits use another folder.
    let mut hash = crc32fast::Hasher::new();
    DIGITS.iter().for_each(|(_, bytes)| hash.update(bytes));
    let folder = root.join(format!("digits-{:08x}", hash.finalize()));
    if !folder.exists() {
        let new = NewFolder::create(&folder)?;
        for (name, bytes) in DIGITS {
            atomic::write_file(&new.path().join(name), bytes)?;
        }
        match new.commit() {
            // Another process was faster; its files are checked below.
            Err(Error::Io { .. }) if folder.is_dir() => {}
            result => result?,
        }
    }
    for (name, bytes) in DIGITS {
        let path = folder.join(name);
        if std::fs::read(&path).ok().as_deref() != Some(bytes) {
            atomic::write_file(&path, bytes)?;
        }
    }
    Ok(folder)
}
