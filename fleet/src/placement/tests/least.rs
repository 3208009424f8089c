//! How many moves: against every assignment there is where there are few, against a bound that is easy to
//! see where there are many.

use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use super::{
    super::{plan as place, *},
    *,
};

/// By host: load and share.
type Loads = Vec<(u64, u64)>;

fn loads(input: &Input, at: &[usize]) -> Loads {
    let mut loads: Loads = input
        .hosts
        .iter()
        .map(|host| (0, u64::from(host.capacity.share)))
        .collect();
    for (process, at) in input.processes.iter().zip(at) {
        loads[*at].0 += u64::from(process.weight);
    }
    loads
}

fn open(input: &Input, at: usize) -> bool {
    input.hosts[at].state == HostState::Present
}

/// The definition of even, in its own words: no host, its heaviest process put elsewhere, would leave
/// the other less full than it is itself.
fn level(input: &Input, at: &[usize]) -> bool {
    let loads = loads(input, at);
    let pairs = (0..loads.len()).flat_map(|from| (0..loads.len()).map(move |to| (from, to)));
    pairs
        .filter(|(from, to)| from != to && open(input, *from) && open(input, *to))
        .all(|(from, to)| {
            let heaviest = input
                .processes
                .iter()
                .zip(at)
                .filter(|(_, at)| **at == from)
                .map(|(process, _)| u64::from(process.weight))
                .max()
                .unwrap_or(0);
            let ((giver, own), (taker, other)) = (loads[from], loads[to]);
            heaviest == 0 || (taker + heaviest) * own >= giver * other
        })
}

/// The least moves of any assignment that is level and has every process on an open host.
fn least(input: &Input) -> usize {
    let was: Vec<Option<usize>> = input
        .processes
        .iter()
        .map(|it| {
            let at = input.assignment.get(&it.name)?;
            input.hosts.iter().position(|host| host.name == *at)
        })
        .collect();
    let mut at = vec![0; input.processes.len()];
    let mut least = usize::MAX;
    loop {
        let moves = at.iter().zip(&was).filter(|(at, was)| Some(**at) != **was);
        let moves = moves.count();
        if moves < least
            && at.iter().zip(&was).all(|(at, was)| {
                let stays = Some(*at) == *was && input.hosts[*at].state == HostState::Cordoned;
                stays || open(input, *at)
            })
            && level(input, &at)
        {
            least = moves;
        }
        let Some(next) = at.iter().position(|at| at + 1 < input.hosts.len()) else {
            return least;
        };
        at[next] += 1;
        at[..next].fill(0);
    }
}

fn state(open: bool) -> impl Strategy<Value = HostState> {
    if open {
        Just(HostState::Present).boxed()
    } else {
        prop_oneof![
            6 => Just(HostState::Present),
            1 => Just(HostState::Draining),
            1 => Just(HostState::Lost),
            1 => Just(HostState::Cordoned),
        ]
        .boxed()
    }
}

/// Any fleet of `hosts` hosts and up to `most` processes, in any state.
fn fleets(
    hosts: std::ops::RangeInclusive<usize>,
    most: usize,
    shares: std::ops::RangeInclusive<u32>,
    weights: Vec<u32>,
) -> impl Strategy<Value = Input> {
    hosts.prop_flat_map(move |count| {
        let hosts: Vec<_> = (0..count)
            .map(|at| (state(at == 0), shares.clone()))
            .collect();
        let one = (
            prop::sample::select(weights.clone()),
            0..3_usize,
            prop::option::weighted(0.9, 0..count + 1),
        );
        (hosts, prop::collection::vec(one, 0..=most)).prop_map(|(hosts, all)| {
            let mut fleet = input(Vec::new(), Vec::new());
            for (at, (state, share)) in hosts.into_iter().enumerate() {
                let mut host = host(&host_name(at), share);
                host.state = state;
                fleet.hosts.push(host);
            }
            for (order, (weight, bot, at)) in all.into_iter().enumerate() {
                let process = process(["x", "y", "z"][bot], order as u32, weight);
                if let Some(at) = at {
                    let at = host_name(at);
                    fleet.assignment.insert(process.name.clone(), at);
                }
                fleet.processes.push(process);
            }
            fleet
        })
    })
}

fn check(fleet: &Input) -> (usize, usize) {
    let plan = place(fleet);
    judge(fleet, &plan);
    let at: Vec<usize> = fleet
        .processes
        .iter()
        .map(|it| {
            let at = &plan.assignment[&it.name];
            let found = fleet.hosts.iter().position(|host| host.name == *at);
            found.expect("a host of the fleet")
        })
        .collect();
    assert!(level(fleet, &at), "level: {:?}", loads(fleet, &at));
    (plan.moves.len(), least(fleet))
}

