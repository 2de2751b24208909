//! A lease: the keys on it, its life, and the detection of a suspended machine.

pub(crate) mod key;
pub(crate) mod suspend;
pub(crate) mod task;
