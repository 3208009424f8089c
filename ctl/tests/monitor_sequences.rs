//! Generated sequences of keys, updates, and stale or repeated answers: whatever happens, the state
//! stays sound.

mod monitor_fixture;

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use monitor_fixture::{
    bot, events,
    inputs::{app, at, delta, press, snapshot},
    many, plan, restart,
};
use proptest::prelude::*;
use ratatui::{buffer::Buffer, layout::Rect};
use tanako_proto::fleet::v1::{FleetDelta, LogLine};
use tanakoctl::monitor::{
    app::{Action, App, Input, View},
    dialog::{Button, Plan},
    theme::{Depth, Theme},
    views,
};

/// What may happen, stale and repeated answers included.
#[derive(Clone, Debug)]
enum Step {
    Key(KeyCode, bool),
    Paste(String),
    Click(u16, u16),
    Snapshot(u32),
    Delta(u64, Vec<u32>, Vec<u32>),
    Lost,
    Planned(u64, bool),
    Submitted,
    Log(u64),
    LogEnded(u64),
    Located(u64),
    Draw(u16, u16),
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let keys = prop_oneof![
        6 => proptest::sample::select("jkgGsSf/:dlhHeiouFpMrxab?nNtw& qR0123aeiltz!".chars().collect::<Vec<_>>()).prop_map(KeyCode::Char),
        3 => proptest::sample::select(vec![
            KeyCode::Enter, KeyCode::Esc, KeyCode::Tab, KeyCode::BackTab, KeyCode::Backspace, KeyCode::Up,
            KeyCode::Down, KeyCode::PageDown, KeyCode::PageUp, KeyCode::Home, KeyCode::End, KeyCode::Left,
            KeyCode::Right, KeyCode::Delete,
        ]),
    ];
    let typed = proptest::sample::select(vec![
        "shop",
        "guild 5",
        "stop all",
        "logs tanako/0",
        "[",
        "host a",
        "describe a",
        "backup",
    ]);
    let step = prop_oneof![
        12 => (keys, proptest::bool::weighted(0.1)).prop_map(|(code, control)| Step::Key(code, control)),
        2 => typed.prop_map(|text| Step::Paste(text.into())),
        1 => (0u16..90, 0u16..30).prop_map(|(x, y)| Step::Click(x, y)),
        1 => (0u32..20).prop_map(Step::Snapshot),
        3 => (90u64..140, proptest::collection::vec(0u32..24, 0..4), proptest::collection::vec(0u32..24, 0..4))
            .prop_map(|(revision, changed, removed)| Step::Delta(revision, changed, removed)),
        1 => Just(Step::Lost),
        2 => (0u64..12, any::<bool>()).prop_map(|(ticket, good)| Step::Planned(ticket, good)),
        1 => Just(Step::Submitted),
        2 => (0u64..12).prop_map(Step::Log),
        1 => (0u64..12).prop_map(Step::LogEnded),
        1 => (0u64..6).prop_map(Step::Located),
        3 => (1u16..130, 1u16..45).prop_map(|(columns, lines)| Step::Draw(columns, lines)),
        1 => Just(Step::Tick),
    ];
    proptest::collection::vec(step, 0..60)
}

