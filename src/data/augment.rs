//! Train transform: pad, random crop, horizontal flip, normalise; one pass from u8 `[n,H,W,C]` to floats `[n,H,W,C]`.
//! The CUDA kernel repeats it bit for bit.
//!
//! For sample id s, with the draws of [`crate::random`] (index s, view, time of [`Augment`]):
//!
//! ```text
//! dy, dx = Stream(seed, Crop).below(2·pad + 1), then again       only if pad > 0
//! f      = Stream(seed, Flip).below(2)                            only if flip; else 0
//! q'     = W − 1 − q if f = 1, else q
//! u      = image[p + dy − pad][q' + dx − pad][c], or 0 outside the image
//! out[p][q][c] = table[c][u]
//! ```
//!
//! So padding is black *before* normalisation, and the flip turns the cropped image. The table holds, for channel c
//! and byte u, `(u / 255 − mean[c]) / std[c]` computed in f64 with these three roundings, then rounded once to the
//! element type: no device does this arithmetic.

use super::manifest::Manifest;
use crate::device::Element;
use crate::random::{Purpose, Stream};
use crate::{Error, Result};

/// Geometry and draws of one batch; passed to the kernel by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Augment {
    pub seed: u64,
    /// Epoch of the train stream, step of the meta stream.
    pub time: u32,
    /// [`crate::random::TRAIN_VIEW`], [`crate::random::META_VIEW`] or one of the views behind them; below 65536.
    pub view: u32,
    /// Pixels of padding on each side; 0 for no crop.
    pub pad: u32,
    /// 1 to flip half of the images, 0 for none.
    pub flip: u32,
    pub channels: u32,
    pub height: u32,
    pub width: u32,
}

/// `[C][256]`: normalised value of each byte of each channel.
pub fn normalise_table<T: Element>(manifest: &Manifest) -> Vec<T> {
    let channel = |(mean, std): (&f64, &f64)| {
        let (mean, std) = (*mean, *std);
        (0..256).map(move |u| T::from_f64((f64::from(u) / 255.0 - mean) / std))
    };
    manifest
        .mean
        .iter()
        .zip(&manifest.std)
        .flat_map(channel)
        .collect()
}

impl Augment {
    /// Offset of the crop, (dy − pad, dx − pad), and whether the image of sample `id` is flipped.
    pub fn draw(&self, id: u32) -> (i32, i32, bool) {
        let stream = |purpose| {
            let stream = Stream::new(self.seed, purpose).index(id);
            stream.view(self.view as u16).time(self.time)
        };
        let (mut y, mut x) = (0, 0);
        if self.pad > 0 {
            let mut crop = stream(Purpose::Crop);
            let mut offset = || crop.below(2 * self.pad + 1) as i32 - self.pad as i32;
            (y, x) = (offset(), offset());
        }
        (y, x, self.flip == 1 && stream(Purpose::Flip).below(2) == 1)
    }

