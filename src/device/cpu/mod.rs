//! The CPU device: the default without a GPU, and the reference for every kernel. Plain loops over NHWC rows, compiled
//! for each instruction set; convolutions through one tile that `kernel` keeps in registers.
//!
//! Work is cut into pieces by shape alone and sums are merged in a fixed order, so no bit of a result depends on the
//! number of threads. The calling thread works too; the pool holds the others.

mod augment;
mod available;
mod conv;
mod epilogue;
mod float;
mod kernel;
mod loss;
mod memory;
mod multiply;
mod norm;
mod optim;
mod parallel;
mod peak;
mod plan;
mod pool;
mod rounding;
mod source;
mod view;
mod weight;

use std::convert::Infallible;
use std::marker::PhantomData;

use pulp::Arch;

use super::{
    Arranged, Arrangement, AugmentShape, Conv, Device, Epilogue, Filters, Geometry, LossShape, Mem, Norm,
    Normalise, PoolShape, Prepared, Rows, Source, Statistics, Tangent, Targets, Write,
};
use crate::Result;

pub use float::Float;
pub use memory::{Arena, Incoming};
pub use plan::Plan;
pub use rounding::Rounding;

use memory::Lend;
use parallel::Threads;

/// The CPU as a device; activations, parameters and sums are all `T`.
pub struct Cpu<T> {
    threads: Threads,
    /// The instruction set that the inner loops run on.
    arch: Arch,
    rounding: Rounding,
    element: PhantomData<T>,
}

impl Cpu<f32> {
    /// A device that rounds as a GPU's tensor cores do, in f32 arithmetic; errors as of [`Cpu::new`].
    pub fn rounded(threads: Option<usize>, rounding: Rounding) -> Result<Self> {
        Ok(Cpu {
            rounding,
            ..Cpu::new(threads)?
        })
    }
}

impl<T: Float> Cpu<T> {
    /// A device of `threads` threads, the caller's included; None: as many as the machine runs at once.
    /// Error::Config for 0, Error::Device when the threads cannot be started.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        let arch = Arch::new();
        Ok(Cpu {
            threads: Threads::new(threads, arch)?,
            arch,
            rounding: Rounding::None,
            element: PhantomData,
        })
    }

    /// Number of threads that work on one call.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }
}

/// The device's choice for a node.
#[derive(Clone, Copy, Debug)]
pub enum Algorithm {
    Conv(Plan, Rounding),
    /// A loop over rows.
    Rows,
}

impl<T: Float> Device for Cpu<T> {
    type Act = T;
    type Real = T;
    type Arena = Arena;
    type Algorithm = Algorithm;
    type Mark = std::time::Instant;
    /// Nothing is gained by one.
    type Recording = Infallible;
    type Outgoing = Vec<u8>;
    type Incoming = Incoming;

    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn free_bytes(&self) -> Option<usize> {
        available::available()
    }

    fn alloc(&self, bytes: usize) -> Result<Arena> {
        Arena::new(bytes)
    }

    fn upload(&self, dst: Mem<Self>, src: &[u8]) -> Result<()> {
        Lend::new("upload")
            .write::<u8>("dst", dst, src.len())?
            .copy_from_slice(src);
        Ok(())
    }

    fn download(&self, dst: &mut [u8], src: Mem<Self>) -> Result<()> {
        dst.copy_from_slice(Lend::new("download").read::<u8>("src", src, dst.len())?);
        Ok(())
    }

    fn copy(&self, dst: Mem<Self>, src: Mem<Self>) -> Result<()> {
        let mut lend = Lend::new("copy");
        let from = lend.read::<u8>("src", src, src.bytes)?;
        lend.write::<u8>("dst", dst, src.bytes)?.copy_from_slice(from);
        Ok(())
    }

