//! Batch-norm and ReLU, pending on a stored tensor: x̂ = (x − mean)·rstd, y = relu(γ·x̂ + β) =
//! relu(A·(x − M) + C).
//!
//! forward  the statistics, then A, C, M; readers evaluate y
//! tangent  ty = mask·(A·tx + B·(x − M) + D); B, D from mean(tx), mean(tx·x̂); readers evaluate it
//! backward dγ = Σ d·x̂, dβ = Σ d, dx = A·d + B·(x − M) + D with d the masked adjoint of y; contracted: Σ d·(v_γ·x̂ + v_β)

use crate::Result;
use crate::device::{Device, Epilogue, Mem, Statistics, Write};
use crate::net::{How, Node, NormId, Pass, Sink};

pub(super) fn forward<D: Device>(pass: &Pass<D>, norm: Option<NormId>) -> Result<()> {
    match norm {
        Some(norm) => pass.device.norm_forward(pass.norm(norm), pass.statistics),
        None => Ok(()),
    }
}

pub(super) fn tangent<'a, D: Device>(pass: &Pass<'a, D>, norm: Option<NormId>, v: Mem<'a, D>) -> Result<()> {
    let Some(norm) = norm else { return Ok(()) };
    let layer = &pass.program.norms[norm];
    pass.device.norm_tangent(
        pass.norm(norm),
        pass.tangent_statistics(norm),
        pass.param(v, layer.gamma),
        pass.param(v, layer.beta),
    )
}

pub(super) fn backward<'a, D: Device>(pass: &Pass<'a, D>, index: usize, sink: &Sink<'a, D>) -> Result<()> {
    let Node::Pend { x, y, norm } = pass.program.nodes[index] else {
        unreachable!("node {index} is pending")
    };
    let d = pass.adjoint(y);
    if let Some(norm) = norm {
        let layer = &pass.program.norms[norm];
        let memory = pass.norm(norm);
        let flat = match *sink {
            Sink::Gradient(g) => g,
            Sink::Contraction { scratch, .. } => scratch,
        };
        pass.device.norm_backward(
            memory,
            pass.statistics,
            pass.param(flat, layer.gamma),
            pass.param(flat, layer.beta),
            Write::Set,
        )?;
        if let Sink::Contraction { out, v, .. } = *sink {
            pass.device.norm_contract(
                memory,
                pass.plan.batch,
                out,
                pass.value(x),
                d,
                pass.param(v, layer.gamma),
                pass.param(v, layer.beta),
            )?;
        }
    }
    let Some(contribution) = pass.contribution(index, 0) else {
        return Ok(());
    };
    let How::Write(write) = contribution.how else {
        unreachable!("only addends alias")
    };
    // The running statistics are constants: their adjoint has no slope.
    let slope = match (norm, pass.statistics) {
        (Some(norm), Statistics::Batch { .. }) => Some(pass.norm(norm).slope),
        _ => None,
    };
    pass.device.source_backward(
        pass.program.rows(x, pass.plan.batch),
        pass.adjoint(x),
        write,
        d,
        pass.source(y),
        slope,
        Epilogue::none(),
    )
}
