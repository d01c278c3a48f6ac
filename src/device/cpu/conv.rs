//! Convolution as GEMM over patches.
//!
//! ```text
//! forward   y  [NPQ][K]   = patches(x) [NPQ][RSC] · wᵀ + bias
//! tangent   ty            = patches(tangent of x) · wᵀ + patches(x) · twᵀ + tbias
//! input     d  [NHW][C]   = patches(dy) [NHW][RSK] · mirrored w      stride 1
//!                         = scatter(dy · w [K][RSC])                 else
//! weight    dw [K][RSC]   = dyᵀ · patches(x)
//! contract  out [N]       = Σ over a sample of dy · (patches(x) · twᵀ + tbias)
//! ```
//! A linear layer is the case whose patches are the pixels themselves: a plain GEMM on x.

use std::ops::Range;

use super::super::{Conv, ConvShape, Epilogue, Mem, Rows, Tangent, Write};
use super::epilogue::Finish;
use super::gemm::{Matrix, gemm};
use super::parallel::gemm_work;
use super::patches::Patches;
use super::source::{Slopes, Values, add};
use super::{Algorithm, Arena, Cpu, Float, Lend, Plan};
use crate::{Error, Result};

/// One product patches · filter of an accumulation.
struct Term<'a, T> {
    /// Evaluates a run of the patched tensor from an element on.
    fill: &'a (dyn Fn(&mut [T], usize) + Sync),
    /// The patched tensor, where it is stored as it is.
    stored: Option<&'a [T]>,
    /// [depth][outputs].
    filter: Matrix<'a, T>,
}

fn plan<T: Float>(conv: &Conv<Cpu<T>>) -> Result<Plan> {
    match conv.prepared.algorithm {
        Algorithm::Conv(plan) => Ok(plan),
        Algorithm::Rows => Err(Error::Internal(format!("{:?} was not prepared", conv.shape))),
    }
}

