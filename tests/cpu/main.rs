//! Everything that the CPU device is asked to be, in one executable: exact in f64, the reference of the CUDA kernels.

#[path = "../common/mod.rs"]
mod common;
mod device;
#[path = "../common/fixtures.rs"]
mod fixtures;
mod gradcheck;
mod meta_step;
mod method;
#[path = "../common/network.rs"]
mod network;
mod train;
