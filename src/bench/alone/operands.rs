//! What each kind of operation works on, by name.

use super::{Alone, Room, geometry};
use crate::Result;
use crate::bench::case::{Form, Operation};
use crate::device::{ALIGN, AugmentShape, ConvShape, Device, Element, LossShape, PoolShape, Region, Rows};
use crate::random::{Purpose, Stream};

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
    let mut bytes = bytemuck::cast_slice::<E, u8>(&pattern).repeat(len.div_ceil(PATTERN));
    bytes.truncate(len * size_of::<E>());
    bytes
}

impl<D: Device> Alone<'_, D> {
    /// An operand with these values.
    pub(super) fn room(&mut self, name: &'static str, values: &[u8], act: bool) -> Result<()> {
        let bytes = values.len();
        let arena = self.device.alloc(bytes.max(ALIGN))?;
        self.device
            .upload(Region { offset: 0, bytes }.of(&arena), values)?;
        self.rooms.insert(name, Room { arena, bytes, act });
        Ok(())
    }

    fn act(&mut self, name: &'static str, len: usize) -> Result<()> {
        self.room(name, &filled::<D::Act>(Like::Values, len), true)
    }

    fn real(&mut self, name: &'static str, len: usize, like: Like) -> Result<()> {
        self.room(name, &filled::<D::Real>(like, len), false)
    }

    /// An activation, of a linear layer in the precision of parameters.
    fn tensor(&mut self, name: &'static str, len: usize) -> Result<()> {
        if self.case.form.has(Form::LINEAR) {
            self.real(name, len, Like::Values)
        } else {
            self.act(name, len)
        }
    }

    /// Bytes of the device's own layout; as `Real` numbers they are positive.
    fn space(&mut self, name: &'static str, bytes: usize) -> Result<()> {
        let len = bytes.div_ceil(size_of::<D::Real>());
        let mut values = filled::<D::Real>(Like::Positive, len);
        values.truncate(bytes);
        self.room(name, &values, false)
    }

    /// Scale, shift, centre: about half of the values pass the ReLU.
    fn affine(&mut self, name: &'static str, channels: usize) -> Result<()> {
        let mut values = filled::<D::Real>(Like::Positive, channels);
        values.extend(filled::<D::Real>(Like::Values, 2 * channels));
        self.room(name, &values, false)
    }

    fn norm_operands(&mut self, rows: Rows) -> Result<()> {
        let channels = rows.channels as usize;
        self.affine("affine", channels)?;
        self.real("statistics", 2 * channels, Like::Positive)?;
        self.real("slope", 2 * channels, Like::Values)?;
        self.space("partials", self.device.partials_bytes(rows))
    }

    pub(super) fn conv_operands(&mut self, shape: &ConvShape) -> Result<()> {
        let prepared = self.device.prepare(&geometry(*shape, self.case.form))?;
        self.prepared = Some(prepared);
        self.space("scratch", prepared.scratch_bytes)?;
        self.tensor("x", shape.x_len())?;
        self.tensor("y", shape.y_len())?;
        for name in ["w", "tw"] {
            self.real(name, shape.w_len(), Like::Values)?;
        }
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
        for (name, bytes) in [
            ("forward", prepared.arranged.forward),
            ("backward", prepared.arranged.backward),
            ("along", prepared.arranged.forward),
        ] {
            self.room(name, &vec![0; bytes], true)?;
        }
        match self.case.operation {
            Operation::ArrangeFilters => {
                self.output = if self.has(Form::BACKWARD) {
                    "backward"
                } else {
                    "forward"
                };
                Ok(())
            }
            Operation::ConvForward => {
                self.output = "y";
                self.tensor("residual", shape.y_len())?;
                self.norm_operands(output)
            }
            Operation::ConvTangent => {
                self.output = "ty";
                self.tensor("ty", shape.y_len())?;
                self.tensor("residual", shape.y_len())?;
                self.tensor("tx", shape.x_len())?;
                self.real("pending slope", 2 * shape.c as usize, Like::Values)?;
                self.norm_operands(output)
            }
            Operation::ConvBackwardInput => {
                self.output = "d";
                self.tensor("d", shape.x_len())?;
                self.norm_operands(input)
            }
            Operation::ConvContract => {
                self.output = "out";
                self.real("out", shape.n as usize, Like::Values)
            }
            _ => {
                self.output = "dw";
                self.real("dw", shape.w_len(), Like::Values)?;
                self.real("dbias", shape.k as usize, Like::Values)
            }
        }
    }

    /// What a batch-norm reads and writes.
    fn layer_operands(&mut self, shape: Rows) -> Result<()> {
        self.norm_operands(shape)?;
        let channels = shape.channels as usize;
        for name in ["gamma", "running var"] {
            self.real(name, channels, Like::Positive)?;
        }
        for name in ["beta", "running mean", "dgamma", "dbeta"] {
            self.real(name, channels, Like::Values)?;
        }
        Ok(())
    }

    pub(super) fn samples_operands(&mut self, samples: usize, shape: Rows) -> Result<()> {
        self.layer_operands(shape)?;
        self.real("out", samples, Like::Values)?;
        self.act("a", shape.len())?;
        self.act("b", shape.len())
    }

    pub(super) fn rows_operands(&mut self, shape: Rows) -> Result<()> {
        self.layer_operands(shape)?;
        match self.case.operation {
            Operation::NormForward => self.output = "affine",
            Operation::NormTangent => self.output = "slope",
            Operation::NormBackward => self.output = "dgamma",
            _ => {
                for name in ["a", "b", "ta", "tb", "out", "y"] {
                    self.act(name, shape.len())?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn pool_operands(&mut self, shape: PoolShape) -> Result<()> {
        let rows = pool_rows(shape);
        self.norm_operands(rows)?;
        for name in ["x", "tx", "d"] {
            self.act(name, shape.x_len())?;
        }
        self.real("y", shape.y_len(), Like::Values)?;
        self.output = match self.case.operation {
            Operation::PoolBackward => "d",
            _ => "y",
        };
        Ok(())
    }

    pub(super) fn loss_operands(&mut self, shape: LossShape) -> Result<()> {
        let (entries, classes) = (shape.entries as usize, shape.classes as usize);
        for name in ["z", "tz", "dz"] {
            self.real(name, entries * classes, Like::Values)?;
        }
        let labels: Vec<i32> = (0..entries).map(|i| (i * 7919 % classes) as i32).collect();
        let bytes: &[u8] = bytemuck::cast_slice(&labels);
        for name in ["labels", "pseudo"] {
            self.room(name, bytes, false)?;
        }
        for name in ["weights", "other weights", "loss"] {
            self.real(name, entries, Like::Positive)?;
        }
        self.output = match self.case.operation {
            Operation::CrossEntropyBackward => "dz",
            // Labels are no numbers to look at: the logits stand for them.
            Operation::PseudoLabels => "z",
            _ => "loss",
        };
        Ok(())
    }

    pub(super) fn augment_operands(&mut self, shape: AugmentShape) -> Result<()> {
        let pixels = shape.n as usize * shape.h as usize * shape.w as usize * shape.c as usize;
        let bytes: Vec<u8> = (0..pixels).map(|i| (i * 7919 % 251) as u8).collect();
        self.room("images", &bytes, false)?;
        let ids: Vec<u32> = (0..shape.n as u32).collect();
        self.room("ids", bytemuck::cast_slice(&ids), false)?;
        self.real("table", shape.c as usize * 256, Like::Values)?;
        self.act("out", pixels)
    }

    pub(super) fn vector_operands(&mut self, len: usize) -> Result<()> {
        let scratch = self.device.gradient_norm_scratch_bytes(len);
        self.space("scratch", scratch)?;
        if self.case.operation == Operation::Copy {
            self.act("out", len)?;
            return self.act("a", len);
        }
        self.output = "out";
        // Weights of a few negative numbers would all be zero.
        let like = match self.case.operation {
            Operation::Weights => Like::Positive,
            _ => Like::Values,
        };
        for name in ["out", "a", "b"] {
            self.real(name, len, like)?;
        }
        self.real("norm", 1, Like::Positive)?;
        self.room("stopped", &[0; 4], false)?;
        match self.case.operation {
            Operation::GradientNorm => self.output = "norm",
            // A flag is no number to look at, and stays 0: what was looked at stands for it.
            Operation::Watch => self.output = "a",
            _ => {}
        }
        Ok(())
    }
}

/// A pool's input as rows of channels.
fn pool_rows(shape: PoolShape) -> Rows {
    Rows {
        rows: shape.n * shape.h * shape.w,
        channels: shape.c,
    }
}