fn x_rows(shape: &ConvShape) -> Rows {
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
    w: Mem<Cpu<T>>,
    bias: Option<Mem<Cpu<T>>>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let (shape, plan) = (conv.shape, plan(&conv)?);
    let mut lend = Lend::new("conv_forward");
    let y = lend.write::<T>("y", y, shape.y_len())?;
    let x = Values::lend(&mut lend, conv.x, x_rows(shape))?;
    let w = lend.read::<T>("w", w, shape.w_len())?;
    let bias = bias
        .map(|bias| lend.read::<T>("bias", bias, shape.k as usize))
        .transpose()?;
    let scratch = lend.scratch::<T>(conv.scratch, plan.scratch_len(shape))?;
    let finish = Finish::lend(&mut lend, epilogue, y_rows(shape))?;
    let patches = Patches::forward(shape);
    let term = Term {
        fill: &|values: &mut [T], start| x.eval(values, start),
        stored: x.is_identity().then_some(x.x),
        filter: Matrix::columns(w, patches.depth()),
    };
    products(cpu, plan.lines, &patches, y, Write::Set, &[term], bias, scratch);
    finish.stored(cpu, y);
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub(super) fn tangent<T: Float>(
    cpu: &Cpu<T>,
    conv: Conv<Cpu<T>>,
    ty: Mem<Cpu<T>>,
    tx: Tangent<Arena>,
    w: Mem<Cpu<T>>,
    tw: Mem<Cpu<T>>,
    tbias: Option<Mem<Cpu<T>>>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let (shape, plan) = (conv.shape, plan(&conv)?);
    let mut lend = Lend::new("conv_tangent");
    let ty = lend.write::<T>("ty", ty, shape.y_len())?;
    let x = Values::lend(&mut lend, conv.x, x_rows(shape))?;
    let tx = Slopes::lend(&mut lend, tx, x_rows(shape))?;
    let w = lend.read::<T>("w", w, shape.w_len())?;
    let tw = lend.read::<T>("tw", tw, shape.w_len())?;
    let tbias = tbias
        .map(|tbias| lend.read::<T>("tbias", tbias, shape.k as usize))
        .transpose()?;
    let scratch = lend.scratch::<T>(conv.scratch, plan.scratch_len(shape))?;
    let finish = Finish::lend(&mut lend, epilogue, y_rows(shape))?;
    let patches = Patches::forward(shape);
    let depth = patches.depth();
    let terms = [
        Term {
            fill: &|values: &mut [T], start| x.eval(values, start),
            stored: x.is_identity().then_some(x.x),
            filter: Matrix::columns(tw, depth),
        },
        Term {
            fill: &|values: &mut [T], start| x.tangent(values, start, tx),
            stored: if x.is_identity() { tx.stored() } else { None },
            filter: Matrix::columns(w, depth),
        },
    ];
    let terms = if tx.is_zero() { &terms[..1] } else { &terms };
    products(cpu, plan.lines, &patches, ty, Write::Set, terms, tbias, scratch);
    finish.stored(cpu, ty);
    Ok(())
}

pub(super) fn backward_input<T: Float>(
    cpu: &Cpu<T>,
    conv: Conv<Cpu<T>>,
    d: Mem<Cpu<T>>,
    write: Write,
    dy: Mem<Cpu<T>>,
    w: Mem<Cpu<T>>,
    epilogue: Epilogue<Arena>,
) -> Result<()> {
    let (shape, plan) = (conv.shape, plan(&conv)?);
    let mut lend = Lend::new("conv_backward_input");
    let d = lend.write::<T>("d", d, shape.x_len())?;
    let dy = lend.read::<T>("dy", dy, shape.y_len())?;
    let w = lend.read::<T>("w", w, shape.w_len())?;
    let scratch = lend.scratch::<T>(conv.scratch, plan.scratch_len(shape))?;
    let finish = Finish::lend(&mut lend, epilogue, x_rows(shape))?;
    if shape.stride == 1 {
        let (mirrored, scratch) = scratch.split_at_mut(shape.w_len());
        mirror(cpu, mirrored, w, shape);
        let patches = Patches::backward(shape);
        let term = Term {
            fill: &|values: &mut [T], start| values.copy_from_slice(&dy[start..start + values.len()]),
            stored: Some(dy),
            filter: Matrix::rows(mirrored, shape.c as usize),
        };
        products(cpu, plan.back_lines, &patches, d, write, &[term], None, scratch);
    } else {
        scatter(cpu, &plan, shape, d, write, dy, w, scratch);
    }
    finish.stored(cpu, d);
    Ok(())
}

/// mirrored [R][S][K][C] ← w [K][R][S][C] with the taps in reverse.
fn mirror<T: Float>(cpu: &Cpu<T>, mirrored: &mut [T], w: &[T], shape: &ConvShape) {
    let (k, c, taps) = (shape.k as usize, shape.c as usize, shape.taps());
    let work = mirrored.len();
    let rows = mirrored.chunks_exact_mut(k * c).enumerate();
    cpu.threads.each(work, rows, |(tap, out)| {
        let first = (taps - 1 - tap) * c;
        for (k, out) in out.chunks_exact_mut(c).enumerate() {
            out.copy_from_slice(&w[k * taps * c + first..][..c]);
        }
    });
}

/// The input's adjoint at a stride above 1. A piece is whole images, which alone it adds to.
#[allow(clippy::too_many_arguments)]
fn scatter<T: Float>(
    cpu: &Cpu<T>,
    plan: &Plan,
    shape: &ConvShape,
    d: &mut [T],
    write: Write,
    dy: &[T],
    w: &[T],
    scratch: &mut [T],
) {
    let patches = Patches::forward(shape);
    let (k, depth) = (shape.k as usize, patches.depth());
    let image = patches.h * patches.w * patches.c;
    let work = gemm_work(dy.len() * depth);
    let workspaces = scratch.chunks_exact_mut(plan.lines * patches.q * depth);
    let pieces = d.chunks_mut(plan.back_images * image).enumerate();
    cpu.threads.each_with(work, workspaces, pieces, |cols, (i, d)| {
        if write == Write::Set {
            d.fill(T::ZERO);
        }
        let first = i * plan.back_images;
        let all = first * patches.p..(first + d.len() / image) * patches.p;
        for lines in split(all, plan.lines) {
            let rows = lines.len() * patches.q;
            let dy = &dy[lines.start * patches.q * k..][..rows * k];
            let cols = &mut cols[..rows * depth];
            gemm(
                cols,
                false,
                Matrix::rows(dy, k),
                Matrix::rows(w, depth),
                (rows, depth, k),
            );
            patches.scatter(d, first, cols, lines);
        }
    });
}

pub(super) fn backward_weight<T: Float>(
    cpu: &Cpu<T>,
    conv: Conv<Cpu<T>>,
    dw: Mem<Cpu<T>>,
    dbias: Option<Mem<Cpu<T>>>,
    write: Write,
    dy: Mem<Cpu<T>>,
) -> Result<()> {
    let (shape, plan) = (conv.shape, plan(&conv)?);
    let k = shape.k as usize;
    let mut lend = Lend::new("conv_backward_weight");
    let dw = lend.write::<T>("dw", dw, shape.w_len())?;
    let dbias = dbias
        .map(|dbias| lend.write::<T>("dbias", dbias, k))
        .transpose()?;
    let dy = lend.read::<T>("dy", dy, shape.y_len())?;
    let x = Values::lend(&mut lend, conv.x, x_rows(shape))?;
    let scratch = lend.scratch::<T>(conv.scratch, plan.scratch_len(shape))?;
    let patches = Patches::forward(shape);
    let term = Term {
        fill: &|values: &mut [T], start| x.eval(values, start),
        stored: x.is_identity().then_some(x.x),
        filter: Matrix::rows(&[], 0),
    };
    let (sums, scratch) = scratch.split_at_mut(plan.chunks * (dw.len() + k));
    let workspaces = scratch.chunks_exact_mut(Plan::workspace_len(&patches, plan.lines, 0));
    let work = gemm_work(dy.len() * patches.depth());
    let pieces = patches.lines().div_ceil(plan.lines);
    let chunks = sums.chunks_exact_mut(dw.len() + k).enumerate();
    cpu.threads
        .each_with(work, workspaces, chunks, |workspace, (i, sums)| {
            let (dw, dbias) = sums.split_at_mut(shape.w_len());
            let lines = (pieces * i / plan.chunks * plan.lines).min(patches.lines())
                ..(pieces * (i + 1) / plan.chunks * plan.lines).min(patches.lines());
            dbias.fill(T::ZERO);
            let mut add_up = false;
            for lines in split(lines, plan.lines) {
                let rows = lines.len() * patches.q;
                let dy = &dy[lines.start * patches.q * k..][..rows * k];
                let cols = term.patches(&patches, lines, workspace);
                let sizes = (k, patches.depth(), rows);
                gemm(
                    dw,
                    add_up,
                    Matrix::columns(dy, k),
                    Matrix::rows(cols, patches.depth()),
                    sizes,
                );
                add_up = true;
                for row in dy.chunks_exact(k) {
                    add(dbias, row);
                }
            }
        });
    let sums = &*sums;
    add_chunks(cpu, dw, write, sums, 0, shape.w_len() + k);
    if let Some(dbias) = dbias {
        add_chunks(cpu, dbias, write, sums, shape.w_len(), shape.w_len() + k);
    }
    Ok(())
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

pub(super) fn contract<T: Float>(
    cpu: &Cpu<T>,
    conv: Conv<Cpu<T>>,
    out: Mem<Cpu<T>>,
    dy: Mem<Cpu<T>>,
    tw: Mem<Cpu<T>>,
    tbias: Option<Mem<Cpu<T>>>,
) -> Result<()> {
    let (shape, plan) = (conv.shape, plan(&conv)?);
    let k = shape.k as usize;
    let mut lend = Lend::new("conv_contract");
    let out = lend.write::<T>("out", out, shape.n as usize)?;
    let dy = lend.read::<T>("dy", dy, shape.y_len())?;
    let x = Values::lend(&mut lend, conv.x, x_rows(shape))?;
    let tw = lend.read::<T>("tw", tw, shape.w_len())?;
    let tbias = tbias.map(|tbias| lend.read::<T>("tbias", tbias, k)).transpose()?;
    let scratch = lend.scratch::<T>(conv.scratch, plan.scratch_len(shape))?;
    let patches = Patches::forward(shape);
    let terms = [Term {
        fill: &|values: &mut [T], start| x.eval(values, start),
        stored: x.is_identity().then_some(x.x),
        filter: Matrix::columns(tw, patches.depth()),
    }];
    // One sum a line first: pieces do not end where samples do.
    let (sums, scratch) = scratch.split_at_mut(patches.lines());
    let products_len = plan.lines * patches.q * k;
    let workspaces = scratch.chunks_exact_mut(Plan::workspace_len(&patches, plan.lines, k));
    let work = gemm_work(dy.len() * patches.depth());
    let pieces = sums.chunks_mut(plan.lines).enumerate();
    cpu.threads
        .each_with(work, workspaces, pieces, |workspace, (i, sums)| {
            let (ty, workspace) = workspace.split_at_mut(products_len);
            let ty = &mut ty[..sums.len() * patches.q * k];
            let lines = i * plan.lines..i * plan.lines + sums.len();
            product(&patches, ty, Write::Set, lines, &terms, tbias, workspace);
            let dy = &dy[i * products_len..][..ty.len()];
            let line = patches.q * k;
            for (sum, (ty, dy)) in sums
                .iter_mut()
                .zip(ty.chunks_exact(line).zip(dy.chunks_exact(line)))
            {
                let values = ty.iter().zip(dy);
                *sum = T::from_f64(values.map(|(&ty, &dy)| (ty * dy).to_f64()).sum());
            }
        });
    for (out, sums) in out.iter_mut().zip(sums.chunks_exact(patches.p)) {
        *out = T::from_f64(out.to_f64() + sums.iter().map(|sum| sum.to_f64()).sum::<f64>());
    }
    Ok(())
}

/// out ← or += Σ terms + bias, piece by piece.
#[allow(clippy::too_many_arguments)]
fn products<T: Float>(
    cpu: &Cpu<T>,
    lines: usize,
    patches: &Patches,
    out: &mut [T],
    write: Write,
    terms: &[Term<T>],
    bias: Option<&[T]>,
    scratch: &mut [T],
) {
    let line_len = out.len() / patches.lines();
    let workspaces = scratch.chunks_exact_mut(Plan::workspace_len(patches, lines, 0));
    let work = gemm_work(out.len() * patches.depth() * terms.len());
    let pieces = out.chunks_mut(lines * line_len).enumerate();
    cpu.threads
        .each_with(work, workspaces, pieces, |workspace, (i, out)| {
            let lines = i * lines..i * lines + out.len() / line_len;
            product(patches, out, write, lines, terms, bias, workspace);
        });
}

/// out ← or += Σ terms + bias over some lines.
fn product<T: Float>(
    patches: &Patches,
    out: &mut [T],
    write: Write,
    lines: Range<usize>,
    terms: &[Term<T>],
    bias: Option<&[T]>,
    workspace: &mut [T],
) {
    let (rows, depth) = (lines.len() * patches.q, patches.depth());
    let width = out.len() / rows;
    for (i, term) in terms.iter().enumerate() {
        let cols = term.patches(patches, lines.clone(), workspace);
        let add = i > 0 || write == Write::Add;
        gemm(
            out,
            add,
            Matrix::rows(cols, depth),
            term.filter,
            (rows, width, depth),
        );
    }
    if let Some(bias) = bias {
        for out in out.chunks_exact_mut(width) {
            add(out, bias);
        }
    }
}

impl<T: Float> Term<'_, T> {
    /// The patches of some lines, [lines · Q][depth]: in the workspace, or the tensor itself.
    fn patches<'a>(&'a self, patches: &Patches, lines: Range<usize>, workspace: &'a mut [T]) -> &'a [T] {
        let len = lines.len() * patches.q * patches.depth();
        match self.stored {
            Some(x) if patches.is_pointwise() => &x[lines.start * patches.q * patches.c..][..len],
            _ => {
                let (strip, cols) = workspace.split_at_mut(patches.strip_len(lines.len()));
                let cols = &mut cols[..len];
                patches.gather(cols, strip, lines, self.fill);
                cols
            }
        }
    }
}

/// A range in pieces of at most `len`.
fn split(range: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(len).map(move |start| start..(start + len).min(end))
}
