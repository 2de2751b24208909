//! The state of the host in words, for systemd; and time for its end.

use std::{sync::Arc, time::Duration};

use tokio::time::interval;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    process::systemd,
    service::handle::{Phase, Readiness, Services},
};

/// Interval between two looks at the services.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time that systemd gives to an end that makes progress; longer than the interval between two requests for it.
const MORE_TIME: Duration = Duration::from_secs(15);

/// Reports changes of the state to systemd, until `done`. While services drain, systemd waits for their own deadlines
/// instead of that of the unit.
pub(crate) async fn report(services: Arc<Services>, tasks: TaskTracker, done: CancellationToken) {
    if !systemd::is_there() {
        return;
    }
    let (mut ticks, mut last) = (interval(INTERVAL), String::new());
    loop {
        tokio::select! {
            biased;
            () = done.cancelled() => return,
            // From here on another process reports the state of the unit.
            () = services.succeeded.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if services.ending.is_cancelled() {
            systemd::extend(&tasks, MORE_TIME);
        }
        let text = Counts::of(&services).text(services.ending.is_cancelled());
        if text != last {
            systemd::status(&tasks, text.clone());
            last = text;
        }
    }
}

/// Numbers of services by their state.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    all: usize,
    ready: usize,
    draining: usize,
    drained: usize,
}

impl Counts {
    fn of(services: &Services) -> Self {
        let mut counts = Self::default();
        for service in services.all().iter() {
            counts.all += 1;
            match service.phase() {
                Phase::Draining => counts.draining += 1,
                Phase::Drained => counts.drained += 1,
                _ if service.snapshot().readiness() == Readiness::Ready => counts.ready += 1,
                _ => {}
            }
        }
        counts
    }

    fn text(&self, is_ending: bool) -> String {
        let other = self.all - self.ready - self.draining - self.drained;
        let mut parts = match (self.all, self.ready) {
            (0, _) => vec!["starting".to_owned()],
            (_, 1) => vec!["1 service ready".to_owned()],
            (_, ready) => vec![format!("{ready} services ready")],
        };
        let counted = [("not ready", other), ("draining", self.draining), ("drained", self.drained)];
        parts.extend(counted.iter().filter(|(_, count)| *count > 0).map(|(state, count)| format!("{state} {count}")));
        let text = parts.join("; ");
        if is_ending { format!("ending; {text}") } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn the_state_is_a_short_sentence() {
        let text = |all, ready, draining, drained| Counts { all, ready, draining, drained }.text(false);
        assert_eq!(text(0, 0, 0, 0), "starting");
        assert_eq!(text(1, 1, 0, 0), "1 service ready");
        assert_eq!(text(15, 12, 3, 0), "12 services ready; draining 3");
        assert_eq!(text(4, 1, 0, 1), "1 service ready; not ready 2; drained 1");
        let ending = Counts { all: 2, ready: 0, draining: 1, drained: 1 }.text(true);
        assert_eq!(ending, "ending; 0 services ready; draining 1; drained 1");
    }
}
