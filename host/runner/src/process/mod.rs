//! The process and its surroundings: signals, systemd and its sockets, file descriptors, the folder for sockets.

pub(crate) mod activation;
pub(crate) mod cache_folder;
pub(crate) mod cpus;
pub(crate) mod dev_host;
pub(crate) mod handover;
pub(crate) mod rlimit;
pub(crate) mod runtime_folder;
pub(crate) mod signals;
pub(crate) mod systemd;
