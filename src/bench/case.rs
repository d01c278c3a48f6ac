//! One operation of the seam at one shape and in one form: its name, the work it has to do, the least memory traffic.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::device::{AugmentShape, ConvShape, LossShape, PoolShape, Rows};
use crate::{Error, Result};

/// Operation of the seam, by its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    ConvForward,
    ConvTangent,
    ConvBackwardInput,
    ConvBackwardWeight,
    NormForward,
    NormTangent,
    NormBackward,
    SourceBackward,
    JoinForward,
    JoinTangent,
    PoolForward,
    PoolTangent,
    PoolBackward,
    PseudoLabels,
    CrossEntropy,
    CrossEntropyBackward,
    TangentDot,
    Weights,
    Lookahead,
    GradientNorm,
    Sgd,
    Augment,
    Copy,
}

/// What the numbers of a shape are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Conv,
    Rows,
    Pool,
    Loss,
    Augment,
    Length,
}

impl Operation {
    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Operation::ConvForward => "conv_forward",
            Operation::ConvTangent => "conv_tangent",
            Operation::ConvBackwardInput => "conv_backward_input",
            Operation::ConvBackwardWeight => "conv_backward_weight",
            Operation::NormForward => "norm_forward",
            Operation::NormTangent => "norm_tangent",
            Operation::NormBackward => "norm_backward",
            Operation::SourceBackward => "source_backward",
            Operation::JoinForward => "join_forward",
            Operation::JoinTangent => "join_tangent",
            Operation::PoolForward => "pool_forward",
            Operation::PoolTangent => "pool_tangent",
            Operation::PoolBackward => "pool_backward",
            Operation::PseudoLabels => "pseudo_labels",
            Operation::CrossEntropy => "cross_entropy",
            Operation::CrossEntropyBackward => "cross_entropy_backward",
            Operation::TangentDot => "tangent_dot",
            Operation::Weights => "weights",
            Operation::Lookahead => "lookahead",
            Operation::GradientNorm => "gradient_norm",
            Operation::Sgd => "sgd",
            Operation::Augment => "augment",
            Operation::Copy => "copy",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Operation::ConvForward
            | Operation::ConvTangent
            | Operation::ConvBackwardInput
            | Operation::ConvBackwardWeight => Kind::Conv,
            Operation::NormForward
            | Operation::NormTangent
            | Operation::NormBackward
            | Operation::SourceBackward
            | Operation::JoinForward
            | Operation::JoinTangent => Kind::Rows,
            Operation::PoolForward | Operation::PoolTangent | Operation::PoolBackward => Kind::Pool,
            Operation::PseudoLabels
            | Operation::CrossEntropy
            | Operation::CrossEntropyBackward
            | Operation::TangentDot => Kind::Loss,
            Operation::Weights
            | Operation::Lookahead
            | Operation::GradientNorm
            | Operation::Sgd
            | Operation::Copy => Kind::Length,
            Operation::Augment => Kind::Augment,
        }
    }

    /// The form in which a network mostly asks for it.
    pub fn usual_form(self) -> Form {
        match self {
            Operation::ConvForward => Form::PENDING.and(Form::SUMS),
            Operation::ConvTangent => Form::PENDING.and(Form::TANGENT).and(Form::SUMS),
            Operation::ConvBackwardInput => Form::MASK.and(Form::SUMS),
            Operation::ConvBackwardWeight => Form::PENDING,
            Operation::SourceBackward => Form::PENDING.and(Form::ADD),
            Operation::JoinForward | Operation::JoinTangent => Form::SUMS,
            _ => Form::PLAIN,
        }
    }
}

/// Geometry of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    Conv(ConvShape),
    Rows(Rows),
    Pool(PoolShape),
    Loss(LossShape),
    Augment(AugmentShape),
    /// Values of a vector.
    Length(usize),
}

impl Kind {
    /// The numbers of a shape, by name, in the order of `--shape`.
    fn fields(self) -> &'static [&'static str] {
        match self {
            Kind::Conv => &["n", "h", "w", "c", "k", "r", "stride", "pad"],
            Kind::Rows => &["rows", "channels"],
            Kind::Pool => &["n", "h", "w", "c", "r"],
            Kind::Loss => &["entries", "classes"],
            Kind::Augment => &["n", "h", "w", "c", "pad"],
            Kind::Length => &["values"],
        }
    }
}

/// Largest number in a shape, and largest tensor: what the seam counts in an i32.
const LARGEST: i64 = (1 << 31) - 1;

