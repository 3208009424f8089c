//! Labels, capacity, anti-affinity, pins, cordons and drains, and the words for what finds no host.

use proptest::prelude::*;

use super::{
    super::{plan as place, *},
    *,
};

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

fn ruled(mut all: Vec<Process>, rules: Rules) -> Vec<Process> {
    let rules = Arc::new(rules);
    for process in &mut all {
        process.rules = Arc::clone(&rules);
    }
    all
}

fn required(pairs: &[(&str, &str)]) -> Rules {
    Rules {
        required: labels(pairs),
        ..Rules::default()
    }
}

fn preferred(pairs: &[(&str, &str)]) -> Rules {
    Rules {
        preferred: labels(pairs),
        ..Rules::default()
    }
}

fn apart(over: &str) -> Rules {
    Rules {
        anti_affinity: Some(over.to_owned()),
        ..Rules::default()
    }
}

fn on<'a>(plan: &'a Plan, process: &str) -> Option<&'a str> {
    let name: ProcessName = process.parse().expect("a good name");
    plan.assignment.get(&name).map(String::as_str)
}

fn judged(input: &Input) -> Plan {
    let plan = place(input);
    judge(input, &plan);
    plan
}

fn put(input: &mut Input, process: &str, host: &str) {
    let name = process.parse().expect("a good name");
    input.assignment.insert(name, host.to_owned());
}

#[test]
fn a_new_fleet_is_spread_bot_by_bot_and_no_neighbours_share_a_host() {
    let mut all = processes("a", 7, 4);
    all.extend(processes("b", 5, 4));
    let fleet = input(hosts(3), all);
    let plan = judged(&fleet);
    assert_eq!(counts(&fleet, &plan.assignment), [4, 4, 4]);
    for bot in ["a", "b"] {
        for order in 0..4 {
            let here = on(&plan, &format!("{bot}/{order}"));
            assert_ne!(here, on(&plan, &format!("{bot}/{}", order + 1)));
        }
    }
    let of_a = |host: &str| {
        let mine = plan.assignment.iter();
        mine.filter(|(name, at)| name.group() == "a" && *at == host)
            .count()
    };
    assert!(
        fleet
            .hosts
            .iter()
            .all(|host| (2..=3).contains(&of_a(&host.name)))
    );
}

#[test]
fn a_lost_host_is_spread_over_the_others_and_nothing_else_moves() {
    let mut fleet = input(hosts(4), processes("a", 12, 4));
    let plan = judged(&fleet);
    fleet = after(fleet, &plan);
    fleet.hosts[1].state = HostState::Lost;
    fleet.aim = Aim::Needed;
    let plan = judged(&fleet);
    assert_eq!(counts(&fleet, &plan.assignment), [4, 0, 4, 4]);
    assert_eq!(plan.moves.len(), 3);
    assert!(plan.moves.iter().all(|step| step.why == Why::Lost));
}

#[test]
fn what_is_needed_moves_nothing_to_a_new_host_and_what_is_even_does() {
    let mut fleet = input(hosts(3), processes("a", 12, 4));
    let plan = judged(&fleet);
    fleet = after(fleet, &plan);
    fleet.hosts.push(host("new", 1));
    fleet.aim = Aim::Needed;
    assert_eq!(judged(&fleet).moves, []);
    fleet.aim = Aim::Even;
    let plan = judged(&fleet);
    assert_eq!(counts(&fleet, &plan.assignment), [3, 3, 3, 3]);
    assert_eq!(plan.moves.len(), 3);
    let mut from: Vec<_> = plan.moves.iter().map(|step| step.from.clone()).collect();
    from.dedup();
    assert_eq!(from.len(), 3, "each gives one: {:?}", plan.moves);
    assert!(plan.evenness[0].emptiest < 0.01 && plan.evenness[1].fullest < 1.01);
}

#[test]
fn what_is_new_finds_a_host_and_nothing_else_moves() {
    let mut fleet = input(hosts(2), processes("a", 4, 1));
    let plan = judged(&fleet);
    fleet = after(fleet, &plan);
    fleet.hosts[0].state = HostState::Draining;
    fleet.hosts.push(host("new", 1));
    fleet.processes.extend(processes("b", 1, 1));
    fleet.aim = Aim::New;
    let plan = place(&fleet);
    assert_eq!(plan.moves.len(), 1);
    assert_eq!((on(&plan, "b/0"), plan.unplaced.len()), (Some("new"), 0));
    // Nobody makes room for it.
    for host in &mut fleet.hosts {
        host.capacity.processes = Some(1);
    }
    fleet.processes.extend(processes("c", 1, 1));
    put(&mut fleet, "c/0", "new");
    let plan = place(&fleet);
    assert_eq!((plan.moves.len(), plan.unplaced.len()), (0, 1));
}

