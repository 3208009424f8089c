//! How long a host's loss keeps its shards from Discord: power cuts on hosts of a fleet under load, each
//! from the cut to the RESUME of the last of its shards on another host, by the simulated Discord's own
//! count. Needs root: the hosts are network namespaces. Prints a line a cut and a table.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;
use serde_json::Value;
use tanako_e2e::{Size, discord::number, netns::Hosts};

/// Between two looks at the account.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A fleet that has not healed by then does not heal.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Parser)]
struct Arguments {
    /// Power cuts.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    cuts: u32,
    /// Shards of the bot, four a process.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(12..=256))]
    shards: u32,
    /// Guilds.
    #[arg(long, default_value_t = 20_000)]
    guilds: u32,
    /// Events a second.
    #[arg(long, default_value_t = 2_000)]
    events: u32,
}

/// One power cut.
struct Cut {
    host: String,
    /// Whether that host's agent decided for the fleet, and whether its member led etcd.
    coordinated: bool,
    led: bool,
    /// From the cut to each shard's RESUME.
    resumed_after: Vec<Duration>,
    missed: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let size = Size {
        shards: arguments.shards,
        per_process: 4,
        guilds: arguments.guilds,
        max_concurrency: arguments.shards,
        events: arguments.events,
        interactions: 0,
        ..Size::promised()
    };
    let mut fleet = Hosts::up(&["a", "b", "c"], size);
    let mut cuts = Vec::new();
    for _ in 0..arguments.cuts {
        cuts.push(cut(&mut fleet)?);
    }
    print(&cuts);
    Ok(())
}

/// Cuts the power of the host with the most shards, and brings it back.
fn cut(fleet: &mut Hosts) -> anyhow::Result<Cut> {
    let living = fleet.living();
    let host = living
        .iter()
        .max_by_key(|host| fleet.shards_on(host).len())
        .context("no host")?
        .clone();
    let shards = fleet.shards_on(&host);
    let coordinated = fleet.coordinator() == host;
    let led = fleet.etcd.leader(&fleet.lan) == host;
    fleet.flow();
    let began = Instant::now();
    fleet.cut_power(&host);
    let mut left = shards.clone();
    let mut resumed_after = Vec::new();
    while !left.is_empty() {
        ensure!(began.elapsed() < PATIENCE, "{left:?}\n{}", fleet.story());
        let resumed = resumed(&fleet.discord.account());
        let now = began.elapsed();
        left.retain(|shard| {
            let here = resumed.contains(shard);
            if here {
                resumed_after.push(now);
            }
            !here
        });
        std::thread::sleep(LOOK_EVERY);
    }
    fleet.revive(&host);
    let account = fleet.settle();
    ensure!(number(&account, "/identifies") == 0, "{account}");
    ensure!(!shards.is_empty(), "no host had shards");
    Ok(Cut {
        host,
        coordinated,
        led,
        resumed_after,
        missed: number(&account, "/events_lost") + number(&account, "/events_evicted"),
    })
}

/// Shards that have resumed since the account was begun.
fn resumed(account: &Value) -> BTreeSet<u64> {
    let all = account["shards"].as_array().into_iter().flatten();
    all.filter(|shard| shard["resumes"].as_u64().is_some_and(|count| count > 0))
        .filter_map(|shard| shard["shard"].as_u64())
        .collect()
}

/// The value below which `percent` of the sorted ones lie.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank.min(sorted.len()) - 1]
}

fn print(cuts: &[Cut]) {
    let seconds = |time: Duration| format!("{:.2}", time.as_secs_f64());
    println!("\n|cut|host|it was|shards|first, s|last, s|missed|");
    println!("|---|---|---|---|---|---|---|");
    for (number, cut) in (1..).zip(cuts) {
        let was: Vec<&str> = [(cut.coordinated, "coordinator"), (cut.led, "etcd's leader")]
            .into_iter()
            .filter_map(|(was, what)| was.then_some(what))
            .collect();
        println!(
            "|{number}|{}|{}|{}|{}|{}|{}|",
            cut.host,
            was.join(", "),
            cut.resumed_after.len(),
            cut.resumed_after
                .first()
                .map_or_else(String::new, |time| seconds(*time)),
            cut.resumed_after
                .last()
                .map_or_else(String::new, |time| seconds(*time)),
            cut.missed
        );
    }
    let sorted = |mut times: Vec<Duration>| {
        times.sort();
        times
    };
    let whole = sorted(
        cuts.iter()
            .filter_map(|cut| cut.resumed_after.last().copied())
            .collect(),
    );
    let each = sorted(
        cuts.iter()
            .flat_map(|cut| cut.resumed_after.clone())
            .collect(),
    );
    println!("\n|host loss to RESUMED|p50, s|p99, s|max, s|");
    println!("|---|---|---|---|");
    for (what, times) in [("all its shards", &whole), ("a shard", &each)] {
        if let Some(last) = times.last() {
            println!(
                "|{what}|{}|{}|{}|",
                seconds(percentile(times, 50)),
                seconds(percentile(times, 99)),
                seconds(*last)
            );
        }
    }
    let missed: u64 = cuts.iter().map(|cut| cut.missed).sum();
    println!("\nevents missed: {missed}");
}
