//! Launch of kernels/augment.cu.

use super::Cuda;
use super::kernels::{grid, launch, limit};
use super::launcher::Launcher;
use super::memory::{input, stored_output};
use crate::device::{AugmentShape, Mem, StepParams};
use crate::{Error, Result};

pub(super) fn augment(
    cuda: &Launcher,
    shape: AugmentShape,
    out: Mem<Cuda>,
    images: Mem<Cuda>,
    ids: Mem<Cuda>,
    table: Mem<Cuda>,
    step: Mem<Cuda>,
) -> Result<()> {
    let (n, c) = (shape.n as usize, shape.c as usize);
    let image = shape.h as usize * shape.w as usize * c;
    limit("augmentation", "H·W·C", image)?;
    if shape.pad < 0 {
        return Err(Error::Internal(format!("augmentation of {shape:?}")));
    }
    let out = stored_output(cuda.storage(), "out", out, n * image)?;
    let images = match shape.gather {
        0 => input::<u8>("images", images, n * image)?,
        // The ids are data: whoever makes them keeps them below the number of images.
        _ => input::<u8>("images", images, (images.bytes / image).max(1) * image)?,
    };
    let ids = input::<u32>("ids", ids, n)?;
    let table = input::<f32>("table", table, c * 256)?;
    let step = input::<StepParams>("step", step, 1)?;
    // SAFETY: types as in augment.cu; lengths checked above, one image per block.
    unsafe {
        launch!(
            cuda,
            cuda.storage().pick(&cuda.kernels.augment),
            grid(n, 256)?,
            out,
            images,
            ids,
            table,
            step,
            shape
        )
    }
}
