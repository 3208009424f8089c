//! What the operator sees: every view at the three sizes, and what a drawing costs.

mod monitor_fixture;

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent};
use monitor_fixture::{NOW, bot, events, host, location, many, plan, restart, status};
use ratatui::{buffer::Buffer, layout::Rect};
use tanako_proto::fleet::v1::{
    FleetStatus, FleetUpdate, HistoryReply, LogLine, Problem, Series, fleet_update::Update,
};
use tanakoctl::monitor::{
    app::{Action, App, Clock, Input, View},
    theme::{Depth, Theme},
    views,
};

const SIZES: [(u16, u16); 3] = [(80, 24), (120, 40), (40, 10)];
const COLOURS: Theme = Theme {
    depth: Depth::Palette,
    ascii: false,
};

fn at(seconds: u64) -> Clock {
    let mono = Duration::from_secs(seconds);
    Clock {
        mono,
        unix_ms: NOW + mono.as_millis() as i64,
        offset_s: 0,
    }
}

/// An app that was told `status`, with the past filled in.
fn app(status: FleetStatus) -> App {
    let mut app = App::new("prod-eu", false, "test", (80, 24));
    feed(&mut app, status);
    app.update(at(0), Input::Events(events()));
    app
}

fn feed(app: &mut App, status: FleetStatus) {
    let update = FleetUpdate {
        update: Some(Update::Snapshot(status)),
    };
    app.update(at(0), Input::Update(Box::new(update)));
}

/// Presses keys, answering what the app asks for as an agent would.
fn press(app: &mut App, keys: &str) {
    for c in keys.chars() {
        let code = match c {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            '\t' => KeyCode::Tab,
            c => KeyCode::Char(c),
        };
        // Paging depends on the drawn height, as it does on a terminal.
        render(app, COLOURS, (80, 24));
        let actions = app.update(at(0), Input::Key(KeyEvent::from(code)));
        for action in actions {
            answer(app, action);
        }
    }
}

fn answer(app: &mut App, action: Action) {
    let input = match action {
        Action::Plan { ticket, write } => {
            let reply = Ok(Box::new(plan(write.targets(), write.verb().kind())));
            Input::Planned { ticket, reply }
        }
        Action::Locate(guild) => Input::Located {
            guild,
            reply: Ok(Box::new(location(guild))),
        },
        Action::History { target, metrics } => {
            let series = metrics.into_iter().map(|metric| Series {
                start: NOW - 120_000,
                step_ms: 1000,
                values: (0..120u32)
                    .map(|i| f64::from(i % 40) + f64::from(i % 7) * 2.0)
                    .collect(),
                metric,
            });
            Input::History {
                target,
                reply: HistoryReply {
                    series: series.collect(),
                },
            }
        }
        Action::Follow { ticket, targets } => {
            let line = |i: i64| LogLine {
                process: targets[i as usize % targets.len()].clone(),
                at: NOW - 60_000 + i * 1000,
                line: match i % 9 {
                    3 => format!(
                        "\u{1b}[33mWARN\u{1b}[0m gateway: slow heartbeat, {} ms \u{1b}]0;owned\u{7}",
                        900 + i
                    ),
                    5 => format!("INFO 日本語 guild {i} joined 👩‍💻"),
                    _ => format!("INFO gateway: event {i} handled"),
                },
                stream: if i % 9 == 3 { "stderr" } else { "stdout" }.into(),
                truncated: false,
                host: "a".into(),
            };
            Input::Log {
                ticket,
                lines: (0..60).map(line).collect(),
            }
        }
        _ => return,
    };
    for action in app.update(at(0), input) {
        answer(app, action);
    }
}

fn render(app: &App, theme: Theme, size: (u16, u16)) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, size.0, size.1));
    views::draw(app, theme, at(0), &mut buffer);
    buffer
}

