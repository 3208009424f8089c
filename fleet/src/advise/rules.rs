//! The rules, one function each. Thresholds are pairs: below the first a proposal falls, above the second
//! it begins to stand.

use super::{
    Advice, Balance, BotFacts, Change, Facts, HostFacts, Proposal, Standing, Urgency,
    standing::Signal,
};
use crate::{
    reshard,
    sizing::{GUILDS_PER_SHARD_MAX, recommend},
};

/// Guilds on a shard. Discord closes one with more than 2,500 (4011); a reshard needs days of IDENTIFYs on
/// a large bot, so it is proposed well before.
const GUILDS: (f64, f64) = (1_500.0, 2_000.0);
/// Days until shards are full at the present growth, as 1/days so that more is worse: a reshard is
/// proposed from 30 days on, and given up where there are 60.
const FULL: (f64, f64) = (1.0 / 60.0, 1.0 / 30.0);
/// Discord's recommendation over the shards there are. It grows by single shards, each of which is no
/// reason to reshard.
const RECOMMENDED: (f64, f64) = (1.01, 1.20);
/// Growth that was seen for less than this says nothing about a month.
const GROWTH_DAYS_MIN: f64 = 3.0;
/// A reshard should last for this long.
const AHEAD_DAYS: f64 = 90.0;
/// Load of the fullest host over the mean. A quarter more than the others is worth a few moves; a tenth
/// is not.
const UNEVEN: (f64, f64) = (1.10, 1.25);
/// Processors in use over all hosts, in percent. Above 70 a lost host's share does not fit on the others
/// of a fleet of four.
const CPU: (f64, f64) = (55.0, 70.0);
/// Memory in use over what is left when the largest host is lost.
const MEMORY: (f64, f64) = (0.75, 0.90);
/// The slowest hundredth of a node's reads and writes, in milliseconds: a command that waits longer is
/// felt.
const READ_MS: (f64, f64) = (25.0, 50.0);
const WRITE_MS: (f64, f64) = (50.0, 100.0);
/// Heartbeat latency that is not the network's any more.
const LATENCY_MS: f64 = 500.0;
/// Share of one core from which a process falls behind in bursts.
const PROCESS_CPU: f64 = 80.0;
/// Restarts in a day from which the bot is ill.
const RESTARTS: u64 = 5;

/// What the fleet should change. `standing` remembers for how long it has been so; pass the same one each
/// time. `now` in milliseconds since 1970.
pub fn advise(facts: &Facts, standing: &mut Standing, now: i64) -> Advice {
    let mut advice = Advice::default();
    for bot in &facts.bots {
        reshard_of(bot, standing, now, &mut advice);
        odd(bot, &mut advice);
    }
    rebalance(facts.balance, standing, now, &mut advice);
    hosts(&facts.hosts, standing, now, &mut advice);
    nodes(facts, standing, now, &mut advice);
    standing.retain(|key| {
        let bot = key.strip_prefix("reshard ");
        bot.is_none_or(|bot| facts.bots.iter().any(|known| known.name == bot))
    });
    advice.proposals.sort_by_key(|proposal| proposal.urgency);
    advice
}

/// Days until the shards are full at the present growth.
fn days_left(bot: &BotFacts, guilds: u64) -> Option<f64> {
    let growth = bot.growth.filter(|it| it.days >= GROWTH_DAYS_MIN)?;
    let room = (u64::from(bot.shards) * GUILDS_PER_SHARD_MAX).saturating_sub(guilds) as f64;
    (growth.per_day > 0.0).then(|| room / growth.per_day)
}

fn reshard_of(bot: &BotFacts, standing: &mut Standing, now: i64, advice: &mut Advice) {
    let name = &bot.name;
    let key = format!("reshard {name}");
    let Some(guilds) = bot.guilds else {
        advice.unknown.push(format!(
            "{name} does not report its guilds: whether it needs more shards is only Discord's recommendation to say"
        ));
        return by_recommendation(bot, standing, now, advice);
    };
    let shards = f64::from(bot.shards.max(1));
    let each = guilds as f64 / shards;
    let left = days_left(bot, guilds);
    let mut signal = Signal::of(each, GUILDS);
    if let Some(left) = left {
        signal = signal.or(Signal::of(1.0 / left.max(0.01), FULL));
    }
    if bot.recommended > 0 {
        signal = signal.or(Signal::of(f64::from(bot.recommended) / shards, RECOMMENDED));
    }
    match bot.growth {
        Some(growth) if growth.days >= GROWTH_DAYS_MIN => {}
        Some(growth) => advice.unknown.push(format!(
            "how fast {name} grows: it has been watched for {:.1} days, {GROWTH_DAYS_MIN:.0} are needed",
            growth.days
        )),
        None => advice
            .unknown
            .push(format!("how fast {name} grows: nothing is recorded yet")),
    }
    let stands = standing.judge(&key, now, signal);
    // At the limit there is no time to watch.
    let full = each >= GUILDS_PER_SHARD_MAX as f64 * 0.95;
    if !stands && !full {
        return;
    }
    let growth = bot.growth.filter(|it| it.days >= GROWTH_DAYS_MIN);
    let later = guilds as f64 + growth.map_or(0.0, |it| it.per_day.max(0.0) * AHEAD_DAYS);
    let sized = recommend(later as u64).shards;
    let to = sized.max(bot.recommended);
    if to <= bot.shards {
        return;
    }
    let mut reasons = vec![format!(
        "{guilds} guilds on {} shards: {each:.0} each, Discord allows {GUILDS_PER_SHARD_MAX}",
        bot.shards
    )];
    if let (Some(left), Some(growth)) = (left, growth) {
        reasons.push(format!(
            "{:.0} guilds more a day over the last {:.0} days: full in {left:.0} days; {to} shards are right for the next {AHEAD_DAYS:.0}",
            growth.per_day, growth.days
        ));
    }
    if bot.recommended > bot.shards {
        reasons.push(format!("Discord recommends {} shards", bot.recommended));
    }
    reasons.push(budget(bot, to));
    let urgency = if full || left.is_some_and(|left| left < 7.0) {
        Urgency::Now
    } else if signal == Signal::Above {
        Urgency::Soon
    } else {
        Urgency::Later
    };
    push_reshard(bot, to, urgency, reasons, advice);
}

