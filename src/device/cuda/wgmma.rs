//! Launches of kernels/conv_wgmma_sm90.cu: 3x3 convolutions of stride 1 in bf16 on GPUs of compute capability 9.0. Its
//! operands reach shared memory by bulk copies, which tensor maps describe.

use cudarc::driver::{DeviceRepr, LaunchConfig, sys};

use super::driver::device_error;
use super::format::Operands;
use super::kernels::{Sm90Kernels, launch};
use super::launcher::Launcher;
use super::memory::{In, KernelEpilogue, KernelSource, KernelTangent, Out};
use crate::device::ConvShape;
use crate::{Error, Result};

/// Pixels of a slab; twin of SLAB_PIXELS in kernels/conv_wgmma.cuh.
pub(super) const SLAB_PIXELS: i32 = 64;
/// Channels of a stage; twin of DEPTH.
const DEPTH: u32 = 32;
/// Threads of a block; twin of THREADS.
const THREADS: u32 = 512;

/// Pixels of an image in a slab, where the kernel takes a convolution; backward to its input is one of the same kind.
/// Its tiles are whole: the epilogue's sums are of 128 pixels each.
pub(super) fn slab_width(shape: &ConvShape, operands: Operands) -> Option<i32> {
    let window = (shape.r, shape.s, shape.stride, shape.pad) == (3, 3, 1, 1);
    let channels = shape.c % 64 == 0 && shape.k % 64 == 0;
    if operands != Operands::Bf16 || !window || !channels || shape.h % 2 != 0 {
        return None;
    }
    (0..=6)
        .rev()
        .map(|log2| 1 << log2)
        .find(|width| shape.w % width == 0 && shape.n % (SLAB_PIXELS / width) == 0)
}

/// Output elements of a tile.
pub(super) const TILE: usize = 512 * SLAB_PIXELS as usize;

/// Filters of a tile of an output of `channels` channels.
fn filters(channels: i32) -> i32 {
    if channels % 128 == 0 { 128 } else { 64 }
}

/// Tiles of an output [n,h,w,channels] in slabs of this width; twin of WgmmaPlace::count.
pub(super) fn tiles((n, h, w): (i32, i32, i32), channels: i32, width: i32) -> i32 {
    let (filters, images) = (filters(channels), SLAB_PIXELS / width);
    let up = |a: i32, b: i32| (a + b - 1) / b;
    n / images * (w / width) * up(h * filters, 512) * up(channels, filters)
}

/// What cuTensorMapEncodeTiled wrote.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct TensorMap(sys::CUtensorMap);
// SAFETY: kernels take it by value, as the driver wrote it.
unsafe impl DeviceRepr for TensorMap {}

impl TensorMap {
    /// Of a dense tensor of bf16, dimensions and box fastest first, for boxes of 64-byte or 128-byte rows, swizzled so.
    pub fn new<const RANK: usize>(tensor: In, dims: [i32; RANK], tile: [u32; RANK]) -> Result<Self> {
        let swizzle = match tile[0] {
            64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        };
        let mut map = TensorMap(sys::CUtensorMap { opaque: [0; 16] });
        let dims = dims.map(|d| d as u64);
        let mut strides = [0u64; RANK];
        let mut bytes = 2;
        for (stride, dim) in strides.iter_mut().zip(dims) {
            bytes *= dim;
            *stride = bytes;
        }
        // SAFETY: all arrays hold at least RANK numbers (one stride too many); the tensor is not touched.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map.0,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                RANK as u32,
                tensor.0 as *mut _,
                dims.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                [1; RANK].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|error| device_error("tensor map", error))?;
        Ok(map)
    }
}

/// Twin of WgmmaShape in kernels/conv_wgmma.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct WgmmaShape {
    n: i32,
    h: i32,
    w: i32,
    c: i32,
    k: i32,
    width_log2: i32,
    products: i32,
    mirrored: i32,
}
// SAFETY: plain old data without padding, laid out as its twin in the kernels.
unsafe impl DeviceRepr for WgmmaShape {}

/// One of the products that are summed: images [N,H,W,C] and filters [K][9][C] as filters.cu writes them.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub x: In,
    pub filters: In,
}

/// Filters of a tile, bytes of its shared memory: twins of the instances in conv_wgmma_sm90.cu and of SHARED_BYTES.
const TILES: [(i32, u32); 2] = [(64, shared(64)), (128, shared(128))];

const fn shared(filters: u32) -> u32 {
    let slabs = (512 / filters + 2) * 4096;
    4 * (slabs + 3 * filters * DEPTH * 2) + 2 * 8192
}

/// Lets the kernels have their shared memory.
pub(super) fn allow_shared(kernels: &Sm90Kernels) -> Result<()> {
    (kernels.conv_wgmma.iter().zip(TILES)).try_for_each(|(kernel, (_, bytes))| kernel.allow_shared(bytes))
}

/// out [N,H,W,K] = sum over one or two products of the convolution of [N,H,W,C] + bias, then the epilogue. Of the last
/// product the operand is the value of `source`, of a first one before it its tangent: `x` is then tx, or once more the
/// source's without one. `width` is that of [`slab_width`]; `mirrored` takes the taps in the opposite order.
#[allow(clippy::too_many_arguments)]
pub(super) fn convolve(
    cuda: &Launcher,
    kernels: &Sm90Kernels,
    (n, h, w): (i32, i32, i32),
    (c, k): (i32, i32),
    width: i32,
    products: &[Product],
    (source, tangent): (KernelSource, KernelTangent),
    mirrored: bool,
    out: Out,
    bias: In,
    end: KernelEpilogue,
) -> Result<()> {
    let filters = filters(k);
    let (kernel, (_, shared_mem_bytes)) = (kernels.conv_wgmma.iter().zip(TILES))
        .find(|(_, (tile, _))| *tile == filters)
        .ok_or_else(|| Error::Internal(format!("no tile of {filters} filters")))?;
    let operands = |product: &Product| {
        let slab = [DEPTH, width as u32, 1, (SLAB_PIXELS / width) as u32];
        let x = TensorMap::new(product.x, [c, w, h, n], slab)?;
        let filters = TensorMap::new(product.filters, [c, 9, k], [DEPTH, 1, filters as u32])?;
        Ok((x, filters))
    };
    let (x0, w0) = operands(&products[0])?;
    let (x1, w1) = operands(&products[products.len() - 1])?;
    let shape = WgmmaShape {
        n,
        h,
        w,
        c,
        k,
        width_log2: width.ilog2() as i32,
        products: products.len() as i32,
        mirrored: mirrored.into(),
    };
    let tiles = tiles((n, h, w), k, width);
    let grid = LaunchConfig {
        grid_dim: (kernels.multiprocessors.min(tiles as u32), 1, 1),
        block_dim: (THREADS, 1, 1),
        shared_mem_bytes,
    };
    // SAFETY: types as in conv_wgmma_sm90.cu; the caller has checked lengths and alignment, and `slab_width` the shape.
    unsafe {
        launch!(
            cuda, kernel, grid, out, x0, w0, x1, w1, source, tangent, bias, end, shape
        )
    }
}
