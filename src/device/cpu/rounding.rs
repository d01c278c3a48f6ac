//! The number formats of a GPU's tensor cores, in f32 arithmetic: values are rounded where the GPU rounds them, sums stay
//! as they are.

use super::Float;

/// What is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Nothing.
    None,
    /// Operands of convolutions to tf32.
    Tf32,
    /// Operands of convolutions and stored activations to bf16.
    Bf16,
}

impl Rounding {
    /// Rounds operands of a convolution.
    #[inline(always)]
    pub(super) fn operands<T: Float>(self, values: &mut [T]) {
        match self {
            Rounding::None => {}
            Rounding::Tf32 => round(values, T::tf32),
            Rounding::Bf16 => round(values, T::bf16),
        }
    }

    /// Rounds what is stored as `Act`.
    #[inline(always)]
    pub(super) fn stored<T: Float>(self, values: &mut [T]) {
        if self == Rounding::Bf16 {
            round(values, T::bf16);
        }
    }

    /// Whether stored tensors are operands as they are. Stored activations are bf16 already, but what is uploaded as the
    /// network's input is not.
    pub(super) fn keeps_stored(self) -> bool {
        self == Rounding::None
    }
}

#[inline(always)]
fn round<T: Float>(values: &mut [T], f: impl Fn(T) -> T) {
    for value in values {
        *value = f(*value);
    }
}

/// The nearest bf16, ties to even.
#[inline(always)]
pub(super) fn bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000);
    if value.is_nan() { value } else { rounded }
}

/// The nearest tf32 (10 bits of mantissa), ties away from zero.
#[inline(always)]
pub(super) fn tf32(value: f32) -> f32 {
    let rounded = f32::from_bits(value.to_bits().wrapping_add(0x1000) & 0xffff_e000);
    if value.is_nan() { value } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_the_nearest_with_ties_to_even() {
        let unit = 2f32.powi(-7);
        for (value, want) in [
            (1.0, 1.0),
            (1.0 + unit / 2.0, 1.0),
            (1.0 + 1.5 * unit, 1.0 + 2.0 * unit),
            (-1.0 - 0.51 * unit, -1.0 - unit),
            (0.0, 0.0),
            (f32::MAX, f32::INFINITY),
            (f32::INFINITY, f32::INFINITY),
        ] {
            assert_eq!(bf16(value), want, "{value:e}");
        }
        assert!(bf16(f32::NAN).is_nan());
        let mut bits = 1u32;
        for _ in 0..10_000 {
            bits = bits.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            let value = f32::from_bits(bits);
            if value.is_nan() {
                assert!(bf16(value).is_nan());
            } else {
                assert_eq!(bf16(value), half::bf16::from_f32(value).to_f32(), "{bits:#x}");
            }
        }
    }

    #[test]
    fn tf32_is_the_nearest_with_ties_away_from_zero() {
        let unit = 2f32.powi(-10);
        for (value, want) in [
            (1.0, 1.0),
            (1.0 + unit / 2.0, 1.0 + unit),
            (-1.0 - unit / 2.0, -1.0 - unit),
            (1.0 + 0.49 * unit, 1.0),
            (3.0 + 1.5 * unit, 3.0 + 2.0 * unit),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
        ] {
            assert_eq!(tf32(value), want, "{value:e}");
        }
        assert!(tf32(f32::from_bits(0x7fff_ffff)).is_nan());
    }
}
