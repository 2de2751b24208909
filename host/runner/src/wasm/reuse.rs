//! Reuse of instances: its limits, and detection of components that cannot be reused.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
};

use leasehold::ServiceName;
use wasmtime_wasi_http::handler::{ProxyPre, ShouldAccept};

use crate::{config::Limits, wasm::context::StoreState};

/// Failures of reused instances, without any success, that prove a component not reusable.
const FAILURES: u32 = 3;

/// Requests that one instance serves in all, and at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reuse {
    total: usize,
    concurrent: usize,
}

/// Evidence about one revision of a component.
#[derive(Debug)]
pub(crate) struct Reusable {
    service: ServiceName,
    reuse: Reuse,
    /// A reused instance has served a request.
    is_proven: AtomicBool,
    /// Reused instances that failed before that.
    failures: AtomicU32,
    is_refuted: AtomicBool,
}

impl Reuse {
    /// Reuse by the limits; the default of `wasi:http` 0.2 is that of `wasmtime serve`. The error names a limit that the
    /// component cannot meet.
    pub(crate) fn of(pre: &ProxyPre<StoreState>, limits: &Limits) -> Result<Self, &'static str> {
        let (total, concurrent) = match pre {
            ProxyPre::P2(_) if limits.instance_concurrency.is_some_and(|requested| requested > 1) => {
                return Err("limits.instance_concurrency must be 1: \
                            an instance of wasi:http 0.2 answers one request at a time");
            }
            ProxyPre::P2(_) => (1, 1),
            ProxyPre::P3(_) => (1000, 16),
        };
        let or = |requested: Option<u32>, default| requested.map_or(default, |requested| requested as usize);
        Ok(Self { total: or(limits.instance_requests, total), concurrent: or(limits.instance_concurrency, concurrent) })
    }
}

impl Reusable {
    pub(crate) fn new(service: ServiceName, reuse: Reuse) -> Arc<Self> {
        Arc::new(Self {
            service,
            reuse,
            is_proven: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            is_refuted: AtomicBool::new(false),
        })
    }

    /// Returns true if an instance serves one request at a time.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.reuse.concurrent == 1
    }

    /// Decides if an instance with so many requests, and so many in all, takes another.
    pub(crate) fn accepts(&self, concurrent: usize, total: usize) -> ShouldAccept {
        let most = if self.is_refuted.load(Relaxed) { 1 } else { self.reuse.total };
        if total >= most {
            ShouldAccept::Never
        } else if concurrent >= self.reuse.concurrent {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    /// Notes that a reused instance has served a request.
    pub(crate) fn answered(&self) {
        if !self.is_proven.load(Relaxed) {
            self.is_proven.store(true, Relaxed);
        }
    }

    /// Notes that a reused instance has failed at a request. Returns true if the reuse may be the reason.
    pub(crate) fn failed(&self) -> bool {
        if self.is_proven.load(Relaxed) {
            return false;
        }
        if self.failures.fetch_add(1, Relaxed) + 1 >= FAILURES && !self.is_refuted.swap(true, Relaxed) {
            tracing::warn!(
                service = %self.service,
                "an instance of this component answers one request and fails at the next: it is taken for one with \
                 limits.instance_requests: 1 from now on"
            );
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wasmtime_wasi_http::handler::ShouldAccept;

    use super::{FAILURES, Reusable, Reuse};

    fn reusable() -> Arc<Reusable> {
        Reusable::new("greeter".parse().unwrap(), Reuse { total: 10, concurrent: 2 })
    }

    fn accepts(reusable: &Reusable, concurrent: usize, total: usize) -> &'static str {
        match reusable.accepts(concurrent, total) {
            ShouldAccept::Yes => "yes",
            ShouldAccept::No => "no",
            ShouldAccept::Never => "never",
        }
    }

    #[test]
    fn a_component_whose_reused_instances_only_fail_is_reused_no_more() {
        let reusable = reusable();
        assert_eq!(
            [accepts(&reusable, 1, 1), accepts(&reusable, 2, 2), accepts(&reusable, 0, 10)],
            ["yes", "no", "never"]
        );
        assert!((0..FAILURES - 1).all(|_| reusable.failed()));
        assert_eq!(accepts(&reusable, 0, 1), "yes");
        assert!(reusable.failed());
        assert_eq!([accepts(&reusable, 0, 0), accepts(&reusable, 0, 1)], ["yes", "never"]);
    }

    #[test]
    fn a_component_that_was_reused_once_is_reused_whatever_fails_later() {
        let reusable = reusable();
        assert!(reusable.failed());
        reusable.answered();
        assert!((0..10 * FAILURES).all(|_| !reusable.failed()));
        assert_eq!(accepts(&reusable, 0, 1), "yes");
    }
}
