//! Inputs as the runner would make them, without a clock.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent};
use tanako_proto::fleet::v1::{FleetDelta, FleetStatus, FleetUpdate, fleet_update::Update};
use tanakoctl::monitor::app::{Action, App, Clock, Input};

use super::NOW;

pub fn at(ms: u64) -> Clock {
    Clock {
        mono: Duration::from_millis(ms),
        unix_ms: NOW + ms as i64,
        offset_s: 0,
    }
}

pub fn app(status: FleetStatus, readonly: bool) -> App {
    let mut app = App::new("test", readonly, "session", (80, 24));
    app.update(at(0), snapshot(status));
    app
}

pub fn snapshot(status: FleetStatus) -> Input {
    Input::Update(Box::new(FleetUpdate {
        update: Some(Update::Snapshot(status)),
    }))
}

pub fn delta(delta: FleetDelta) -> Input {
    Input::Update(Box::new(FleetUpdate {
        update: Some(Update::Delta(delta)),
    }))
}

pub fn key(code: KeyCode) -> Input {
    Input::Key(KeyEvent::from(code))
}

pub fn press(app: &mut App, keys: &str) -> Vec<Action> {
    let mut actions = Vec::new();
    for c in keys.chars() {
        let code = match c {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            '\t' => KeyCode::Tab,
            c => KeyCode::Char(c),
        };
        actions.extend(app.update(at(0), key(code)));
    }
    actions
}