/// The sums of moves made and of the least, over so many fleets, the same ones each time: for mixed weights
/// the least is not proven, so that a rare exception must not come and go.
fn tally(fleets: impl Strategy<Value = Input>, count: usize, spare: usize) -> (usize, usize) {
    let mut runner = TestRunner::deterministic();
    let (mut all, mut needed) = (0, 0);
    for _ in 0..count {
        let fleet = fleets.new_tree(&mut runner).expect("a fleet").current();
        let (moves, least) = check(&fleet);
        assert!(moves <= least + spare, "{moves} moves, {least} would do");
        all += moves;
        needed += least;
    }
    (all, needed)
}

#[test]
fn mixed_weights_take_the_least_moves() {
    let (all, least) = tally(fleets(1..=4, 7, 1..=1, vec![1, 2, 4, 5]), 600, 0);
    assert_eq!(all, least);
    let (all, least) = tally(fleets(1..=4, 7, 1..=1, vec![1, 2, 16]), 600, 0);
    assert_eq!(all, least);
}

/// Hosts of different size and processes of different weight at once: placing a new process badly can make
/// a pair of hosts pass for level, which saves a move. The plan does not stoop to that, and needs one more
/// in a few of a thousand cases.
#[test]
fn both_mixed_come_within_a_hundredth_of_the_least() {
    let (all, least) = tally(fleets(1..=4, 7, 1..=5, vec![1, 2, 4, 5]), 1_000, 1);
    assert!(all * 100 <= least * 101, "{all} moves, {least} would do");
}

/// On equal hosts with one weight the level counts are known, so the least moves are too: what must leave,
/// and what each host has above its part; the fullest keep the remainder.
fn bound(fleet: &Input) -> usize {
    let known = |at: &String| fleet.hosts.iter().position(|host| host.name == *at);
    let mut counts = vec![0; fleet.hosts.len()];
    let mut homeless = 0;
    for process in &fleet.processes {
        match fleet.assignment.get(&process.name).and_then(known) {
            Some(at) if open(fleet, at) => counts[at] += 1,
            _ => homeless += 1,
        }
    }
    let mut open: Vec<usize> = (0..counts.len())
        .filter(|at| open(fleet, *at))
        .map(|at| counts[at])
        .collect();
    open.sort_unstable_by(|a, b| b.cmp(a));
    let part = fleet.processes.len() / open.len();
    let more = fleet.processes.len() % open.len();
    let above = open
        .iter()
        .enumerate()
        .map(|(rank, count)| count.saturating_sub(part + usize::from(rank < more)));
    homeless + above.sum::<usize>()
}

/// A fleet of the size, with its processes anywhere.
fn large(count: usize, all: u32, seed: u64) -> Input {
    let mut fleet = input(hosts(count), processes("x", all, 4));
    let mut random = seed;
    for process in &fleet.processes {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let at = (random >> 33) as usize % count;
        fleet.assignment.insert(process.name.clone(), host_name(at));
    }
    fleet
}

#[test]
fn large_fleets_move_no_more_than_the_bound() {
    for seed in 0..8 {
        let mut fleet = large(60, 1_500, seed);
        let plan = place(&fleet);
        judge(&fleet, &plan);
        assert_eq!(plan.moves.len(), bound(&fleet));
        let counts = super::counts(&fleet, &plan.assignment);
        assert!(counts.iter().all(|count| *count == 25), "{counts:?}");
        // One host is lost, one drained, two come.
        fleet = after(fleet, &plan);
        fleet.hosts[3].state = HostState::Lost;
        fleet.hosts[7].state = HostState::Draining;
        fleet.hosts.extend([host("new1", 1), host("new2", 1)]);
        let plan = place(&fleet);
        judge(&fleet, &plan);
        assert_eq!(plan.moves.len(), 50);
        assert_eq!(plan.moves.len(), bound(&fleet));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn one_weight_takes_the_least_moves(
        fleet in fleets(1..=4, 7, 1..=1, vec![3])
    ) {
        let (moves, least) = check(&fleet);
        prop_assert_eq!(moves, least);
    }

    #[test]
    fn so_it_does_on_hosts_of_any_size(
        fleet in fleets(1..=4, 7, 1..=5, vec![1])
    ) {
        let (moves, least) = check(&fleet);
        prop_assert_eq!(moves, least);
    }
}
