//! What the ledger keeps on disk: records of a fixed size, each with its own checksum, so that a
//! torn or rotten one is noticed and its neighbours still count.

use xxhash_rust::xxh3::xxh3_64;

/// Size of an encoded record, in bytes.
pub const RECORD_BYTES: usize = 64;

/// Marks a record, and the version of its layout.
const MAGIC: u16 = 0x1d01;

/// A reading of both clocks.
///
/// Within one boot only `boot_ms` counts: CLOCK_BOOTTIME never steps and goes on during suspend.
/// Between boots `wall_ms` tells how much time has passed, but never less than the uptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Which boot `boot_ms` belongs to (a hash of the kernel's boot id).
    pub boot_id: u64,
    /// CLOCK_BOOTTIME in milliseconds; negative for a moment before this boot.
    pub boot_ms: i64,
    /// Milliseconds since 1970.
    pub wall_ms: i64,
}

impl Stamp {
    /// When `self` was, on the boot clock of `now`: exact within a boot, and otherwise the most
    /// recent moment that both clocks allow.
    pub(super) fn on_clock_of(self, now: Self) -> i64 {
        if self.boot_id == now.boot_id {
            return self.boot_ms.min(now.boot_ms);
        }
        // It was before this boot, so at least the uptime ago. A wall clock that went back says
        // too little, which only makes us wait longer.
        let by_wall = now.wall_ms.saturating_sub(self.wall_ms);
        now.boot_ms.saturating_sub(by_wall.max(now.boot_ms.max(0)))
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
    /// A permit is about to be given out. On disk before anyone sees the permit.
    Grant {
        /// Its number.
        permit: u64,
        /// For this shard.
        shard: u32,
        /// Of so many.
        count: u32,
        /// IDENTIFYs of this shard before it that came to nothing.
        streak: u32,
    },
    /// A shard became ready.
    Ready {
        /// The shard.
        shard: u32,
        /// Of so many.
        count: u32,
    },
    /// A permit was thrown away before anyone saw it.
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
            } => (1, [shard, count, streak, 0], permit),
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

    /// All records of a file, `None` for each damaged one; a torn tail is one damaged record.
    pub fn decode_all(file: &[u8]) -> Vec<Option<Self>> {
        file.chunks(RECORD_BYTES).map(Self::decode).collect()
    }
}
