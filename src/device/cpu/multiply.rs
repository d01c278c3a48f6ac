//! A convolution's product over some lines of its output: every pixel and tap through the one tile of `kernel`.

use std::ops::Range;

use pulp::Simd;

use super::super::ConvShape;
use super::kernel::{Product, ROWS, Row, Run, Widths};
use super::source::{Slopes, Values};
use super::view::{Class, View, Views};
use super::{Cpu, Float, Rounding};

/// Steps of depth that a tile takes at once: four vectors of so many filter values stay in the L2 cache. Nine taps of 64
/// channels, so that the usual depths divide evenly.
const DEPTH: usize = 576;
/// Runs that make them up at most.
const RUNS: usize = 64;

/// What a convolution reads.
#[derive(Clone, Copy)]
pub(super) enum Input<'a, T> {
    /// A tensor as it is stored.
    Stored(&'a [T]),
    /// A stored tensor that must be copied first.
    Copied(&'a [T]),
    Source(Values<'a, T>),
    Tangent(Values<'a, T>, Slopes<'a, T>),
}

impl<'a, T: Float> Input<'a, T> {
    /// A stored tensor.
    pub(super) fn stored(x: &'a [T], rounding: Rounding) -> Self {
        if rounding.keeps_stored() {
            Input::Stored(x)
        } else {
            Input::Copied(x)
        }
    }

    pub(super) fn source(x: Values<'a, T>, rounding: Rounding) -> Self {
        if x.is_identity() {
            Input::stored(x.x, rounding)
        } else {
            Input::Source(x)
        }
    }

    pub(super) fn tangent(x: Values<'a, T>, tx: Slopes<'a, T>, rounding: Rounding) -> Self {
        match tx.stored() {
            Some(tx) if x.is_identity() => Input::stored(tx, rounding),
            _ => Input::Tangent(x, tx),
        }
    }

    /// The tensor is copied even where it is stored as it is needed: what is read behind a row must be memory too.
    pub(super) fn copied(self) -> Self {
        match self {
            Input::Stored(x) => Input::Copied(x),
            other => other,
        }
    }

    /// The elements in `range`: lent, or evaluated into `room`, whatever lies behind them left as it is.
    #[inline(always)]
    pub(super) fn get<'b>(&self, room: &'b mut [T], range: Range<usize>, rounding: Rounding) -> &'b [T]
    where
        'a: 'b,
    {
        match *self {
            Input::Stored(x) => return &x[range],
            // Lines that read nothing but padding.
            _ if range.is_empty() => return room,
            _ => {}
        }
        self.fill(&mut room[..range.len()], range.start, rounding);
        room
    }

    /// out ← the elements from `start` on.
    #[inline(always)]
    pub(super) fn fill(&self, out: &mut [T], start: usize, rounding: Rounding) {
        match self {
            Input::Stored(x) | Input::Copied(x) => out.copy_from_slice(&x[start..start + out.len()]),
            Input::Source(x) => x.eval(out, start),
            Input::Tangent(x, tx) => x.tangent(out, start, *tx),
        }
        rounding.operands(out);
    }
}

/// A filter as the tiles read it: columns by blocks of at most four vectors; in a block `[taps][channels]` rows of its
/// width. Columns past the last are zero.
pub(super) enum Direction {
    /// Channels are C, columns K.
    Forward,
    /// Channels are K, columns C.
    Backward,
}

/// packed ← w `[K][R][S][C]`.
pub(super) fn pack<T: Float>(
    cpu: &Cpu<T>,
    widths: Widths,
    rounding: Rounding,
    packed: &mut [T],
    w: &[T],
    shape: &ConvShape,
    direction: Direction,
) {
    let (taps, c, k) = (shape.taps(), shape.c as usize, shape.k as usize);
    let (channels, outputs, channel_step, column_step) = match direction {
        Direction::Forward => (c, k, 1, taps * c),
        Direction::Backward => (k, c, taps * c, 1),
    };
    let depth = taps * channels;
    let work = packed.len();
    let taps = packed
        .chunks_mut(depth * widths.columns)
        .enumerate()
        .flat_map(|(block, packed)| {
            let width = packed.len() / depth;
            let taps = packed.chunks_exact_mut(channels * width).enumerate();
            taps.map(move |(tap, packed)| (block * widths.columns, width, tap, packed))
        });
    cpu.threads.each(work, taps, |(first, width, tap, packed)| {
        let columns = width.min(outputs - first);
        let start = tap * c + first * column_step;
        if columns < width {
            packed.fill(T::ZERO);
        }
        if column_step == 1 {
            for (i, row) in packed.chunks_exact_mut(width).enumerate() {
                row[..columns].copy_from_slice(&w[start + i * channel_step..][..columns]);
            }
        } else {
            // A block at a time, down the channels: reads go along as many rows of w as the block has columns, and
            // what is written are whole cache lines.
            const BLOCK: usize = 16;
            let mut block = [[T::ZERO; BLOCK]; BLOCK];
            for j in (0..columns).step_by(BLOCK) {
                let across = BLOCK.min(columns - j);
                for (i, rows) in packed.chunks_mut(BLOCK * width).enumerate() {
                    let down = rows.len() / width;
                    for (k, block) in block[..across].iter_mut().enumerate() {
                        let from = start + i * BLOCK + (j + k) * column_step;
                        block[..down].copy_from_slice(&w[from..from + down]);
                    }
                    for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                        for (row, block) in row[j..j + across].iter_mut().zip(&block) {
                            *row = block[i];
                        }
                    }
                }
            }
        }
        rounding.operands(packed);
    });
}

