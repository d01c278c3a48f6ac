//! A network as a short straight program: nodes over values, each value written once.
//!
//! A value is *stored* (a tensor in memory) or *pending* (batch-norm and/or ReLU of a stored value, evaluated by
//! whoever reads it). The program knows nothing of devices, batch sizes or memory.

use crate::device::{ConvShape, Geometry, Layout, PoolShape, Region, Rows};
use crate::{Error, Result};

/// Index into [`Program::values`].
pub type ValueId = usize;
/// Index into [`Program::params`].
pub type ParamId = usize;
/// Index into [`Program::norms`].
pub type NormId = usize;

/// What a node reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub storage: Storage,
    pub kind: ValueKind,
}

/// Number format that a value, its tangent and its adjoint are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// [`crate::device::Device::Act`]: everything up to the average pool.
    Act,
    /// [`crate::device::Device::Real`]: the average pool's output and the linear layer. They are small, and a logit
    /// rounded to bf16 would cost the loss more digits than all other activations together.
    Real,
}

/// Where a value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// A tensor `[N,H,W,C]`; `norm` is the batch-norm pending on it, if any.
    Stored { norm: Option<NormId> },
    /// relu?(norm?(of)).
    Pending {
        of: ValueId,
        norm: Option<NormId>,
        relu: bool,
    },
}

/// A learned tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// PyTorch's name.
    pub name: String,
    /// PyTorch's shape: `[K,C,R,S]` for a convolution, `[K,C]` for a linear layer, `[C]` otherwise.
    pub shape: Vec<usize>,
    pub role: ParamRole,
}

impl Param {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Inputs that one output sums over: C·R·S.
    pub fn fan_in(&self) -> usize {
        self.shape[1..].iter().product()
    }
}

/// What a parameter does; decides its initial value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamRole {
    ConvWeight,
    LinearWeight,
    /// Bias of the layer whose weight is this parameter.
    Bias(ParamId),
    Gamma,
    Beta,
}

/// A batch-norm layer.
#[derive(Clone, Debug, PartialEq)]
pub struct NormLayer {
    /// PyTorch's module name; `.weight`, `.bias`, `.running_mean`, `.running_var` follow it.
    pub name: String,
    pub of: ValueId,
    pub gamma: ParamId,
    pub beta: ParamId,
    pub eps: f64,
    pub momentum: f64,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// y = conv(x, weight) + bias + the stored value `addend`; a linear layer is one of 1×1 on `Real` values.
    Conv {
        x: ValueId,
        y: ValueId,
        addend: Option<ValueId>,
        weight: ParamId,
        bias: Option<ParamId>,
        r: usize,
        s: usize,
        stride: usize,
        pad: usize,
    },
    /// Makes y, which is pending on x: fixes the statistics of x where `norm` is given.
    Pend {
        x: ValueId,
        y: ValueId,
        norm: Option<NormId>,
    },
    /// y = a + b.
    Join { a: ValueId, b: ValueId, y: ValueId },
    /// y = mean of windows of r×s.
    Pool {
        x: ValueId,
        y: ValueId,
        r: usize,
        s: usize,
    },
}

impl Node {
    /// The values read, in order.
    pub fn inputs(&self) -> Vec<ValueId> {
        match *self {
            Node::Conv { x, addend, .. } => std::iter::once(x).chain(addend).collect(),
            Node::Pend { x, .. } | Node::Pool { x, .. } => vec![x],
            Node::Join { a, b, .. } => vec![a, b],
        }
    }

    /// The value written.
    pub fn output(&self) -> ValueId {
        match *self {
            Node::Conv { y, .. } | Node::Pend { y, .. } | Node::Join { y, .. } | Node::Pool { y, .. } => y,
        }
    }

    /// The parameters it applies.
    pub fn params(&self, program: &Program) -> Vec<ParamId> {
        match *self {
            Node::Conv { weight, bias, .. } => std::iter::once(weight).chain(bias).collect(),
            Node::Pend { norm: Some(norm), .. } => {
                let layer = &program.norms[norm];
                vec![layer.gamma, layer.beta]
            }
            Node::Pend { norm: None, .. } | Node::Join { .. } | Node::Pool { .. } => Vec::new(),
        }
    }
}

/// A network. Built by the methods below, in execution order; the last value is the logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    pub values: Vec<Value>,
    pub params: Vec<Param>,
    pub norms: Vec<NormLayer>,
    pub nodes: Vec<Node>,
    /// Number of the first node of each stage, in order. The stem, if any, comes before the first.
    pub stages: Vec<usize>,
    /// Number of the first node of the head, which follows the last stage.
    pub head: usize,
}

impl Program {
    /// A program whose value 0 is an image `[H,W,C]`.
    pub fn new(height: usize, width: usize, channels: usize) -> Self {
        let mut program = Program::default();
        program.store(height, width, channels, Storage::Act);
        program
    }

