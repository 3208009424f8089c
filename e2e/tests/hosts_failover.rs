//! Hosts that die, freeze or lose their links, under load: every shard goes on, on one host at a time,
//! with its session; nothing is missed and nothing is handled twice.
//!
//! `TANAKO_E2E_SEED` chooses the same hosts again; `TANAKO_E2E_FULL=1` makes a fleet of 64 shards in 16
//! processes with 50,000 guilds and 2,000 events a second.

mod netns {
    use std::{
        collections::{BTreeMap, BTreeSet},
        time::{Duration, Instant},
    };

    use serde_json::Value;
    use tanako_e2e::{
        Size,
        fleet::text,
        netns::{
            self, Hosts, Link,
            judge::{demand_lossless, demand_once},
            size,
        },
        rig::seed,
        wait,
    };

    const HOSTS: [&str; 3] = ["a", "b", "c"];

    /// A host with shards, and these. One that lost its lease to a busy machine may have none.
    fn victim(fleet: &Hosts) -> (&'static str, BTreeSet<u64>) {
        let mut hosts = HOSTS;
        fastrand::Rng::with_seed(seed()).shuffle(&mut hosts);
        let all = hosts.map(|host| (host, fleet.shards_on(host)));
        let mut all = all.into_iter();
        all.find(|(_, shards)| !shards.is_empty())
            .expect("a host with shards")
    }

    #[test]
    fn the_shards_of_a_dead_host_resume_elsewhere_and_it_comes_back_to_nothing_stale() {
        let mut fleet = Hosts::up(&HOSTS, size());
        let (host, shards) = victim(&fleet);
        fleet.flow();
        fleet.cut_power(host);
        fleet.until_elsewhere(host, &shards);
        fleet.revive(host);
        let account = fleet.settle();
        demand_lossless(&fleet, "power cut", &account);
        demand_once(&fleet, &account, &shards);
    }

    #[test]
    fn a_host_that_wakes_up_late_has_lost_its_shards_and_touches_none() {
        let mut fleet = Hosts::up(&HOSTS, size());
        let (host, shards) = victim(&fleet);
        fleet.flow();
        fleet.freeze(host);
        fleet.until_elsewhere(host, &shards);
        fleet.thaw(host);
        fleet.until_idle(host);
        fleet.until_answers(host);
        let account = fleet.settle();
        demand_lossless(&fleet, "frozen", &account);
        demand_once(&fleet, &account, &shards);
    }

    #[test]
    fn the_fence_kills_what_a_frozen_agent_cannot() {
        let mut fleet = Hosts::up(&HOSTS, size());
        let (host, shards) = victim(&fleet);
        fleet.flow();
        fleet.freeze_agent_and_bots(host);
        // Killed where they stand: none of them wakes up with shards that are another's.
        fleet.until_idle(host);
        fleet.until_elsewhere(host, &shards);
        fleet.thaw(host);
        fleet.until_answers(host);
        let account = fleet.settle();
        demand_lossless(&fleet, "agent and bots frozen", &account);
        demand_once(&fleet, &account, &shards);
    }

    #[test]
    fn a_host_without_its_links_goes_on_or_gives_up_as_it_must() {
        let mut fleet = Hosts::up(&HOSTS, size());
        let (host, shards) = victim(&fleet);
        let places = fleet.places();

        // The other hosts alone, or etcd alone: its lease lives, so nothing moves.
        for link in [Link::Others, Link::Etcd] {
            fleet.flow();
            fleet.cut(host, link);
            // Three times the life of a lease.
            let until = std::time::Instant::now() + std::time::Duration::from_secs(15);
            wait::until("a while without etcd or others", 60, || {
                let now = std::time::Instant::now();
                (now >= until).then_some(()).ok_or_else(String::new)
            });
            fleet.heal(host);
            let account = fleet.settle();
            demand_lossless(&fleet, &format!("cut from {link:?}"), &account);
            demand_once(&fleet, &account, &BTreeSet::new());
            assert_eq!(fleet.places(), places, "nothing moved");
        }

        // Etcd and all who could speak for it: its lease ends, and it knows.
        fleet.flow();
        for link in [Link::Others, Link::Etcd, Link::EtcdPeers] {
            fleet.cut(host, link);
        }
        fleet.until_idle(host);
        fleet.until_elsewhere(host, &shards);
        fleet.heal(host);
        fleet.until_answers(host);
        let account = fleet.settle();
        demand_lossless(&fleet, "cut from everything but Discord", &account);
        demand_once(&fleet, &account, &shards);
    }

