//! Tables: columns as wide as their cells, and narrower where the terminal is. Crates for tables lay out a whole one at a time;
//! `watch` writes row by row, and keeps the widths between two drawings.

use std::borrow::Cow;

use anstyle::Style;

/// Space between two columns.
pub(super) const GAP: &str = "  ";
/// Shortest end of a cell that says something.
const MIN_END: usize = 5;
/// End of a cell that was cut.
const ELLIPSIS: char = '…';

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) heading: &'static str,
    pub(super) is_number: bool,
    /// Part of the width that this column gets where not all fit; 0 for a column that is never cut.
    share: usize,
    /// The part of a cell that stays where it is cut.
    kept: Kept,
    /// Width below which a cell says too little, so that other columns are left out instead.
    legible: usize,
    /// Order in which columns are left out, the largest first; 0 for a column that stays.
    left_out: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Start,
    Ends,
    End,
}

impl Column {
    /// Text that is never cut.
    pub(super) const fn text(heading: &'static str) -> Self {
        Self { heading, is_number: false, share: 0, kept: Kept::Start, legible: 0, left_out: 0 }
    }

    /// A number, aligned at its last digit and never cut.
    pub(super) const fn number(heading: &'static str) -> Self {
        Self { is_number: true, ..Self::text(heading) }
    }

    /// Text that is cut where the table is too wide: the smaller the share, the earlier.
    pub(super) const fn cut(heading: &'static str, share: usize) -> Self {
        Self { share, ..Self::text(heading) }
    }

    /// Text that loses its middle where the table is too wide.
    pub(super) const fn cut_in_the_middle(heading: &'static str, share: usize) -> Self {
        Self { kept: Kept::Ends, ..Self::cut(heading, share) }
    }

    /// Text that loses its beginning where the table is too wide, and is left out where hardly anything of it would remain.
    pub(super) const fn cut_at_the_start(heading: &'static str, share: usize) -> Self {
        Self { kept: Kept::End, ..Self::cut(heading, share) }
    }

    /// The same column, for whose cells this width is kept at the expense of columns that may be left out.
    pub(super) const fn legible(self, width: usize) -> Self {
        Self { legible: width, ..self }
    }

    /// The same column, left out as a whole where there is too little room: those with larger numbers first.
    pub(super) const fn left_out(self, order: u8) -> Self {
        Self { left_out: order, ..self }
    }

    /// The column of the heading, which is known by its beginning.
    pub(super) const fn heading(&self) -> Self {
        Self { kept: Kept::Start, ..*self }
    }

    /// A cell without padding, of at most this width.
    pub(super) fn fit<'a>(&self, text: &'a str, width: usize) -> Cow<'a, str> {
        let length = text.chars().count();
        if length <= width {
            return text.into();
        }
        let kept = width.saturating_sub(1);
        let end = match self.kept {
            Kept::Start => 0,
            Kept::Ends => kept.div_ceil(2),
            Kept::End => kept,
        };
        let mut cut: String = text.chars().take(kept - end).collect();
        cut.extend((width > 0).then_some(ELLIPSIS));
        cut.extend(text.chars().skip(length - end));
        cut.into()
    }
}

/// Widths that the cells need, at least `known`.
pub(super) fn widths<'a>(
    columns: &[Column],
    known: &[usize],
    rows: impl IntoIterator<Item = &'a Vec<String>>,
) -> Vec<usize> {
    let headings = columns.iter().map(|column| column.heading.len());
    let mut widths: Vec<_> =
        headings.enumerate().map(|(index, width)| width.max(known.get(index).copied().unwrap_or(0))).collect();
    for row in rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
    }
    widths
}

