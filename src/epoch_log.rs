//! What an epoch showed: sums over its steps, one record at its end, and the weights of every sample.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::data::loader::Batch;
use crate::engine::Outcome;
use crate::evaluate::Scores;
use crate::step::Objective;
use crate::task::Task;
use crate::tensor_file::{Stored, TensorFile};
use crate::train::State;

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Epochs and steps done.
    pub epoch: u32,
    pub step: u32,
    pub lr: f64,
    /// What the steps minimised, [`Objective::name`]: `cross_entropy` also in the warm-up of another method.
    pub objective: String,
    /// Mean cross-entropy of the train samples against the labels trained on, in batch statistics, before each step.
    pub train_loss: f64,
    /// Mean over the steps of what was minimised.
    pub objective_loss: f64,
    /// Mean over the steps of the clean images' loss, where there was a meta pass.
    pub meta_loss: Option<f64>,
    /// Fraction of train predictions that equal the label trained on.
    pub train_accuracy: f64,
    /// The same against the clean label, where it is known.
    pub train_clean_accuracy: Option<f64>,
    pub test_loss: f64,
    pub test_accuracy: f64,
    pub best_accuracy: f64,
    /// Mean weights of the given label (alpha) and the pseudo-label (beta), of samples whose given label is right
    /// (clean) or wrong (corrupted); null without a meta pass or where the clean label is not known.
    pub alpha_clean: Option<f64>,
    pub beta_clean: Option<f64>,
    pub alpha_corrupted: Option<f64>,
    pub beta_corrupted: Option<f64>,
    /// Mean over the steps, before clipping.
    pub gradient_norm: f64,
    /// Train images per second, evaluation not counted.
    pub images_per_second: f64,
    /// Of the epoch, evaluation included.
    pub seconds: f64,
}

/// Sum and count.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1.0;
    }

    fn get(self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    fn or_zero(self) -> f64 {
        self.get().unwrap_or(0.0)
    }
}

/// Sums over the steps of an epoch.
#[derive(Debug)]
pub struct EpochLog {
    objective: Objective,
    train_loss: Mean,
    objective_loss: Mean,
    meta_loss: Mean,
    train_accuracy: Mean,
    train_clean_accuracy: Mean,
    gradient_norm: Mean,
    /// [clean, corrupted]
    alpha: [Mean; 2],
    beta: [Mean; 2],
}

impl EpochLog {
    /// Nothing seen yet.
    pub fn new(objective: Objective) -> Self {
        let zero = Mean::default();
        EpochLog {
            objective,
            train_loss: zero,
            objective_loss: zero,
            meta_loss: zero,
            train_accuracy: zero,
            train_clean_accuracy: zero,
            gradient_norm: zero,
            alpha: [zero; 2],
            beta: [zero; 2],
        }
    }

    /// Adds a step on `batch`.
    pub fn add(&mut self, task: &Task, batch: &Batch, outcome: &Outcome, weights: &mut SampleWeights) {
        let share = |right: bool| f64::from(u8::from(right));
        for (i, (&id, &given)) in batch.ids.iter().zip(&batch.labels).enumerate() {
            let pseudo = outcome.pseudo_labels[i];
            let (alpha, beta) = (outcome.alpha[i], outcome.beta[i]);
            self.train_loss.add(outcome.loss_real[i]);
            self.train_accuracy.add(share(pseudo == given));
            // The id of a clean image may be a number in another split.
            let clean = if task.trains_on_clean {
                Some(given)
            } else {
                task.clean_label(id)
            };
            if let Some(clean) = clean {
                self.train_clean_accuracy.add(share(pseudo == clean));
                if self.objective.is_meta() {
                    let corrupted = usize::from(given != clean);
                    self.alpha[corrupted].add(alpha);
                    self.beta[corrupted].add(beta);
                }
            }
            if !task.trains_on_clean {
                weights.set(id, pseudo, alpha, beta);
            }
        }
        self.objective_loss.add(outcome.loss());
        if self.objective.is_meta() {
            self.meta_loss.add(outcome.mean_val_loss());
        }
        self.gradient_norm.add(outcome.gradient_norm);
    }

    /// Train samples seen.
    pub fn images(&self) -> u64 {
        self.train_loss.count as u64
    }

    /// The record of the epoch that `state` has just counted.
    pub fn finish(
        &self,
        state: &State,
        lr: f64,
        scores: &Scores,
        train_seconds: f64,
        seconds: f64,
    ) -> EpochRecord {
        EpochRecord {
            epoch: state.epoch,
            step: state.step,
            lr,
            objective: self.objective.name().to_owned(),
            train_loss: self.train_loss.or_zero(),
            objective_loss: self.objective_loss.or_zero(),
            meta_loss: self.meta_loss.get(),
            train_accuracy: self.train_accuracy.or_zero(),
            train_clean_accuracy: self.train_clean_accuracy.get(),
            test_loss: scores.loss,
            test_accuracy: scores.accuracy,
            best_accuracy: state.best_accuracy,
            alpha_clean: self.alpha[0].get(),
            beta_clean: self.beta[0].get(),
            alpha_corrupted: self.alpha[1].get(),
            beta_corrupted: self.beta[1].get(),
            gradient_norm: self.gradient_norm.or_zero(),
            images_per_second: self.train_loss.count / train_seconds,
            seconds,
        }
    }
}

/// What became of every train sample when it was last seen, by sample id.
#[derive(Clone, Debug, Default)]
pub struct SampleWeights {
    rows: BTreeMap<u32, Row>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    given: i32,
    /// −1 where it is not known.
    clean: i32,
    /// −1 before the sample is first seen.
    pseudo: i32,
    alpha: f64,
    beta: f64,
}

impl SampleWeights {
    /// A row for every train sample.
    pub fn new(task: &Task) -> Self {
        let row = |&id: &u32| {
            let clean = task.clean_label(id).unwrap_or(-1);
            (
                id,
                Row {
                    given: task.train.label(id),
                    clean,
                    pseudo: -1,
                    alpha: 0.0,
                    beta: 0.0,
                },
            )
        };
        SampleWeights {
            rows: task.train.ids().iter().map(row).collect(),
        }
    }

    fn set(&mut self, id: u32, pseudo: i32, alpha: f64, beta: f64) {
        if let Some(row) = self.rows.get_mut(&id) {
            *row = Row {
                pseudo,
                alpha,
                beta,
                ..*row
            };
        }
    }

    /// The file: `id`, `label`, `clean_label` (−1: not known), `pseudo_label` (−1: never seen) i64 `[N]`; `alpha`, `beta`
    /// F64 `[N]`.
    pub fn encode(&self) -> TensorFile {
        let n = self.rows.len();
        let mut file = TensorFile::default();
        let mut put = |name: &str, stored| file.tensors.insert(name.to_owned(), stored);
        let integers =
            |get: fn(&Row) -> i32| Stored::integers(&[n], self.rows.values().map(|r| i64::from(get(r))));
        let floats = |get: fn(&Row) -> f64| {
            Stored::floats::<f64>(&[n], &self.rows.values().map(get).collect::<Vec<_>>())
        };
        put(
            "id",
            Stored::integers(&[n], self.rows.keys().map(|&id| i64::from(id))),
        );
        put("label", integers(|r| r.given));
        put("clean_label", integers(|r| r.clean));
        put("pseudo_label", integers(|r| r.pseudo));
        put("alpha", floats(|r| r.alpha));
        put("beta", floats(|r| r.beta));
        file
    }
}
