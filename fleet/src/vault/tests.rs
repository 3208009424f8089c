//! The vault's rules against stale, repeated and reordered inputs, and crashes between any two.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const DAY: i64 = 24 * 60 * 60 * 1000;

fn process(index: u8) -> ProcessName {
    format!("bot/{index}").parse().expect("a good name")
}

fn who(index: u8, attempt: u64) -> Holder {
    Holder {
        process: process(index),
        attempt,
    }
}

fn key() -> ShardKey {
    ShardKey {
        bot: "bot".to_owned(),
        shard: 3,
        count: 8,
    }
}

fn session(id: u8, seq: u64, at: i64) -> Session {
    Session {
        id: SessionId(format!("s{id}")),
        seq,
        resume_url: "wss://gateway.example".to_owned(),
        application: 1,
        intents: 513,
        token_sha256: [7; 32],
        handled: vec![seq + 1, seq + 2, seq + 1],
        guilds: 5,
        last_event_at: at,
        stopped_at: 0,
        deposited_at: at,
        seen_at: at,
    }
}

fn offered(vault: &Vault, now: i64) -> Option<(String, u64)> {
    vault
        .offer(now, &key(), &Wanted::default())
        .map(|session| (session.id.0.clone(), session.seq))
}

#[test]
fn only_the_holder_counts() {
    let mut vault = Vault::new();
    assert!(vault.attach(&key(), &who(0, 5)));
    let stale = vault.deposit(&key(), &who(0, 4), session(1, 9, 0));
    assert_eq!(stale, Err(Refused::NotHolder));
    assert_eq!(
        vault.deposit(&key(), &who(0, 5), session(1, 1, 0)),
        Ok(true)
    );
    assert!(!vault.attach(&key(), &who(0, 4)), "a late Hello");
    assert_eq!(
        vault.deposit(&key(), &who(0, 5), session(1, 2, 1)),
        Ok(false)
    );
    // Moved by the spec: nothing was handed over.
    assert!(vault.attach(&key(), &who(1, 1)));
    let late = vault.deposit(&key(), &who(0, 5), session(1, 3, 2));
    assert_eq!(late, Err(Refused::NotHolder));
    let s1 = SessionId("s1".to_owned());
    assert!(!vault.discard(&key(), &who(0, 5), &s1));
    assert!(vault.discard(&key(), &who(1, 1), &s1));
    assert_eq!(offered(&vault, 2), None);
    let back = vault.deposit(&key(), &who(1, 1), session(1, 4, 3));
    assert_eq!(back, Err(Refused::Ended), "a void session came back");
}

#[test]
fn what_was_handed_over_is_not_taken_back() {
    let mut vault = Vault::new();
    vault.attach(&key(), &who(0, 1));
    vault
        .deposit(&key(), &who(0, 1), session(1, 7, 10))
        .expect("kept");
    assert!(vault.handover(&key(), &process(0), &who(1, 1)));
    assert!(vault.handover(&key(), &process(0), &who(1, 1)), "twice");
    assert_eq!(offered(&vault, 11), Some(("s1".to_owned(), 7)));
    let late = vault.deposit(&key(), &who(0, 1), session(1, 8, 12));
    assert_eq!(late, Err(Refused::NotHolder));
    // The warm one crashes and comes back, and so does the agent.
    assert!(!vault.attach(&key(), &who(0, 2)));
    let slot = vault.slot(&key()).expect("known").clone();
    let mut vault = Vault::new();
    vault.load(key(), slot);
    assert!(!vault.attach(&key(), &who(0, 3)));
    vault
        .deposit(&key(), &who(1, 1), session(1, 9, 13))
        .expect("kept");
    let before = vault.last_before(&key(), &who(1, 1)).expect("known");
    assert_eq!((before.by.clone(), before.seq), (who(0, 1), 7));
    assert!(
        !vault.handover(&key(), &process(0), &who(2, 1)),
        "not its holder"
    );
    // Rolled back.
    assert!(vault.handover(&key(), &process(1), &who(0, 3)));
    vault
        .deposit(&key(), &who(0, 3), session(1, 10, 14))
        .expect("kept");
    let late = vault.deposit(&key(), &who(1, 1), session(1, 11, 15));
    assert_eq!(late, Err(Refused::NotHolder));
}

