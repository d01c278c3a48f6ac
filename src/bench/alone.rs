//! One operation with operands of its own, away from any network: values like those in training, never zeros.

use std::collections::BTreeMap;

use super::case::{Case, Form, Operation, Shape};
use crate::device::{
    ALIGN, AugmentShape, Conv, ConvShape, Device, Element, Epilogue, Geometry, LossShape, Mem, Norm,
    Normalise, PoolShape, Prepared, Region, Rows, Source, Statistics, StepParams, Sums, Tangent, Targets,
    Write,
};
use crate::random::{Purpose, Stream};
use crate::{Error, Result};

/// Memory of one operand.
struct Room<D: Device> {
    arena: D::Arena,
    bytes: usize,
}

/// An operation ready to be called.
pub struct Alone<'a, D: Device> {
    device: &'a D,
    case: Case,
    rooms: BTreeMap<&'static str, Room<D>>,
    prepared: Option<Prepared<D::Algorithm>>,
    /// What the operation writes, and whether that is `Act`.
    output: (&'static str, bool),
}

/// Random values that are repeated to fill an operand: enough that no cache line is like the next.
const PATTERN: usize = 65521;

/// What the values of an operand are like.
#[derive(Clone, Copy)]
enum Like {
    /// ±1.
    Values,
    /// 0.5 to 1.5: scales, 1/σ, partial sums.
    Positive,
}

impl Like {
    fn pattern(self) -> impl Iterator<Item = f64> {
        let mut stream = Stream::new(7, Purpose::Init).view(1);
        (0..PATTERN).map(move |_| match self {
            Like::Values => 2.0 * stream.uniform_f64() - 1.0,
            Like::Positive => 0.5 + stream.uniform_f64(),
        })
    }
}

/// `len` elements of a repeated pattern, as bytes.
fn filled<E: Element>(like: Like, len: usize) -> Vec<u8> {
    let pattern: Vec<E> = like.pattern().map(E::from_f64).take(len).collect();
    let bytes: &[u8] = bytemuck::cast_slice(&pattern);
    bytes.iter().copied().cycle().take(len * size_of::<E>()).collect()
}

impl<'a, D: Device> Alone<'a, D> {
    /// Allocates and fills the operands.
    ///
    /// # Errors
    /// Those of the device: out of memory, a shape it cannot do.
    pub fn new(device: &'a D, case: Case) -> Result<Self> {
        let mut alone = Alone {
            device,
            case,
            rooms: BTreeMap::new(),
            prepared: None,
            output: ("out", true),
        };
        alone.room(
            "step",
            size_of::<StepParams>(),
            bytemuck::bytes_of(&STEP).to_vec(),
        )?;
        match case.shape {
            Shape::Conv(shape) => alone.conv_operands(&shape)?,
            Shape::Rows(shape) => alone.rows_operands(shape)?,
            Shape::Pool(shape) => alone.pool_operands(shape)?,
            Shape::Loss(shape) => alone.loss_operands(shape)?,
            Shape::Augment(shape) => alone.augment_operands(shape)?,
            Shape::Length(len) => alone.vector_operands(len)?,
        }
        Ok(alone)
    }

    fn room(&mut self, name: &'static str, bytes: usize, values: Vec<u8>) -> Result<()> {
        let arena = self.device.alloc(bytes.max(ALIGN))?;
        let room = Room { arena, bytes };
        let region = Region {
            offset: 0,
            bytes: values.len(),
        };
        self.device.upload(region.of(&room.arena), &values)?;
        self.rooms.insert(name, room);
        Ok(())
    }

    fn act(&mut self, name: &'static str, len: usize) -> Result<()> {
        self.room(
            name,
            len * size_of::<D::Act>(),
            filled::<D::Act>(Like::Values, len),
        )
    }

    fn real(&mut self, name: &'static str, len: usize, like: Like) -> Result<()> {
        self.room(name, len * size_of::<D::Real>(), filled::<D::Real>(like, len))
    }

    /// Bytes of the device's own layout; as `Real` numbers they are positive.
    fn space(&mut self, name: &'static str, bytes: usize) -> Result<()> {
        let len = bytes.div_ceil(size_of::<D::Real>());
        let mut values = filled::<D::Real>(Like::Positive, len);
        values.truncate(bytes);
        self.room(name, bytes, values)
    }

    /// Scale, shift, centre: about half of the values pass the ReLU.
    fn affine(&mut self, name: &'static str, channels: usize) -> Result<()> {
        let mut values = filled::<D::Real>(Like::Positive, channels);
        values.extend(filled::<D::Real>(Like::Values, 2 * channels));
        self.room(name, values.len(), values)
    }

