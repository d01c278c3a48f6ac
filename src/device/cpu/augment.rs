//! Augmentation of a batch: [`Augment`], images shared among the threads.

use super::super::{AugmentShape, Mem, StepParams};
use super::{Cpu, Float, Lend};
use crate::data::augment::Augment;
use crate::{Error, Result};

/// Images per piece of work.
const PIECE: usize = 8;

pub(super) fn augment<T: Float>(
    cpu: &Cpu<T>,
    shape: AugmentShape,
    out: Mem<Cpu<T>>,
    images: Mem<Cpu<T>>,
    ids: Mem<Cpu<T>>,
    table: Mem<Cpu<T>>,
    step: Mem<Cpu<T>>,
) -> Result<()> {
    let sizes = [shape.n, shape.h, shape.w, shape.c];
    if sizes.iter().any(|&size| size < 1) || shape.pad < 0 || !(0..1 << 16).contains(&shape.view) {
        return Err(Error::Internal(format!("augment: {shape:?}")));
    }
    let [n, h, w, c] = sizes.map(|size| size as usize);
    let image = h * w * c;
    let mut lend = Lend::new("augment");
    let out = lend.write::<T>("out", out, n * image)?;
    let count = if shape.gather == 0 {
        n
    } else {
        images.bytes / image
    };
    let images = lend.read::<u8>("images", images, count * image)?;
    let ids = lend.read::<u32>("ids", ids, n)?;
    if shape.gather != 0 && ids.iter().any(|&id| id as usize >= count) {
        return Err(Error::Internal(format!("augment: an id beyond {count} images")));
    }
    let table = lend.read::<T>("table", table, c * 256)?;
    let step = &lend.read::<StepParams>("step", step, 1)?[0];
    let augment = Augment {
        seed: step.seed,
        time: step.step,
        view: shape.view as u32,
        pad: shape.pad as u32,
        flip: shape.flip as u32,
        channels: shape.c as u32,
        height: shape.h as u32,
        width: shape.w as u32,
    };
    let pieces = out
        .chunks_mut(PIECE * image)
        .zip(ids.chunks(PIECE).zip((0..n).step_by(PIECE)));
    // About eight operations a value: index, bounds, look-up.
    cpu.threads.each(8 * n * image, pieces, |(out, (ids, first))| {
        for ((out, id), place) in out.chunks_mut(image).zip(ids).zip(first..) {
            let at = if shape.gather == 0 { place } else { *id as usize };
            augment
                .apply(
                    out,
                    &images[at * image..][..image],
                    std::slice::from_ref(id),
                    table,
                )
                .expect("operands whose lengths were checked");
        }
        cpu.rounding.stored(out);
    });
    Ok(())
}
