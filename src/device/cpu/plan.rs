//! How one convolution is cut into pieces. Pieces depend on the shape and the instruction set alone, memory also on the
//! number of threads.

use super::super::ConvShape;
use super::Float;
use super::epilogue::TILE_ROWS;
use super::kernel::Widths;
use super::view::Views;
use crate::{Error, Result};

/// Bytes of input that one piece aims at: a quarter of a usual L2 cache.
const INPUT_BYTES: usize = 1 << 18;
/// Pixels a piece: below, the filter is read more often than it is worth; above, threads go idle.
const PIXELS: (usize, usize) = (256, 1024);
/// Bytes of weight gradient sums kept beside each other.
const CHUNK_BYTES: usize = 1 << 22;
/// Most of them.
const MAX_CHUNKS: usize = 16;
/// Filter bytes from which threads share the filters, and not the pixels, of a weight gradient.
const LARGE_FILTER: usize = 1 << 20;
/// Input bytes up to which they do.
const SHARED_INPUT: usize = 1 << 23;

/// Pieces of one pass over a tensor's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pieces {
    /// Lines a piece.
    pub lines: usize,
    /// Whether a piece holds whole tiles of the per-channel sums.
    pub tiles: bool,
    /// Values that the lines hold which one piece reads.
    pub read: usize,
}

/// How the weight gradient is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// By filters, each over all pixels.
    Filters,
    /// By pixels, into that many sums.
    Pixels { chunks: usize },
}

/// Plan of one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(super) forward: Pieces,
    pub(super) backward: Pieces,
    pub(super) weight: Share,
    pub(super) widths: Widths,
    /// Threads that may work at once.
    pub(super) workers: usize,
}

impl Plan {
    pub(super) fn new<T: Float>(shape: &ConvShape, widths: Widths, threads: usize) -> Result<Self> {
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
        let forward = Pieces::new::<T>(&Views::forward(shape));
        let backward = Pieces::new::<T>(&Views::backward(shape));
        let filter_bytes = shape.w_len() * size_of::<T>();
        let weight = if filter_bytes >= LARGE_FILTER && shape.x_len() * size_of::<T>() <= SHARED_INPUT {
            Share::Filters
        } else {
            Share::Pixels {
                chunks: (CHUNK_BYTES / filter_bytes)
                    .clamp(2, MAX_CHUNKS)
                    .min(Views::forward(shape).lines().div_ceil(forward.lines)),
            }
        };
        Ok(Plan {
            forward,
            backward,
            weight,
            widths,
            workers: threads,
        })
    }

    /// Values of a packed filter of `outputs` columns.
    pub(super) fn filter_len(&self, depth: usize, outputs: usize) -> usize {
        depth * outputs.next_multiple_of(self.widths.lanes)
    }

    /// Values of one thread's input and output of a piece of the forward pass, each with room for a vector behind it.
    pub(super) fn forward_lens(&self, shape: &ConvShape) -> (usize, usize) {
        let pixels = self.forward.lines * shape.q() as usize;
        (
            self.forward.read + self.widths.lanes,
            pixels * shape.k as usize + self.widths.lanes,
        )
    }

    /// Values of scratch that the largest of the calls needs.
    pub(super) fn scratch_len(&self, shape: &ConvShape) -> usize {
        let [n, c, k] = [shape.n, shape.c, shape.k].map(|v| v as usize);
        let taps = shape.taps();
        let (own_x, own_y) = self.forward_lens(shape);
        let filter = self.filter_len(taps * c, k);
        let tangent = 2 * filter + self.workers * own_x;
        let contract = filter + n * shape.p() as usize + self.workers * (own_x + own_y);
        let input = self.filter_len(taps * k, c) + self.workers * self.backward.read;
        let weight = match self.weight {
            Share::Filters => shape.x_len() + shape.y_len() + 2 * self.widths.lanes + k,
            Share::Pixels { chunks } => chunks * (shape.w_len() + k) + self.workers * (own_x + own_y),
        };
        tangent.max(contract).max(input).max(weight)
    }
}

impl Pieces {
    /// About INPUT_BYTES, whole tiles of the sums where that is near, and an even number of pieces where that is near.
    fn new<T: Float>(views: &Views) -> Self {
        let (_, width) = views.out_size();
        let all = views.lines();
        let line_bytes = views.line_read_len() * size_of::<T>();
        let (min, max) = (PIXELS.0.div_ceil(width), (PIXELS.1 / width).max(1));
        let lines = (INPUT_BYTES / line_bytes)
            .min(max)
            .max(min)
            .clamp(1, all.div_ceil(2));
        // The fewest lines that hold whole tiles.
        let tile = TILE_ROWS >> width.trailing_zeros().min(TILE_ROWS.trailing_zeros());
        let tiles = tile <= 4 * lines;
        let lines = if tiles {
            lines.next_multiple_of(tile)
        } else {
            lines
        };
        let starts = (0..all).step_by(lines);
        let read = starts.map(|start| views.lines_read(start..(start + lines).min(all)).len());
        Pieces {
            lines,
            tiles: tiles || lines >= all,
            read: read.max().unwrap_or(0) * views.line_read_len(),
        }
    }
}
