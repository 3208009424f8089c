//! The operator: commands at random, asked again with the same request id when there was no answer, as
//! `tanakoctl` does; in the end, everything that was given up is started by hand.

use tanako_agent::{
    operations::{Kind, Operation, ledger},
    supervisor::State,
};
use tanako_fleet::{ProcessName, rollout::Strategy};
use tokio::sync::oneshot;

use super::{
    agent::{
        coordinator::{Ask, Command, Control, Refused},
        drafts::{self, BOT},
    },
    trace::trace,
    world::Sim,
};

/// An answer is waited for this long, in milliseconds.
const ANSWER_WITHIN: u64 = 20_000;

/// The processes of the set that serves.
pub fn names(sim: &Sim) -> Vec<ProcessName> {
    let judge = sim.judge.borrow();
    judge.desired().map_or_else(Vec::new, drafts::names)
}

/// A request that asks for nothing yet.
pub fn request(id: impl Into<String>, kind: Kind) -> Ask {
    Ask {
        request_id: id.into(),
        kind,
        targets: Vec::new(),
        named: false,
        max_unavailable: 1,
        strategy: Strategy::Rolling,
        variant: None,
        undo: None,
        shards: 0,
        observe_ms: 10_000,
    }
}

/// To whoever decides.
fn coordinator(sim: &Sim) -> Result<tokio::sync::mpsc::UnboundedSender<Command>, Refused> {
    let office = sim.office.borrow().clone();
    office
        .filter(|office| office.serving.get())
        .map(|office| office.commands.clone())
        .ok_or(Refused::Gone)
}

/// Asks once.
pub async fn ask(sim: &Sim, ask: &Ask) -> Result<Operation, Refused> {
    let commands = coordinator(sim)?;
    let wants = ask.named || matches!(ask.kind, Kind::Start | Kind::Stop);
    if wants {
        sim.judge.borrow_mut().asks(&ask.targets);
    }
    let (reply, answer) = oneshot::channel();
    commands
        .send(Command::Submit(Box::new(ask.clone()), reply))
        .map_err(|_| Refused::Gone)?;
    tokio::select! {
        biased;
        answer = answer => answer.unwrap_or(Err(Refused::Gone)),
        () = sim.sleep(ANSWER_WITHIN) => Err(Refused::Gone),
    }
}

/// Asks until there is an answer.
pub async fn insist(sim: &Sim, wanted: &Ask, tries: u32) -> Result<Operation, Refused> {
    let mut last = Err(Refused::Gone);
    for _ in 0..tries {
        last = ask(sim, wanted).await;
        match &last {
            Err(Refused::Gone | Refused::Store) => sim.sleep(sim.draw(500..=3_000)).await,
            _ => break,
        }
    }
    last
}

/// Pauses, resumes or aborts.
pub async fn control(sim: &Sim, number: u64, control: Control) -> Result<(), Refused> {
    let commands = coordinator(sim)?;
    let (reply, answer) = oneshot::channel();
    commands
        .send(Command::Control(number, control, reply))
        .map_err(|_| Refused::Gone)?;
    tokio::select! {
        biased;
        answer = answer => answer.unwrap_or(Err(Refused::Gone)),
        () = sim.sleep(ANSWER_WITHIN) => Err(Refused::Gone),
    }
}

/// Operations that have not ended, as the store has them.
pub async fn unfinished(sim: &Sim) -> Vec<Operation> {
    match ledger::load(&*sim.store, 1).await {
        Ok(loaded) => loaded.active,
        Err(_) => Vec::new(),
    }
}

