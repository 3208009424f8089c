//! What people see of a bot's ledger.

use std::collections::BTreeMap;

use super::{
    SPACING_MS,
    bot::{Bot, on_wall},
    messages::{BotStatus, BucketStatus, Mode},
    record::Stamp,
};

impl Bot {
    fn mode(&self, now: i64) -> Mode {
        if self.budget.exhausted(now) {
            Mode::Exhausted
        } else if self.storm.is_probing() || self.guard.is_slow() {
            Mode::Probing
        } else {
            Mode::Normal
        }
    }

    pub(super) fn status(&self, name: &str, stamp: Stamp) -> BotStatus {
        let now = stamp.boot_ms;
        let mc = self.budget.max_concurrency();
        let mut buckets: BTreeMap<u32, BucketStatus> = BTreeMap::new();
        for spent in self.budget.spent.iter().filter(|s| s.count > 0) {
            buckets.entry(spent.shard % mc).or_default().granted += 1;
        }
        for (shard, _) in self.waiting.keys() {
            let bucket = buckets.entry(shard % mc).or_default();
            bucket.waiting.push(*shard);
        }
        let states = self.buckets(mc);
        let mut forecast = 0;
        for (number, bucket) in &mut buckets {
            let free = match states.get(number) {
                Some(state) if state.busy => state.free_at.max(now).saturating_add(SPACING_MS),
                Some(state) => state.free_at,
                None => now,
            };
            let free = free.max(self.blocked_until).max(now);
            bucket.bucket = *number;
            bucket.next_at = on_wall(stamp, free);
            if let Some(behind_first) = bucket.waiting.len().checked_sub(1) {
                forecast = forecast.max(free - now + behind_first as i64 * SPACING_MS);
            }
        }
        if let Some(probe) = self.storm.next_probe(!self.waiting.is_empty()) {
            forecast = forecast.max(probe - now);
        }
        BotStatus {
            bot: name.to_owned(),
            mode: self.mode(now),
            total: self.budget.total(),
            used: self.budget.used(now),
            reserve: self.budget.reserve(),
            max_concurrency: mc,
            recommended: self.budget.report.map_or(0, |r| r.recommended),
            resets_at: on_wall(stamp, self.budget.resets_at(now)),
            buckets: buckets.into_values().collect(),
            forecast_ms: forecast.max(0) as u64,
        }
    }
}
