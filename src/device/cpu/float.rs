//! The two number types of the CPU device, alone and as vectors of an instruction set.

use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

use pulp::{Arch, Simd};

use super::super::Element;
use super::{conv, rounding, weight};

/// A number the CPU device computes with: f32 or f64.
pub trait Float:
    Element
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    const ZERO: Self;
    const ONE: Self;
    /// As many values as a register of the instruction set holds.
    type Vector<S: Simd>: Copy;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    /// The nearest bf16 or tf32 value; itself where no such device has `Self`.
    fn bf16(self) -> Self;
    fn tf32(self) -> Self;
    fn splat<S: Simd>(simd: S, value: Self) -> Self::Vector<S>;
    /// a·b + c, rounded once where the instruction set can.
    fn mul_add<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// Fewer values than a vector holds, zeros behind them.
    fn load_part<S: Simd>(simd: S, from: &[Self]) -> Self::Vector<S>;
    /// The first values of a vector.
    fn store_part<S: Simd>(simd: S, to: &mut [Self], values: Self::Vector<S>);
    /// The inner loops on an instruction set. Not generic, so that they are compiled in this crate alone.
    #[doc(hidden)]
    fn convolve(arch: Arch, lines: conv::Lines<Self>);
    #[doc(hidden)]
    fn correlate(arch: Arch, lines: weight::Lines<Self>);
}

macro_rules! float {
    ($t:ident, $vector:ident, $splat:ident, $mul_add:ident, $load:ident, $store:ident, $bf16:expr, $tf32:expr) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            type Vector<S: Simd> = S::$vector;
            fn exp(self) -> Self {
                <$t>::exp(self)
            }
            fn ln(self) -> Self {
                <$t>::ln(self)
            }
            #[inline(always)]
            fn bf16(self) -> Self {
                $bf16(self)
            }
            #[inline(always)]
            fn tf32(self) -> Self {
                $tf32(self)
            }
            #[inline(always)]
            fn splat<S: Simd>(simd: S, value: Self) -> S::$vector {
                simd.$splat(value)
            }
            #[inline(always)]
            fn mul_add<S: Simd>(simd: S, a: S::$vector, b: S::$vector, c: S::$vector) -> S::$vector {
                simd.$mul_add(a, b, c)
            }
            #[inline(always)]
            fn load_part<S: Simd>(simd: S, from: &[Self]) -> S::$vector {
                simd.$load(from)
            }
            #[inline(always)]
            fn store_part<S: Simd>(simd: S, to: &mut [Self], values: S::$vector) {
                simd.$store(to, values)
            }
            fn convolve(arch: Arch, lines: conv::Lines<Self>) {
                arch.dispatch(lines)
            }
            fn correlate(arch: Arch, lines: weight::Lines<Self>) {
                arch.dispatch(lines)
            }
        }
    };
}
float!(
    f32,
    f32s,
    splat_f32s,
    mul_add_e_f32s,
    partial_load_f32s,
    partial_store_f32s,
    rounding::bf16,
    rounding::tf32
);
float!(
    f64,
    f64s,
    splat_f64s,
    mul_add_e_f64s,
    partial_load_f64s,
    partial_store_f64s,
    std::convert::identity,
    std::convert::identity
);
