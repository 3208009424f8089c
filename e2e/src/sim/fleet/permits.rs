//! Permits of whoever leads: the real desk, at which processes ask, and the real ledger.

use tanako_fleet::{
    ProcessName,
    identify::{self, DeskEffect, DeskInput, DeskReply, Granted, PollId, Record, Request, Via},
};

use super::{
    office::{BOT, Poll},
    world::{At, HostId, World},
};

impl World {
    /// What Discord says, now and then.
    pub fn limits(&mut self, host: HostId, life: u64, epoch: u64) {
        let used = u32::try_from(self.counts.identifies).unwrap_or(u32::MAX);
        let limits = identify::ReportedLimits {
            total: self.config.total,
            remaining: self.config.total.saturating_sub(used),
            reset_after_ms: 20 * 3_600_000 - self.now,
            max_concurrency: self.config.max_concurrency,
            recommended: self.config.processes,
        };
        if self.term(host, epoch).is_some() {
            let bot = BOT.to_owned();
            self.ledger(host, epoch, identify::Input::Limits { bot, limits });
            self.post(60_000, At::Agent(host, life), move |world| {
                world.limits(host, life, epoch);
            });
        }
    }

    /// A process says that it is ready.
    pub fn became_ready(
        &mut self,
        leader: HostId,
        epoch: u64,
        process: &ProcessName,
    ) -> Option<()> {
        let count = self.config.processes;
        let spec = self.specs.iter().find(|spec| spec.name == *process);
        let shard = spec.map_or(0, |spec| spec.shard_ids[0]);
        self.term(leader, epoch)?;
        let bot = BOT.to_owned();
        self.ledger(leader, epoch, identify::Input::Ready { bot, shard, count });
        Some(())
    }

    /// A process asks whoever leads for a permit, through its agent.
    pub fn poll(&mut self, host: HostId, process: &ProcessName, pid: u64, ask: u64) {
        let (Some(life), Some((_, leader, epoch))) = (self.hosts[host].life(), self.store.office)
        else {
            return;
        };
        if !self.hosts[host].is_awake() {
            return;
        }
        let sent_at = self.clock(host);
        let poll = Poll {
            host,
            process: process.clone(),
            pid,
            sent_at,
        };
        let ask = (process.to_string(), format!("{pid}-{ask}"));
        // Answered later, by a message of its own.
        self.ask_agent(
            (host, life),
            leader,
            move |world| {
                let office = world.term(leader, epoch)?;
                office.next_poll += 1;
                let number = office.next_poll;
                office.polls.insert(number, poll.clone());
                let input = DeskInput::Poll {
                    id: ask.clone(),
                    poll: number,
                    wait_ms: 900,
                };
                world.desk(leader, epoch, input);
                Some(())
            },
            |_, _| {},
        );
    }

    pub fn desk(&mut self, host: HostId, epoch: u64, input: DeskInput) {
        let now = self.clock(host) as i64;
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        for effect in office.desk.step(now, input) {
            match effect {
                DeskEffect::Acquire(ask) => self.request(host, epoch, ask),
                DeskEffect::GiveUp(ask) => {
                    let Some(office) = self.term(host, epoch) else {
                        return;
                    };
                    let ids: Vec<u64> = office
                        .requests
                        .iter()
                        .filter(|(_, known)| **known == ask)
                        .map(|(id, _)| *id)
                        .collect();
                    for id in ids {
                        self.ledger(host, epoch, identify::Input::Cancel { id });
                    }
                }
                DeskEffect::Reply(number, reply) => self.reply(host, epoch, number, reply),
            }
        }
    }

    fn reply(&mut self, host: HostId, epoch: u64, number: PollId, reply: DeskReply) {
        let way = self.way();
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        let (Some(poll), Some(way)) = (office.polls.remove(&number), way) else {
            return;
        };
        let Some(life) = self.hosts[poll.host].life() else {
            return;
        };
        self.post(way, At::Agent(poll.host, life), move |world| {
            if world.linked(host, poll.host) {
                world.permitted(poll.host, &poll.process, poll.pid, poll.sent_at, reply);
            }
        });
    }

