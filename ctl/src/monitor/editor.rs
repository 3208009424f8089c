//! One line of typed text.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::text::clean;

/// Characters one line takes.
const CHARS_MAX: usize = 500;

/// A line being typed, with the cursor between its characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Editor {
    chars: Vec<char>,
    cursor: usize,
}

impl Editor {
    /// With `text` already typed and the cursor behind it.
    pub fn with(text: &str) -> Self {
        let chars: Vec<char> = text.chars().take(CHARS_MAX).collect();
        Self {
            cursor: chars.len(),
            chars,
        }
    }

    /// What is typed.
    pub fn text(&self) -> String {
        self.chars.iter().collect()
    }

    /// What is typed before and after the cursor.
    pub fn halves(&self) -> (String, String) {
        (
            self.chars[..self.cursor].iter().collect(),
            self.chars[self.cursor..].iter().collect(),
        )
    }

    /// Whether nothing is typed.
    pub fn is_empty(&self) -> bool {
        self.chars.is_empty()
    }

    /// Takes a key; false when it means nothing here.
    pub fn key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('a') if control => self.cursor = 0,
            KeyCode::Char('e') if control => self.cursor = self.chars.len(),
            KeyCode::Char('u') if control => {
                self.chars.drain(..self.cursor);
                self.cursor = 0;
            }
            KeyCode::Char('k') if control => self.chars.truncate(self.cursor),
            KeyCode::Char('w') if control => {
                let space = |c: &char| !c.is_whitespace();
                let head = &self.chars[..self.cursor];
                let word_end = head.iter().rposition(space).map_or(0, |at| at + 1);
                let start = head[..word_end]
                    .iter()
                    .rposition(|c| c.is_whitespace())
                    .map_or(0, |at| at + 1);
                self.chars.drain(start..self.cursor);
                self.cursor = start;
            }
            KeyCode::Char(_) if control || key.modifiers.contains(KeyModifiers::ALT) => {
                return false;
            }
            KeyCode::Char(c) => self.insert(c.encode_utf8(&mut [0; 4])),
            KeyCode::Backspace if self.cursor > 0 => {
                self.cursor -= 1;
                self.chars.remove(self.cursor);
            }
            KeyCode::Delete if self.cursor < self.chars.len() => {
                self.chars.remove(self.cursor);
            }
            KeyCode::Left => self.cursor = self.cursor.saturating_sub(1),
            KeyCode::Right => self.cursor = (self.cursor + 1).min(self.chars.len()),
            KeyCode::Home => self.cursor = 0,
            KeyCode::End => self.cursor = self.chars.len(),
            _ => return false,
        }
        true
    }

    /// Puts `text` in at the cursor, cleaned.
    pub fn insert(&mut self, text: &str) {
        for c in clean(text, CHARS_MAX).chars() {
            if self.chars.len() >= CHARS_MAX {
                return;
            }
            self.chars.insert(self.cursor, c);
            self.cursor += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_pasted_text_are_edited() {
        let mut editor = Editor::with("restart tanako/0");
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert!(editor.key(control('w')));
        assert_eq!(editor.text(), "restart ");
        editor.insert("db\u{1b}[31m\n");
        assert_eq!(editor.text(), "restart db ");
        editor.key(control('a'));
        editor.key(KeyCode::Delete.into());
        assert_eq!(editor.halves(), (String::new(), "estart db ".into()));
        assert!(!editor.key(KeyCode::F(1).into()));
    }
}
