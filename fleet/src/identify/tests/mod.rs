//! The ledger's rules one by one. `fleet`: a Discord and its bots in virtual time, in which `pace`
//! brings cold fleets up and `brakes` lets them crash and Discord fail. `load`: records, there and
//! back. `world`: against a world that crashes, changes leaders, asks twice and answers late.
//! `desk`: asked from other hosts.

mod brakes;
mod desk;
mod fleet;
mod load;
mod pace;
mod world;

use std::collections::HashMap;

use super::{
    bot::{RETRY_MAX_MS, RETRY_MS},
    budget::{DAY_MS, WINDOW_MS},
    *,
};

const BOT: &str = "tanako";

fn at(boot_ms: i64) -> Stamp {
    Stamp {
        boot_id: 1,
        boot_ms,
        wall_ms: 1_700_000_000_000 + boot_ms,
    }
}

fn request(id: RequestId, shard: u32, attempt: u64) -> Request {
    Request {
        id,
        bot: BOT.to_owned(),
        process: format!("{BOT}/{shard}"),
        attempt,
        shard,
        count: 64,
        via: Via::Worker,
    }
}

/// Knows that there are no records yet.
fn empty() -> Ledger {
    let mut ledger = Ledger::new();
    load(&mut ledger, at(0), Vec::new());
    ledger
}

/// Has read these records.
fn load(ledger: &mut Ledger, now: Stamp, records: Vec<Option<Record>>) -> Vec<Effect> {
    let bot = BOT.to_owned();
    let asked = ledger.step(now, Input::Open { bot: bot.clone() });
    let [Effect::Load { seq, .. }] = asked[..] else {
        panic!("{asked:?}");
    };
    ledger.step(now, Input::Load { bot, seq, records })
}

fn configure(ledger: &mut Ledger, max_concurrency: u32, reserve: Option<u32>) {
    ledger.step(
        at(0),
        Input::Configure {
            bot: BOT.to_owned(),
            max_concurrency: Some(max_concurrency),
            reserve,
        },
    );
}

fn persisted(seq: u64) -> Input {
    Input::Persisted {
        bot: BOT.to_owned(),
        seq,
    }
}

/// Steps, and says at once that everything was written. Returns what else happened.
fn step(ledger: &mut Ledger, now: Stamp, input: Input) -> Vec<Effect> {
    let mut out = Vec::new();
    let mut inputs = vec![input];
    while let Some(input) = inputs.pop() {
        for effect in ledger.step(now, input) {
            match effect {
                Effect::Persist { seq, .. } => inputs.push(persisted(seq)),
                Effect::Load { seq, .. } => inputs.push(Input::Load {
                    bot: BOT.to_owned(),
                    seq,
                    records: Vec::new(),
                }),
                Effect::Note { .. } => {}
                other => out.push(other),
            }
        }
    }
    out
}

fn granted(effects: &[Effect]) -> Vec<RequestId> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Grant { id, .. } => Some(*id),
            _ => None,
        })
        .collect()
}

fn permits(effects: &[Effect]) -> Vec<u64> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Grant { permit, .. } => Some(*permit),
            _ => None,
        })
        .collect()
}

/// Like [`step`], and whoever gets a permit becomes ready at once.
fn step_well(ledger: &mut Ledger, now: Stamp, input: Input) -> Vec<RequestId> {
    let shards: HashMap<RequestId, u32> = ledger
        .bots
        .get(BOT)
        .into_iter()
        .flat_map(|bot| {
            let pending = bot.pending.iter().map(|pending| &pending.waiting);
            bot.waiting.values().chain(pending)
        })
        .map(|waiting| (waiting.request.id, waiting.request.shard))
        .chain(match &input {
            Input::Request(request) => Some((request.id, request.shard)),
            _ => None,
        })
        .collect();
    let ids = granted(&step(ledger, now, input));
    for id in &ids {
        step(ledger, now, ready(shards[id]));
    }
    ids
}

fn ready(shard: u32) -> Input {
    Input::Ready {
        bot: BOT.to_owned(),
        shard,
        count: 64,
    }
}

