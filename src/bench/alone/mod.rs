//! One operation with operands of its own, away from any network: values like those in training, never zeros.

mod calls;
mod operands;

use std::collections::BTreeMap;

use super::case::{Case, Form, Operation, Shape};
use crate::device::{ConvShape, Device, Element, Geometry, Prepared, StepParams};
use crate::{Error, Result};

/// Memory of one operand.
struct Room<D: Device> {
    arena: D::Arena,
    bytes: usize,
    /// Whether its elements are `Act`, else `Real` or something else.
    act: bool,
}

/// An operation ready to be called.
pub struct Alone<'a, D: Device> {
    device: &'a D,
    case: Case,
    rooms: BTreeMap<&'static str, Room<D>>,
    prepared: Option<Prepared<D::Algorithm>>,
    /// What the operation writes.
    output: &'static str,
}

impl<'a, D: Device> Alone<'a, D> {
    /// Whether the device does anything in this case: where it multiplies the learned filters themselves, there is nothing
    /// to arrange.
    ///
    /// # Errors
    /// Those of the device: a shape it cannot do.
    pub fn is_work(device: &D, case: &Case) -> Result<bool> {
        match (case.operation, case.shape) {
            (Operation::ArrangeFilters, Shape::Conv(shape)) => {
                let prepared = device.prepare(&geometry(shape, case.form))?;
                Ok(prepared.arranged.forward > 0)
            }
            _ => Ok(true),
        }
    }

    /// Allocates and fills the operands.
    ///
    /// # Errors
    /// Those of the device: out of memory, a shape it cannot do. `Device` too where there is nothing to do.
    pub fn new(device: &'a D, case: Case) -> Result<Self> {
        if !Self::is_work(device, &case)? {
            let detail = format!("{} multiplies the learned numbers themselves", device.name());
            return Err(Error::device(case.name(), detail, "nothing was timed"));
        }
        let mut alone = Alone {
            device,
            case,
            rooms: BTreeMap::new(),
            prepared: None,
            output: "out",
        };
        alone.room("step", bytemuck::bytes_of(&STEP), false)?;
        match case.shape {
            Shape::Conv(shape) => {
                alone.conv_operands(&shape)?;
                if case.operation != Operation::ArrangeFilters {
                    alone.arrange(&shape, &[alone.filters(), alone.filters_along()])?;
                }
            }
            Shape::Rows(shape) => alone.rows_operands(shape)?,
            Shape::Samples(samples, shape) => alone.samples_operands(samples as usize, shape)?,
            Shape::Pool(shape) => alone.pool_operands(shape)?,
            Shape::Loss(shape) => alone.loss_operands(shape)?,
            Shape::Augment(shape) => alone.augment_operands(shape)?,
            Shape::Length(len) => alone.vector_operands(len)?,
        }
        Ok(alone)
    }

    /// Calls the operation once and looks at what it wrote: finite, and not all zero. A forward convolution's last value
    /// is formed by hand too. (That operations are right is for the tests; this sees a device that computes nothing.)
    ///
    /// # Errors
    /// `Device` naming the operation; those of the call.
    pub fn verify(&self) -> Result<()> {
        self.call()?;
        let values = self.values(self.output)?;
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

    /// An operand's values.
    fn values(&self, name: &'static str) -> Result<Vec<f64>> {
        if self.rooms[name].act {
            self.read::<D::Act>(name)
        } else {
            self.read::<D::Real>(name)
        }
    }

    fn read<E: Element>(&self, name: &'static str) -> Result<Vec<f64>> {
        let mem = self.mem(name);
        let mut values = vec![E::from_f64(0.0); mem.bytes / size_of::<E>()];
        self.device.download(bytemuck::cast_slice_mut(&mut values), mem)?;
        Ok(values.into_iter().map(Element::to_f64).collect())
    }

    /// The last value of a forward convolution, and the sum of the sizes of what it adds up.
    fn last_output(&self, s: &ConvShape) -> Result<(f64, f64)> {
        let (x, w) = (self.values("x")?, self.values("w")?);
        let affine = self.values("pending")?;
        let (c, k) = (s.c as usize, s.k as usize);
        let (mut sum, mut size) = (0.0, 0.0);
        for (form, name) in [(Form::BIAS, "bias"), (Form::ADD, "residual")] {
            if self.has(form)
                && let Some(&value) = self.values(name)?.last()
            {
                sum += value;
                size += value.abs();
            }
        }
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

/// What the device is asked to prepare for.
fn geometry(shape: ConvShape, form: Form) -> Geometry {
    if form.has(Form::LINEAR) {
        Geometry::Linear(shape)
    } else {
        Geometry::Conv(shape)
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
