//! Launches of kernels/conv_weight_wgmma_sm90.cu: 3x3 convolutions of stride 1 in bf16, backward to the filters, on GPUs of
//! compute capability 9.0.

use cudarc::driver::{DeviceRepr, LaunchConfig};

use super::format::Operands;
use super::kernels::{Sm90Kernels, grid2, launch};
use super::launcher::Launcher;
use super::memory::{In, KernelSource, Out};
use super::tensor_map::TensorMap;
use super::wgmma::takes_window;
use crate::Result;
use crate::device::ConvShape;

/// Channels and filters of a block.
pub(super) const EDGE: i32 = 64;
/// Pixels of a slab, a row of an image or of several; twin of SLAB_PIXELS in kernels/conv_weight_wgmma_sm90.cu.
pub(super) const SLAB_PIXELS: i32 = 64;
/// Bytes of dynamic shared memory: 11 stages of an image slab with a column on both sides and an adjoint slab.
const SHARED_BYTES: u32 = 11 * (96 + 64) * 128;

/// Pixels of an image in a slab, at least 4, where the kernel takes a convolution.
pub(super) fn slab_width(shape: &ConvShape, operands: Operands) -> Option<i32> {
    if !takes_window(shape, operands) || shape.h % 2 != 0 {
        return None;
    }
    (2..=6)
        .rev()
        .map(|log2| 1 << log2)
        .find(|width| shape.w % width == 0 && shape.n % (SLAB_PIXELS / width) == 0)
}

/// Lets the kernel have its shared memory.
pub(super) fn allow_shared(kernels: &Sm90Kernels) -> Result<()> {
    kernels.conv_weight_wgmma.allow_shared(SHARED_BYTES)
}

/// Twin of WeightShape in kernels/conv_weight_wgmma_sm90.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct WeightShape {
    n: i32,
    h: i32,
    w: i32,
    c: i32,
    k: i32,
    width_log2: i32,
    slice_rows: i32,
    add: i32,
}
// SAFETY: plain old data without padding, laid out as its twin in the kernels.
unsafe impl DeviceRepr for WeightShape {}

/// dw [slices][K,3,3,C] (+)= the filters' adjoint over each slice's pixels. `width` is that of [`slab_width`];
/// `slices`: how many, and pixels of one, whole slabs.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward_weight(
    cuda: &Launcher,
    kernels: &Sm90Kernels,
    shape: &ConvShape,
    width: i32,
    (slices, slice_pixels): (usize, i32),
    dw: Out,
    x: KernelSource,
    dy: In,
    add: i32,
) -> Result<()> {
    let &ConvShape { n, h, w, c, k, .. } = shape;
    let images = (SLAB_PIXELS / width) as u32;
    let x_map = TensorMap::new(x.x, [c, w, h, n], [EDGE as u32, width as u32 + 2, 1, images])?;
    let dy_map = TensorMap::new(dy, [k, w, h, n], [EDGE as u32, width as u32, 1, images])?;
    let kernel_shape = WeightShape {
        n,
        h,
        w,
        c,
        k,
        width_log2: width.ilog2() as i32,
        slice_rows: slice_pixels / SLAB_PIXELS,
        add,
    };
    let grid = LaunchConfig {
        shared_mem_bytes: SHARED_BYTES,
        ..grid2((c / EDGE * (k / EDGE)) as usize, slices, (512, 1))?
    };
    // SAFETY: types as in conv_weight_wgmma_sm90.cu; the caller has checked lengths and alignment, `slab_width` the shape.
    unsafe {
        launch!(
            cuda,
            kernels.conv_weight_wgmma,
            grid,
            dw,
            x_map,
            dy_map,
            x,
            kernel_shape
        )
    }
}