fn unused(shard: u32, permit: u64) -> Input {
    Input::Unused {
        bot: BOT.to_owned(),
        shard,
        count: 64,
        permit,
    }
}

fn limits(total: u32, remaining: u32) -> Input {
    Input::Limits {
        bot: BOT.to_owned(),
        limits: ReportedLimits {
            total,
            remaining,
            reset_after_ms: 3_600_000,
            max_concurrency: 1,
            recommended: 1,
        },
    }
}

#[test]
fn the_lowest_shard_of_each_bucket_is_served_first() {
    let mut ledger = empty();
    configure(&mut ledger, 8, None);
    let mut order = Vec::new();
    for shard in (0..64).rev() {
        let asked = Input::Request(request(u64::from(shard), shard, 1));
        order.extend(step_well(&mut ledger, at(0), asked));
    }
    // All buckets were free, so the first eight asked-for went at once.
    assert_eq!(order, (56..64).rev().collect::<Vec<_>>());
    let mut now = 0;
    while order.len() < 64 {
        now = ledger.deadline().expect("shards wait");
        order.extend(step_well(&mut ledger, at(now), Input::Tick));
    }
    assert_eq!(order[8..16], (0..8).collect::<Vec<_>>());
    assert_eq!(now, 7 * SPACING_MS);
    let status = &ledger.status(at(now))[0];
    assert_eq!((status.used, status.total, status.reserve), (64, 1000, 100));
    assert_eq!(status.mode, Mode::Normal);
    assert_eq!(status.buckets.iter().map(|b| b.granted).sum::<u64>(), 64);
}

#[test]
fn nothing_is_given_out_before_it_is_in_the_store() {
    let mut ledger = empty();
    configure(&mut ledger, 1, None);
    let effects = ledger.step(at(0), Input::Request(request(1, 0, 1)));
    let [Effect::Persist { seq, records, .. }] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(records.len(), 1);
    let lost = Some(PERSIST_MAX_MS + 1);
    assert_eq!(ledger.deadline(), lost, "only the store can bring news");
    // Written late: the five seconds count from the release.
    let effects = ledger.step(at(3_000), persisted(*seq));
    assert_eq!(granted(&effects), [1]);
    ledger.step(at(3_000), Input::Request(request(2, 1, 1)));
    // Recorded a little before its bucket is free, released when it is.
    let early = 3_000 + SPACING_MS - LEAD_MS;
    assert_eq!(ledger.deadline(), Some(early));
    // Said twice: nothing happens twice.
    assert!(ledger.step(at(3_001), persisted(*seq)).is_empty());
    let effects = ledger.step(at(early), Input::Tick);
    let [Effect::Persist { seq, .. }] = effects[..] else {
        panic!("{effects:?}");
    };
    assert!(ledger.step(at(early + 20), persisted(seq)).is_empty());
    assert_eq!(ledger.deadline(), Some(3_000 + SPACING_MS));
    let effects = ledger.step(at(3_000 + SPACING_MS), Input::Tick);
    assert_eq!(granted(&effects), [2]);
}

#[test]
fn what_goes_out_late_makes_its_bucket_wait_longer() {
    let sent = |shard, at| Input::Sent {
        bot: BOT.to_owned(),
        shard,
        count: request(0, shard, 1).count,
        at,
    };
    let late = VALID_MS + 400;
    // Told in time, told after the next permit is on its way, told too early to matter, not told.
    for (told_at, said, free_at) in [
        (late + 5, Some(late), late + RULE_MS + JITTER_MS),
        (SPACING_MS - 50, Some(late), late + RULE_MS + JITTER_MS),
        (20, Some(10), SPACING_MS),
        (20, Some(-60_000), SPACING_MS),
        (20, Some(i64::MAX), 20 + RULE_MS + JITTER_MS),
        (20, None, SPACING_MS),
    ] {
        let mut ledger = empty();
        configure(&mut ledger, 1, None);
        let first = step_well(&mut ledger, at(0), Input::Request(request(1, 0, 1)));
        assert_eq!(first, [1]);
        assert!(step_well(&mut ledger, at(1), Input::Request(request(2, 1, 1))).is_empty());
        let mut told = false;
        let mut now = 1;
        let second = loop {
            now += 1;
            if now >= told_at && !told {
                told = true;
                if let Some(said) = said {
                    assert!(step_well(&mut ledger, at(now), sent(0, said)).is_empty());
                    // Another shard's, another set's, another bot's: nothing to do with it.
                    step_well(&mut ledger, at(now), sent(5, now));
                }
            }
            if step_well(&mut ledger, at(now), Input::Tick) == [2] {
                break now;
            }
            assert!(now < 60_000, "never served");
        };
        let expected = if said == Some(i64::MAX) {
            free_at.max(SPACING_MS)
        } else {
            free_at
        };
        assert_eq!(second, expected, "told at {told_at} of {said:?}");
    }
}

