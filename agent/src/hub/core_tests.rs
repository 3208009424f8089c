//! What must hold of the view whatever hosts say, in whatever order it arrives.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use tanako_proto::{
    fleet::v1::{self as wire, fleet_update::Update},
    host::v1::{FleetPart, HostUpdate, ProcessState, Reasons},
};

use super::{
    core::{ALWAYS_MAX, Core, Effect, Input, Known, Now, SILENT_AFTER},
    show::{Cursor, PART_MAX},
};

fn at(ms: u64) -> Now {
    Now {
        steady: Duration::from_millis(ms),
        unix_ms: 1_700_000_000_000 + ms as i64,
    }
}

fn process(name: &str, cpu: f64) -> wire::Process {
    wire::Process {
        name: name.to_owned(),
        state: "ready".to_owned(),
        ready: true,
        desired: "running".to_owned(),
        cpu_percent: cpu,
        pid: 7,
        ..wire::Process::default()
    }
}

fn update(revision: u64, snapshot: bool, processes: Vec<wire::Process>) -> HostUpdate {
    HostUpdate {
        revision,
        snapshot,
        host: Some(wire::Host {
            os: format!("r{revision}"),
            ..wire::Host::default()
        }),
        processes: processes
            .into_iter()
            .map(|view| ProcessState {
                view: Some(view),
                ..ProcessState::default()
            })
            .collect(),
        ..HostUpdate::default()
    }
}

fn heard(host: &str, life: u64, update: HostUpdate) -> Input {
    Input::Heard {
        host: host.to_owned(),
        life,
        update: Box::new(update),
    }
}

fn known(names: &[&str]) -> Input {
    Input::Hosts(
        names
            .iter()
            .map(|name| ((*name).to_owned(), Known::default()))
            .collect(),
    )
}

/// A core of hosts `a` (its own), `b` and `c`, that follows them all.
fn three() -> Core {
    let mut core = Core::new("a", at(0));
    let effects = core.step(at(0), known(&["a", "b", "c"]));
    assert_eq!(effects.len(), 2, "{effects:?}");
    core
}

/// What somebody has who applies what a cursor is told.
#[derive(Debug, Default)]
struct Reader {
    cursor: Cursor,
    hosts: BTreeMap<String, wire::Host>,
    processes: BTreeMap<String, wire::Process>,
    events: Vec<u64>,
    parts: usize,
}

impl Reader {
    fn read(&mut self, core: &Core, now: Now) -> bool {
        let Some(update) = core.next(&mut self.cursor, now) else {
            return false;
        };
        self.parts += 1;
        match update.update.expect("an update says something") {
            Update::Snapshot(status) => {
                self.hosts = by(status.hosts, |host| &host.name);
                self.processes = by(status.processes, |process| &process.name);
            }
            Update::Delta(delta) => {
                self.hosts.extend(by(delta.hosts, |host| &host.name));
                self.processes
                    .extend(by(delta.processes, |process| &process.name));
                for name in delta.removed_processes {
                    self.processes.remove(&name);
                }
                for name in delta.removed_hosts {
                    self.hosts.remove(&name);
                }
                self.events
                    .extend(delta.events.iter().map(|event| event.id));
            }
        }
        true
    }

    fn catch_up(&mut self, core: &Core, now: Now) {
        while self.read(core, now) {}
    }
}

fn by<T>(all: Vec<T>, name: impl Fn(&T) -> &String) -> BTreeMap<String, T> {
    all.into_iter()
        .map(|one| (name(&one).clone(), one))
        .collect()
}

fn agrees(reader: &Reader, core: &Core, now: Now) {
    let status = core.status(now);
    assert_eq!(
        reader.processes,
        by(status.processes, |process| &process.name)
    );
    let mut hosts = by(status.hosts, |host| &host.name);
    // The time at which a host was seen is not worth an update each time.
    for (name, host) in &mut hosts {
        host.last_seen = reader.hosts.get(name).map_or(0, |host| host.last_seen);
    }
    assert_eq!(reader.hosts, hosts);
}

