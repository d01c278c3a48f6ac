//! The data side, from raw files to batches: round trips, hostile input, determinism.

mod command;
mod common;
mod hostile_files;
mod hostile_shards;
mod loading;
mod meta_draw;
mod overlay;
mod round_trip;
