//! Device memory of a run, estimated before it starts: what it needs, whether the images fit beside it, and if it does not
//! fit at all the largest batch that does.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Method, RunConfig};
use crate::data::dataset::Split;
use crate::data::split::Subset;
use crate::device::Device;
use crate::engine::{Engine, KeptSet, lane_bytes, required_bytes};
use crate::evaluate::batch_sizes;
use crate::net::{Program, Reuse};
use crate::task::Task;
use crate::train::{LANES, architecture};
use crate::{Error, Result};

/// All batch sizes that a run needs.
pub(crate) fn sizes(config: &RunConfig, task: &Task) -> Vec<usize> {
    let mut sizes = BTreeSet::new();
    if config.method != Method::Clean {
        sizes.extend(batch_sizes(task.train.len(), config.batch));
    }
    if config.method.needs_clean() {
        sizes.extend(config.meta_batch.map(|m| m as usize));
    }
    sizes.extend(batch_sizes(task.test.len(), config.eval_batch));
    sizes.into_iter().collect()
}

/// Device memory of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// That it will hold.
    pub bytes: usize,
    /// Whether all images are among them.
    pub keep: bool,
}

/// Device memory that the run will hold. Images are kept on the device where they take no more than half of what the rest
/// leaves free.
///
/// # Errors
/// `Device`, naming need, free memory and the largest batch that fits, where it is more than there is; `Config` for a
/// batch that no device can index.
pub fn memory<D: Device>(device: &D, config: &RunConfig, task: &Task) -> Result<Memory> {
    memory_within(device, config, task, device.free_bytes())
}

fn memory_within<D: Device>(
    device: &D,
    config: &RunConfig,
    task: &Task,
    free: Option<usize>,
) -> Result<Memory> {
    let program = architecture(config, task).program()?;
    let need = |config: &RunConfig, keep| needed(device, &program, config, task, keep);
    if let Some(free) = free {
        let kept = need(config, true)?;
        let images = distinct(config, task)
            .iter()
            .map(|set| bytes_of(set))
            .sum::<usize>();
        if images <= free.saturating_sub(kept - images) / 2 {
            return Ok(Memory {
                bytes: kept,
                keep: true,
            });
        }
    }
    let bytes = need(config, false)?;
    let Some(free) = free.filter(|&free| free < bytes) else {
        return Ok(Memory { bytes, keep: false });
    };
    // Weights normalise over the batch, so a batch cannot be cut in pieces: it fits, or the run is another one.
    let fits = |batch: u32| {
        let smaller = RunConfig {
            batch,
            meta_batch: config.meta_batch.map(|m| m.min(batch)),
            eval_batch: config.eval_batch.min(batch),
            ..config.clone()
        };
        need(&smaller, false).is_ok_and(|bytes| bytes <= free)
    };
    let (mut most, mut over) = (
        0,
        config
            .batch
            .max(config.eval_batch)
            .max(config.meta_batch.unwrap_or(0)),
    );
    while over - most > 1 {
        let middle = most + (over - most) / 2;
        if fits(middle) {
            most = middle
        } else {
            over = middle
        }
    }
    let hint = match most {
        0 => "this network does not fit at any batch size: choose a smaller one".to_owned(),
        _ => format!("the largest batch that fits is {most} (--batch, --meta-batch and --eval-batch)"),
    };
    let detail = format!("{bytes} bytes needed, {free} free");
    Err(Error::device(
        format!("memory of {}", device.name()),
        detail,
        hint,
    ))
}

/// What [`Engine::bytes`] says once the run is set up.
fn needed<D: Device>(
    device: &D,
    program: &Program,
    config: &RunConfig,
    task: &Task,
    keep: bool,
) -> Result<usize> {
    let sizes = sizes(config, task);
    sizes.iter().try_for_each(|&size| program.check_batch(size))?;
    let engine = required_bytes(device, program, &sizes, Reuse::ByLifetime)?;
    let (images, kept) = if keep {
        (0, distinct(config, task).iter().map(|set| bytes_of(set)).sum())
    } else {
        (sent_images(config, task), 0)
    };
    Ok(engine + LANES * lane_bytes::<D>(program, &sizes, images) + kept)
}

/// Largest images of one step, in bytes.
pub(crate) fn sent_images(config: &RunConfig, task: &Task) -> usize {
    let image: usize = task.train.split().image_shape().iter().product();
    let train = if config.method == Method::Clean {
        0
    } else {
        config.batch
    };
    let meta = config.meta_batch.filter(|_| config.method.needs_clean());
    (train + meta.unwrap_or(0)) as usize * image
}

