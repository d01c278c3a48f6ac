//! Transfers that nobody waits for, through page-locked host memory.
//!
//! ```text
//! host       fill ─┐
//! transfers        └─ upload ─ sent ─┐                    second stream, beside the kernels
//! kernels   ─ step s − 1 ────────────┴─ copy ─ taken ─ step s ─ download ─ arrived
//! ```
//!
//! An upload waits for nothing but `taken` of its room's last use, a copy on the device for `sent`.

use std::sync::Arc;

use cudarc::driver::sys::{CU_MEMHOSTALLOC_WRITECOMBINED, CUdeviceptr, CUevent_flags};
use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result};

use super::Cuda;
use super::driver::device_error;
use super::graph::refuse_recording;
use super::memory::address;
use crate::device::Mem;
use crate::{Error, Result};

fn total(pieces: &[Mem<Cuda>], room: usize) -> Result<usize> {
    let bytes = pieces.iter().map(|piece| piece.bytes).sum();
    if bytes > room {
        return Err(Error::Internal(format!("{bytes} bytes through a room of {room}")));
    }
    Ok(bytes)
}

/// Page-locked and zeroed.
fn pinned(context: &Arc<CudaContext>, bytes: usize, flags: u32) -> Result<PinnedHostSlice<u8>> {
    // SAFETY: zeroed before anything reads it.
    let memory = unsafe { context.alloc_pinned_with_flags::<u8>(bytes.max(1), flags) };
    let mut memory = memory.map_err(|error| device_error("page-locked host memory", error))?;
    host(&mut memory)?.fill(0);
    Ok(memory)
}

fn host(memory: &mut PinnedHostSlice<u8>) -> Result<&mut [u8]> {
    memory
        .as_mut_slice()
        .map_err(|error| device_error("page-locked host memory", error))
}

fn event(context: &Arc<CudaContext>, flags: CUevent_flags) -> Result<CudaEvent> {
    context
        .new_event(Some(flags))
        .map_err(|error| device_error("event", error))
}

/// Host and device side of an upload.
#[derive(Debug)]
pub struct Outgoing {
    host: PinnedHostSlice<u8>,
    block: CudaSlice<u8>,
    transfers: Arc<CudaStream>,
    /// The upload is over.
    sent: CudaEvent,
    /// The pieces have their bytes.
    taken: CudaEvent,
}

impl Outgoing {
    /// `block` is the device's side.
    pub(super) fn new(transfers: Arc<CudaStream>, block: CudaSlice<u8>) -> Result<Self> {
        let context = transfers.context();
        let taken = event(context, CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // The block exists from here on in the order of its own stream.
        taken
            .record(block.stream())
            .map_err(|error| device_error("event", error))?;
        Ok(Outgoing {
            host: pinned(context, block.len(), CU_MEMHOSTALLOC_WRITECOMBINED)?,
            sent: event(context, CUevent_flags::CU_EVENT_DISABLE_TIMING)?,
            taken,
            block,
            transfers,
        })
    }

    pub(super) fn send(
        &mut self,
        kernels: &CudaStream,
        pieces: &[Mem<Cuda>],
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let fail = |error| device_error("upload", error);
        let bytes = total(pieces, self.host.len())?;
        refuse_recording(kernels, "an upload")?;
        self.sent.synchronize().map_err(fail)?;
        let host = &mut host(&mut self.host)?[..bytes];
        fill(host)?;
        let mut from = self.block.device_ptr(&self.transfers).0;
        self.transfers.wait(&self.taken).map_err(fail)?;
        // SAFETY: both sides hold `bytes` bytes; neither is freed (`drop`) or written (the wait for `sent` above, the one
        // for `taken`) before the copy is over.
        unsafe { result::memcpy_htod_async(from, host, self.transfers.cu_stream()) }.map_err(fail)?;
        self.sent.record(&self.transfers).map_err(fail)?;
        kernels.wait(&self.sent).map_err(fail)?;
        for &piece in pieces {
            // SAFETY: the piece is alive and no part of the block; the block holds all pieces.
            unsafe { result::memcpy_dtod_async(address(piece), from, piece.bytes, kernels.cu_stream()) }
                .map_err(fail)?;
            from += piece.bytes as CUdeviceptr;
        }
        self.taken.record(kernels).map_err(fail)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // The block goes back in the order of a stream that does not know of the copies out of it.
        for event in [&self.sent, &self.taken] {
            self.transfers.context().record_err(event.synchronize());
        }
    }
}

/// Host side of a download.
#[derive(Debug)]
pub struct Incoming {
    host: PinnedHostSlice<u8>,
    bytes: usize,
    arrived: CudaEvent,
}

impl Incoming {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        Ok(Incoming {
            host: pinned(context, bytes, 0)?,
            bytes: 0,
            // Who waits for results gives its core to the loader meanwhile.
            arrived: event(context, CUevent_flags::CU_EVENT_BLOCKING_SYNC)?,
        })
    }

    pub(super) fn fetch(&mut self, kernels: &CudaStream, pieces: &[Mem<Cuda>]) -> Result<()> {
        let fail = |error| device_error("download", error);
        self.bytes = total(pieces, self.host.len())?;
        refuse_recording(kernels, "a download")?;
        self.arrived.synchronize().map_err(fail)?;
        let mut rest = host(&mut self.host)?;
        for &piece in pieces {
            let (to, tail) = rest.split_at_mut(piece.bytes);
            // SAFETY: the piece is alive and as long; nobody looks at the host's side before `arrived`, and it is not freed
            // before (`drop`).
            unsafe { result::memcpy_dtoh_async(to, address(piece), kernels.cu_stream()) }.map_err(fail)?;
            rest = tail;
        }
        self.arrived.record(kernels).map_err(fail)
    }

    pub(super) fn fetched(&mut self) -> Result<&[u8]> {
        self.arrived
            .synchronize()
            .map_err(|error| device_error("download", error))?;
        Ok(&host(&mut self.host)?[..self.bytes])
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.arrived.context().record_err(self.arrived.synchronize());
    }
}
