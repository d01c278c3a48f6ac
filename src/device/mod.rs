//! The seam: everything the engine asks of a device, on flat memory and explicit geometry.
//!
//! Letters mean one thing everywhere, host and device: N C H W input, K filters, R S taps, P Q output; prefix `d` is the
//! adjoint (∂ loss / ∂ ·), prefix `t` the tangent (d · / dt along v). Activations are NHWC, filters `[K][R][S][C]`.
//!
//! Two ideas carry the interface:
//! - **Source**: batch-norm and ReLU are *pending* on a stored tensor until an operation reads it. A [`Source`] is
//!   relu(A·(x − M) + C) with one A, C and M per channel; it is evaluated while it is read, in three forms (forward,
//!   tangent, adjoint). Padding stays zero after it.
//! - **Epilogue**: an operation that writes a tensor ends in a fixed order: accumulate → add a residual → mask → round
//!   and store → per-channel sums of the stored values. The sums are what the next batch-norm needs, so it costs no pass of its own
//!   on a device that fuses; one that does not runs them as a second pass inside the same call.
//!
//! Operations write into given outputs, allocate nothing, return before the work is done on an asynchronous device, and
//! run in the order of the calls. Operands of one call never overlap where one of them is written.

pub mod choice;
pub mod cpu;
pub mod cuda;
mod memory;
mod operands;
mod shape;

pub use memory::{ALIGN, Element, Layout, Mem, Region, Span};
pub use operands::{
    Arranged, Arrangement, Conv, Epilogue, Filters, Geometry, Norm, Normalise, Prepared, Source, Statistics,
    Sums, Tangent, Targets, Write,
};
pub use shape::{AugmentShape, ConvShape, LossShape, PoolShape, Rows, StepParams};

use crate::Result;

/// Most operands of one [`Device::watch`].
pub const WATCHED: usize = 4;

