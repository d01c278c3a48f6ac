//! Batches in a seeded order, put together by a thread of its own a few steps ahead.
//!
//! Which samples a step sees is a pure function of (seed, step): the train stream walks through a new order each epoch
//! and keeps the last, partial batch; the meta stream draws a fresh random subset each step ([`MetaDraw`]). A loader can
//! therefore start at any step, and resuming needs nothing but the step's number.

use super::meta_draw::MetaDraw;
use super::split::Subset;
use crate::random::{Purpose, shuffle};
use crate::{Error, Result};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

/// Samples of one step, as stored: not yet augmented.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// `[n,H,W,C]`, or nothing where nobody wants them
    pub images: Vec<u8>,
    /// `[n]`, in [0, classes)
    pub labels: Vec<i32>,
    /// `[n]`, sample ids: with the step, the names of each sample's augmentation draws
    pub ids: Vec<u32>,
}

impl Batch {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Replaces the content by samples of a subset, in the order given, with their images or without; memory is kept.
    ///
    /// # Errors
    /// `Data` naming the shard, `Io`.
    pub fn fill(&mut self, subset: &Subset, ids: &[u32], images: bool) -> Result<()> {
        let image: usize = subset.split().image_shape().iter().product();
        self.ids.clear();
        self.ids.extend_from_slice(ids);
        self.labels.clear();
        self.labels.extend(ids.iter().map(|&id| subset.label(id)));
        if !images {
            return Ok(());
        }
        self.images.resize(ids.len() * image, 0);
        subset.split().read_images(ids, &mut self.images)
    }
}

/// What one step needs. Augmentation is up to the caller: at time `step`, train images with
/// [`crate::random::TRAIN_VIEW`] and clean ones with [`crate::random::META_VIEW`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// From 0.
    pub epoch: u32,
    /// From 0, through all epochs.
    pub step: u32,
    pub train: Batch,
    /// `None` before [`LoaderConfig::meta_from`].
    pub meta: Option<Batch>,
}

/// Sizes and seed of a loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    pub seed: u64,
    /// Train images per step.
    pub batch: u32,
    /// Clean images per step, and how they are drawn.
    pub meta_batch: u32,
    pub meta_draw: MetaDraw,
    /// First epoch that gets clean images: the length of the warm-up, or `epochs` for methods that use none.
    pub meta_from: u32,
    pub epochs: u32,
    /// Whether train batches hold images: not where the device has them all, or nobody looks at them.
    pub train_images: bool,
    /// Whether clean batches do.
    pub meta_images: bool,
}

/// Order of the train samples in an epoch: their ids, shuffled. A pure function of (seed, epoch, ids).
pub fn epoch_order(seed: u64, epoch: u32, ids: &[u32]) -> Vec<u32> {
    let places = shuffle(seed, Purpose::Order, epoch, ids.len() as u32);
    places.into_iter().map(|place| ids[place as usize]).collect()
}

/// Steps ready ahead of the one in use: enough to hide a slow read, little memory.
const AHEAD: usize = 3;

/// An iterator of steps with a thread behind it. Dropping it ends the thread.
#[derive(Debug)]
pub struct Loader {
    steps_per_epoch: u32,
    /// `None` once the thread has ended.
    steps: Option<Receiver<Result<Step>>>,
    used: Sender<Step>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts at step `from` (0 for a new run).
    ///
    /// # Errors
    /// `Config` for a batch of no images or of more than there are, or more steps than can be counted.
    pub fn start(train: Subset, meta: Subset, config: LoaderConfig, from: u32) -> Result<Self> {
        check_batch("batch", config.batch, train.len(), "train images")?;
        if config.meta_from < config.epochs {
            check_batch("meta batch", config.meta_batch, meta.len(), "clean images")?;
        }
        let steps_per_epoch = train.len().div_ceil(config.batch);
        let Some(end) = steps_per_epoch.checked_mul(config.epochs) else {
            let found = format!("{} epochs of {steps_per_epoch}", config.epochs);
            return Err(Error::config("epochs", "fewer than 2^32 steps in all", found, ""));
        };
        let (send, steps) = sync_channel(AHEAD);
        let (used, recycled) = channel();
        let work = move || produce(&train, &meta, config, from..end, &send, &recycled);
        let thread = std::thread::Builder::new().name("l2b-loader".into()).spawn(work);
        let thread = thread.map_err(|e| Error::Internal(format!("no thread for the loader: {e}")))?;
        let (steps, thread) = (Some(steps), Some(thread));
        Ok(Loader {
            steps_per_epoch,
            steps,
            used,
            thread,
        })
    }