#[test]
fn load_follows_the_share() {
    let mut all = hosts(3);
    all[2].capacity.share = 4;
    let fleet = input(all, processes("a", 12, 1));
    let plan = judged(&fleet);
    assert_eq!(counts(&fleet, &plan.assignment), [2, 2, 8]);
}

#[test]
fn a_cordoned_host_keeps_what_it_has_and_gets_nothing() {
    let mut fleet = input(hosts(2), processes("a", 4, 1));
    let plan = judged(&fleet);
    fleet = after(fleet, &plan);
    fleet.hosts[0].state = HostState::Cordoned;
    fleet.processes.extend(processes("b", 4, 1));
    let plan = judged(&fleet);
    assert_eq!(counts(&fleet, &plan.assignment), [2, 6]);
    assert!(plan.moves.iter().all(|step| step.to == "h001"));
}

#[test]
fn required_labels_bind_and_preferred_ones_draw_while_there_is_room() {
    let mut all = hosts(3);
    all[0].labels = labels(&[("disk", "ssd")]);
    all[1].labels = labels(&[("zone", "eu")]);
    all[1].capacity.processes = Some(2);
    let mut fleet = input(
        all,
        ruled(processes("a", 2, 1), required(&[("disk", "ssd")])),
    );
    fleet
        .processes
        .extend(ruled(processes("b", 3, 1), preferred(&[("zone", "eu")])));
    let plan = judged(&fleet);
    assert_eq!(on(&plan, "a/0"), Some("h000"));
    assert_eq!(on(&plan, "a/1"), Some("h000"));
    assert_eq!(counts(&fleet, &plan.assignment), [2, 2, 1]);
    // Labels that go make it move.
    fleet = after(fleet, &plan);
    fleet.hosts[0].labels.clear();
    fleet.hosts[2].labels = labels(&[("disk", "ssd"), ("zone", "eu")]);
    fleet.aim = Aim::Needed;
    assert_eq!(judged(&fleet).moves, []);
    fleet.aim = Aim::Even;
    let plan = judged(&fleet);
    assert_eq!(on(&plan, "a/0"), Some("h002"));
    assert!(plan.moves.iter().all(|step| step.why == Why::Rule));
}

#[test]
fn anti_affinity_holds_over_hosts_and_over_racks() {
    let mut all = hosts(4);
    for (at, host) in all.iter_mut().enumerate() {
        host.labels = labels(&[("rack", ["r1", "r1", "r2", "r3"][at])]);
    }
    let fleet = input(all.clone(), ruled(processes("a", 5, 1), apart("host")));
    let plan = judged(&fleet);
    assert_eq!(counts(&fleet, &plan.assignment), [1, 1, 1, 1]);
    assert_eq!(
        plan.unplaced[0].reason,
        "no host can take it: 4 hosts (h000, h001, h002 and 1 more) with another process of the bot on the same host (anti-affinity)"
    );
    let fleet = input(all, ruled(processes("a", 4, 1), apart("rack")));
    let plan = judged(&fleet);
    assert_eq!(plan.assignment.len(), 3);
    assert_eq!(plan.unplaced.len(), 1);
    // A fleet that breaks the rule is mended.
    let mut fleet = input(hosts(3), ruled(processes("a", 3, 1), apart("host")));
    for process in ["a/0", "a/1", "a/2"] {
        put(&mut fleet, process, "h001");
    }
    let plan = judged(&fleet);
    assert_eq!(counts(&fleet, &plan.assignment), [1, 1, 1]);
    assert_eq!(plan.moves.len(), 2);
}

#[test]
fn room_is_made_when_only_that_helps() {
    let mut all = hosts(3);
    all[0].labels = labels(&[("disk", "ssd")]);
    for host in &mut all {
        host.capacity.processes = Some(1);
    }
    all[1].labels = labels(&[("zone", "eu")]);
    let mut fleet = input(
        all,
        ruled(processes("a", 1, 1), required(&[("disk", "ssd")])),
    );
    fleet
        .processes
        .extend(ruled(processes("b", 1, 1), Rules::default()));
    fleet
        .processes
        .extend(ruled(processes("c", 1, 1), Rules::default()));
    put(&mut fleet, "b/0", "h000");
    put(&mut fleet, "c/0", "h001");
    fleet.aim = Aim::Needed;
    let plan = judged(&fleet);
    let steps: Vec<_> = plan
        .moves
        .iter()
        .map(|step| (step.process.as_str(), step.to.as_str(), step.why))
        .collect();
    assert_eq!(
        steps,
        [("b/0", "h002", Why::Room), ("a/0", "h000", Why::New)]
    );
}

