//! Marks in the stream, timed by the GPU.

use cudarc::driver::{CudaEvent, sys::CUevent_flags};

use super::driver::device_error;
use super::launcher::Launcher;
use crate::Result;

/// An event recorded in the stream.
#[derive(Debug)]
pub struct Mark(CudaEvent);

pub(super) fn mark(cuda: &Launcher) -> Result<Mark> {
    // The default of cudarc's events is not to take the time.
    cuda.stream
        .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
        .map(Mark)
        .map_err(|error| device_error("mark", error))
}

/// Resolution: about half a microsecond.
pub(super) fn seconds(from: &Mark, to: &Mark) -> Result<f64> {
    // cudarc's elapsed_ms waits for both events.
    let milliseconds = from
        .0
        .elapsed_ms(&to.0)
        .map_err(|error| device_error("time between marks", error))?;
    Ok(f64::from(milliseconds) / 1e3)
}
