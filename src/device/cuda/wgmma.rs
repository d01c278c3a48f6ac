//! Launches of kernels/conv_wgmma_sm90.cu: 3x3 convolutions of stride 1 in bf16 on GPUs of compute capability 9.0. Its
//! operands reach shared memory by bulk copies, which tensor maps describe.

use cudarc::driver::{DeviceRepr, LaunchConfig, sys};

use super::driver::device_error;
use super::format::Operands;
use super::kernels::{Kernel, Sm90Kernels, launch};
use super::launcher::Launcher;
use super::memory::{In, KernelEpilogue, KernelSource, Out};
use crate::Result;
use crate::device::ConvShape;

/// Pixels of a slab; twin of SLAB_PIXELS in kernels/conv_wgmma.cuh.
pub(super) const SLAB_PIXELS: i32 = 64;
/// Channels of a stage; twin of DEPTH.
const DEPTH: u32 = 64;

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

/// What cuTensorMapEncodeTiled wrote.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct TensorMap(sys::CUtensorMap);
// SAFETY: kernels take it by value, as the driver wrote it.
unsafe impl DeviceRepr for TensorMap {}

impl TensorMap {
    /// Of a dense tensor of bf16, dimensions and box fastest first, for boxes of 128-byte rows.
    pub fn new<const RANK: usize>(tensor: In, dims: [i32; RANK], tile: [u32; RANK]) -> Result<Self> {
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
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
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
struct KernelShape {
    n: i32,
    h: i32,
    w: i32,
    c: i32,
    k: i32,
    width_log2: i32,
    passes: i32,
    mirrored: i32,
}
// SAFETY: plain old data without padding, laid out as its twin in the kernels.
unsafe impl DeviceRepr for KernelShape {}

/// One of the products that are summed: an image operand and filters [K][9][C] as filters.cu writes them.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub source: KernelSource,
    pub filters: In,
}

/// Filters of a tile, bytes of its shared memory: twins of the instances in conv_wgmma_sm90.cu and of SHARED_BYTES.
const TILES: [(i32, u32); 2] = [(64, shared(64)), (128, shared(128))];

const fn shared(filters: u32) -> u32 {
    let slabs = (512 / filters + 2) * 8192;
    2 * (slabs + 3 * filters * DEPTH * 2) + 2 * 128 * filters
}

/// Lets the kernels have their shared memory.
pub(super) fn allow_shared(kernels: &Sm90Kernels) -> Result<()> {
    (kernels.conv_wgmma.iter().zip(TILES)).try_for_each(|(kernel, (_, bytes))| kernel.allow_shared(bytes))
}

/// The tile and kernel for an output of `channels` channels.
fn choose(kernels: &Sm90Kernels, channels: i32) -> (&Kernel, i32, u32) {
    let large = usize::from(channels % 128 == 0);
    let (filters, bytes) = TILES[large];
    (&kernels.conv_wgmma[large], filters, bytes)
}

/// out [N,H,W,K] = sum over one or two products of the convolution of [N,H,W,C] + bias, then the epilogue. `width` is that
/// of [`slab_width`]; `mirrored` takes the taps in the opposite order.
#[allow(clippy::too_many_arguments)]
pub(super) fn convolve(
    cuda: &Launcher,
    kernels: &Sm90Kernels,
    (n, h, w): (i32, i32, i32),
    (c, k): (i32, i32),
    width: i32,
    products: &[Product],
    mirrored: bool,
    out: Out,
    bias: In,
    end: KernelEpilogue,
) -> Result<()> {
    let (kernel, filters, shared_mem_bytes) = choose(kernels, k);
    let operands = |product: &Product| {
        let slab = [DEPTH, width as u32, 1, (SLAB_PIXELS / width) as u32];
        let x = TensorMap::new(product.source.x, [c, w, h, n], slab)?;
        let filters = TensorMap::new(product.filters, [c, 9, k], [DEPTH, 1, filters as u32])?;
        Ok((x, filters, product.source))
    };
    let (x0, w0, source0) = operands(&products[0])?;
    let (x1, w1, source1) = operands(&products[products.len() - 1])?;
    let shape = KernelShape {
        n,
        h,
        w,
        c,
        k,
        width_log2: width.ilog2() as i32,
        passes: products.len() as i32,
        mirrored: mirrored.into(),
    };
    let tiles = (n * width / SLAB_PIXELS)
        * (w / width)
        * (h * filters + 511).div_euclid(512)
        * ((k + filters - 1) / filters);
    let grid = LaunchConfig {
        grid_dim: (kernels.multiprocessors.min(tiles as u32), 1, 1),
        block_dim: (384, 1, 1),
        shared_mem_bytes,
    };
    // SAFETY: types as in conv_wgmma_sm90.cu; the caller has checked lengths and alignment, and `slab_width` the shape.
    unsafe {
        launch!(
            cuda, *kernel, grid, out, x0, w0, x1, w1, source0, source1, bias, end, shape
        )
    }
}
