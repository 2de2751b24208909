//! Drawing of the full-screen view: a pure function of its state.

use anstyle::AnsiColor;
use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Cell, Paragraph, Row, Table},
};

use super::{
    known::ChangeKind,
    state::{self, State},
};
use crate::commands::{
    node_row::{STATE, color},
    table::{Column, GAP, fitted},
};

/// Keys of the view.
const HELP: &str = "q quit  / filter  s sort  ↑ ↓ PgUp PgDn Home End";
const EDITING: &str = "Enter keeps the filter, Esc drops it";

/// Draws the totals, the headings, the rows that have room, the state of etcd, and the keys.
pub(super) fn draw(frame: &mut Frame, state: &State) {
    let lines = [Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1), Constraint::Length(1)];
    let [title, rows, contact, keys] = Layout::vertical(lines).areas(frame.area());
    frame.render_widget(Line::styled(cut(&state.title(), title.width), Modifier::BOLD), title);
    frame.render_widget(table(state, rows.width), rows);
    draw_contact(frame, state, contact);
    draw_keys(frame, state, keys);
}

fn table(state: &State, width: u16) -> Table<'static> {
    let columns = state.columns();
    let widths = fitted(columns, state.widths(), usize::from(width));
    let is_stale = state.silence().is_some();
    let aligned = |column: Column, width: usize, text: &str| {
        let line = Line::raw(column.fit(text, width).into_owned());
        line.alignment(if column.is_number { Alignment::Right } else { Alignment::Left })
    };
    let heading = |index: usize| {
        let heading = columns[index].heading;
        let is_sorted = heading == state.sort().heading();
        let style = if is_sorted { Style::new().add_modifier(Modifier::UNDERLINED) } else { Style::new() };
        Cell::new(aligned(columns[index].heading(), widths[index], heading)).style(style)
    };
    let shown = || (0..columns.len()).filter(|index| widths[*index] > 0);
    let header = Row::new(shown().map(heading)).style(Modifier::BOLD);
    let row = |row: state::Row| {
        let cell = |index: usize| {
            let text = &row.cells[index];
            let is_state = columns[index].heading == STATE && !is_stale;
            let style = if is_state { painted(color(row.state)) } else { Style::new() };
            Cell::new(aligned(columns[index], widths[index], text)).style(style)
        };
        Row::new(shown().map(cell)).style(row_style(row.kind, is_stale))
    };
    let rows: Vec<_> = state.rows().map(row).collect();
    Table::new(rows, shown().map(|index| Constraint::Length(cells(widths[index]))))
        .header(header)
        .column_spacing(cells(GAP.len()))
}

/// A line that shows where it was cut.
fn cut(text: &str, width: u16) -> String {
    Column::cut("", 1).fit(text, usize::from(width)).into_owned()
}

/// A width as the terminal counts it.
fn cells(width: usize) -> u16 {
    u16::try_from(width).unwrap_or(u16::MAX)
}

fn row_style(kind: ChangeKind, is_stale: bool) -> Style {
    match kind {
        _ if is_stale => Style::new().add_modifier(Modifier::DIM),
        ChangeKind::Present => Style::new(),
        ChangeKind::Joined | ChangeKind::Changed => Style::new().add_modifier(Modifier::BOLD),
        ChangeKind::Left => Style::new().add_modifier(Modifier::DIM),
    }
}

fn draw_contact(frame: &mut Frame, state: &State, area: Rect) {
    let contact = match state.silence() {
        Some(_) => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        None => Style::new().add_modifier(Modifier::DIM),
    };
    let said = state.contact();
    let warnings = state.warnings(usize::from(area.width).saturating_sub(said.chars().count() + GAP.len()));
    let gap = if warnings.is_empty() { "" } else { GAP };
    let spans = [Span::styled(said, contact), Span::raw(gap), Span::styled(warnings, Style::new().fg(Color::Yellow))];
    frame.render_widget(Line::from_iter(spans), area);
}