fn text_of(buffer: &Buffer) -> String {
    let mut text = String::new();
    for y in 0..buffer.area.height {
        let mut line = String::new();
        let mut skip = 0;
        for x in 0..buffer.area.width {
            let symbol = buffer[(x, y)].symbol();
            // The cell after a wide character belongs to it.
            if skip == 0 {
                line.push_str(symbol);
                skip = tanakoctl::monitor::text::width(symbol).max(1);
            }
            skip -= 1;
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn snapshots(name: &str, app: &App) {
    for (columns, lines) in SIZES {
        let text = text_of(&render(app, COLOURS, (columns, lines)));
        insta::assert_snapshot!(format!("{name}_{columns}x{lines}"), text);
    }
}

#[test]
fn fleet() {
    let mut app = app(status());
    press(&mut app, "jj jS");
    snapshots("fleet", &app);
    for (name, theme) in [
        (
            "ascii",
            Theme {
                depth: Depth::Palette,
                ascii: true,
            },
        ),
        (
            "plain",
            Theme {
                depth: Depth::None,
                ascii: true,
            },
        ),
    ] {
        let buffer = render(&app, theme, (80, 24));
        assert!(buffer.content.iter().all(|cell| cell.symbol().is_ascii()));
        insta::assert_snapshot!(format!("fleet_{name}_80x24"), text_of(&buffer));
    }
    let plain = render(
        &app,
        Theme {
            depth: Depth::None,
            ascii: false,
        },
        (80, 24),
    );
    let reset = ratatui::style::Color::Reset;
    assert!(
        plain
            .content
            .iter()
            .all(|cell| cell.fg == reset && cell.bg == reset),
        "a colour without colours"
    );
}

#[test]
fn fleet_before_and_after_the_link() {
    let mut app = App::new("prod-eu", true, "test", (80, 24));
    insta::assert_snapshot!(
        "fleet_connecting_80x24",
        text_of(&render(&app, COLOURS, (80, 24)))
    );
    let why = Problem::new(
        "unreachable",
        "/run/tanako/agent.sock",
        "no agent runs there",
    )
    .hint("start it");
    let lost = || Input::Lost {
        why: Box::new(why.clone()),
        retry_in: Duration::from_secs(4),
    };
    app.update(at(0), lost());
    insta::assert_snapshot!(
        "fleet_never_80x24",
        text_of(&render(&app, COLOURS, (80, 24)))
    );
    feed(&mut app, status());
    app.update(at(7), lost());
    let mut buffer = Buffer::empty(Rect::new(0, 0, 80, 24));
    views::draw(&app, COLOURS, at(7), &mut buffer);
    insta::assert_snapshot!("fleet_stale_80x24", text_of(&buffer));
}

#[test]
fn production_and_an_unreachable_host() {
    let mut status = status();
    status.production = true;
    status.hosts.push(host("b", "unreachable"));
    let mut far = bot(4, "ready");
    far.host = "b".into();
    status.processes.push(far);
    let mut app = app(status);
    snapshots("production", &app);
    press(&mut app, "f");
    insta::assert_snapshot!("faults_80x24", text_of(&render(&app, COLOURS, (80, 24))));
    press(&mut app, "fHj\n");
    snapshots("host_unreachable", &app);
}

#[test]
fn hosts() {
    let mut app = app(status());
    press(&mut app, "H");
    snapshots("hosts", &app);
    press(&mut app, "\n");
    assert_eq!(app.screen().view, View::Host("a".into()));
    snapshots("host", &app);
}

#[test]
fn processes() {
    let mut app = app(status());
    press(&mut app, "jjj\n");
    assert_eq!(app.screen().view, View::Process("tanako/0".into()));
    snapshots("process", &app);
    press(&mut app, "\u{1b}G\n");
    snapshots("process_backoff", &app);
    press(&mut app, "\u{1b}gg\n");
    assert_eq!(app.screen().view, View::Process("db/node1".into()));
    snapshots("process_db", &app);
}

#[test]
fn guild() {
    let mut app = app(status());
    press(&mut app, ":guild 81384788765712384\n");
    snapshots("guild", &app);
    press(&mut app, "j\n");
    assert_eq!(app.screen().view, View::Process("db/node2".into()));
}

#[test]
fn logs() {
    let mut app = app(status());
    press(&mut app, "jjjl");
    snapshots("logs", &app);
    press(&mut app, "/slow\n&w");
    snapshots("logs_search", &app);
    press(&mut app, "\u{1b}  l");
    insta::assert_snapshot!(
        "logs_of_marked_80x24",
        text_of(&render(&app, COLOURS, (80, 24)))
    );
}

#[test]
fn events_identify_operations_help() {
    let mut app = app(status());
    for (key, name) in [
        ("e", "events"),
        ("i", "identify"),
        ("o", "operations"),
        ("?", "help"),
    ] {
        press(&mut app, key);
        snapshots(name, &app);
        press(&mut app, "\u{1b}");
    }
    press(&mut app, "o\n");
    snapshots("operation", &app);
    let mut status = status();
    status.operations = vec![restart("succeeded")];
    feed(&mut app, status);
    snapshots("operation_ended", &app);
}

#[test]
fn an_identify_storm_is_seen_from_everywhere() {
    let mut status = status();
    let identify = status.identify.as_mut().expect("a budget");
    identify.bots[0].mode = "probing".into();
    let mut app = app(status);
    press(&mut app, "i");
    snapshots("identify_probing", &app);
    press(&mut app, "\u{1b}");
    let fleet = text_of(&render(&app, COLOURS, (80, 24)));
    assert!(fleet.contains("tanako probing"), "{fleet}");
}

#[test]
fn describe() {
    let mut app = app(status());
    press(&mut app, "Gd");
    snapshots("describe", &app);
    press(&mut app, "\u{1b}Hd");
    insta::assert_snapshot!(
        "describe_host_80x24",
        text_of(&render(&app, COLOURS, (80, 24)))
    );
}

#[test]
fn dialogs() {
    let mut app = app(status());
    press(&mut app, "jjj jr");
    snapshots("dialog", &app);
    press(&mut app, "\u{1b}:stop all\nsho");
    snapshots("dialog_typed", &app);
}

#[test]
fn typing() {
    let mut app = app(status());
    press(&mut app, "/tanako/[");
    insta::assert_snapshot!(
        "filter_bad_80x24",
        text_of(&render(&app, COLOURS, (80, 24)))
    );
    press(&mut app, "02]\n");
    insta::assert_snapshot!("filter_80x24", text_of(&render(&app, COLOURS, (80, 24))));
    press(&mut app, ":restart t\t\t");
    insta::assert_snapshot!(
        "completion_80x24",
        text_of(&render(&app, COLOURS, (80, 24)))
    );
}

/// Any size a window can be dragged to is drawn without a panic.
#[test]
fn every_size() {
    let mut app = app(status());
    for keys in [
        "",
        "G\n",
        "l",
        "d",
        "\u{1b}\u{1b}\u{1b}e",
        "i",
        "o",
        "\n",
        "?",
        "\u{1b}\u{1b}\u{1b}\u{1b}\u{1b}H",
        "\n",
        "\u{1b}\u{1b}u8\n",
        ":stop all\n",
    ] {
        press(&mut app, keys);
        for columns in (1..=44)
            .step_by(3)
            .chain([20, 21, 59, 60, 79, 100, 101, 300])
        {
            for lines in (1..=18).chain([26, 27, 28, 29, 30, 60]) {
                render(&app, COLOURS, (columns, lines));
            }
        }
    }
}

/// Ten thousand processes cost no more rows than ten.
#[test]
fn only_visible_rows_are_formatted() {
    let mut app = app(many(10_000));
    assert_eq!(app.len(), 10_000);
    let mut buffer = Buffer::empty(Rect::new(0, 0, 120, 40));
    assert!(views::draw(&app, COLOURS, at(0), &mut buffer) <= 40);
    press(&mut app, "G");
    assert!(views::draw(&app, COLOURS, at(0), &mut buffer) <= 40);
    assert_eq!(
        app.selected_process().map(|process| process.name.as_str()),
        Some("tanako/9999")
    );
}
