//! Tensor maps: how bulk copies of the sm_90a kernels find a box of a tensor.

use cudarc::driver::{DeviceRepr, sys};

use super::driver::device_error;
use super::memory::In;
use crate::Result;

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
