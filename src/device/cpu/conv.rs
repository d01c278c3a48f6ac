//! Convolution as products over pixels and taps.
//!
//! ```text
//! forward   y  [NPQ][K]   = Σ over taps of x's pixels [C] · wᵀ + bias
//! tangent   ty            = the same of the tangent of x and w, and of x and tw, + tbias
//! input     d  [NHW][C]   = Σ over taps of dy's pixels [K] · w
//! weight    dw [K][RSC]   = Σ over pixels of dyᵀ · x            (`weight`)
//! contract  out [N]       = Σ over a sample of dy · (forward of x and tw + tbias)
//! ```
//! A source is evaluated once a piece, into a buffer that stays in the cache; a tensor stored as it is needed is read where
//! it lies. A linear layer is the case of one tap.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::super::{Conv, ConvShape, Epilogue, Filters, Mem, Rows, Tangent, Write};
use super::epilogue::Finish;
use super::multiply::{Direction, Input, Piece, pack};
use super::parallel::gemm_work;
use super::plan::Pieces;
use super::source::{self, Slopes, Values};
use super::view::Views;
use super::{Algorithm, Arena, Cpu, Float, Lend, Plan, Rounding};
use crate::{Error, Result};

/// One product of an accumulation: what is read, and the packed filter.
pub struct Term<'a, T> {
    pub(super) input: Input<'a, T>,
    pub(super) filter: &'a [T],
}

/// Plan and rounding of a prepared convolution.
pub(super) fn prepared<T: Float>(conv: &Conv<Cpu<T>>) -> Result<(Plan, Rounding)> {
    match conv.prepared.algorithm {
        Algorithm::Conv(plan, rounding) => Ok((plan, rounding)),
        Algorithm::Rows => Err(Error::Internal(format!("{:?} was not prepared", conv.shape))),
    }
}

pub(super) fn x_rows(shape: &ConvShape) -> Rows {
    Rows {
        rows: shape.x_rows() as i32,
        channels: shape.c,
    }
}

fn y_rows(shape: &ConvShape) -> Rows {
    Rows {
        rows: shape.y_rows() as i32,
        channels: shape.k,
    }
}

