//! What goes wrong: single blows, and weather that lasts.

use std::{collections::BTreeMap, rc::Rc};

use tanako_agent::supervisor::core::Exit;

use super::{
    agent::{
        Agent,
        office::{self, Office},
    },
    discord::{self, Blow},
    executor::WORLD,
    host::{self, Pid},
    trace::trace,
    world::Sim,
};

/// A clock by which sets share events is never further behind Discord's, in milliseconds.
const BEHIND_MAX_MS: i64 = 2_000;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// kill -9 of the agent; it is started again after a while.
    KillAgent,
    /// The agent is stopped (SIGSTOP) for a while.
    PauseAgent,
    /// The agent dies at moments when something is half done.
    DieHalfway,
    /// kill -9 of a process.
    KillBot,
    /// A process is stopped (SIGSTOP) for a while.
    PauseBot,
    /// A process hangs and hears nothing but SIGKILL.
    HangBot,
    /// A process ends by itself.
    ExitBot,
    /// The wall clock is set.
    ClockJump,
    /// The machine loses its power.
    Reboot,
    /// Discord is down.
    Outage,
    /// The resume URLs lead nowhere.
    DeadUrls,
    /// Discord closes connections that try to resume.
    RefuseResumes,
    /// Something happens to one connection.
    Blow,
    /// The streams between workers and agent break.
    CutLinks,
    /// The store does not answer.
    StoreDown,
    /// No process can be started.
    SpawnFails,
    /// Answers to requests for permits are lost.
    AnswersLost,
    /// Whoever decides elsewhere is killed.
    KillLeader,
    /// It is stopped (SIGSTOP) for a while, and then goes on as if nothing had happened.
    PauseLeader,
    /// The office is lost without its holder's doing.
    LoseOffice,
    /// Orders and answers are under way for seconds.
    SlowOrders,
    /// What a worker sends waits in the agent for seconds, also when the worker is dead by then.
    SlowStreams,
}

impl Fault {
    /// Those of random weather. Without the last one: an agent that hears seconds late that a process is down
    /// may restart another one, which the judge does not forgive.
    pub const ALL: [Self; 21] = [
        Self::KillAgent,
        Self::PauseAgent,
        Self::DieHalfway,
        Self::KillBot,
        Self::PauseBot,
        Self::HangBot,
        Self::ExitBot,
        Self::ClockJump,
        Self::Reboot,
        Self::Outage,
        Self::DeadUrls,
        Self::RefuseResumes,
        Self::Blow,
        Self::CutLinks,
        Self::StoreDown,
        Self::SpawnFails,
        Self::AnswersLost,
        Self::KillLeader,
        Self::PauseLeader,
        Self::LoseOffice,
        Self::SlowOrders,
    ];
}

/// The faults of the moment; times are virtual milliseconds.
#[derive(Debug, Default)]
pub struct Weather {
    /// Faults come to an end here; 0 = there are none.
    pub busy_until: u64,
    /// Discord is down until then.
    pub outage_until: u64,
    /// Resume URLs lead nowhere until then.
    pub dead_urls_until: u64,
    /// RESUMEs are answered by a close until then.
    pub refuse_resumes: u64,
    /// The store does not answer until then.
    pub store_down: u64,
    /// Nothing can be started until then.
    pub spawn_fails: u64,
    /// Answers get lost until then.
    pub answers_lost: u64,
    /// Orders of those who decide elsewhere are slow until then.
    pub slow_orders: u64,
    /// What workers send is slow until then.
    pub slow_streams: u64,
    /// The agent dies halfway until then.
    pub die_halfway: u64,
    /// The agent's supervisor (of the machine) does not start it until then.
    pub agent_down: u64,
    /// Places at which the agent may die that were reached so far; for scripted deaths.
    pub places: u64,
    /// Die at this one.
    pub die_at: Option<u64>,
    /// How often each place was reached.
    pub reached: BTreeMap<&'static str, u64>,
}

impl Weather {
    /// A place at which the agent may die. True when it shall, by the script.
    pub fn reached(&mut self, place: &'static str) -> bool {
        self.places += 1;
        *self.reached.entry(place).or_default() += 1;
        self.die_at == Some(self.places)
    }
}

