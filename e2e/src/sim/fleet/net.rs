//! The network: calls to the store and to other agents, and what becomes of them on their way.

use std::{cell::Cell, rc::Rc};

use tanako_fleet::tenure::Standing;

use super::world::{At, CALL_WITHIN, HostId, World};

/// A call may be carried out so long after it was made: whoever made it has given it up by then.
const LATE_MAX: u64 = 30_000;

/// A call to an agent on its way.
#[derive(Clone)]
struct Message {
    /// The host, in which boot.
    from: (HostId, u64),
    /// The host, and which life of its agent: a connection ends with the process.
    to: (HostId, u64),
    sent: u64,
    work: Rc<dyn Fn(&mut World)>,
}

impl World {
    /// One way of a message; `None` = it is lost.
    pub fn way(&mut self) -> Option<u64> {
        let loss = if self.is_busy() { self.config.loss } else { 0 };
        if self.chance(loss) {
            return None;
        }
        let slow = if self.chance(loss) {
            self.draw(0..=2_500)
        } else {
            0
        };
        Some(self.draw(1..=30) + slow)
    }

    /// Whether two hosts can speak.
    pub fn linked(&self, a: HostId, b: HostId) -> bool {
        a == b
            || !self.links.contains(&(a.min(b), a.max(b)))
                && !self.hosts[a].off
                && !self.hosts[b].off
    }

    pub fn reaches_store(&self, host: HostId) -> bool {
        self.store.up && !self.cut_off.contains(&host) && !self.hosts[host].off
    }

    /// A call to the store by an agent, or through another host. No answer = nobody knows.
    pub fn call<R: Clone + 'static>(
        &mut self,
        (host, life): (HostId, u64),
        via: HostId,
        request: impl Fn(&mut Self) -> R + 'static,
        then: impl Fn(&mut Self, Option<R>) + 'static,
    ) {
        let there = self.way();
        let then = Rc::new(then);
        let asked = self.now;
        let late = Rc::clone(&then);
        let Some(there) = there else {
            self.post(CALL_WITHIN, At::Agent(host, life), move |world| {
                late(world, None);
            });
            return;
        };
        // Another copy of the request may come again, and later; its answer is of no use.
        let twice = self.is_busy() && {
            let loss = self.config.loss;
            self.chance(loss)
        };
        let request = Rc::new(request);
        if twice {
            let (again, wait) = (Rc::clone(&request), there + self.draw(0..=CALL_WITHIN));
            self.post(wait, At::World, move |world| {
                if world.linked(host, via) && world.reaches_store(via) {
                    again(world);
                }
            });
        }
        self.post(there, At::World, move |world| {
            let relays = via == host || world.hosts[via].is_awake();
            let reached = relays && world.linked(host, via) && world.reaches_store(via);
            let answer = reached.then(|| request(world));
            let back = world.way().filter(|_| reached);
            let then = Rc::clone(&then);
            let wait = back.map_or(CALL_WITHIN, |back| back.min(CALL_WITHIN));
            let answer =
                answer.filter(|_| back.is_some_and(|back| world.now + back < asked + CALL_WITHIN));
            world.post(wait, At::Agent(host, life), move |world| {
                then(world, answer.clone());
            });
        });
    }

    /// A question to another agent; its answer comes in time or counts as none.
    pub fn ask_standing(
        &mut self,
        (host, life): (HostId, u64),
        peer: HostId,
        then: impl Fn(&mut Self, Option<Standing>) + Clone + 'static,
    ) {
        self.ask_agent(
            (host, life),
            peer,
            move |world| {
                let now = world.clock(peer);
                world.agent(peer).map(|agent| agent.tenure.standing(now))
            },
            then,
        );
    }

    /// A call to another agent. It is carried out in time, late, twice, or never; its answer comes in time or
    /// counts as none.
    pub fn ask_agent<R: Clone + 'static>(
        &mut self,
        (host, life): (HostId, u64),
        peer: HostId,
        work: impl Fn(&mut Self) -> Option<R> + 'static,
        then: impl Fn(&mut Self, Option<R>) + Clone + 'static,
    ) {
        let sent = self.now;
        let lost = then.clone();
        let answered = Rc::new(Cell::new(false));
        let known = Rc::clone(&answered);
        self.post(CALL_WITHIN + 1, At::Agent(host, life), move |world| {
            if !answered.replace(true) {
                lost(world, None);
            }
        });
        let Some(served) = self.hosts[peer].life() else {
            return;
        };
        let message = Message {
            from: (host, self.hosts[host].boot),
            to: (peer, served),
            sent,
            work: Rc::new(move |world| {
                let answer = work(world);
                let Some(back) = world.way() else { return };
                let (then, known) = (then.clone(), Rc::clone(&known));
                world.post(back, At::Agent(host, life), move |world| {
                    let in_time = world.now <= sent + CALL_WITHIN && world.linked(host, peer);
                    if in_time && !known.replace(true) {
                        then(world, answer.clone());
                    }
                });
            }),
        };
        let loss = if self.is_busy() { self.config.loss } else { 0 };
        if let Some(there) = self.way() {
            let held_up = if self.chance(loss) {
                self.draw(0..=LATE_MAX)
            } else {
                0
            };
            self.deliver(there + held_up, message.clone());
        }
        if self.chance(loss) {
            let again = self.draw(0..=LATE_MAX);
            self.deliver(again, message);
        }
    }

    /// Whoever sends goes on trying for a while where there is no way, as TCP does, also for a process that
    /// has ended; only its machine must not have.
    fn deliver(&mut self, wait: u64, message: Message) {
        let (peer, served) = message.to;
        self.post(wait, At::Agent(peer, served), move |world| {
            let (host, boot) = message.from;
            if world.linked(host, peer) {
                (message.work)(world);
            } else if world.now < message.sent + LATE_MAX && world.hosts[host].boot == boot {
                let pause = world.draw(100..=1_000);
                world.deliver(pause, message.clone());
            }
        });
    }
}