pub(super) fn forward<T: Float>(
    cpu: &Cpu<T>,
    conv: Conv<Cpu<T>>,
    y: Mem<Cpu<T>>,
    w: Filters<Arena>,
    bias: Option<Mem<Cpu<T>>>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let (shape, (plan, rounding)) = (conv.shape, prepared(&conv)?);
    let mut lend = Lend::new("conv_forward");
    let y = lend.write::<T>("y", y, shape.y_len())?;
    let x = Values::lend(&mut lend, conv.x, x_rows(shape))?;
    let w = lend.read::<T>("w", w.w, shape.w_len())?;
    let bias = bias
        .map(|bias| lend.read::<T>("bias", bias, shape.k as usize))
        .transpose()?;
    let scratch = lend.scratch::<T>(conv.scratch, plan.scratch_len(shape))?;
    let finish = Finish::lend(&mut lend, epilogue, y_rows(shape), rounding)?;
    let (filter, scratch) =
        scratch.split_at_mut(plan.filter_len(shape.taps() * shape.c as usize, shape.k as usize));
    pack(cpu, plan.widths, rounding, filter, w, shape, Direction::Forward);
    let pass = Pass {
        cpu,
        plan: &plan,
        rounding,
        views: Views::forward(shape),
        pieces: plan.forward,
        outputs: shape.k as usize,
        bias,
    };
    let term = Term {
        input: Input::source(x, rounding),
        filter,
    };
    pass.run(y, Write::Set, &[term], scratch, finish);
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub(super) fn tangent<T: Float>(
    cpu: &Cpu<T>,
    conv: Conv<Cpu<T>>,
    ty: Mem<Cpu<T>>,
    tx: Tangent<Arena>,
    w: Filters<Arena>,
    tw: Filters<Arena>,
    tbias: Option<Mem<Cpu<T>>>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let (shape, (plan, rounding)) = (conv.shape, prepared(&conv)?);
    let mut lend = Lend::new("conv_tangent");
    let ty = lend.write::<T>("ty", ty, shape.y_len())?;
    let x = Values::lend(&mut lend, conv.x, x_rows(shape))?;
    let tx = Slopes::lend(&mut lend, tx, x_rows(shape))?;
    let w = lend.read::<T>("w", w.w, shape.w_len())?;
    let tw = lend.read::<T>("tw", tw.w, shape.w_len())?;
    let tbias = tbias
        .map(|tbias| lend.read::<T>("tbias", tbias, shape.k as usize))
        .transpose()?;
    let scratch = lend.scratch::<T>(conv.scratch, plan.scratch_len(shape))?;
    let finish = Finish::lend(&mut lend, epilogue, y_rows(shape), rounding)?;
    let filter_len = plan.filter_len(shape.taps() * shape.c as usize, shape.k as usize);
    let (filter, scratch) = scratch.split_at_mut(filter_len);
    let (tfilter, scratch) = scratch.split_at_mut(filter_len);
    pack(cpu, plan.widths, rounding, tfilter, tw, shape, Direction::Forward);
    let pass = Pass {
        cpu,
        plan: &plan,
        rounding,
        views: Views::forward(shape),
        pieces: plan.forward,
        outputs: shape.k as usize,
        bias: tbias,
    };
    let first = Term {
        input: Input::source(x, rounding),
        filter: tfilter,
    };
    if tx.is_zero() {
        pass.run(ty, Write::Set, &[first], scratch, finish);
        return Ok(());
    }
    pack(cpu, plan.widths, rounding, filter, w, shape, Direction::Forward);
    let second = Term {
        input: Input::tangent(x, tx, rounding),
        filter,
    };
    pass.run(ty, Write::Set, &[first, second], scratch, finish);
    Ok(())
}

pub(super) fn backward_input<T: Float>(
    cpu: &Cpu<T>,
    conv: Conv<Cpu<T>>,
    d: Mem<Cpu<T>>,
    write: Write,
    dy: Mem<Cpu<T>>,
    w: Filters<Arena>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let (shape, (plan, rounding)) = (conv.shape, prepared(&conv)?);
    let mut lend = Lend::new("conv_backward_input");
    let d = lend.write::<T>("d", d, shape.x_len())?;
    let dy = lend.read::<T>("dy", dy, shape.y_len())?;
    let w = lend.read::<T>("w", w.w, shape.w_len())?;
    let scratch = lend.scratch::<T>(conv.scratch, plan.scratch_len(shape))?;
    let finish = Finish::lend(&mut lend, epilogue, x_rows(shape), rounding)?;
    let (filter, scratch) =
        scratch.split_at_mut(plan.filter_len(shape.taps() * shape.k as usize, shape.c as usize));
    pack(cpu, plan.widths, rounding, filter, w, shape, Direction::Backward);
    let pass = Pass {
        cpu,
        plan: &plan,
        rounding,
        views: Views::backward(shape),
        pieces: plan.backward,
        outputs: shape.c as usize,
        bias: None,
    };
    let term = Term {
        input: Input::stored(dy, rounding),
        filter,
    };
    pass.run(d, write, &[term], scratch, finish);
    Ok(())
}

pub(super) fn contract<T: Float>(
    cpu: &Cpu<T>,
    conv: Conv<Cpu<T>>,
    out: Mem<Cpu<T>>,
    dy: Mem<Cpu<T>>,
    tw: Filters<Arena>,
    tbias: Option<Mem<Cpu<T>>>,
) -> Result<()> {
    let (shape, (plan, rounding)) = (conv.shape, prepared(&conv)?);
    let k = shape.k as usize;
    let mut lend = Lend::new("conv_contract");
    let out = lend.write::<T>("out", out, shape.n as usize)?;
    let dy = lend.read::<T>("dy", dy, shape.y_len())?;
    let x = Values::lend(&mut lend, conv.x, x_rows(shape))?;
    let tw = lend.read::<T>("tw", tw.w, shape.w_len())?;
    let tbias = tbias.map(|tbias| lend.read::<T>("tbias", tbias, k)).transpose()?;
    let scratch = lend.scratch::<T>(conv.scratch, plan.scratch_len(shape))?;
    let (filter, scratch) = scratch.split_at_mut(plan.filter_len(shape.taps() * shape.c as usize, k));
    pack(cpu, plan.widths, rounding, filter, tw, shape, Direction::Forward);
    let pass = Pass {
        cpu,
        plan: &plan,
        rounding,
        views: Views::forward(shape),
        pieces: plan.forward,
        outputs: k,
        bias: tbias,
    };
    let terms = [Term {
        input: Input::source(x, rounding),
        filter,
    }];
    // One sum a line first: pieces do not end where samples do.
    let (sums, scratch) = scratch.split_at_mut(pass.views.lines());
    let (own_x, own_y) = plan.forward_lens(shape);
    let workspaces = scratch.chunks_exact_mut(own_x + own_y);
    let work = gemm_work(dy.len() * shape.taps() * shape.c as usize);
    let lines = plan.forward.lines;
    let line = shape.q() as usize * k;
    let pieces = sums.chunks_mut(lines).enumerate();
    cpu.threads
        .each_with(work, workspaces, pieces, |workspace, (i, sums)| {
            let (room, ty) = workspace.split_at_mut(own_x);
            let ty = &mut ty[..sums.len() * line];
            pass.piece(i * lines..i * lines + sums.len(), ty, false, &terms, room);
            let dy = &dy[i * lines * line..][..ty.len()];
            for (sum, (ty, dy)) in sums
                .iter_mut()
                .zip(ty.chunks_exact(line).zip(dy.chunks_exact(line)))
            {
                let values = ty.iter().zip(dy);
                *sum = T::from_f64(values.map(|(&ty, &dy)| (ty * dy).to_f64()).sum());
            }
        });
    for (out, sums) in out.iter_mut().zip(sums.chunks_exact(shape.p() as usize)) {
        *out = T::from_f64(out.to_f64() + sums.iter().map(|sum| sum.to_f64()).sum::<f64>());
    }
    Ok(())
}

/// A pass over every line of an output.
pub struct Pass<'a, T> {
    pub(super) cpu: &'a Cpu<T>,
    pub(super) plan: &'a Plan,
    pub(super) rounding: Rounding,
    pub(super) views: Views,
    pub(super) pieces: Pieces,
    pub(super) outputs: usize,
    pub(super) bias: Option<&'a [T]>,
}