/// A busy host on which every permit comes too late is no crash loop, no storm, and spends nothing.
#[test]
fn permits_that_came_too_late_cost_nothing() {
    let mut ledger = empty();
    configure(&mut ledger, 1, None);
    step(&mut ledger, at(0), limits(1000, 990));
    let used = |ledger: &Ledger, now| ledger.status(at(now))[0].used;
    assert_eq!(used(&ledger, 0), 10);
    let mut now = 0;
    for round in 0..24 {
        let shard = u32::try_from(round % 3).expect("small");
        let effects = step(
            &mut ledger,
            at(now),
            Input::Request(request(round, shard, 1)),
        );
        let [permit] = permits(&effects)[..] else {
            panic!("{effects:?} in round {round}");
        };
        assert_eq!(used(&ledger, now), 11);
        now += VALID_MS + 50;
        let effects = ledger.step(at(now), unused(shard, permit));
        assert!(
            matches!(effects[..], [Effect::Note { .. }]),
            "{effects:?} in round {round}"
        );
        assert_eq!(used(&ledger, now), 10);
        // Told once more, or of another shard.
        for again in [unused(shard, permit), unused(shard + 1, permit)] {
            assert_eq!(ledger.step(at(now), again), []);
        }
        assert_eq!(ledger.status(at(now))[0].mode, Mode::Normal);
    }
    // The records say the same, whoever reads them.
    let records = ledger.records(BOT, at(now)).expect("known");
    let mut successor = Ledger::new();
    load(
        &mut successor,
        at(now),
        records.into_iter().map(Some).collect(),
    );
    assert_eq!(used(&successor, now), 10);
}

#[test]
fn a_permit_is_taken_back_only_while_it_can_be_unused() {
    // How many count then, and whether the bucket is free.
    let after = |between: &[Input]| {
        let mut ledger = empty();
        configure(&mut ledger, 1, None);
        let effects = step(&mut ledger, at(0), Input::Request(request(1, 7, 1)));
        let [permit] = permits(&effects)[..] else {
            panic!("{effects:?}");
        };
        for input in between {
            step(&mut ledger, at(10), input.clone());
        }
        step(&mut ledger, at(20), unused(7, permit));
        let used = ledger.status(at(20))[0].used;
        let next = step(&mut ledger, at(20), Input::Request(request(2, 8, 1)));
        (used, granted(&next) == [2])
    };
    let sent = Input::Sent {
        bot: BOT.to_owned(),
        shard: 7,
        count: 64,
        at: 5,
    };
    assert_eq!(after(&[]), (0, true));
    assert_eq!(after(&[sent]), (1, false));
    assert_eq!(after(&[ready(7)]), (1, false));
    // Discord's own count, fetched meanwhile, may contain it.
    assert_eq!(after(&[limits(1000, 999)]), (1, true));
}

#[test]
fn a_foreign_bot_is_given_more_time_and_its_bucket_waits_longer() {
    let mut ledger = empty();
    configure(&mut ledger, 1, None);
    let start = Request {
        via: Via::Start,
        ..request(1, 0, 1)
    };
    assert_eq!(
        granted(&step(&mut ledger, at(0), Input::Request(start))),
        [1]
    );
    step(&mut ledger, at(1), Input::Request(request(2, 1, 1)));
    let free = RULE_MS + FOREIGN_VALID_MS + JITTER_MS;
    assert!(granted(&step(&mut ledger, at(free - 1), Input::Tick)).is_empty());
    assert_eq!(granted(&step(&mut ledger, at(free), Input::Tick)), [2]);
}

