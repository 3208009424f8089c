//! The clocks, as the wire carries them.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The wall clock: milliseconds since 1970.
pub fn now_ms() -> i64 {
    millis(clock_gettime(ClockId::Realtime))
}

/// CLOCK_BOOTTIME in milliseconds: all processes of a host share it, nobody sets it, and it goes on
/// while a process or the machine is stopped.
pub fn boot_ms() -> i64 {
    millis(clock_gettime(ClockId::Boottime))
}

fn millis(time: Timespec) -> i64 {
    time.tv_sec * 1000 + time.tv_nsec / 1_000_000
}
