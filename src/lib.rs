//! Training image networks on wrongly labelled data with *Learning to Bootstrap* (L2B): weights α, β of every sample's
//! given label and pseudo-label from their closed form ηλ⟨∇f_val, ∇f_i⟩, by one tangent pass instead of double backprop.
//!
//! - Data: [`data`] (shards, noise, clean set, loader), put together for a run by [`task`].
//! - The step: [`step`] reads like the method; [`engine`] is its memory, [`inputs`] and [`outcome`] what goes in and comes out,
//!   [`model`] what it learns, [`schedule`] its rates, [`budget`] the meta pass's share.
//! - Networks: [`arch`] names them, [`net`] plans them as programs of nodes.
//! - Devices: [`device`] is the seam; [`random`] the draws that are the same on all of them.
//! - A run: [`config`] and [`recipe`], [`train`], [`evaluate`], [`epoch_log`], [`events`], [`run_folder`]; many runs: [`compare`],
//!   with what their steps [`cost`]; what a precision does to a step: [`numerics`].
//! - Files: [`weights`] and checkpoints over [`tensor_file`], written by [`atomic`]; [`meta_step`] for comparison with others.
//! - The binary: [`commands`]; all errors: [`error`].

pub mod arch;
pub mod atomic;
pub mod bench;
pub mod budget;
pub mod commands;
pub mod compare;
pub mod config;
pub mod cost;
pub mod data;
pub mod device;
pub mod engine;
pub mod epoch_log;
pub mod error;
pub mod evaluate;
pub mod events;
pub mod inputs;
mod layer;
pub mod meta_step;
pub mod model;
pub mod net;
pub mod numerics;
mod nvtx;
pub mod outcome;
pub mod phase;
pub mod random;
pub mod recipe;
mod recordings;
pub mod run_folder;
pub mod schedule;
pub mod step;
pub mod task;
pub mod tensor_file;
pub mod train;
mod train_memory;
pub mod weights;

pub use error::{Error, Result};
