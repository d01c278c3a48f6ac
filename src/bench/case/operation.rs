//! The operations of the seam by name.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::form::Form;

/// Operation of the seam, by its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    ArrangeFilters,
    ConvForward,
    ConvTangent,
    ConvBackwardInput,
    ConvBackwardWeight,
    ConvContract,
    NormForward,
    NormTangent,
    NormBackward,
    NormContract,
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
    Watch,
    Sgd,
    Augment,
    Copy,
}

/// What the numbers of a shape are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Conv,
    Rows,
    /// Rows by the sample.
    Samples,
    Pool,
    Loss,
    Augment,
    Length,
}

impl Operation {
    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Operation::ArrangeFilters => "arrange_filters",
            Operation::ConvForward => "conv_forward",
            Operation::ConvTangent => "conv_tangent",
            Operation::ConvBackwardInput => "conv_backward_input",
            Operation::ConvBackwardWeight => "conv_backward_weight",
            Operation::ConvContract => "conv_contract",
            Operation::NormForward => "norm_forward",
            Operation::NormTangent => "norm_tangent",
            Operation::NormBackward => "norm_backward",
            Operation::NormContract => "norm_contract",
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
            Operation::Watch => "watch",
            Operation::Sgd => "sgd",
            Operation::Augment => "augment",
            Operation::Copy => "copy",
        }
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Operation::ArrangeFilters
            | Operation::ConvForward
            | Operation::ConvTangent
            | Operation::ConvBackwardInput
            | Operation::ConvBackwardWeight
            | Operation::ConvContract => Kind::Conv,
            Operation::NormForward
            | Operation::NormTangent
            | Operation::NormBackward
            | Operation::SourceBackward
            | Operation::JoinForward
            | Operation::JoinTangent => Kind::Rows,
            Operation::NormContract => Kind::Samples,
            Operation::PoolForward | Operation::PoolTangent | Operation::PoolBackward => Kind::Pool,
            Operation::PseudoLabels
            | Operation::CrossEntropy
            | Operation::CrossEntropyBackward
            | Operation::TangentDot => Kind::Loss,
            Operation::Weights
            | Operation::Lookahead
            | Operation::GradientNorm
            | Operation::Watch
            | Operation::Sgd
            | Operation::Copy => Kind::Length,
            Operation::Augment => Kind::Augment,
        }
    }

    /// The form in which a network mostly asks for it.
    pub fn usual_form(self) -> Form {
        match self {
            Operation::ArrangeFilters => Form::BACKWARD,
            Operation::ConvForward => Form::PENDING.and(Form::SUMS),
            Operation::ConvTangent => Form::PENDING.and(Form::TANGENT).and(Form::SUMS),
            Operation::ConvBackwardInput => Form::MASK.and(Form::SUMS),
            Operation::ConvBackwardWeight | Operation::ConvContract => Form::PENDING,
            Operation::SourceBackward => Form::PENDING.and(Form::ADD),
            Operation::JoinForward | Operation::JoinTangent => Form::SUMS,
            _ => Form::PLAIN,
        }
    }
}
