//! The library's one error type. Every variant names what it is about (file, tensor, option, kernel), what was
//! expected and what was found; `hint` adds what to do. The variant's class fixes the exit code of the binary.

use std::path::{Path, PathBuf};

/// Result of every fallible function of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by class; see [`Error::exit_code`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written (exit code 1).
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    /// A broken promise of the program itself (exit code 1).
    #[error("internal error: {0}")]
    Internal(String),
    /// Command line or recipe (exit code 2).
    #[error("{what}: expected {expected}, found {found}{}", hint_line(hint))]
    Config {
        /// The option or key.
        what: String,
        expected: String,
        found: String,
        /// What to do about it; empty for none.
        hint: String,
    },
    /// A data file that does not hold what it should (exit code 3).
    #[error("{}: {what}: expected {expected}, found {found}{}", path.display(), hint_line(hint))]
    Data {
        path: PathBuf,
        /// The field, tensor or record.
        what: String,
        expected: String,
        found: String,
        hint: String,
    },
    /// Device, driver or kernel (exit code 4).
    #[error("{what}: {detail}{}", hint_line(hint))]
    Device {
        /// The operation or kernel.
        what: String,
        detail: String,
        hint: String,
    },
    /// A loss, gradient or weight that is no longer a number (exit code 5).
    #[error("diverged at step {step}: {what} is {value}{}", hint_line(hint))]
    Diverged {
        step: u64,
        what: String,
        value: f64,
        hint: String,
    },
}

fn hint_line(hint: &str) -> String {
    if hint.is_empty() {
        String::new()
    } else {
        format!("\nhint: {hint}")
    }
}

impl Error {
    /// Exit code of the binary: 1 I/O or internal, 2 usage or configuration, 3 data, 4 device, 5 diverged.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Io { .. } | Error::Internal(_) => 1,
            Error::Config { .. } => 2,
            Error::Data { .. } => 3,
            Error::Device { .. } => 4,
            Error::Diverged { .. } => 5,
        }
    }

    /// An I/O error of one file.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Error::Io {
            path: path.as_ref().to_owned(),
            source,
        }
    }

    /// A configuration error; `hint` may be empty.
    pub fn config(
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Error::Config {
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
            hint: hint.into(),
        }
    }

    /// A data error of one file; `hint` may be empty.
    pub fn data(
        path: impl AsRef<Path>,
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Error::Data {
            path: path.as_ref().to_owned(),
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
            hint: hint.into(),
        }
    }

    /// A `Config` error about what a file holds is a `Data` error of that file; others stay as they are.
    pub fn in_file(self, path: impl AsRef<Path>) -> Self {
        match self {
            Error::Config {
                what,
                expected,
                found,
                hint,
            } => Error::data(path, what, expected, found, hint),
            other => other,
        }
    }

    /// A device error; `hint` may be empty.
    pub fn device(what: impl Into<String>, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Error::Device {
            what: what.into(),
            detail: detail.into(),
            hint: hint.into(),
        }
    }
}
