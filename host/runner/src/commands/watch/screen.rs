//! The full-screen view on a terminal: its events, and its restoration however the view ends.

use std::{
    collections::HashMap,
    io,
    pin::pin,
    time::{Duration, Instant},
};

use crossterm::event::{Event, EventStream};
use futures::{
    FutureExt, StreamExt,
    future::{Fuse, FusedFuture, ready},
};
use jiff::{Timestamp, tz::TimeZone};
use leasehold::{Error, WatchEvent};
use ratatui::DefaultTerminal;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::{
    draw::draw,
    session::{Signals, Watch},
    state::{Flow, Input, Now, State},
};
use crate::{connect, error::Failure};

/// Interval at which etcd is probed, and at which ages on the screen grow.
const SECOND: Duration = Duration::from_secs(1);
/// Shortest time between two drawings: a storm of changes does not fill a processor.
const DRAWING: Duration = Duration::from_millis(40);

/// A terminal in raw mode and on its alternate screen; dropping it restores it, and so does a panic.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> io::Result<Self> {
        // Installs a panic hook that restores the terminal before the message is written.
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows the view until a key or a signal ends it.
pub(super) async fn run(watch: &Watch, every: Duration, signals: &mut Signals) -> Result<(), Failure> {
    let mut screen = Screen::open().map_err(|error| unusable(&error))?;
    tokio::select! {
        outcome = show(watch, every, &mut screen.0) => outcome,
        () = signals.end() => Ok(()),
    }
}

async fn show(watch: &Watch, every: Duration, terminal: &mut DefaultTerminal) -> Result<(), Failure> {
    let Watch { registrar, options, names } = watch;
    let lines = terminal.size().map_err(|error| unusable(&error))?.height;
    let endpoint = options.endpoints.join(", ");
    let mut state = State::new(watch.known(), names.clone(), endpoint, TimeZone::system(), lines, now());
    let mut keys = EventStream::new();
    let mut stream = registrar.watch_keys(names.scope()).await.map_err(|error| watch.failure(&error))?;
    let (mut poll, mut second) = (interval(every), interval(SECOND));
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Leases send no events: they are polled, at once where a change brings an unknown one. Nothing waits for that.
    let (mut ttls, mut probe) = (pin!(Fuse::terminated()), pin!(Fuse::terminated()));
    let mut drawn = tokio::time::Instant::now() - DRAWING;
    let (mut is_drawn, mut has_unread) = (false, false);
    loop {
        let input = tokio::select! {
            biased;
            () = sleep_until(drawn + DRAWING), if !is_drawn => {
                state.arrange();
                terminal.draw(|frame| draw(frame, &state)).map_err(|error| unusable(&error))?;
                (drawn, is_drawn) = (tokio::time::Instant::now(), true);
                continue;
            }
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) => Input::Key(key),
                Some(Ok(Event::Resize(_, lines))) => Input::Resized(lines),
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(unusable(&error)),
                None => return Ok(()),
            },
            event = stream.next() => match event.map_err(|error| watch.failure(&error))? {
                // Without a first read the arguments may be wrong.
                WatchEvent::Interrupted(why) if !state.known().is_complete => {
                    return Err(watch.failure(&Error::Unavailable(why)));
                }
                WatchEvent::Interrupted(why) => {
                    Input::Interrupted(connect::message(&Error::Unavailable(why), options))
                }
                event => {
                    has_unread = true;
                    Input::Watch(event)
                }
            },
            () = ready(()), if has_unread && ttls.is_terminated() => {
                has_unread = false;
                ttls.set(registrar.lease_ttls(state.known().unread_leases(), options.request_timeout).fuse());
                continue;
            }
            _ = poll.tick(), if ttls.is_terminated() => {
                ttls.set(registrar.lease_ttls(state.known().leases(), options.request_timeout).fuse());
                continue;
            }
            left = &mut ttls => Input::Ttls(left.unwrap_or_else(|_| HashMap::new())),
            responded = &mut probe => match responded {
                Ok(_) => Input::Responded,
                Err(_) => continue,
            },
            _ = second.tick() => {
                if probe.is_terminated() {
                    probe.set(registrar.reach().fuse());
                }
                Input::Tick
            }
        };
        match state.on(input, now()) {
            Flow::Continue => {}
            Flow::Clear => terminal.clear().map_err(|error| unusable(&error))?,
            Flow::Leave => return Ok(()),
        }
        is_drawn = false;
    }
}

fn now() -> Now {
    Now { instant: Instant::now(), time: Timestamp::now() }
}

fn unusable(error: &io::Error) -> Failure {
    Failure::other(format!("the terminal cannot be used ({error}); leasehold watch --plain needs none"))
}
