//! What a restart cost each shard, from what the workers reported before and after.

use tanako_proto::worker::v1::ShardStage;

use super::model::{Receipt, Step};
use crate::worker::WorkerState;

/// The receipts of one restarted process. `worker` is its latest report, if it speaks to us;
/// `ready_at` is when the new attempt became ready.
pub fn receipts(
    step: &Step,
    shard_ids: &[u32],
    worker: Option<&WorkerState>,
    ready_at: i64,
) -> Vec<Receipt> {
    let since = if step.last_seen_before > 0 {
        step.last_seen_before
    } else {
        step.started_at
    };
    let gap_ms = u64::try_from(ready_at - since).unwrap_or(0);
    // What an earlier attempt reported says nothing of this one.
    let worker = worker.filter(|worker| worker.attempt > step.attempt_before);
    shard_ids
        .iter()
        .map(|&shard_id| {
            let report = worker.and_then(|worker| worker.shards.get(&shard_id));
            let how = match report {
                // The counters began at 0 with the process: an IDENTIFY after a failed RESUME counts
                // as one.
                Some(shard) if shard.report.identifies > 0 => "identified",
                Some(shard)
                    if shard.report.resumes > 0
                        || shard.report.stage == ShardStage::Ready as i32 =>
                {
                    "resumed"
                }
                _ => "unknown",
            };
            Receipt {
                process: step.object.clone(),
                shard_id,
                how: how.to_owned(),
                gap_ms,
                replayed: report.map_or(0, |shard| shard.report.replayed),
            }
        })
        .collect()
}
