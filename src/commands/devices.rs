//! `l2b devices`, and what `--version` says.

use std::io::Write;

use super::print;
use crate::Result;

/// Runs `l2b devices`, printing to `out`.
///
/// # Errors
/// `Io`.
pub fn run(out: &mut impl Write) -> Result<()> {
    print(out, &describe())
}

/// Version, CPU, and what there is of CUDA.
pub fn describe() -> String {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    format!(
        "l2b {}\ncpu   {threads} threads\ncuda  no kernels in this binary\n",
        env!("CARGO_PKG_VERSION")
    )
}