#[test]
fn a_silent_host_keeps_its_last_state_and_says_since_when() {
    let mut core = three();
    core.step(at(10), heard("a", 1, update(1, true, vec![])));
    core.step(
        at(10),
        heard("b", 1, update(1, true, vec![process("t/0", 1.0)])),
    );
    core.step(at(10), heard("c", 1, update(1, true, vec![])));
    assert!(core.is_settled());
    assert!(core.status(at(20)).healthy);
    let later = 10 + SILENT_AFTER.as_millis() as u64;
    core.step(at(later - 600), heard("c", 1, update(1, false, vec![])));
    core.step(at(later), Input::Tick);
    let status = core.status(at(later));
    let state = |name: &str| {
        let host = status.hosts.iter().find(|host| host.name == name);
        host.expect("there").state.clone()
    };
    assert_eq!(
        [state("a"), state("b"), state("c")],
        ["ready", "unreachable", "ready"]
    );
    assert_eq!(status.processes.len(), 1, "its process stays");
    assert_eq!(status.hosts[1].last_seen, at(10).unix_ms);
    assert!(!status.healthy);
    assert!(
        status.reasons[0].starts_with("host b is unreachable: not heard of since"),
        "{:?}",
        status.reasons
    );
    // It comes back, in a new life, without its process.
    core.step(at(later + 5), heard("b", 2, update(1, true, vec![])));
    let status = core.status(at(later + 5));
    assert_eq!(status.hosts[1].state, "ready");
    assert!(status.processes.is_empty() && status.healthy);
}

#[test]
fn of_a_lost_host_only_what_is_nowhere_else_counts_as_shown() {
    let mut core = three();
    let ran = ["t/0", "t/1", "db/node0"].map(|name| process(name, 1.0));
    core.step(at(1), heard("a", 1, update(1, true, vec![])));
    core.step(at(1), heard("b", 1, update(1, true, ran.to_vec())));
    core.step(at(1), heard("c", 1, update(1, true, vec![])));
    let silent = 1 + SILENT_AFTER.as_millis() as u64;
    core.step(at(silent), Input::Tick);
    let reason = |core: &Core| core.status(at(silent)).reasons[0].clone();
    let said = reason(&core);
    assert!(
        said.ends_with("; its 3 processes are shown as they were then"),
        "{said}"
    );
    let mut revision = 1;
    let mut starts = |core: &mut Core, host: &str, name: &str| {
        revision += 1;
        let began = update(revision, false, vec![process(name, 2.0)]);
        core.step(at(silent), heard(host, 1, began));
    };
    starts(&mut core, "a", "t/0");
    assert!(reason(&core).ends_with(
        "; 2 of its 3 processes are shown as they were then, the others are on other hosts"
    ));
    starts(&mut core, "c", "t/1");
    assert!(reason(&core).ends_with(
        "; 1 of its 3 processes is shown as it was then, the others are on other hosts"
    ));
    starts(&mut core, "c", "db/node0");
    assert!(reason(&core).ends_with("; what ran there is on other hosts"));
}

#[test]
fn a_host_that_refuses_is_unreachable_before_it_was_ever_heard() {
    let mut core = three();
    core.step(at(1), heard("a", 1, update(1, true, vec![])));
    core.step(at(1), heard("b", 1, update(1, true, vec![])));
    assert!(!core.is_settled());
    let early = core.status(at(1));
    assert!(!early.healthy, "nothing is known of c");
    assert_eq!(early.reasons, ["host c has not answered yet"]);
    let lost = Input::Lost {
        host: "c".to_owned(),
        life: 1,
        why: "connection refused".to_owned(),
    };
    core.step(at(2), lost);
    assert!(core.is_settled(), "nobody waits for it");
    let status = core.status(at(2));
    assert_eq!(status.hosts[2].state, "unreachable");
    assert_eq!(
        status.reasons,
        ["host c is unreachable: this agent has not heard of it (connection refused)"]
    );
    core.step(at(3), heard("c", 2, update(1, true, vec![])));
    assert!(core.status(at(3)).healthy);
}

