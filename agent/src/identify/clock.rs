//! The two clocks of the ledger.

use tanako_fleet::identify::Stamp;
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::{boot_ms, now_ms};

/// Reads both clocks for this boot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    boot_id: u64,
}

impl Clock {
    /// Finds out which boot this is. `identity` names what only one agent can be at a time: two that
    /// share a kernel, as in containers, are not the same.
    ///
    /// Where the kernel does not tell its boot, the agent takes each of its starts for a boot of its
    /// own. That is safe, and waits longer.
    pub(super) fn new(identity: &str) -> Self {
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id")
            .ok()
            .filter(|id| !id.is_empty())
            .unwrap_or_else(|| fastrand::u128(..).to_le_bytes().to_vec());
        let mut name = boot.trim_ascii().to_vec();
        name.push(0);
        name.extend_from_slice(identity.as_bytes());
        Self {
            boot_id: xxh3_64(&name),
        }
    }

    /// Now.
    pub(super) fn now(self) -> Stamp {
        Stamp {
            boot_id: self.boot_id,
            boot_ms: boot_ms(),
            wall_ms: now_ms(),
        }
    }
}