/// Splits that the run reads images of, each once.
fn distinct<'a>(config: &RunConfig, task: &'a Task) -> Vec<&'a Arc<Split>> {
    let mut splits: Vec<&Arc<Split>> = Vec::new();
    let read = [
        (config.method != Method::Clean).then_some(&task.train),
        config.method.needs_clean().then_some(&task.meta),
        Some(&task.test),
    ];
    for split in read.into_iter().flatten().map(Subset::split) {
        if !splits.iter().any(|known| Arc::ptr_eq(known, split)) {
            splits.push(split);
        }
    }
    splits
}

fn bytes_of(split: &Split) -> usize {
    split.len() as usize * split.image_shape().iter().product::<usize>()
}

/// Images on the device, where they are there. A set is a whole split, so that a sample's id is its place in it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sets {
    pub train: Option<KeptSet>,
    pub meta: Option<KeptSet>,
    pub test: Option<KeptSet>,
}

impl Sets {
    /// Takes the images of all splits that the run reads onto the device.
    pub fn keep<D: Device>(engine: &mut Engine<D>, config: &RunConfig, task: &Task) -> Result<Self> {
        let splits = distinct(config, task);
        let kept: Vec<KeptSet> = splits
            .iter()
            .map(|split| {
                let image = split.image_shape().iter().product::<usize>();
                engine.keep(bytes_of(split), |put| {
                    let ids: Vec<u32> = (0..split.len()).collect();
                    // Parts of about 4 MiB.
                    ids.chunks((1 << 22) / image + 1).try_for_each(|ids| {
                        let mut part = vec![0; ids.len() * image];
                        split.read_images(ids, &mut part)?;
                        put(&part)
                    })
                })
            })
            .collect::<Result<_>>()?;
        let of = |set: &Subset| {
            let at = splits.iter().position(|split| Arc::ptr_eq(split, set.split()));
            at.map(|at| kept[at])
        };
        Ok(Sets {
            train: of(&task.train),
            meta: of(&task.meta),
            test: of(&task.test),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::run_folder::prepare;
    use crate::train::Trainer;

    #[test]
    fn a_batch_that_does_not_fit_names_the_largest_that_does() {
        let device = Cpu::<f32>::new(Some(1)).unwrap();
        let with_batch = |batch| {
            let mut config = RunConfig {
                batch,
                eval_batch: 16,
                ..RunConfig::default()
            }
            .resolve()
            .unwrap();
            let task = prepare(&mut config).unwrap();
            (config, task)
        };
        let need = |batch| {
            let (config, task) = with_batch(batch);
            memory_within(&device, &config, &task, None).unwrap().bytes
        };
        let (config, task) = with_batch(300);
        let largest = |free| {
            let error = memory_within(&device, &config, &task, Some(free)).unwrap_err();
            assert_eq!(error.exit_code(), 4);
            error.to_string()
        };
        let tight = memory_within(&device, &config, &task, Some(need(300))).unwrap();
        assert_eq!(
            tight,
            Memory {
                bytes: need(300),
                keep: false
            }
        );
        let message = largest(need(299));
        assert!(
            message.contains(&format!("{} bytes needed, {} free", need(300), need(299))),
            "{message}"
        );
        assert!(message.contains("that fits is 299 "), "{message}");
        assert!(largest(need(64)).contains("that fits is 64 "));
        assert!(largest(1000).contains("does not fit at any batch size"));
        // The estimate is what the engine then holds, with the images on the device and without.
        let rich = memory_within(&device, &config, &task, Some(1 << 40)).unwrap();
        let images = (task.train.split().len() + task.test.len()) as usize * 64;
        let sent = LANES * sent_images(&config, &task);
        assert!(rich.keep && rich.bytes == tight.bytes - sent + images, "{rich:?}");
        // The clean images of a step, those alone where they are what is trained on; 64 bytes each.
        assert_eq!(sent_images(&config, &task), (300 + 100) * 64);
        let clean = RunConfig {
            method: Method::Clean,
            ..config.clone()
        };
        assert_eq!(sent_images(&clean, &task), 100 * 64);
        for memory in [tight, rich] {
            let (device, task) = (Cpu::<f32>::new(Some(1)).unwrap(), Task::open(&config).unwrap());
            let trainer = Trainer::with(device, config.clone(), task, memory.keep).unwrap();
            assert_eq!(trainer.engine.bytes(), memory.bytes);
        }
    }
}
