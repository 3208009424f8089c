//! Hosts that die, freeze or lose their links, under load: every shard goes on, on one host at a time,
//! with its session; nothing is missed and nothing is handled twice.
//!
//! `TANAKO_E2E_SEED` chooses the same hosts again; `TANAKO_E2E_FULL=1` makes a fleet of 64 shards in 16
//! processes with 50,000 guilds and 2,000 events a second.

mod netns {
    use std::collections::BTreeSet;

    use tanako_e2e::{
        netns::{
            Hosts, Link,
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
}