fn draw_keys(frame: &mut Frame, state: &State, area: Rect) {
    let position = state.position();
    let length = Constraint::Length(cells(position.chars().count()));
    let [keys, at] = Layout::horizontal([Constraint::Fill(1), length]).spacing(1).areas(area);
    let line = match state.editing() {
        Some(filter) => Line::from_iter([
            Span::raw(format!("/{filter}")),
            Span::styled(" ", Modifier::REVERSED),
            Span::styled(format!("{GAP}{EDITING}"), Modifier::DIM),
        ]),
        None => Line::styled(HELP, Modifier::DIM),
    };
    frame.render_widget(line, keys);
    frame.render_widget(Paragraph::new(position).style(Modifier::DIM), at);
}

/// The style of the command-line tables, for this view.
fn painted(style: anstyle::Style) -> Style {
    let color = match style.get_fg_color() {
        Some(anstyle::Color::Ansi(AnsiColor::Green)) => Color::Green,
        Some(anstyle::Color::Ansi(AnsiColor::Yellow)) => Color::Yellow,
        Some(anstyle::Color::Ansi(AnsiColor::Magenta)) => Color::Magenta,
        Some(anstyle::Color::Ansi(AnsiColor::Red)) => Color::Red,
        _ => return Style::new(),
    };
    Style::new().fg(color)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use jiff::tz::TimeZone;
    use leasehold::{Layout, LeaseId, LeaseTtl, WatchEvent};
    use ratatui::{
        Terminal,
        backend::TestBackend,
        buffer::Buffer,
        style::{Color, Modifier},
    };

    use super::{
        super::{
            known::{
                Known,
                events::{garbage, gone, put_at},
            },
            state::{Input, Now, State},
        },
        draw,
    };
    use crate::commands::filter::Names;

    const LINES: u16 = 24;

    fn now(seconds: u64) -> Now {
        let time: jiff::Timestamp = "2026-11-28T20:54:55Z".parse().unwrap();
        // One clock for all events of a test.
        let begun = *BEGUN.get_or_init(Instant::now);
        let time = time + jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap());
        Now { instant: begun + Duration::from_secs(seconds), time }
    }

    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

    /// A view of 2,000 nodes of two services, one of which has a long name.
    fn view(lines: u16) -> State {
        let known = Known::new(vec![Layout::default()]);
        let mut state = State::new(known, Names::All, "http://127.0.0.1:2379".to_owned(), TimeZone::UTC, lines, now(0));
        let node = |number: i64| {
            let name = if number < 1000 { "user" } else { "a-service-with-a-name-that-is-longer-than-most-others-are" };
            put_at(name, &format!("10.0.{}.{}:8000", number / 250, number % 250), 50, 0x694d_0000_0000 + number)
        };
        let events = (0..2000).map(node).chain([garbage("x")]).collect();
        state.on(Input::Watch(WatchEvent::Changes(events)), now(0));
        state.on(Input::Watch(WatchEvent::Synced), now(0));
        let lease = |number: i64| LeaseId::new(0x694d_0000_0000 + number).unwrap();
        let left = |seconds| LeaseTtl { granted: Duration::from_secs(10), remaining: Duration::from_secs(seconds) };
        let ttls = (0..2000).map(|number| (lease(number), left(if number == 1000 { 1 } else { 8 }))).collect();
        state.on(Input::Ttls(ttls), now(1));
        state
    }

    fn drawn(state: &mut State, width: u16, lines: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, lines)).unwrap();
        state.arrange();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        terminal.backend().buffer().clone()
    }

    fn lines(buffer: &Buffer) -> Vec<String> {
        let line = |y| (0..buffer.area.width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..buffer.area.height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn two_thousand_rows_fit_a_terminal_of_80_columns() {
        let mut state = view(LINES);
        let lines = lines(&drawn(&mut state, 80, LINES));
        assert_eq!(lines[0], "2,000 nodes of 2 services: 1,999 ok, 1 expiring");
        assert_eq!(lines[1], "   NAME                 VERSION  ADDR             WEIGHT  STATE     LEASE    TTL");
        assert_eq!(lines[2], "   a-service…thers-are  -        10.0.4.0:8000        50  expiring  …0003e8   1s");
        assert_eq!(lines[3], "   a-service…thers-are  -        10.0.4.1:8000        50  ok        …0003e9   8s");
        assert_eq!(lines[12], "   a-service…thers-are  -        10.0.4.10:8000       50  ok        …0003f2   8s");
        assert_eq!(lines[22], "etcd at http://127.0.0.1:2379 responds  1 invalid key: leasehold doctor");
        assert!(lines[23].starts_with("q quit  / filter  s sort") && lines[23].ends_with(" 1-20 of 2,000"));
    }

    #[test]
    fn two_thousand_rows_use_a_terminal_of_200_columns() {
        let mut state = view(LINES);
        let lines = lines(&drawn(&mut state, 200, LINES));
        let row = "   a-service-with-a-name-that-is-longer-than-most-others-are  -        10.0.4.0:8000        50  expiring  \
                   694d000003e8   1s";
        assert_eq!(lines[2], row);
        assert!(lines[22].ends_with("1 key is not a node; leasehold doctor says why"));
    }

    #[test]
    fn sixty_columns_have_no_room_for_leases() {
        let mut state = view(LINES);
        let lines = lines(&drawn(&mut state, 60, LINES));
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>(),
            ["NAME", "VERSION", "ADDR", "WEIGHT", "STATE", "TTL"]
        );
        assert!(lines[2].ends_with("  50  expiring   1s") && lines[2].chars().count() <= 60, "{}", lines[2]);
    }

    #[test]
    fn headings_stay_while_rows_scroll() {
        let mut state = view(LINES);
        let first = lines(&drawn(&mut state, 80, LINES));
        state.on(Input::Key(KeyEvent::new(KeyCode::End, KeyModifiers::NONE)), now(1));
        let last = lines(&drawn(&mut state, 80, LINES));
        assert_eq!(first[..2], last[..2]);
        assert!(last[21].contains("user") && last[21].contains("10.0.3.249:8000"), "{}", last[21]);
        assert!(last[23].ends_with("1,981-2,000 of 2,000"), "{}", last[23]);
    }

    #[test]
    fn a_change_far_below_is_seen_at_the_top() {
        let mut state = view(LINES);
        let changed = put_at("user", "10.0.3.9:8000", 1, 0);
        state.on(Input::Watch(WatchEvent::Changes(vec![changed, gone("none")])), now(1));
        let buffer = drawn(&mut state, 80, LINES);
        let line = &lines(&buffer)[2];
        assert!(line.starts_with("~  user") && line.contains("10.0.3.9:8000") && line.contains("no-lease"), "{line}");
        assert!(buffer[(3, 2)].modifier.contains(Modifier::BOLD) && !buffer[(3, 3)].modifier.contains(Modifier::BOLD));
        let state_at = u16::try_from(line.find("no-lease").unwrap()).unwrap();
        assert_eq!(buffer[(state_at, 2)].fg, Color::Magenta);
        state.on(Input::Tick, now(10));
        assert!(!lines(&drawn(&mut state, 80, LINES))[2].starts_with('~'));
    }

    #[test]
    fn an_outage_is_one_red_line_and_grey_rows() {
        let mut state = view(LINES);
        state.on(Input::Tick, now(17));
        let buffer = drawn(&mut state, 80, LINES);
        let said = &lines(&buffer)[22];
        assert!(said.starts_with("etcd has not responded for 17 s; this is from 20:54:55  1 invalid key"), "{said}");
        assert_eq!(buffer[(0, 22)].fg, Color::Red);
        assert!(buffer[(3, 2)].modifier.contains(Modifier::DIM));
        assert!(lines(&buffer)[3].ends_with(" 0s"));
    }

    #[test]
    fn a_filter_is_edited_in_the_last_line() {
        let mut state = view(LINES);
        for c in "/10.0.7.24".chars() {
            state.on(Input::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE)), now(1));
        }
        let lines = lines(&drawn(&mut state, 80, LINES));
        assert!(lines[0].starts_with("11 with \"10.0.7.24\" of 2,000 nodes of"), "{}", lines[0]);
        assert!(lines[23].starts_with("/10.0.7.24   Enter keeps the filter, Esc drops it"), "{}", lines[23]);
        assert!(lines[23].ends_with("1-11 of 11"));
    }

    #[test]
    fn any_terminal_can_be_drawn() {
        for (width, lines) in [(1, 1), (2, 2), (10, 3), (20, 5), (40, 10), (500, 200)] {
            let mut state = view(lines);
            drawn(&mut state, width, lines);
        }
    }
}
