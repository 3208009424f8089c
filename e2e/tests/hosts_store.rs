//! The store of a fleet in trouble: its leader dies, all of it is away. No shard notices, and what was asked
//! for is done in the end.

mod netns {
    use std::{
        collections::BTreeSet,
        time::{Duration, Instant},
    };

    use tanako_e2e::{
        netns::{
            Hosts,
            judge::{demand_lossless, demand_once},
            size,
        },
        wait,
    };

    const HOSTS: [&str; 3] = ["a", "b", "c"];

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
        let output = fleet.ctl(&host, &["restart", "tanako/0", "--yes", "--wait"]);
        assert!(
            output.status.success(),
            "{}\n{}",
            tanako_e2e::fleet::text(&output),
            fleet.story()
        );
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
        for host in HOSTS {
            fleet.etcd.kill_member(host);
        }
        fleet.say("etcd is away");
        // Several times the life of a lease.
        let until = Instant::now() + Duration::from_secs(20);
        wait::until("a while without a store", 60, || {
            let now = Instant::now();
            (now >= until).then_some(()).ok_or_else(String::new)
        });
        assert_eq!(fleet.bots(), bots, "the same processes");
        // What cannot be written down is not promised.
        let refused = fleet.ctl("a", &["restart", "tanako/0", "--yes"]);
        assert!(
            !refused.status.success(),
            "{}",
            tanako_e2e::fleet::text(&refused)
        );
        for host in HOSTS {
            fleet.etcd.start_member(&fleet.lan, host);
        }
        for host in HOSTS {
            fleet.etcd.until_healthy(&fleet.lan, host);
        }
        fleet.say("etcd is back");
        let account = fleet.settle();
        demand_lossless(&fleet, "store away", &account);
        demand_once(&fleet, &account, &BTreeSet::new());
        assert_eq!(fleet.bots(), bots, "the same processes");
        assert_eq!(fleet.places(), places, "nothing moved");
        // Decisions are taken again.
        fleet.flow();
        let host = fleet.coordinator();
        let output = fleet.ctl(&host, &["restart", "tanako/0", "--yes", "--wait"]);
        assert!(
            output.status.success(),
            "{}\n{}",
            tanako_e2e::fleet::text(&output),
            fleet.story()
        );
        let account = fleet.settle();
        demand_lossless(&fleet, "after the store was away", &account);
        demand_once(&fleet, &account, &BTreeSet::from([0, 1]));
    }
}