    fn norm_operands(&mut self, rows: Rows) -> Result<()> {
        let channels = rows.channels as usize;
        self.affine("affine", channels)?;
        self.real("statistics", 2 * channels, Like::Positive)?;
        self.real("slope", 2 * channels, Like::Values)?;
        self.space("partials", self.device.partials_bytes(rows))
    }

    fn conv_operands(&mut self, shape: &ConvShape) -> Result<()> {
        let prepared = self.device.prepare(&Geometry::Conv(*shape))?;
        self.prepared = Some(prepared);
        self.space("saved", prepared.saved_bytes)?;
        self.space("scratch", prepared.scratch_bytes)?;
        self.act("x", shape.x_len())?;
        self.act("y", shape.y_len())?;
        self.real("w", shape.w_len(), Like::Values)?;
        self.real("bias", shape.k as usize, Like::Values)?;
        self.affine("pending", shape.c as usize)?;
        let input = Rows {
            rows: shape.x_rows() as i32,
            channels: shape.c,
        };
        let output = Rows {
            rows: shape.y_rows() as i32,
            channels: shape.k,
        };
        match self.case.operation {
            Operation::ConvForward => {
                self.output = ("y", true);
                self.norm_operands(output)
            }
            Operation::ConvTangent => {
                self.output = ("ty", true);
                self.act("ty", shape.y_len())?;
                self.act("tx", shape.x_len())?;
                self.real("tw", shape.w_len(), Like::Values)?;
                self.real("pending slope", 2 * shape.c as usize, Like::Values)?;
                self.norm_operands(output)
            }
            Operation::ConvBackwardInput => {
                self.output = ("d", true);
                self.act("d", shape.x_len())?;
                self.norm_operands(input)
            }
            _ => {
                self.output = ("dw", false);
                self.real("dw", shape.w_len(), Like::Values)?;
                self.real("dbias", shape.k as usize, Like::Values)
            }
        }
    }

    fn rows_operands(&mut self, shape: Rows) -> Result<()> {
        self.norm_operands(shape)?;
        let channels = shape.channels as usize;
        for name in ["gamma", "running var"] {
            self.real(name, channels, Like::Positive)?;
        }
        for name in ["beta", "running mean", "dgamma", "dbeta"] {
            self.real(name, channels, Like::Values)?;
        }
        match self.case.operation {
            Operation::NormForward => self.output = ("affine", false),
            Operation::NormTangent => self.output = ("slope", false),
            Operation::NormBackward => self.output = ("dgamma", false),
            _ => {
                for name in ["a", "b", "ta", "tb", "out", "y"] {
                    self.act(name, shape.len())?;
                }
            }
        }
        Ok(())
    }

    fn pool_operands(&mut self, shape: PoolShape) -> Result<()> {
        let rows = pool_rows(shape);
        self.norm_operands(rows)?;
        for name in ["x", "tx", "d"] {
            self.act(name, shape.x_len())?;
        }
        self.act("y", shape.y_len())?;
        self.output = match self.case.operation {
            Operation::PoolBackward => ("d", true),
            _ => ("y", true),
        };
        Ok(())
    }

