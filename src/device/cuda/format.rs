//! Number formats: what activations are stored as and what convolutions multiply.

use half::bf16;

use crate::device::Element;

/// How activations are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    F32,
    Bf16,
}

impl Storage {
    pub fn bytes(self) -> usize {
        match self {
            Storage::F32 => 4,
            Storage::Bf16 => 2,
        }
    }

    /// Numbers of a 16-byte access; twin of WIDE in kernels/common.cuh.
    pub fn wide(self) -> usize {
        16 / self.bytes()
    }

    /// The kernel of four for this storage and for operands that allow 16-byte accesses or not.
    pub fn pick_width<T>(self, wide: bool, [single_wide, single_odd, bf16_wide, bf16_odd]: &[T; 4]) -> &T {
        match (self, wide) {
            (Storage::F32, true) => single_wide,
            (Storage::F32, false) => single_odd,
            (Storage::Bf16, true) => bf16_wide,
            (Storage::Bf16, false) => bf16_odd,
        }
    }

    /// The kernel of a pair for this storage.
    pub fn pick<T>(self, [single, bf16]: &[T; 2]) -> &T {
        match self {
            Storage::F32 => single,
            Storage::Bf16 => bf16,
        }
    }
}

/// What convolutions multiply; sums are f32 in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// f32, exactly, on CUDA cores.
    F32,
    /// f32 rounded to tf32, on tensor cores.
    Tf32,
    /// bf16, as activations are then stored, on tensor cores.
    Bf16,
}

impl Operands {
    /// How the images that such a convolution reads and writes are stored.
    pub(super) fn storage(self) -> Storage {
        match self {
            Operands::F32 | Operands::Tf32 => Storage::F32,
            Operands::Bf16 => Storage::Bf16,
        }
    }
}

/// The element types that [`super::Cuda`] stores activations as.
pub trait Activation: Element + sealed::Sealed {}

impl Activation for f32 {}
impl Activation for bf16 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}
