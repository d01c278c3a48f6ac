//! Recording a step once and replaying it: one driver call instead of one per kernel.

use cudarc::driver::{CudaGraph, sys};

use super::driver::device_error;
use super::{Activation, Cuda};
use crate::{Error, Result};

/// Recorded operations. It holds the addresses of their operands and keeps none of them alive: the arenas must outlive it.
pub struct Graph(CudaGraph);

// SAFETY: the driver lets any thread use a graph, one at a time; `launch` takes `&mut self`.
unsafe impl Send for Graph {}

impl Graph {
    /// Asks for all recorded operations once more, in their order, on the device's stream. What they read from memory
    /// (step parameters, inputs) is read anew.
    pub fn launch(&mut self) -> Result<()> {
        self.0
            .launch()
            .map_err(|error| device_error("graph launch", error))
    }
}

impl<A: Activation> Cuda<A> {
    /// Records the operations that `step` asks for, without running them. `step` must not allocate, upload,
    /// download or wait.
    /// No other thread may use the device meanwhile: its operations would be recorded too.
    ///
    /// # Safety
    /// - Every arena that the recorded operations use outlives the last [`Graph::launch`].
    pub unsafe fn capture(&self, step: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.gpu
            .stream
            .begin_capture(mode)
            .map_err(|error| device_error("graph capture", error))?;
        let outcome = step();
        // Ended in any case: a stream that captures can do nothing else.
        let graph = self.gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        outcome?;
        let empty = || Error::Internal("a capture without operations".into());
        Ok(Graph(
            graph
                .map_err(|error| device_error("graph capture", error))?
                .ok_or_else(empty)?,
        ))
    }
}
