//! Launch of kernels/filters.cu, which brings the filters of many convolutions at once into the layouts that the kernels
//! on tensor cores read. Those on CUDA cores multiply the learned numbers themselves.

use cudarc::driver::DeviceRepr;

use super::format::{Activation, Operands};
use super::kernels::{grid, launch};
use super::launcher::Launcher;
use super::memory::{Aligned, In, Out, input, output};
use super::{Arena, Cuda};
use crate::device::{Arranged, Arrangement, Conv, ConvShape, Filters, Mem};
use crate::{Error, Result};

/// Matrices of a launch; twin of FILTER_MATRICES in kernels/filters.cu.
const MATRICES: usize = 63;
/// Bytes that a block writes: twin of FILTER_PASSES, by 256 threads and 16 bytes.
const BLOCK_BYTES: usize = 4 * 256 * 16;
/// The class of a matrix that holds filters in rows.
const ROWS: i32 = -1;

/// Twin of FilterMatrix in kernels/filters.cu.
#[repr(C)]
#[derive(Clone, Copy)]
struct FilterMatrix {
    /// Written, and no other of a launch lies there.
    out: In,
    w: In,
    shape: ConvShape,
    parity_class: i32,
    first_block: i32,
    reserved: i32,
}

/// Twin of FilterTable.
#[repr(C)]
struct FilterTable {
    matrices: [FilterMatrix; MATRICES],
    count: i32,
    reserved: i32,
}
// SAFETY: plain old data without padding, laid out as its twin in the kernels.
unsafe impl DeviceRepr for FilterTable {}

/// Bytes of a row of `depth` numbers in whole 16-byte chunks: twin of filter_pitch in kernels/conv_index.cuh.
fn pitch(depth: usize, operands: Operands) -> usize {
    (depth * operands.storage().bytes()).next_multiple_of(16)
}

/// Bytes of a row of each parity class of backward-input: twin of class_filters in kernels/conv_index.cuh.
fn class_pitches(shape: &ConvShape, operands: Operands) -> impl Iterator<Item = usize> {
    let &ConvShape {
        k, r, s, stride, pad, ..
    } = shape;
    let taps = move |class: i32, taps: i32| {
        let first = (class + pad) % stride;
        (taps - first)
            .max(0)
            .unsigned_abs()
            .div_ceil(stride.unsigned_abs()) as usize
    };
    let classes = (0..stride).flat_map(move |h| (0..stride).map(move |w| (h, w)));
    classes.map(move |(h, w)| pitch(taps(h, r) * taps(w, s) * k as usize, operands))
}

/// What [`arrange`] writes.
pub(super) fn bytes(shape: &ConvShape, operands: Operands) -> Arranged {
    if operands == Operands::F32 {
        return Arranged::default();
    }
    Arranged {
        forward: shape.k as usize * pitch(shape.taps() * shape.c as usize, operands),
        backward: shape.c as usize * class_pitches(shape, operands).sum::<usize>(),
    }
}

/// Memory of arranged filters.
fn arranged(name: &str, mem: Mem<Cuda>, bytes: usize) -> Result<Out> {
    let out = output::<u8>(name, mem, bytes)?;
    if !out.aligned() {
        return Err(Error::Internal(format!(
            "{name}: filters that are not 16-byte aligned"
        )));
    }
    Ok(out)
}

/// The filters as forward, tangent and contraction of the plan read them.
pub(super) fn forward(name: &str, conv: &Conv<Cuda>, filters: Filters<Arena>) -> Result<In> {
    match conv.prepared.algorithm.operands {
        Operands::F32 => input::<f32>(name, filters.w, conv.shape.w_len()),
        Operands::Tf32 | Operands::Bf16 => {
            arranged(name, filters.forward, conv.prepared.arranged.forward).map(|out| out.read())
        }
    }
}

/// The filters as backward-input of the plan reads them.
pub(super) fn backward(name: &str, conv: &Conv<Cuda>, filters: Filters<Arena>) -> Result<In> {
    let missing = || {
        Error::Internal(format!(
            "{name}: filters that were not arranged for backward-input"
        ))
    };
    match conv.prepared.algorithm.operands {
        Operands::F32 => input::<f32>(name, filters.w, conv.shape.w_len()),
        Operands::Tf32 | Operands::Bf16 => {
            let filters = filters.backward.ok_or_else(missing)?;
            arranged(name, filters, conv.prepared.arranged.backward).map(|out| out.read())
        }
    }
}

/// The matrices of one convolution that tensor cores take, each with its bytes.
fn matrices<A: Activation>(of: &Arrangement<Cuda<A>>) -> Result<Vec<(FilterMatrix, usize)>> {
    let (shape, operands, sizes) = (*of.shape, of.prepared.algorithm.operands, of.prepared.arranged);
    let w = input::<f32>("w", of.filters.w, shape.w_len())?;
    let matrix = |at: u64, parity_class| FilterMatrix {
        out: In(at),
        w,
        shape,
        parity_class,
        first_block: 0,
        reserved: 0,
    };
    let rows = arranged("forward", of.filters.forward, sizes.forward)?;
    let mut list = vec![(matrix(rows.0, ROWS), sizes.forward)];
    if let Some(backward) = of.filters.backward {
        let mut at = arranged("backward", backward, sizes.backward)?.0;
        for (class, pitch) in class_pitches(&shape, operands).enumerate() {
            let bytes = shape.c as usize * pitch;
            list.push((matrix(at, class as i32), bytes));
            at += bytes as u64;
        }
    }
    // A stride beyond the filter leaves classes without taps.
    list.retain(|(_, bytes)| *bytes > 0);
    Ok(list)
}

pub(super) fn arrange<A: Activation>(cuda: &Launcher, list: &[Arrangement<Cuda<A>>]) -> Result<()> {
    let mut all = Vec::new();
    for of in list
        .iter()
        .filter(|of| of.prepared.algorithm.operands != Operands::F32)
    {
        all.extend(matrices(of)?);
    }
    for part in all.chunks(MATRICES) {
        let mut table = FilterTable {
            matrices: [part[0].0; MATRICES],
            count: part.len() as i32,
            reserved: 0,
        };
        let mut blocks = 0;
        for (place, (matrix, bytes)) in table.matrices.iter_mut().zip(part) {
            *place = FilterMatrix {
                first_block: blocks as i32,
                ..*matrix
            };
            blocks += bytes.div_ceil(BLOCK_BYTES);
        }
        let kernel = cuda.storage().pick(&cuda.kernels.arrange_filters);
        // SAFETY: types as in filters.cu; every matrix has the blocks that cover it, in memory of its length.
        unsafe { launch!(cuda, kernel, grid(blocks, 256)?, table) }?;
    }
    Ok(())
}