impl Shape {
    /// Reads `--shape`: numbers separated by commas, as the operation's kind of shape wants them.
    ///
    /// # Errors
    /// `Config` saying what the numbers are.
    pub fn parse(operation: Operation, text: &str) -> Result<Shape> {
        let kind = operation.kind();
        let fields = kind.fields();
        let refuse = |expected: String| {
            let what = format!("--shape of {}", operation.name());
            let hint = "a run without --kernel lists the shapes of a network";
            Error::config(what, expected, format!("{text:?}"), hint)
        };
        let numbers: Option<Vec<i64>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
        let numbers = numbers
            .filter(|numbers| numbers.len() == fields.len())
            .ok_or_else(|| refuse(format!("{} numbers: {}", fields.len(), fields.join(","))))?;
        for (name, &number) in fields.iter().zip(&numbers) {
            let least = i64::from(*name != "pad");
            if !(least..=LARGEST).contains(&number) {
                return Err(refuse(format!("{name} from {least} to {LARGEST}")));
            }
        }
        let n = |i: usize| numbers[i] as i32;
        let shape = match kind {
            Kind::Conv => Shape::Conv(ConvShape {
                n: n(0),
                h: n(1),
                w: n(2),
                c: n(3),
                k: n(4),
                r: n(5),
                s: n(5),
                stride: n(6),
                pad: n(7),
            }),
            Kind::Rows => Shape::Rows(Rows {
                rows: n(0),
                channels: n(1),
            }),
            Kind::Pool => Shape::Pool(PoolShape {
                n: n(0),
                h: n(1),
                w: n(2),
                c: n(3),
                r: n(4),
                s: n(4),
            }),
            Kind::Loss => Shape::Loss(LossShape {
                entries: n(0),
                classes: n(1),
            }),
            Kind::Augment => Shape::Augment(AugmentShape {
                n: n(0),
                h: n(1),
                w: n(2),
                c: n(3),
                pad: n(4),
                flip: 1,
                view: 0,
            }),
            Kind::Length => Shape::Length(numbers[0] as usize),
        };
        // Sizes in floating point, so that none of them overflows.
        let at = |i: usize| numbers[i] as f64;
        let (fits, largest) = match kind {
            Kind::Conv => {
                let window = numbers[5] <= numbers[1].min(numbers[2]) + 2 * numbers[7];
                if !window || numbers[7] >= numbers[5] {
                    return Err(refuse("r at most h and w with their padding, pad below r".into()));
                }
                let side = |i: usize| (at(i) + 2.0 * at(7) - at(5)) / at(6) + 1.0;
                let outputs = at(0) * side(1) * side(2) * at(4);
                let weights = at(4) * at(5) * at(5) * at(3);
                (true, outputs.max(weights).max(at(0) * at(1) * at(2) * at(3)))
            }
            Kind::Pool => (
                numbers[4] <= numbers[1].min(numbers[2]),
                at(0) * at(1) * at(2) * at(3),
            ),
            Kind::Augment => (
                numbers[4] <= numbers[1].max(numbers[2]),
                at(0) * at(1) * at(2) * at(3),
            ),
            Kind::Rows | Kind::Loss => (true, at(0) * at(1)),
            Kind::Length => (true, at(0)),
        };
        if !fits {
            return Err(refuse("a window or border no larger than the image".into()));
        }
        if largest >= LARGEST as f64 {
            return Err(refuse("tensors of fewer than 2^31 elements".into()));
        }
        Ok(shape)
    }
}

/// As `--shape` takes it.
impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Shape::Conv(s) => write!(
                f,
                "{},{},{},{},{},{},{},{}",
                s.n, s.h, s.w, s.c, s.k, s.r, s.stride, s.pad
            ),
            Shape::Rows(s) => write!(f, "{},{}", s.rows, s.channels),
            Shape::Pool(s) => write!(f, "{},{},{},{},{}", s.n, s.h, s.w, s.c, s.r),
            Shape::Loss(s) => write!(f, "{},{}", s.entries, s.classes),
            Shape::Augment(s) => write!(f, "{},{},{},{},{}", s.n, s.h, s.w, s.c, s.pad),
            Shape::Length(len) => write!(f, "{len}"),
        }
    }
}

/// What an operation does beside its core: how its input is read and its output is finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Form(u8);

