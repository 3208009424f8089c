//! One life of the agent: the shells around the real cores, task by task as the daemon has them.
//! Everything that is not on the host's disk or in the store dies with it.

pub mod broker;
pub mod coordinator;
pub mod drafts;
pub mod office;
pub mod supervisor;
pub mod vault;
pub mod worker;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use tanako_agent::supervisor::Table;
use tanako_fleet::orders::{Given, Orders};
use tokio::sync::mpsc;

use self::{broker::Broker, office::Office, supervisor::SupMsg, vault::Vault, worker::Workers};
use super::{executor::Group, host::Pid, trace::trace, watch, world::Sim};

/// See the module's documentation.
pub struct Agent {
    /// Which life this is.
    pub life: u64,
    /// Its tasks.
    pub group: Group,
    /// To the supervisor.
    pub supervisor: mpsc::UnboundedSender<SupMsg>,
    /// The supervisor's table, as published.
    pub table: watch::Receiver<Arc<Table>>,
    /// The identify broker.
    pub broker: Broker,
    /// The session vault.
    pub vault: Vault,
    /// The worker registry.
    pub workers: Workers,
    /// Whether the worker socket is bound.
    pub listening: Cell<bool>,
    /// Whether it takes orders.
    pub serving: Cell<bool>,
    /// Children whose end the supervisor has not been told of.
    exits: RefCell<Vec<Pid>>,
}

impl Agent {
    /// Starts the next life, unless one runs.
    pub fn start(sim: &Sim) {
        if sim.agent.borrow().is_some() {
            return;
        }
        let life = {
            let mut judge = sim.judge.borrow_mut();
            judge.agent_lives += 1;
            judge.agent_lives
        };
        let group = sim.executor.group();
        trace!(sim, [life], "agent: life {life} begins");
        let (supervisor, inbox) = mpsc::unbounded_channel();
        let (published, table) = watch::channel(Arc::default());
        let (broker, broker_task) = Broker::new(sim, group);
        let agent = Rc::new(Self {
            life,
            group,
            supervisor,
            table,
            broker,
            vault: Vault::new(),
            workers: Workers::default(),
            listening: Cell::new(false),
            serving: Cell::new(false),
            exits: RefCell::default(),
        });
        *sim.agent.borrow_mut() = Some(Rc::clone(&agent));
        let later = sim.clone();
        sim.spawn(group, async move {
            let sim = later;
            sim.sleep(sim.draw(20..=300)).await;
            // In the order of the daemon: vault, broker, supervisor, worker socket, coordinator.
            agent.vault.load(&sim);
            sim.spawn(group, vault::write_loop(sim.clone(), Rc::clone(&agent)));
            sim.sleep(sim.draw(0..=20)).await;
            let task = broker_task.load(&sim);
            sim.spawn(group, task.run(sim.clone()));
            sim.sleep(sim.draw(0..=20)).await;
            let owner = supervisor::Owner::new(&sim, Rc::clone(&agent), published);
            sim.spawn(group, owner.run(inbox));
            sim.sleep(sim.draw(0..=20)).await;
            // Before the first worker can say hello.
            let down = || sim.weather.borrow().store_down > sim.now();
            while down() && !sim.config.remote {
                sim.sleep(200).await;
            }
            if !down() {
                let duties = tanako_agent::coordinator::duties(&*sim.store).await;
                let duties = duties.unwrap_or_default();
                let kept = agent.workers.duties.borrow().replace(duties);
                kept.expect("invariant: these lie on no disk");
            }
            // Those elsewhere tell it the same once they hear of it.
            let configured = sim
                .judge
                .borrow()
                .desired()
                .and_then(|now| now.spec.clone());
            for bot in configured.iter().flat_map(|spec| spec.bots.values()) {
                let hint = Some(bot.max_concurrency);
                agent.broker.configure(hint, bot.identify_reserve);
            }
            agent.listening.set(true);
            sim.sleep(sim.draw(0..=20)).await;
            agent.serving.set(true);
            if !sim.config.remote {
                Office::local(sim, agent).await;
            }
        });
    }

    /// kill -9.
    pub fn kill(sim: &Sim) {
        let agent = sim.agent.borrow_mut().take();
        if let Some(agent) = agent {
            trace!(sim, [agent.life], "agent: killed");
            sim.executor.kill(agent.group);
            if !sim.config.remote {
                *sim.office.borrow_mut() = None;
            }
            sim.touch();
        }
    }

    /// Whether an order of this epoch counts here.
    pub fn admit(sim: &Sim, epoch: u64) -> Result<(), String> {
        let mut orders = Orders::new(sim.host.borrow().disk.epoch);
        let given = Given {
            epoch,
            tenure: "",
            about: None,
        };
        if let Err(late) = orders.check("", &given) {
            trace!(
                sim,
                [epoch, orders.epoch()],
                "agent: an order of epoch {epoch} is refused: {late:?}"
            );
            return Err(format!("epoch {epoch} is over: {late:?}"));
        }
        orders.passed(&given);
        sim.host.borrow_mut().disk.epoch = orders.epoch();
        sim.judge.borrow_mut().obeyed(epoch);
        Ok(())
    }

    /// kill -9 here and now, sometimes, of whoever runs in this group.
    pub async fn may_die_at(sim: &Sim, group: Group, place: &'static str) {
        let own = sim
            .agent
            .borrow()
            .as_ref()
            .is_some_and(|agent| agent.group == group);
        if own {
            let life = sim.agent.borrow().as_ref().map_or(0, |agent| agent.life);
            return Self::may_die(sim, life, place).await;
        }
        let now = sim.weather.borrow_mut().reached(place) || sim.chance_of_death();
        let office = sim
            .candidates
            .borrow()
            .iter()
            .find(|office| office.group == group)
            .cloned();
        if let Some(office) = office.filter(|_| now) {
            trace!(sim, [office.number], "office: dies at {place}");
            Office::kill(sim, &office);
            std::future::pending::<()>().await;
        }
    }

    /// kill -9 here and now, sometimes: at the moments when something is half done.
    pub async fn may_die(sim: &Sim, life: u64, place: &'static str) {
        let now = {
            let mut weather = sim.weather.borrow_mut();
            weather.reached(place)
        } || sim.chance_of_death();
        if now
            && sim
                .agent
                .borrow()
                .as_ref()
                .is_some_and(|agent| agent.life == life)
        {
            trace!(sim, [life], "agent: dies at {place}");
            Self::kill(sim);
            std::future::pending::<()>().await;
        }
    }

    /// A child has ended.
    pub fn exited(self: &Rc<Self>, sim: &Sim, pid: Pid) {
        self.exits.borrow_mut().push(pid);
        let (agent, later) = (Rc::clone(self), sim.clone());
        sim.spawn(self.group, async move {
            later.sleep(later.draw(0..=3)).await;
            // A life that is over hears nothing.
            let _ = agent.supervisor.send(SupMsg::Exited(pid));
        });
    }
}
