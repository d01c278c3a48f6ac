//! The node kinds, one file each: forward, tangent, backward side by side.

mod conv;
mod join;
mod pend;
mod pool;

use crate::Result;
use crate::device::{Device, Mem};
use crate::net::{Node, Pass, Sink};

/// Forward pass of one node.
pub(crate) fn forward<D: Device>(pass: &Pass<D>, node: usize) -> Result<()> {
    match pass.program.nodes[node] {
        Node::Conv { .. } => conv::forward(pass, node),
        Node::Pend { norm, .. } => pend::forward(pass, norm),
        Node::Join { a, b, y } => join::forward(pass, a, b, y),
        Node::Pool { .. } => pool::forward(pass, node),
    }
}

/// Tangent pass of one node along v.
pub(crate) fn tangent<'a, D: Device>(pass: &Pass<'a, D>, node: usize, v: Mem<'a, D>) -> Result<()> {
    match pass.program.nodes[node] {
        Node::Conv { .. } => conv::tangent(pass, node, v),
        Node::Pend { norm, .. } => pend::tangent(pass, norm, v),
        Node::Join { a, b, y } => join::tangent(pass, a, b, y),
        Node::Pool { .. } => pool::tangent(pass, node),
    }
}

/// Backward pass of one node.
pub(crate) fn backward<'a, D: Device>(pass: &Pass<'a, D>, node: usize, sink: &Sink<'a, D>) -> Result<()> {
    match pass.program.nodes[node] {
        Node::Conv { .. } => conv::backward(pass, node, sink),
        Node::Pend { .. } => pend::backward(pass, node, sink),
        Node::Join { .. } => join::backward(pass, node),
        Node::Pool { .. } => pool::backward(pass, node),
    }
}
