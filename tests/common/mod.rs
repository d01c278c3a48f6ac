//! What the tests share: comparison, seeded data, operands on a device.
#![allow(dead_code)] // each test program uses its own part

pub mod adjoint;
pub mod alone;
pub mod augment;
pub mod conv;
pub mod loss;
pub mod naive;
pub mod norm;
pub mod ops;
pub mod run;
pub mod transfer;

use bytemuck::Pod;
use l2b::device::{ALIGN, Arrangement, ConvShape, Device, Element, Filters, Mem, Prepared, Region};

/// Fails unless every `got` lies within atol + rtol·|want| of `want`. Values that are not finite fail on either side.
/// Names the tensor, the worst index, both values there and the ratio of error to tolerance.
#[track_caller]
pub fn assert_close(name: &str, got: &[f64], want: &[f64], atol: f64, rtol: f64) {
    let tolerance: Vec<f64> = want.iter().map(|want| atol + rtol * want.abs()).collect();
    assert_within(name, got, want, &tolerance);
}

/// As [`assert_close`], with a tolerance for each value.
#[track_caller]
pub fn assert_within(name: &str, got: &[f64], want: &[f64], tolerance: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name}: lengths");
    assert_eq!(got.len(), tolerance.len(), "{name}: tolerances");
    let mut worst = (0.0, 0);
    for (i, ((&got, &want), &tolerance)) in got.iter().zip(want).zip(tolerance).enumerate() {
        let error = (got - want).abs();
        let ratio = match error {
            // NaN, or infinite where the tolerance is too.
            _ if !(got.is_finite() && want.is_finite()) => f64::INFINITY,
            0.0 => 0.0,
            _ => error / tolerance,
        };
        if ratio > worst.0 {
            worst = (ratio, i);
        }
    }
    let (ratio, i) = worst;
    assert!(
        ratio <= 1.0,
        "{name}[{i}]: got {}, want {}, error {ratio:.3} times the tolerance {:e}",
        got[i],
        want[i],
        tolerance[i]
    );
}

/// A stream of numbers that depends on the seed alone (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// An integer in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A multiple of 2⁻²⁰ in [−1, 1): exact in f32, so that a device of f32 starts from the very numbers of the oracle.
    pub fn value(&mut self) -> f64 {
        (self.next() >> 43) as f64 / f64::from(1 << 20) - 1.0
    }

    /// `len` values in [−1, 1).
    pub fn values(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.value()).collect()
    }

    /// `len` values in [low, high).
    pub fn range(&mut self, len: usize, low: f64, high: f64) -> Vec<f64> {
        (0..len)
            .map(|_| f64::from((low + (high - low) * (self.value() + 1.0) / 2.0) as f32))
            .collect()
    }
}

/// One operand in an arena of its own, as long as its data.
pub struct Operand<D: Device> {
    arena: D::Arena,
    bytes: usize,
}

impl<D: Device> Operand<D> {
    pub fn mem(&self) -> Mem<'_, D> {
        let region = Region {
            offset: 0,
            bytes: self.bytes,
        };
        region.of(&self.arena)
    }
}

/// `bytes` bytes on the device, each 0xFF: not a number in any float type, so that a value left unwritten shows.
pub fn room<D: Device>(device: &D, bytes: usize) -> Operand<D> {
    let arena = device.alloc(bytes.max(ALIGN)).expect("memory for a test operand");
    let operand = Operand { arena, bytes };
    device.fill(operand.mem(), 0xFF).expect("fill");
    operand
}

/// Values of any plain type on the device.
pub fn raw<D: Device, P: Pod>(device: &D, values: &[P]) -> Operand<D> {
    let operand = room(device, size_of_val(values));
    device
        .upload(operand.mem(), bytemuck::cast_slice(values))
        .expect("upload");
    operand
}

/// Values of element type E on the device, rounded to it.
pub fn reading<E: Element, D: Device>(device: &D, values: &[f64]) -> Operand<D> {
    let values: Vec<E> = values.iter().map(|&value| E::from_f64(value)).collect();
    raw(device, &values)
}

/// Filters `Real` `[K,R,S,C]`, arranged for every operation of a convolution.
pub struct Arranged<D: Device> {
    w: Operand<D>,
    forward: Operand<D>,
    backward: Operand<D>,
}

impl<D: Device> Arranged<D> {
    pub fn new(device: &D, shape: &ConvShape, prepared: &Prepared<D::Algorithm>, w: Operand<D>) -> Self {
        let arranged = Arranged {
            w,
            forward: room(device, prepared.arranged.forward),
            backward: room(device, prepared.arranged.backward),
        };
        let filters = arranged.filters();
        let of = Arrangement {
            shape,
            prepared,
            filters,
        };
        device.arrange_filters(&[of]).expect("arrange_filters");
        arranged
    }

    pub fn filters(&self) -> Filters<'_, D::Arena> {
        Filters {
            w: self.w.mem(),
            forward: self.forward.mem(),
            backward: Some(self.backward.mem()),
        }
    }
}

/// Room for `len` values of element type E.
pub fn writing<E: Element, D: Device>(device: &D, len: usize) -> Operand<D> {
    room(device, len * size_of::<E>())
}

/// An operand's bytes as values of a plain type.
pub fn fetch_raw<D: Device, P: Pod>(device: &D, operand: &Operand<D>) -> Vec<P> {
    let mut values = vec![P::zeroed(); operand.bytes / size_of::<P>()];
    device
        .download(bytemuck::cast_slice_mut(&mut values), operand.mem())
        .expect("download");
    values
}

/// An operand's values.
pub fn fetch<E: Element, D: Device>(device: &D, operand: &Operand<D>) -> Vec<f64> {
    fetch_raw::<D, E>(device, operand)
        .into_iter()
        .map(E::to_f64)
        .collect()
}
