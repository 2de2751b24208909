//! Views of ten rows, event by event.

use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use jiff::tz::TimeZone;
use leasehold::{KeyEvent as Change, Layout, LeaseId, LeaseTtl, WatchEvent};

use super::{Flow, Input, Now, State};
use crate::commands::{
    filter::Names,
    watch::known::{
        Known,
        events::{garbage, gone, put, put_at},
    },
};

/// A view of ten rows, and its clock.
struct View {
    state: State,
    now: Now,
}

impl View {
    fn new() -> Self {
        let now = Now { instant: Instant::now(), time: "2026-11-28T20:54:55Z".parse().unwrap() };
        let known = Known::new(vec![Layout::default()]);
        Self { state: State::new(known, Names::All, "http://e:1".to_owned(), TimeZone::UTC, 14, now), now }
    }

    /// A view of these nodes, read a while ago.
    fn of(events: Vec<Change>) -> Self {
        let mut view = Self::new();
        view.on(Input::Watch(WatchEvent::Changes(events)));
        view.on(Input::Watch(WatchEvent::Synced));
        view
    }

    fn on(&mut self, input: Input) -> Flow {
        let flow = self.state.on(input, self.now);
        self.state.arrange();
        flow
    }

    fn wait(&mut self, seconds: u64) {
        self.now.instant += Duration::from_secs(seconds);
        self.now.time += jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap());
        self.on(Input::Tick);
    }

    fn press(&mut self, code: KeyCode) -> Flow {
        self.on(Input::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    fn write(&mut self, text: &str) {
        text.chars().for_each(|c| assert_eq!(self.press(KeyCode::Char(c)), Flow::Continue));
    }

    fn changes(&mut self, events: Vec<Change>) {
        self.on(Input::Watch(WatchEvent::Changes(events)));
    }

    /// Marks and names of the rows that have room.
    fn rows(&self) -> Vec<String> {
        self.state.rows().map(|row| format!("{}{}", row.cells[0].trim(), row.cells[1])).collect()
    }

    fn cell(&self, row: usize, column: usize) -> String {
        self.state.rows().nth(row).unwrap().cells[column].clone()
    }
}

fn hundred() -> View {
    View::of((0..100).map(|number| put(&format!("s{number:02}"), 1, 0)).collect())
}

#[test]
fn keys_scroll_within_the_rows() {
    for (keys, first) in [
        (vec![], "s00"),
        (vec![KeyCode::Down], "s01"),
        (vec![KeyCode::Char('j'), KeyCode::Char('j'), KeyCode::Char('k')], "s01"),
        (vec![KeyCode::Up], "s00"),
        (vec![KeyCode::PageDown], "s10"),
        (vec![KeyCode::PageDown, KeyCode::PageDown, KeyCode::PageUp], "s10"),
        (vec![KeyCode::End], "s90"),
        (vec![KeyCode::End, KeyCode::Down], "s90"),
        (vec![KeyCode::End, KeyCode::Up], "s89"),
        (vec![KeyCode::End, KeyCode::Home], "s00"),
        (vec![KeyCode::Char('G')], "s90"),
        (vec![KeyCode::Char('x'), KeyCode::Tab, KeyCode::F(1)], "s00"),
    ] {
        let mut view = hundred();
        for key in &keys {
            assert_eq!(view.press(*key), Flow::Continue);
        }
        let rows = view.rows();
        assert_eq!((rows.len(), rows[0].as_str()), (10, first), "{keys:?}");
    }
    let mut view = hundred();
    view.press(KeyCode::End);
    view.on(Input::Resized(54));
    assert_eq!((view.rows().len(), view.rows()[0].as_str()), (50, "s50"));
    assert_eq!(view.state.position(), "51-100 of 100");
    view.on(Input::Resized(2));
    assert_eq!(view.rows(), [""; 0], "a terminal of two lines has no room");
}

#[test]
fn q_escape_and_control_c_leave() {
    let control = |c| Input::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL));
    let mut view = hundred();
    assert_eq!(view.press(KeyCode::Char('q')), Flow::Leave);
    assert_eq!(view.press(KeyCode::Esc), Flow::Leave);
    assert_eq!(view.on(control('c')), Flow::Leave);
    assert_eq!(view.on(control('l')), Flow::Clear);
    assert_eq!(view.on(control('q')), Flow::Continue);
    view.press(KeyCode::Char('/'));
    assert_eq!(view.press(KeyCode::Char('q')), Flow::Continue, "it is part of the filter");
    assert_eq!(view.on(control('c')), Flow::Leave);
    assert_eq!(view.press(KeyCode::Esc), Flow::Continue, "it ends the filter");
    assert_eq!(view.press(KeyCode::Esc), Flow::Leave);
}

#[test]
fn a_filter_keeps_the_rows_that_contain_it() {
    let mut view = hundred();
    view.press(KeyCode::End);
    view.write("/S1");
    assert_eq!(view.state.editing(), Some("S1"));
    assert_eq!(view.rows()[..2], ["s10", "s11"]);
    view.press(KeyCode::Backspace);
    view.write("9");
    assert_eq!(view.rows(), ["s90", "s91", "s92", "s93", "s94", "s95", "s96", "s97", "s98", "s99"]);
    view.press(KeyCode::Enter);
    assert_eq!(view.state.editing(), None);
    assert_eq!(view.state.title(), "10 with \"S9\" of 100 nodes of 100 services: 100 no-lease");
    view.press(KeyCode::Down);
    assert_eq!(view.rows().len(), 10);
    view.write("/");
    view.press(KeyCode::Esc);
    assert_eq!((view.rows()[0].as_str(), view.state.position().as_str()), ("s00", "1-10 of 100"));
    view.write("/zzz");
    assert_eq!((view.rows(), view.state.position().as_str()), (Vec::new(), "0 rows"));
}

