//! What keys, updates and their disorder do to the monitor's state. No drawing, no clock, no network.

mod monitor_fixture;

use std::time::Duration;

use monitor_fixture::{
    NOW, bot, events, host,
    inputs::{app, at, delta, press, snapshot},
    plan, restart, status,
};
use ratatui::{buffer::Buffer, layout::Rect};
use tanako_proto::fleet::v1::{Event, FleetDelta, GuildLocation, HistoryReply, LogLine, Problem};
use tanakoctl::monitor::{
    app::{Action, App, Input, LinkState, View},
    dialog::Plan,
    state::{EVENTS_MAX, Model, OPERATIONS_MAX},
    theme::{Depth, Theme},
    views,
};

fn planned(app: &mut App, actions: Vec<Action>) {
    for action in actions {
        if let Action::Plan { ticket, write } = action {
            let reply = Ok(Box::new(plan(write.targets(), write.verb().kind())));
            app.update(at(0), Input::Planned { ticket, reply });
        }
    }
}

fn is_write(action: &Action) -> bool {
    matches!(action, Action::Submit(_))
}

fn selected(app: &App) -> &str {
    app.selected_process()
        .map_or("", |process| process.name.as_str())
}

#[test]
fn deltas_replace_add_and_remove() {
    let mut model = Model::default();
    assert!(!model.apply_delta(FleetDelta {
        revision: 5,
        healthy: true,
        ..FleetDelta::default()
    }));
    assert!(
        !model.is_known(),
        "a delta without a snapshot is not knowledge"
    );
    model.apply_snapshot(status());
    let mut grown = bot(0, "ready");
    grown.rss_bytes = 1;
    let change = FleetDelta {
        revision: 101,
        healthy: true,
        processes: vec![grown, bot(9, "starting")],
        removed_processes: vec!["db/node2".into(), "never/was".into()],
        ..FleetDelta::default()
    };
    assert!(model.apply_delta(change.clone()));
    let check = |model: &Model| {
        assert_eq!(model.process("tanako/0").map(|p| p.rss_bytes), Some(1));
        assert_eq!(
            model.process("tanako/9").map(|p| p.state.as_str()),
            Some("starting")
        );
        assert!(model.process("db/node2").is_none());
        assert_eq!(model.processes().len(), 7);
        // Removing one must not have lost the way to another.
        for process in model.processes() {
            assert_eq!(model.process(&process.name), Some(process));
        }
        assert_eq!(
            model.version, 12,
            "no version in a delta keeps the known one"
        );
        assert_eq!(model.hosts.len(), 1);
    };
    check(&model);
    assert!(model.apply_delta(change), "the same again changes nothing");
    check(&model);
    let old = FleetDelta {
        revision: 99,
        processes: vec![bot(0, "failed")],
        ..FleetDelta::default()
    };
    assert!(
        !model.apply_delta(old),
        "what is older than the snapshot is not taken"
    );
    check(&model);
}

#[test]
fn events_come_in_any_order_and_more_than_once() {
    let mut model = Model::default();
    model.apply_snapshot(status());
    let mut shuffled = events();
    shuffled.reverse();
    model.add_events(shuffled);
    model.add_events(events());
    let ids: Vec<u64> = model.events.iter().map(|event| event.id).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5, 6]);
    let flood = (0..5_000).map(|i| Event {
        at: NOW + i,
        id: 100 + i as u64,
        ..Event::default()
    });
    model.add_events(flood.collect());
    assert_eq!(model.events.len(), EVENTS_MAX);
}

#[test]
fn an_operation_is_never_turned_back() {
    let mut model = Model::default();
    model.apply_snapshot(status());
    model.add_operation(restart("succeeded"));
    let mut late = restart("running");
    late.updated_at -= 5_000;
    model.add_operation(late);
    assert_eq!(model.operations.len(), 1);
    assert_eq!(model.operations[0].state, "succeeded");
    for i in 0..500 {
        let mut operation = restart("succeeded");
        operation.id = format!("op-{i}");
        operation.created_at = NOW + i;
        model.add_operation(operation);
    }
    assert!(model.operations.len() <= OPERATIONS_MAX + 1);
}

