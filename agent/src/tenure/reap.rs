//! Kills what only the owner may run: every process that an agent of this data directory has started for a
//! bot, and their descendants. They are known by the tag in their environment, whoever looks.

use std::{path::Path, time::Duration};

use tanako_fleet::ProcessName;

use super::now;
use crate::supervisor::{Tagged, data_dir_instance, kill_tagged};

/// The clock of process starts has steps of this size, in milliseconds.
const START_STEP_MS: u64 = 20;
/// Between two looks for what is still there.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whether a process may run only where it is owned. A database node stays with its data.
pub(super) fn is_owned(process: &ProcessName) -> bool {
    process.group() != "db"
}

/// One look: kills those that were started before `before` (CLOCK_BOOTTIME, milliseconds); how many there
/// were. Blocks for some milliseconds.
pub(super) fn kill_once(data_dir: &Path, before: u64) -> std::io::Result<usize> {
    let instance = data_dir_instance(data_dir)?;
    kill_tagged(instance, |tagged: &Tagged| {
        is_owned(&tagged.process) && tagged.started_ms + START_STEP_MS <= before
    })
}

/// Whether any is there.
pub(super) fn any(data_dir: &Path) -> std::io::Result<bool> {
    let instance = data_dir_instance(data_dir)?;
    crate::supervisor::any_tagged(instance, |tagged| is_owned(&tagged.process))
}

/// Kills until none is left. The caller sees to it that no more are started.
pub(super) async fn kill_all(data_dir: &Path) {
    let mut clean = 0;
    loop {
        let dir = data_dir.to_owned();
        // What is started in the very moment is killed by the next look.
        let killed =
            tokio::task::spawn_blocking(move || kill_once(&dir, now() + START_STEP_MS)).await;
        match killed {
            Ok(Ok(0)) => clean += 1,
            Ok(Ok(_)) => clean = 0,
            Ok(Err(error)) => tracing::error!(%error, "processes cannot be looked for"),
            Err(_) => return,
        }
        if clean >= 2 {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
