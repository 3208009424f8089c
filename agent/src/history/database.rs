//! What is older than the rings, in sled.
//!
//! | tree | key | value |
//! |---|---|---|
//! | `rows` | end of the row, seconds since 1970, u64 big-endian | for each target: number u16, mask u16 of metrics, a f32 each |
//! | `targets` | `names` | all names, one a line; the line is the number. One value: small keys cost sled more than they are worth |
//! | `events` | id, u64 big-endian | the event, protobuf |
//!
//! sled 0.34 makes 40 histograms of 512 kB for its own figures at the first open, used or not. With its
//! feature `miri_optimizations` they come from zeroed pages that nobody touches, and cost nothing.

use std::{collections::HashMap, path::Path, sync::Arc};

use prost::Message as _;
use sled::{Db, Mode, Tree};
use tanako_proto::fleet::v1::Event;

use super::{
    recent::matches,
    rings::{Grid, METRICS, Metric, ROW_S, Row},
};

/// Rows older than this go.
const KEEP_S: i64 = 24 * 60 * 60;
/// On disk; above, the oldest tenth of the rows goes.
const DISK_BYTES_MAX: u64 = 96 << 20;
/// Events kept; above, the oldest go.
const EVENTS_MAX: usize = 20_000;
/// sled's page cache.
const CACHE_BYTES: u64 = 1 << 20;
/// sled keeps several of these in memory; a row of a thousand processes takes 16 kB.
const SEGMENT_BYTES: usize = 128 << 10;
/// The one key of `targets`.
const NAMES: &str = "names";
/// Rows read for a point at most: a long series is sampled, not read whole.
const ROWS_PER_POINT: i64 = 4;
/// Events looked at for a query at most.
const EVENTS_SCAN_MAX: usize = EVENTS_MAX;

/// The open database.
pub(super) struct Database {
    db: Db,
    rows: Tree,
    targets: Tree,
    events: Tree,
    numbers: HashMap<Arc<str>, u16>,
    events_len: usize,
}