/// The lines of one piece, and the elements that it reads.
pub(super) struct Piece<'a, T> {
    pub views: Views,
    pub widths: Widths,
    pub lines: Range<usize>,
    /// Elements from `start` on.
    pub input: &'a [T],
    pub start: usize,
    pub outputs: usize,
}

impl<T: Float> Piece<'_, T> {
    /// out ← or += input · filter.
    #[inline(always)]
    pub(super) fn multiply<S: Simd>(&self, simd: S, filter: &[T], out: &mut [T], add: bool) {
        for view in self.views.iter() {
            let depth = filter.len() / self.outputs.next_multiple_of(self.widths.lanes);
            for first in (0..self.outputs).step_by(self.widths.columns) {
                let columns = self.widths.columns.min(self.outputs - first);
                let width = columns.next_multiple_of(self.widths.lanes);
                let filter = &filter[depth * first..][..depth * width];
                for rows in view.rows.classes() {
                    for pixels in view.columns.classes() {
                        self.class(simd, &view, (&rows, &pixels), (first, columns), filter, out, add);
                    }
                }
            }
        }
    }

    /// The same for the pixels of one class and some columns.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn class<S: Simd>(
        &self,
        simd: S,
        view: &View,
        (rows, pixels): (&Class, &Class),
        (first, columns): (usize, usize),
        filter: &[T],
        out: &mut [T],
        mut add: bool,
    ) {
        let channels = view.channels;
        let width = columns.next_multiple_of(self.widths.lanes);
        let mut runs = [Run::default(); RUNS];
        let (mut count, mut steps) = (0, 0);
        let mut flush = |runs: &[Run]| {
            let product = Product::new(self.widths, (self.input, 1), (filter, width), runs, columns, add);
            self.tiles(simd, view, (rows, pixels), first, &product, out);
            add = true;
        };
        // Taps of a row that follow one another in memory and in the filter are one stretch of depth.
        let along = if view.columns.runs_on() {
            pixels.taps.len()
        } else {
            1
        };
        for r in rows.taps.clone() {
            for s in pixels.taps.clone().step_by(along.max(1)) {
                let a = self
                    .offset(view, (0, r), (0, s))
                    .wrapping_sub(self.offset(view, (0, 0), (0, 0)));
                let tap = view.rows.tap(r) * view.filter_columns + view.columns.tap(s);
                let mut rest = 0..along * channels;
                while !rest.is_empty() {
                    let len = rest.len().min(DEPTH - steps);
                    runs[count] = Run {
                        a: a.wrapping_add(rest.start),
                        b: (tap * channels + rest.start) * width,
                        len,
                    };
                    (count, steps, rest.start) = (count + 1, steps + len, rest.start + len);
                    if count == RUNS || steps == DEPTH {
                        flush(&runs[..count]);
                        (count, steps) = (0, 0);
                    }
                }
            }
        }
        // Where nothing is read, zeros are stored all the same.
        if count > 0 || rows.taps.is_empty() || pixels.taps.is_empty() {
            flush(&runs[..count]);
        }
    }

    /// Every tile of a class.
    #[inline(always)]
    fn tiles<S: Simd>(
        &self,
        simd: S,
        view: &View,
        (rows, pixels): (&Class, &Class),
        first: usize,
        product: &Product<T>,
        out: &mut [T],
    ) {
        if product.runs.is_empty() && product.add {
            return;
        }
        let mut tile = [Row::default(); ROWS];
        let mut count = 0;
        let height = view.out_height;
        for n in self.lines.start / height..self.lines.end.div_ceil(height) {
            for j in rows.outputs.clone() {
                let line = n * height + view.rows.out_first + j * view.rows.out_step;
                if !self.lines.contains(&line) {
                    continue;
                }
                let image = n * view.rows.extent * view.columns.extent * view.channels;
                let start = image.wrapping_sub(self.start);
                for q in pixels.outputs.clone() {
                    let pixel = view.columns.out_first + q * view.columns.out_step;
                    tile[count] = Row {
                        a: start.wrapping_add(self.offset(view, (j, 0), (q, 0))),
                        out: ((line - self.lines.start) * view.out_width + pixel) * self.outputs + first,
                    };
                    count += 1;
                    if count == ROWS {
                        product.tile(simd, &tile, out);
                        count = 0;
                    }
                }
            }
        }
        if count > 0 {
            product.tile(simd, &tile[..count], out);
        }
    }

    /// Elements from an image's first to the pixel that a tap of an output reads; wraps where that lies outside.
    #[inline(always)]
    fn offset(&self, view: &View, (j, r): (usize, usize), (q, s): (usize, usize)) -> usize {
        let (row, column) = (view.rows.pixel(j, r), view.columns.pixel(q, s));
        ((row * view.columns.extent as isize + column) * view.channels as isize) as usize
    }
}
