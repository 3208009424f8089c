use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    world::{TTL, World, name},
    *,
};

fn member(present: bool, stay: u32) -> Member {
    Member {
        present,
        terms: Terms {
            instance: "i".to_owned(),
            ttl_ms: TTL,
            stay,
            released: false,
        },
    }
}

fn members(hosts: &[(&str, bool)], stay: u32) -> BTreeMap<String, Member> {
    hosts
        .iter()
        .map(|(host, present)| ((*host).to_owned(), member(*present, stay)))
        .collect()
}

fn answers(now: u64, hosts: &[&str]) -> BTreeMap<String, Answer> {
    let contact = Span {
        from: now - 2_600,
        to: now - 2_500,
    };
    let answer = Answer {
        contacts: vec![contact],
    };
    hosts
        .iter()
        .map(|host| ((*host).to_owned(), answer.clone()))
        .collect()
}

fn look(failover: &mut Failover, now: u64, hosts: &[(&str, bool)], asked: &[&str]) -> Vec<Effect> {
    failover.step(now - 50, Input::Tick);
    let looked = Input::Looked {
        began_at: now - 50,
        members: members(hosts, brake_limit(hosts.len(), SHARE) as u32),
        answers: answers(now, asked),
    };
    failover.step(now, looked)
}

fn releases(effects: &[Effect]) -> Vec<&str> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Release { host, .. } => Some(host.as_str()),
            _ => None,
        })
        .collect()
}

#[test]
fn the_brake_grows_with_the_fleet() {
    let limits: Vec<usize> = [0, 1, 2, 3, 5, 6, 10, 50]
        .into_iter()
        .map(|hosts| brake_limit(hosts, SHARE))
        .collect();
    assert_eq!(limits, [0, 0, 1, 1, 1, 2, 3, 17]);
    assert_eq!(brake_limit(3, 1.0), 2, "one is left to take them");
}

#[test]
fn a_lost_host_is_released_when_the_others_were_in_touch() {
    let mut failover = Failover::new(SHARE);
    let all = [("a", true), ("b", true), ("c", true)];
    assert_eq!(failover.step(10_000, Input::Members(members(&all, 1))), []);
    assert_eq!(failover.deadline(), None);
    let lost = [("a", true), ("b", false), ("c", true)];
    let effects = failover.step(20_000, Input::Members(members(&lost, 1)));
    assert_eq!(
        effects[0],
        Effect::Tell(Told::Lost {
            host: "b".to_owned()
        })
    );
    assert_eq!(effects[1], Effect::Look);
    // One of two is silent: b may be staying with it.
    assert_eq!(
        releases(&look(&mut failover, 20_300, &lost, &["a"])),
        [""; 0]
    );
    assert_eq!(
        failover.lost().next(),
        Some(("b", &Wait::Proof(vec!["c".to_owned()])))
    );
    assert_eq!(
        releases(&look(&mut failover, 20_700, &lost, &["a", "c"])),
        ["b"]
    );
    assert_eq!(
        releases(&look(&mut failover, 20_800, &lost, &["a", "c"])),
        [""; 0],
        "once"
    );
    let released = Input::Released {
        host: "b".to_owned(),
        instance: "i".to_owned(),
    };
    failover.step(20_900, released);
    assert_eq!(failover.released().collect::<Vec<_>>(), ["b"]);
    assert_eq!(failover.deadline(), None);
}

#[test]
fn a_slow_look_or_one_from_before_proves_nothing() {
    let mut failover = Failover::new(SHARE);
    let lost = [("a", true), ("b", false), ("c", true)];
    failover.step(20_000, Input::Members(members(&lost, 1)));
    for (now, began_at) in [(20_100, 19_990), (22_000, 20_900)] {
        let looked = Input::Looked {
            began_at,
            members: members(&lost, 1),
            answers: answers(now, &["a", "c"]),
        };
        assert_eq!(releases(&failover.step(now, looked)), [""; 0]);
    }
}

