//! Device memory and what kernels receive of it: operands become addresses here, after their lengths were checked.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, DevicePtr, DeviceRepr, sys::CUdeviceptr};

use super::Cuda;
use super::format::Storage;
use crate::device::{Epilogue, Mem, Rows, Source, Span, Sums, Tangent, Targets, Write};
use crate::{Error, Result};

/// A block of device memory; freed in stream order, so after all work asked for so far, when it is dropped and no recording
/// holds it.
#[derive(Debug)]
pub struct Arena {
    /// Keeps the memory alive; its address is `base`.
    _memory: Arc<CudaSlice<u8>>,
    base: CUdeviceptr,
}

impl Arena {
    pub(super) fn new(memory: Arc<CudaSlice<u8>>) -> Self {
        let stream = memory.stream().clone();
        let base = memory.device_ptr(&stream).0;
        Arena {
            _memory: memory,
            base,
        }
    }
}

/// First byte of an operand.
pub(super) fn address(span: Span<Arena>) -> CUdeviceptr {
    span.arena.base + span.offset as CUdeviceptr
}

/// Address of an operand that a kernel reads; 0 for one that is left out.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct In(pub CUdeviceptr);

/// Address of an operand that a kernel writes. Neither `Clone` nor made twice: one per launch.
#[repr(transparent)]
pub(super) struct Out(pub CUdeviceptr);

/// Twin of Source in kernels/source.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct KernelSource {
    pub x: In,
    affine: In,
    relu: i32,
    reserved: i32,
}

/// Twin of Tangent in kernels/source.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct KernelTangent {
    pub tx: In,
    slope: In,
}

/// Twin of Sums in kernels/epilogue.cuh.
#[repr(C)]
pub(super) struct KernelSums {
    partials: Out,
    x: In,
    statistics: In,
    kind: i32,
    reserved: i32,
}

/// Twin of Epilogue in kernels/epilogue.cuh.
#[repr(C)]
pub(super) struct KernelEpilogue {
    mask: KernelSource,
    sums: KernelSums,
    addend: In,
    wide: i32,
    reserved: i32,
}

/// Twin of Targets in kernels/loss.cu.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct KernelTargets {
    hard: In,
    soft: In,
}

// SAFETY: plain old data without padding, laid out as their twins in the kernels.
unsafe impl DeviceRepr for In {}
unsafe impl DeviceRepr for Out {}
unsafe impl DeviceRepr for KernelSource {}
unsafe impl DeviceRepr for KernelTangent {}
unsafe impl DeviceRepr for KernelSums {}
unsafe impl DeviceRepr for KernelEpilogue {}
unsafe impl DeviceRepr for KernelTargets {}

/// No operand.
pub(super) const NONE: In = In(0);

/// No mask.
const NO_MASK: KernelSource = KernelSource {
    x: NONE,
    affine: NONE,
    relu: 0,
    reserved: 0,
};

/// Fails unless the operand holds `len` elements of `size` bytes, aligned to them.
fn check(name: &str, mem: &Mem<Cuda>, len: usize, size: usize) -> Result<()> {
    if mem.bytes != len * size || !mem.offset.is_multiple_of(size) {
        let found = format!("{} bytes at {}", mem.bytes, mem.offset);
        return Err(Error::Internal(format!(
            "operand {name}: expected {len} elements of {size} bytes, found {found}"
        )));
    }
    Ok(())
}

/// An operand that is read: `len` elements of T.
pub(super) fn input<T>(name: &str, mem: Mem<Cuda>, len: usize) -> Result<In> {
    check(name, &mem, len, size_of::<T>())?;
    Ok(In(address(mem)))
}

/// As [`input`], for one that may be left out.
pub(super) fn optional<T>(name: &str, mem: Option<Mem<Cuda>>, len: usize) -> Result<In> {
    mem.map_or(Ok(NONE), |mem| input::<T>(name, mem, len))
}

/// An operand that is written: `len` elements of T.
pub(super) fn output<T>(name: &str, mem: Mem<Cuda>, len: usize) -> Result<Out> {
    check(name, &mem, len, size_of::<T>())?;
    Ok(Out(address(mem)))
}

/// As [`input`], for `len` numbers in a storage format.
pub(super) fn stored(storage: Storage, name: &str, mem: Mem<Cuda>, len: usize) -> Result<In> {
    check(name, &mem, len, storage.bytes())?;
    Ok(In(address(mem)))
}

/// As [`output`], for `len` numbers in a storage format.
pub(super) fn stored_output(storage: Storage, name: &str, mem: Mem<Cuda>, len: usize) -> Result<Out> {
    check(name, &mem, len, storage.bytes())?;
    Ok(Out(address(mem)))
}

/// The first `len` elements of T of an operand that may be longer.
pub(super) fn scratch<T>(name: &str, mem: Mem<Cuda>, len: usize) -> Result<Out> {
    if mem.bytes < len * size_of::<T>() {
        let need = len * size_of::<T>();
        return Err(Error::Internal(format!(
            "{name}: expected {need} bytes, found {}",
            mem.bytes
        )));
    }
    output::<T>(name, mem.slice(0, len * size_of::<T>()), len)
}

impl Out {
    /// The same operand for the kernel that reads what the one before has written.
    pub fn read(&self) -> In {
        In(self.0)
    }

    /// The same operand for a second kernel that writes it, after the first.
    pub fn again(&self) -> Out {
        Out(self.0)
    }
}