impl Form {
    /// Nothing.
    pub const PLAIN: Form = Form(0);
    /// Batch-norm and ReLU are pending on the input (of a join: on both).
    pub const PENDING: Form = Form(1);
    /// The stored input has a tangent.
    pub const TANGENT: Form = Form(2);
    /// The layer has a bias.
    pub const BIAS: Form = Form(4);
    /// The result is added to what is there.
    pub const ADD: Form = Form(8);
    /// The result is zeroed where a ReLU is closed.
    pub const MASK: Form = Form(16);
    /// Per-channel sums of the result are left behind.
    pub const SUMS: Form = Form(32);
    /// Cross-entropy of two kinds of label.
    pub const SECOND: Form = Form(64);
    /// A convolution as a linear layer: all of it in the precision of parameters.
    pub const LINEAR: Form = Form(128);

    const NAMES: [(Form, &'static str); 8] = [
        (Form::PENDING, "pending"),
        (Form::TANGENT, "tangent"),
        (Form::BIAS, "bias"),
        (Form::ADD, "add"),
        (Form::MASK, "mask"),
        (Form::SUMS, "sums"),
        (Form::SECOND, "second"),
        (Form::LINEAR, "linear"),
    ];

    /// Both.
    pub const fn and(self, other: Form) -> Form {
        Form(self.0 | other.0)
    }

    /// `self` where `on`, else nothing.
    pub const fn when(self, on: bool) -> Form {
        if on { self } else { Form::PLAIN }
    }

    /// Whether all of `other` is in it.
    pub const fn has(self, other: Form) -> bool {
        self.0 & other.0 == other.0
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let names: Vec<&str> = Form::NAMES
            .iter()
            .filter(|(form, _)| self.has(*form))
            .map(|(_, name)| *name)
            .collect();
        f.write_str(if names.is_empty() { "plain" } else { "" })?;
        f.write_str(&names.join("+"))
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "plain" {
            return Ok(Form::PLAIN);
        }
        text.split('+').try_fold(Form::PLAIN, |form, word| {
            let found = Form::NAMES.iter().find(|(_, name)| *name == word);
            let names = Form::NAMES.map(|(_, name)| name).join(", ");
            found
                .map(|(flag, _)| form.and(*flag))
                .ok_or_else(|| format!("expected plain, or some of {names} joined by +, found {word:?}"))
        })
    }
}

/// An operation at a shape, in a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Case {
    pub operation: Operation,
    pub shape: Shape,
    pub form: Form,
}

/// Bytes of one element of activations and of parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizes {
    pub act: usize,
    pub real: usize,
}

/// What a device could do at best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Floating-point operations per second.
    pub flops: f64,
    /// Bytes read and written per second.
    pub bytes: f64,
}

impl Case {
    /// Operation, shape and form, as `--kernel`, `--shape` and `--form` take them.
    pub fn name(&self) -> String {
        format!("{} {} {}", self.operation.name(), self.shape, self.form)
    }

    /// Floating-point operations of its multiply-adds; 0 for what is bound by memory anyway.
    pub fn flops(&self) -> f64 {
        match (self.shape, self.operation) {
            (Shape::Conv(s), Operation::ConvTangent) if self.form.has(Form::TANGENT) => 2.0 * s.flops(),
            (Shape::Conv(s), _) => s.flops(),
            _ => 0.0,
        }
    }