#[test]
fn changed_rows_come_first_for_a_while() {
    let mut view = View::of(["a", "b", "c", "d"].iter().map(|name| put(name, 1, 0)).collect());
    assert_eq!(view.rows(), ["a", "b", "c", "d"]);
    view.changes(vec![put("c", 2, 0)]);
    view.wait(2);
    view.changes(vec![gone("d"), put("e", 1, 0), put("b", 1, 0)]);
    assert_eq!(view.rows(), ["-d", "+e", "~c", "a", "b"]);
    view.wait(3);
    assert_eq!(view.rows(), ["-d", "+e", "a", "b", "c"]);
    view.wait(2);
    assert_eq!(view.rows(), ["a", "b", "c", "e"]);
    view.changes(vec![gone("a"), put("a", 1, 0)]);
    assert_eq!(view.rows(), ["+a", "b", "c", "e"]);
}

#[test]
fn s_sorts_by_the_next_column() {
    let mut view = View::of(vec![
        put_at("a", "10.0.0.10:1", 5, 7),
        put_at("b", "10.0.0.9:1", 50, 0),
        put_at("c", "10.0.0.11:1", 1, 8),
    ]);
    let ttl = |granted, left| LeaseTtl { granted: Duration::from_secs(granted), remaining: Duration::from_secs(left) };
    let lease = |id| LeaseId::new(id).unwrap();
    view.on(Input::Ttls([(lease(7), ttl(9, 8)), (lease(8), ttl(9, 1))].into()));
    for (heading, expected) in [
        ("NAME", ["a", "b", "c"]),
        ("ADDR", ["b", "a", "c"]),
        ("WEIGHT", ["b", "a", "c"]),
        ("STATE", ["b", "c", "a"]),
        ("TTL", ["c", "a", "b"]),
        ("NAME", ["a", "b", "c"]),
    ] {
        assert_eq!((view.state.sort().heading(), view.rows()), (heading, expected.map(str::to_owned).to_vec()));
        view.press(KeyCode::Char('s'));
    }
}

#[test]
fn an_outage_shows_how_old_the_rows_are() {
    let mut view = View::of(vec![put("a", 1, 7)]);
    let left = LeaseTtl { granted: Duration::from_secs(10), remaining: Duration::from_secs(9) };
    view.on(Input::Ttls([(LeaseId::new(7).unwrap(), left)].into()));
    assert_eq!(view.state.contact(), "etcd at http://e:1 responds");
    view.wait(2);
    assert!(view.state.silence().is_none());
    assert_eq!(view.cell(0, 7), "9s");
    view.wait(2);
    assert_eq!(view.state.contact(), "etcd has not responded for 4 s; this is from 20:54:55");
    assert_eq!(view.cell(0, 7), "5s");
    view.on(Input::Interrupted("etcd: http://e:1 is silent".to_owned()));
    view.wait(13);
    assert_eq!(view.state.contact(), "etcd has not responded for 17 s; this is from 20:54:55");
    assert_eq!(view.cell(0, 7), "0s");
    // It responds, but the rows are as old as before.
    view.on(Input::Responded);
    assert_eq!(view.state.contact(), "etcd has not responded for 17 s; this is from 20:54:55");
    view.on(Input::Watch(WatchEvent::Synced));
    assert_eq!(view.state.contact(), "etcd at http://e:1 responds");
    view.on(Input::Interrupted("etcd: it ended the watch".to_owned()));
    assert_eq!(view.state.contact(), "the watch is interrupted: etcd: it ended the watch");
    view.wait(3);
    assert_eq!(view.state.contact(), "etcd has not responded for 3 s; this is from 20:55:12");
}

#[test]
fn a_response_without_a_change_is_a_sign_of_life() {
    let mut view = View::of(vec![put("a", 1, 7)]);
    for _ in 0..10 {
        view.wait(2);
        view.on(Input::Responded);
    }
    assert!(view.state.silence().is_none());
}

#[test]
fn invalid_keys_and_conflicts_are_counted() {
    let mut view = View::of(vec![put("a", 1, 7)]);
    assert_eq!(view.state.warnings(200), "");
    view.changes(vec![garbage("x"), garbage("y")]);
    assert_eq!(view.state.warnings(200), "2 keys are not a node; leasehold doctor says why");
    view.changes(vec![put("b", 1, 8)]);
    let both = "1 address under several leases; 2 keys are not a node; leasehold doctor says why";
    assert_eq!(view.state.warnings(200), both);
    assert_eq!(view.state.warnings(50), "1 conflict, 2 invalid keys: leasehold doctor");
    assert_eq!(view.state.warnings(26), "1 conflict, 2 invalid keys");
    view.changes(vec![gone("x"), gone("y")]);
    assert_eq!(view.state.warnings(200), "1 address under several leases; leasehold doctor says why");
}

#[test]
fn nothing_is_claimed_before_the_first_read() {
    let mut view = View::new();
    assert_eq!(view.state.title(), "reading the keys in http://e:1");
    view.wait(60);
    assert!(view.state.silence().is_none());
    view.changes(vec![put("a", 1, 7)]);
    view.on(Input::Watch(WatchEvent::Synced));
    assert_eq!((view.state.title().as_str(), view.rows()), ("1 node of 1 service: 1 ?", vec!["a".to_owned()]));
}