impl Database {
    pub(super) fn open(directory: &Path) -> sled::Result<Self> {
        let db = sled::Config::new()
            .path(directory)
            .mode(Mode::LowSpace)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None)
            .open()?;
        let rows = db.open_tree("rows")?;
        let targets = db.open_tree("targets")?;
        let events = db.open_tree("events")?;
        let names = targets.get(NAMES)?.unwrap_or_default();
        let numbers = String::from_utf8_lossy(&names)
            .lines()
            .zip(0..=u16::MAX)
            .map(|(name, number)| (name.into(), number))
            .collect();
        let mut events_len = 0;
        for entry in &events {
            entry?;
            events_len += 1;
        }
        Ok(Self {
            db,
            rows,
            targets,
            events,
            numbers,
            events_len,
        })
    }

    pub(super) fn put_row(&mut self, row: &Row) -> sled::Result<()> {
        let mut value = Vec::with_capacity(row.targets.len() * 16);
        let known = self.numbers.len();
        for (name, points) in &row.targets {
            // 65,536 names used up: a day of history can do without more.
            let Ok(next) = u16::try_from(self.numbers.len()) else {
                break;
            };
            let number = *self.numbers.entry(Arc::clone(name)).or_insert(next);
            encode(number, points, &mut value);
        }
        if self.numbers.len() > known {
            let mut names = vec![""; self.numbers.len()];
            for (name, number) in &self.numbers {
                names[usize::from(*number)] = name;
            }
            self.targets.insert(NAMES, names.join("\n").as_bytes())?;
        }
        self.rows.insert(key(row.end_s), value)?;
        Ok(())
    }

    pub(super) fn put_event(&mut self, event: &Event) -> sled::Result<()> {
        let before = self
            .events
            .insert(event.id.to_be_bytes(), event.encode_to_vec())?;
        self.events_len += usize::from(before.is_none());
        while self.events_len > EVENTS_MAX && self.events.pop_min()?.is_some() {
            self.events_len -= 1;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> sled::Result<()> {
        self.db.flush().map(drop)
    }

    /// Drops what is too old or too much.
    pub(super) fn prune(&self, now_s: i64) -> sled::Result<()> {
        for entry in self.rows.range(..key(now_s - KEEP_S)) {
            self.rows.remove(entry?.0)?;
        }
        if self.db.size_on_disk()? > DISK_BYTES_MAX {
            let tenth = self.rows.len() / 10 + 1;
            for entry in self.rows.iter().take(tenth) {
                self.rows.remove(entry?.0)?;
            }
        }
        Ok(())
    }

    pub(super) fn fill(&self, target: &str, grids: &mut [Grid]) -> sled::Result<()> {
        let (Some(number), Some(first)) = (self.numbers.get(target).copied(), grids.first()) else {
            return Ok(());
        };
        let (start_s, end_s) = (first.start_s, first.end_s());
        let stride = (first.step_s / (ROW_S * ROWS_PER_POINT)).max(1) * ROW_S;
        let mut at = (start_s.div_euclid(ROW_S) + 1) * ROW_S;
        while at < end_s + ROW_S {
            if let Some(value) = self.rows.get(key(at))? {
                let points = decode(&value, number);
                for grid in grids.iter_mut() {
                    if let Some(value) = points[grid.metric as usize] {
                        // The row stands for the ten seconds before its end.
                        for second in at - ROW_S..at {
                            grid.add(second, f64::from(value));
                        }
                    }
                }
            }
            at += stride;
        }
        Ok(())
    }

    /// The latest `tail` events with an id below `before`, oldest first.
    pub(super) fn events_before(
        &self,
        before: u64,
        tail: usize,
        since: i64,
        targets: &[String],
    ) -> sled::Result<Vec<Event>> {
        let mut found = Vec::new();
        let range = self.events.range(..before.to_be_bytes()).rev();
        for entry in range.take(EVENTS_SCAN_MAX) {
            let Ok(event) = Event::decode(entry?.1.as_ref()) else {
                continue;
            };
            if event.at >= since && matches(&event, targets) {
                found.push(event);
                if found.len() >= tail {
                    break;
                }
            }
        }
        found.reverse();
        Ok(found)
    }
}

fn key(seconds: i64) -> [u8; 8] {
    (seconds.max(0) as u64).to_be_bytes()
}

fn encode(number: u16, points: &[(Metric, f32)], out: &mut Vec<u8>) {
    let mut by_number = [None; METRICS];
    for (metric, value) in points {
        by_number[*metric as usize] = Some(*value);
    }
    let mask = by_number
        .iter()
        .enumerate()
        .filter(|(_, value)| value.is_some())
        .fold(0_u16, |mask, (bit, _)| mask | 1 << bit);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&mask.to_le_bytes());
    for value in by_number.into_iter().flatten() {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// The points of one target in a row; nothing where the row is damaged.
fn decode(mut row: &[u8], number: u16) -> [Option<f32>; METRICS] {
    let mut points = [None; METRICS];
    while let Some((head, rest)) = row.split_first_chunk::<4>() {
        let found = u16::from_le_bytes([head[0], head[1]]);
        let mask = u16::from_le_bytes([head[2], head[3]]);
        let size = 4 * mask.count_ones() as usize;
        let Some((values, rest)) = rest.split_at_checked(size) else {
            break;
        };
        if found == number {
            let bits = (0..METRICS).filter(|bit| mask & (1 << bit) != 0);
            for (bit, value) in bits.zip(values.as_chunks::<4>().0) {
                points[bit] = Some(f32::from_le_bytes(*value));
            }
            break;
        }
        row = rest;
    }
    points
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_row_gives_each_target_its_points() {
        let mut row = Vec::new();
        encode(
            7,
            &[(Metric::Restarts, 3.0), (Metric::CpuPercent, 1.5)],
            &mut row,
        );
        encode(8, &[(Metric::Load1, 2.0)], &mut row);
        let seven = decode(&row, 7);
        assert_eq!(seven[Metric::CpuPercent as usize], Some(1.5));
        assert_eq!(seven[Metric::Restarts as usize], Some(3.0));
        assert_eq!(seven[Metric::Load1 as usize], None);
        assert_eq!(decode(&row, 8)[Metric::Load1 as usize], Some(2.0));
        assert_eq!(decode(&row, 9), [None; METRICS]);
    }

    proptest! {
        #[test]
        fn a_damaged_row_is_harmless(row in prop::collection::vec(any::<u8>(), 0..300), number in any::<u16>()) {
            let _ = decode(&row, number);
        }
    }
}