/// Widths with which a line fits into `limit`, as far as columns may be cut; 0 for a column that is left out, with its gap.
pub(super) fn fitted(columns: &[Column], widths: &[usize], limit: usize) -> Vec<usize> {
    let room = limit.saturating_sub(GAP.len() * columns.len().saturating_sub(1));
    let at = |unit: usize| -> Vec<usize> {
        let width = |(column, width): (&Column, &usize)| match column.share {
            0 => *width,
            share => (*width).min(unit * share),
        };
        columns.iter().zip(widths).map(width).collect()
    };
    let widest = widths.iter().copied().max().unwrap_or(0).max(1);
    let fits = |unit: &usize| at(*unit).iter().sum::<usize>() <= room;
    let unit = (1..=widest).rev().find(fits);
    let mut found = at(unit.unwrap_or(1));
    let says_nothing = |index: &usize| columns[*index].kept == Kept::End && found[*index] < MIN_END.min(widths[*index]);
    let is_crowded = unit.is_none()
        || columns.iter().zip(widths).zip(&found).any(|((column, width), found)| *found < column.legible.min(*width));
    let is_left_out = |index: &usize| is_crowded && columns[*index].left_out > 0 && widths[*index] > 0;
    let least = (0..columns.len()).filter(is_left_out).max_by_key(|index| columns[*index].left_out);
    if let Some(index) = least.or_else(|| (0..columns.len()).find(says_nothing)) {
        let mut others = widths.to_vec();
        others[index] = 0;
        return fitted(columns, &others, limit + GAP.len());
    }
    // What is left over is less than one more share of each column.
    let mut left = room.saturating_sub(found.iter().sum());
    while left > 0 && found.iter().zip(widths).any(|(found, width)| found < width) {
        for (found, width) in found.iter_mut().zip(widths) {
            let more = usize::from(*found < *width && left > 0);
            *found += more;
            left -= more;
        }
    }
    found
}

/// The headings and the rows, a line each; `limit` is the width of the terminal, if it is one. `paint` has the style of a cell
/// by its row and column.
pub(super) fn text(
    columns: &[Column],
    rows: &[Vec<String>],
    limit: Option<usize>,
    paint: impl Fn(usize, usize) -> Style,
) -> String {
    let mut widths = widths(columns, &[], rows);
    if let Some(limit) = limit {
        widths = fitted(columns, &widths, limit);
    }
    let headings: Vec<String> = columns.iter().map(|column| column.heading.to_owned()).collect();
    let of_headings: Vec<_> = columns.iter().map(Column::heading).collect();
    let mut text = line(&of_headings, &widths, &headings, limit, |_| Style::new());
    for (number, row) in rows.iter().enumerate() {
        text.push_str(&line(columns, &widths, row, limit, |column| paint(number, column)));
    }
    text
}