#[test]
fn a_failed_write_costs_nothing_and_the_ledger_reads_before_it_tries_again() {
    let mut ledger = empty();
    configure(&mut ledger, 1, None);
    let mut now = 0;
    let effects = ledger.step(at(now), Input::Request(request(1, 0, 1)));
    let [Effect::Persist { mut seq, .. }] = effects[..] else {
        panic!("{effects:?}");
    };
    for _ in 0..20 {
        let bot = BOT.to_owned();
        let effects = ledger.step(at(now), Input::PersistFailed { bot, seq });
        assert!(effects.is_empty(), "{effects:?}");
        assert_eq!(ledger.status(at(now))[0].used, 0);
        let next = ledger.deadline().expect("it is tried again");
        assert!(next - now >= RETRY_MS && next - now <= RETRY_MAX_MS);
        now = next;
        let effects = ledger.step(at(now), Input::Tick);
        let [Effect::Load { seq: asked, .. }] = effects[..] else {
            panic!("{effects:?}");
        };
        let bot = BOT.to_owned();
        let answer = Input::Load {
            bot,
            seq: asked,
            records: Vec::new(),
        };
        let effects = ledger.step(at(now), answer);
        let [Effect::Persist { seq: again, .. }] = effects[..] else {
            panic!("{effects:?}");
        };
        seq = again;
    }
    assert_eq!(granted(&ledger.step(at(now), persisted(seq))), [1]);
    assert_eq!(ledger.status(at(now))[0].used, 1);
}

#[test]
fn a_write_that_failed_may_have_reached_the_store_and_then_it_counts() {
    let mut ledger = empty();
    configure(&mut ledger, 1, None);
    let effects = ledger.step(at(0), Input::Request(request(1, 0, 1)));
    let [Effect::Persist { seq, records, .. }] = &effects[..] else {
        panic!("{effects:?}");
    };
    let (seq, written) = (*seq, records.iter().copied().map(Some).collect());
    let bot = BOT.to_owned();
    ledger.step(at(5), Input::PersistFailed { bot, seq });
    let effects = ledger.step(at(5 + RETRY_MS), Input::Tick);
    let [Effect::Load { seq, .. }] = effects[..] else {
        panic!("{effects:?}");
    };
    let bot = BOT.to_owned();
    let found = Input::Load {
        bot,
        seq,
        records: written,
    };
    ledger.step(at(6 + RETRY_MS), found.clone());
    assert_eq!(ledger.status(at(6 + RETRY_MS))[0].used, 1);
    // The bucket may have been used at the very moment of the reading.
    let free = 6 + RETRY_MS + SPACING_MS;
    assert_eq!(ledger.deadline(), Some(free - LEAD_MS));
    // An answer that nobody waits for any more changes nothing.
    assert!(ledger.step(at(7 + RETRY_MS), found).is_empty());
    assert_eq!(ledger.deadline(), Some(free - LEAD_MS));
}

#[test]
fn an_answer_that_never_comes_is_given_up() {
    let mut ledger = empty();
    configure(&mut ledger, 1, None);
    let effects = ledger.step(at(0), Input::Request(request(1, 0, 1)));
    assert!(matches!(effects[..], [Effect::Persist { .. }]));
    let now = ledger.deadline().expect("an end to the waiting");
    assert!(ledger.step(at(now), Input::Tick).is_empty());
    let now = ledger.deadline().expect("a try");
    let effects = ledger.step(at(now), Input::Tick);
    let [Effect::Load { seq, .. }] = effects[..] else {
        panic!("{effects:?}");
    };
    // The late answer to the first write changes nothing.
    assert!(ledger.step(at(now), persisted(1)).is_empty());
    let bot = BOT.to_owned();
    ledger.step(at(now), Input::LoadFailed { bot, seq });
    let next = ledger.deadline().expect("another");
    assert!(next > now);
    let effects = ledger.step(at(next), Input::Tick);
    assert!(matches!(effects[..], [Effect::Load { .. }]), "{effects:?}");
}

