//! Work that an engine has recorded, found again by everything that it depends on.
//!
//! Nothing runs without having been recorded first, where the device records at all: the first step of a kind is recorded
//! and replayed like every later one. What changes between two replays lies in device memory. Only while someone marks the
//! phases of steps are they asked for call by call.

use std::ffi::CStr;

use crate::device::Device;
use crate::engine::{Engine, EngineOptions, Slot};
use crate::inputs::Fed;
use crate::step::Objective;
use crate::{Result, nvtx};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    Step(Objective),
    Logits,
}

impl Work {
    /// What a profiler calls a replay of it.
    fn range(self) -> &'static CStr {
        match self {
            Work::Step(Objective::CrossEntropy) => c"step: cross-entropy",
            Work::Step(Objective::Bootstrap) => c"step: bootstrap",
            Work::Step(Objective::Reweight) => c"step: reweight",
            Work::Step(Objective::L2b) => c"step: l2b",
            Work::Logits => c"logits",
        }
    }
}

/// What a recording holds beyond the addresses of the engine's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    work: Work,
    options: EngineOptions,
    train: Fed,
    /// None: the work reads no meta batch.
    meta: Option<Fed>,
}

/// A few recordings: warm-up and meta steps, whole and last batches.
pub(crate) struct Recordings<D: Device>(Vec<(Key, D::Recording)>);

impl<D: Device> Default for Recordings<D> {
    fn default() -> Self {
        Recordings(Vec::new())
    }
}

impl<D: Device> Engine<D> {
    /// Asks for the work on what the slots hold.
    pub(crate) fn run(&mut self, work: Work) -> Result<()> {
        let directly = |engine: &Self| match work {
            Work::Step(objective) => engine.step_directly(objective),
            Work::Logits => engine.logits_directly(),
        };
        if self.phases.is_recording() {
            return directly(self);
        }
        let reads_meta = matches!(work, Work::Step(objective) if objective.is_meta());
        let key = Key {
            work,
            options: self.options,
            train: self.inputs.fed(Slot::Train),
            meta: reads_meta.then(|| self.inputs.fed(Slot::Meta)),
        };
        let known = self.recordings.0.iter().position(|(known, _)| *known == key);
        let at = match known {
            Some(at) => at,
            None => {
                let Some(recording) = self.device.record(|| directly(self))? else {
                    return directly(self);
                };
                self.recordings.0.push((key, recording));
                self.recordings.0.len() - 1
            }
        };
        // Its phases have no ranges: they are one piece of work.
        nvtx::range(Some(work.range()));
        let replayed = self.device.replay(&mut self.recordings.0[at].1);
        nvtx::range(None);
        replayed
    }

    /// How many kinds of work have been recorded.
    pub fn recorded(&self) -> usize {
        self.recordings.0.len()
    }
}
