//! How one convolution is cut into pieces. Pieces depend on the shape alone, memory also on the number of threads.

use super::super::ConvShape;
use super::Float;
use super::patches::Patches;
use crate::{Error, Result};

/// Bytes of patches that one piece aims at: half of a usual L2 cache.
const PATCH_BYTES: usize = 1 << 19;
/// Rows below which a GEMM spends its time on packing the filter.
const MIN_ROWS: usize = 256;
/// Bytes of weight gradient sums kept beside each other.
const CHUNK_BYTES: usize = 1 << 24;
/// Most of them.
const MAX_CHUNKS: usize = 16;

/// Pieces of one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Output lines a piece of the forward pass.
    pub(super) lines: usize,
    /// Stride 1: input lines a piece of the input's adjoint.
    pub(super) back_lines: usize,
    /// Stride above 1: images a piece of the input's adjoint.
    pub(super) back_images: usize,
    /// Sums of the weight gradient that are formed apart and then added up.
    pub(super) chunks: usize,
    /// Threads that may work at once.
    pub(super) workers: usize,
}

impl Plan {
    pub(super) fn new<T: Float>(shape: &ConvShape, threads: usize) -> Result<Self> {
        let sizes = [
            shape.n,
            shape.h,
            shape.w,
            shape.c,
            shape.k,
            shape.r,
            shape.s,
            shape.stride,
        ];
        let fits = sizes.iter().all(|&v| v >= 1)
            && shape.pad >= 0
            && shape.h + 2 * shape.pad >= shape.r
            && shape.w + 2 * shape.pad >= shape.s;
        if !fits {
            return Err(Error::Internal(format!("convolution without output: {shape:?}")));
        }
        let forward = Patches::forward(shape);
        let backward = Patches::backward(shape);
        let lines = piece::<T>(&forward);
        let images = (MIN_ROWS / (forward.p * forward.q)).clamp(1, forward.n);
        let chunks = (CHUNK_BYTES / (shape.w_len() * size_of::<T>()))
            .clamp(2, MAX_CHUNKS)
            .min(forward.lines().div_ceil(lines));
        Ok(Plan {
            lines,
            back_lines: if shape.stride == 1 {
                piece::<T>(&backward)
            } else {
                0
            },
            back_images: images,
            chunks,
            workers: threads,
        })
    }

    /// Values of one thread's workspace: strip, patches, and as many product values.
    pub(super) fn workspace_len(patches: &Patches, lines: usize, products: usize) -> usize {
        patches.strip_len(lines) + lines * patches.q * (patches.depth() + products)
    }

    /// Values of scratch that the largest of the calls needs.
    pub(super) fn scratch_len(&self, shape: &ConvShape) -> usize {
        let forward = Patches::forward(shape);
        let backward = Patches::backward(shape);
        let (k, w_len) = (shape.k as usize, shape.w_len());
        let own = Plan::workspace_len(&forward, self.lines, 0);
        let contract = forward.lines() + self.workers * Plan::workspace_len(&forward, self.lines, k);
        let weight = self.chunks * (w_len + k) + self.workers * own;
        let input = if shape.stride == 1 {
            w_len + self.workers * Plan::workspace_len(&backward, self.back_lines, 0)
        } else {
            self.workers * self.lines * forward.q * forward.depth()
        };
        contract.max(weight).max(input)
    }
}

/// Lines a piece: about PATCH_BYTES of patches, MIN_ROWS rows, and an even number of pieces of like size.
fn piece<T: Float>(patches: &Patches) -> usize {
    let line_bytes = patches.q * patches.depth() * size_of::<T>();
    let lines = (PATCH_BYTES / line_bytes)
        .max(MIN_ROWS.div_ceil(patches.q))
        .clamp(1, patches.lines());
    let pieces = patches.lines().div_ceil(lines).next_multiple_of(2);
    patches.lines().div_ceil(pieces)
}
