use std::fmt::Write as _;

use proptest::prelude::*;

use super::{
    standing::{FALL_MS, RISE_MS, Signal},
    *,
};
use crate::spec::{Act, Advise};

const MINUTE: i64 = 60_000;
/// 2026-11-21 03:00 UTC.
const NIGHT: i64 = 1_795_230_000_000;

fn bot() -> BotFacts {
    BotFacts {
        name: "tanako".to_owned(),
        worker: true,
        shards: 8,
        guilds: Some(8_000),
        growth: Some(Growth {
            per_day: 10.0,
            days: 7.0,
        }),
        recommended: 8,
        identifies: Some(900),
        latency_ms: Some(40.0),
        events_per_s: Some(200.0),
        restarts: Some(0),
        cpu_percent: Some(20.0),
    }
}

fn host(name: &str) -> HostFacts {
    HostFacts {
        name: name.to_owned(),
        open: true,
        cpus: 4,
        cpu_percent: Some(20.0),
        used_bytes: Some(1 << 30),
        memory_bytes: Some((2 << 30, 8 << 30)),
    }
}

fn facts() -> Facts {
    Facts {
        bots: vec![bot()],
        hosts: vec![host("a"), host("b"), host("c")],
        nodes: ["n1", "n2"]
            .map(|name| NodeFacts {
                name: name.to_owned(),
                read_p99_ms: Some(2.0),
                write_p99_ms: Some(9.0),
            })
            .into(),
        balance: Some(Balance {
            fullest: 1.05,
            moves: 1,
        }),
    }
}

/// What is advised once it has been so for long.
fn settled(facts: &Facts) -> Advice {
    let mut standing = Standing::default();
    advise(facts, &mut standing, NIGHT - RISE_MS);
    advise(facts, &mut standing, NIGHT)
}

fn text(advice: &Advice) -> String {
    let mut text = String::new();
    for proposal in &advice.proposals {
        let change = &proposal.change;
        let _ = writeln!(text, "{}: {}", proposal.urgency.as_str(), change.words());
        for reason in &proposal.reasons {
            let _ = writeln!(text, "  - {reason}");
        }
        let _ = writeln!(text, "  $ {}", change.how());
    }
    for note in &advice.notes {
        let _ = writeln!(text, "note: {note}");
    }
    for unknown in &advice.unknown {
        let _ = writeln!(text, "unknown: {unknown}");
    }
    text
}

#[test]
fn a_fleet_that_is_well_gets_no_advice() {
    assert_eq!(settled(&facts()), Advice::default());
}

