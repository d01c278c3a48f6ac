//! Recording a step once and replaying it: one driver call instead of one per kernel.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::{CudaGraph, CudaModule, CudaSlice, CudaStream, sys};

use super::driver::device_error;
use crate::{Error, Result};

/// Every block of device memory in use. A recording holds addresses, and so keeps all blocks alive that it could hold one of.
#[derive(Debug, Default)]
pub(super) struct Blocks(Mutex<Vec<Weak<CudaSlice<u8>>>>);

impl Blocks {
    pub fn add(&self, block: &Arc<CudaSlice<u8>>) {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.retain(|block| block.strong_count() > 0);
        blocks.push(Arc::downgrade(block));
    }

    fn all(&self) -> Vec<Arc<CudaSlice<u8>>> {
        let blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.iter().filter_map(Weak::upgrade).collect()
    }
}

/// Recorded operations, their kernels and the memory that they work on.
pub struct Recording {
    graph: CudaGraph,
    // Both dropped after the graph.
    _module: Arc<CudaModule>,
    _blocks: Vec<Arc<CudaSlice<u8>>>,
}

// SAFETY: the driver lets any thread use a graph, one at a time; `replay` takes `&mut self`.
unsafe impl Send for Recording {}

impl Recording {
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        module: &Arc<CudaModule>,
        blocks: &Blocks,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let blocks = blocks.all();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream
            .begin_capture(mode)
            .map_err(|error| device_error("graph capture", error))?;
        let outcome = work();
        // Ended in any case: a stream that captures can do nothing else.
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        outcome?;
        let empty = || Error::Internal("a recording without operations".into());
        Ok(Recording {
            graph: graph
                .map_err(|error| device_error("graph capture", error))?
                .ok_or_else(empty)?,
            _module: module.clone(),
            _blocks: blocks,
        })
    }

    pub(super) fn replay(&mut self) -> Result<()> {
        self.graph
            .launch()
            .map_err(|error| device_error("graph launch", error))
    }
}

/// Fails while the stream is being recorded: every replay would touch the host's memory again.
pub(super) fn refuse_recording(stream: &CudaStream, what: &str) -> Result<()> {
    let status = stream
        .capture_status()
        .map_err(|error| device_error(what, error))?;
    if status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return Ok(());
    }
    Err(Error::Internal(format!(
        "{what} cannot be recorded: every replay would touch the host's memory again"
    )))
}