impl Sim {
    /// Whether faults are still to come.
    pub fn is_busy(&self) -> bool {
        self.weather.borrow().busy_until > self.now()
    }

    /// Whether the agent dies at a place where something is half done.
    pub fn chance_of_death(&self) -> bool {
        let on = {
            let weather = self.weather.borrow();
            self.now() < weather.die_halfway.min(weather.busy_until)
        };
        on && self.chance(60)
    }
}

/// The machine's init: starts the agent again whenever it is gone.
pub async fn init(sim: Sim) {
    loop {
        let down = sim.weather.borrow().agent_down;
        if sim.agent.borrow().is_none() {
            if down > sim.now() {
                sim.sleep_until(down).await;
                continue;
            }
            Agent::start(&sim);
        }
        sim.sleep(sim.draw(100..=1_000)).await;
    }
}

/// Faults at random, until the busy time is over; then everything is mended.
pub async fn storm(sim: Sim) {
    let until = sim.config.busy_ms;
    sim.weather.borrow_mut().busy_until = until;
    if sim.config.fault_ms > 0 {
        loop {
            let wait = sim.draw(1..=2 * sim.config.fault_ms);
            if sim.now() + wait >= until {
                break;
            }
            sim.sleep(wait).await;
            if let Some(fault) = sim.choose(&sim.config.faults) {
                strike(&sim, fault);
            }
        }
    }
    sim.sleep_until(until).await;
    mend(&sim);
}

/// Everything works again.
pub fn mend(sim: &Sim) {
    trace!(sim, [0], "faults are over");
    {
        let mut guard = sim.weather.borrow_mut();
        let weather = &mut *guard;
        let now = sim.now();
        for until in [
            &mut weather.outage_until,
            &mut weather.dead_urls_until,
            &mut weather.refuse_resumes,
            &mut weather.store_down,
            &mut weather.spawn_fails,
            &mut weather.answers_lost,
            &mut weather.agent_down,
            &mut weather.slow_orders,
            &mut weather.slow_streams,
        ] {
            *until = (*until).min(now);
        }
    }
    let agent = sim.agent.borrow().as_ref().map(|agent| agent.group);
    let offices = sim.candidates.borrow().clone();
    let offices = offices.iter().map(|office| office.group);
    sim.judge.borrow_mut().awakes(sim.now());
    for group in agent.into_iter().chain(offices) {
        sim.executor.pause(group, false);
    }
}

/// Whoever decides elsewhere.
fn leader(sim: &Sim) -> Option<Rc<Office>> {
    let office = sim.office.borrow().clone();
    office.filter(|office| office.remote)
}

fn any_bot(sim: &Sim) -> Option<Pid> {
    let pids: Vec<Pid> = sim.host.borrow().procs.keys().copied().collect();
    sim.choose(&pids)
}

