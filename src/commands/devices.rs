//! `l2b devices`, and what `--version` says.

use std::fmt::Write as _;
use std::io::Write;

use super::print;
use crate::Result;
use crate::device::cuda;
use indicatif::BinaryBytes;

/// Runs `l2b devices`, printing to `out`.
///
/// # Errors
/// `Io`.
pub fn run(out: &mut dyn Write) -> Result<()> {
    print(out, &describe())
}

/// Version, CPU, driver, GPUs, and the kernels in this binary.
pub fn describe() -> String {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let mut text = format!("l2b {}\ncpu       {threads} threads\n", env!("CARGO_PKG_VERSION"));
    let mut line =
        |name: &str, value: String| writeln!(text, "{name:<9} {value}").expect("writing to a string");
    match cuda::devices() {
        Err(error) => line("cuda", error.to_string()),
        Ok(listing) => {
            line(
                "kernels",
                match listing.kernel_bytes {
                    0 => "none for a GPU in this binary: built without nvcc (see scripts/cuda-toolchain)"
                        .into(),
                    bytes => format!(
                        "{}, {}, {}",
                        listing.kernels,
                        listing.architectures,
                        BinaryBytes(bytes as u64)
                    ),
                },
            );
            line(
                "driver",
                match listing.driver {
                    None => "no NVIDIA driver".into(),
                    Some((major, minor)) => format!("CUDA {major}.{minor}"),
                },
            );
            for gpu in &listing.gpus {
                let (major, minor) = gpu.capability;
                let memory = BinaryBytes(gpu.memory as u64);
                line(
                    &format!("cuda:{}", gpu.ordinal),
                    format!(
                        "{}, {major}.{minor}, {} multiprocessors, {memory}",
                        gpu.name, gpu.multiprocessors
                    ),
                );
            }
        }
    }
    let emulator = if cfg!(feature = "emulator") {
        "in this binary, for tests"
    } else {
        "not in this binary"
    };
    line("emulator", emulator.into());
    text
}