/// One line, without space at its end.
pub(super) fn line(
    columns: &[Column],
    widths: &[usize],
    cells: &[String],
    limit: Option<usize>,
    paint: impl Fn(usize) -> Style,
) -> String {
    let (mut line, mut used, mut owed) = (String::new(), 0, 0);
    for (index, ((column, width), cell)) in columns.iter().zip(widths).zip(cells).enumerate() {
        if *width == 0 && !column.heading.is_empty() {
            continue;
        }
        let start = used + owed;
        let width = limit.map_or(*width, |limit| (*width).min(limit.saturating_sub(start)));
        let cell = column.fit(cell, width);
        let length = cell.chars().count();
        let before = if column.is_number { width - length } else { 0 };
        if length > 0 {
            let style = paint(index);
            line.push_str(&" ".repeat(owed + before));
            line.push_str(&format!("{style}{cell}{style:#}"));
            (used, owed) = (start + before + length, width - length - before);
        } else {
            owed += width;
        }
        owed += GAP.len();
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use anstyle::{AnsiColor, Style};

    use super::{Column, fitted, text, widths};

    const COLUMNS: [Column; 4] =
        [Column::cut("NAME", 2), Column::cut_in_the_middle("ADDR", 2), Column::number("WEIGHT"), Column::text("STATE")];

    fn rows(rows: &[[&str; 4]]) -> Vec<Vec<String>> {
        rows.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    fn plain(rows: &[Vec<String>], limit: Option<usize>) -> String {
        text(&COLUMNS, rows, limit, |_, _| Style::new())
    }

    #[test]
    fn columns_are_as_wide_as_their_cells_and_numbers_end_at_one_place() {
        let rows = rows(&[["greeter", "h:1", "1", "ok"], ["x", "", "100", "-"]]);
        let expected = "\
NAME     ADDR  WEIGHT  STATE
greeter  h:1        1  ok
x                 100  -
";
        assert_eq!(plain(&rows, None), expected);
        assert_eq!(plain(&rows, Some(200)), expected);
        assert_eq!(plain(&[], Some(80)), "NAME  ADDR  WEIGHT  STATE\n");
    }

    #[test]
    fn a_table_that_is_too_wide_is_cut_and_never_wraps() {
        let rows =
            rows(&[["a-name-of-some-length", "[2001:db8::1234:5678]:10002", "1", "ok"], ["b", "h:1", "2", "no-lease"]]);
        let expected = "\
NAME          ADDR          WEIGHT  STATE
a-name-of-s…  [2001…:10002       1  ok
b             h:1                2  no-lease
";
        assert_eq!(plain(&rows, Some(44)), expected);
        for limit in 0..100 {
            for line in plain(&rows, Some(limit)).lines() {
                assert!(line.chars().count() <= limit, "{limit}: {line}");
            }
        }
    }

    #[test]
    fn what_tells_cells_apart_stays() {
        let cut = |column: Column| column.fit("0123456789", 6).into_owned();
        assert_eq!(cut(Column::cut("A", 1)), "01234…");
        assert_eq!(cut(Column::cut_in_the_middle("A", 1)), "01…789");
        assert_eq!(cut(Column::cut_at_the_start("A", 1)), "…56789");
        assert_eq!(Column::cut_at_the_start("A", 1).fit("0123", 0), "");
    }

    #[test]
    fn columns_shrink_by_their_shares() {
        let columns = [Column::cut("A", 2), Column::cut("B", 1), Column::text("C")];
        assert_eq!(fitted(&columns, &[40, 16, 10], 80), [40, 16, 10]);
        assert_eq!(fitted(&columns, &[40, 16, 10], 60), [31, 15, 10]);
        assert_eq!(fitted(&columns, &[4, 16, 10], 30), [4, 12, 10]);
        assert_eq!(fitted(&columns, &[4, 16, 10], 3), [2, 1, 10]);
        assert_eq!(widths(&columns, &[7], [&vec!["aa".to_owned(), "b".to_owned()]]), [7, 1, 1]);
    }

    #[test]
    fn a_column_of_which_nothing_remains_is_left_out() {
        let columns = [Column::cut("NAME", 3), Column::cut_at_the_start("LEASE", 1), Column::text("C")];
        assert_eq!(fitted(&columns, &[20, 16, 5], 45), [20, 16, 5]);
        assert_eq!(fitted(&columns, &[20, 16, 5], 35), [19, 7, 5]);
        assert_eq!(fitted(&columns, &[20, 16, 5], 28), [20, 0, 5]);
        assert_eq!(fitted(&columns, &[20, 16, 5], 17), [10, 0, 5]);
        let rows = [vec!["a-name".to_owned(), "694d93a3f8a1b20c".to_owned(), "ok".to_owned()]];
        assert_eq!(text(&columns, &rows, Some(12), |_, _| Style::new()), "NAME    C\na-name  ok\n");
    }

    #[test]
    fn columns_are_left_out_until_the_others_say_something() {
        let columns = [
            Column::cut("NAME", 1).legible(8),
            Column::text("SINCE").left_out(1),
            Column::text("STATE"),
            Column::text("LEASE").left_out(2),
        ];
        let widths = [30, 20, 5, 16];
        assert_eq!(fitted(&columns, &widths, 100), [30, 20, 5, 16]);
        assert_eq!(fitted(&columns, &widths, 60), [13, 20, 5, 16]);
        assert_eq!(fitted(&columns, &widths, 54), [25, 20, 5, 0]);
        assert_eq!(fitted(&columns, &widths, 36), [29, 0, 5, 0]);
        assert_eq!(fitted(&columns, &widths, 10), [3, 0, 5, 0], "nothing more can be left out");
    }

    #[test]
    fn styles_take_no_room() {
        let rows = rows(&[["greeter", "h:1", "1", "no-lease"]]);
        let red = Style::new().fg_color(Some(AnsiColor::Red.into()));
        let painted = text(&COLUMNS, &rows, Some(31), |_, column| if column == 3 { red } else { Style::new() });
        assert!(painted.ends_with("\u{1b}[31mno-lease\u{1b}[0m\n"), "{painted:?}");
        let bare = painted.replace("\u{1b}[31m", "").replace("\u{1b}[0m", "");
        assert_eq!(bare, plain(&rows, Some(31)));
    }
}
