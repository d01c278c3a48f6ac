//! Augmentation of a batch: `data::augment` on the device's memory.

use super::super::{AugmentShape, Mem, StepParams};
use super::{Cpu, Float, Lend};
use crate::Result;
use crate::data::augment::Augment;

pub(super) fn augment<T: Float>(
    _cpu: &Cpu<T>,
    shape: AugmentShape,
    out: Mem<Cpu<T>>,
    images: Mem<Cpu<T>>,
    ids: Mem<Cpu<T>>,
    table: Mem<Cpu<T>>,
    step: Mem<Cpu<T>>,
) -> Result<()> {
    let AugmentShape {
        n,
        h,
        w,
        c,
        pad,
        flip,
        view,
    } = shape;
    let mut lend = Lend::new("augment");
    let [n, pixels, channels] = [n, h * w * c, c].map(|x| x as usize);
    let out = lend.write::<T>("out", out, n * pixels)?;
    let images = lend.read::<u8>("images", images, n * pixels)?;
    let ids = lend.read::<u32>("ids", ids, n)?;
    let table = lend.read::<T>("table", table, channels * 256)?;
    let step = &lend.read::<StepParams>("step", step, 1)?[0];
    let [channels, height, width, pad, flip, view] = [c, h, w, pad, flip, view].map(|x| x as u32);
    let augment = Augment {
        seed: step.seed,
        time: step.step,
        view,
        pad,
        flip,
        channels,
        height,
        width,
    };
    augment.apply(out, images, ids, table)
}
