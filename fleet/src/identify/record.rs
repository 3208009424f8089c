//! What the ledger keeps in the store: records of a fixed size, each with its own checksum, so that
//! a torn or rotten one is noticed and its neighbours still count.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64;

use super::SKEW_MAX_MS;

/// Size of an encoded record, in bytes.
pub const RECORD_BYTES: usize = 64;

/// Marks a record, and the version of its layout.
const MAGIC: u16 = 0x1d01;

/// A reading of both clocks of one agent.
///
/// Within one [`Stamp::boot_id`] only `boot_ms` counts: CLOCK_BOOTTIME never steps and goes on during
/// suspend. Between two of them `wall_ms` tells how much time has passed, as far as it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Which agent in which boot `boot_ms` belongs to. Of all that ever had the same, at most one
    /// lives: that is what lets a successor take the others for dead. A hash of the kernel's boot
    /// id, the host's name and the data directory, which a lock guards.
    pub boot_id: u64,
    /// CLOCK_BOOTTIME in milliseconds; negative for a moment before this boot.
    pub boot_ms: i64,
    /// Milliseconds since 1970.
    pub wall_ms: i64,
}

/// Places records of other boots and hosts on the clock of the one that reads them.
#[derive(Debug)]
pub(super) struct Clocks {
    now: Stamp,
    /// By boot: the largest difference between its wall clock and its boot clock. A wall clock that
    /// was put right while the records were made was wrong before; the largest difference places
    /// its records latest, which only makes us wait longer.
    ahead: HashMap<u64, i64>,
}

impl Clocks {
    pub(super) fn new<'a>(now: Stamp, records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut ahead: HashMap<u64, i64> = HashMap::new();
        for Record { at, .. } in records {
            let difference = at.wall_ms.saturating_sub(at.boot_ms);
            let most = ahead.entry(at.boot_id).or_insert(difference);
            *most = difference.max(*most);
        }
        Self { now, ahead }
    }

    /// Whether the record was made by this agent in this boot.
    pub(super) fn is_own(&self, at: Stamp) -> bool {
        at.boot_id == self.now.boot_id
    }

    /// When that was: exact for our own, and otherwise the most recent moment that the clocks
    /// allow. Never later than now.
    pub(super) fn place(&self, at: Stamp) -> i64 {
        let now = self.now;
        if self.is_own(at) {
            return at.boot_ms.min(now.boot_ms);
        }
        let ahead = self.ahead.get(&at.boot_id).copied().unwrap_or(0);
        let wall = at.boot_ms.saturating_add(ahead);
        let age = now.wall_ms.saturating_sub(wall).saturating_sub(SKEW_MAX_MS);
        now.boot_ms.saturating_sub(age.max(0))
    }
}

/// One line of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// When.
    pub at: Stamp,
    /// What.
    pub entry: Entry,
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A permit is about to be given out. In the store before anyone sees the permit.
    Grant {
        /// Its number.
        permit: u64,
        /// For this shard.
        shard: u32,
        /// Of so many.
        count: u32,
        /// IDENTIFYs of this shard before it that came to nothing.
        streak: u32,
        /// How long after its release it may be used, in milliseconds.
        valid_ms: u32,
    },
    /// Permits that need not be told apart any more, given at this time or before.
    Sum {
        /// How many.
        permits: u32,
        /// The highest number among them.
        newest: u64,
    },
    /// A shard became ready.
    Ready {
        /// The shard.
        shard: u32,
        /// Of so many.
        count: u32,
    },
    /// A permit was not used: thrown away before anyone saw it, or too late for whoever got it.
    Refund {
        /// Its number.
        permit: u64,
    },
    /// What `GET /gateway/bot` said.
    Limits {
        /// IDENTIFYs a day.
        total: u32,
        /// Of those, used.
        used: u32,
        /// Until the day's count starts again.
        reset_after_ms: u64,
        /// Buckets.
        max_concurrency: u32,
        /// Shards that Discord recommends.
        recommended: u32,
    },
}

impl Record {
    /// The record as bytes.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0_u8; RECORD_BYTES];
        out[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        let (kind, words, long): (u16, [u32; 4], u64) = match self.entry {
            Entry::Grant {
                permit,
                shard,
                count,
                streak,
                valid_ms,
            } => (1, [shard, count, streak, valid_ms], permit),
            Entry::Sum { permits, newest } => (5, [permits, 0, 0, 0], newest),
            Entry::Ready { shard, count } => (2, [shard, count, 0, 0], 0),
            Entry::Refund { permit } => (4, [0; 4], permit),
            Entry::Limits {
                total,
                used,
                reset_after_ms,
                max_concurrency,
                recommended,
            } => (
                3,
                [total, used, max_concurrency, recommended],
                reset_after_ms,
            ),
        };
        out[2..4].copy_from_slice(&kind.to_le_bytes());
        for (index, word) in words.iter().enumerate() {
            out[4 + index * 4..8 + index * 4].copy_from_slice(&word.to_le_bytes());
        }
        out[24..32].copy_from_slice(&long.to_le_bytes());
        out[32..40].copy_from_slice(&self.at.boot_id.to_le_bytes());
        out[40..48].copy_from_slice(&self.at.boot_ms.to_le_bytes());
        out[48..56].copy_from_slice(&self.at.wall_ms.to_le_bytes());
        let sum = xxh3_64(&out[..56]);
        out[56..64].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The record in these bytes; `None` when they are damaged.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().ok()?;
        let long = |at: usize| -> [u8; 8] {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            word
        };
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if u64::from_le_bytes(long(56)) != xxh3_64(&bytes[..56])
            || u16::from_le_bytes([bytes[0], bytes[1]]) != MAGIC
        {
            return None;
        }
        let entry = match u16::from_le_bytes([bytes[2], bytes[3]]) {
            1 => Entry::Grant {
                permit: u64::from_le_bytes(long(24)),
                shard: word(4),
                count: word(8),
                streak: word(12),
                valid_ms: word(16),
            },
            2 => Entry::Ready {
                shard: word(4),
                count: word(8),
            },
            3 => Entry::Limits {
                total: word(4),
                used: word(8),
                max_concurrency: word(12),
                recommended: word(16),
                reset_after_ms: u64::from_le_bytes(long(24)),
            },
            4 => Entry::Refund {
                permit: u64::from_le_bytes(long(24)),
            },
            5 => Entry::Sum {
                permits: word(4),
                newest: u64::from_le_bytes(long(24)),
            },
            _ => return None,
        };
        Some(Self {
            at: Stamp {
                boot_id: u64::from_le_bytes(long(32)),
                boot_ms: i64::from_le_bytes(long(40)),
                wall_ms: i64::from_le_bytes(long(48)),
            },
            entry,
        })
    }

    /// All records of a value, `None` for each damaged one; a torn tail is one damaged record.
    pub fn decode_all(value: &[u8]) -> Vec<Option<Self>> {
        value.chunks(RECORD_BYTES).map(Self::decode).collect()
    }
}