    fn request(&mut self, host: HostId, epoch: u64, ask: identify::AskId) {
        let count = self.config.processes;
        let spec = self.specs.iter().find(|spec| spec.name.as_str() == ask.0);
        let shard = spec.map_or(0, |spec| spec.shard_ids[0]);
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        let id = office.requests.len() as u64 + 1;
        let attempt = ask
            .1
            .split('-')
            .next()
            .and_then(|pid| pid.parse().ok())
            .unwrap_or(1);
        let request = Request {
            id,
            bot: BOT.to_owned(),
            process: ask.0.clone(),
            attempt,
            shard,
            count,
            via: Via::Worker,
        };
        office.requests.insert(id, ask);
        self.ledger(host, epoch, identify::Input::Request(request));
    }

    pub fn ledger(&mut self, host: HostId, epoch: u64, input: identify::Input) {
        let stamp = self.stamp(host);
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        for effect in office.ledger.step(stamp, input) {
            let Some(office) = self.term(host, epoch) else {
                return;
            };
            match effect {
                identify::Effect::Load { seq, .. } => self.load(host, epoch, seq),
                identify::Effect::Persist { seq, records, .. } => {
                    office.waiting.push((Some(seq), records));
                }
                identify::Effect::Note { record, .. } => office.waiting.push((None, vec![record])),
                identify::Effect::Grant {
                    id,
                    permit,
                    remaining,
                } => {
                    if let Some(id) = office.requests.get(&id).cloned() {
                        let until_boot_ms = stamp.boot_ms + Via::Worker.valid_ms();
                        let permit = Granted {
                            number: permit,
                            until_boot_ms,
                            remaining,
                        };
                        self.desk(host, epoch, DeskInput::Granted { id, permit });
                    }
                }
                identify::Effect::Refuse { id, why } => {
                    if let Some(id) = office.requests.get(&id).cloned() {
                        self.desk(host, epoch, DeskInput::Refused { id, why });
                    }
                }
                identify::Effect::Notice(_) => {}
            }
        }
        self.write_ledger(host, epoch);
    }

    fn load(&mut self, host: HostId, epoch: u64, seq: u64) {
        let Some(life) = self.hosts[host].life() else {
            return;
        };
        let read = |world: &mut Self| world.store.ledger.clone();
        self.call((host, life), host, read, move |world, answer| {
            let bot = BOT.to_owned();
            let input = match answer {
                Some(records) => identify::Input::Load { bot, seq, records },
                None => identify::Input::LoadFailed { bot, seq },
            };
            world.ledger(host, epoch, input);
        });
    }

    /// One write after the other; a permit is given once its record is in the store.
    fn write_ledger(&mut self, host: HostId, epoch: u64) {
        let Some(life) = self.hosts[host].life() else {
            return;
        };
        let Some(office) = self.term(host, epoch) else {
            return;
        };
        if office.writing || office.waiting.is_empty() {
            return;
        }
        office.writing = true;
        let (seqs, records): (Vec<_>, Vec<_>) = office.waiting.drain(..).unzip();
        let records: Vec<Record> = records.into_iter().flatten().collect();
        let seqs: Vec<u64> = seqs.into_iter().flatten().collect();
        let write = move |world: &mut Self| {
            let leads = world.store.leads(epoch);
            if leads {
                world.store.ledger.extend(records.iter().copied().map(Some));
            }
            leads
        };
        self.call((host, life), host, write, move |world, answer| {
            let Some(office) = world.term(host, epoch) else {
                return;
            };
            office.writing = false;
            for seq in seqs.clone() {
                let bot = BOT.to_owned();
                let input = match answer {
                    Some(true) => identify::Input::Persisted { bot, seq },
                    _ => identify::Input::PersistFailed { bot, seq },
                };
                world.ledger(host, epoch, input);
            }
            world.write_ledger(host, epoch);
        });
    }
}