#[test]
fn beyond_the_brake_the_operator_is_asked() {
    let mut failover = Failover::new(SHARE);
    let lost = [("a", true), ("b", false), ("c", false)];
    let effects = failover.step(20_000, Input::Members(members(&lost, 1)));
    let braked = Told::Braked {
        lost: vec!["b".to_owned(), "c".to_owned()],
        limit: 1,
        hosts: 3,
    };
    assert!(
        effects.contains(&Effect::Tell(braked.clone())),
        "{effects:?}"
    );
    assert_eq!(
        releases(&look(&mut failover, 20_300, &lost, &["a"])),
        [""; 0]
    );
    assert_eq!(failover.asks(), [braked], "as long as it holds");
    failover.step(
        20_400,
        Input::Allow {
            host: "b".to_owned(),
        },
    );
    let other = Told::Braked {
        lost: vec!["c".to_owned()],
        limit: 1,
        hosts: 3,
    };
    assert_eq!(failover.asks(), [other], "of b all is said");
    failover.step(
        20_400,
        Input::Allow {
            host: "nobody".to_owned(),
        },
    );
    assert_eq!(releases(&look(&mut failover, 20_700, &lost, &["a"])), ["b"]);
    let released = Input::Released {
        host: "b".to_owned(),
        instance: "i".to_owned(),
    };
    let effects = failover.step(20_800, released);
    // One of the two that are left is lost: that is within the limit, but c may stay with nobody.
    assert!(
        effects.contains(&Effect::Tell(Told::Unbraked)),
        "{effects:?}"
    );
    assert_eq!(failover.asks(), []);
    let mut after = members(&lost, 1);
    after.get_mut("b").expect("there").terms.released = true;
    let looked = Input::Looked {
        began_at: 21_000,
        members: after,
        answers: answers(21_100, &["a"]),
    };
    assert_eq!(releases(&failover.step(21_100, looked)), ["c"]);
}

#[test]
fn the_operator_is_asked_about_who_is_not_proven_to_have_stopped() {
    let mut failover = Failover::new(SHARE);
    let lost = [("a", true), ("b", false), ("c", true)];
    failover.step(20_000, Input::Members(members(&lost, 1)));
    look(&mut failover, 20_300, &lost, &["a"]);
    assert_eq!(failover.asks(), [], "it may be proven in a moment");
    let told = Told::Unproven {
        host: "b".to_owned(),
        silent: vec!["c".to_owned()],
    };
    let effects = look(&mut failover, 20_000 + WAIT_MS, &lost, &["a"]);
    assert!(effects.contains(&Effect::Tell(told.clone())), "{effects:?}");
    let again = look(&mut failover, 28_000, &lost, &["a"]);
    assert!(!again.contains(&Effect::Tell(told.clone())), "once");
    assert_eq!(failover.asks(), [told], "as long as it waits");
    let proven = look(&mut failover, 31_000, &lost, &["a", "c"]);
    assert_eq!(releases(&proven), ["b"]);
    assert_eq!(failover.asks(), []);
}

#[test]
fn who_comes_back_is_not_released() {
    let mut failover = Failover::new(SHARE);
    let lost = [("a", true), ("b", false), ("c", true)];
    failover.step(20_000, Input::Members(members(&lost, 1)));
    let all = [("a", true), ("b", true), ("c", true)];
    let effects = look(&mut failover, 20_300, &all, &["a", "c"]);
    assert_eq!(
        effects,
        [Effect::Tell(Told::Back {
            host: "b".to_owned()
        })]
    );
    assert_eq!(failover.deadline(), None);
}

#[test]
fn one_dead_host_of_three_is_released_soon_after_its_lease() {
    for seed in 0..40 {
        let mut world = World::new(3, seed);
        world.run(8_000);
        assert_eq!(world.tenured(), 3, "seed {seed}");
        world.hosts[2].frozen = true;
        world.run(9_000);
        assert!(
            world
                .store
                .released
                .contains(&(2, world.hosts[2].instance.clone())),
            "seed {seed}"
        );
        assert_eq!(world.tenured(), 2, "seed {seed}");
        world.heal();
        world.run(10_000);
        assert_eq!(world.tenured(), 3, "seed {seed}");
    }
}

