//! Convolution and linear layer.
//!
//! forward  y  = conv(x, W) + b, and a stored value r where it ends a residual block
//! tangent  ty = conv(tx, W) + conv(x, V) + v_b + tr
//! backward dx = convᵀ(dy, W), dW = Σ x ⊗ dy, db = Σ dy, dr += dy; contracted: ⟨dy_i, conv(x_i, V) + v_b⟩

use super::join;
use crate::Result;
use crate::device::{Arrangement, Conv, Device, Epilogue, Filters, Geometry, Mem, Write};
use crate::net::{How, Node, ParamId, Pass, Sink, ValueId};

struct Args<'p, 'a, D: Device> {
    conv: Conv<'p, D>,
    x: ValueId,
    y: ValueId,
    addend: Option<ValueId>,
    weight: ParamId,
    bias: Option<ParamId>,
    index: usize,
    pass: &'p Pass<'a, D>,
}

fn args<'p, 'a, D: Device>(pass: &'p Pass<'a, D>, index: usize) -> Args<'p, 'a, D> {
    let plan = &pass.plan.nodes[index];
    let (
        Node::Conv {
            x,
            y,
            addend,
            weight,
            bias,
            ..
        },
        Some(Geometry::Conv(shape) | Geometry::Linear(shape)),
        Some(prepared),
    ) = (&pass.program.nodes[index], &plan.geometry, &plan.prepared)
    else {
        unreachable!("node {index} is a planned convolution")
    };
    Args {
        conv: Conv {
            shape,
            prepared,
            x: pass.source(*x),
            scratch: pass.plan.scratch.of(pass.arena),
        },
        x: *x,
        y: *y,
        addend: *addend,
        weight: *weight,
        bias: *bias,
        index,
        pass,
    }
}

impl<'p, 'a, D: Device> Args<'p, 'a, D> {
    fn weight(&self, flat: Mem<'a, D>) -> Mem<'a, D> {
        self.pass.param(flat, self.weight)
    }

    /// The filters of θ; backwards only where anything is to be passed on.
    fn filters(&self) -> Filters<'a, D::Arena> {
        let (pass, places) = (self.pass, &self.pass.plan.nodes[self.index].filters);
        let backward = pass.contribution(self.index, 0);
        Filters {
            w: self.weight(pass.params),
            forward: places.forward.of(pass.arena),
            backward: backward.map(|_| places.backward.of(pass.arena)),
        }
    }

    /// The filters of v.
    fn filters_along(&self, v: Mem<'a, D>) -> Filters<'a, D::Arena> {
        let (pass, places) = (self.pass, &self.pass.plan.nodes[self.index].filters);
        Filters {
            w: self.weight(v),
            forward: places.along.of(pass.arena),
            backward: None,
        }
    }

    fn arrangement(&self, filters: Filters<'p, D::Arena>) -> Arrangement<'p, D> {
        let Conv { shape, prepared, .. } = self.conv;
        Arrangement {
            shape,
            prepared,
            filters,
        }
    }

    fn bias(&self, flat: Mem<'a, D>) -> Option<Mem<'a, D>> {
        self.bias.map(|bias| self.pass.param(flat, bias))
    }
}

pub(super) fn filters<'p, D: Device>(pass: &'p Pass<D>, index: usize) -> Arrangement<'p, D> {
    let a = args(pass, index);
    a.arrangement(a.filters())
}

pub(super) fn filters_along<'p, 'a, D: Device>(
    pass: &'p Pass<'a, D>,
    index: usize,
    v: Mem<'a, D>,
) -> Arrangement<'p, D> {
    let a = args(pass, index);
    a.arrangement(a.filters_along(v))
}

pub(super) fn forward<D: Device>(pass: &Pass<D>, index: usize) -> Result<()> {
    let a = args(pass, index);
    pass.device.conv_forward(
        a.conv,
        pass.value(a.y),
        a.filters(),
        a.bias(pass.params),
        Epilogue {
            addend: a.addend.map(|addend| pass.value(addend)),
            ..pass.forward_epilogue(a.y)
        },
    )
}

pub(super) fn tangent<'a, D: Device>(pass: &Pass<'a, D>, index: usize, v: Mem<'a, D>) -> Result<()> {
    let a = args(pass, index);
    pass.device.conv_tangent(
        a.conv,
        pass.plan.tangents[a.y].of(pass.arena),
        pass.source_tangent(a.x),
        a.filters(),
        a.filters_along(v),
        a.bias(v),
        Epilogue {
            addend: a.addend.and_then(|addend| pass.source_tangent(addend).tx),
            ..pass.tangent_epilogue(a.y)
        },
    )
}

pub(super) fn backward<'a, D: Device>(pass: &Pass<'a, D>, index: usize, sink: &Sink<'a, D>) -> Result<()> {
    let a = args(pass, index);
    let dy = pass.adjoint(a.y);
    match *sink {
        Sink::Gradient(g) => {
            let (dw, dbias) = (a.weight(g), a.bias(g));
            pass.device
                .conv_backward_weight(a.conv, dw, dbias, Write::Set, dy)?;
        }
        Sink::Contraction { out, v, .. } => {
            pass.device
                .conv_contract(a.conv, out, dy, a.filters_along(v), a.bias(v))?;
        }
    }
    if let Some(contribution) = pass.contribution(index, 0) {
        let How::Write(write) = contribution.how else {
            unreachable!("only addends alias")
        };
        pass.device.conv_backward_input(
            a.conv,
            pass.adjoint(a.x),
            write,
            dy,
            a.filters(),
            pass.adjoint_epilogue(a.x, contribution),
        )?;
    }
    match a.addend {
        Some(addend) => join::pass_on(pass, index, 1, addend),
        None => Ok(()),
    }
}
