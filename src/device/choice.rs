//! Which device computes, in which precision: the one place where a name becomes a type.

use std::fmt;
use std::str::FromStr;

use super::Device;
use super::cpu::{Cpu, Rounding};
use super::cuda::{self, Cuda};
use crate::{Error, Result};

/// A device by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// A GPU that this binary can use, or else the CPU; never the emulator.
    Auto,
    Cpu,
    /// The n-th GPU.
    Cuda(u32),
    /// The CUDA kernels on the CPU, for tests.
    Emulator,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            "emulator" => Ok(DeviceChoice::Emulator),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| format!("expected auto, cpu, cuda, cuda:N or emulator, found {text:?}")),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(number) => write!(f, "cuda:{number}"),
            DeviceChoice::Emulator => f.write_str("emulator"),
        }
    }
}

/// Number format of activations and operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Double precision; CPU only
    F64,
    /// Single precision
    F32,
    /// Single precision, convolution operands rounded to tf32
    Tf32,
    /// Activations and convolution operands in bf16; parameters, statistics and sums in single precision
    Bf16,
}

impl Precision {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F64 => "f64",
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::Bf16 => "bf16",
        }
    }
}

impl DeviceChoice {
    /// What `l2b train` computes in where nothing else is asked for: bf16 on a GPU, whose tensor cores are most of what it
    /// can do; f32 elsewhere.
    pub fn training_precision(self) -> Precision {
        match resolve(self, Precision::Bf16) {
            DeviceChoice::Cuda(_) => Precision::Bf16,
            DeviceChoice::Auto | DeviceChoice::Cpu | DeviceChoice::Emulator => Precision::F32,
        }
    }
}

/// Work that runs on any device.
pub trait Visitor {
    type Output;

    /// Does the work on `device`, which it owns from now on.
    fn visit<D: Device>(self, device: D) -> Result<Self::Output>;
}

/// What [`DeviceChoice::Auto`] stands for on this machine, in a precision.
pub fn resolve(choice: DeviceChoice, precision: Precision) -> DeviceChoice {
    match choice {
        DeviceChoice::Auto if precision == Precision::F64 => DeviceChoice::Cpu,
        // A driver that fails to list its GPUs is no reason not to compute.
        DeviceChoice::Auto => cuda::devices()
            .ok()
            .and_then(|listing| Some(DeviceChoice::Cuda(listing.usable()?.ordinal as u32)))
            .unwrap_or(DeviceChoice::Cpu),
        other => other,
    }
}

/// Makes the device and hands it to `visitor`. `threads` is the CPU device's number of threads; None: one per core.
///
/// # Errors
/// `Config` for a precision that the device has not, `Device` where it cannot be used; else those of the visitor.
pub fn with_device<V: Visitor>(
    choice: DeviceChoice,
    precision: Precision,
    threads: Option<usize>,
    visitor: V,
) -> Result<V::Output> {
    match (resolve(choice, precision), precision) {
        (DeviceChoice::Cpu | DeviceChoice::Auto, precision) => match precision {
            Precision::F64 => visitor.visit(Cpu::<f64>::new(threads)?),
            Precision::F32 => visitor.visit(Cpu::<f32>::new(threads)?),
            Precision::Tf32 => visitor.visit(Cpu::rounded(threads, Rounding::Tf32)?),
            Precision::Bf16 => visitor.visit(Cpu::rounded(threads, Rounding::Bf16)?),
        },
        (device, Precision::F64) => Err(Error::config(
            format!("--precision on {device}"),
            "f32",
            "f64",
            "f64 is computed on the CPU alone: add --device cpu",
        )),
        (device, precision) => {
            let ordinal = match device {
                DeviceChoice::Cuda(ordinal) => ordinal as usize,
                _ => {
                    cuda::driver::load_emulator()?;
                    0
                }
            };
            match precision {
                Precision::Tf32 => visitor.visit(Cuda::tf32(ordinal)?),
                Precision::Bf16 => visitor.visit(Cuda::bf16(ordinal)?),
                Precision::F32 | Precision::F64 => visitor.visit(Cuda::new(ordinal)?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trains_in_bf16_on_gpus_alone() {
        for (name, precision) in [
            ("cpu", Precision::F32),
            ("emulator", Precision::F32),
            ("cuda:1", Precision::Bf16),
        ] {
            let choice: DeviceChoice = name.parse().unwrap();
            assert_eq!(choice.training_precision(), precision, "{name}");
        }
    }

    #[test]
    fn names_round_trip() {
        for name in ["auto", "cpu", "cuda:0", "cuda:12", "emulator"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for name in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(
                name.parse::<DeviceChoice>().unwrap_err().contains("cuda:N"),
                "{name}"
            );
        }
    }
}
