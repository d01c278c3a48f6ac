//! What an operation does beside its core, as `--form` takes it.

use std::fmt;
use std::str::FromStr;

/// What an operation does beside its core: how its input is read and its output is finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Form(u16);

impl Form {
    /// Nothing.
    pub const PLAIN: Form = Form(0);
    /// Batch-norm and ReLU are pending on the input (of a join: on both).
    pub const PENDING: Form = Form(1);
    /// The stored input has a tangent.
    pub const TANGENT: Form = Form(2);
    /// The layer has a bias.
    pub const BIAS: Form = Form(4);
    /// The result is added to what is there; of forward and tangent, a residual to the result.
    pub const ADD: Form = Form(8);
    /// The result is zeroed where a ReLU is closed.
    pub const MASK: Form = Form(16);
    /// Per-channel sums of the result are left behind.
    pub const SUMS: Form = Form(32);
    /// Cross-entropy of two kinds of label.
    pub const SECOND: Form = Form(64);
    /// A convolution as a linear layer: all of it in the precision of parameters.
    pub const LINEAR: Form = Form(128);
    /// Filters are wanted for the backward pass too.
    pub const BACKWARD: Form = Form(256);

    const NAMES: [(Form, &'static str); 9] = [
        (Form::PENDING, "pending"),
        (Form::TANGENT, "tangent"),
        (Form::BIAS, "bias"),
        (Form::ADD, "add"),
        (Form::MASK, "mask"),
        (Form::SUMS, "sums"),
        (Form::SECOND, "second"),
        (Form::LINEAR, "linear"),
        (Form::BACKWARD, "backward"),
    ];

    /// Both.
    pub const fn and(self, other: Form) -> Form {
        Form(self.0 | other.0)
    }

    /// `self` less what is in `other`.
    pub const fn without(self, other: Form) -> Form {
        Form(self.0 & !other.0)
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