    /// The network's input.
    pub fn input(&self) -> ValueId {
        0
    }

    /// The network's output: the last node's.
    pub fn output(&self) -> ValueId {
        self.nodes.last().map_or(0, Node::output)
    }

    /// Number of classes: channels of the output.
    pub fn classes(&self) -> usize {
        self.values[self.output()].channels
    }

    /// What is added next begins a stage.
    pub fn begin_stage(&mut self) {
        self.stages.push(self.nodes.len());
    }

    /// What is added next begins the head.
    pub fn begin_head(&mut self) {
        self.head = self.nodes.len();
    }

    fn store(&mut self, height: usize, width: usize, channels: usize, storage: Storage) -> ValueId {
        self.values.push(Value {
            height,
            width,
            channels,
            storage,
            kind: ValueKind::Stored { norm: None },
        });
        self.values.len() - 1
    }

    fn param(&mut self, name: String, shape: Vec<usize>, role: ParamRole) -> ParamId {
        self.params.push(Param { name, shape, role });
        self.params.len() - 1
    }

    /// A convolution with square filters of `size`, without bias; `name`.weight.
    pub fn conv(
        &mut self,
        name: &str,
        x: ValueId,
        k: usize,
        size: usize,
        stride: usize,
        pad: usize,
    ) -> ValueId {
        let Value {
            height,
            width,
            channels,
            ..
        } = self.values[x];
        assert!(
            size <= height.min(width) + 2 * pad,
            "filters of {name} larger than the padded image"
        );
        let out = |side: usize| (side + 2 * pad - size) / stride + 1;
        self.expect_act(name, x);
        let y = self.store(out(height), out(width), k, Storage::Act);
        let weight = self.param(
            format!("{name}.weight"),
            vec![k, channels, size, size],
            ParamRole::ConvWeight,
        );
        self.nodes.push(Node::Conv {
            x,
            y,
            addend: None,
            weight,
            bias: None,
            r: size,
            s: size,
            stride,
            pad,
        });
        y
    }

    /// A linear layer with bias on the 1×1 output of a pool; `name`.weight, `name`.bias.
    pub fn linear(&mut self, name: &str, x: ValueId, k: usize) -> ValueId {
        let Value {
            height,
            width,
            channels,
            ..
        } = self.values[x];
        assert_eq!((height, width), (1, 1), "linear layer on an image");
        assert_eq!(
            self.values[x].storage,
            Storage::Real,
            "linear layer {name} not behind a pool"
        );
        let y = self.store(1, 1, k, Storage::Real);
        let weight = self.param(
            format!("{name}.weight"),
            vec![k, channels],
            ParamRole::LinearWeight,
        );
        let bias = self.param(format!("{name}.bias"), vec![k], ParamRole::Bias(weight));
        self.nodes.push(Node::Conv {
            x,
            y,
            addend: None,
            weight,
            bias: Some(bias),
            r: 1,
            s: 1,
            stride: 1,
            pad: 0,
        });
        y
    }

    /// Batch-norm of the stored value x, with ReLU or without. x is the output of a convolution or a join: those leave
    /// the per-channel sums that the statistics are made of.
    pub fn norm(&mut self, name: &str, x: ValueId, relu: bool) -> ValueId {
        let summed =
            |node: &Node| matches!(node, Node::Conv { .. } | Node::Join { .. }) && node.output() == x;
        assert!(
            self.nodes.iter().any(summed),
            "batch-norm {name} of a value without sums"
        );
        let channels = self.values[x].channels;
        let gamma = self.param(format!("{name}.weight"), vec![channels], ParamRole::Gamma);
        let beta = self.param(format!("{name}.bias"), vec![channels], ParamRole::Beta);
        let norm = self.norms.len();
        self.norms.push(NormLayer {
            name: name.to_owned(),
            of: x,
            gamma,
            beta,
            eps: 1e-5,
            momentum: 0.1,
        });
        match &mut self.values[x].kind {
            ValueKind::Stored { norm: slot @ None } => *slot = Some(norm),
            other => panic!("batch-norm {name} on {other:?}"),
        }
        self.pend(x, Some(norm), relu)
    }

    /// ReLU of the stored value x.
    pub fn relu(&mut self, x: ValueId) -> ValueId {
        self.pend(x, None, true)
    }

    fn pend(&mut self, x: ValueId, norm: Option<NormId>, relu: bool) -> ValueId {
        self.expect_act("batch-norm or ReLU", x);
        self.values.push(Value {
            kind: ValueKind::Pending { of: x, norm, relu },
            ..self.values[x]
        });
        let y = self.values.len() - 1;
        self.nodes.push(Node::Pend { x, y, norm });
        y
    }