impl KernelSource {
    /// A tensor on which nothing is pending.
    pub fn plain(x: In) -> Self {
        KernelSource { x, ..NO_MASK }
    }
}

impl KernelTangent {
    /// Of a source whose values alone are wanted.
    pub const NONE: Self = KernelTangent {
        tx: NONE,
        slope: NONE,
    };

    pub fn is_zero(&self) -> bool {
        self.tx.0 == 0 && self.slope.0 == 0
    }
}

/// A source over a tensor of this shape.
pub(super) fn source(
    storage: Storage,
    name: &str,
    source: Source<Arena>,
    shape: Rows,
) -> Result<KernelSource> {
    Ok(KernelSource {
        x: stored(storage, name, source.x, shape.len())?,
        affine: optional::<f32>("affine", source.affine, 3 * shape.channels as usize)?,
        relu: source.relu.into(),
        reserved: 0,
    })
}

/// The tangent of a source over a tensor of this shape.
pub(super) fn tangent(storage: Storage, tangent: Tangent<Arena>, shape: Rows) -> Result<KernelTangent> {
    Ok(KernelTangent {
        tx: tangent
            .tx
            .map_or(Ok(NONE), |tx| stored(storage, "tx", tx, shape.len()))?,
        slope: optional::<f32>("slope", tangent.slope, 2 * shape.channels as usize)?,
    })
}

/// Sums over a tensor of this shape; `partials_len` is theirs.
pub(super) fn sums(
    storage: Storage,
    sums: Sums<Arena>,
    shape: Rows,
    partials_len: usize,
) -> Result<KernelSums> {
    // The numbers of enum SumsKind in epilogue.cuh.
    let (kind, partials, x, statistics) = match sums {
        Sums::None => (0, Out(0), NONE, NONE),
        Sums::Moments { partials } => {
            let partials = output::<f32>("partials", partials, partials_len)?;
            (1, partials, NONE, NONE)
        }
        Sums::Dot {
            x,
            statistics,
            partials,
        } => (
            2,
            output::<f32>("partials", partials, partials_len)?,
            stored(storage, "x", x, shape.len())?,
            input::<f32>("statistics", statistics, 2 * shape.channels as usize)?,
        ),
    };
    Ok(KernelSums {
        partials,
        x,
        statistics,
        kind,
        reserved: 0,
    })
}

impl KernelSums {
    /// The sum of the values alone.
    pub fn total(partials: Out) -> Self {
        KernelSums {
            partials,
            x: NONE,
            statistics: NONE,
            kind: 2,
            reserved: 0,
        }
    }
}

/// The end of an output `out` of this shape.
pub(super) fn epilogue(
    storage: Storage,
    epilogue: &Epilogue<Arena>,
    shape: Rows,
    out: &Out,
    write: Write,
) -> Result<KernelEpilogue> {
    let mask = epilogue
        .mask
        .map_or(Ok(NO_MASK), |mask| source(storage, "mask", mask, shape))?;
    let sums = sums(storage, epilogue.sums, shape, super::norm::partials_len(shape))?;
    let addend = match (write, epilogue.addend) {
        (Write::Set, None) => NONE,
        (Write::Set, Some(addend)) => stored(storage, "addend", addend, shape.len())?,
        (Write::Add, None) => out.read(),
        (Write::Add, Some(_)) => {
            return Err(Error::Internal("a residual beside Write::Add".into()));
        }
    };
    // The kernels read one of them.
    if mask.x.0 != 0 && sums.x.0 != 0 && mask.x.0 != sums.x.0 {
        return Err(Error::Internal("mask and sums of two tensors".into()));
    }
    let wide = wide(storage, shape.channels, &[out, &mask, &sums, &addend]);
    Ok(KernelEpilogue {
        mask,
        sums,
        addend,
        wide: wide.into(),
        reserved: 0,
    })
}

impl KernelEpilogue {
    pub fn wide(&self) -> bool {
        self.wide != 0
    }
}

/// Whether operands with this many channels allow 16-byte accesses.
pub(super) fn wide(storage: Storage, channels: i32, operands: &[&dyn Aligned]) -> bool {
    (channels as usize).is_multiple_of(storage.wide()) && operands.iter().all(|operand| operand.aligned())
}

/// Targets of `entries` entries.
pub(super) fn targets(targets: Targets<Arena>, entries: usize, classes: usize) -> Result<KernelTargets> {
    Ok(match targets {
        Targets::Hard(labels) => KernelTargets {
            hard: input::<i32>("labels", labels, entries)?,
            soft: NONE,
        },
        Targets::Soft(targets) => KernelTargets {
            hard: NONE,
            soft: input::<f32>("targets", targets, entries * classes)?,
        },
    })
}

/// Whether an address allows 16-byte accesses.
pub(super) trait Aligned {
    fn aligned(&self) -> bool;
}

impl Aligned for In {
    fn aligned(&self) -> bool {
        self.0.is_multiple_of(16)
    }
}

impl Aligned for Out {
    fn aligned(&self) -> bool {
        self.0.is_multiple_of(16)
    }
}

impl Aligned for KernelSource {
    fn aligned(&self) -> bool {
        self.x.aligned() && self.affine.aligned()
    }
}

impl Aligned for KernelTangent {
    fn aligned(&self) -> bool {
        self.tx.aligned() && self.slope.aligned()
    }
}

impl Aligned for KernelSums {
    fn aligned(&self) -> bool {
        self.x.aligned() && self.statistics.aligned()
    }
}
