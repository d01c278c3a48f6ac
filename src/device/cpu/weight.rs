//! The adjoint of a convolution's filter: dw = Σ over pixels of dyᵀ · x, tap by tap. Depth is pixels here, and the tile's
//! rows and columns are filters and channels; where a pixel of x is shorter than a vector, the other way round.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::super::{Conv, ConvShape, Mem, Write};
use super::conv::{prepared, x_rows};
use super::kernel::{Product, ROWS, Row, Run, Widths};
use super::multiply::Input;
use super::parallel::gemm_work;
use super::plan::Share;
use super::source::{Values, add};
use super::view::Views;
use super::{Cpu, Float, Lend, Plan, Rounding};
use crate::Result;

/// Pixels that a tile takes at once.
const DEPTH: usize = 512;
/// Runs that make them up at most.
const RUNS: usize = 128;
/// Filters that a thread takes at once where threads share the filters: whole tiles, and whole cache lines of dy.
const FILTERS: usize = 48;

pub(super) fn backward<T: Float>(
    cpu: &Cpu<T>,
    conv: Conv<Cpu<T>>,
    dw: Mem<Cpu<T>>,
    dbias: Option<Mem<Cpu<T>>>,
    write: Write,
    dy: Mem<Cpu<T>>,
) -> Result<()> {
    let (shape, (plan, rounding)) = (conv.shape, prepared(&conv)?);
    let k = shape.k as usize;
    let mut lend = Lend::new("conv_backward_weight");
    let dw = lend.write::<T>("dw", dw, shape.w_len())?;
    let dbias = dbias
        .map(|dbias| lend.write::<T>("dbias", dbias, k))
        .transpose()?;
    let dy = lend.read::<T>("dy", dy, shape.y_len())?;
    let x = Values::lend(&mut lend, conv.x, x_rows(shape))?;
    let scratch = lend.scratch::<T>(conv.scratch, plan.scratch_len(shape))?;
    let call = Call::new(cpu, shape, plan, rounding, x, dy);
    match plan.weight {
        Share::Filters => call.by_filters(dw, dbias, write, scratch),
        Share::Pixels { chunks } => call.by_pixels(dw, dbias, write, scratch, chunks),
    }
    Ok(())
}

pub struct Call<'a, T> {
    cpu: &'a Cpu<T>,
    shape: &'a ConvShape,
    plan: Plan,
    rounding: Rounding,
    views: Views,
    x: Input<'a, T>,
    dy: Input<'a, T>,
    dy_stored: &'a [T],
    /// dw's rows are taps and channels, its columns filters: `[RSC][K]`.
    turned: bool,
}

impl<'a, T: Float> Call<'a, T> {
    fn new(
        cpu: &'a Cpu<T>,
        shape: &'a ConvShape,
        plan: Plan,
        rounding: Rounding,
        x: Values<'a, T>,
        dy: &'a [T],
    ) -> Self {
        let Widths { lanes, .. } = plan.widths;
        let (c, k) = (shape.c as usize, shape.k as usize);
        let turned = c < lanes && c < k && plan.weight != Share::Filters;
        let (mut x, dy_stored) = (Input::source(x, rounding), dy);
        let mut dy = Input::stored(dy, rounding);
        // Columns are read a vector at a time, also the last ones.
        if turned && k % lanes != 0 {
            dy = dy.copied();
        }
        if !turned && c % lanes != 0 {
            x = x.copied();
        }
        Call {
            cpu,
            shape,
            plan,
            rounding,
            views: Views::forward(shape),
            x,
            dy,
            dy_stored,
            turned,
        }
    }

    fn work(&self) -> usize {
        gemm_work(self.shape.y_len() * self.shape.taps() * self.shape.c as usize)
    }