fn by_recommendation(bot: &BotFacts, standing: &mut Standing, now: i64, advice: &mut Advice) {
    let to = reshard::propose(bot.shards, bot.recommended);
    let signal = match bot.recommended {
        0 => Signal::Between,
        recommended => Signal::of(
            f64::from(recommended) / f64::from(bot.shards.max(1)),
            RECOMMENDED,
        ),
    };
    let stands = standing.judge(&format!("reshard {}", bot.name), now, signal);
    if let (Some(to), true) = (to, stands) {
        let reasons = vec![
            format!(
                "Discord recommends {} shards, it has {}",
                bot.recommended, bot.shards
            ),
            budget(bot, to),
        ];
        push_reshard(bot, to, Urgency::Soon, reasons, advice);
    }
}

fn push_reshard(
    bot: &BotFacts,
    to: u32,
    urgency: Urgency,
    mut reasons: Vec<String>,
    advice: &mut Advice,
) {
    if !bot.worker {
        reasons.push(
            "it does not speak the worker socket, so that it must be stopped for that".to_owned(),
        );
    }
    advice.proposals.push(Proposal {
        change: Change::Reshard {
            bot: bot.name.clone(),
            from: bot.shards,
            to,
            live: bot.worker,
        },
        urgency,
        reasons,
    });
}

fn budget(bot: &BotFacts, to: u32) -> String {
    match bot.identifies {
        None => format!("it costs {to} IDENTIFYs; how many are left is not known yet"),
        Some(left) if left < to => {
            format!(
                "it costs {to} IDENTIFYs, {left} may be spent now: wait until the day's budget is back"
            )
        }
        Some(left) => format!("it costs {to} IDENTIFYs of {left} that may be spent"),
    }
}

/// What more of anything does not cure.
fn odd(bot: &BotFacts, advice: &mut Advice) {
    let name = &bot.name;
    if let Some(restarts) = bot.restarts.filter(|restarts| *restarts >= RESTARTS) {
        advice.notes.push(format!(
            "{name} was restarted {restarts} times in a day by itself: see `tanakoctl logs {name}` before anything is made larger"
        ));
    }
    if let Some(cpu) = bot.cpu_percent.filter(|cpu| *cpu >= PROCESS_CPU) {
        let events = bot.events_per_s.map_or_else(String::new, |events| {
            format!(" at {events:.0} events/s over all")
        });
        advice.notes.push(format!(
            "the busiest process of {name} uses {cpu:.0} % of a core{events}: fewer shards_per_process spread it over more cores"
        ));
    }
    if let Some(latency) = bot.latency_ms.filter(|latency| *latency >= LATENCY_MS) {
        let why = if bot.cpu_percent.is_some_and(|cpu| cpu >= PROCESS_CPU) {
            "its processes are short of CPU"
        } else {
            "its processes are not busy, so that the network or Discord is slow; more shards do not help"
        };
        advice
            .notes
            .push(format!("heartbeats of {name} take {latency:.0} ms: {why}"));
    }
}

fn rebalance(balance: Option<Balance>, standing: &mut Standing, now: i64, advice: &mut Advice) {
    let Some(balance) = balance else {
        advice
            .unknown
            .push("how even the hosts are: not all of them are heard".to_owned());
        return;
    };
    let signal = if balance.moves == 0 {
        Signal::Below
    } else {
        Signal::of(balance.fullest, UNEVEN)
    };
    if standing.judge("rebalance", now, signal) && balance.moves > 0 {
        advice.proposals.push(Proposal {
            change: Change::Rebalance {
                moves: balance.moves,
            },
            urgency: Urgency::Later,
            reasons: vec![format!(
                "the fullest host has {:.2} times the mean load; a move resumes its sessions and costs no IDENTIFY",
                balance.fullest
            )],
        });
    }
}