impl<T: Float> Pass<'_, T> {
    /// out ← or += Σ terms + bias, then the epilogue.
    fn run(&self, out: &mut [T], write: Write, terms: &[Term<T>], scratch: &mut [T], finish: Finish<T>) {
        let (cpu, lines) = (self.cpu, self.pieces.lines);
        let line = self.views.out_size().1 * self.outputs;
        let depth = terms
            .iter()
            .map(|term| term.filter.len() / self.outputs)
            .sum::<usize>();
        let work = gemm_work(out.len() * depth);
        let room = self.pieces.read.max(1);
        let workspaces = scratch.chunks_exact_mut(room);
        let add = write == Write::Add;
        let product = |room: &mut &mut [T], i: usize, out: &mut [T]| {
            let lines = i * lines..i * lines + out.len() / line;
            self.piece(lines, out, add, terms, room);
        };
        if self.pieces.tiles {
            let (ending, partials) = finish.pieces(lines * line);
            let pieces = out.chunks_mut(lines * line).zip(partials).enumerate();
            cpu.threads
                .each_with(work, workspaces, pieces, |room, (i, (out, partials))| {
                    product(room, i, out);
                    ending.apply(out, i * lines * line, partials);
                });
        } else {
            let pieces = out.chunks_mut(lines * line).enumerate();
            cpu.threads
                .each_with(work, workspaces, pieces, |room, (i, out)| product(room, i, out));
            finish.rows(cpu, out, |_, _| {});
        }
    }

    /// out ← or += Σ terms + bias over some lines.
    pub(super) fn piece(
        &self,
        lines: Range<usize>,
        out: &mut [T],
        add: bool,
        terms: &[Term<T>],
        room: &mut [T],
    ) {
        let work = Lines {
            pass: self,
            lines,
            out: &mut *out,
            add,
            terms,
            room,
        };
        T::convolve(self.cpu.arch, work);
        if let Some(bias) = self.bias {
            for out in out.chunks_exact_mut(self.outputs) {
                source::add(out, bias);
            }
        }
    }
}

