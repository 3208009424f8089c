//! The ledger of all bots: takes each input to its bot and collects what is to be done.

use std::collections::BTreeMap;

use super::{
    bot::{Bot, Knows},
    messages::{BotStatus, Effect, Input, Notice},
    record::{Entry, Record, Stamp},
};

/// The ledger of all bots. See the module's documentation.
#[derive(Debug, Default)]
pub struct Ledger {
    pub(super) bots: BTreeMap<String, Bot>,
    next_seq: u64,
    /// The newest time seen: a clock that went back is not believed.
    newest: i64,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an input; says what to do.
    pub fn step(&mut self, mut now: Stamp, input: Input) -> Vec<Effect> {
        self.newest = self.newest.max(now.boot_ms);
        now.boot_ms = self.newest;
        let mut out = Vec::new();
        self.take(now, input, &mut out);
        for (name, bot) in &mut self.bots {
            bot.advance(now, name, &mut self.next_seq, &mut out);
        }
        out
    }

    fn bot(&mut self, name: &str) -> &mut Bot {
        self.bots.entry(name.to_owned()).or_default()
    }

    fn take(&mut self, now: Stamp, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Open { bot } => {
                self.bot(&bot);
            }
            Input::Load { bot, seq, records } => {
                self.bot(&bot).loaded(&bot, now, seq, records, out);
            }
            Input::LoadFailed { bot, seq } => self.bot(&bot).load_failed(now.boot_ms, seq),
            Input::Configure {
                bot,
                max_concurrency,
                reserve,
            } => {
                let budget = &mut self.bot(&bot).budget;
                budget.hint = max_concurrency;
                budget.reserve = reserve;
            }
            Input::Request(request) => {
                let name = request.bot.clone();
                self.bot(&name).request(&name, now.boot_ms, request, out);
            }
            Input::Cancel { id } => {
                for bot in self.bots.values_mut() {
                    bot.cancel(id);
                }
            }
            Input::Limits { bot: name, limits } => {
                let bot = self.bot(&name);
                let before = bot.budget.report;
                if !bot.budget.merge(now.boot_ms, limits) {
                    out.push(Effect::Notice(Notice::BadLimits { bot: name }));
                } else if before != bot.budget.report {
                    bot.report_unsynced = true;
                    for record in bot.limits_records(now, bot.budget.unreleased) {
                        let bot = name.clone();
                        out.push(Effect::Note { bot, record });
                    }
                }
            }
            Input::Persisted { bot: name, seq } => {
                if let Some(bot) = self.bots.get_mut(&name) {
                    bot.persisted(seq);
                }
            }
            Input::PersistFailed { bot, seq } => {
                if let Some(bot) = self.bots.get_mut(&bot) {
                    bot.persist_failed(now.boot_ms, seq);
                }
            }
            Input::Ready { bot, shard, count } => {
                let record = Record {
                    at: now,
                    entry: Entry::Ready { shard, count },
                };
                if let Some(known) = self.bots.get_mut(&bot)
                    && known.ready(&bot, (shard, count), now.boot_ms, out)
                {
                    out.push(Effect::Note { bot, record });
                }
            }
            Input::Sent {
                bot,
                shard,
                count,
                at,
            } => {
                if let Some(known) = self.bots.get_mut(&bot) {
                    known.sent((shard, count), at.min(now.boot_ms));
                }
            }
            Input::Unused {
                bot,
                shard,
                count,
                permit,
            } => {
                if let Some(known) = self.bots.get_mut(&bot)
                    && known.unused((shard, count), permit)
                {
                    let entry = Entry::Refund { permit };
                    let record = Record { at: now, entry };
                    out.push(Effect::Note { bot, record });
                }
            }
            Input::Tick => {}
        }
    }

    /// When to come back with [`Input::Tick`], on the boot clock; `None` = only when something
    /// happens.
    pub fn deadline(&self) -> Option<i64> {
        self.bots
            .values()
            .filter_map(|bot| bot.deadline(self.newest))
            .min()
    }

    /// Everything a bot's ledger must hold, as few records as possible, for replacing what the store
    /// has. At most [`RECORDS_MAX`](super::RECORDS_MAX). `None` while the ledger does not know what
    /// the store holds: then nothing there may be replaced.
    pub fn records(&self, bot: &str, now: Stamp) -> Option<Vec<Record>> {
        let bot = self.bots.get(bot)?;
        (bot.knows == Knows::All).then(|| bot.records(now))
    }

    /// The state of all bots.
    pub fn status(&self, now: Stamp) -> Vec<BotStatus> {
        self.bots
            .iter()
            .map(|(name, bot)| bot.status(name, now))
            .collect()
    }
}