    /// Bytes that go through memory where every operand is touched once.
    pub fn bytes(&self, sizes: Sizes) -> f64 {
        let (act, real) = (sizes.act as f64, sizes.real as f64);
        let has = |form: Form| f64::from(u8::from(self.form.has(form)));
        // The stored tensor that a mask or a dot product reads, once for both.
        let guide = f64::from(u8::from(self.form.has(Form::MASK) || self.form.has(Form::SUMS)));
        let add = has(Form::ADD);
        let pending = has(Form::PENDING);
        match self.shape {
            Shape::Conv(s) => {
                let act = if self.form.has(Form::LINEAR) { real } else { act };
                // A 1×1 filter with a stride does not read every pixel.
                let x = s.x_len().min(s.y_rows() * s.taps() * s.c as usize) as f64 * act;
                let (y, w) = (s.y_len() as f64 * act, s.w_len() as f64 * real);
                match self.operation {
                    Operation::ConvForward => x + w + y,
                    Operation::ConvTangent => x + has(Form::TANGENT) * (x + w) + w + y + has(Form::SUMS) * y,
                    Operation::ConvBackwardInput => y + w + s.x_len() as f64 * act * (1.0 + add + guide),
                    _ => x + y + w * (1.0 + add),
                }
            }
            Shape::Rows(s) => {
                let tensor = s.len() as f64 * act;
                match self.operation {
                    Operation::JoinForward => 3.0 * tensor,
                    Operation::JoinTangent => tensor * (3.0 + 2.0 * pending + has(Form::SUMS)),
                    Operation::SourceBackward => tensor * (2.0 + add + pending.max(guide)),
                    _ => 10.0 * f64::from(s.channels) * real,
                }
            }
            Shape::Pool(s) => {
                let (x, y) = (s.x_len() as f64 * act, s.y_len() as f64 * real);
                match self.operation {
                    Operation::PoolTangent => x * (1.0 + pending) + y,
                    Operation::PoolBackward => x * (1.0 + add + guide) + y,
                    _ => x + y,
                }
            }
            Shape::Loss(s) => {
                let tensor = f64::from(s.entries) * f64::from(s.classes) * real;
                let both = matches!(
                    self.operation,
                    Operation::TangentDot | Operation::CrossEntropyBackward
                );
                tensor * if both { 2.0 } else { 1.0 } + f64::from(s.entries) * (4.0 + real)
            }
            Shape::Augment(s) => {
                f64::from(s.n) * f64::from(s.h) * f64::from(s.w) * f64::from(s.c) * (1.0 + act)
            }
            Shape::Length(len) => {
                let touched = match self.operation {
                    Operation::Sgd => 5.0,
                    Operation::Lookahead | Operation::Weights => 3.0,
                    Operation::GradientNorm => 1.0,
                    _ => 2.0,
                };
                len as f64
                    * touched
                    * if self.operation == Operation::Copy {
                        act
                    } else {
                        real
                    }
            }
        }
    }

    /// Least seconds: the longer of multiply-adds and memory traffic, each at its ceiling.
    pub fn bound(&self, sizes: Sizes, ceilings: Ceilings) -> f64 {
        (self.flops() / ceilings.flops).max(self.bytes(sizes) / ceilings.bytes)
    }

    /// Its share of the E floor of a step: residual additions, masks and sums cost nothing beside the convolution that
    /// carries them, and normalise + ReLU is a pass over memory of its own.
    pub fn e_floor(&self, sizes: Sizes, ceilings: Ceilings) -> f64 {
        let tensors = |count: f64| match self.shape {
            Shape::Rows(s) => count * (s.len() * sizes.act) as f64 / ceilings.bytes,
            _ => 0.0,
        };
        match self.operation {
            Operation::JoinForward | Operation::JoinTangent => 0.0,
            Operation::NormForward => tensors(2.0),
            Operation::NormTangent => tensors(3.0),
            _ => self.bound(sizes, ceilings),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_command_line_takes() {
        for operation in Operation::value_variants() {
            let name = operation.to_possible_value().unwrap();
            assert_eq!(name.get_name(), operation.name());
            let ones = vec!["1"; operation.kind().fields().len()].join(",");
            let ones = match operation.kind() {
                Kind::Conv => "2,5,6,3,4,3,2,1".into(),
                _ => ones,
            };
            let shape = Shape::parse(*operation, &ones).unwrap();
            assert_eq!(shape.to_string(), ones, "{name:?}");
        }
        for form in ["plain", "pending+sums", "tangent+bias+add+mask+second+linear"] {
            assert_eq!(form.parse::<Form>().unwrap().to_string(), form);
        }
        assert!("pending,sums".parse::<Form>().unwrap_err().contains("linear"));
    }

    #[test]
    fn impossible_shapes_are_refused() {
        for (operation, text) in [
            (Operation::ConvForward, ""),
            (Operation::ConvForward, "1,2,3"),
            (Operation::ConvForward, "1,8,8,4,4,3,1,x"),
            (Operation::ConvForward, "0,8,8,4,4,3,1,1"),
            (Operation::ConvForward, "1,8,8,4,4,3,0,1"),
            (Operation::ConvForward, "1,8,8,4,4,3,1,-1"),
            (Operation::ConvForward, "1,2,2,4,4,9,1,1"),
            (Operation::ConvForward, "1,8,8,4,4,3,1,3"),
            (
                Operation::ConvForward,
                "2000000000,2000000000,2000000000,4,4,3,1,1",
            ),
            (Operation::ConvForward, "1,8,8,2000000000,2000000000,3,1,1"),
            (Operation::JoinForward, "2000000000,2000000000"),
            (Operation::PoolForward, "1,4,4,3,5"),
            (Operation::Augment, "1,4,4,3,5"),
            (Operation::Sgd, "99999999999"),
            (Operation::Sgd, "1e3"),
        ] {
            let error = Shape::parse(operation, text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{text}");
            assert!(error.to_string().contains(operation.name()), "{error}");
        }
    }
}
