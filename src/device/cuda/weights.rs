//! Launch of kernels/weights.cu.

use super::Cuda;
use super::kernels::{grid, launch};
use super::launcher::Launcher;
use super::memory::{input, output};
use crate::device::{Mem, Normalise, StepParams};
use crate::{Error, Result};

pub(super) fn weights(
    cuda: &Launcher,
    weights: Mem<Cuda>,
    raw: Mem<Cuda>,
    normalise: Normalise,
    step: Mem<Cuda>,
) -> Result<()> {
    let len = raw.bytes / size_of::<f32>();
    if len == 0 {
        return Err(Error::Internal("weights of no entries".into()));
    }
    let weights = output::<f32>("weights", weights, len)?;
    let raw = output::<f32>("raw", raw, len)?;
    let step = input::<StepParams>("step", step, 1)?;
    // The numbers of enum Normalise in weights.cu.
    let (mode, parameter) = match normalise {
        Normalise::Rectify => (0, 0.0),
        Normalise::Softmax { temperature } => (1, temperature as f32),
        Normalise::Sigmoid => (2, 0.0),
        Normalise::Hard { threshold } => (3, threshold as f32),
        Normalise::RectifiedSigmoid => (4, 0.0),
    };
    let (grid, len, mode, parameter): (_, i64, i32, f32) = (grid(1, 1024)?, len as i64, mode, parameter);
    // SAFETY: types as in weights.cu; lengths checked above.
    unsafe {
        launch!(
            cuda,
            cuda.kernels.weights,
            grid,
            weights,
            raw,
            step,
            len,
            mode,
            parameter
        )
    }
}
