//! What the hosts of a simulation were asked, and what they answered.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

/// What a host was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To register, with or without the right to take the key over.
    Register {
        /// Whether the key may be taken from somebody else.
        may_take_over: bool,
    },
    /// To stop.
    Stop,
    /// Nothing: its handle was dropped, or the call was given up.
    Drop,
    /// To die, without a word to etcd.
    Crash,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Act {
    /// The host.
    pub(crate) host: String,
    /// The key; empty for a crash.
    pub(crate) key: String,
    /// What was asked.
    pub(crate) asked: Asked,
    /// When, in virtual time.
    pub(crate) from: Duration,
    /// When it was answered, and whether with ok. `None`: not yet, or never.
    pub(crate) answer: Option<(Duration, bool)>,
}

/// Everything that was asked, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<Act>>>);

impl Ledger {
    /// Notes a question; the number is for its answer.
    pub(crate) fn asks(&self, host: &str, key: &str, asked: Asked, from: Duration) -> usize {
        let mut acts = self.0.lock().expect("nobody panics holding it");
        acts.push(Act { host: host.to_owned(), key: key.to_owned(), asked, from, answer: None });
        acts.len() - 1
    }

    /// Notes the answer.
    pub(crate) fn answered(&self, number: usize, at: Duration, ok: bool) {
        self.0.lock().expect("nobody panics holding it")[number].answer = Some((at, ok));
    }

    /// Everything so far.
    pub(crate) fn acts(&self) -> Vec<Act> {
        self.0.lock().expect("nobody panics holding it").clone()
    }
}
