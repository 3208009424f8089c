//! Columns of text: one row per thing, widths as needed, no trailing blanks.

use crate::paint::Paint;

/// One cell: its text, and the state word that colours it.
#[derive(Debug, Clone, Default)]
pub struct Cell {
    text: String,
    state: Option<String>,
    right: bool,
}

impl Cell {
    /// Plain text.
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// A number, to the right.
    pub fn number(text: impl ToString) -> Self {
        Self {
            text: text.to_string(),
            right: true,
            ..Self::default()
        }
    }

    /// Coloured as the word itself says.
    pub fn state(word: impl Into<String>) -> Self {
        let word = word.into();
        Self {
            state: Some(word.clone()),
            text: word,
            right: false,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

/// A table under construction.
#[derive(Debug, Default)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.head.len());
        self.rows.push(cells);
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, one line a row, the headings first.
    pub fn render(&self, paint: Paint) -> String {
        let mut widths: Vec<usize> = self.head.iter().map(|head| head.len()).collect();
        let mut rights = vec![false; self.head.len()];
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                widths[column] = widths[column].max(cell.text.chars().count());
                rights[column] |= cell.right;
            }
        }
        let last = self.head.len().saturating_sub(1);
        let mut text = String::new();
        let mut line = |cells: &mut dyn Iterator<Item = (String, &str)>| {
            for (column, (painted, raw)) in cells.enumerate() {
                let pad = widths[column] - raw.chars().count();
                let right = rights[column];
                if column > 0 {
                    text.push_str("  ");
                }
                if right {
                    text.extend(std::iter::repeat_n(' ', pad));
                }
                text.push_str(&painted);
                if !right && column < last {
                    text.extend(std::iter::repeat_n(' ', pad));
                }
            }
            let trimmed = text.trim_end_matches(' ').len();
            text.truncate(trimmed);
            text.push('\n');
        };
        line(&mut self.head.iter().map(|head| (paint.strong(head), *head)));
        for row in &self.rows {
            line(&mut row.iter().map(|cell| {
                let painted = match &cell.state {
                    Some(state) => paint.state(state, &cell.text),
                    None => cell.text.clone(),
                };
                (painted, cell.text.as_str())
            }));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let mut table = Table::new(&["NAME", "CPU", "AGE"]);
        table.row(vec!["a".into(), Cell::number("10.5"), "".into()]);
        table.row(vec!["tanako/10".into(), Cell::number(1), "3s".into()]);
        assert_eq!(
            table.render(Paint::plain()),
            "NAME        CPU  AGE\na          10.5\ntanako/10     1  3s\n"
        );
    }
}