#[test]
fn a_session_is_offered_to_its_own_only_and_not_for_ever() {
    let mut vault = Vault::new();
    vault
        .deposit(&key(), &who(0, 1), session(1, 7, 1_000))
        .expect("kept");
    let fits = |vault: &Vault, now, wanted: Wanted| vault.offer(now, &key(), &wanted).is_some();
    let known = Wanted {
        token_sha256: Some([7; 32]),
        application: Some(1),
        intents: Some(513),
    };
    assert!(fits(&vault, 2_000, known));
    for other in [
        Wanted {
            token_sha256: Some([8; 32]),
            ..known
        },
        Wanted {
            application: Some(2),
            ..known
        },
        Wanted {
            intents: Some(1),
            ..known
        },
    ] {
        assert!(!fits(&vault, 2_000, other), "{other:?}");
    }
    let tuple = ShardKey { count: 16, ..key() };
    assert!(vault.offer(2_000, &tuple, &known).is_none());
    assert!(!fits(&vault, 1_001 + OFFER_MS_MAX, known));
    // An idle shard deposits nothing, and is connected all the same.
    vault.seen(OFFER_MS_MAX, &key(), &who(0, 1));
    assert!(fits(&vault, 1_001 + OFFER_MS_MAX, known));
    vault.seen(2 * OFFER_MS_MAX, &key(), &who(0, 9));
    assert!(
        !fits(&vault, 2 * OFFER_MS_MAX + 1, known),
        "a stranger's sign of life"
    );
    assert!(vault.expire(2 * OFFER_MS_MAX).is_empty());
    let slot = vault.slot(&key()).expect("known").clone();
    vault.load(key(), slot);
    assert_eq!(vault.expire(OFFER_MS_MAX + DAY + 1), [key()]);
}

#[test]
fn the_host_that_took_the_shard_later_wins_and_one_at_work_is_never_overruled() {
    let mut a = Vault::new();
    a.attach(&key(), &who(0, 40));
    a.deposit(&key(), &who(0, 40), session(1, 7, 1_000))
        .expect("kept");
    let old = a.slot(&key()).expect("known").clone();
    // Host b knew the copy, took over, and its clock is behind.
    let mut b = Vault::new();
    assert!(b.merge(&key(), &old));
    b.attach(&key(), &who(0, 41));
    b.deposit(&key(), &who(0, 41), session(2, 3, 500))
        .expect("kept");
    let new = b.slot(&key()).expect("known").clone();
    // a comes back with what it had.
    let mut a = Vault::new();
    a.load(key(), old.clone());
    assert!(a.merge(&key(), &new));
    assert_eq!(offered(&a, 1_000), Some(("s2".to_owned(), 3)));
    assert!(!a.merge(&key(), &new), "the same again changes nothing");
    // b is not impressed by the older copy, and its next one is the later one.
    b.merge(&key(), &old);
    assert_eq!(offered(&b, 1_000), Some(("s2".to_owned(), 3)));
    // Nor is a host that knew no copy when it began.
    let mut c = Vault::new();
    c.attach(&key(), &who(0, 1));
    c.deposit(&key(), &who(0, 1), session(4, 2, 100))
        .expect("kept");
    assert!(c.merge(&key(), &new));
    assert_eq!(offered(&c, 1_000), Some(("s4".to_owned(), 2)));
    assert!(c.slot(&key()).expect("known").term > new.term);
}

#[derive(Debug, Clone)]
enum Act {
    Attach(u8, u64),
    Deposit(u8, u64, u8, u64),
    Discard(u8, u64, u8),
    Handover(u8, u8, u64),
    /// What is in memory reaches the disk.
    Write,
    /// kill -9 of the agent: what was written is what there is.
    Crash,
}

fn act() -> impl Strategy<Value = Act> {
    let p = 0..3_u8;
    let a = 1..4_u64;
    let s = 0..4_u8;
    prop_oneof![
        2 => (p.clone(), a.clone()).prop_map(|(p, a)| Act::Attach(p, a)),
        8 => (p.clone(), a.clone(), s.clone(), 0..50_u64)
            .prop_map(|(p, a, s, seq)| Act::Deposit(p, a, s, seq)),
        1 => (p.clone(), a.clone(), s).prop_map(|(p, a, s)| Act::Discard(p, a, s)),
        2 => (p.clone(), p, a).prop_map(|(f, t, a)| Act::Handover(f, t, a)),
        2 => Just(Act::Write),
        1 => Just(Act::Crash),
    ]
}