    /// Threads share the filters: x is evaluated as a whole first.
    fn by_filters(&self, dw: &mut [T], dbias: Option<&mut [T]>, write: Write, scratch: &mut [T]) {
        /// Values evaluated at once.
        const LINES: usize = 16;
        let (cpu, shape, lanes) = (self.cpu, self.shape, self.plan.widths.lanes);
        let [c, k, q, w] = [shape.c, shape.k, shape.q(), shape.w].map(|v| v as usize);
        let (x_room, scratch) = scratch.split_at_mut(shape.x_len() + lanes);
        let (dy_room, _) = scratch.split_at_mut(shape.y_len() + lanes);
        let operand = |input: &Input<'a, T>, room: &'_ mut [T], len: usize, line: usize| {
            if !matches!(input, Input::Stored(_)) {
                let pieces = room[..len].chunks_mut(LINES * line).enumerate();
                cpu.threads.each(len, pieces, |(i, out)| {
                    input.fill(out, i * LINES * line, self.rounding);
                });
            }
        };
        operand(&self.x, x_room, shape.x_len(), w * c);
        operand(&self.dy, dy_room, shape.y_len(), q * k);
        let x = if let Input::Stored(x) = self.x {
            x
        } else {
            &*x_room
        };
        let dy = if let Input::Stored(dy) = self.dy {
            dy
        } else {
            &*dy_room
        };
        let filter = shape.taps() * c;
        let items = dw.chunks_mut(FILTERS * filter).enumerate();
        cpu.threads.each(self.work(), items, |(i, dw)| {
            T::correlate(
                cpu.arch,
                Lines {
                    call: self,
                    lines: 0..self.views.lines(),
                    x: (x, 0),
                    dy: (dy, 0),
                    rows: i * FILTERS..i * FILTERS + dw.len() / filter,
                    out: dw,
                    add: write == Write::Add,
                },
            );
        });
        if let Some(dbias) = dbias {
            if write == Write::Set {
                dbias.fill(T::ZERO);
            }
            for row in self.dy_stored.chunks_exact(k) {
                add(dbias, row);
            }
        }
    }

    /// Threads share the pixels: some sums, added up at the end.
    fn by_pixels(
        &self,
        dw: &mut [T],
        dbias: Option<&mut [T]>,
        write: Write,
        scratch: &mut [T],
        chunks: usize,
    ) {
        let (cpu, shape, plan) = (self.cpu, self.shape, &self.plan);
        let [c, k, q] = [shape.c, shape.k, shape.q()].map(|v| v as usize);
        let (sums, scratch) = scratch.split_at_mut(chunks * (dw.len() + k));
        let (own_x, own_y) = plan.forward_lens(shape);
        let workspaces = scratch.chunks_exact_mut(own_x + own_y);
        let (lines, piece) = (self.views.lines(), plan.forward.lines);
        let pieces = lines.div_ceil(piece);
        let each = sums.chunks_exact_mut(dw.len() + k).enumerate();
        cpu.threads
            .each_with(self.work(), workspaces, each, |workspace, (i, sums)| {
                let (x_room, dy_room) = workspace.split_at_mut(own_x);
                let (dw, dbias) = sums.split_at_mut(shape.w_len());
                dbias.fill(T::ZERO);
                let all =
                    (pieces * i / chunks * piece).min(lines)..(pieces * (i + 1) / chunks * piece).min(lines);
                let mut add_up = false;
                for start in all.clone().step_by(piece) {
                    let lines = start..(start + piece).min(all.end);
                    let read = self.views.lines_read(lines.clone());
                    let line = self.views.line_read_len();
                    let (x_start, dy_start) = (read.start * line, start * q * k);
                    let dy_end = lines.end * q * k;
                    T::correlate(
                        cpu.arch,
                        Lines {
                            call: self,
                            lines,
                            x: (
                                self.x.get(x_room, x_start..read.end * line, self.rounding),
                                x_start,
                            ),
                            dy: (self.dy.get(dy_room, dy_start..dy_end, self.rounding), dy_start),
                            rows: 0..if self.turned { c } else { k },
                            out: dw,
                            add: add_up,
                        },
                    );
                    add_up = true;
                    for row in self.dy_stored[dy_start..dy_end].chunks_exact(k) {
                        add(dbias, row);
                    }
                }
                if !add_up {
                    dw.fill(T::ZERO);
                }
            });
        let (sums, stride) = (&*sums, shape.w_len() + k);
        if self.turned {
            add_turned(dw, write, sums, shape.taps() * c, stride);
        } else {
            add_chunks(cpu, dw, write, sums, 0, stride);
        }
        if let Some(dbias) = dbias {
            add_chunks(cpu, dbias, write, sums, shape.w_len(), stride);
        }
    }
}

/// out ← or += the chunks' sums, in order; chunk i's begin at `first + i·stride`.
fn add_chunks<T: Float>(cpu: &Cpu<T>, out: &mut [T], write: Write, sums: &[T], first: usize, stride: usize) {
    const PIECE: usize = 1 << 12;
    let work = sums.len();
    cpu.threads
        .each(work, out.chunks_mut(PIECE).enumerate(), |(i, out)| {
            let mut at = first + i * PIECE;
            if write == Write::Set {
                out.copy_from_slice(&sums[at..at + out.len()]);
                at += stride;
            }
            while at < sums.len() {
                add(out, &sums[at..at + out.len()]);
                at += stride;
            }
        });
}

