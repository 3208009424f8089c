//! The planner beside what a user would pick instead, on the same fleet in the same run: dealing all
//! processes out anew, and rendezvous hashing (each process to the host with its highest hash).
//!
//! Prints a Markdown table. The lower bound of moves is what any plan needs that ends as even.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use tanako_fleet::{
    ProcessName,
    placement::{Aim, Assignment, Capacity, Host, HostState, Input, Process, Rules, plan},
};

/// The planner beside a naive spread and rendezvous hashing
#[derive(Parser)]
struct Args {
    /// Processes
    #[arg(long, default_value_t = 50_000)]
    processes: u32,
    /// Hosts
    #[arg(long, default_value_t = 1_000)]
    hosts: u32,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

type Way = fn(&Input) -> Assignment;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let ways: [(&str, Way); 3] = [
        ("tanako", |input| plan(input).assignment),
        ("dealt out anew", deal),
        ("rendezvous hashing", rendezvous),
    ];
    println!(
        "|{} processes, {} hosts|way|ms|moves|of the least|fullest host over the mean|",
        args.processes, args.hosts
    );
    println!("|---|---|---|---|---|---|");
    for (name, change) in [
        ("first placement", Change::First),
        ("a host is lost", Change::Lost(1)),
        ("20 hosts are drained", Change::Drained(20)),
        ("50 hosts join, load is levelled", Change::Joined(50)),
    ] {
        for (way, place) in ways {
            let before = if matches!(change, Change::First) {
                fleet(&args, Assignment::new())
            } else {
                let empty = fleet(&args, Assignment::new());
                let placed = place(&empty);
                fleet(&args, placed)
            };
            let input = changed(before, change);
            let mut times = Vec::new();
            let mut after = Assignment::new();
            for _ in 0..args.rounds.max(1) {
                let began = Instant::now();
                after = place(&input);
                times.push(began.elapsed());
            }
            times.sort_unstable();
            report(name, way, &input, &after, times[times.len() / 2]);
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Change {
    First,
    Lost(usize),
    Drained(usize),
    Joined(u32),
}

fn host(name: String) -> Host {
    Host {
        name,
        state: HostState::Present,
        capacity: Capacity::default(),
        labels: BTreeMap::new(),
    }
}

fn fleet(args: &Args, assignment: Assignment) -> Input {
    let rules = Arc::new(Rules::default());
    let processes = (0..args.processes).map(|at| {
        // Ten bots of one size, four shards a process.
        let (bot, order) = (format!("bot{}", at % 10), at / 10);
        Process {
            name: ProcessName::new(&bot, order).expect("a good name"),
            bot,
            order,
            weight: 4,
            memory_bytes: 0,
            rules: Arc::clone(&rules),
            pinned: None,
        }
    });
    Input {
        processes: processes.collect(),
        hosts: (0..args.hosts)
            .map(|at| host(format!("h{at:05}")))
            .collect(),
        assignment,
        aim: Aim::Needed,
    }
}

fn changed(mut input: Input, change: Change) -> Input {
    match change {
        Change::First => {}
        Change::Lost(count) => {
            for host in &mut input.hosts[..count] {
                host.state = HostState::Lost;
            }
        }
        Change::Drained(count) => {
            for host in &mut input.hosts[..count] {
                host.state = HostState::Draining;
            }
        }
        Change::Joined(count) => {
            input
                .hosts
                .extend((0..count).map(|at| host(format!("n{at:05}"))));
            input.aim = Aim::Even;
        }
    }
    input
}

fn open(input: &Input) -> Vec<&str> {
    let present = input
        .hosts
        .iter()
        .filter(|it| it.state == HostState::Present);
    present.map(|host| host.name.as_str()).collect()
}

/// In the order of their names, one to each host in turn.
fn deal(input: &Input) -> Assignment {
    let hosts = open(input);
    let mut names: Vec<&ProcessName> = input.processes.iter().map(|it| &it.name).collect();
    names.sort();
    let dealt = names.into_iter().zip(hosts.iter().cycle());
    dealt
        .map(|(name, host)| (name.clone(), (*host).to_owned()))
        .collect()
}

fn rendezvous(input: &Input) -> Assignment {
    let hosts: Vec<(&str, u64)> = open(input)
        .into_iter()
        .map(|it| (it, hash(it, 0)))
        .collect();
    let best = |name: &ProcessName| {
        let own = hash(name.as_str(), 1);
        let best = hosts.iter().max_by_key(|(_, host)| mix(own ^ host));
        best.map(|(host, _)| (name.clone(), (*host).to_owned()))
    };
    input
        .processes
        .iter()
        .filter_map(|it| best(&it.name))
        .collect()
}

fn hash(text: &str, seed: u64) -> u64 {
    text.bytes()
        .fold(seed, |hash, byte| mix(hash ^ u64::from(byte)))
}

/// The finalizer of splitmix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What any plan must move that ends as even as can be, from the same start: what has no open host, and,
/// where load is levelled, what each host has above its part.
fn least(input: &Input) -> usize {
    let hosts = open(input);
    let mut counts: BTreeMap<&str, usize> = hosts.iter().map(|host| (*host, 0)).collect();
    let mut homeless = 0;
    for process in &input.processes {
        let at = input.assignment.get(&process.name);
        match at.and_then(|at| counts.get_mut(at.as_str())) {
            Some(count) => *count += 1,
            None => homeless += 1,
        }
    }
    if input.aim != Aim::Even {
        return homeless;
    }
    let (part, more) = (
        input.processes.len() / hosts.len(),
        input.processes.len() % hosts.len(),
    );
    let mut counts: Vec<usize> = counts.into_values().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let above = counts
        .iter()
        .enumerate()
        .map(|(rank, count)| count.saturating_sub(part + usize::from(rank < more)));
    homeless + above.sum::<usize>()
}

fn report(name: &str, way: &str, input: &Input, after: &Assignment, time: Duration) {
    let moves = after
        .iter()
        .filter(|(process, host)| input.assignment.get(*process) != Some(*host))
        .count();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for host in after.values() {
        *counts.entry(host).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0) as f64;
    let mean = after.len() as f64 / open(input).len() as f64;
    println!(
        "|{name}|{way}|{}|{moves}|{:.2}|{:.2}|",
        time.as_millis(),
        moves as f64 / least(input).max(1) as f64,
        most / mean
    );
}
