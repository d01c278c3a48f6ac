//! Augmentation of a batch.

use super::super::{AugmentShape, Mem};
use super::{Cpu, Float};
use crate::{Error, Result};

pub(super) fn augment<T: Float>(
    _cpu: &Cpu<T>,
    _shape: AugmentShape,
    _out: Mem<Cpu<T>>,
    _images: Mem<Cpu<T>>,
    _ids: Mem<Cpu<T>>,
    _table: Mem<Cpu<T>>,
    _step: Mem<Cpu<T>>,
) -> Result<()> {
    Err(Error::Internal("augment: not there yet".to_owned()))
}