    /// a + b.
    pub fn join(&mut self, a: ValueId, b: ValueId) -> ValueId {
        let (left, right) = (self.values[a], self.values[b]);
        assert_eq!(
            (left.height, left.width, left.channels),
            (right.height, right.width, right.channels),
            "join of two shapes"
        );
        self.expect_act("join", a);
        self.expect_act("join", b);
        let y = self.store(left.height, left.width, left.channels, Storage::Act);
        self.nodes.push(Node::Join { a, b, y });
        y
    }

    /// Average over the whole image.
    pub fn global_pool(&mut self, x: ValueId) -> ValueId {
        let Value { height, width, .. } = self.values[x];
        self.average_pool(x, height, width)
    }

    /// Average over windows of r×s that do not overlap; a rest at the right and bottom is dropped.
    pub fn average_pool(&mut self, x: ValueId, r: usize, s: usize) -> ValueId {
        let Value {
            height,
            width,
            channels,
            ..
        } = self.values[x];
        self.expect_act("pool", x);
        let y = self.store(height / r, width / s, channels, Storage::Real);
        self.nodes.push(Node::Pool { x, y, r, s });
        y
    }

    fn expect_act(&self, what: &str, x: ValueId) {
        assert_eq!(self.values[x].storage, Storage::Act, "{what} behind the pool");
    }

    /// Number of learned values.
    pub fn parameter_count(&self) -> usize {
        self.params.iter().map(Param::len).sum()
    }

    /// Where each parameter lies in a flat arena of `size`-byte elements, and the arena's size. Parameters, gradients,
    /// momentum and v share this layout; the padding between parameters is zero in all of them.
    pub fn param_layout(&self, size: usize) -> (Vec<Region>, usize) {
        let mut layout = Layout::default();
        let regions = self.params.iter().map(|p| layout.push(p.len() * size)).collect();
        (regions, layout.bytes())
    }

    /// Where each norm's running mean and variance lie in a flat arena of `size`-byte elements, and the arena's size.
    pub fn running_layout(&self, size: usize) -> (Vec<[Region; 2]>, usize) {
        let mut layout = Layout::default();
        let regions = self
            .norms
            .iter()
            .map(|norm| {
                let bytes = self.values[norm.of].channels * size;
                [layout.push(bytes), layout.push(bytes)]
            })
            .collect();
        (regions, layout.bytes())
    }

    /// Whether a batch of n can be indexed at all: Error::Config where a tensor would have 2³¹ elements or more.
    pub fn check_batch(&self, n: usize) -> Result<()> {
        if let Some(param) = self.params.iter().find(|p| p.len() >= i32::MAX as usize) {
            return Err(Error::config(
                "model width",
                "tensors of fewer than 2^31 elements",
                format!("{} of {}", param.name, param.len()),
                "",
            ));
        }
        let largest = self
            .values
            .iter()
            .map(|v| v.height as f64 * v.width as f64 * v.channels as f64)
            .fold(0.0, f64::max);
        if n as f64 * largest < f64::from(i32::MAX) {
            return Ok(());
        }
        Err(Error::config(
            "batch",
            format!(
                "at most {:.0} for this network and image size",
                f64::from(i32::MAX) / largest
            ),
            n.to_string(),
            "a tensor may have at most 2^31 elements",
        ))
    }

    /// A value as rows of channels at batch size n.
    pub fn rows(&self, value: ValueId, n: usize) -> Rows {
        let value = &self.values[value];
        Rows {
            rows: int(n * value.height * value.width),
            channels: int(value.channels),
        }
    }

    /// Geometry of a node at batch size n; None for nodes that touch no tensor.
    pub fn geometry(&self, node: &Node, n: usize) -> Option<Geometry> {
        match *node {
            Node::Conv {
                x,
                y,
                r,
                s,
                stride,
                pad,
                ..
            } => {
                let value = &self.values[x];
                let shape = ConvShape {
                    n: int(n),
                    h: int(value.height),
                    w: int(value.width),
                    c: int(value.channels),
                    k: int(self.values[y].channels),
                    r: int(r),
                    s: int(s),
                    stride: int(stride),
                    pad: int(pad),
                };
                Some(match value.storage {
                    Storage::Act => Geometry::Conv(shape),
                    Storage::Real => Geometry::Linear(shape),
                })
            }
            Node::Pend { .. } => None,
            Node::Join { y, .. } => Some(Geometry::Join(self.rows(y, n))),
            Node::Pool { x, r, s, .. } => {
                let value = &self.values[x];
                Some(Geometry::Pool(PoolShape {
                    n: int(n),
                    h: int(value.height),
                    w: int(value.width),
                    c: int(value.channels),
                    r: int(r),
                    s: int(s),
                }))
            }
        }
    }
}

/// Sizes are checked against memory long before they reach 2³¹ rows; a larger one is a planning error.
fn int(value: usize) -> i32 {
    i32::try_from(value).expect("a dimension below 2^31")
}