    /// Steps of one epoch, the partial one included.
    pub fn steps_per_epoch(&self) -> u32 {
        self.steps_per_epoch
    }

    /// The next step; `None` after the last. Hand used steps to [`Loader::recycle`].
    ///
    /// # Errors
    /// What the thread met: `Data` naming the shard, `Io`; after an error there are no more steps.
    pub fn next_step(&mut self) -> Result<Option<Step>> {
        let received = self.steps.as_ref().map(Receiver::recv);
        match received {
            Some(Ok(Ok(step))) => Ok(Some(step)),
            Some(Ok(Err(error))) => {
                self.stop()?;
                Err(error)
            }
            // The thread has dropped its end: it is done, or it has panicked.
            Some(Err(_)) => self.stop().map(|()| None),
            None => Ok(None),
        }
    }

    /// Gives the memory of a step back for one to come.
    pub fn recycle(&self, step: Step) {
        // After the last step nobody listens, and the memory is simply freed.
        let _ = self.used.send(step);
    }

    fn stop(&mut self) -> Result<()> {
        // Without a receiver the thread's next send fails, and it ends.
        self.steps = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => Err(Error::Internal("the loader's thread panicked".into())),
            _ => Ok(()),
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // A panic in the thread was already reported on its own.
        let _ = self.stop();
    }
}

fn produce(
    train: &Subset,
    meta: &Subset,
    config: LoaderConfig,
    steps: std::ops::Range<u32>,
    send: &SyncSender<Result<Step>>,
    recycled: &Receiver<Step>,
) {
    let per_epoch = train.len().div_ceil(config.batch);
    let (mut ordered, mut order) = (None, Vec::new());
    for step in steps {
        let (epoch, within) = (step / per_epoch, step % per_epoch);
        if ordered != Some(epoch) {
            order = epoch_order(config.seed, epoch, train.ids());
            ordered = Some(epoch);
        }
        let mut ready: Step = recycled.try_recv().unwrap_or_default();
        ready.epoch = epoch;
        ready.step = step;
        let start = within as usize * config.batch as usize;
        let end = order.len().min(start + config.batch as usize);
        let mut result = ready.train.fill(train, &order[start..end], config.train_images);
        if epoch < config.meta_from {
            ready.meta = None;
        } else if result.is_ok() {
            let ids = config.meta_draw.ids(config.seed, step, meta, config.meta_batch);
            let batch = ready.meta.get_or_insert_default();
            result = batch.fill(meta, &ids, config.meta_images);
        }
        let failed = result.is_err();
        if send.send(result.map(|()| ready)).is_err() || failed {
            return;
        }
    }
}

/// Batches of a whole subset in its own order, for evaluation, with their images or without.
///
/// # Errors
/// `Config` for a batch of no images; each item `Data` naming the shard, or `Io`.
pub fn in_order(
    subset: &Subset,
    batch: u32,
    images: bool,
) -> Result<impl Iterator<Item = Result<Batch>> + '_> {
    if batch == 0 {
        return Err(Error::config("batch", "at least 1", "0", ""));
    }
    Ok(subset.ids().chunks(batch as usize).map(move |ids| {
        let mut batch = Batch::default();
        batch.fill(subset, ids, images).map(|()| batch)
    }))
}

fn check_batch(what: &str, batch: u32, most: u32, of: &str) -> Result<()> {
    if (1..=most).contains(&batch) {
        return Ok(());
    }
    let expected = format!("1 to {most}, the number of {of}");
    Err(Error::config(
        what,
        expected,
        batch.to_string(),
        "choose a smaller batch or more images",
    ))
}
