//! What all views draw with: lines of styled pieces, bars, sparklines, graphs, scrolling lists.

use ratatui::{buffer::Buffer, layout::Rect};

use crate::monitor::{
    app::List,
    text,
    theme::{Role, Theme},
};

/// A canvas: the cells of a frame and how to draw on them.
#[derive(Debug)]
pub struct Canvas<'b> {
    /// The cells.
    pub buffer: &'b mut Buffer,
    /// How it looks.
    pub theme: Theme,
    /// Rows of lists and tables formatted so far, for the test that only visible ones are.
    pub formatted: usize,
}

/// Text and what it means.
pub type Piece<'t> = (std::borrow::Cow<'t, str>, Role);

/// A [`Piece`].
pub fn piece<'t>(text: impl Into<std::borrow::Cow<'t, str>>, role: Role) -> Piece<'t> {
    (text.into(), role)
}

/// Columns that `pieces` take.
pub fn pieces_width(pieces: &[Piece<'_>]) -> u16 {
    pieces
        .iter()
        .map(|(text, _)| text::width(text) as u16)
        .sum()
}

impl Canvas<'_> {
    /// Writes `text` at `x`, `y`, cut to `columns`; returns the columns used.
    pub fn text(&mut self, x: u16, y: u16, columns: u16, text: &str, role: Role) -> u16 {
        let area = self.buffer.area;
        if y >= area.bottom() || x >= area.right() {
            return 0;
        }
        let columns = columns.min(area.right() - x);
        let fitted = text::fit(text, usize::from(columns));
        let style = self.theme.style(role);
        let (end, _) = self
            .buffer
            .set_stringn(x, y, &*fitted, usize::from(columns), style);
        end - x
    }

    /// Writes `pieces` one after the other in the first line of `area`.
    pub fn line(&mut self, area: Rect, pieces: &[Piece<'_>]) -> u16 {
        let mut used = 0;
        for (text, role) in pieces {
            if area.height == 0 || used >= area.width {
                break;
            }
            used += self.text(area.x + used, area.y, area.width - used, text, *role);
        }
        used
    }

    /// Writes `pieces` at the right end of the first line of `area`; returns the columns used.
    pub fn line_right(&mut self, area: Rect, pieces: &[Piece<'_>]) -> u16 {
        let used = pieces_width(pieces).min(area.width);
        self.line(
            Rect {
                x: area.right() - used,
                width: used,
                ..area
            },
            pieces,
        );
        used
    }

    /// Gives a whole area the look of `role`, its text unchanged.
    pub fn wash(&mut self, area: Rect, role: Role) {
        let style = self.theme.style(role);
        self.buffer
            .set_style(area.intersection(self.buffer.area), style);
    }

    /// A rule over the width of `area`, with a title in it.
    pub fn rule(&mut self, area: Rect, title: &str) {
        if area.height == 0 {
            return;
        }
        let rule = self.theme.glyphs().rule;
        for x in area.x..area.right() {
            self.text(x, area.y, 1, rule, Role::Track);
        }
        if !title.is_empty() && area.width > 4 {
            self.text(
                area.x + 1,
                area.y,
                area.width - 2,
                &format!(" {title} "),
                Role::Dim,
            );
        }
    }

    /// A bar of `columns`, filled to `share` (0 to 1).
    pub fn bar(&self, columns: u16, share: f64, role: Role) -> [Piece<'static>; 2] {
        let glyphs = self.theme.glyphs();
        let share = if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            0.0
        };
        let mut full = (f64::from(columns) * share).round() as usize;
        // Something is never drawn as nothing, nor almost all as all.
        if share > 0.0 {
            full = full.max(1);
        }
        if share < 1.0 {
            full = full.min(usize::from(columns).saturating_sub(1));
        }
        let rest = usize::from(columns).saturating_sub(full);
        [
            piece(glyphs.full.repeat(full), role),
            piece(glyphs.empty.repeat(rest), Role::Track),
        ]
    }

    /// A sparkline of `values`, scaled from zero to their largest, or to `top` if that is larger. It
    /// never fills its line, so that sparklines above each other stay apart.
    pub fn spark(&self, values: impl Iterator<Item = f64>, top: f64) -> String {
        let values: Vec<f64> = values.collect();
        let largest = values
            .iter()
            .copied()
            .filter(|v| v.is_finite())
            .fold(top, f64::max);
        values
            .iter()
            .map(|value| self.level(*value, largest))
            .collect()
    }

    fn level(&self, value: f64, largest: f64) -> &'static str {
        if !value.is_finite() {
            return " ";
        }
        let levels = self.theme.glyphs().levels;
        if largest <= 0.0 || value <= 0.0 {
            return levels[0];
        }
        levels[((value / largest * 7.0).ceil() as usize).clamp(1, 7) - 1]
    }

    /// A graph over all of `area`: each column one value, each line eight levels.
    pub fn graph(&mut self, area: Rect, values: impl Iterator<Item = f64>, top: f64, role: Role) {
        let values: Vec<f64> = values.collect();
        let largest = values
            .iter()
            .copied()
            .filter(|v| v.is_finite())
            .fold(top, f64::max);
        let levels = self.theme.glyphs().levels;
        for (x, value) in values.iter().enumerate().take(usize::from(area.width)) {
            if !value.is_finite() {
                continue;
            }
            let share = if largest > 0.0 {
                (value / largest).clamp(0.0, 1.0)
            } else {
                0.0
            };
            let height = ((share * f64::from(area.height) * 8.0).ceil() as usize).max(1);
            for line in 0..area.height {
                let level = height.saturating_sub(usize::from(line) * 8).min(8);
                if level > 0 {
                    self.text(
                        area.x + x as u16,
                        area.bottom() - 1 - line,
                        1,
                        levels[level - 1],
                        role,
                    );
                }
            }
        }
    }

    /// Scrolls `list` of `len` rows in `area` so that its cursor is visible; the rows to draw.
    pub fn visible(&mut self, list: &List, len: usize, area: Rect) -> std::ops::Range<usize> {
        let page = usize::from(area.height);
        list.page.set(page);
        list.top.set(area.y);
        let cursor = list.cursor.min(len.saturating_sub(1));
        let offset = list.offset.get().min(len.saturating_sub(page));
        let offset = if cursor < offset {
            cursor
        } else if page > 0 && cursor >= offset + page {
            cursor + 1 - page
        } else {
            offset
        };
        list.offset.set(offset);
        let rows = offset..(offset + page).min(len);
        self.formatted += rows.len();
        rows
    }
}
