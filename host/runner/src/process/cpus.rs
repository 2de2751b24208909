//! The processors that this process may use.

use std::{num::NonZero, thread};

/// Number of processors available to this process, at least 1.
pub(crate) fn available() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}