#[test]
fn a_process_is_shown_where_it_lives() {
    let mut core = three();
    let mut reader = Reader::default();
    let stopped = |attempt| wire::Process {
        pid: 0,
        attempt,
        state: "stopped".to_owned(),
        ..process("t/0", 0.0)
    };
    core.step(
        at(1),
        heard("b", 1, update(1, true, vec![process("t/0", 1.0)])),
    );
    core.step(at(1), heard("c", 1, update(1, true, vec![stopped(0)])));
    assert_eq!(core.host_of("t/0"), Some("b"));
    reader.catch_up(&core, at(1));
    // It moves: first it ends on b, then it begins on c.
    core.step(at(2), heard("b", 1, update(2, false, vec![stopped(1)])));
    core.step(
        at(3),
        heard("c", 1, update(2, false, vec![process("t/0", 2.0)])),
    );
    assert_eq!(core.host_of("t/0"), Some("c"));
    reader.catch_up(&core, at(3));
    agrees(&reader, &core, at(3));
    let mut gone = update(3, false, vec![]);
    gone.removed.push("t/0".to_owned());
    core.step(at(4), heard("b", 1, gone));
    assert_eq!(core.host_of("t/0"), Some("c"));
    reader.catch_up(&core, at(4));
    agrees(&reader, &core, at(4));
    // c is lost; b starts it again. What c said last does not hide it.
    let silent = 4 + SILENT_AFTER.as_millis() as u64;
    core.step(at(silent), Input::Tick);
    core.step(
        at(silent),
        heard("b", 1, update(4, false, vec![process("t/0", 3.0)])),
    );
    assert_eq!(core.host_of("t/0"), Some("b"));
    assert_eq!(core.len(), 1);
    reader.catch_up(&core, at(silent));
    agrees(&reader, &core, at(silent));
}

#[test]
fn a_change_without_what_it_builds_on_is_asked_for_anew() {
    let mut core = three();
    let effects = core.step(
        at(1),
        heard("b", 1, update(5, false, vec![process("t/0", 1.0)])),
    );
    let renew = Effect::Renew {
        host: "b".to_owned(),
    };
    assert_eq!(effects, [renew]);
    assert!(core.is_empty());
    assert!(
        core.step(at(2), heard("x", 1, update(1, true, vec![])))
            .is_empty(),
        "a host that nobody knows says nothing"
    );
}