fn input(step: Step, submitted: &mut Vec<tanakoctl::monitor::write::Write>) -> Option<Input> {
    Some(match step {
        Step::Key(code, control) => {
            let modifiers = if control {
                KeyModifiers::CONTROL
            } else {
                KeyModifiers::NONE
            };
            Input::Key(KeyEvent::new(code, modifiers))
        }
        Step::Paste(text) => Input::Paste(text),
        Step::Click(column, row) => {
            let kind = MouseEventKind::Down(MouseButton::Left);
            Input::Mouse(MouseEvent {
                kind,
                column,
                row,
                modifiers: KeyModifiers::NONE,
            })
        }
        Step::Snapshot(n) => snapshot(many(n)),
        Step::Delta(revision, changed, removed) => delta(FleetDelta {
            revision,
            processes: changed
                .into_iter()
                .map(|i| bot(i, if i % 3 == 0 { "failed" } else { "ready" }))
                .collect(),
            removed_processes: removed.into_iter().map(|i| format!("tanako/{i}")).collect(),
            events: events(),
            ..FleetDelta::default()
        }),
        Step::Lost => Input::Lost {
            why: Box::default(),
            retry_in: Duration::from_secs(1),
        },
        Step::Planned(ticket, good) => {
            let reply = if good {
                Ok(Box::new(plan(&["tanako/0".into()], "restart")))
            } else {
                Err(Box::default())
            };
            Input::Planned { ticket, reply }
        }
        Step::Submitted => {
            let write = Box::new(submitted.pop()?);
            Input::Submitted {
                write,
                reply: Ok(Box::new(restart("running"))),
            }
        }
        Step::Log(ticket) => {
            let line = LogLine {
                line: "a line".into(),
                ..LogLine::default()
            };
            Input::Log {
                ticket,
                lines: vec![line; 30],
            }
        }
        Step::LogEnded(ticket) => Input::LogEnded {
            ticket,
            why: "over".into(),
        },
        Step::Located(guild) => Input::Located {
            guild,
            reply: Ok(Box::new(monitor_fixture::location(guild))),
        },
        Step::Draw(..) => return None,
        Step::Tick => Input::Tick,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_state_stays_sound(steps in steps(), readonly: bool) {
        let mut app = App::new("test", readonly, "session", (80, 24));
        let mut submitted = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            let clock = at(n as u64 * 700);
            if let Step::Draw(columns, lines) = step {
                let mut buffer = Buffer::empty(Rect::new(0, 0, columns, lines));
                views::draw(&app, Theme { depth: Depth::Sixteen, ascii: n % 2 == 0 }, clock, &mut buffer);
                continue;
            }
            let before = app.dialog.clone();
            let Some(input) = input(step, &mut submitted) else { continue };
            let entered = matches!(&input, Input::Key(key) if key.code == KeyCode::Enter);
            let actions = app.update(clock, input);

            prop_assert!(!app.screens.is_empty() && app.screens[0].view == View::Fleet);
            let (cursor, len) = (app.screen().list.cursor, app.len());
            prop_assert!(cursor < len.max(1), "row {} of {}", cursor, len);
            if matches!(app.screen().view, View::Fleet | View::Host(_)) {
                prop_assert_eq!(app.selected_process().is_some(), len > 0);
            }
            prop_assert!(app.marked.iter().all(|name| app.shown().process(name).is_some()));
            let mut names: Vec<_> = (0..app.rows.len()).filter_map(|row| app.rows.at(row)).collect();
            names.sort_unstable();
            names.dedup();
            prop_assert_eq!(names.len(), app.rows.len(), "a row twice");
            if before.is_none() && let Some(dialog) = &app.dialog {
                prop_assert_eq!(dialog.button, Button::Cancel);
                prop_assert_eq!(&dialog.plan, &Plan::Waiting);
            }
            prop_assert!(!readonly || app.dialog.is_none());
            for action in actions {
                if let Action::Submit(write) = action {
                    // Only Enter on a focused, unobstructed confirmation changes anything.
                    let dialog = before.as_ref();
                    prop_assert!(entered && !readonly);
                    prop_assert!(dialog.is_some_and(|dialog| dialog.button == Button::Confirm && dialog.obstacle().is_none()));
                    submitted.push(*write);
                }
            }
        }
    }

    /// Rows kept up to date by deltas are those that a fresh start would show.
    #[test]
    fn rows_kept_and_rows_made_anew_agree(
        changes in proptest::collection::vec((proptest::collection::vec(0u32..30, 0..5), proptest::collection::vec(0u32..30, 0..3)), 1..12),
        sorts in 0usize..11,
        filter in proptest::sample::select(vec!["", "1", "!1", "failed", "!failed"]),
    ) {
        let mut app = app(many(12), false);
        press(&mut app, &"s".repeat(sorts));
        press(&mut app, &format!(":filter {filter}\n"));
        for (n, (changed, removed)) in changes.into_iter().enumerate() {
            let step = Step::Delta(101 + n as u64, changed, removed);
            app.update(at(0), input(step, &mut Vec::new()).expect("an input"));
            let mut fresh = app.rows.clone();
            fresh.query_mut();
            fresh.refresh(&app.model, &[]);
            let names = |rows: &tanakoctl::monitor::rows::Rows| -> Vec<String> {
                (0..rows.len()).filter_map(|row| rows.process(&app.model, row)).map(|p| p.name.clone()).collect()
            };
            prop_assert_eq!(names(&app.rows), names(&fresh));
        }
    }
}
