//! The question before anything is changed. Cancel has the focus; what cannot be undone lightly has
//! to be typed.

use crossterm::event::{KeyCode, KeyEvent};
use tanako_proto::fleet::v1::{PlanReply, Problem};

use super::{editor::Editor, write::Write};

/// What the fleet says it would do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// Asked, no answer yet.
    Waiting,
    /// What would be done, and its cost.
    Ready(Box<PlanReply>),
    /// It would be refused.
    Refused(Box<Problem>),
}

/// Which button Enter presses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Button {
    /// Change nothing.
    #[default]
    Cancel,
    /// Do it.
    Confirm,
}

/// What a key did to the dialog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It stays open.
    None,
    /// It closes, nothing happens.
    Cancel,
    /// It closes, the change is submitted.
    Confirm,
}

/// A change waiting for the operator's consent.
#[derive(Clone, Debug, PartialEq)]
pub struct Dialog {
    /// Pairs the plan that arrives with the dialog that asked for it.
    pub ticket: u64,
    /// The change.
    pub write: Write,
    /// What it would cost.
    pub plan: Plan,
    /// What has to be typed, for the dearest changes.
    pub must_type: Option<String>,
    /// What was typed.
    pub typed: Editor,
    /// The focused button.
    pub button: Button,
}

impl Dialog {
    /// Asks about `write`.
    pub fn new(ticket: u64, write: Write, must_type: Option<String>) -> Self {
        Self {
            ticket,
            write,
            plan: Plan::Waiting,
            must_type,
            typed: Editor::default(),
            button: Button::Cancel,
        }
    }

    /// Why it cannot be confirmed yet.
    pub fn obstacle(&self) -> Option<String> {
        match (&self.plan, &self.must_type) {
            (Plan::Waiting, _) => Some("the plan is being made".into()),
            (Plan::Refused(_), _) => Some("the fleet refuses it".into()),
            (Plan::Ready(_), Some(name)) if self.typed.text() != *name => {
                Some(format!("type {name} to confirm"))
            }
            (Plan::Ready(_), _) => None,
        }
    }

    /// Takes a key.
    pub fn key(&mut self, key: KeyEvent) -> Answer {
        match key.code {
            KeyCode::Esc => return Answer::Cancel,
            KeyCode::Enter => match self.button {
                Button::Cancel => return Answer::Cancel,
                Button::Confirm if self.obstacle().is_none() => return Answer::Confirm,
                Button::Confirm => {}
            },
            KeyCode::Tab | KeyCode::BackTab | KeyCode::Up | KeyCode::Down => self.turn(),
            KeyCode::Left | KeyCode::Right if self.must_type.is_none() => self.turn(),
            KeyCode::Char('h' | 'l') if self.must_type.is_none() => self.turn(),
            _ if self.must_type.is_some() => {
                self.typed.key(key);
            }
            _ => {}
        }
        Answer::None
    }

    fn turn(&mut self) {
        self.button = match self.button {
            Button::Cancel => Button::Confirm,
            Button::Confirm => Button::Cancel,
        };
    }
}
