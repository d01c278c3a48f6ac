//! Average pooling.
//!
//! forward  y  = mean of x over the window
//! tangent  ty = mean of tx over the window
//! backward dx += dy / window

use crate::Result;
use crate::device::{Device, Geometry, PoolShape};
use crate::net::{How, Node, Pass, ValueId};

fn args<D: Device>(pass: &Pass<D>, index: usize) -> (PoolShape, ValueId, ValueId) {
    match (&pass.program.nodes[index], pass.plan.nodes[index].geometry) {
        (&Node::Pool { x, y, .. }, Some(Geometry::Pool(shape))) => (shape, x, y),
        _ => unreachable!("node {index} is a planned pool"),
    }
}

pub(super) fn forward<D: Device>(pass: &Pass<D>, index: usize) -> Result<()> {
    let (shape, x, y) = args(pass, index);
    pass.device.pool_forward(shape, pass.value(y), pass.source(x))
}

pub(super) fn tangent<D: Device>(pass: &Pass<D>, index: usize) -> Result<()> {
    let (shape, x, y) = args(pass, index);
    pass.device.pool_tangent(
        shape,
        pass.plan.tangents[y].of(pass.arena),
        pass.source(x),
        pass.source_tangent(x),
    )
}

pub(super) fn backward<D: Device>(pass: &Pass<D>, index: usize) -> Result<()> {
    let (shape, x, y) = args(pass, index);
    let Some(contribution) = pass.contribution(index, 0) else {
        return Ok(());
    };
    let How::Write(write) = contribution.how else {
        unreachable!("only joins alias")
    };
    pass.device.pool_backward(
        shape,
        pass.adjoint(x),
        write,
        pass.adjoint(y),
        pass.adjoint_epilogue(x, contribution),
    )
}
