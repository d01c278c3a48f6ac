//! One operation of the seam at one shape and in one form: its name, the work it has to do, the least memory traffic.

mod form;
mod operation;
mod shape;

pub use form::Form;
pub use operation::Operation;
pub use shape::Shape;

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

    /// Floating-point operations of the multiply-adds that it needs, whatever a device does beside them; 0 for what is
    /// bound by memory anyway.
    pub fn flops(&self) -> f64 {
        match (self.shape, self.operation) {
            (_, Operation::ArrangeFilters) => 0.0,
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
                    Operation::ArrangeFilters => w + s.w_len() as f64 * act * (1.0 + has(Form::BACKWARD)),
                    Operation::ConvForward => x + w + y * (1.0 + add),
                    Operation::ConvTangent => {
                        x + has(Form::TANGENT) * (x + w) + w + y * (1.0 + add + has(Form::SUMS))
                    }
                    Operation::ConvContract => x + y + w,
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
            Shape::Samples(_, s) => 2.0 * s.len() as f64 * act,
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
                    Operation::GradientNorm | Operation::Watch => 1.0,
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
    /// carries them, filters come as they are multiplied, and normalise + ReLU is a pass over memory of its own.
    pub fn e_floor(&self, sizes: Sizes, ceilings: Ceilings) -> f64 {
        let tensors = |count: f64| match self.shape {
            Shape::Rows(s) => count * (s.len() * sizes.act) as f64 / ceilings.bytes,
            _ => 0.0,
        };
        match self.operation {
            Operation::ArrangeFilters | Operation::JoinForward | Operation::JoinTangent => 0.0,
            Operation::ConvForward | Operation::ConvTangent => {
                let form = self.form.without(Form::ADD);
                Case { form, ..*self }.bound(sizes, ceilings)
            }
            Operation::NormForward => tensors(2.0),
            Operation::NormTangent => tensors(3.0),
            _ => self.bound(sizes, ceilings),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum;

    use super::operation::Kind;
    use super::*;

    #[test]
    fn names_are_what_the_command_line_takes() {
        for operation in Operation::value_variants() {
            let name = operation.to_possible_value().unwrap();
            assert_eq!(name.get_name(), operation.name());
            let ones = vec!["1"; operation.kind().fields().len()].join(",");
            let numbers = match operation.kind() {
                Kind::Conv => "2,5,6,3,4,3,2,1".into(),
                Kind::Samples => "5,4,3".into(),
                _ => ones,
            };
            let shape = Shape::parse(*operation, &numbers).unwrap();
            assert_eq!(shape.to_string(), numbers, "{name:?}");
        }
        for form in [
            "plain",
            "pending+sums",
            "tangent+bias+add+mask+second+linear+backward",
        ] {
            assert_eq!(form.parse::<Form>().unwrap().to_string(), form);
        }
        assert!("pending,sums".parse::<Form>().unwrap_err().contains("linear"));
    }

    /// What of the seam is no operation: memory, transfers, recordings, planning, measuring.
    const OTHERS: [&str; 22] = [
        "name",
        "free_bytes",
        "alloc",
        "upload",
        "download",
        "fill",
        "synchronize",
        "record",
        "replay",
        "outgoing",
        "send",
        "incoming",
        "fetch",
        "fetched",
        "prepare",
        "partials_bytes",
        "gradient_norm_scratch_bytes",
        "mark",
        "seconds",
        "peak_bytes",
        "peak",
        "peak_instruction",
    ];

    /// Read from its text: a method that is added there is an operation here, or is named above.
    #[test]
    fn every_operation_of_the_seam_has_its_name_here() {
        let text = include_str!("../../device/mod.rs");
        let seam = text.split("pub trait Device").nth(1).unwrap();
        let methods: BTreeSet<&str> = seam
            .lines()
            .filter_map(|line| line.strip_prefix("    fn "))
            .map(|line| line.split(['(', '<']).next().unwrap())
            .collect();
        let operations = Operation::value_variants().iter().map(|o| o.name());
        let known: BTreeSet<&str> = operations.chain(OTHERS).collect();
        assert_eq!(methods, known);
    }
}