    /// What a fleet says while it asks the operator, on every host that runs.
    fn until_asked(fleet: &Hosts, what: &str) {
        for host in fleet.living() {
            wait::until(&format!("{what:?} on {host}"), 90, || {
                let told = text(&fleet.ctl(&host, &["status"]));
                // As wide as it is shown: the lines are broken somewhere.
                let words: Vec<&str> = told.split_whitespace().collect();
                let told = words.join(" ");
                let helps = told.contains("tanakoctl rebalance --lost HOST");
                (told.contains(what) && helps).then_some(()).ok_or(told)
            });
        }
    }

    #[test]
    fn beyond_the_brake_nothing_moves_until_the_operator_says_which_hosts_are_off() {
        const ALL: [&str; 5] = ["a", "b", "c", "d", "e"];
        // Etcd keeps two of its three members.
        const LOST: [&str; 3] = ["c", "d", "e"];
        let size = Size {
            // Longer than anybody takes to make up his mind.
            discord: vec!["--resume-window".to_owned(), "15m".to_owned()],
            ..size()
        };
        let mut fleet = Hosts::up(&ALL, size);
        let places = fleet.places();
        let shards: BTreeMap<&str, BTreeSet<u64>> = LOST
            .iter()
            .map(|host| (*host, fleet.shards_on(host)))
            .collect();
        let moved: BTreeSet<u64> = shards.values().flatten().copied().collect();
        fleet.flow();
        for host in LOST {
            fleet.cut_power(host);
        }
        until_asked(&fleet, "3 of 5 hosts are lost (c, d, e)");
        fleet.say("the operator is asked");
        let host = fleet.coordinator();
        let events = text(&fleet.ctl(&host, &["events", "-o", "json"]));
        let braked = |line: &str| {
            serde_json::from_str::<Value>(line).is_ok_and(|event| {
                event["kind"] == "failover-braked"
                    && event["message"]
                        .as_str()
                        .is_some_and(|text| text.contains("tanakoctl rebalance --lost HOST"))
            })
        };
        assert!(events.lines().any(braked), "{events}");
        // What the alerts TanakoFailoverBraked and TanakoFailoverWaits look at.
        for (metric, wanted) in [
            ("tanako_failover_braked", 1.0),
            ("tanako_failover_waiting", 3.0),
        ] {
            wait::until(metric, 60, || {
                let value = fleet.metric(&host, metric)?;
                (value.to_bits() == f64::to_bits(wanted))
                    .then_some(())
                    .ok_or_else(|| value.to_string())
            });
        }
        // Several times as long as it takes to move what may be moved.
        let bots = fleet.bots();
        let until = Instant::now() + Duration::from_secs(20);
        wait::until("a while without a decision", 60, || {
            let now = fleet.status()?;
            assert_eq!(netns::places(&now), places, "nothing moves");
            (Instant::now() >= until)
                .then_some(())
                .ok_or_else(String::new)
        });
        assert!(
            fleet.bots() == bots || fleet.has_bystanders(),
            "nothing is started"
        );

        // Whoever lives is not given up, by nobody's word.
        wait::until("a refusal", 90, || {
            let refused = fleet.ctl(&host, &["rebalance", "--lost", "a", "--yes"]);
            assert!(!refused.status.success(), "{}", text(&refused));
            // A busy machine's etcd may not answer for a moment, and then nothing is done either.
            text(&refused)
                .contains("host a is not lost")
                .then_some(())
                .ok_or_else(|| text(&refused))
        });

        let asked = if host == "a" { "b" } else { "a" };
        let give_up = |fleet: &Hosts, lost: &str| {
            wait::until(&format!("{lost} to be given up"), 90, || {
                let output = fleet.ctl(asked, &["rebalance", "--lost", lost, "--yes", "--wait"]);
                // With one member of etcd lost and a machine that is busy, the store may be away for a moment:
                // then it is asked for again. Exit 3: it was done before.
                let done = matches!(output.status.code(), Some(0 | 3));
                done.then_some(())
                    .ok_or_else(|| format!("{}\n{}", text(&output), fleet.story()))
            });
            fleet.until_elsewhere(lost, &shards[lost]);
        };
        give_up(&fleet, "c");
        // Two of four are still too many.
        until_asked(&fleet, "2 of 4 hosts are lost (d, e)");
        let now = fleet.places();
        for (process, host) in places
            .iter()
            .filter(|(_, host)| *host == "d" || *host == "e")
        {
            assert_eq!(now.get(process), Some(host), "{process} waits for its turn");
        }
        give_up(&fleet, "d");
        // One of three is no storm any more, and whatever can be proven of it has been.
        fleet.until_elsewhere("e", &shards["e"]);
        for host in LOST {
            fleet.revive(host);
        }
        let account = fleet.settle();
        for host in LOST {
            fleet.until_idle(host);
        }
        demand_lossless(&fleet, "beyond the brake", &account);
        demand_once(&fleet, &account, &moved);
    }
}
