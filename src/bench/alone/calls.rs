//! The calls: operands by name into the seam, as the case's form says.

use super::Alone;
use crate::Result;
use crate::bench::case::{Form, Operation, Shape};
use crate::device::{
    Arrangement, Conv, ConvShape, Device, Epilogue, Filters, LossShape, Mem, Norm, Normalise, PoolShape,
    Region, Rows, Source, Statistics, Sums, Tangent, Targets, Write,
};

impl<D: Device> Alone<'_, D> {
    pub(super) fn mem(&self, name: &'static str) -> Mem<'_, D> {
        let room = &self.rooms[name];
        Region {
            offset: 0,
            bytes: room.bytes,
        }
        .of(&room.arena)
    }

    pub(super) fn has(&self, form: Form) -> bool {
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

    /// The residual `name` where the case has one.
    fn onto<'a>(&'a self, name: &'static str, epilogue: Epilogue<'a, D::Arena>) -> Epilogue<'a, D::Arena> {
        Epilogue {
            addend: self.has(Form::ADD).then(|| self.mem(name)),
            ..epilogue
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
        Epilogue {
            addend: None,
            mask: None,
            sums,
        }
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
        Epilogue {
            addend: None,
            mask,
            sums,
        }
    }

    /// The filters w; what the case arranges, and all that the other operations read.
    pub(super) fn filters(&self) -> Filters<'_, D::Arena> {
        let backward = self.case.operation != Operation::ArrangeFilters || self.has(Form::BACKWARD);
        Filters {
            w: self.mem("w"),
            forward: self.mem("forward"),
            backward: backward.then(|| self.mem("backward")),
        }
    }

    /// The filters tw.
    pub(super) fn filters_along(&self) -> Filters<'_, D::Arena> {
        Filters {
            w: self.mem("tw"),
            forward: self.mem("along"),
            backward: None,
        }
    }

    pub(super) fn arrange(&self, shape: &ConvShape, filters: &[Filters<D::Arena>]) -> Result<()> {
        let prepared = self.prepared.as_ref().expect("a convolution is prepared");
        let list: Vec<_> = filters
            .iter()
            .map(|&filters| Arrangement {
                shape,
                prepared,
                filters,
            })
            .collect();
        self.device.arrange_filters(&list)
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
            Shape::Samples(samples, shape) => self.call_samples(samples as usize, shape),
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
            scratch: self.mem("scratch"),
        };
        let (y, w, tw) = (self.mem("y"), self.filters(), self.filters_along());
        let bias = |name| self.has(Form::BIAS).then(|| self.mem(name));
        match self.case.operation {
            Operation::ArrangeFilters => self.arrange(shape, &[w]),
            Operation::ConvForward => {
                let end = self.onto("residual", self.moments());
                self.device.conv_forward(conv, y, w, bias("bias"), end)
            }
            Operation::ConvTangent => {
                let tx = if self.has(Form::TANGENT) {
                    self.tangent("tx", "pending slope")
                } else {
                    Tangent {
                        tx: None,
                        slope: None,
                    }
                };
                let (ty, end) = (self.mem("ty"), self.onto("residual", self.guided("y")));
                self.device.conv_tangent(conv, ty, tx, w, tw, bias("bias"), end)
            }
            Operation::ConvBackwardInput => {
                let d = self.mem("d");
                self.device
                    .conv_backward_input(conv, d, self.write(), y, w, self.guided("x"))
            }
            Operation::ConvContract => {
                let out = self.mem("out");
                self.device.conv_contract(conv, out, y, tw, bias("bias"))
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

    fn call_samples(&self, samples: usize, shape: Rows) -> Result<()> {
        let (x, d) = (self.mem("a"), self.mem("b"));
        let (gamma, beta) = (self.mem("dgamma"), self.mem("dbeta"));
        self.device
            .norm_contract(self.norm(shape), samples, self.mem("out"), x, d, gamma, beta)
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
            Operation::Watch => self.device.watch(self.mem("stopped"), &[a], step),
            _ => {
                let (norm, stopped) = (self.mem("norm"), self.mem("stopped"));
                self.device.sgd(out, self.mem("b"), a, norm, stopped, step)
            }
        }
    }
}