/// One piece of a pass.
pub struct Lines<'a, T> {
    pass: &'a Pass<'a, T>,
    lines: Range<usize>,
    out: &'a mut [T],
    add: bool,
    terms: &'a [Term<'a, T>],
    room: &'a mut [T],
}

impl<T: Float> WithSimd for Lines<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let pass = self.pass;
        let read = pass.views.lines_read(self.lines.clone());
        let len = pass.views.line_read_len();
        let mut add = self.add;
        for term in self.terms {
            let input = term
                .input
                .get(self.room, read.start * len..read.end * len, pass.rounding);
            let piece = Piece {
                views: pass.views,
                widths: pass.plan.widths,
                lines: self.lines.clone(),
                input,
                start: read.start * len,
                outputs: pass.outputs,
            };
            piece.multiply(simd, term.filter, self.out, add);
            add = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use pulp::Arch;

    use super::super::super::{Device, Geometry, Region, Source};
    use super::*;

    const SHAPE: ConvShape = ConvShape {
        n: 3,
        h: 7,
        w: 9,
        c: 21,
        k: 45,
        r: 3,
        s: 3,
        stride: 2,
        pad: 1,
    };

    /// y, d and dw on one instruction set.
    fn results(arch: Arch) -> Vec<f32> {
        let cpu = Cpu::<f32> {
            arch,
            ..Cpu::new(Some(1)).unwrap()
        };
        let prepared = cpu.prepare(&Geometry::Conv(SHAPE)).unwrap();
        let lens = [
            SHAPE.x_len(),
            SHAPE.w_len(),
            SHAPE.y_len(),
            SHAPE.x_len(),
            SHAPE.w_len(),
        ];
        let bytes = [4 * lens[0], 4 * lens[1], 4 * lens[2], 4 * lens[3], 4 * lens[4]];
        let arenas = bytes.map(|bytes| cpu.alloc(bytes).unwrap());
        let [x, w, y, d, dw] = [0, 1, 2, 3, 4].map(|i| {
            let region = Region {
                offset: 0,
                bytes: bytes[i],
            };
            region.of(&arenas[i])
        });
        for (span, len) in [(x, lens[0]), (w, lens[1])] {
            let values: Vec<f32> = (0..len).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
            cpu.upload(span, bytemuck::cast_slice(&values)).unwrap();
        }
        let scratch = cpu.alloc(prepared.scratch_bytes).unwrap();
        let conv = Conv {
            shape: &SHAPE,
            prepared: &prepared,
            x: Source {
                x,
                affine: None,
                relu: true,
            },
            scratch: Region {
                offset: 0,
                bytes: prepared.scratch_bytes,
            }
            .of(&scratch),
        };
        let w = Filters {
            w,
            forward: Region::default().of(&scratch),
            backward: None,
        };
        cpu.conv_forward(conv, y, w, None, Epilogue::none()).unwrap();
        cpu.conv_backward_input(conv, d, Write::Set, y, w, Epilogue::none())
            .unwrap();
        cpu.conv_backward_weight(conv, dw, None, Write::Set, y).unwrap();
        [(y, lens[2]), (d, lens[3]), (dw, lens[4])]
            .into_iter()
            .flat_map(|(span, len)| {
                let mut values = vec![0.0f32; len];
                cpu.download(bytemuck::cast_slice_mut(&mut values), span).unwrap();
                values
            })
            .collect()
    }

    #[test]
    fn every_instruction_set_computes_the_same() {
        let mut others = vec![Arch::Scalar];
        #[cfg(target_arch = "x86_64")]
        others.extend(pulp::x86::V3::try_new().map(Arch::V3));
        let want = results(Arch::new());
        assert!(want.iter().any(|v| v.abs() > 1.0));
        for arch in others {
            for (i, (got, want)) in results(arch).iter().zip(&want).enumerate() {
                // Sums of at most 800 products of the size of the values.
                assert!(
                    (got - want).abs() <= 1e-4 * (1.0 + want.abs()),
                    "{arch:?}[{i}]: {got} against {want}"
                );
            }
        }
    }
}
