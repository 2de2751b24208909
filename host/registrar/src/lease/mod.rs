//! A lease: its life as a pure state machine, the task that drives it, its requests and renewals, and the detection of a
//! suspended machine.

pub(crate) mod core;
mod renewal;
mod requests;
pub(crate) mod suspend;
pub(crate) mod task;
