//! Phases of a step, for whoever looks at it from outside: marks in the device's work for `l2b bench`, NVTX ranges for a
//! profiler. Where nobody looks, entering a phase costs two loads. A step replayed from its recording is one piece of work and
//! enters none: a profiler sees it as one range (`recordings.rs`).

use std::ffi::CStr;
use std::sync::Mutex;

use crate::device::Device;
use crate::{Result, nvtx};

/// Part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Look-ahead, meta images, forward pass and loss at θ̂.
    MetaForward,
    /// v = ∇f_val(θ̂).
    MetaBackward,
    /// Train images, forward pass, losses.
    TrainForward,
    /// Tangent of the train batch along v; with `--inner-product contraction` the backward passes in its place.
    Tangent,
    /// Inner products, and the weights from them.
    Weights,
    /// Gradient of the weighted loss.
    Backward,
    /// Clip and SGD.
    Optimizer,
}

impl Phase {
    /// Its name in files and profilers.
    pub fn name(self) -> &'static str {
        self.range().to_str().unwrap_or_default()
    }

    fn range(self) -> &'static CStr {
        match self {
            Phase::MetaForward => c"meta forward",
            Phase::MetaBackward => c"meta backward",
            Phase::TrainForward => c"train forward",
            Phase::Tangent => c"tangent",
            Phase::Weights => c"weights",
            Phase::Backward => c"backward",
            Phase::Optimizer => c"optimizer",
        }
    }
}

/// A phase, or the end of a step (None), and where in the device's work it began.
pub type Began<D> = (Option<Phase>, <D as Device>::Mark);

/// Where the phases of steps began, while they are being recorded.
pub(crate) struct Phases<D: Device>(Mutex<Option<Vec<Began<D>>>>);

impl<D: Device> Phases<D> {
    pub fn new() -> Self {
        Phases(Mutex::new(None))
    }

    /// A phase begins, and the one before it ends; None: the step ends.
    pub fn enter(&self, device: &D, phase: Option<Phase>) -> Result<()> {
        nvtx::range(phase.map(Phase::range));
        let mut recorded = self.0.lock().expect("no thread panicked at a phase");
        if let Some(list) = recorded.as_mut() {
            list.push((phase, device.mark()?));
        }
        Ok(())
    }

    /// Whether anyone wants to know.
    pub fn is_recording(&self) -> bool {
        self.0.lock().expect("no thread panicked at a phase").is_some()
    }

    /// Begins a recording; ends one and returns it.
    pub fn record(&self, on: bool) -> Vec<Began<D>> {
        let mut recorded = self.0.lock().expect("no thread panicked at a phase");
        std::mem::replace(&mut *recorded, on.then(Vec::new)).unwrap_or_default()
    }
}