proptest! {
    #[test]
    fn no_order_of_inputs_breaks_the_rules(acts in prop::collection::vec(act(), 0..120)) {
        let mut vault = Vault::new();
        let mut disk: Option<Slot> = None;
        // Who handed over last to whom, and by that may not write.
        let mut given_by: HashSet<u8> = HashSet::new();
        let mut disk_given = given_by.clone();
        let mut best: HashMap<String, u64> = HashMap::new();
        let mut disk_best = best.clone();
        let mut ended: Vec<String> = Vec::new();
        let mut disk_ended = ended.clone();
        for (step, act) in acts.into_iter().enumerate() {
            let now = step as i64;
            let held = vault.slot(&key()).and_then(|slot| slot.holder.clone());
            let was = offered(&vault, now);
            match act {
                Act::Attach(p, a) => {
                    let took = vault.attach(&key(), &who(p, a));
                    prop_assert!(!(took && given_by.contains(&p)), "taken back");
                    if took && let Some(held) = held && held.process == process(p) {
                        prop_assert!(held.attempt <= a, "an older attempt took it");
                    }
                }
                Act::Deposit(p, a, s, seq) => {
                    let new = session(s, seq, now);
                    let id = new.id.0.clone();
                    if let Ok(other) = vault.deposit(&key(), &who(p, a), new) {
                        prop_assert!(!given_by.contains(&p), "handed over, and deposits");
                        if let Some(held) = held {
                            prop_assert_eq!(held.process, process(p));
                            prop_assert!(held.attempt <= a);
                        }
                        let (now_id, now_seq) = offered(&vault, now).expect("just deposited");
                        prop_assert_eq!(&now_id, &id);
                        prop_assert!(!ended.contains(&id), "an ended session came back");
                        prop_assert!(now_seq >= seq);
                        prop_assert!(best.get(&id).is_none_or(|best| now_seq >= *best), "seq went back");
                        best.insert(id.clone(), now_seq);
                        if other && let Some((old, _)) = was && old != id {
                            ended.push(old);
                        }
                    } else {
                        prop_assert_eq!(offered(&vault, now), was);
                    }
                }
                Act::Discard(p, a, s) => {
                    let id = SessionId(format!("s{s}"));
                    if vault.discard(&key(), &who(p, a), &id) {
                        prop_assert_eq!(was.map(|(id, _)| id), Some(id.0.clone()));
                        prop_assert!(!given_by.contains(&p));
                        prop_assert_eq!(offered(&vault, now), None);
                        ended.push(id.0);
                    } else {
                        prop_assert_eq!(offered(&vault, now), was);
                    }
                }
                Act::Handover(from, to, a) => {
                    if vault.handover(&key(), &process(from), &who(to, a)) {
                        let now_held = vault.slot(&key()).and_then(|slot| slot.holder.clone());
                        prop_assert_eq!(now_held.map(|held| held.process), Some(process(to)));
                        given_by.remove(&to);
                        if from != to {
                            given_by.insert(from);
                        }
                        // A hold moves with its session.
                        prop_assert_eq!(offered(&vault, now), was);
                    } else {
                        prop_assert_eq!(offered(&vault, now), was);
                    }
                }
                Act::Write => {
                    disk = vault.slot(&key()).cloned();
                    (disk_given, disk_best, disk_ended) = (given_by.clone(), best.clone(), ended.clone());
                }
                Act::Crash => {
                    vault = Vault::new();
                    if let Some(slot) = &disk {
                        vault.load(key(), slot.clone());
                    }
                    (given_by, best, ended) = (disk_given.clone(), disk_best.clone(), disk_ended.clone());
                }
            }
            if let Some(slot) = vault.slot(&key()) {
                prop_assert!(slot.given.len() <= GIVEN_MAX && slot.ended.len() <= ENDED_MAX);
                if let Some(session) = &slot.session {
                    let handled = &session.handled;
                    prop_assert!(handled.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", handled);
                }
            }
        }
    }

    #[test]
    fn copies_agree_whatever_the_order(
        left in prop::collection::vec(act(), 0..40),
        right in prop::collection::vec(act(), 0..40),
    ) {
        // Two hosts that knew nothing of each other, both gone.
        let run = |acts: &[Act], offset: i64| {
            let mut vault = Vault::new();
            for (step, act) in acts.iter().enumerate() {
                match act {
                    Act::Attach(p, a) => {
                        vault.attach(&key(), &who(*p, *a));
                    }
                    Act::Deposit(p, a, s, seq) => {
                        let _ = vault.deposit(&key(), &who(*p, *a), session(*s, *seq, step as i64 + offset));
                    }
                    Act::Discard(p, a, s) => {
                        vault.discard(&key(), &who(*p, *a), &SessionId(format!("s{s}")));
                    }
                    Act::Handover(f, t, a) => {
                        vault.handover(&key(), &process(*f), &who(*t, *a));
                    }
                    Act::Write | Act::Crash => {}
                }
            }
            vault.slot(&key()).cloned()
        };
        let (Some(left), Some(right)) = (run(&left, 0), run(&right, 7)) else {
            return Ok(());
        };
        let join = |first: &Slot, second: &Slot| {
            let mut vault = Vault::new();
            vault.load(key(), first.clone());
            vault.merge(&key(), second);
            assert!(!vault.merge(&key(), second), "merging again changes nothing");
            (offered(&vault, 50), vault.slot(&key()).and_then(|slot| slot.holder.clone()))
        };
        prop_assert_eq!(join(&left, &right), join(&right, &left));
    }
}