#[test]
fn every_rule_says_what_it_would_change_and_why() {
    let with = |change: &dyn Fn(&mut Facts)| {
        let mut facts = facts();
        change(&mut facts);
        text(&settled(&facts))
    };
    let said = [
        with(&|facts| facts.bots[0].guilds = Some(17_000)),
        with(&|facts| facts.bots[0].guilds = Some(19_600)),
        with(&|facts| {
            facts.bots[0].growth = Some(Growth {
                per_day: 600.0,
                days: 12.0,
            });
        }),
        with(&|facts| facts.bots[0].recommended = 12),
        with(&|facts| {
            facts.bots[0].recommended = 12;
            facts.bots[0].worker = false;
            facts.bots[0].guilds = None;
            facts.bots[0].identifies = Some(3);
            facts.nodes.clear();
        }),
        with(&|facts| {
            facts.balance = Some(Balance {
                fullest: 1.6,
                moves: 9,
            });
        }),
        with(&|facts| {
            for host in &mut facts.hosts {
                host.cpu_percent = Some(80.0);
            }
        }),
        with(&|facts| {
            for host in &mut facts.hosts {
                host.memory_bytes = Some((5 << 30, 8 << 30));
            }
        }),
        with(&|facts| facts.nodes[1].read_p99_ms = Some(70.0)),
        with(&|facts| {
            facts.bots[0].guilds = Some(30_000);
            facts.bots[0].shards = 32;
        }),
        with(&|facts| {
            facts.bots[0].restarts = Some(12);
            facts.bots[0].cpu_percent = Some(95.0);
            facts.bots[0].latency_ms = Some(900.0);
        }),
        with(&|facts| {
            facts.bots[0].latency_ms = Some(900.0);
            facts.hosts.truncate(1);
        }),
        with(&|facts| {
            facts.bots[0].growth = None;
            facts.bots[0].identifies = None;
            facts.hosts[1].cpu_percent = None;
            facts.hosts[1].memory_bytes = None;
            facts.nodes[0].read_p99_ms = None;
            facts.nodes[0].write_p99_ms = None;
            facts.balance = None;
        }),
    ];
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn what_presses_most_comes_first() {
    let mut facts = facts();
    facts.bots[0].guilds = Some(19_600);
    facts.balance = Some(Balance {
        fullest: 1.6,
        moves: 9,
    });
    let advice = settled(&facts);
    let urgencies: Vec<Urgency> = advice.proposals.iter().map(|it| it.urgency).collect();
    assert_eq!(urgencies, [Urgency::Now, Urgency::Soon, Urgency::Later]);
    // A shard that is nearly full is told at once.
    assert_eq!(
        advise(&facts, &mut Standing::default(), NIGHT)
            .proposals
            .len(),
        1
    );
}

#[test]
fn a_proposal_stands_after_a_while_and_falls_after_a_longer_one() {
    let mut standing = Standing::default();
    let mut at = |minute: i64, signal| standing.judge("x", NIGHT + minute * MINUTE, signal);
    assert!(!at(0, Signal::Above) && !at(9, Signal::Above) && at(10, Signal::Above));
    assert!(at(20, Signal::Below) && at(40, Signal::Between));
    assert!(at(41, Signal::Below) && at(70, Signal::Below) && !at(71, Signal::Below));
    assert!(!at(80, Signal::Between));
    assert!(!at(90, Signal::Above) && !at(95, Signal::Below) && !at(101, Signal::Above));
}

fn may() -> Advise {
    Advise {
        act: [Act::Rebalance, Act::Reshard].into(),
        max_shards: Some(64),
        quiet_hours: Some((120, 240)),
    }
}

#[test]
fn it_acts_only_as_it_may() {
    let mut facts = facts();
    facts.bots[0].guilds = Some(17_000);
    facts.balance = Some(Balance {
        fullest: 1.6,
        moves: 9,
    });
    let advice = settled(&facts);
    let never = Acted::default();
    let key = |change: Option<&Change>| change.map(Change::key);
    let due = |may: &Advise, acted: &Acted, now: i64, busy: bool, facts: &Facts| {
        key(super::due(&advice, facts, may, acted, now, busy))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        due(&may(), &never, NIGHT, false, &facts),
        some("reshard tanako")
    );
    assert_eq!(due(&Advise::default(), &never, NIGHT, false, &facts), None);
    assert_eq!(due(&may(), &never, NIGHT, true, &facts), None, "busy");
    assert_eq!(
        due(&may(), &never, NIGHT + 2 * 60 * MINUTE, false, &facts),
        None
    );
    let small = Advise {
        max_shards: Some(9),
        ..may()
    };
    assert_eq!(due(&small, &never, NIGHT, false, &facts), some("rebalance"));
    let only = Advise {
        act: [Act::Rebalance].into(),
        ..may()
    };
    assert_eq!(due(&only, &never, NIGHT, false, &facts), some("rebalance"));
    let mut poor = facts.clone();
    poor.bots[0].identifies = Some(2);
    assert_eq!(due(&may(), &never, NIGHT, false, &poor), some("rebalance"));
    poor.bots[0].identifies = None;
    assert_eq!(due(&may(), &never, NIGHT, false, &poor), some("rebalance"));
    let mut acted = Acted::default();
    acted.note(&advice.proposals[0].change, NIGHT);
    assert_eq!(
        due(&may(), &acted, NIGHT + DAY_MS - MINUTE, false, &facts),
        None
    );
    assert_eq!(
        due(&may(), &acted, NIGHT + DAY_MS, false, &facts),
        some("reshard tanako")
    );
    assert_eq!(
        due(&may(), &acted, NIGHT - DAY_MS, false, &facts),
        None,
        "clock"
    );
}

/// Figures of any kind, some unknown, some absurd.
fn figures() -> impl Strategy<Value = Facts> {
    let figure = || prop::option::of(prop_oneof![0.0..200.0_f64, Just(f64::NAN), Just(1e300)]);
    let such = (
        0..40_u32,
        prop::option::of(0..100_000_u64),
        prop::option::of((-1e6..1e6_f64, 0.0..400.0_f64)),
        0..100_u32,
        prop::option::of(0..2_000_u32),
        figure(),
        figure(),
    );
    let one = (
        prop::bool::ANY,
        0..64_u32,
        figure(),
        prop::option::of((any::<u32>(), any::<u32>())),
    );
    (
        prop::collection::vec(such, 0..3),
        prop::collection::vec(one, 0..5),
        prop::collection::vec((figure(), figure()), 0..4),
        prop::option::of((figure(), 0..9_u32)),
    )
        .prop_map(|(bots, hosts, nodes, balance)| Facts {
            bots: bots
                .into_iter()
                .enumerate()
                .map(
                    |(at, (shards, guilds, growth, recommended, identifies, latency, cpu))| {
                        BotFacts {
                            name: format!("b{at}"),
                            worker: at == 0,
                            shards,
                            guilds,
                            growth: growth.map(|(per_day, days)| Growth { per_day, days }),
                            recommended,
                            identifies,
                            latency_ms: latency,
                            cpu_percent: cpu,
                            ..bot()
                        }
                    },
                )
                .collect(),
            hosts: hosts
                .into_iter()
                .map(|(open, cpus, cpu_percent, memory)| HostFacts {
                    open,
                    cpus,
                    cpu_percent,
                    memory_bytes: memory.map(|(a, b)| (u64::from(a.min(b)), u64::from(b))),
                    ..host("h")
                })
                .collect(),
            nodes: nodes
                .into_iter()
                .map(|(read_p99_ms, write_p99_ms)| NodeFacts {
                    name: "n".to_owned(),
                    read_p99_ms,
                    write_p99_ms,
                })
                .collect(),
            balance: balance.map(|(fullest, moves)| Balance {
                fullest: fullest.unwrap_or(1.0),
                moves,
            }),
        })
}

proptest! {
    /// Whatever the figures: more is proposed, never less; each has a reason; nothing panics.
    #[test]
    fn any_figures_get_an_answer(all in prop::collection::vec((figures(), 0..120_i64), 1..12)) {
        let mut standing = Standing::default();
        let mut now = NIGHT;
        for (facts, minutes) in all {
            now += minutes * MINUTE;
            for proposal in advise(&facts, &mut standing, now).proposals {
                prop_assert!(!proposal.reasons.is_empty(), "{proposal:?}");
                match proposal.change {
                    Change::Reshard { from, to, .. } => prop_assert!(to > from),
                    Change::Hosts { from, to } | Change::Nodes { from, to } => prop_assert!(to > from),
                    Change::Rebalance { moves } => prop_assert!(moves > 0),
                }
            }
        }
    }

    /// A figure that swings within its two thresholds, or across them faster than the times given,
    /// changes nothing; and nothing changes more often than those times allow.
    #[test]
    fn a_swinging_figure_never_flaps(swings in prop::collection::vec((0..3_u8, 1..20_i64), 1..200)) {
        let mut standing = Standing::default();
        let mut now = NIGHT;
        let (mut before, mut changed) = (false, None);
        for (signal, minutes) in swings {
            now += minutes * MINUTE;
            let signal = [Signal::Below, Signal::Between, Signal::Above][usize::from(signal)];
            let stands = standing.judge("x", now, signal);
            if stands != before {
                prop_assert_eq!(signal, if stands { Signal::Above } else { Signal::Below });
                if let Some(changed) = changed {
                    let least = if stands { RISE_MS } else { FALL_MS };
                    prop_assert!(now - changed >= least);
                }
                (before, changed) = (stands, Some(now));
            }
        }
        let mut calm = Standing::default();
        for minute in 0..200 {
            let signal = if minute % 5 == 0 { Signal::Between } else { Signal::Above };
            prop_assert!(!calm.judge("x", NIGHT + minute * MINUTE, signal));
        }
    }

    /// It never acts twice within a day, whatever the clock does.
    #[test]
    fn it_acts_at_most_once_a_day(hours in prop::collection::vec(-30..30_i64, 1..60)) {
        let mut facts = facts();
        facts.balance = Some(Balance { fullest: 2.0, moves: 4 });
        facts.bots[0].guilds = Some(17_000);
        let advice = settled(&facts);
        let may = Advise { quiet_hours: None, ..may() };
        let mut acted = Acted::default();
        let (mut now, mut last) = (NIGHT, None::<i64>);
        for hour in hours {
            now += hour * 60 * MINUTE;
            if let Some(change) = due(&advice, &facts, &may, &acted, now, false) {
                acted.note(change, now);
                if let Some(last) = last {
                    prop_assert!(now - last >= DAY_MS);
                }
                last = Some(now);
            }
        }
    }
}