#[test]
fn nothing_from_the_network_reaches_the_model_unclean() {
    let mut evil = status();
    let text = "x\u{1b}[2J\u{1b}]52;c;aGk=\u{7}\u{202e}y\u{9b}1m\n";
    evil.fleet = text.into();
    evil.reasons = vec![text.into()];
    evil.hosts[0].name = text.into();
    evil.processes[0].name = text.into();
    evil.processes[0].detail = text.into();
    evil.processes[0].shards[0].last_error = text.into();
    evil.processes[0].shards[0]
        .events_by_type
        .insert(text.into(), 1);
    evil.operations[0].message = text.into();
    let mut app = app(evil, false);
    app.update(
        at(0),
        Input::Events(vec![Event {
            message: text.into(),
            kind: text.into(),
            ..Event::default()
        }]),
    );
    let shown = format!(
        "{:?} {:?} {:?}",
        app.model.processes(),
        app.model.events,
        app.model.operations
    );
    assert!(
        !shown.contains("\\u{1b}") && !shown.contains("\\u{9b}") && !shown.contains("\\u{202e}")
    );
    for keys in [
        "",
        "\n",
        "l",
        "d",
        "\u{1b}\u{1b}\u{1b}e",
        "\u{1b}o",
        "\n",
        "\u{1b}\u{1b}H",
        "\n",
    ] {
        press(&mut app, keys);
        let mut buffer = Buffer::empty(Rect::new(0, 0, 120, 40));
        views::draw(
            &app,
            Theme {
                depth: Depth::Palette,
                ascii: false,
            },
            at(0),
            &mut buffer,
        );
        for cell in &buffer.content {
            assert!(
                !cell.symbol().chars().any(char::is_control),
                "{:?}",
                cell.symbol()
            );
        }
    }
}

#[test]
fn data_goes_stale_and_comes_back() {
    let mut app = app(status(), false);
    assert_eq!(app.age(at(1_000)), Some((Duration::from_secs(1), false)));
    assert!(
        app.age(at(3_500)).is_some_and(|(_, stale)| stale),
        "a silent link is not trusted either"
    );
    let why = Box::new(Problem::new("unreachable", "", "gone"));
    app.update(
        at(4_000),
        Input::Lost {
            why,
            retry_in: Duration::from_secs(2),
        },
    );
    assert!(
        matches!(&app.link, LinkState::Lost { retry_at, .. } if *retry_at == Duration::from_secs(6))
    );
    assert_eq!(
        app.age(at(4_100)),
        Some((Duration::from_millis(4_100), true))
    );
    assert_eq!(app.len(), 7, "what was known is still shown");
    app.update(at(6_000), snapshot(status()));
    assert_eq!(
        app.age(at(6_100)),
        Some((Duration::from_millis(100), false))
    );
}

#[test]
fn the_open_screen_is_asked_for_again_on_a_new_link() {
    let mut app = app(status(), false);
    let opened = press(&mut app, "\nl");
    assert!(
        opened
            .iter()
            .any(|action| matches!(action, Action::Follow { .. }))
    );
    assert!(
        opened
            .iter()
            .any(|action| matches!(action, Action::History { .. }))
    );
    let why = Box::new(Problem::new("unreachable", "", "gone"));
    app.update(
        at(1),
        Input::Lost {
            why,
            retry_in: Duration::ZERO,
        },
    );
    let again = app.update(at(2), snapshot(status()));
    assert!(
        again
            .iter()
            .any(|action| matches!(action, Action::Follow { .. })),
        "{again:?}"
    );
    let back = press(&mut app, "\u{1b}\u{1b}");
    assert!(back.contains(&Action::Unfollow) && app.logs.is_none() && app.focus.is_none());
}

