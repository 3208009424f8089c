//! Snowflakes: Discord's 64-bit ids, whose upper 42 bits are milliseconds since 2015.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The first millisecond of 2015, Discord's epoch, in Unix milliseconds.
pub const DISCORD_EPOCH_MS: u64 = 1_420_070_400_000;

/// Bits below the timestamp: worker, process and increment.
pub const LOW_BITS: u32 = 22;

static NEXT_INCREMENT: AtomicU64 = AtomicU64::new(0);

/// A fresh id for something that happens now. Unique within this process.
pub fn now() -> u64 {
    let increment = NEXT_INCREMENT.fetch_add(1, Ordering::Relaxed);
    // 22 bits of counter: 4 million ids within one millisecond before one could repeat.
    ((unix_ms() - DISCORD_EPOCH_MS) << LOW_BITS) | (increment & ((1 << LOW_BITS) - 1))
}

/// Milliseconds since the Unix epoch. A clock before 2015 counts as 2015.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
        .max(DISCORD_EPOCH_MS)
}

/// A moment, in Unix milliseconds, in the form of Discord's timestamps.
pub fn iso8601(unix_ms: u64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms as i64)
        .map_or_else(
            |_| String::from("1970-01-01T00:00:00Z"),
            |at| format!("{at:.6}"),
        )
        .replace('Z', "+00:00")
}

/// Whether a JSON value is this id in the form of Discord's: a decimal string.
pub fn is_id(value: &serde_json::Value, id: u64) -> bool {
    value.as_str().and_then(|text| text.parse().ok()) == Some(id)
}

/// When the thing with this id was made, as a timestamp.
pub fn created_at(id: u64) -> String {
    iso8601((id >> LOW_BITS) + DISCORD_EPOCH_MS)
}

/// A well-mixed 64-bit value of two numbers: the source of everything that is generated.
pub fn mix(seed: u64, n: u64) -> u64 {
    // splitmix64
    let mut z = seed
        .wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_ids_are_unique_and_recent() {
        let ids: std::collections::HashSet<u64> = (0..10_000).map(|_| now()).collect();
        assert_eq!(ids.len(), 10_000);
        let at = (now() >> LOW_BITS) + DISCORD_EPOCH_MS;
        assert!(at.abs_diff(unix_ms()) < 5_000);
    }

    #[test]
    fn timestamps_have_an_offset_and_microseconds() {
        assert_eq!(created_at(0), "2015-01-01T00:00:00.000000+00:00");
    }
}