    fn loss_operands(&mut self, shape: LossShape) -> Result<()> {
        let (entries, classes) = (shape.entries as usize, shape.classes as usize);
        for name in ["z", "tz", "dz"] {
            self.act(name, entries * classes)?;
        }
        let labels: Vec<i32> = (0..entries).map(|i| (i * 7919 % classes) as i32).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&labels);
        for name in ["labels", "pseudo"] {
            self.room(name, bytes.len(), bytes.to_vec())?;
        }
        for name in ["weights", "other weights", "loss"] {
            self.real(name, entries, Like::Positive)?;
        }
        self.output = match self.case.operation {
            Operation::CrossEntropyBackward => ("dz", true),
            // Labels are no numbers to look at: the logits stand for them.
            Operation::PseudoLabels => ("z", true),
            _ => ("loss", false),
        };
        Ok(())
    }

    fn augment_operands(&mut self, shape: AugmentShape) -> Result<()> {
        let pixels = shape.n as usize * shape.h as usize * shape.w as usize * shape.c as usize;
        let bytes = (0..pixels).map(|i| (i * 7919 % 251) as u8).collect();
        self.room("images", pixels, bytes)?;
        let ids: Vec<u32> = (0..shape.n as u32).collect();
        self.room("ids", shape.n as usize * 4, bytemuck::cast_slice(&ids).to_vec())?;
        self.act("table", shape.c as usize * 256)?;
        self.act("out", pixels)
    }

    fn vector_operands(&mut self, len: usize) -> Result<()> {
        let scratch = self.device.gradient_norm_scratch_bytes(len);
        self.space("scratch", scratch)?;
        if self.case.operation == Operation::Copy {
            self.act("out", len)?;
            return self.act("a", len);
        }
        self.output = ("out", false);
        for name in ["out", "a", "b"] {
            self.real(name, len, Like::Values)?;
        }
        self.real("norm", 1, Like::Positive)?;
        if self.case.operation == Operation::GradientNorm {
            self.output = ("norm", false);
        }
        Ok(())
    }

    fn mem(&self, name: &'static str) -> Mem<'_, D> {
        let room = &self.rooms[name];
        Region {
            offset: 0,
            bytes: room.bytes,
        }
        .of(&room.arena)
    }

    fn has(&self, form: Form) -> bool {
        self.case.form.has(form)
    }

    fn write(&self) -> Write {
        if self.has(Form::ADD) {
            Write::Add
        } else {
            Write::Set
        }
    }

    /// A tensor as it is read where batch-norm and ReLU may be pending on it.
    fn source(&self, name: &'static str, affine: &'static str) -> Source<'_, D::Arena> {
        let pending = self.has(Form::PENDING);
        Source {
            x: self.mem(name),
            affine: pending.then(|| self.mem(affine)),
            relu: pending,
        }
    }

    fn tangent(&self, name: &'static str, slope: &'static str) -> Tangent<'_, D::Arena> {
        Tangent {
            tx: Some(self.mem(name)),
            slope: self.has(Form::PENDING).then(|| self.mem(slope)),
        }
    }

    fn moments(&self) -> Epilogue<'_, D::Arena> {
        let sums = if self.has(Form::SUMS) {
            Sums::Moments {
                partials: self.mem("partials"),
            }
        } else {
            Sums::None
        };
        Epilogue { mask: None, sums }
    }

    /// Mask by, and dot product with, the stored tensor `guide`.
    fn guided(&self, guide: &'static str) -> Epilogue<'_, D::Arena> {
        let sums = if self.has(Form::SUMS) {
            Sums::Dot {
                x: self.mem(guide),
                statistics: self.mem("statistics"),
                partials: self.mem("partials"),
            }
        } else {
            Sums::None
        };
        let mask = self.has(Form::MASK).then(|| Source {
            x: self.mem(guide),
            affine: Some(self.mem("affine")),
            relu: true,
        });
        Epilogue { mask, sums }
    }

    fn norm(&self, shape: Rows) -> Norm<'_, D::Arena> {
        Norm {
            shape,
            eps: 1e-5,
            momentum: 0.1,
            gamma: self.mem("gamma"),
            beta: self.mem("beta"),
            running_mean: self.mem("running mean"),
            running_var: self.mem("running var"),
            statistics: self.mem("statistics"),
            affine: self.mem("affine"),
            slope: self.mem("slope"),
            partials: self.mem("partials"),
        }
    }

    /// Asks for the operation once.
    ///
    /// # Errors
    /// Those of the device.
    pub fn call(&self) -> Result<()> {
        match self.case.shape {
            Shape::Conv(shape) => self.call_conv(&shape),
            Shape::Rows(shape) => self.call_rows(shape),
            Shape::Pool(shape) => self.call_pool(shape),
            Shape::Loss(shape) => self.call_loss(shape),
            Shape::Augment(shape) => self.device.augment(
                shape,
                self.mem("out"),
                self.mem("images"),
                self.mem("ids"),
                self.mem("table"),
                self.mem("step"),
            ),
            Shape::Length(_) => self.call_vector(),
        }
    }

    fn call_conv(&self, shape: &ConvShape) -> Result<()> {
        let prepared = self.prepared.as_ref().expect("a convolution is prepared");
        let conv = Conv {
            shape,
            prepared,
            x: self.source("x", "pending"),
            saved: self.mem("saved"),
            scratch: self.mem("scratch"),
        };
        let (y, w) = (self.mem("y"), self.mem("w"));
        let bias = |name| self.has(Form::BIAS).then(|| self.mem(name));
        match self.case.operation {
            Operation::ConvForward => self.device.conv_forward(conv, y, w, bias("bias"), self.moments()),
            Operation::ConvTangent => {
                let tx = if self.has(Form::TANGENT) {
                    self.tangent("tx", "pending slope")
                } else {
                    Tangent {
                        tx: None,
                        slope: None,
                    }
                };
                let (ty, tw) = (self.mem("ty"), self.mem("tw"));
                self.device
                    .conv_tangent(conv, ty, tx, w, tw, bias("bias"), self.guided("y"))
            }
            Operation::ConvBackwardInput => {
                let d = self.mem("d");
                self.device
                    .conv_backward_input(conv, d, self.write(), y, w, self.guided("x"))
            }
            _ => self
                .device
                .conv_backward_weight(conv, self.mem("dw"), bias("dbias"), self.write(), y),
        }
    }

    fn call_rows(&self, shape: Rows) -> Result<()> {
        let batch = Statistics::Batch { update: true };
        match self.case.operation {
            Operation::NormForward => self.device.norm_forward(self.norm(shape), batch),
            Operation::NormTangent => {
                let (gamma, beta) = (self.mem("dgamma"), self.mem("dbeta"));
                self.device.norm_tangent(self.norm(shape), batch, gamma, beta)
            }
            Operation::NormBackward => {
                let (gamma, beta) = (self.mem("dgamma"), self.mem("dbeta"));
                self.device
                    .norm_backward(self.norm(shape), batch, gamma, beta, Write::Set)
            }
            Operation::JoinForward => {
                let (a, b) = (self.source("a", "affine"), self.source("b", "affine"));
                self.device
                    .join_forward(shape, self.mem("out"), a, b, self.moments())
            }
            Operation::JoinTangent => {
                let a = (self.source("a", "affine"), self.tangent("ta", "slope"));
                let b = (self.source("b", "affine"), self.tangent("tb", "slope"));
                self.device
                    .join_tangent(shape, self.mem("out"), a, b, self.guided("y"))
            }
            _ => {
                let slope = self.has(Form::PENDING).then(|| self.mem("slope"));
                self.device.source_backward(
                    shape,
                    self.mem("out"),
                    self.write(),
                    self.mem("b"),
                    self.source("a", "affine"),
                    slope,
                    self.guided("y"),
                )
            }
        }
    }

    fn call_pool(&self, shape: PoolShape) -> Result<()> {
        let x = self.source("x", "affine");
        match self.case.operation {
            Operation::PoolForward => self.device.pool_forward(shape, self.mem("y"), x),
            Operation::PoolTangent => {
                let tx = self.tangent("tx", "slope");
                self.device.pool_tangent(shape, self.mem("y"), x, tx)
            }
            _ => {
                let (d, dy) = (self.mem("d"), self.mem("y"));
                self.device
                    .pool_backward(shape, d, self.write(), dy, self.guided("x"))
            }
        }
    }

    fn call_loss(&self, shape: LossShape) -> Result<()> {
        let z = self.mem("z");
        let labels = Targets::Hard(self.mem("labels"));
        match self.case.operation {
            Operation::PseudoLabels => self.device.pseudo_labels(shape, self.mem("pseudo"), z),
            Operation::CrossEntropy => self.device.cross_entropy(shape, self.mem("loss"), z, labels),
            Operation::TangentDot => {
                let (raw, tz) = (self.mem("loss"), self.mem("tz"));
                self.device.tangent_dot(shape, raw, z, tz, labels)
            }
            _ => {
                let second = self
                    .has(Form::SECOND)
                    .then(|| (Targets::Hard(self.mem("pseudo")), self.mem("other weights")));
                let first = (labels, self.mem("weights"));
                self.device
                    .cross_entropy_backward(shape, self.mem("dz"), z, first, second)
            }
        }
    }

    fn call_vector(&self) -> Result<()> {
        let (out, a, step) = (self.mem("out"), self.mem("a"), self.mem("step"));
        match self.case.operation {
            Operation::Copy => self.device.copy(out, a),
            Operation::Weights => self.device.weights(out, a, Normalise::Rectify, step),
            Operation::Lookahead => self.device.lookahead(out, a, self.mem("b"), step),
            Operation::GradientNorm => self
                .device
                .gradient_norm(self.mem("norm"), a, self.mem("scratch")),
            _ => self.device.sgd(out, self.mem("b"), a, self.mem("norm"), step),
        }
    }

    /// Calls the operation once and looks at what it wrote: finite, and not all zero. A forward convolution's last value
    /// is formed by hand too. (That operations are right is for the tests; this sees a device that computes nothing.)
    ///
    /// # Errors
    /// `Device` naming the operation; those of the call.
    pub fn verify(&self) -> Result<()> {
        self.call()?;
        let (name, act) = self.output;
        let values = if act {
            self.read::<D::Act>(name)?
        } else {
            self.read::<D::Real>(name)?
        };
        let refuse = |detail: String| {
            let hint = "the device computes wrong values; nothing was timed";
            Error::device(self.case.name(), detail, hint)
        };
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(refuse(format!("a result of {value}")));
        }
        if values.iter().all(|v| *v == 0.0) {
            return Err(refuse("every result is zero".into()));
        }
        if let (Operation::ConvForward, Shape::Conv(shape)) = (self.case.operation, self.case.shape) {
            let (want, size) = self.last_output(&shape)?;
            let got = values[values.len() - 1];
            // Rounding of operands and result, relative to the sum of the products' sizes.
            let tolerance = size
                * match size_of::<D::Act>() {
                    2 => 1.0 / 128.0,
                    4 => 1.0 / 512.0,
                    _ => 1e-9,
                };
            if (got - want).abs() > tolerance {
                return Err(refuse(format!("the last value is {got}, by hand {want}")));
            }
        }
        Ok(())
    }

    fn read<E: Element>(&self, name: &'static str) -> Result<Vec<f64>> {
        let mem = self.mem(name);
        let mut values = vec![E::from_f64(0.0); mem.bytes / size_of::<E>()];
        self.device.download(bytemuck::cast_slice_mut(&mut values), mem)?;
        Ok(values.into_iter().map(E::to_f64).collect())
    }

    /// The last value of a forward convolution, and the sum of the sizes of what it adds up.
    fn last_output(&self, s: &ConvShape) -> Result<(f64, f64)> {
        let (x, w) = (self.read::<D::Act>("x")?, self.read::<D::Real>("w")?);
        let affine = self.read::<D::Real>("pending")?;
        let (c, k) = (s.c as usize, s.k as usize);
        let bias = self.read::<D::Real>("bias")?[k - 1] * f64::from(u8::from(self.has(Form::BIAS)));
        let (mut sum, mut size) = (bias, bias.abs());
        for r in 0..s.r {
            for t in 0..s.s {
                let h = (s.p() - 1) * s.stride + r - s.pad;
                let v = (s.q() - 1) * s.stride + t - s.pad;
                if !(0..s.h).contains(&h) || !(0..s.w).contains(&v) {
                    continue;
                }
                let pixel = ((s.n - 1) as usize * s.h as usize + h as usize) * s.w as usize + v as usize;
                let tap = (((k - 1) * s.r as usize + r as usize) * s.s as usize + t as usize) * c;
                for i in 0..c {
                    let mut value = x[pixel * c + i];
                    if self.has(Form::PENDING) {
                        value = (affine[i] * (value - affine[2 * c + i]) + affine[c + i]).max(0.0);
                    }
                    sum += value * w[tap + i];
                    size += (value * w[tap + i]).abs();
                }
            }
        }
        Ok((sum, size))
    }
}

