//! Geometry crosses to kernels by value: the structs of [`crate::device`] that do, and the test of their layout.

use cudarc::driver::DeviceRepr;

use super::Cuda;
use super::kernels::{grid, launch};
use super::memory::{input, output};
use crate::Result;
use crate::device::{AugmentShape, ConvShape, Device, LossShape, PoolShape, Rows, Span, StepParams};

// SAFETY: plain integers and floats, laid out as their twins in kernels/shapes.cuh, which a test compares.
unsafe impl DeviceRepr for ConvShape {}
unsafe impl DeviceRepr for Rows {}
unsafe impl DeviceRepr for PoolShape {}
unsafe impl DeviceRepr for LossShape {}
unsafe impl DeviceRepr for AugmentShape {}

impl Cuda {
    /// Sends the structs that cross to the device through a kernel and returns their fields, in the order of the
    /// parameters and of declaration, StepParams first. For the test of their layout.
    #[doc(hidden)]
    pub fn echo_shapes(
        &self,
        step: StepParams,
        (conv, rows, pool): (ConvShape, Rows, PoolShape),
        (loss, augment): (LossShape, AugmentShape),
    ) -> Result<Vec<f64>> {
        let mut fields = vec![0.0f64; 36];
        let bytes = size_of_val(&fields[..]);
        let (fields_arena, step_arena) = (self.alloc(bytes)?, self.alloc(size_of::<StepParams>())?);
        let span = |arena, bytes| Span {
            arena,
            offset: 0,
            bytes,
        };
        let step_mem = span(&step_arena, size_of::<StepParams>());
        self.upload(step_mem, bytemuck::bytes_of(&step))?;
        let out = output::<f64>("fields", span(&fields_arena, bytes), fields.len())?;
        let step = input::<StepParams>("step", step_mem, 1)?;
        // SAFETY: types as in shapes.cu; out holds its 36 fields.
        unsafe {
            launch!(
                self.gpu,
                self.gpu.kernels.echo_shapes,
                grid(1, 1)?,
                out,
                step,
                conv,
                rows,
                pool,
                loss,
                augment
            )
        }?;
        self.download(bytemuck::cast_slice_mut(&mut fields), span(&fields_arena, bytes))?;
        Ok(fields)
    }
}