/// Commands at random, until the busy time is over.
pub async fn work(sim: Sim) {
    if sim.config.command_ms == 0 {
        return;
    }
    let mut number = 0;
    loop {
        sim.sleep(sim.draw(1..=2 * sim.config.command_ms)).await;
        if sim.now() >= sim.config.busy_ms {
            return;
        }
        if sim.chance(250) {
            let running = unfinished(&sim).await;
            if let Some(op) = sim.choose(&running) {
                let what = [Control::Pause, Control::Resume, Control::Abort];
                if let Some(what) = sim.choose(&what) {
                    let answer = control(&sim, op.number, what).await;
                    trace!(
                        sim,
                        [op.number],
                        "operator: {what:?} of {}: {answer:?}",
                        op.id
                    );
                }
                continue;
            }
        }
        number += 1;
        if sim.chance(sim.config.changes) {
            change(&sim, number).await;
            continue;
        }
        let all = names(&sim);
        let (targets, named) = if sim.chance(500) {
            (all, false)
        } else {
            let mut some: Vec<ProcessName> =
                all.iter().filter(|_| sim.chance(400)).cloned().collect();
            if some.is_empty() {
                some.extend(sim.choose(&all));
            }
            (some, true)
        };
        let kinds = [
            Kind::Restart,
            Kind::Restart,
            Kind::Restart,
            Kind::Start,
            Kind::Stop,
        ];
        let Some(kind) = sim.choose(&kinds) else {
            return;
        };
        let wanted = Ask {
            targets,
            named,
            max_unavailable: sim.draw(1..=4) as u32,
            ..request(format!("r{number}"), kind)
        };
        trace!(
            sim,
            [number, kind as u64, wanted.targets.len()],
            "operator: {} {:?} (at most {} down)",
            kind.as_str(),
            wanted
                .targets
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            wanted.max_unavailable
        );
        let later = sim.clone();
        let answers = async move {
            let answer = insist(&later, &wanted, 5).await;
            trace!(
                later,
                [answer.is_ok()],
                "operator: {} is {:?}",
                wanted.request_id,
                answer.map(|op| op.id)
            );
        };
        if sim.chance(500) {
            // Someone else asks meanwhile.
            sim.spawn(super::executor::WORLD, answers);
        } else {
            answers.await;
        }
    }
}

/// A rollout, a reshard, or a rollout taken back.
async fn change(sim: &Sim, number: u64) {
    let id = format!("r{number}");
    let observe_ms = sim.draw(1..=20) as i64 * 1_000;
    let strategies = Strategy::ALL;
    let mut wanted = Ask {
        max_unavailable: sim.draw(1..=3) as u32,
        strategy: sim.choose(&strategies).unwrap_or_default(),
        variant: sim.chance(700).then_some(number as u32),
        observe_ms,
        ..request(id, Kind::Rollout)
    };
    let set = sim
        .judge
        .borrow()
        .desired()
        .and_then(|desired| desired.active(BOT));
    match sim.draw(0..=9) {
        0..=3 => {
            let now = set.map_or(1, |set| set.shards);
            wanted.kind = Kind::Reshard;
            wanted.shards = match sim.draw(0..=3) {
                0 => (now / 2).max(1),
                1 => now + 1,
                _ => (now * 2).min(32),
            };
        }
        4 => wanted.undo = latest_rollout(sim).await,
        _ => {}
    }
    trace!(
        sim,
        [number, wanted.shards, wanted.undo.unwrap_or(0)],
        "operator: {} {} to {} shards, variant {:?}, undo {:?} (at most {} down)",
        wanted.kind.as_str(),
        wanted.strategy.as_str(),
        wanted.shards,
        wanted.variant,
        wanted.undo,
        wanted.max_unavailable
    );
    let answer = insist(sim, &wanted, 3).await;
    trace!(
        sim,
        [answer.is_ok()],
        "operator: {} is {:?}",
        wanted.request_id,
        answer.map(|op| op.id)
    );
}

async fn latest_rollout(sim: &Sim) -> Option<u64> {
    let latest = ledger::list(&*sim.store, 10).await.ok()?;
    let found = latest
        .iter()
        .find(|op| op.kind == Kind::Rollout && op.state.is_ended());
    found.map(|op| op.number)
}

/// After the faults: paused operations go on, what was given up is started by hand, now and then.
pub async fn mend(sim: Sim) {
    sim.sleep_until(sim.config.busy_ms + 1_000).await;
    let mut number = 0;
    loop {
        for op in unfinished(&sim).await {
            if op.state == tanako_agent::operations::OpState::Paused {
                let _ = control(&sim, op.number, Control::Resume).await;
            }
        }
        let agent = sim.agent.borrow().clone();
        let table = agent.map(|agent| agent.table.borrow().clone());
        let failed = table.iter().flat_map(|table| table.iter());
        let given_up: Vec<ProcessName> = failed
            .filter(|(name, process)| {
                process.state == State::Failed && !sim.judge.borrow().stopped().contains(*name)
            })
            .map(|(name, _)| name.clone())
            .collect();
        if !given_up.is_empty() {
            number += 1;
            let wanted = Ask {
                targets: given_up,
                named: true,
                ..request(format!("mend{number}"), Kind::Start)
            };
            let answer = insist(&sim, &wanted, 3).await;
            trace!(
                sim,
                [answer.is_ok()],
                "operator: starts what was given up: {:?}",
                answer.map(|op| op.id)
            );
        }
        sim.sleep(20_000).await;
    }
}
