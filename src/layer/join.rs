//! Sum of two values, the residual connection, where no convolution carries it (`net/absorb.rs`).
//!
//! forward  y  = a + b
//! tangent  ty = ta + tb
//! backward da += dy, db += dy; where that is the first contribution, mostly by sharing dy's memory

use crate::Result;
use crate::device::{Device, Source};
use crate::net::{How, Node, Pass, ValueId};

pub(super) fn forward<D: Device>(pass: &Pass<D>, a: ValueId, b: ValueId, y: ValueId) -> Result<()> {
    pass.device.join_forward(
        pass.program.rows(y, pass.plan.batch),
        pass.value(y),
        pass.source(a),
        pass.source(b),
        pass.forward_epilogue(y),
    )
}

pub(super) fn tangent<D: Device>(pass: &Pass<D>, a: ValueId, b: ValueId, y: ValueId) -> Result<()> {
    pass.device.join_tangent(
        pass.program.rows(y, pass.plan.batch),
        pass.plan.tangents[y].of(pass.arena),
        (pass.source(a), pass.source_tangent(a)),
        (pass.source(b), pass.source_tangent(b)),
        pass.tangent_epilogue(y),
    )
}

pub(super) fn backward<D: Device>(pass: &Pass<D>, index: usize) -> Result<()> {
    let Node::Join { a, b, .. } = pass.program.nodes[index] else {
        unreachable!("node {index} is a join")
    };
    pass_on(pass, index, 0, a)?;
    pass_on(pass, index, 1, b)
}

/// The adjoint of the node's output to `input`, its addend number `slot`.
pub(super) fn pass_on<D: Device>(pass: &Pass<D>, index: usize, slot: usize, input: ValueId) -> Result<()> {
    let Some(contribution) = pass.contribution(index, slot) else {
        return Ok(());
    };
    let How::Write(write) = contribution.how else {
        return Ok(());
    };
    let y = pass.program.nodes[index].output();
    // The adjoint of the operand's value is dy itself: a copy, masked where the operand has a ReLU.
    let identity = Source {
        affine: None,
        relu: false,
        ..pass.source(input)
    };
    pass.device.source_backward(
        pass.program.rows(y, pass.plan.batch),
        pass.adjoint(input),
        write,
        pass.adjoint(y),
        identity,
        None,
        pass.adjoint_epilogue(input, contribution),
    )
}