#[test]
fn a_permit_that_took_too_long_to_write_is_thrown_away() {
    let mut ledger = empty();
    configure(&mut ledger, 1, None);
    ledger.step(at(0), Input::Request(request(1, 0, 1)));
    // In time by the answer, too late by the clock.
    let late = PERSIST_MAX_MS;
    assert!(granted(&ledger.step(at(late), Input::Tick)).is_empty());
    let effects = ledger.step(at(late), persisted(1));
    assert_eq!(granted(&effects), [1], "the last moment");
    let mut ledger = empty();
    configure(&mut ledger, 1, None);
    ledger.step(at(0), Input::Request(request(1, 0, 1)));
    let effects = ledger.step(at(late + 1), persisted(1));
    // Taken back, and recorded anew.
    assert!(
        matches!(
            effects[..],
            [Effect::Note { .. }, Effect::Persist { seq: 2, .. }]
        ),
        "{effects:?}"
    );
    assert_eq!(granted(&ledger.step(at(late + 1), persisted(2))), [1]);
    assert_eq!(ledger.status(at(late + 1))[0].used, 1);
}

#[test]
fn the_reserve_is_never_touched_and_the_day_gives_back_what_it_took() {
    let mut ledger = empty();
    configure(&mut ledger, 1, Some(995));
    let mut now = 0;
    for id in 0..5 {
        let asked = Input::Request(request(id, id as u32, 1));
        assert_eq!(step_well(&mut ledger, at(now), asked), [id]);
        now += SPACING_MS;
    }
    let effects = step(&mut ledger, at(now), Input::Request(request(9, 9, 1)));
    let free_at = Some(at(WINDOW_MS).wall_ms);
    assert_eq!(
        effects,
        [
            Effect::Notice(Notice::Exhausted {
                bot: BOT.to_owned(),
                free_at
            }),
            Effect::Refuse {
                id: 9,
                why: Refusal::Exhausted { free_at }
            },
        ]
    );
    // Asked again: refused again, but the operator is not told again.
    let effects = step(&mut ledger, at(now), Input::Request(request(10, 9, 1)));
    assert!(
        matches!(effects[..], [Effect::Refuse { .. }]),
        "{effects:?}"
    );
    let effects = step(
        &mut ledger,
        at(WINDOW_MS),
        Input::Request(request(11, 9, 1)),
    );
    assert_eq!(granted(&effects), [11]);
}

#[test]
fn the_worse_of_both_counts_decides() {
    let mut ledger = empty();
    configure(&mut ledger, 1, None);
    // A bot of 64 shards may be a large one.
    let bot = ledger.bots.get_mut(BOT).expect("configured");
    bot.budget.shards = 64;
    let report = |remaining, max_concurrency| Input::Limits {
        bot: BOT.to_owned(),
        limits: ReportedLimits {
            total: 2000,
            remaining,
            reset_after_ms: 3_600_000,
            max_concurrency,
            recommended: 7,
        },
    };
    step(&mut ledger, at(0), report(1990, 16));
    let status = ledger.status(at(0));
    assert_eq!(
        (status[0].used, status[0].total, status[0].reserve),
        (10, 2000, 200)
    );
    assert_eq!((status[0].max_concurrency, status[0].recommended), (16, 7));
    step(&mut ledger, at(0), Input::Request(request(1, 0, 1)));
    assert_eq!(ledger.status(at(0))[0].used, 11);
    // Fetched before that permit, arrived after it.
    step(&mut ledger, at(5), report(1990, 16));
    assert_eq!(ledger.status(at(5))[0].used, 11);
    // Someone else identifies with the same token.
    step(&mut ledger, at(6), report(100, 16));
    assert_eq!(ledger.status(at(6))[0].used, 1900);
    let effects = step(&mut ledger, at(6), Input::Request(request(2, 1, 1)));
    assert!(
        matches!(effects[1], Effect::Refuse { id: 2, .. }),
        "{effects:?}"
    );
    // Discord's window ends, ours goes on.
    assert_eq!(ledger.status(at(3_700_000))[0].used, 1);
    // Nonsense is not believed.
    let effects = step(&mut ledger, at(3_700_000), report(5, 0));
    assert!(matches!(
        effects[..],
        [Effect::Notice(Notice::BadLimits { .. })]
    ));
}