#[test]
fn memory_is_a_bound() {
    let mut all = hosts(2);
    for host in &mut all {
        host.capacity.memory_bytes = Some(1 << 30);
    }
    let mut fleet = input(all, processes("a", 4, 1));
    for process in &mut fleet.processes {
        process.memory_bytes = 400 << 20;
    }
    let plan = judged(&fleet);
    assert_eq!(counts(&fleet, &plan.assignment), [2, 2]);
    fleet.processes.push(Process {
        memory_bytes: 400 << 20,
        ..process("b", 0, 1)
    });
    let plan = judged(&after(fleet, &plan));
    assert_eq!(
        plan.unplaced[0].reason,
        "no host can take it: 2 hosts (h000, h001) with less than 400.0 MiB of memory left"
    );
}

#[test]
fn a_pinned_process_goes_where_it_belongs_and_nowhere_else() {
    let mut fleet = input(hosts(3), processes("a", 2, 1));
    fleet.hosts[1].capacity.processes = Some(0);
    fleet.processes.push(Process {
        pinned: Some("h001".to_owned()),
        ..process("db", 1, 1)
    });
    let plan = judged(&fleet);
    assert_eq!(on(&plan, "db/1"), Some("h001"));
    fleet = after(fleet, &plan);
    for (state, words) in [
        (
            HostState::Draining,
            "its data lies on host h001, which is being drained: it runs nowhere else",
        ),
        (
            HostState::Lost,
            "its host h001 is lost and its data lies there: bring that host back, or restore a backup on another",
        ),
    ] {
        fleet.hosts[1].state = state;
        let plan = judged(&fleet);
        assert_eq!(plan.moves, []);
        assert_eq!(plan.unplaced[0].reason, words);
        assert_eq!(plan.unplaced[0].on.as_deref(), Some("h001"));
    }
    fleet.hosts.remove(1);
    assert_eq!(
        judged(&fleet).unplaced[0].reason,
        "it belongs on host h001, which is not of this fleet: join that host, or name another in fleet.toml"
    );
}

#[test]
fn every_reason_is_told() {
    let mut all = hosts(5);
    all[0].state = HostState::Lost;
    all[1].state = HostState::Draining;
    all[2].state = HostState::Cordoned;
    all[3].capacity.processes = Some(0);
    for host in &mut all[..4] {
        host.labels = labels(&[("disk", "ssd")]);
    }
    let mut fleet = input(
        all,
        ruled(processes("a", 1, 1), required(&[("disk", "ssd")])),
    );
    assert_eq!(
        judged(&fleet).unplaced[0].reason,
        "no host can take it: 1 host (h004) without the label disk=ssd; 1 host (h003) with no room for another process; \
         1 host (h002) cordoned; 1 host (h001) draining; 1 host (h000) lost"
    );
    fleet.hosts.clear();
    assert_eq!(judged(&fleet).unplaced[0].reason, "the fleet has no host");
}