fn hosts(hosts: &[HostFacts], standing: &mut Standing, now: i64, advice: &mut Advice) {
    let open: Vec<&HostFacts> = hosts.iter().filter(|host| host.open).collect();
    let count = open.len() as u32;
    if count == 0 {
        return;
    }
    let cores: u32 = open.iter().map(|host| host.cpus).sum();
    let cpu: Option<f64> = open
        .iter()
        .map(|host| Some(host.cpu_percent? * f64::from(host.cpus)))
        .sum::<Option<f64>>()
        .filter(|_| cores > 0)
        .map(|sum| sum / f64::from(cores));
    let memory: Option<Vec<(u64, u64)>> = open.iter().map(|host| host.memory_bytes).collect();
    let mut signal = Signal::Below;
    let (mut reasons, mut to) = (Vec::new(), count);
    match cpu {
        None => {
            signal = Signal::Between;
            let text = "the CPU load of the hosts: not all of them are heard".to_owned();
            advice.unknown.push(text);
        }
        Some(cpu) => {
            signal = signal.or(Signal::of(cpu, CPU));
            if cpu > CPU.0 {
                // So many as bring it to the lower threshold.
                let wanted = (f64::from(count) * cpu / CPU.0).ceil() as u32;
                to = to.max(wanted.max(count + 1));
                reasons.push(format!(
                    "{cpu:.0} % of {cores} processors are in use; {:.0} leaves room for the loss of one",
                    CPU.0
                ));
            }
        }
    }
    match memory {
        None => {
            signal = signal.or(Signal::Between);
            let text = "the memory of the hosts: not all of them are heard".to_owned();
            advice.unknown.push(text);
        }
        Some(memory) if count > 1 => {
            let used: u64 = memory.iter().map(|(used, _)| used).sum();
            let total: u64 = memory.iter().map(|(_, total)| total).sum();
            let largest = memory.iter().map(|(_, total)| *total).max().unwrap_or(0);
            let left = (total - largest).max(1);
            let share = used as f64 / left as f64;
            signal = signal.or(Signal::of(share, MEMORY));
            if share > MEMORY.0 {
                let each = (total as f64 / f64::from(count)).max(1.0);
                let more = ((used as f64 / MEMORY.0 - left as f64) / each)
                    .ceil()
                    .max(1.0);
                to = to.max(count.saturating_add(more as u32));
                reasons.push(format!(
                    "memory in use is {:.0} % of what is left when the largest host is lost",
                    share * 100.0
                ));
            }
        }
        Some(_) => {}
    }
    if standing.judge("hosts", now, signal) && to > count {
        advice.proposals.push(Proposal {
            change: Change::Hosts { from: count, to },
            urgency: if signal == Signal::Above {
                Urgency::Soon
            } else {
                Urgency::Later
            },
            reasons,
        });
    } else if count == 1 {
        advice.notes.push(
            "one host: when it is lost, everything is; three carry on without one".to_owned(),
        );
    }
}

fn nodes(facts: &Facts, standing: &mut Standing, now: i64, advice: &mut Advice) {
    let count = facts.nodes.len() as u32;
    if count == 0 {
        return;
    }
    let guilds: Option<u64> = facts.bots.iter().map(|bot| bot.guilds).sum();
    let sized = guilds.map(|guilds| recommend(guilds).db_nodes_min);
    let mut signal = match sized {
        None => Signal::Between,
        Some(sized) if sized > count => Signal::Above,
        Some(_) => Signal::Below,
    };
    let (mut to, mut reasons) = (count, Vec::new());
    if let (Some(sized), Some(guilds)) = (sized, guilds)
        && sized > count
    {
        to = sized;
        reasons.push(format!(
            "{guilds} guilds: {sized} nodes or more are recommended"
        ));
    }
    let mut silent = 0;
    for node in &facts.nodes {
        let figures = [
            ("reads", node.read_p99_ms, READ_MS),
            ("writes", node.write_p99_ms, WRITE_MS),
        ];
        silent += u32::from(figures.iter().all(|(_, figure, _)| figure.is_none()));
        for (what, figure, bounds) in figures {
            let Some(figure) = figure else { continue };
            signal = signal.or(Signal::of(figure, bounds));
            if figure > bounds.0 {
                to = to.max(count + 1);
                reasons.push(format!(
                    "the slowest hundredth of the {what} of {} take {figure:.0} ms; {:.0} would be well",
                    node.name, bounds.0
                ));
            }
        }
    }
    if silent > 0 {
        signal = signal.or(Signal::Between);
        advice.unknown.push(format!(
            "how fast {silent} of {count} database nodes answer: they do not report"
        ));
    }
    if standing.judge("nodes", now, signal) && to > count {
        advice.proposals.push(Proposal {
            change: Change::Nodes { from: count, to },
            urgency: if signal == Signal::Above {
                Urgency::Soon
            } else {
                Urgency::Later
            },
            reasons,
        });
    }
}
