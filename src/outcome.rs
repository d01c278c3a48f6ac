//! Results of steps: read at once ([`Engine::outcome`]), or steps later, while the device goes on ([`Engine::submit`],
//! [`Engine::collect`]).
//!
//! A step in which a result is not finite changes neither parameters nor momentum, and neither does any step after it
//! ([`crate::device::Device::watch`]): however late the host looks, they are those of the last good step.

use bytemuck::Pod;

use crate::device::{Device, Element, Mem, Region, StepParams};
use crate::engine::{Engine, Samples, Slot, constants};
use crate::recordings::Work;
use crate::step::Objective;
use crate::{Error, Result};

/// What one step computed, on the host. Losses, raw weights and weights per entry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub pseudo_labels: Vec<i32>,
    pub loss_real: Vec<f64>,
    pub loss_pseudo: Vec<f64>,
    /// ηλ⟨v, ∇f_i⟩ and ηλ⟨v, ∇g_i⟩; empty where the objective has no meta pass.
    pub alpha_raw: Vec<f64>,
    pub beta_raw: Vec<f64>,
    /// Weights of the given and the pseudo-label.
    pub alpha: Vec<f64>,
    pub beta: Vec<f64>,
    /// Losses of the meta batch; empty likewise.
    pub val_loss: Vec<f64>,
    /// Of the weighted loss, before clipping.
    pub gradient_norm: f64,
}

impl Outcome {
    /// Σ α_i f_i + β_i g_i.
    pub fn loss(&self) -> f64 {
        let dot = |w: &[f64], l: &[f64]| w.iter().zip(l).map(|(w, l)| w * l).sum::<f64>();
        dot(&self.alpha, &self.loss_real) + dot(&self.beta, &self.loss_pseudo)
    }

    /// What must be finite and is not: the values that [`Device::watch`] is given.
    pub fn not_finite(&self) -> Option<(&'static str, f64)> {
        let raw = not_finite(&self.alpha_raw).or(not_finite(&self.beta_raw));
        [
            ("meta loss", not_finite(&self.val_loss)),
            ("train loss", not_finite(&self.loss_real)),
            ("raw weight", raw),
            ("gradient norm", not_finite(&[self.gradient_norm])),
        ]
        .into_iter()
        .find_map(|(what, value)| Some((what, value?)))
    }

    /// Mean loss of the meta batch.
    pub fn mean_val_loss(&self) -> f64 {
        self.val_loss.iter().sum::<f64>() / self.val_loss.len() as f64
    }
}

/// Room for what one step brings to the device and back. As many steps are under way at once as there are lanes.
pub struct Lane<D: Device> {
    outgoing: D::Outgoing,
    incoming: D::Incoming,
    /// Objective and batch size of the step in it.
    step: Option<(Objective, usize)>,
}

/// Bytes that come back from a step: of the largest batch, and of a meta batch of that size.
fn incoming_bytes<D: Device>(engine: &Engine<D>) -> usize {
    let largest = engine.batches.values().next_back();
    largest.map_or(0, |b| b.entries.results.bytes + b.entries.loss_meta.bytes)
}

impl<D: Device> Engine<D> {
    /// A lane for steps whose images, where they are not kept on the device, take at most `images` bytes.
    pub fn lane(&mut self, images: usize) -> Result<Lane<D>> {
        let bytes = self.inputs.layout().room(images);
        let lane = Lane {
            outgoing: self.device.outgoing(bytes)?,
            incoming: self.device.incoming(incoming_bytes(self))?,
            step: None,
        };
        self.bytes += bytes;
        Ok(lane)
    }

    /// Asks for a step and for its results, and waits for neither; what the lane held before has been collected.
    pub fn submit(
        &mut self,
        lane: &mut Lane<D>,
        objective: Objective,
        params: &StepParams,
        train: Samples,
        meta: Option<Samples>,
    ) -> Result<()> {
        let mut batches = vec![(Slot::Train, train)];
        batches.extend(meta.map(|meta| (Slot::Meta, meta)));
        for (_, (_, labels)) in &batches {
            self.require_planned(labels.len())?;
        }
        self.inputs
            .send(&self.device, &mut lane.outgoing, params, &batches)?;
        self.run(Work::Step(objective))?;
        self.device.fetch(&mut lane.incoming, &self.results(objective))?;
        lane.step = Some((objective, train.1.len()));
        Ok(())
    }

