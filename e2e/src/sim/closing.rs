//! The beginning and the end of a run: a fleet that shall run, and the question whether it does.

use tanako_agent::desired::Document;
use tanako_store::Txn;

use super::{agent::office, discord, executor::WORLD, faults, operator, trace::trace, world::Sim};

/// Looks in a row that must find everything at rest.
const LOOKS: u32 = 4;
/// Between two of them, in milliseconds.
const LOOK_EVERY: u64 = 1_000;

/// Writes down what shall run, and starts what every run has.
pub fn prepare(sim: &Sim) {
    let document = Document {
        version: 1,
        toml: sim.config.toml(None, 0),
        file_name: "fleet.toml".to_owned(),
        ..Document::default()
    };
    let value = serde_json::to_vec(&document).expect("invariant: a document is plain data");
    let outcome = sim.store.apply(Txn::new().put("desired", value));
    assert!(outcome.is_ok(), "an empty store takes a document");
    sim.spawn(WORLD, faults::init(sim.clone()));
    if sim.config.remote {
        sim.spawn(WORLD, office::candidates(sim.clone()));
    }
    sim.spawn(WORLD, events(sim.clone()));
    sim.spawn(WORLD, close(sim.clone()));
}

/// Things happen in guilds.
async fn events(sim: Sim) {
    let until = sim.config.busy_ms + 5_000;
    while sim.now() < until {
        sim.sleep(sim.draw(1..=2 * sim.config.event_ms)).await;
        let (guild, interaction) = (sim.draw(0..=4_095), sim.chance(400));
        discord::happen(&sim, guild, interaction);
    }
}

/// After the faults: everything must come to rest as it was asked for, within bounded time.
async fn close(sim: Sim) {
    sim.sleep_until(sim.config.busy_ms + 6_000).await;
    let deadline = sim.config.busy_ms + sim.config.heal_ms;
    let mut good = 0;
    loop {
        match rests(&sim).await {
            Ok(()) => good += 1,
            Err(why) => {
                good = 0;
                if sim.now() >= deadline {
                    sim.violated("liveness", why);
                    return;
                }
            }
        }
        if good >= LOOKS {
            trace!(sim, [0], "everything is at rest");
            sim.done.set(true);
            return;
        }
        sim.sleep(LOOK_EVERY).await;
    }
}

/// Whether the fleet is as it was asked for.
async fn rests(sim: &Sim) -> Result<(), String> {
    let unfinished = operator::unfinished(sim).await;
    if let Some(op) = unfinished.first() {
        return Err(format!(
            "{} is {}: {}",
            op.id,
            op.state.as_str(),
            op.message
        ));
    }
    let agent = sim.agent.borrow().clone();
    let Some(agent) = agent.filter(|agent| agent.serving.get()) else {
        return Err("no agent serves".to_owned());
    };
    let office = sim.office.borrow().clone();
    if !office.is_some_and(|office| office.serving.get()) {
        return Err("nobody decides".to_owned());
    }
    let exhausted = sim.config.total < 1_000;
    let names = operator::names(sim);
    sim.discord.borrow_mut().expire(sim);
    let (host, judge, discord) = (sim.host.borrow(), sim.judge.borrow(), sim.discord.borrow());
    let served = discord.served();
    let table = agent.table.borrow();
    if let Some(proc) = host.procs.values().find(|proc| !names.contains(&proc.name)) {
        return Err(format!("{} runs and is in no set that serves", proc.name));
    }
    for name in names {
        let live = host.find(&name);
        if judge.stopped().contains(&name) {
            if live.is_some() {
                return Err(format!("{name} was stopped and runs"));
            }
            continue;
        }
        let Some((_, proc)) = live else {
            return Err(format!("{name} does not run"));
        };
        let status = table.get(&name);
        let state = status.map_or("unknown", |status| status.state.as_str());
        if exhausted {
            // It may have to wait for tomorrow.
            continue;
        }
        if !proc.ready || !status.is_some_and(|status| status.ready) {
            return Err(format!(
                "{name} attempt {} is not ready ({state})",
                proc.attempt
            ));
        }
        let Some(status) = status else { continue };
        for shard in &status.shard_ids {
            if !served.contains(&(*shard, status.shard_count)) {
                return Err(format!("shard {shard} of {name} is not served"));
            }
        }
    }
    if let Some((tuple, seq, event)) = discord.untaken().first() {
        return Err(format!(
            "event {} (shard {}, seq {seq}) has not been taken",
            event.id, tuple.0
        ));
    }
    if exhausted {
        return Ok(());
    }
    if let Some((id, created, tuples)) = discord.unsettled() {
        return Err(format!(
            "interaction {id} of {created} ms (shards {tuples:?}) has not been handled by anybody"
        ));
    }
    Ok(())
}
