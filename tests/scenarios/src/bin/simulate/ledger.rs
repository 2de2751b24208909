//! Ledger of a simulation: the requests to its hosts, with their outcomes.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// Request to a host, or an event that ends its requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A call of `register`.
    Register {
        /// True if the ownership policy allows a take-over.
        may_take_over: bool,
    },
    /// A call of `stop`.
    Stop,
    /// A handle or a pending call was dropped.
    Drop,
    /// The host died, without any further request to etcd.
    Crash,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Act {
    /// The host.
    pub(crate) host: String,
    /// The key; empty for a crash.
    pub(crate) key: String,
    /// The request.
    pub(crate) request: Request,
    /// Virtual time of the request.
    pub(crate) from: Duration,
    /// Virtual time of the outcome, and true for ok. `None`: pending, or never.
    pub(crate) outcome: Option<(Duration, bool)>,
}

/// All requests, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<Act>>>);

impl Ledger {
    /// Adds a request, and returns its number for `finish`.
    pub(crate) fn begin(&self, host: &str, key: &str, request: Request, from: Duration) -> usize {
        let mut acts = self.0.lock().expect("unpoisoned");
        acts.push(Act { host: host.to_owned(), key: key.to_owned(), request, from, outcome: None });
        acts.len() - 1
    }

    /// Adds the outcome of a request.
    pub(crate) fn finish(&self, number: usize, at: Duration, ok: bool) {
        self.0.lock().expect("unpoisoned")[number].outcome = Some((at, ok));
    }

    /// All entries so far.
    pub(crate) fn acts(&self) -> Vec<Act> {
        self.0.lock().expect("unpoisoned").clone()
    }
}
