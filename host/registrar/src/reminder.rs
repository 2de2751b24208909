//! Reminders of a lasting problem in the log, at growing intervals.

use std::time::Duration;

use tokio::time::Instant;

/// Time of the next log line about a problem that lasts. The pause between two lines doubles up to an hour.
///
/// Shared by the crates of this workspace; not a part of the interface.
#[derive(Debug, Clone, Copy)]
pub struct Reminder {
    next: Instant,
    /// Pause before the next line.
    pause: Duration,
}

impl Reminder {
    /// Usual pause between the first line and the second.
    pub const FIRST: Duration = Duration::from_secs(30);
    /// Longest pause.
    pub const LONGEST: Duration = Duration::from_secs(3600);

    /// For a problem whose first line is written now; the second follows after `pause`.
    pub fn new(pause: Duration, now: Instant) -> Self {
        Self { next: now + pause, pause }
    }

    /// Returns true once a line is due.
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Returns true if a whole further pause went by since a line was due: the problem had gone, and is a new one.
    pub fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.next) >= self.pause
    }

    /// Notes that a line is written now.
    pub fn advance(&mut self, now: Instant) {
        self.pause = (2 * self.pause).min(Self::LONGEST);
        self.next = now + self.pause;
    }

    /// Time of the next line.
    pub fn next(&self) -> Instant {
        self.next
    }
}
