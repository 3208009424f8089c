//! The store of a fleet in trouble: its leader dies, all of it is away. No shard notices, and what was asked
//! for is done in the end.
//!
//! `TANAKO_E2E_FULL=1`: an outage of ten minutes, with 64 shards, 50,000 guilds and 2,000 events a second.

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
            self, Hosts,
            judge::{demand_lossless, demand_once},
        },
        processes,
        rig::{self, full},
        wait,
    };

    const HOSTS: [&str; 3] = ["a", "b", "c"];
    const LEASE_S: u32 = 15;

    fn leaves(fleet: &mut Hosts) {
        for host in HOSTS {
            fleet.etcd.kill_member(host);
        }
        fleet.say("etcd is away");
    }

    fn returns(fleet: &mut Hosts) {
        for host in HOSTS {
            fleet.etcd.start_member(&fleet.lan, host);
        }
        for host in HOSTS {
            fleet.etcd.until_healthy(&fleet.lan, host);
        }
        fleet.say("etcd is back");
    }

    /// Leases that outlive the moments for which a busy machine gives nobody a core: here nothing is lost, and
    /// nothing has to be found lost soon.
    fn size() -> Size {
        Size {
            host_lease_s: LEASE_S,
            ..netns::size()
        }
    }

    /// Several times the life of a lease.
    fn a_while() {
        let seconds = if full() { 600 } else { 3 * u64::from(LEASE_S) };
        let until = Instant::now() + Duration::from_secs(seconds);
        wait::until("a while without a store", seconds + 40, || {
            let now = Instant::now();
            (now >= until).then_some(()).ok_or_else(String::new)
        });
    }

    #[test]
    fn the_leader_of_etcd_dies_and_nobody_notices() {
        let mut fleet = Hosts::up(&HOSTS, size());
        let places = fleet.places();
        fleet.flow();
        let leader = fleet.etcd.leader(&fleet.lan);
        fleet.etcd.kill_member(&leader);
        fleet.say(&format!("etcd of {leader}, the leader, killed"));
        let next = fleet.etcd.leader(&fleet.lan);
        assert_ne!(next, leader);
        // Decisions go on with the next leader.
        let host = fleet.coordinator();
        fleet.demand(&host, &["restart", "tanako/0", "--yes", "--wait"]);
        fleet.etcd.start_member(&fleet.lan, &leader);
        fleet.etcd.until_healthy(&fleet.lan, &leader);
        let account = fleet.settle();
        demand_lossless(&fleet, "leader of etcd killed", &account);
        demand_once(&fleet, &account, &BTreeSet::from([0, 1]));
        assert_eq!(fleet.places(), places, "nothing moved");
    }

    #[test]
    fn no_shard_stops_while_the_store_is_away() {
        let mut fleet = Hosts::up(&HOSTS, size());
        let places = fleet.places();
        fleet.flow();
        let bots = fleet.bots();
        leaves(&mut fleet);
        a_while();
        let same = |fleet: &Hosts| fleet.bots() == bots || fleet.has_bystanders();
        assert!(same(&fleet), "the same processes: {bots:?}");
        // What cannot be written down is not promised.
        let refused = fleet.ctl("a", &["restart", "tanako/0", "--yes"]);
        assert!(!refused.status.success(), "{}", text(&refused));
        returns(&mut fleet);
        let account = fleet.settle();
        demand_lossless(&fleet, "store away", &account);
        demand_once(&fleet, &account, &BTreeSet::new());
        assert!(same(&fleet), "the same processes: {bots:?}");
        assert_eq!(fleet.places(), places, "nothing moved");
        // Decisions are taken again.
        fleet.flow();
        let host = fleet.coordinator();
        fleet.demand(&host, &["restart", "tanako/0", "--yes", "--wait"]);
        let account = fleet.settle();
        demand_lossless(&fleet, "after the store was away", &account);
        demand_once(&fleet, &account, &BTreeSet::from([0, 1]));
    }

    #[test]
    fn what_was_under_way_when_the_store_left_ends_as_it_was_asked() {
        let mut fleet = Hosts::up(&HOSTS, size());
        fleet.flow();
        let command = fleet.spawn("a", &["restart", "all", "--yes", "--wait"]);
        fleet.operation("restart", "its first process", 90, |operation| {
            operation["done"].as_u64() >= Some(1) && operation["state"] == "running"
        });
        leaves(&mut fleet);
        // What a host has been told it does without a store.
        let ready = |fleet: &Hosts, why: &str| {
            wait::until(why, 120, || {
                let status = fleet.status()?;
                let all = rig::bots(&status).all(|process| process["ready"] == true);
                all.then_some(status).ok_or_else(|| fleet.story())
            })
        };
        ready(&fleet, "what was begun");
        a_while();
        let status = ready(&fleet, "the same fleet without a store");
        let attempts = |status: &Value| -> BTreeMap<String, u64> {
            let all = rig::bots(status);
            all.map(|process| {
                let name = process["name"].as_str().expect("a name").to_owned();
                (name, process["attempt"].as_u64().expect("a number"))
            })
            .collect()
        };
        // And one that dies is there again, with its sessions.
        let before = attempts(&status);
        let victim = rig::bots(&status).last().expect("a process");
        let name = victim["name"].as_str().expect("a name").to_owned();
        let pid = victim["pid"].as_u64().expect("a number");
        processes::kill(u32::try_from(pid).expect("a pid"));
        fleet.say(&format!("{name} killed"));
        wait::until("another attempt", 90, || {
            let status = fleet.status()?;
            let up = rig::bots(&status).any(|process| {
                process["name"] == *name
                    && process["ready"] == true
                    && process["attempt"].as_u64() > Some(before[&name])
            });
            up.then_some(()).ok_or_else(|| fleet.story())
        });
        a_while();
        let status = ready(&fleet, "the same fleet without a store");
        let mut expected = before;
        *expected.get_mut(&name).expect("there") += 1;
        let found = attempts(&status);
        assert!(
            found == expected || fleet.has_bystanders(),
            "nothing else was restarted: {found:?}, not {expected:?}"
        );

        returns(&mut fleet);
        fleet.until_succeeded("restart", 180);
        fleet.until_done(command);
        let account = fleet.settle();
        demand_lossless(&fleet, "store away in a restart", &account);
    }
}
