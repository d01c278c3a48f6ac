//! Everything that runs on a GPU, in one executable: it is copied to machines without Rust. With the cargo feature
//! `emulator` it runs on the emulator (unless `L2B_TEST_DEVICE=cuda`); without any device each test prints
//! `skipped: no device`, or fails where `L2B_REQUIRE_GPU=1`. Fixtures are found through `L2B_FIXTURES`.

mod common;
#[path = "gpu/device.rs"]
mod device;
#[path = "gpu/filters.rs"]
mod filters;
#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "gpu/halo.rs"]
mod halo;
#[path = "gpu/measuring.rs"]
mod measuring;
#[path = "common/network.rs"]
mod network;
#[path = "gpu/networks.rs"]
mod networks;
#[path = "gpu/operations.rs"]
mod operations;
#[path = "gpu/planted.rs"]
mod planted;
#[path = "gpu/promises.rs"]
mod promises;
#[path = "gpu/recording.rs"]
mod recording;
#[path = "gpu/runs.rs"]
mod runs;
#[path = "gpu/sm90.rs"]
mod sm90;
