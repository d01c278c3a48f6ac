//! NVIDIA GPUs (and the emulator that stands in for one), through cudarc's driver API and the kernels of `kernels/*.cu`.
//! Real = f32; Act = f32 or bf16.
//!
//! Everything runs on one stream, in the order of the calls; nothing is allocated, waited for or read back inside an
//! operation, so any sequence of operations can be recorded; uploads cross on a second stream (`transfer`).
//!
//! | file | holds |
//! |---|---|
//! | `launcher` | a GPU: opening it, its memory |
//! | `format` | what activations are stored as, what convolutions multiply |
//! | `driver` | which driver the process talks to; the embedded kernels; errors |
//! | `memory` | arenas; operands as checked kernel arguments |
//! | `kernels` | the table of loaded kernels; launching |
//! | `shapes` | geometry as kernels take it |
//! | `tile` | which convolution kernel a shape gets |
//! | `wgmma`, `weight_wgmma` | launches of the convolutions for sm_90a |
//! | `augment`, `conv`, `filters`, `join`, `loss`, `norm`, `optim`, `pool`, `weights` | one launch function per kernel of the file of that name: lengths, launch shape, arguments |
//! | `graph` | recording and replaying |
//! | `timer`, `peak` | measuring: marks in the stream, the rate of the multiply-add units |
//! | `transfer` | transfers that nobody waits for |
//! | `list` | driver and GPUs for `l2b devices` |

mod augment;
mod conv;
pub mod driver;
mod filters;
mod format;
mod graph;
mod join;
mod kernels;
mod launcher;
mod list;
mod loss;
mod memory;
mod norm;
mod optim;
mod peak;
mod pool;
mod shapes;
mod tensor_map;
mod tile;
mod timer;
mod transfer;
mod weight_wgmma;
mod weights;
mod wgmma;

pub use format::{Activation, Operands};
pub use graph::Recording;
pub use list::{Gpu, Listing, bus_id, devices};
pub use memory::Arena;
pub use tile::Plan;
pub use timer::Mark;
pub use transfer::{Incoming, Outgoing};

use std::marker::PhantomData;

use half::bf16;

use super::{
    Arranged, Arrangement, AugmentShape, Conv, Device, Epilogue, Filters, Geometry, LossShape, Mem, Norm,
    Normalise, PoolShape, Prepared, Rows, Source, Statistics, Tangent, Targets, Write,
};
use crate::Result;
use kernels::limit;
use launcher::Launcher;

/// One GPU, or the emulator, that stores activations as A.
#[derive(Debug)]
pub struct Cuda<A = f32> {
    gpu: Launcher,
    activations: PhantomData<fn() -> A>,
}

impl<A> From<Launcher> for Cuda<A> {
    fn from(gpu: Launcher) -> Self {
        Cuda {
            gpu,
            activations: PhantomData,
        }
    }
}

/// The ordinals are those of the driver's count. All fail with `Device`: no driver, no such GPU, one that is too old, a
/// driver that is too old, or a binary without kernels.
impl Cuda<f32> {
    /// In f32 throughout.
    pub fn new(ordinal: usize) -> Result<Self> {
        Launcher::open(ordinal, Operands::F32).map(Cuda::from)
    }

    /// Stores f32, and rounds what convolutions multiply to tf32.
    pub fn tf32(ordinal: usize) -> Result<Self> {
        Launcher::open(ordinal, Operands::Tf32).map(Cuda::from)
    }

    /// The emulator, which runs the same kernels on the CPU (cargo feature `emulator`), as [`Cuda::new`].
    ///
    /// # Errors
    /// `Device`: this build holds no emulator, or the process already uses a GPU.
    pub fn emulator() -> Result<Self> {
        driver::load_emulator()?;
        Cuda::new(0)
    }
}

impl Cuda<bf16> {
    /// Stores and multiplies bf16.
    pub fn bf16(ordinal: usize) -> Result<Self> {
        Launcher::open(ordinal, Operands::Bf16).map(Cuda::from)
    }
}

/// The same for launch functions, which know activations by their number format instead of by a type.
fn untyped<A: Activation>(conv: Conv<Cuda<A>>) -> Conv<Cuda> {
    Conv {
        shape: conv.shape,
        prepared: conv.prepared,
        x: conv.x,
        scratch: conv.scratch,
    }
}

impl<A: Activation> Device for Cuda<A> {
    type Act = A;
    type Real = f32;
    type Arena = Arena;
    type Algorithm = Plan;
    type Mark = Mark;
    type Recording = Recording;
    type Outgoing = Outgoing;
    type Incoming = Incoming;

    fn name(&self) -> String {
        self.gpu.name()
    }

    fn free_bytes(&self) -> Option<usize> {
        self.gpu.free_bytes()
    }

    fn alloc(&self, bytes: usize) -> Result<Arena> {
        self.gpu.alloc(bytes)
    }

    fn upload(&self, dst: Mem<Self>, src: &[u8]) -> Result<()> {
        self.gpu.upload(dst, src)
    }