/// Everything the engine asks of a device. `&self`: a device is shared by the threads of a run.
pub trait Device: Sized + Send + Sync + 'static {
    /// Storage of activations, tangents and their adjoints.
    type Act: Element;
    /// Parameters, statistics, sums, losses and weights.
    type Real: Element;
    /// A flat block of device memory.
    type Arena: Send + Sync;
    /// The device's choice of algorithm for a node.
    type Algorithm: Copy + std::fmt::Debug + Send + Sync;
    /// A point in the device's work.
    type Mark: Send;
    /// Operations to be asked for in one call, see [`Device::record`].
    type Recording: Send;
    /// What crosses to the device while both sides work, see [`Device::send`].
    type Outgoing: Send;
    /// What crosses to the host while both sides work, see [`Device::fetch`].
    type Incoming: Send;

    /// What `l2b devices` calls it, e.g. "cpu" or "cuda:0 (NVIDIA H200)".
    fn name(&self) -> String;

    // ---- memory

    /// Bytes that could still be allocated, where the device knows.
    fn free_bytes(&self) -> Option<usize> {
        None
    }
    /// `bytes` bytes aligned to [`ALIGN`]. Contents are unspecified. Error::Device names need and free when they do not fit.
    fn alloc(&self, bytes: usize) -> Result<Self::Arena>;
    /// Host to device; lengths are equal. Waits: what a step needs goes by [`Device::send`].
    fn upload(&self, dst: Mem<Self>, src: &[u8]) -> Result<()>;
    /// Device to host, after all work asked for so far; lengths are equal.
    fn download(&self, dst: &mut [u8], src: Mem<Self>) -> Result<()>;
    /// dst ← src; lengths are equal.
    fn copy(&self, dst: Mem<Self>, src: Mem<Self>) -> Result<()>;
    /// Every byte ← value.
    fn fill(&self, dst: Mem<Self>, value: u8) -> Result<()>;
    /// Waits for all work asked for so far and reports its errors.
    fn synchronize(&self) -> Result<()>;

    // ---- work and transfers that nobody waits for

    /// Records the operations that `work` asks for, without running them; None, and `work` is not called, on a device that
    /// gains nothing by it. `work` allocates, uploads, downloads and waits for nothing; no other thread uses the device
    /// meanwhile. The recording keeps every arena alive that the device has now.
    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Self::Recording>>;
    /// Asks for the recorded operations once more, on what their operands hold by then.
    fn replay(&self, recording: &mut Self::Recording) -> Result<()>;
    /// Room for `bytes` bytes on their way to the device; takes as much of the device's memory again.
    fn outgoing(&self, bytes: usize) -> Result<Self::Outgoing>;
    /// The pieces, one behind the other, ← what `fill` writes. The bytes cross beside the work asked for before and arrive
    /// in the pieces after it, before the work asked for next. Waits only until this room's last content has crossed.
    fn send(
        &self,
        room: &mut Self::Outgoing,
        pieces: &[Mem<Self>],
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()>;
    /// Room for `bytes` bytes on their way to the host.
    fn incoming(&self, bytes: usize) -> Result<Self::Incoming>;
    /// room ← the pieces, one behind the other, as the work asked for so far leaves them. Does not wait.
    fn fetch(&self, room: &mut Self::Incoming, pieces: &[Mem<Self>]) -> Result<()>;
    /// What the last [`Device::fetch`] into this room brings; waits for that and no longer.
    fn fetched<'a>(&self, room: &'a mut Self::Incoming) -> Result<&'a [u8]>;

    // ---- planning

    /// What the device wants for a node.
    fn prepare(&self, node: &Geometry) -> Result<Prepared<Self::Algorithm>>;
    /// Size of [`Norm::partials`] for a tensor of this shape.
    fn partials_bytes(&self, shape: Rows) -> usize;
    /// Scratch bytes of [`Device::gradient_norm`] over `len` values.
    fn gradient_norm_scratch_bytes(&self, len: usize) -> usize;

    // ---- convolution; of a node prepared as `Geometry::Linear` every operand is `Real`

    /// Brings filters into the layouts in which the other operations read them: after every change of w, before any of those.
    /// All of a network's in one call, since each alone is little work.
    fn arrange_filters(&self, filters: &[Arrangement<Self>]) -> Result<()>;
    /// y `[N,P,Q,K]` ← conv(x, w) + bias, then the epilogue.
    fn conv_forward(
        &self,
        conv: Conv<Self>,
        y: Mem<Self>,
        w: Filters<Self::Arena>,
        bias: Option<Mem<Self>>,
        epilogue: Epilogue<Self::Arena>,
    ) -> Result<()>;
    /// ty `[N,P,Q,K]` ← conv(tangent of x, w) + conv(x, tw) + tbias in one accumulation, then the epilogue.
    #[allow(clippy::too_many_arguments)]
    fn conv_tangent(
        &self,
        conv: Conv<Self>,
        ty: Mem<Self>,
        tx: Tangent<Self::Arena>,
        w: Filters<Self::Arena>,
        tw: Filters<Self::Arena>,
        tbias: Option<Mem<Self>>,
        epilogue: Epilogue<Self::Arena>,
    ) -> Result<()>;
    /// d `[N,H,W,C]`, adjoint of the *evaluated* source, ← or += convᵀ(dy, w), then the epilogue.
    fn conv_backward_input(
        &self,
        conv: Conv<Self>,
        d: Mem<Self>,
        write: Write,
        dy: Mem<Self>,
        w: Filters<Self::Arena>,
        epilogue: Epilogue<Self::Arena>,
    ) -> Result<()>;
    /// dw `[K,R,S,C]` and dbias `[K]` ← or += the adjoints of w and bias.
    fn conv_backward_weight(
        &self,
        conv: Conv<Self>,
        dw: Mem<Self>,
        dbias: Option<Mem<Self>>,
        write: Write,
        dy: Mem<Self>,
    ) -> Result<()>;
    /// out `[N]` += ⟨dy_i, conv(x_i, tw) + tbias⟩: per-sample weight gradients contracted with v, never stored.
    fn conv_contract(
        &self,
        conv: Conv<Self>,
        out: Mem<Self>,
        dy: Mem<Self>,
        tw: Filters<Self::Arena>,
        tbias: Option<Mem<Self>>,
    ) -> Result<()>;

    // ---- batch-norm

    /// Statistics from the partials of x (`Batch`) or the running ones, then A, C and M.
    fn norm_forward(&self, norm: Norm<Self::Arena>, statistics: Statistics) -> Result<()>;
    /// Slope B, D of the tangent: with m₁ = mean(tx), m₂ = mean(tx·x̂) from the partials (0 under `Running`),
    /// B = (tγ − γ·rstd·m₂)·rstd, D = tβ − A·m₁.
    fn norm_tangent(
        &self,
        norm: Norm<Self::Arena>,
        statistics: Statistics,
        tgamma: Mem<Self>,
        tbeta: Mem<Self>,
    ) -> Result<()>;
    /// From the partials of the masked adjoint d: dγ = Σ d·x̂, dβ = Σ d, and the slope of the adjoint
    /// B = −A·rstd·dγ/rows, D = −A·dβ/rows (both 0 under `Running`).
    fn norm_backward(
        &self,
        norm: Norm<Self::Arena>,
        statistics: Statistics,
        dgamma: Mem<Self>,
        dbeta: Mem<Self>,
        write: Write,
    ) -> Result<()>;
    /// out `[samples]` += Σ over the sample's rows and channels of d·(tγ·x̂ + tβ), d the masked adjoint. Only exact under `Running`.
    #[allow(clippy::too_many_arguments)]
    fn norm_contract(
        &self,
        norm: Norm<Self::Arena>,
        samples: usize,
        out: Mem<Self>,
        x: Mem<Self>,
        d: Mem<Self>,
        tgamma: Mem<Self>,
        tbeta: Mem<Self>,
    ) -> Result<()>;

    // ---- sources, joins, pools

    /// dx ← or += A·mask·d + B·(x − M) + D, the adjoint of a source: d is the adjoint of its value (masked or not), `slope` the
    /// adjoint's B, D (None: 0). Then the epilogue.
    #[allow(clippy::too_many_arguments)]
    fn source_backward(
        &self,
        shape: Rows,
        dx: Mem<Self>,
        write: Write,
        d: Mem<Self>,
        x: Source<Self::Arena>,
        slope: Option<Mem<Self>>,
        epilogue: Epilogue<Self::Arena>,
    ) -> Result<()>;
    /// y ← a + b, then the epilogue.
    fn join_forward(
        &self,
        shape: Rows,
        y: Mem<Self>,
        a: Source<Self::Arena>,
        b: Source<Self::Arena>,
        epilogue: Epilogue<Self::Arena>,
    ) -> Result<()>;
    /// ty ← tangent of a + tangent of b, then the epilogue.
    fn join_tangent(
        &self,
        shape: Rows,
        ty: Mem<Self>,
        a: (Source<Self::Arena>, Tangent<Self::Arena>),
        b: (Source<Self::Arena>, Tangent<Self::Arena>),
        epilogue: Epilogue<Self::Arena>,
    ) -> Result<()>;
    /// y, `Real` `[N,P,Q,C]` ← mean of each window of x.
    fn pool_forward(&self, shape: PoolShape, y: Mem<Self>, x: Source<Self::Arena>) -> Result<()>;
    /// ty, `Real` ← mean of each window of x's tangent.
    fn pool_tangent(
        &self,
        shape: PoolShape,
        ty: Mem<Self>,
        x: Source<Self::Arena>,
        tx: Tangent<Self::Arena>,
    ) -> Result<()>;
    /// d `[N,H,W,C]` ← or += dy / (R·S) of its window (0 outside every window), then the epilogue. dy is `Real`.
    fn pool_backward(
        &self,
        shape: PoolShape,
        d: Mem<Self>,
        write: Write,
        dy: Mem<Self>,
        epilogue: Epilogue<Self::Arena>,
    ) -> Result<()>;

    // ---- loss and weights, all `Real`: z, tz, dz [entries][classes], losses and weights [entries]

    /// labels (i32 `[entries]`) ← argmax of z, the lowest index on ties.
    fn pseudo_labels(&self, shape: LossShape, labels: Mem<Self>, z: Mem<Self>) -> Result<()>;
    /// loss ← cross-entropy of softmax(z) against the targets, per entry.
    fn cross_entropy(
        &self,
        shape: LossShape,
        loss: Mem<Self>,
        z: Mem<Self>,
        targets: Targets<Self::Arena>,
    ) -> Result<()>;
    /// dz_i ← Σ over the terms (targets t, weights w) of w_i·(softmax(z_i) − t_i).
    fn cross_entropy_backward(
        &self,
        shape: LossShape,
        dz: Mem<Self>,
        z: Mem<Self>,
        first: (Targets<Self::Arena>, Mem<Self>),
        second: Option<(Targets<Self::Arena>, Mem<Self>)>,
    ) -> Result<()>;
    /// raw_i ← (softmax(z_i) − t_i)·tz_i = ⟨v, ∇f_i⟩.
    fn tangent_dot(
        &self,
        shape: LossShape,
        raw: Mem<Self>,
        z: Mem<Self>,
        tz: Mem<Self>,
        targets: Targets<Self::Arena>,
    ) -> Result<()>;
    /// raw ← η·λ·raw, then weights ← normalise(raw), over all `Real` entries of raw jointly.
    fn weights(
        &self,
        weights: Mem<Self>,
        raw: Mem<Self>,
        normalise: Normalise,
        step: Mem<Self>,
    ) -> Result<()>;

    // ---- optimizer; θ, buf, g are `Real` of one length, `step` a StepParams

    /// out ← θ − λ(μ·buf + wd·θ): where momentum and decay alone would take the virtual step.
    fn lookahead(&self, out: Mem<Self>, theta: Mem<Self>, buf: Mem<Self>, step: Mem<Self>) -> Result<()>;
    /// norm `[1]` ← √Σg², in fixed order.
    fn gradient_norm(&self, norm: Mem<Self>, g: Mem<Self>, scratch: Mem<Self>) -> Result<()>;
    /// stopped (u32 `[1]`) ← 1 + the step's number, where it is 0 and any of the values (`Real`, at most [`WATCHED`] operands)
    /// is not finite.
    fn watch(&self, stopped: Mem<Self>, values: &[Mem<Self>], step: Mem<Self>) -> Result<()>;
    /// d = min(1, clip/(norm + 1e-6))·g + wd·θ; buf ← μ·buf + d; θ ← θ − lr·buf. No clipping where clip is 0. Nothing changes
    /// where `stopped` is not 0.
    #[allow(clippy::too_many_arguments)]
    fn sgd(
        &self,
        theta: Mem<Self>,
        buf: Mem<Self>,
        g: Mem<Self>,
        norm: Mem<Self>,
        stopped: Mem<Self>,
        step: Mem<Self>,
    ) -> Result<()>;

    // ---- input

    /// out `Act` `[N,H,W,C]` ← `table[c][pixel]` of the cropped, mirrored u8 images; ids: u32 `[N]` sample ids, table: `Real`
    /// `[C][256]`. Sample n is image n of the images, or where the shape says gather image `ids[n]` of a whole set.
    fn augment(
        &self,
        shape: AugmentShape,
        out: Mem<Self>,
        images: Mem<Self>,
        ids: Mem<Self>,
        table: Mem<Self>,
        step: Mem<Self>,
    ) -> Result<()>;

    // ---- measuring

    /// The point at which all work asked for so far is done.
    fn mark(&self) -> Result<Self::Mark>;
    /// Seconds from one mark to a later one by the device's own clock; waits for the later one.
    fn seconds(&self, from: &Self::Mark, to: &Self::Mark) -> Result<f64>;
    /// Bytes of memory that [`Device::peak`] works on.
    fn peak_bytes(&self) -> usize;
    /// `rounds` rounds of multiply-adds as fast as the device does them on operands of its precision, next to no memory
    /// traffic; overwrites `memory`, `Real`, with results that are finite and not all zero. Returns the floating-point
    /// operations asked for.
    fn peak(&self, memory: Mem<Self>, rounds: usize) -> Result<f64>;
    /// The instruction that [`Device::peak`] multiplies with, for records.
    fn peak_instruction(&self) -> &'static str;
}
