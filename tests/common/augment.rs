//! Augmentation of a device against a padded copy, bit for bit.

use l2b::device::{AugmentShape, Device, StepParams};
use l2b::random::{Purpose, Stream};

use super::ops::{Setup, rounded};
use super::{Random, fetch, raw, reading, writing};

impl<D: Device> Setup<'_, D> {
    pub fn augment(&self, shape: AugmentShape) {
        let device = self.device;
        let random = &mut Random::new(91);
        let [n, h, w, c, pad] = [shape.n, shape.h, shape.w, shape.c, shape.pad].map(|v| v as usize);
        let set = if shape.gather == 1 { 2 * n + 3 } else { n };
        let images: Vec<u8> = (0..set * h * w * c).map(|_| random.below(256) as u8).collect();
        let ids = (0..n).map(|_| random.below(if shape.gather == 1 { set } else { 100_000 }) as u32);
        let ids: Vec<u32> = ids.collect();
        let table = rounded::<D::Act>(rounded::<D::Real>(random.values(c * 256)));
        let step = StepParams {
            lr: 0.0,
            lambda: 0.0,
            eta: 0.0,
            mu: 0.0,
            weight_decay: 0.0,
            clip: 0.0,
            seed: 0x1234_5678_9ABC_DEF0,
            step: 17,
            reserved: 0,
        };
        let out = writing::<D::Act, D>(device, n * h * w * c);
        let (images_lent, ids_lent) = (raw(device, &images), raw(device, &ids));
        let (table_lent, step_lent) = (reading::<D::Real, D>(device, &table), raw(device, &[step]));
        device
            .augment(
                shape,
                out.mem(),
                images_lent.mem(),
                ids_lent.mem(),
                table_lent.mem(),
                step_lent.mem(),
            )
            .expect("augment");

        let mut want = Vec::new();
        for (i, &id) in ids.iter().enumerate() {
            let stream = |purpose| {
                Stream::new(step.seed, purpose)
                    .index(id)
                    .view(shape.view as u16)
                    .time(step.step)
            };
            let at = if shape.gather == 1 { id as usize } else { i };
            let (padded_h, padded_w) = (h + 2 * pad, w + 2 * pad);
            let mut padded = vec![0u8; padded_h * padded_w * c];
            for row in 0..h {
                let line = &images[((at * h) + row) * w * c..][..w * c];
                padded[((row + pad) * padded_w + pad) * c..][..w * c].copy_from_slice(line);
            }
            let mut crop = stream(Purpose::Crop);
            let draws = 2 * pad as u32 + 1;
            let (y, x) = if pad > 0 {
                (crop.below(draws), crop.below(draws))
            } else {
                (0, 0)
            };
            let mirrored = shape.flip == 1 && stream(Purpose::Flip).below(2) == 1;
            for p in 0..h {
                for q in 0..w {
                    let q = if mirrored { w - 1 - q } else { q };
                    for channel in 0..c {
                        let at = ((p + y as usize) * padded_w + q + x as usize) * c + channel;
                        want.push(table[channel * 256 + padded[at] as usize]);
                    }
                }
            }
        }
        assert_eq!(fetch::<D::Act, D>(device, &out), want, "{shape:?}");
    }
}