    fn download(&self, dst: &mut [u8], src: Mem<Self>) -> Result<()> {
        self.gpu.download(dst, src)
    }

    fn copy(&self, dst: Mem<Self>, src: Mem<Self>) -> Result<()> {
        self.gpu.copy(dst, src)
    }

    fn fill(&self, dst: Mem<Self>, value: u8) -> Result<()> {
        self.gpu.fill(dst, value)
    }

    fn synchronize(&self) -> Result<()> {
        self.gpu.synchronize()
    }

    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Recording>> {
        self.gpu.record(work).map(Some)
    }

    fn replay(&self, recording: &mut Recording) -> Result<()> {
        recording.replay()
    }

    fn outgoing(&self, bytes: usize) -> Result<Outgoing> {
        self.gpu.outgoing(bytes)
    }

    fn send(
        &self,
        room: &mut Outgoing,
        pieces: &[Mem<Self>],
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        room.send(&self.gpu.stream, pieces, fill)
    }

    fn incoming(&self, bytes: usize) -> Result<Incoming> {
        self.gpu.incoming(bytes)
    }

    fn fetch(&self, room: &mut Incoming, pieces: &[Mem<Self>]) -> Result<()> {
        room.fetch(&self.gpu.stream, pieces)
    }

    fn fetched<'a>(&self, room: &'a mut Incoming) -> Result<&'a [u8]> {
        room.fetched()
    }

    fn prepare(&self, node: &Geometry) -> Result<Prepared<Plan>> {
        match node {
            Geometry::Conv(shape) => return conv::prepare(shape, self.gpu.operands, self.gpu.sm90_count()),
            Geometry::Linear(shape) => return conv::prepare(shape, Operands::F32, None),
            Geometry::Join(shape) => limit("join", "rows", shape.rows as usize)?,
            Geometry::Pool(shape) => pool::pool_rows(shape).map(drop)?,
        }
        Ok(Prepared {
            scratch_bytes: 0,
            arranged: Arranged::default(),
            algorithm: Plan::NONE,
        })
    }

    fn partials_bytes(&self, shape: Rows) -> usize {
        norm::partials_len(shape) * size_of::<f32>()
    }

    fn gradient_norm_scratch_bytes(&self, len: usize) -> usize {
        optim::norm_blocks(len) * size_of::<f32>()
    }

    fn arrange_filters(&self, list: &[Arrangement<Self>]) -> Result<()> {
        filters::arrange(&self.gpu, list)
    }

    fn conv_forward(
        &self,
        conv: Conv<Self>,
        y: Mem<Self>,
        w: Filters<Arena>,
        bias: Option<Mem<Self>>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        conv::forward(&self.gpu, untyped(conv), y, w, bias, epilogue)
    }

    fn conv_tangent(
        &self,
        conv: Conv<Self>,
        ty: Mem<Self>,
        tx: Tangent<Arena>,
        w: Filters<Arena>,
        tw: Filters<Arena>,
        tbias: Option<Mem<Self>>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        conv::tangent(&self.gpu, untyped(conv), ty, tx, w, tw, tbias, epilogue)
    }

    fn conv_backward_input(
        &self,
        conv: Conv<Self>,
        d: Mem<Self>,
        write: Write,
        dy: Mem<Self>,
        w: Filters<Arena>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        conv::backward_input(&self.gpu, untyped(conv), d, write, dy, w, epilogue)
    }

    fn conv_backward_weight(
        &self,
        conv: Conv<Self>,
        dw: Mem<Self>,
        dbias: Option<Mem<Self>>,
        write: Write,
        dy: Mem<Self>,
    ) -> Result<()> {
        conv::backward_weight(&self.gpu, untyped(conv), dw, dbias, write, dy)
    }

    fn conv_contract(
        &self,
        conv: Conv<Self>,
        out: Mem<Self>,
        dy: Mem<Self>,
        tw: Filters<Arena>,
        tbias: Option<Mem<Self>>,
    ) -> Result<()> {
        conv::contract(&self.gpu, untyped(conv), out, dy, tw, tbias)
    }

    fn norm_forward(&self, norm: Norm<Arena>, statistics: Statistics) -> Result<()> {
        norm::forward(&self.gpu, norm, statistics)
    }

    fn norm_tangent(
        &self,
        norm: Norm<Arena>,
        statistics: Statistics,
        tgamma: Mem<Self>,
        tbeta: Mem<Self>,
    ) -> Result<()> {
        norm::tangent(&self.gpu, norm, statistics, tgamma, tbeta)
    }

    fn norm_backward(
        &self,
        norm: Norm<Arena>,
        statistics: Statistics,
        dgamma: Mem<Self>,
        dbeta: Mem<Self>,
        write: Write,
    ) -> Result<()> {
        norm::backward(&self.gpu, norm, statistics, dgamma, dbeta, write)
    }

    fn norm_contract(
        &self,
        norm: Norm<Arena>,
        samples: usize,
        out: Mem<Self>,
        x: Mem<Self>,
        d: Mem<Self>,
        tgamma: Mem<Self>,
        tbeta: Mem<Self>,
    ) -> Result<()> {
        norm::contract(&self.gpu, norm, samples, out, x, d, tgamma, tbeta)
    }

    fn source_backward(
        &self,
        shape: Rows,
        dx: Mem<Self>,
        write: Write,
        d: Mem<Self>,
        x: Source<Arena>,
        slope: Option<Mem<Self>>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        join::source_backward(&self.gpu, shape, dx, write, d, x, slope, epilogue)
    }

    fn join_forward(
        &self,
        shape: Rows,
        y: Mem<Self>,
        a: Source<Arena>,
        b: Source<Arena>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        join::join_forward(&self.gpu, shape, y, a, b, epilogue)
    }

    fn join_tangent(
        &self,
        shape: Rows,
        ty: Mem<Self>,
        a: (Source<Arena>, Tangent<Arena>),
        b: (Source<Arena>, Tangent<Arena>),
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        join::join_tangent(&self.gpu, shape, ty, a, b, epilogue)
    }

    fn pool_forward(&self, shape: PoolShape, y: Mem<Self>, x: Source<Arena>) -> Result<()> {
        pool::pool_forward(&self.gpu, shape, y, x)
    }

    fn pool_tangent(
        &self,
        shape: PoolShape,
        ty: Mem<Self>,
        x: Source<Arena>,
        tx: Tangent<Arena>,
    ) -> Result<()> {
        pool::pool_tangent(&self.gpu, shape, ty, x, tx)
    }

    fn pool_backward(
        &self,
        shape: PoolShape,
        d: Mem<Self>,
        write: Write,
        dy: Mem<Self>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        pool::pool_backward(&self.gpu, shape, d, write, dy, epilogue)
    }

    fn pseudo_labels(&self, shape: LossShape, labels: Mem<Self>, z: Mem<Self>) -> Result<()> {
        loss::pseudo_labels(&self.gpu, shape, labels, z)
    }

    fn cross_entropy(
        &self,
        shape: LossShape,
        loss: Mem<Self>,
        z: Mem<Self>,
        targets: Targets<Arena>,
    ) -> Result<()> {
        loss::cross_entropy(&self.gpu, shape, loss, z, targets)
    }

    fn cross_entropy_backward(
        &self,
        shape: LossShape,
        dz: Mem<Self>,
        z: Mem<Self>,
        first: (Targets<Arena>, Mem<Self>),
        second: Option<(Targets<Arena>, Mem<Self>)>,
    ) -> Result<()> {
        loss::cross_entropy_backward(&self.gpu, shape, dz, z, first, second)
    }

    fn tangent_dot(
        &self,
        shape: LossShape,
        raw: Mem<Self>,
        z: Mem<Self>,
        tz: Mem<Self>,
        targets: Targets<Arena>,
    ) -> Result<()> {
        loss::tangent_dot(&self.gpu, shape, raw, z, tz, targets)
    }

    fn weights(
        &self,
        weights: Mem<Self>,
        raw: Mem<Self>,
        normalise: Normalise,
        step: Mem<Self>,
    ) -> Result<()> {
        weights::weights(&self.gpu, weights, raw, normalise, step)
    }

    fn lookahead(&self, out: Mem<Self>, theta: Mem<Self>, buf: Mem<Self>, step: Mem<Self>) -> Result<()> {
        optim::lookahead(&self.gpu, out, theta, buf, step)
    }

    fn gradient_norm(&self, norm: Mem<Self>, g: Mem<Self>, scratch: Mem<Self>) -> Result<()> {
        optim::gradient_norm(&self.gpu, norm, g, scratch)
    }

    fn watch(&self, stopped: Mem<Self>, values: &[Mem<Self>], step: Mem<Self>) -> Result<()> {
        optim::watch(&self.gpu, stopped, values, step)
    }

    fn sgd(
        &self,
        theta: Mem<Self>,
        buf: Mem<Self>,
        g: Mem<Self>,
        norm: Mem<Self>,
        stopped: Mem<Self>,
        step: Mem<Self>,
    ) -> Result<()> {
        optim::sgd(&self.gpu, theta, buf, g, norm, stopped, step)
    }

    fn augment(
        &self,
        shape: AugmentShape,
        out: Mem<Self>,
        images: Mem<Self>,
        ids: Mem<Self>,
        table: Mem<Self>,
        step: Mem<Self>,
    ) -> Result<()> {
        augment::augment(&self.gpu, shape, out, images, ids, table, step)
    }

    fn mark(&self) -> Result<Mark> {
        timer::mark(&self.gpu)
    }

    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        timer::seconds(from, to)
    }

    fn peak_bytes(&self) -> usize {
        peak::bytes(&self.gpu)
    }

    fn peak(&self, memory: Mem<Self>, rounds: usize) -> Result<f64> {
        peak::peak(&self.gpu, memory, rounds)
    }

    fn peak_instruction(&self) -> &'static str {
        peak::instruction(&self.gpu)
    }
}
