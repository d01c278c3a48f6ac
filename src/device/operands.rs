//! What the operations of a device take: pending tensors, what follows the accumulation of an output, filters, norms, targets;
//! and what a device says of a node beforehand.

use super::{ConvShape, Device, Mem, PoolShape, Rows, Span};

/// Whether a result replaces what is there or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    Set,
    Add,
}

/// relu(A·(x − M) + C), pending on the stored tensor x `[rows][C]`. Centred, so that a channel whose mean is large beside its
/// spread loses no digits. Every form of one device computes it alike, so that masks agree bit for bit.
pub struct Source<'a, A> {
    /// Stored values, `Act`.
    pub x: Span<'a, A>,
    /// `Real` `[3][C]`: scale A, shift C, centre M. None: the identity.
    pub affine: Option<Span<'a, A>>,
    pub relu: bool,
}

/// The tangent of a source: mask·(A·tx + B·(x − M) + D).
pub struct Tangent<'a, A> {
    /// Tangent of the stored values, `Act`. None: zero (the network's input).
    pub tx: Option<Span<'a, A>>,
    /// `Real` `[2][C]`: B, D. None: zero.
    pub slope: Option<Span<'a, A>>,
}

/// Per-channel sums of the values that an operation has just stored, as per-tile partials that [`Device::norm_forward`],
/// [`Device::norm_tangent`] and [`Device::norm_backward`] finish in fixed order.
pub enum Sums<'a, A> {
    None,
    /// (mean, Σ(u − mean)²) of the stored values u.
    Moments {
        partials: Span<'a, A>,
    },
    /// (Σ u, Σ u·x̂) with x̂ = (x − mean)·rstd of the stored tensor x; statistics: `Real` `[2][C]` mean, rstd.
    Dot {
        x: Span<'a, A>,
        statistics: Span<'a, A>,
        partials: Span<'a, A>,
    },
}

/// What follows the accumulation of an output, in this order: add, mask, store, sums.
pub struct Epilogue<'a, A> {
    /// A stored tensor of the output's shape that is added, the residual: of forward and tangent convolutions alone, and never
    /// the output itself (that is [`Write::Add`]).
    pub addend: Option<Span<'a, A>>,
    /// Zero the value where this source's ReLU is closed (A·(x − M) + C ≤ 0). Only for sources with `relu`.
    pub mask: Option<Source<'a, A>>,
    /// Beside a mask, dot products are with the x of its source: both belong to the value whose adjoint is complete.
    pub sums: Sums<'a, A>,
}

impl<A> Epilogue<'_, A> {
    /// Store and nothing else.
    pub fn none() -> Self {
        Epilogue {
            addend: None,
            mask: None,
            sums: Sums::None,
        }
    }
}

// Derived `Clone`/`Copy` would ask for `A: Copy`.
macro_rules! copy {
    ($($name:ident),*) => {$(
        impl<A> Clone for $name<'_, A> {
            fn clone(&self) -> Self { *self }
        }
        impl<A> Copy for $name<'_, A> {}
    )*};
}
copy!(Source, Tangent, Sums, Epilogue, Filters, Norm, Targets);

/// Geometry of a node, for [`Device::prepare`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Geometry {
    Conv(ConvShape),
    /// A linear layer, as a convolution of 1×1 images: x, y, their tangents and adjoints are all `Real`.
    Linear(ConvShape),
    Join(Rows),
    Pool(PoolShape),
}

/// What a device wants for one node, fixed before memory is planned.
#[derive(Clone, Copy, Debug)]
pub struct Prepared<T> {
    /// Bytes that any one call of the node may overwrite.
    pub scratch_bytes: usize,
    /// Bytes of a convolution's filters as [`Device::arrange_filters`] leaves them, whatever the batch; 0 where the device
    /// multiplies the learned numbers themselves.
    pub arranged: Arranged,
    /// The device's choice of algorithm.
    pub algorithm: T,
}

/// Bytes of arranged filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arranged {
    /// [`Filters::forward`].
    pub forward: usize,
    /// [`Filters::backward`].
    pub backward: usize,
}

/// The filters of a convolution (those of θ, or their tangent), and what [`Device::arrange_filters`] makes of them.
pub struct Filters<'a, A> {
    /// `Real` `[K,R,S,C]`.
    pub w: Span<'a, A>,
    /// In the device's own layout, as forward, tangent and contraction multiply them: [`Arranged::forward`] bytes.
    pub forward: Span<'a, A>,
    /// Likewise as backward-input does: [`Arranged::backward`] bytes. None: not wanted.
    pub backward: Option<Span<'a, A>>,
}

/// A convolution among those whose filters are arranged.
pub struct Arrangement<'a, D: Device> {
    pub shape: &'a ConvShape,
    pub prepared: &'a Prepared<D::Algorithm>,
    pub filters: Filters<'a, D::Arena>,
}

/// What every call of one convolution shares.
pub struct Conv<'a, D: Device> {
    pub shape: &'a ConvShape,
    pub prepared: &'a Prepared<D::Algorithm>,
    /// Input, `[N,H,W,C]`.
    pub x: Source<'a, D::Arena>,
    /// `scratch_bytes` bytes.
    pub scratch: Mem<'a, D>,
}

impl<D: Device> Clone for Conv<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Conv<'_, D> {}

/// Which statistics batch-norm uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// Those of the batch; `update`: the running statistics take a step towards them.
    Batch { update: bool },
    /// The running statistics, as constants.
    Running,
}

/// One batch-norm: the stored tensor x `[rows][C]` it is pending on, and its per-channel values, all `Real` `[C]`.
pub struct Norm<'a, A> {
    pub shape: Rows,
    pub eps: f64,
    /// Step of the running statistics towards the batch's.
    pub momentum: f64,
    pub gamma: Span<'a, A>,
    pub beta: Span<'a, A>,
    pub running_mean: Span<'a, A>,
    /// Unbiased: divides by max(count − 1, 1).
    pub running_var: Span<'a, A>,
    /// `[2][C]`: mean, rstd = 1/√(biased variance + eps).
    pub statistics: Span<'a, A>,
    /// `[3][C]`: A = γ·rstd, C = β, M = mean.
    pub affine: Span<'a, A>,
    /// `[2][C]`: B, D of the tangent or of the adjoint, whichever was computed last.
    pub slope: Span<'a, A>,
    /// Per-tile sums, [`Device::partials_bytes`] bytes.
    pub partials: Span<'a, A>,
}

/// Targets of the cross-entropy.
pub enum Targets<'a, A> {
    /// i32 `[entries]`, each in 0..classes.
    Hard(Span<'a, A>),
    /// `Real` `[entries][classes]`, each row summing to 1.
    Soft(Span<'a, A>),
}

/// How raw weights become weights, over all `count` entries jointly (METHOD 2.4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Normalise {
    /// max(r,0) / (Σ max(r,0) + 1e-10); all zero where no r is positive.
    Rectify,
    /// softmax(r/T).
    Softmax { temperature: f64 },
    /// σ(r) / Σσ(r).
    Sigmoid,
    /// softmax(r), entries at or below the threshold zeroed, not renormalised.
    Hard { threshold: f64 },
    /// σ(max(r,0)) / (Σσ(max(r,0)) + 1e-10): sigmoid weights where there is no pseudo-label row.
    RectifiedSigmoid,
}