/// out `[K][depth]` ← or += the chunks' sums `[depth][K]`, in order.
fn add_turned<T: Float>(out: &mut [T], write: Write, sums: &[T], depth: usize, stride: usize) {
    let filters = out.len() / depth;
    for (i, out) in out.iter_mut().enumerate() {
        let (k, d) = (i / depth, i % depth);
        let mut value = if write == Write::Set { T::ZERO } else { *out };
        for sums in sums.chunks_exact(stride) {
            value += sums[d * filters + k];
        }
        *out = value;
    }
}

/// The pixels of some output lines, for some rows of the result.
pub struct Lines<'a, T> {
    call: &'a Call<'a, T>,
    lines: Range<usize>,
    /// Elements, and the first one's place in the tensor.
    x: (&'a [T], usize),
    dy: (&'a [T], usize),
    /// Filters, or channels where dw is turned.
    rows: Range<usize>,
    /// Begins with the first row.
    out: &'a mut [T],
    add: bool,
}

impl<T: Float> WithSimd for Lines<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let shape = self.call.shape;
        for r in 0..shape.r as usize {
            for s in 0..shape.s as usize {
                self.tap(simd, r, s);
            }
        }
    }
}

impl<T: Float> Lines<'_, T> {
    /// The rows of one tap.
    #[inline(always)]
    fn tap<S: Simd>(&mut self, simd: S, r: usize, s: usize) {
        let shape = self.call.shape;
        let view = self.call.views.iter().next().expect("a forward view");
        let [c, k, h, w, stride] = [shape.c, shape.k, shape.h, shape.w, shape.stride].map(|v| v as usize);
        let (p, q) = (view.rows.count, view.columns.count);
        let (rows, columns) = (view.rows.outputs_of(r), view.columns.outputs_of(s));
        let (x_step, dy_step) = (stride * c, k);
        let mut runs = [Run::default(); RUNS];
        let (mut count, mut steps, mut add) = (0, 0, self.add);
        for n in self.lines.start / p..self.lines.end.div_ceil(p) {
            let first = self.lines.start.saturating_sub(n * p).max(rows.start);
            let last = (self.lines.end - n * p).min(rows.end);
            for j in first..last {
                if columns.is_empty() {
                    continue;
                }
                let (row, column) = (
                    view.rows.pixel(j, r) as usize,
                    view.columns.pixel(columns.start, s) as usize,
                );
                let x = ((n * h + row) * w + column) * c - self.x.1;
                let dy = ((n * p + j) * q + columns.start) * k - self.dy.1;
                let (a, b) = if self.call.turned { (x, dy) } else { (dy, x) };
                runs[count] = Run {
                    a,
                    b,
                    len: columns.len(),
                };
                (count, steps) = (count + 1, steps + columns.len());
                if count == RUNS || steps >= DEPTH {
                    self.tiles(
                        simd,
                        r * shape.s as usize + s,
                        &runs[..count],
                        (x_step, dy_step),
                        add,
                    );
                    (count, steps, add) = (0, 0, true);
                }
            }
        }
        // Where nothing is read, zeros are stored all the same.
        if count > 0 || !add {
            self.tiles(
                simd,
                r * shape.s as usize + s,
                &runs[..count],
                (x_step, dy_step),
                add,
            );
        }
    }

    #[inline(always)]
    fn tiles<S: Simd>(
        &mut self,
        simd: S,
        tap: usize,
        runs: &[Run],
        (x_step, dy_step): (usize, usize),
        add: bool,
    ) {
        let width = self.call.plan.widths.columns;
        let shape = self.call.shape;
        let (c, k, taps) = (shape.c as usize, shape.k as usize, shape.taps());
        let turned = self.call.turned;
        let ((a, a_step), (b, b_step), all) = if turned {
            ((self.x.0, x_step), (self.dy.0, dy_step), k)
        } else {
            ((self.dy.0, dy_step), (self.x.0, x_step), c)
        };
        for first in (0..all).step_by(width) {
            let mut shifted = [Run::default(); RUNS];
            for (shifted, run) in shifted.iter_mut().zip(runs) {
                *shifted = Run {
                    b: run.b + first,
                    ..*run
                };
            }
            let runs = &shifted[..runs.len()];
            let columns = width.min(all - first);
            let product = Product::new(
                self.call.plan.widths,
                (a, a_step),
                (b, b_step),
                runs,
                columns,
                add,
            );
            for start in self.rows.clone().step_by(ROWS) {
                let mut tile = [Row::default(); ROWS];
                let count = ROWS.min(self.rows.end - start);
                for (i, row) in tile[..count].iter_mut().enumerate() {
                    let row_number = start + i;
                    *row = Row {
                        a: row_number,
                        out: first
                            + if turned {
                                (tap * c + row_number) * k
                            } else {
                                ((row_number - self.rows.start) * taps + tap) * c
                            },
                    };
                }
                product.tile(simd, &tile[..count], self.out);
            }
        }
    }
}