#[test]
fn an_outage_of_the_store_ends_nobody() {
    for seed in 0..40 {
        for count in [1, 2, 3, 6, 9] {
            let mut world = World::new(count, seed);
            world.run(12_000);
            let before = world.lapses();
            world.store.up = false;
            world.run(60_000);
            assert_eq!(world.tenured(), count, "seed {seed} of {count}");
            // The leases are over when it returns, or not.
            world.store.leases.clear();
            world.store.present.clear();
            world.heal();
            world.run(20_000);
            assert_eq!(world.tenured(), count, "seed {seed} of {count}");
            assert_eq!(world.lapses(), before, "seed {seed} of {count}");
            assert!(world.store.released.is_empty(), "seed {seed} of {count}");
        }
    }
}

#[test]
fn cut_from_the_store_alone_is_carried_by_a_peer() {
    for seed in 0..40 {
        let mut world = World::new(3, seed);
        world.run(8_000);
        world.to_store[1] = false;
        world.run(30_000);
        assert_eq!((world.tenured(), world.lapses()), (3, 0), "seed {seed}");
    }
}

#[test]
fn cut_from_everything_it_stops_before_it_is_released() {
    for seed in 0..40 {
        let mut world = World::new(3, seed);
        world.run(8_000);
        world.to_store[1] = false;
        world.links.extend([(0, 1), (1, 2)]);
        world.run(15_000);
        assert_eq!((world.tenured(), world.lapses()), (2, 1), "seed {seed}");
        assert_eq!(world.store.released.len(), 1, "seed {seed}");
    }
}

#[test]
fn two_of_three_are_beyond_the_brake() {
    for seed in 0..40 {
        let mut world = World::new(3, seed);
        world.run(8_000);
        world.hosts[1].frozen = true;
        world.hosts[2].frozen = true;
        world.run(30_000);
        assert!(world.failover.is_braked(), "seed {seed}");
        assert!(world.store.released.is_empty(), "seed {seed}");
        world.coordinate(Input::Allow { host: name(1) });
        world.run(5_000);
        assert!(
            world
                .store
                .released
                .contains(&(1, world.hosts[1].instance.clone())),
            "seed {seed}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever fails, in whatever order: no process has two owners (asserted at every step above), and
    /// when all is well again every host is in.
    #[test]
    fn no_process_ever_has_two_owners(
        seed in any::<u64>(),
        count in 2..8usize,
        faults in proptest::collection::vec((0..9u8, any::<u8>(), any::<u8>(), 50..6_000u64), 1..40),
    ) {
        let mut world = World::new(count, seed);
        world.slow = 4;
        world.run(6_000);
        for (kind, a, b, span) in faults {
            let (a, b) = (usize::from(a) % count, usize::from(b) % count);
            match kind {
                0 => world.hosts[a].frozen = true,
                1 => world.thaw(a),
                2 => world.to_store[a] = !world.to_store[a],
                3 | 4 if a != b => {
                    let link = (a.min(b), a.max(b));
                    if !world.links.remove(&link) {
                        world.links.insert(link);
                    }
                }
                5 => world.store.up = !world.store.up,
                // The store has a new leader: every lease gets a full term.
                6 => {
                    let ends = world.now + TTL;
                    world.store.leases.values_mut().for_each(|end| *end = ends);
                }
                // Another coordinator, with nothing in its memory.
                7 => {
                    world.coordinator = a;
                    world.failover = Failover::new(SHARE);
                    world.look = None;
                }
                8 => world.heal(),
                _ => {}
            }
            world.run(span);
        }
        world.heal();
        world.run(40_000);
        prop_assert_eq!(world.tenured(), count);
    }
}