#[test]
fn large_fleets_are_followed_while_somebody_reads_and_forgotten_after() {
    let names: Vec<String> = (0..=ALWAYS_MAX).map(|n| format!("h{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut core = Core::new("h0", at(0));
    assert!(core.step(at(0), known(&names)).is_empty());
    let until = Duration::from_secs(60);
    let effects = core.step(at(0), Input::Needed { until });
    assert_eq!(effects.len(), ALWAYS_MAX);
    let said = update(1, true, vec![process("t/0", 1.0)]);
    core.step(at(1), heard("h1", 1, said.clone()));
    assert_eq!(core.len(), 1);
    assert!(core.step(at(59_999), Input::Tick).is_empty());
    let effects = core.step(at(60_000), Input::Tick);
    assert_eq!(effects.len(), ALWAYS_MAX);
    assert!(core.is_empty(), "nothing is kept for nobody");
    core.step(at(60_001), heard("h1", 1, said));
    assert!(core.is_empty(), "what was under way comes too late");
}

#[test]
fn the_word_of_the_later_office_holds() {
    let mut core = three();
    let part = |epoch, version, ids: &[&str], now: i64| HostUpdate {
        fleet: Some(FleetPart {
            epoch,
            version,
            fleet: "t".to_owned(),
            operations: ids
                .iter()
                .map(|id| wire::Operation {
                    id: (*id).to_owned(),
                    updated_at: now,
                    ..wire::Operation::default()
                })
                .collect(),
            operation_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..FleetPart::default()
        }),
        ..update(1, true, vec![])
    };
    core.step(at(1), heard("b", 1, part(5, 2, &["op-1"], 1)));
    core.step(at(2), heard("c", 1, part(9, 3, &["op-2"], 2)));
    core.step(at(3), heard("b", 2, part(5, 2, &["op-1"], 3)));
    let status = core.status(at(3));
    assert_eq!((status.version, status.fleet.as_str()), (3, "t"));
    let ids: Vec<&str> = status.operations.iter().map(|op| op.id.as_str()).collect();
    assert_eq!(ids, ["op-2"]);
}

#[test]
fn what_all_hosts_say_is_said_once_and_hosts_are_named() {
    let mut core = three();
    let ill = |lines: &[&str]| HostUpdate {
        reasons: Some(Reasons {
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        }),
        ..update(1, true, vec![])
    };
    core.step(at(1), heard("a", 1, ill(&["no store"])));
    core.step(at(1), heard("b", 1, ill(&["no store", "t/0 is failed"])));
    core.step(at(1), heard("c", 1, ill(&["no store"])));
    let status = core.status(at(1));
    assert_eq!(
        status.reasons,
        ["hosts a, b, c: no store", "host b: t/0 is failed"]
    );
}

#[test]
fn a_large_fleet_comes_in_parts() {
    let mut core = three();
    let many = |from: usize, cpu: f64| -> Vec<wire::Process> {
        (from..=from + PART_MAX / 2)
            .map(|n| process(&format!("t/{n}"), cpu))
            .collect()
    };
    core.step(at(1), heard("a", 1, update(1, true, many(0, 1.0))));
    core.step(at(1), heard("b", 1, update(1, true, many(10_000, 1.0))));
    core.step(at(1), heard("c", 1, update(1, true, many(20_000, 1.0))));
    let mut reader = Reader::default();
    assert!(reader.read(&core, at(1)));
    assert!(reader.cursor.is_under_way());
    // While it reads, a row that it has goes away and one that it has not changes.
    let mut gone = update(2, false, vec![]);
    gone.removed.push("t/0".to_owned());
    core.step(at(2), heard("a", 1, gone));
    core.step(
        at(2),
        heard("c", 1, update(2, false, vec![process("t/20000", 2.0)])),
    );
    reader.catch_up(&core, at(2));
    assert_eq!(reader.parts, 4, "three parts, and what came meanwhile");
    agrees(&reader, &core, at(2));
}

#[derive(Debug, Clone)]
enum Move {
    Say {
        host: usize,
        processes: Vec<(u8, u8)>,
        removed: Vec<u8>,
        snapshot: bool,
    },
    Again(usize),
    Life(usize),
    Pass(u16),
    Leave(usize),
    Read(usize),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let rows = prop::collection::vec((0..6u8, 0..4u8), 0..4);
    let one = prop_oneof![
        6 => (0..3usize, rows, prop::collection::vec(0..6u8, 0..2), prop::bool::weighted(0.1))
            .prop_map(|(host, processes, removed, snapshot)| Move::Say { host, processes, removed, snapshot }),
        2 => (0..40usize).prop_map(Move::Again),
        1 => (0..3usize).prop_map(Move::Life),
        2 => (0..3_000u16).prop_map(Move::Pass),
        1 => (0..3usize).prop_map(Move::Leave),
        3 => (0..2usize).prop_map(Move::Read),
    ];
    prop::collection::vec(one, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Hosts speak, connections break, messages come twice and late, hosts leave and come back, and
    /// readers of different speed read now and then: in the end each host is shown as it spoke last, and
    /// each reader has exactly what the view has.
    #[test]
    fn readers_end_with_what_hosts_said_last(moves in moves()) {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        let mut core = three();
        let mut readers = [Reader::default(), Reader::default()];
        let mut now = 0;
        // What each host has told in its present life.
        let mut truth: [BTreeMap<String, wire::Process>; 3] = Default::default();
        let mut lives = [1u64; 3];
        let mut revisions = [0u64; 3];
        let mut present = [true; 3];
        let mut sent: Vec<Input> = Vec::new();
        for step in moves {
            match step {
                Move::Say { host, processes, removed, snapshot } if present[host] => {
                    revisions[host] += 1;
                    let said: BTreeMap<String, wire::Process> = processes
                        .iter()
                        .map(|(name, cpu)| {
                            let mut said = process(&format!("t/{name}"), f64::from(*cpu));
                            said.pid = u32::from(*cpu % 2);
                            said.host = NAMES[host].to_owned();
                            (said.name.clone(), said)
                        })
                        .collect();
                    let removed: Vec<String> = removed
                        .iter()
                        .map(|name| format!("t/{name}"))
                        .filter(|name| !said.contains_key(name))
                        .collect();
                    let snapshot = snapshot || revisions[host] == 1;
                    let table = &mut truth[host];
                    if snapshot {
                        table.clear();
                    }
                    for name in &removed {
                        table.remove(name);
                    }
                    table.extend(said.clone());
                    let mut update = update(revisions[host], snapshot, said.into_values().collect());
                    update.removed = removed;
                    update.events = vec![wire::Event {
                        id: host as u64 * 1_000_000 + lives[host] * 1_000 + revisions[host],
                        ..wire::Event::default()
                    }];
                    let input = heard(NAMES[host], lives[host], update);
                    sent.push(input.clone());
                    core.step(at(now), input);
                }
                Move::Again(at_) => {
                    // The latest of a host once more is no older than what is known.
                    if let Some(input) = sent.get(at_).cloned() {
                        core.step(at(now), input);
                    }
                }
                Move::Life(host) if present[host] => {
                    lives[host] += 1;
                    revisions[host] = 1;
                    let said: Vec<wire::Process> = truth[host].values().cloned().collect();
                    let input = heard(NAMES[host], lives[host], update(1, true, said));
                    sent.push(input.clone());
                    core.step(at(now), input);
                }
                Move::Pass(ms) => {
                    now += u64::from(ms);
                    core.step(at(now), Input::Tick);
                }
                Move::Leave(host) if host > 0 => {
                    present[host] = !present[host];
                    truth[host].clear();
                    lives[host] += 1;
                    revisions[host] = 0;
                    sent.retain(|input| {
                        !matches!(input, Input::Heard { host: of, .. } if of == NAMES[host])
                    });
                    let names: Vec<&str> =
                        (0..3).filter(|at| present[*at]).map(|at| NAMES[at]).collect();
                    core.step(at(now), known(&names));
                }
                Move::Read(reader) => {
                    readers[reader].read(&core, at(now));
                }
                _ => {}
            }
        }
        for (host, table) in truth.iter().enumerate() {
            let rows: BTreeMap<String, wire::Process> = core
                .hosts
                .get(NAMES[host])
                .into_iter()
                .flat_map(|host| &host.rows)
                .map(|(name, row)| (name.to_string(), (*row.process).clone()))
                .collect();
            prop_assert_eq!(&rows, table, "host {}", NAMES[host]);
        }
        let mut names: Vec<&String> = truth.iter().flat_map(BTreeMap::keys).collect();
        names.sort_unstable();
        names.dedup();
        prop_assert_eq!(core.len(), names.len(), "each process is shown once");
        for reader in &mut readers {
            reader.catch_up(&core, at(now));
            agrees(reader, &core, at(now));
            let mut seen = reader.events.clone();
            seen.sort_unstable();
            seen.dedup();
            prop_assert_eq!(seen.len(), reader.events.len(), "no event comes twice");
        }
    }
}
