//! The task of one lease: takes commands, executes the actions of the core against etcd, and reports back.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{broadcast, mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::{
    etcd::{Call, Etcd},
    lease::{
        core::{
            ComputedWeight, Config, LeaseCore,
            messages::{Action, Command, Input, Response},
        },
        renewal::RenewalStreams,
        requests::send,
    },
    node::Weight,
    status::{Event, LeaseMetrics},
};

/// Largest number of commands that are taken before the next write is made of them.
const MAX_GATHERED: usize = 1024;

/// Surroundings of a lease: the sources of its inputs, and the receivers of its news.
pub(crate) struct Surroundings {
    pub(crate) etcd: Etcd,
    pub(crate) load: Load,
    pub(crate) metrics: Arc<LeaseMetrics>,
    pub(crate) events: broadcast::Sender<Event>,
    /// Keys that are out of etcd for good.
    pub(crate) released: mpsc::UnboundedSender<Arc<str>>,
    /// Total time that timers did not see.
    pub(crate) suspended_for: watch::Receiver<Duration>,
}

/// Source of the computed weight.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) weight: watch::Receiver<Weight>,
    pub(crate) is_estimate: Arc<AtomicBool>,
}

impl Load {
    fn read(&self) -> ComputedWeight {
        ComputedWeight { weight: *self.weight.borrow(), is_estimate: self.is_estimate.load(Ordering::Relaxed) }
    }
}

/// The core of a lease, and its requests in progress.
pub(crate) struct LeaseTask {
    core: LeaseCore,
    around: Surroundings,
    renewals: RenewalStreams,
    request: Option<Call<Response>>,
    /// Part of `suspended_for` that the core knows of.
    known_suspended: Duration,
}

impl LeaseTask {
    pub(crate) fn new(config: Config, rng: fastrand::Rng, around: Surroundings) -> Self {
        let known_suspended = *around.suspended_for.borrow();
        Self {
            core: LeaseCore::new(config, around.metrics.clone(), around.load.read(), rng, Instant::now()),
            around,
            renewals: RenewalStreams::default(),
            request: None,
            known_suspended,
        }
    }

    /// Runs until the registrar ends the lease, or has ended itself.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            self.core.set_computed_weight(self.around.load.read());
            self.core.advance(Instant::now());
            self.act();
            if self.core.has_ended() {
                return;
            }
            if let Some(input) = self.next_input(&mut commands).await {
                self.handle(input);
            }
            for _ in 0..MAX_GATHERED {
                let Ok(command) = commands.try_recv() else { break };
                self.handle(Input::Command(command));
            }
        }
    }

    /// Waits for an input, or for the time at which the core has something to do.
    async fn next_input(&mut self, commands: &mut mpsc::Receiver<Command>) -> Option<Input> {
        let wake_at = self.core.wake_at(Instant::now());
        let Self { core, around, renewals, request, known_suspended } = self;
        tokio::select! {
            biased;
            response = in_progress(request) => Some(Input::Response(response)),
            renewal = renewals.next() => Some(Input::Renewal(renewal)),
            () = sleep_until(wake_at) => None,
            command = commands.recv(), if !core.is_ending() => Some(Input::Command(command.unwrap_or(Command::End))),
            () = around.metrics.dropped.notified() => Some(Input::HandleDropped),
            () = around.etcd.is_back() => Some(Input::EtcdIsBack),
            Ok(()) = around.suspended_for.changed() => {
                let total = *around.suspended_for.borrow();
                let by = total - std::mem::replace(known_suspended, total);
                Some(Input::Suspended(by))
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.core.set_computed_weight(self.around.load.read());
        self.core.handle(input, Instant::now());
        self.act();
    }

    /// Executes the actions of the core.
    fn act(&mut self) {
        while let Some(action) = self.core.next_action() {
            match action {
                Action::Request { request, deadline } => {
                    self.request = Some(Box::pin(send(self.around.etcd.clone(), request, deadline)));
                }
                Action::Renew { lease, ttl, deadline } => self.renewals.renew(&self.around.etcd, lease, ttl, deadline),
                Action::Disconnect(lease) => self.renewals.disconnect(lease),
                // An ignored error is the receiver's decision: a caller may have given up, the registrar may have ended
                // before its leases, and there may be no listener.
                Action::Reply(reply, outcome) => drop(reply.send(outcome)),
                Action::Release(key) => drop(self.around.released.send(key)),
                Action::Report(event) => drop(self.around.events.send(event)),
            }
        }
    }
}

async fn in_progress(request: &mut Option<Call<Response>>) -> Response {
    let Some(call) = request else { return pending().await };
    let response = call.await;
    *request = None;
    response
}
