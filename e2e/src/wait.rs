//! Waiting on conditions.

use std::time::{Duration, Instant};

/// Between two looks at a condition.
const STEP: Duration = Duration::from_millis(50);

/// Waits until `condition` gives something; panics with what it last said when `seconds` have passed.
pub fn until<T>(what: &str, seconds: u64, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        match condition() {
            Ok(found) => return found,
            Err(why) => assert!(
                Instant::now() < deadline,
                "waited {seconds} s for {what}; last: {why}"
            ),
        }
        std::thread::park_timeout(STEP);
    }
}
