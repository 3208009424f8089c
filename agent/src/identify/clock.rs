//! The two clocks of the ledger.

use rustix::time::{ClockId, Timespec, clock_gettime};
use tanako_fleet::identify::Stamp;
use xxhash_rust::xxh3::xxh3_64;

/// Reads both clocks for this boot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    boot_id: u64,
}

impl Clock {
    /// Finds out which boot this is.
    ///
    /// Where the kernel does not tell, the agent takes each of its starts for a boot of its own.
    /// That is safe as long as the machine has been up for a while, and waits longer otherwise.
    pub(super) fn new() -> Self {
        let boot_id = std::fs::read("/proc/sys/kernel/random/boot_id")
            .ok()
            .filter(|id| !id.is_empty())
            .map_or_else(|| fastrand::u64(..), |id| xxh3_64(id.trim_ascii()));
        Self { boot_id }
    }

    /// Now.
    pub(super) fn now(self) -> Stamp {
        Stamp {
            boot_id: self.boot_id,
            boot_ms: millis(clock_gettime(ClockId::Boottime)),
            wall_ms: millis(clock_gettime(ClockId::Realtime)),
        }
    }
}

fn millis(time: Timespec) -> i64 {
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}