    fn fill(&self, dst: Mem<Self>, value: u8) -> Result<()> {
        Lend::new("fill").write::<u8>("dst", dst, dst.bytes)?.fill(value);
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn record(&self, _: impl FnOnce() -> Result<()>) -> Result<Option<Infallible>> {
        Ok(None)
    }

    fn replay(&self, recording: &mut Infallible) -> Result<()> {
        match *recording {}
    }

    fn outgoing(&self, bytes: usize) -> Result<Vec<u8>> {
        Ok(vec![0; bytes])
    }

    fn send(
        &self,
        room: &mut Vec<u8>,
        pieces: &[Mem<Self>],
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        memory::send(room, pieces, fill)
    }

    fn incoming(&self, bytes: usize) -> Result<Incoming> {
        Ok(Incoming::new(bytes))
    }

    fn fetch(&self, room: &mut Incoming, pieces: &[Mem<Self>]) -> Result<()> {
        room.fetch(pieces)
    }

    fn fetched<'a>(&self, room: &'a mut Incoming) -> Result<&'a [u8]> {
        Ok(room.fetched())
    }

    fn prepare(&self, node: &Geometry) -> Result<Prepared<Algorithm>> {
        let (scratch, algorithm) = match node {
            Geometry::Conv(shape) | Geometry::Linear(shape) => {
                let plan = Plan::new::<T>(shape, kernel::Widths::of::<T>(self.arch), self.threads())?;
                let rounding = match node {
                    Geometry::Conv(_) => self.rounding,
                    _ => Rounding::None,
                };
                (plan.scratch_len(shape), Algorithm::Conv(plan, rounding))
            }
            Geometry::Join(_) | Geometry::Pool(_) => (0, Algorithm::Rows),
        };
        Ok(Prepared {
            scratch_bytes: scratch * size_of::<T>(),
            arranged: Arranged::default(),
            algorithm,
        })
    }

    fn partials_bytes(&self, shape: Rows) -> usize {
        epilogue::partials_len(shape) * size_of::<T>()
    }

    fn gradient_norm_scratch_bytes(&self, len: usize) -> usize {
        optim::norm_chunks(len) * size_of::<f64>()
    }

    /// Nothing: each call packs filters for the vectors of its instruction set.
    fn arrange_filters(&self, _filters: &[Arrangement<Self>]) -> Result<()> {
        Ok(())
    }

    fn conv_forward(
        &self,
        conv: Conv<Self>,
        y: Mem<Self>,
        w: Filters<Arena>,
        bias: Option<Mem<Self>>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        conv::forward(self, conv, y, w, bias, epilogue)
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
        conv::tangent(self, conv, ty, tx, w, tw, tbias, epilogue)
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
        conv::backward_input(self, conv, d, write, dy, w, epilogue)
    }

    fn conv_backward_weight(
        &self,
        conv: Conv<Self>,
        dw: Mem<Self>,
        dbias: Option<Mem<Self>>,
        write: Write,
        dy: Mem<Self>,
    ) -> Result<()> {
        weight::backward(self, conv, dw, dbias, write, dy)
    }

    fn conv_contract(
        &self,
        conv: Conv<Self>,
        out: Mem<Self>,
        dy: Mem<Self>,
        tw: Filters<Arena>,
        tbias: Option<Mem<Self>>,
    ) -> Result<()> {
        conv::contract(self, conv, out, dy, tw, tbias)
    }

    fn norm_forward(&self, norm: Norm<Arena>, statistics: Statistics) -> Result<()> {
        norm::forward::<T>(norm, statistics)
    }

    fn norm_tangent(
        &self,
        norm: Norm<Arena>,
        statistics: Statistics,
        tgamma: Mem<Self>,
        tbeta: Mem<Self>,
    ) -> Result<()> {
        norm::tangent::<T>(norm, statistics, tgamma, tbeta)
    }

    fn norm_backward(
        &self,
        norm: Norm<Arena>,
        statistics: Statistics,
        dgamma: Mem<Self>,
        dbeta: Mem<Self>,
        write: Write,
    ) -> Result<()> {
        norm::backward::<T>(norm, statistics, dgamma, dbeta, write)
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
        norm::contract(self, norm, samples, out, x, d, tgamma, tbeta)
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
        source::backward(self, shape, dx, write, d, x, slope, epilogue)
    }

    fn join_forward(
        &self,
        shape: Rows,
        y: Mem<Self>,
        a: Source<Arena>,
        b: Source<Arena>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        source::join_forward(self, shape, y, a, b, epilogue)
    }

    fn join_tangent(
        &self,
        shape: Rows,
        ty: Mem<Self>,
        a: (Source<Arena>, Tangent<Arena>),
        b: (Source<Arena>, Tangent<Arena>),
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        source::join_tangent(self, shape, ty, a, b, epilogue)
    }

    fn pool_forward(&self, shape: PoolShape, y: Mem<Self>, x: Source<Arena>) -> Result<()> {
        pool::forward(self, shape, y, x)
    }

    fn pool_tangent(
        &self,
        shape: PoolShape,
        ty: Mem<Self>,
        x: Source<Arena>,
        tx: Tangent<Arena>,
    ) -> Result<()> {
        pool::tangent(self, shape, ty, x, tx)
    }

    fn pool_backward(
        &self,
        shape: PoolShape,
        d: Mem<Self>,
        write: Write,
        dy: Mem<Self>,
        epilogue: Epilogue<Arena>,
    ) -> Result<()> {
        pool::backward(self, shape, d, write, dy, epilogue)
    }

    fn pseudo_labels(&self, shape: LossShape, labels: Mem<Self>, z: Mem<Self>) -> Result<()> {
        loss::pseudo_labels::<T>(shape, labels, z)
    }

    fn cross_entropy(
        &self,
        shape: LossShape,
        loss: Mem<Self>,
        z: Mem<Self>,
        targets: Targets<Arena>,
    ) -> Result<()> {
        loss::cross_entropy::<T>(shape, loss, z, targets)
    }

    fn cross_entropy_backward(
        &self,
        shape: LossShape,
        dz: Mem<Self>,
        z: Mem<Self>,
        first: (Targets<Arena>, Mem<Self>),
        second: Option<(Targets<Arena>, Mem<Self>)>,
    ) -> Result<()> {
        loss::backward::<T>(shape, dz, z, first, second)
    }

    fn tangent_dot(
        &self,
        shape: LossShape,
        raw: Mem<Self>,
        z: Mem<Self>,
        tz: Mem<Self>,
        targets: Targets<Arena>,
    ) -> Result<()> {
        loss::tangent_dot::<T>(shape, raw, z, tz, targets)
    }

    fn weights(
        &self,
        weights: Mem<Self>,
        raw: Mem<Self>,
        normalise: Normalise,
        step: Mem<Self>,
    ) -> Result<()> {
        loss::weights::<T>(weights, raw, normalise, step)
    }

    fn lookahead(&self, out: Mem<Self>, theta: Mem<Self>, buf: Mem<Self>, step: Mem<Self>) -> Result<()> {
        optim::lookahead(self, out, theta, buf, step)
    }

    fn gradient_norm(&self, norm: Mem<Self>, g: Mem<Self>, scratch: Mem<Self>) -> Result<()> {
        optim::gradient_norm(self, norm, g, scratch)
    }

    fn watch(&self, stopped: Mem<Self>, values: &[Mem<Self>], step: Mem<Self>) -> Result<()> {
        optim::watch::<T>(stopped, values, step)
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
        optim::sgd(self, theta, buf, g, norm, stopped, step)
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
        augment::augment(self, shape, out, images, ids, table, step)
    }

    fn mark(&self) -> Result<std::time::Instant> {
        Ok(std::time::Instant::now())
    }

    fn seconds(&self, from: &std::time::Instant, to: &std::time::Instant) -> Result<f64> {
        Ok(to.duration_since(*from).as_secs_f64())
    }

    fn peak_bytes(&self) -> usize {
        peak::bytes(self)
    }

    fn peak(&self, memory: Mem<Self>, rounds: usize) -> Result<f64> {
        peak::peak(self, memory, rounds)
    }

    fn peak_instruction(&self) -> &'static str {
        peak::instruction(self.arch)
    }
}