/// A fault strikes.
pub fn strike(sim: &Sim, fault: Fault) {
    trace!(sim, [fault as u64], "fault: {fault:?}");
    let now = sim.now();
    let spell = now + sim.draw(500..=40_000);
    let mut weather = sim.weather.borrow_mut();
    match fault {
        Fault::Outage => {
            weather.outage_until = now + sim.draw(1_000..=120_000);
            drop(weather);
            let conns = sim.discord.borrow().conns();
            for conn in conns {
                discord::strike(sim, conn, Blow::Cut);
            }
            return;
        }
        Fault::DeadUrls => weather.dead_urls_until = spell,
        Fault::RefuseResumes => weather.refuse_resumes = now + sim.draw(500..=5_000),
        Fault::StoreDown => weather.store_down = spell,
        Fault::SpawnFails => weather.spawn_fails = now + sim.draw(100..=3_000),
        Fault::AnswersLost => weather.answers_lost = spell,
        Fault::SlowOrders => weather.slow_orders = spell,
        Fault::SlowStreams => weather.slow_streams = spell,
        Fault::DieHalfway => weather.die_halfway = spell,
        _ => {}
    }
    drop(weather);
    match fault {
        Fault::KillAgent => {
            sim.weather.borrow_mut().agent_down = now + sim.draw(0..=15_000);
            Agent::kill(sim);
        }
        Fault::PauseAgent => {
            let group = sim.agent.borrow().as_ref().map(|agent| agent.group);
            if let Some(group) = group {
                sim.executor.pause(group, true);
                let (later, ms) = (sim.clone(), sim.draw(100..=60_000));
                sim.spawn(WORLD, async move {
                    later.sleep(ms).await;
                    trace!(later, [1], "the agent goes on");
                    later.judge.borrow_mut().awakes(later.now());
                    later.executor.pause(group, false);
                });
            }
        }
        Fault::KillLeader => {
            if let Some(office) = leader(sim) {
                Office::kill(sim, &office);
            }
        }
        Fault::PauseLeader => {
            if let Some(office) = leader(sim) {
                sim.executor.pause(office.group, true);
                let (later, ms) = (sim.clone(), sim.draw(100..=30_000));
                sim.spawn(WORLD, async move {
                    later.sleep(ms).await;
                    trace!(later, [office.number], "office: {} goes on", office.number);
                    later.judge.borrow_mut().awakes(later.now());
                    later.executor.pause(office.group, false);
                });
            }
        }
        Fault::LoseOffice if sim.config.remote => office::vacate(sim),
        Fault::KillBot => {
            if let Some(pid) = any_bot(sim) {
                host::end(sim, pid, Exit::Signal(9));
            }
        }
        Fault::ExitBot => {
            if let Some(pid) = any_bot(sim) {
                host::end(sim, pid, Exit::Code(1));
            }
        }
        Fault::HangBot => {
            if let Some(pid) = any_bot(sim) {
                host::hang(sim, pid);
                silent(sim, pid);
            }
        }
        Fault::PauseBot => {
            if let Some(pid) = any_bot(sim) {
                host::pause(sim, pid, true);
                silent(sim, pid);
                let (later, ms) = (sim.clone(), sim.draw(50..=60_000));
                sim.spawn(WORLD, async move {
                    later.sleep(ms).await;
                    let hung = later
                        .host
                        .borrow()
                        .procs
                        .get(&pid)
                        .is_some_and(|proc| proc.hung);
                    if !hung {
                        host::pause(&later, pid, false);
                    }
                });
            }
        }
        Fault::ClockJump => {
            let ms = [-3_600_000, -5_000, -500, 500, 5_000, 3_600_000];
            let ms = sim.choose(&ms).filter(|ms| {
                // A cut is agreed on ahead of the machine's clock, which may not be far behind Discord's.
                sim.config.changes == 0 || sim.host.borrow().ahead() + ms >= -BEHIND_MAX_MS
            });
            if let Some(ms) = ms {
                trace!(sim, [ms], "the wall clock is set by {ms} ms");
                host::jump(sim, ms);
            }
        }
        Fault::Reboot => {
            let away = sim.draw(10_000..=90_000);
            host::reboot(sim, away as i64);
            sim.weather.borrow_mut().agent_down = now + away;
        }
        Fault::Blow => {
            let conns = sim.discord.borrow().conns();
            if let Some(conn) = sim.choose(&conns) {
                let blows = [
                    Blow::Reconnect,
                    Blow::Invalid(true),
                    Blow::Invalid(false),
                    Blow::Close(Some(4000)),
                    Blow::Close(Some(4008)),
                    Blow::Close(Some(4009)),
                    Blow::Close(None),
                    Blow::Cut,
                    Blow::Silence(sim.draw(40_000..=85_000)),
                ];
                if let Some(blow) = sim.choose(&blows) {
                    discord::strike(sim, conn, blow);
                }
            }
        }
        Fault::CutLinks => {
            let agent = sim.agent.borrow().clone();
            if let Some(agent) = agent {
                agent.workers.cut_all();
            }
        }
        _ => {}
    }
}

/// A process that does not beat loses its connections after a while.
fn silent(sim: &Sim, pid: Pid) {
    let later = sim.clone();
    sim.spawn(WORLD, async move {
        later.sleep(60_000).await;
        let quiet = later
            .host
            .borrow()
            .procs
            .get(&pid)
            .is_some_and(|proc| later.executor.is_paused(proc.group));
        if quiet {
            host::forget_silent(&later, pid);
        }
    });
}