/// Fleets with rules of every kind, where only counts of processes bound the hosts.
fn fleets() -> impl Strategy<Value = Input> {
    let host = (
        prop_oneof![5 => Just(HostState::Present), 1 => Just(HostState::Draining), 1 => Just(HostState::Lost), 1 => Just(HostState::Cordoned)],
        prop::option::weighted(0.7, 0..4_u32),
        prop::option::of(0..3_u64),
        0..2_usize,
        0..2_usize,
        1..3_u32,
    );
    let process = (
        0..3_usize,
        1..4_u32,
        0..3_u64,
        prop::option::weighted(0.8, 0..5_usize),
        prop::option::weighted(0.1, 0..5_usize),
    );
    let rules = (
        prop::option::weighted(0.4, 0..2_usize),
        prop::option::weighted(0.4, 0..2_usize),
        prop::option::weighted(0.3, 0..2_usize),
    );
    (
        prop::collection::vec(host, 1..5),
        prop::collection::vec(process, 0..9),
        prop::array::uniform3(rules),
        prop::bool::ANY,
        prop::bool::ANY,
    )
        .prop_map(|(all, work, rules, even, memory)| {
            let rules = rules.map(|(required, preferred, apart)| {
                Arc::new(Rules {
                    required: required
                        .map_or_else(BTreeMap::new, |at| labels(&[("disk", ["ssd", "hdd"][at])])),
                    preferred: preferred
                        .map_or_else(BTreeMap::new, |at| labels(&[("rack", ["r1", "r2"][at])])),
                    anti_affinity: apart.map(|at| ["host", "rack"][at].to_owned()),
                })
            });
            let mut fleet = input(Vec::new(), Vec::new());
            fleet.aim = if even { Aim::Even } else { Aim::Needed };
            for (at, (state, most, bytes, disk, rack, share)) in all.into_iter().enumerate() {
                let mut host = host_of(at, state, share);
                host.capacity.processes = most;
                host.capacity.memory_bytes = bytes.filter(|_| memory);
                host.labels =
                    labels(&[("disk", ["ssd", "hdd"][disk]), ("rack", ["r1", "r2"][rack])]);
                fleet.hosts.push(host);
            }
            for (order, (bot, weight, bytes, at, pinned)) in work.into_iter().enumerate() {
                let mut process = process_of(bot, order as u32, weight);
                process.memory_bytes = if memory { bytes } else { 0 };
                process.rules = Arc::clone(&rules[bot]);
                process.pinned = pinned.map(host_name);
                if let Some(at) = at {
                    fleet.assignment.insert(process.name.clone(), host_name(at));
                }
                fleet.processes.push(process);
            }
            fleet
        })
}

fn host_of(at: usize, state: HostState, share: u32) -> Host {
    Host {
        state,
        ..host(&host_name(at), share)
    }
}

fn process_of(bot: usize, order: u32, weight: u32) -> Process {
    process(["a", "b", "c"][bot], order, weight)
}

/// The most processes that can have a host at once, where only labels and counts bind.
fn most(fleet: &Input) -> usize {
    fn fill(fleet: &Input, next: usize, room: &mut [u32]) -> usize {
        let Some(process) = fleet.processes.get(next) else {
            return 0;
        };
        let stays = fleet.assignment.get(&process.name).and_then(|at| {
            let found = fleet.hosts.iter().position(|host| host.name == *at);
            found.filter(|at| fleet.hosts[*at].state == HostState::Cordoned)
        });
        if stays.is_some() {
            return 1 + fill(fleet, next + 1, room);
        }
        let mut best = fill(fleet, next + 1, room);
        for at in 0..fleet.hosts.len() {
            let host = &fleet.hosts[at];
            let meets = |(key, value): (&String, &String)| host.labels.get(key) == Some(value);
            if host.state == HostState::Present
                && process.rules.required.iter().all(meets)
                && room[at] > 0
            {
                room[at] -= 1;
                best = best.max(1 + fill(fleet, next + 1, room));
                room[at] += 1;
            }
        }
        best
    }
    let mut room: Vec<u32> = fleet
        .hosts
        .iter()
        .map(|host| host.capacity.processes.unwrap_or(u32::MAX))
        .collect();
    fill(fleet, 0, &mut room)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_in_any_fleet(fleet in fleets()) {
        let plan = place(&fleet);
        judge(&fleet, &plan);
        let same = place(&fleet);
        prop_assert_eq!(plan, same);
    }

    #[test]
    fn as_many_are_placed_as_can_be(mut fleet in fleets()) {
        for host in &mut fleet.hosts {
            host.capacity.memory_bytes = None;
        }
        for process in &mut fleet.processes {
            process.pinned = None;
            let mut rules = Rules::clone(&process.rules);
            rules.anti_affinity = None;
            process.rules = Arc::new(rules);
        }
        // A host that is over its capacity keeps what it has: that is not what is counted here.
        let known: Vec<ProcessName> = fleet.assignment.keys().cloned().collect();
        for name in known {
            let at = fleet.assignment[&name].clone();
            let Some(host) = fleet.hosts.iter().find(|host| host.name == at) else { continue };
            let process = fleet.processes.iter().find(|it| it.name == name).expect("a process");
            let fits = process.rules.required.iter().all(|(key, value)| host.labels.get(key) == Some(value));
            let used = fleet.assignment.values().filter(|other| **other == at).count();
            if !fits || used > host.capacity.processes.map_or(usize::MAX, |most| most as usize) {
                fleet.assignment.remove(&name);
            }
        }
        let plan = place(&fleet);
        judge(&fleet, &plan);
        prop_assert_eq!(fleet.processes.len() - plan.unplaced.len(), most(&fleet));
    }
}