#[test]
fn the_selection_follows_its_process_through_sorts_and_removals() {
    let mut app = app(status(), false);
    press(&mut app, "jjjj");
    assert_eq!(selected(&app), "tanako/1");
    for _ in 0..12 {
        press(&mut app, "sS");
        assert_eq!(selected(&app), "tanako/1");
    }
    let gone = FleetDelta {
        revision: 101,
        removed_processes: vec!["tanako/1".into()],
        ..FleetDelta::default()
    };
    app.update(at(0), delta(gone));
    assert_ne!(selected(&app), "");
    press(&mut app, "/nothing-is-called-so\n");
    assert_eq!((app.len(), selected(&app)), (0, ""));
    assert!(
        press(&mut app, "\nr l")
            .iter()
            .all(|action| !is_write(action))
    );
    press(&mut app, "\u{1b}");
    assert_eq!(app.len(), 6);
}

#[test]
fn filters_take_regexes_and_their_inverse() {
    let mut app = app(status(), false);
    for (filter, rows) in [
        ("^db", 3),
        ("!^db", 4),
        ("BACKOFF", 0),
        ("backoff", 1),
        ("!ready", 1),
        ("", 7),
    ] {
        press(&mut app, &format!(":filter {filter}\n"));
        assert_eq!(app.len(), rows, "{filter}");
    }
    press(&mut app, "/tanako/(");
    let error = app.prompt.as_ref().and_then(|prompt| prompt.error.clone());
    assert!(error.is_some_and(|error| error.starts_with("bad regex")));
    press(&mut app, "\u{1b}f");
    assert_eq!((app.len(), selected(&app)), (1, "tanako/3"));
}

#[test]
fn faults_follow_what_happens() {
    let mut app = app(status(), false);
    press(&mut app, "f");
    assert_eq!(app.len(), 1);
    let lost = FleetDelta {
        revision: 101,
        hosts: vec![host("a", "unreachable")],
        ..FleetDelta::default()
    };
    app.update(at(0), delta(lost));
    assert_eq!(app.len(), 7, "all processes of an unreachable host");
    let totals = &app.model.totals;
    assert_eq!((totals.ready, totals.shards.1), (0, 0), "nobody knows");
}

#[test]
fn nothing_is_changed_without_a_confirmed_dialog() {
    let mut app = app(status(), false);
    let asked = press(&mut app, "Gr");
    assert!(matches!(&asked[..], [Action::Plan { write, .. }] if write.targets() == ["tanako/3"]));
    // Enter at once, before the plan is there, presses Cancel.
    assert!(press(&mut app, "\n").is_empty() && app.dialog.is_none());
    let asked = press(&mut app, "r");
    // The other button cannot be pressed before its cost is known.
    assert!(press(&mut app, "\t\n").is_empty() && app.dialog.is_some());
    planned(&mut app, asked);
    let done = press(&mut app, "\n");
    assert!(matches!(&done[..], [Action::Submit(write)]
        if write.request().base_version == 12 && write.request().request_id.starts_with("monitor-session-")));
    assert!(app.dialog.is_none());
}

#[test]
fn a_refused_plan_cannot_be_confirmed() {
    let mut app = app(status(), false);
    let asked = press(&mut app, "x");
    let Some(Action::Plan { ticket, .. }) = asked.first() else {
        panic!("{asked:?}")
    };
    let problem = Box::new(Problem::new(
        "conflict",
        "db/node1",
        "another operation runs",
    ));
    app.update(
        at(0),
        Input::Planned {
            ticket: ticket + 7,
            reply: Err(problem.clone()),
        },
    );
    assert_eq!(
        app.dialog.as_ref().map(|dialog| &dialog.plan),
        Some(&Plan::Waiting),
        "another dialog's answer"
    );
    app.update(
        at(0),
        Input::Planned {
            ticket: *ticket,
            reply: Err(problem),
        },
    );
    assert!(press(&mut app, "\t\n\n").is_empty() && app.dialog.is_some());
}