    /// Transforms images `[n,H,W,C]` of samples `ids` `[n]` into `out` `[n,H,W,C]` through `table` `[C][256]`.
    ///
    /// # Errors
    /// `Internal` if a length does not fit.
    pub fn apply<T: Copy>(&self, out: &mut [T], images: &[u8], ids: &[u32], table: &[T]) -> Result<()> {
        let [c, h, w] = [self.channels, self.height, self.width].map(|x| x as usize);
        let size = h * w * c;
        if size == 0
            || images.len() != ids.len() * size
            || out.len() != images.len()
            || table.len() != c * 256
        {
            let lengths = format!("{} {} {} {}", out.len(), images.len(), ids.len(), table.len());
            return Err(Error::Internal(format!("augment {self:?} on lengths {lengths}")));
        }
        for ((out, image), &id) in out.chunks_exact_mut(size).zip(images.chunks_exact(size)).zip(ids) {
            let (y, x, flip) = self.draw(id);
            for (at, pixel) in out.chunks_exact_mut(c).enumerate() {
                let (p, q) = (at / w, at % w);
                let q = if flip { w - 1 - q } else { q };
                let row = p.checked_add_signed(y as isize).filter(|&row| row < h);
                let col = q.checked_add_signed(x as isize).filter(|&col| col < w);
                let source = row.zip(col).map(|(row, col)| &image[(row * w + col) * c..][..c]);
                for (channel, value) in pixel.iter_mut().enumerate() {
                    *value = table[channel * 256 + source.map_or(0, |bytes| bytes[channel] as usize)];
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 channels, 5×7: identity table, so that outputs are bytes.
    const PLAIN: Augment = Augment {
        seed: 4,
        time: 9,
        view: 0,
        pad: 0,
        flip: 0,
        channels: 2,
        height: 5,
        width: 7,
    };

    fn images(n: usize) -> Vec<u8> {
        (0..n * 70).map(|i| (i * 37 % 251) as u8 + 1).collect()
    }

    fn bytes_table() -> Vec<f64> {
        (0..512).map(|i| f64::from(i % 256)).collect()
    }

    fn run(augment: Augment, ids: &[u32]) -> Vec<u8> {
        let images = images(ids.len());
        let mut out = vec![f64::NAN; images.len()];
        augment.apply(&mut out, &images, ids, &bytes_table()).unwrap();
        out.into_iter().map(|v| v as u8).collect()
    }

    #[test]
    fn without_crop_and_flip_it_only_looks_up() {
        assert_eq!(run(PLAIN, &[3, 1]), images(2));
    }

    #[test]
    fn crop_and_flip_match_a_padded_copy() {
        let augment = Augment {
            pad: 2,
            flip: 1,
            ..PLAIN
        };
        let ids: Vec<u32> = (100..164).collect();
        let (out, images) = (run(augment, &ids), images(ids.len()));
        let (mut flips, mut crops) = (0, std::collections::BTreeSet::new());
        for (n, &id) in ids.iter().enumerate() {
            // The obvious way: pad, cut, turn.
            let mut padded = [[0u8; 2]; 9 * 11];
            for (i, pixel) in images[n * 70..][..70].as_chunks::<2>().0.iter().enumerate() {
                padded[(i / 7 + 2) * 11 + i % 7 + 2] = *pixel;
            }
            let mut crop = Stream::new(4, Purpose::Crop).index(id).time(9);
            let (dy, dx) = (crop.below(5) as usize, crop.below(5) as usize);
            let flip = Stream::new(4, Purpose::Flip).index(id).time(9).below(2) == 1;
            let mut cut: Vec<Vec<[u8; 2]>> = (0..5)
                .map(|p| padded[(p + dy) * 11 + dx..][..7].to_vec())
                .collect();
            if flip {
                cut.iter_mut().for_each(|row| row.reverse());
            }
            assert_eq!(out[n * 70..][..70], *cut.concat().as_flattened(), "id {id}");
            flips += usize::from(flip);
            crops.insert((dy, dx));
        }
        // 64 fair coins: mean 32, σ = 4; 25 offsets, of which 64 draws miss about 2.
        assert!(
            (12..=52).contains(&flips) && crops.len() > 15,
            "{flips} {crops:?}"
        );
    }

    #[test]
    fn depends_on_seed_time_view_and_id_but_not_on_the_batch() {
        let augment = Augment {
            pad: 2,
            flip: 1,
            ..PLAIN
        };
        let draws = |a: Augment| (0..50).map(|id| a.draw(id)).collect::<Vec<_>>();
        let base = draws(augment);
        assert_ne!(base, draws(Augment { seed: 5, ..augment }));
        assert_ne!(base, draws(Augment { time: 8, ..augment }));
        assert_ne!(base, draws(Augment { view: 256, ..augment }));
        // Same sample, other place in another batch: the first image of `images` is at place 0 both times.
        assert_eq!(run(augment, &[7, 8])[..70], run(augment, &[7, 1, 2])[..70]);
    }

    #[test]
    fn table_rounds_once() {
        let manifest = Manifest {
            name: "t".into(),
            classes: vec![],
            channels: 2,
            height: 1,
            width: 1,
            mean: vec![0.25, 0.5],
            std: vec![0.1, 0.2],
            splits: Default::default(),
        };
        let exact = normalise_table::<f64>(&manifest);
        assert_eq!(exact.len(), 512);
        assert_eq!(exact[256 + 255], (1.0 - 0.5) / 0.2);
        assert_eq!(exact[51], (0.2 - 0.25) / 0.1);
        let (single, brain) = (
            normalise_table::<f32>(&manifest),
            normalise_table::<half::bf16>(&manifest),
        );
        for ((exact, single), brain) in exact.iter().zip(single).zip(brain) {
            assert_eq!(single, *exact as f32);
            assert_eq!(brain, half::bf16::from_f64(*exact));
        }
    }

    #[test]
    fn wrong_lengths_are_errors() {
        let table = bytes_table();
        for (out, image, ids) in [(70, 70, 2), (69, 70, 1), (70, 140, 1)] {
            let result = PLAIN.apply(&mut vec![0.0; out], &vec![0; image], &vec![0; ids], &table);
            assert_eq!(result.unwrap_err().exit_code(), 1);
        }
        assert!(PLAIN.apply(&mut [0.0; 70], &[0; 70], &[0], &table[1..]).is_err());
    }
}
