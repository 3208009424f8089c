//! Records there and back, and what is made of those of other hosts.

use super::*;

#[test]
fn a_rewritten_ledger_says_the_same() {
    let mut ledger = empty();
    configure(&mut ledger, 4, None);
    for (n, shard) in [0, 1, 2, 3, 0, 1].into_iter().enumerate() {
        let now = at(n as i64 * 6_000);
        step(
            &mut ledger,
            now,
            Input::Request(request(n as u64, shard, n as u64)),
        );
        step(&mut ledger, now, ready(shard));
    }
    let limits = Input::Limits {
        bot: BOT.to_owned(),
        limits: ReportedLimits {
            total: 1000,
            remaining: 900,
            reset_after_ms: 500_000,
            max_concurrency: 4,
            recommended: 1,
        },
    };
    let now = at(60_000);
    step(&mut ledger, now, limits);
    let records = ledger.records(BOT, now).expect("known");
    assert_eq!(records.len(), 6 + 4 + 1);
    let mut again = Ledger::new();
    let read = records.iter().copied().map(Some).collect();
    assert!(load(&mut again, now, read).is_empty());
    configure(&mut again, 4, None);
    assert_eq!(again.status(now), ledger.status(now));
    assert_eq!(again.records(BOT, now), Some(records));
}

#[test]
fn a_ledger_of_the_largest_bots_still_fits_and_counts_every_permit() {
    let permits = 14_000_u32;
    let records: Vec<Option<Record>> = (0..permits)
        .map(|n| {
            Some(Record {
                at: at(i64::from(n) * 6_000),
                entry: Entry::Grant {
                    permit: u64::from(n) + 1,
                    shard: n % 3_000,
                    count: 3_000,
                    streak: 0,
                    valid_ms: VALID_MS as u32,
                },
            })
        })
        .collect();
    let now = at(i64::from(permits) * 6_000);
    let mut ledger = Ledger::new();
    load(&mut ledger, now, records);
    let limits = ReportedLimits {
        total: 100_000,
        remaining: 100_000,
        reset_after_ms: 1_000,
        max_concurrency: 16,
        recommended: 0,
    };
    let bot = BOT.to_owned();
    ledger.step(now, Input::Limits { bot, limits });
    for shard in 0..3_000 {
        let (bot, count) = (BOT.to_owned(), 3_000);
        ledger.step(now, Input::Ready { bot, shard, count });
    }
    assert_eq!(ledger.status(now)[0].used, permits);
    let records = ledger.records(BOT, now).expect("known");
    assert!(records.len() <= RECORDS_MAX, "{}", records.len());
    let mut again = Ledger::new();
    load(&mut again, now, records.into_iter().map(Some).collect());
    assert_eq!(again.status(now)[0].used, permits);
    assert_eq!(again.bots[BOT].last_permit, u64::from(permits));
    // A sum counts as long as its youngest: an hour later nothing is missing that should be there.
    let later = at(now.boot_ms + DAY_MS - 20_000_000);
    let (one, other) = (&ledger.status(later)[0], &again.status(later)[0]);
    again.step(later, Input::Tick);
    ledger.step(later, Input::Tick);
    assert!(other.used >= one.used, "{} < {}", other.used, one.used);
}

#[test]
fn damaged_records_count_as_permits_given_just_now() {
    let mut ledger = Ledger::new();
    let effects = load(&mut ledger, at(1_000), vec![None, None]);
    assert!(matches!(
        effects[..],
        [Effect::Notice(Notice::Damaged { records: 2, .. })]
    ));
    assert_eq!(ledger.status(at(1_000))[0].used, 2);
    step(&mut ledger, at(1_000), Input::Request(request(1, 7, 1)));
    let free = 1_000 + PERSIST_MAX_MS + spacing_ms(FOREIGN_VALID_MS);
    assert_eq!(ledger.deadline(), Some(free - LEAD_MS));
}

#[test]
fn another_hosts_records_lock_their_buckets_longer() {
    let grant = |boot_id, wall_ms| Record {
        at: Stamp {
            boot_id,
            boot_ms: 77,
            wall_ms,
        },
        entry: Entry::Grant {
            permit: 9,
            shard: 0,
            count: 1,
            streak: 0,
            valid_ms: VALID_MS as u32,
        },
    };
    let now = at(5_000_000);
    let free_after = |record| {
        let mut ledger = Ledger::new();
        load(&mut ledger, now, vec![Some(record)]);
        let request = Input::Request(request(1, 0, 1));
        let effects = ledger.step(now, request);
        let early = match effects[..] {
            [Effect::Persist { .. }] => return 0,
            _ => ledger.deadline().expect("it waits"),
        };
        early + LEAD_MS - now.boot_ms
    };
    // Its leader may be about to release it, whatever the two clocks say: ours may have been set a moment
    // ago, and by a day.
    for wall_ms in [-DAY_MS, -SKEW_MAX_MS - 60_000, -1_000, 0, 1_000, DAY_MS] {
        let record = grant(2, now.wall_ms + wall_ms);
        assert_eq!(free_after(record), PERSIST_MAX_MS + SPACING_MS, "{wall_ms}");
    }
    // Of our own boot the clock is exact, and whoever made it is dead.
    let mut own = grant(1, 0);
    own.at.boot_ms = now.boot_ms - 1_000;
    assert_eq!(free_after(own), SPACING_MS);
    own.at.boot_ms = now.boot_ms - PERSIST_MAX_MS - 1_000;
    assert_eq!(free_after(own), SPACING_MS - 1_000);
}

#[test]
fn of_another_hosts_records_the_latest_of_a_shard_locks() {
    let grant = |permit, shard, boot_id, boot_ms| {
        let at = Stamp {
            boot_id,
            boot_ms,
            wall_ms: 0,
        };
        let entry = Entry::Grant {
            permit,
            shard,
            count: 64,
            streak: 0,
            valid_ms: VALID_MS as u32,
        };
        Some(Record { at, entry })
    };
    let now = at(5_000_000);
    let mut ledger = Ledger::new();
    // Shard 0 was given a permit by us since, long ago; shard 2 of another bucket was not.
    let records = vec![
        grant(1, 0, 2, 50),
        grant(2, 2, 2, 60),
        grant(3, 0, 1, now.boot_ms - 60_000),
    ];
    load(&mut ledger, now, records);
    configure(&mut ledger, 3, None);
    let free = now.boot_ms + PERSIST_MAX_MS + SPACING_MS;
    let locked: Vec<(u32, i64)> = ledger.bots[BOT]
        .buckets(3)
        .into_iter()
        .map(|(bucket, locked)| (bucket, locked.free_at))
        .collect();
    assert_eq!(locked, [(2, free)]);
}