    /// The results of the step in a lane, once they are there.
    pub fn collect(&self, lane: &mut Lane<D>) -> Result<Outcome> {
        let (objective, n) = lane
            .step
            .take()
            .ok_or_else(|| Error::Internal("a lane without a step".into()))?;
        let bytes = self.device.fetched(&mut lane.incoming)?;
        Ok(self.decode(objective, n, bytes))
    }

    /// What the last step computed.
    pub fn outcome(&self, objective: Objective) -> Result<Outcome> {
        let pieces = self.results(objective);
        let mut bytes = vec![0; pieces.iter().map(|piece| piece.bytes).sum()];
        let mut rest = &mut bytes[..];
        for piece in pieces {
            let (head, tail) = rest.split_at_mut(piece.bytes);
            self.device.download(head, piece)?;
            rest = tail;
        }
        Ok(self.decode(objective, self.fed(Slot::Train), &bytes))
    }

    /// Where the results are: those of the train batch, then the losses of the meta batch.
    fn results(&self, objective: Objective) -> Vec<Mem<'_, D>> {
        let mut pieces = vec![self.entry(Slot::Train, |e| e.results)];
        if objective.is_meta() {
            pieces.push(self.entry(Slot::Meta, |e| e.loss_meta));
        }
        pieces
    }

    /// The results of a train batch of `n`, as [`Engine::results`] lays them.
    fn decode(&self, objective: Objective, n: usize, bytes: &[u8]) -> Outcome {
        let entries = &self.batches[&n].entries;
        let at = |region: Region| &bytes[region.offset..region.end()];
        let reals = |bytes: &[u8]| {
            values::<D::Real>(bytes)
                .map(Element::to_f64)
                .collect::<Vec<f64>>()
        };
        let constant = |value: f64| vec![D::Real::from_f64(value).to_f64(); n];
        let mut outcome = Outcome {
            pseudo_labels: values::<i32>(at(entries.pseudo)).collect(),
            loss_real: reals(at(entries.loss_real)),
            loss_pseudo: reals(at(entries.loss_pseudo)),
            gradient_norm: reals(at(entries.gradient_norm))[0],
            ..Outcome::default()
        };
        let [uniform, bootstrap_real, bootstrap_pseudo] = constants(&self.options, n);
        let (weights, raw) = (reals(at(entries.weights)), reals(at(entries.raw)));
        (outcome.alpha, outcome.beta) = match objective {
            Objective::CrossEntropy => (constant(uniform), constant(0.0)),
            Objective::Bootstrap => (constant(bootstrap_real), constant(bootstrap_pseudo)),
            Objective::Reweight => (weights[..n].to_vec(), constant(0.0)),
            Objective::L2b => (weights[..n].to_vec(), weights[n..].to_vec()),
        };
        if objective.is_meta() {
            outcome.alpha_raw = raw[..n].to_vec();
            outcome.beta_raw = match objective {
                Objective::L2b => raw[n..].to_vec(),
                _ => constant(0.0),
            };
            outcome.val_loss = reals(&bytes[entries.results.bytes..]);
        }
        outcome
    }

    /// Error::Diverged where anything in the outcome is not finite, naming the first parameter whose gradient is not.
    pub fn check(&self, step: u64, outcome: &Outcome) -> Result<()> {
        let Some((what, value)) = outcome.not_finite() else {
            return Ok(());
        };
        let gradients = self.model.read_flat(&self.device, &self.gradient)?;
        let layer = self
            .model
            .program
            .params
            .iter()
            .find(|p| not_finite(&gradients[&p.name].values).is_some());
        Err(Error::Diverged {
            step,
            what: match layer {
                Some(param) => format!("{what} (first gradient that is not finite: {})", param.name),
                None => what.to_owned(),
            },
            value,
            hint: "lower --lr, set --clip, or lengthen --warm-up".into(),
        })
    }
}

fn not_finite(values: &[f64]) -> Option<f64> {
    values.iter().copied().find(|v| !v.is_finite())
}

fn values<T: Pod>(bytes: &[u8]) -> impl Iterator<Item = T> + '_ {
    bytes
        .chunks_exact(size_of::<T>())
        .map(bytemuck::pod_read_unaligned)
}
