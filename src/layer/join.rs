//! Sum of two values, the residual connection.
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
    let Node::Join { a, b, y } = pass.program.nodes[index] else {
        unreachable!("node {index} is a join")
    };
    for (slot, input) in [a, b].into_iter().enumerate() {
        let Some(contribution) = pass.contribution(index, slot) else {
            continue;
        };
        let How::Write(write) = contribution.how else {
            continue;
        };
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
        )?;
    }
    Ok(())
}
