//! The node kinds, one file each: forward, tangent, backward side by side.

mod conv;
mod join;
mod pend;
mod pool;

use crate::Result;
use crate::device::{Arrangement, Device, Mem};
use crate::net::{Node, Pass, Sink};

/// Filters of one node at θ, where it has any.
pub(crate) fn filters<'p, D: Device>(pass: &'p Pass<D>, node: usize) -> Option<Arrangement<'p, D>> {
    match pass.program.nodes[node] {
        Node::Conv { .. } => Some(conv::filters(pass, node)),
        Node::Pend { .. } | Node::Join { .. } | Node::Pool { .. } => None,
    }
}

/// The same along v.
pub(crate) fn filters_along<'p, 'a, D: Device>(
    pass: &'p Pass<'a, D>,
    node: usize,
    v: Mem<'a, D>,
) -> Option<Arrangement<'p, D>> {
    match pass.program.nodes[node] {
        Node::Conv { .. } => Some(conv::filters_along(pass, node, v)),
        Node::Pend { .. } | Node::Join { .. } | Node::Pool { .. } => None,
    }
}

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