/// A pool's input as rows of channels.
fn pool_rows(shape: PoolShape) -> Rows {
    Rows {
        rows: shape.n * shape.h * shape.w,
        channels: shape.c,
    }
}

const STEP: StepParams = StepParams {
    lr: 1e-4,
    lambda: 1e-4,
    eta: 1.0,
    mu: 0.9,
    weight_decay: 5e-4,
    clip: 1.0,
    seed: 0,
    step: 0,
    reserved: 0,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::preact;
    use crate::bench::trace::operations;
    use crate::device::cpu::Cpu;
    use crate::step::Objective;

    /// Every operation that a step of a small network asks for, in each of its forms, runs alone and gives numbers.
    #[test]
    fn every_operation_of_a_step_runs_alone() {
        let architecture = preact(8, vec![1, 2], [8, 6], 3, 5);
        let augment = AugmentShape {
            n: 0,
            h: 8,
            w: 6,
            c: 3,
            pad: 2,
            flip: 1,
            view: 0,
        };
        let list = operations(&architecture, Objective::L2b, (5, 3), augment).unwrap();
        let device = Cpu::<f32>::new(Some(1)).unwrap();
        let mut seen = Vec::new();
        for (_, case) in list {
            if !seen.contains(&case) {
                seen.push(case);
                Alone::new(&device, case).unwrap().verify().unwrap();
            }
        }
        assert!(seen.len() > 40, "{}", seen.len());
    }
}
