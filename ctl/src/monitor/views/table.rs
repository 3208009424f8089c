//! Tables that drop their least important columns where there is no room, and format only the rows
//! that are on the screen.

use std::borrow::Cow;

use ratatui::layout::Rect;

use super::paint::{Canvas, Piece};
use crate::monitor::{app::List, text, theme::Role};

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column<K> {
    /// What its cells are made for.
    pub key: K,
    /// Its heading.
    pub title: &'static str,
    /// Columns of the screen it needs.
    pub width: u16,
    /// Columns it may take when there is room.
    pub width_max: u16,
    /// Numbers stand at the right.
    pub right: bool,
    /// 0 is always shown; the larger, the sooner it goes.
    pub priority: u8,
}

/// A column of fixed width.
pub const fn column<K>(
    key: K,
    title: &'static str,
    width: u16,
    right: bool,
    priority: u8,
) -> Column<K> {
    Column {
        key,
        title,
        width,
        width_max: width,
        right,
        priority,
    }
}

/// Which of `columns` fit into `width`, in their order, and how wide each is.
pub fn layout<K: Copy>(columns: &[Column<K>], width: u16) -> Vec<(Column<K>, u16)> {
    let mut by_priority: Vec<usize> = (0..columns.len()).collect();
    by_priority.sort_by_key(|at| columns[*at].priority);
    let mut left = width;
    let mut kept = vec![false; columns.len()];
    for at in by_priority {
        let need = columns[at].width + u16::from(kept.contains(&true));
        // What matters less is not shown in place of what matters more.
        if need > left {
            if columns[at].priority > 0 {
                break;
            }
            continue;
        }
        kept[at] = true;
        left -= need;
    }
    let mut widths: Vec<u16> = columns.iter().map(|column| column.width).collect();
    for (at, column) in columns.iter().enumerate().filter(|(at, _)| kept[*at]) {
        let more = column.width_max.saturating_sub(column.width).min(left);
        widths[at] += more;
        left -= more;
    }
    let shown = columns
        .iter()
        .zip(widths)
        .zip(kept)
        .filter(|(_, kept)| *kept);
    shown.map(|((column, width), _)| (*column, width)).collect()
}

/// How one row stands out.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowLook {
    /// The operator marked it.
    pub marked: bool,
    /// Its data is old.
    pub faded: bool,
}

/// What a table is filled from.
pub trait Source<K> {
    /// A heading; may add the sort arrow to `title`.
    fn heading(&self, _key: K, title: &'static str) -> Cow<'static, str> {
        title.into()
    }

    /// How `row` stands out.
    fn look(&self, _row: usize) -> RowLook {
        RowLook::default()
    }

    /// The cell of `row` in the column `key`, which is `width` wide.
    fn cell(&self, canvas: &Canvas<'_>, row: usize, key: K, width: u16) -> Vec<Piece<'_>>;
}

/// Draws a table: headings, and the rows that fit.
pub fn table<K: Copy>(
    canvas: &mut Canvas<'_>,
    area: Rect,
    columns: &[Column<K>],
    list: &List,
    len: usize,
    source: &impl Source<K>,
) {
    if area.height == 0 || area.width < 3 {
        return;
    }
    let columns = layout(columns, area.width - 3);
    let mut x = area.x + 2;
    for (column, width) in &columns {
        let title = source.heading(column.key, column.title);
        let used = (text::width(&title) as u16).min(*width);
        let at = if column.right { x + width - used } else { x };
        canvas.text(at, area.y, used, &title, Role::Dim);
        x += width + 1;
    }
    let body = Rect {
        y: area.y + 1,
        height: area.height - 1,
        ..area
    };
    let rows = canvas.visible(list, len, body);
    for (line, row) in rows.enumerate() {
        let y = body.y + line as u16;
        let RowLook { marked, faded } = source.look(row);
        let selected = row == list.cursor;
        let glyphs = canvas.theme.glyphs();
        canvas.text(
            area.x,
            y,
            1,
            if selected { glyphs.cursor } else { " " },
            Role::Accent,
        );
        canvas.text(
            area.x + 1,
            y,
            1,
            if marked { glyphs.mark } else { " " },
            Role::Mark,
        );
        let mut x = area.x + 2;
        for (column, width) in &columns {
            let pieces = source.cell(canvas, row, column.key, *width);
            let place = Rect {
                x,
                y,
                width: *width,
                height: 1,
            };
            if column.right {
                canvas.line_right(place, &pieces)
            } else {
                canvas.line(place, &pieces)
            };
            x += width + 1;
        }
        let whole = Rect {
            y,
            height: 1,
            ..area
        };
        if faded {
            canvas.wash(whole, Role::Dim);
        }
        if selected {
            canvas.wash(whole, Role::Selected);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_important_column_goes_first() {
        let columns = [
            Column {
                width_max: 20,
                ..column('a', "A", 5, false, 0)
            },
            column('b', "B", 5, true, 2),
            column('c', "C", 5, true, 1),
        ];
        let shown = |width| {
            layout(&columns, width)
                .iter()
                .map(|(c, w)| (c.key, *w))
                .collect::<Vec<_>>()
        };
        assert_eq!(shown(17), [('a', 5), ('b', 5), ('c', 5)]);
        assert_eq!(shown(16), [('a', 10), ('c', 5)]);
        assert_eq!(shown(8), [('a', 8)]);
        assert_eq!(shown(50), [('a', 20), ('b', 5), ('c', 5)]);
        assert!(shown(3).is_empty());
    }
}