#[test]
fn dear_changes_have_to_be_typed() {
    let mut production = status();
    production.production = true;
    for (status, keys, name) in [
        (status(), ":stop all\n", "shop"),
        (status(), "       x", "shop"),
        (production.clone(), "Gr", "tanako/3"),
        (production, ":restart tanako db\n", "shop"),
    ] {
        let mut app = app(status, false);
        let asked = press(&mut app, keys);
        planned(&mut app, asked);
        assert_eq!(
            app.dialog
                .as_ref()
                .and_then(|dialog| dialog.must_type.as_deref()),
            Some(name),
            "{keys}"
        );
        assert!(press(&mut app, "\t\n").is_empty(), "nothing typed");
        assert!(press(&mut app, "sho\n").is_empty(), "not all typed");
        app.dialog.as_mut().expect("still asked").typed =
            tanakoctl::monitor::editor::Editor::default();
        assert!(press(&mut app, &format!("{name}\n")).iter().any(is_write));
    }
    let mut app = app(status(), false);
    press(&mut app, "x");
    assert_eq!(
        app.dialog
            .as_ref()
            .and_then(|dialog| dialog.must_type.clone()),
        None
    );
}

#[test]
fn read_only_never_asks() {
    let mut app = app(status(), true);
    let actions = press(&mut app, "rxab:stop all\n:backup\n");
    assert!(actions.is_empty(), "{actions:?}");
    assert!(
        app.dialog.is_none()
            && app
                .notice
                .is_some_and(|notice| notice.text.contains("read-only"))
    );
}

#[test]
fn the_command_line_completes_and_corrects() {
    let mut app = app(status(), false);
    press(&mut app, ":gui\t812\n");
    assert_eq!(app.screen().view, View::Guild(812));
    press(&mut app, ":process tanako/\t\t\n");
    assert_eq!(app.screen().view, View::Process("tanako/1".into()));
    for (line, word) in [
        (":resart x\n", "did you mean restart"),
        (":process tanko/1\n", "did you mean tanako/1"),
        (":guild many\n", "a number is expected"),
        (":host\n", "needs a host"),
        (":sort colour\n", "there are name, state"),
    ] {
        press(&mut app, line);
        let error = app
            .prompt
            .as_ref()
            .and_then(|prompt| prompt.error.clone())
            .unwrap_or_default();
        assert!(error.contains(word), "{line}: {error}");
        press(&mut app, "\u{1b}");
    }
    assert_eq!(press(&mut app, ":quit\n"), [Action::Quit]);
}

#[test]
fn pause_holds_the_picture_not_the_fleet() {
    let mut app = app(status(), false);
    press(&mut app, "p");
    app.update(
        at(1),
        delta(FleetDelta {
            revision: 101,
            removed_processes: vec!["tanako/0".into()],
            ..FleetDelta::default()
        }),
    );
    assert_eq!((app.len(), app.model.processes().len()), (7, 6));
    press(&mut app, "p");
    assert_eq!(app.len(), 6);
}

#[test]
fn late_answers_to_closed_screens_are_dropped() {
    let mut app = app(status(), false);
    press(&mut app, "l\u{1b}");
    app.update(
        at(0),
        Input::Log {
            ticket: 1,
            lines: vec![LogLine::default()],
        },
    );
    app.update(
        at(0),
        Input::Located {
            guild: 5,
            reply: Ok(Box::new(GuildLocation::default())),
        },
    );
    app.update(
        at(0),
        Input::History {
            target: "tanako/0".into(),
            reply: HistoryReply::default(),
        },
    );
    assert!(app.logs.is_none() && app.guild.is_none() && app.focus.is_none());
}