#[test]
fn a_newer_attempt_takes_the_place_of_an_older_one() {
    let mut ledger = empty();
    configure(&mut ledger, 1, None);
    step(&mut ledger, at(0), Input::Request(request(1, 1, 5)));
    let refused = |id| Effect::Refuse {
        id,
        why: Refusal::Superseded,
    };
    let again = |id, attempt| {
        Input::Request(Request {
            process: "tanako/1".to_owned(),
            ..request(id, 2, attempt)
        })
    };
    assert!(step(&mut ledger, at(1), again(2, 5)).is_empty());
    assert_eq!(step(&mut ledger, at(2), again(3, 4)), [refused(3)]);
    assert_eq!(
        step(&mut ledger, at(3), again(4, 5)),
        [refused(2)],
        "same attempt, asked again"
    );
    assert_eq!(step(&mut ledger, at(4), again(5, 6)), [refused(4)]);
    ledger.step(at(5), Input::Cancel { id: 5 });
    assert!(ledger.bots[BOT].waiting.is_empty());
}

#[test]
fn a_report_that_lies_cannot_make_the_ledger_overspend() {
    // In each direction, in each number, again and again.
    let honest = ReportedLimits {
        total: 1000,
        remaining: 1000,
        reset_after_ms: 3_600_000,
        max_concurrency: 1,
        recommended: 1,
    };
    let lies = [
        honest,
        ReportedLimits {
            total: 5_000_000,
            remaining: 5_000_000,
            ..honest
        },
        ReportedLimits {
            remaining: 999,
            reset_after_ms: 0,
            ..honest
        },
        ReportedLimits {
            reset_after_ms: u64::MAX,
            ..honest
        },
        ReportedLimits {
            total: u32::MAX,
            remaining: u32::MAX,
            reset_after_ms: 1,
            recommended: u32::MAX,
            ..honest
        },
    ];
    let mut ledger = empty();
    configure(&mut ledger, 1, Some(100));
    let mut given = 0;
    let mut now = 0;
    for round in 0..12_000_u64 {
        let limits = lies[round as usize % lies.len()];
        let bot = BOT.to_owned();
        step(&mut ledger, at(now), Input::Limits { bot, limits });
        let asked = Request {
            count: 16,
            ..request(round, (round % 16) as u32, round)
        };
        let effects = step(&mut ledger, at(now), Input::Request(asked));
        for _ in granted(&effects) {
            given += 1;
            let (bot, shard, count) = (BOT.to_owned(), (round % 16) as u32, 16);
            step(&mut ledger, at(now), Input::Ready { bot, shard, count });
        }
        now += SPACING_MS;
    }
    assert!(now < DAY_MS);
    assert!(given <= 900, "{given}");
    assert!(given > 300, "it gives where it may: {given}");

    // Less is left than we spent: it stops until that window is over, whatever is said meanwhile.
    let mut ledger = empty();
    configure(&mut ledger, 1, Some(100));
    let spent = ReportedLimits {
        remaining: 100,
        ..honest
    };
    let new_window = ReportedLimits {
        reset_after_ms: 80_000_000,
        ..honest
    };
    for limits in [spent, new_window, honest] {
        let bot = BOT.to_owned();
        step(&mut ledger, at(0), Input::Limits { bot, limits });
        let effects = step(&mut ledger, at(0), Input::Request(request(1, 0, 1)));
        assert!(granted(&effects).is_empty(), "{limits:?}");
        assert_eq!(ledger.status(at(0))[0].mode, Mode::Exhausted);
    }
    // The restart of the ledger forgets none of it.
    let records = ledger.records(BOT, at(0)).expect("known");
    let mut again = Ledger::new();
    load(&mut again, at(1), records.into_iter().map(Some).collect());
    assert_eq!(again.status(at(1))[0].used, 900);
    assert_eq!(again.status(at(3_600_002))[0].used, 0);
}
