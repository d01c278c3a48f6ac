//! Geometry of an operation, as `--shape` takes it.

use std::fmt;

use super::operation::{Kind, Operation};
use crate::device::{AugmentShape, ConvShape, LossShape, PoolShape, Rows};
use crate::{Error, Result};

/// Geometry of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    Conv(ConvShape),
    Rows(Rows),
    /// So many rows of each sample, in all.
    Samples(i32, Rows),
    Pool(PoolShape),
    Loss(LossShape),
    Augment(AugmentShape),
    /// Values of a vector.
    Length(usize),
}

impl Kind {
    /// The numbers of a shape, by name, in the order of `--shape`.
    pub(super) fn fields(self) -> &'static [&'static str] {
        match self {
            Kind::Conv => &["n", "h", "w", "c", "k", "r", "stride", "pad"],
            Kind::Rows => &["rows", "channels"],
            Kind::Samples => &["samples", "pixels", "channels"],
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
            Kind::Samples => Shape::Samples(
                n(0),
                Rows {
                    // What does not fit is refused below.
                    rows: n(0).saturating_mul(n(1)),
                    channels: n(2),
                },
            ),
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
                gather: 0,
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
            Kind::Samples => (true, at(0) * at(1) * at(2)),
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
            Shape::Samples(samples, s) => write!(f, "{samples},{},{}", s.rows / samples, s.channels),
            Shape::Pool(s) => write!(f, "{},{},{},{},{}", s.n, s.h, s.w, s.c, s.r),
            Shape::Loss(s) => write!(f, "{},{}", s.entries, s.classes),
            Shape::Augment(s) => write!(f, "{},{},{},{},{}", s.n, s.h, s.w, s.c, s.pad),
            Shape::Length(len) => write!(f, "{len}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (Operation::NormContract, "2000000000,2000000000,3"),
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
