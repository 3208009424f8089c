//! What Discord may hold against a fleet that lost a host, and what not.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Hosts;
use crate::discord::{flaws, number};

/// Fails on anything but a command that nobody was there to answer in its three seconds: no IDENTIFY, no
/// session refused, nothing missed, nothing handled twice.
pub fn demand_lossless(fleet: &Hosts, what: &str, account: &Value) {
    let mut flaws = flaws(account, 0);
    flaws.retain(|flaw| {
        !["/interactions/late", "/interactions/unanswered"]
            .iter()
            .any(|allowed| flaw.starts_with(allowed))
            && !flaw.ends_with("commands answered")
    });
    assert!(
        flaws.is_empty(),
        "{what}: {flaws:#?}\n{account:#}\n{}",
        fleet.story()
    );
    assert_eq!(number(account, "/resumes_refused"), 0, "{account}");
    fleet.say(&format!(
        "{what}: {} events, {} replayed, {} resumes, {} of them over a living connection, {} commands \
         late",
        number(account, "/events_generated"),
        number(account, "/events_replayed"),
        number(account, "/resumes"),
        number(account, "/resumes_while_connected"),
        number(account, "/interactions/late") + number(account, "/interactions/unanswered"),
    ));
}

/// RESUMEs of a shard that may come one after the other where hosts lose their leases for want of a machine.
/// Two that hold one shard take it from each other without an end.
const RESUMES_MAX: u64 = 4;

/// Each of these shards has resumed once, and no other at all: a shard that two hold shows as one RESUME
/// after the other, each taking the session from the last. Where a host lost its lease to which nothing was
/// done, its shards have resumed as well.
pub fn demand_once(fleet: &Hosts, account: &Value, moved: &BTreeSet<u64>) {
    let resumed: Vec<(u64, u64)> = account["shards"]
        .as_array()
        .expect("a list of shards")
        .iter()
        .map(|shard| {
            let count = |field: &str| shard[field].as_u64().expect("a number");
            (count("shard"), count("resumes"))
        })
        .filter(|(_, resumes)| *resumes > 0)
        .collect();
    if fleet.has_bystanders() {
        fleet.say("a host that nothing was done to has lost its lease");
        let all: BTreeSet<u64> = resumed.iter().map(|(shard, _)| *shard).collect();
        let few = resumed.iter().all(|(_, resumes)| *resumes <= RESUMES_MAX);
        assert!(
            few && moved.is_subset(&all),
            "(shard, RESUMEs) {resumed:?}, moved {moved:?}\n{account:#}"
        );
        return;
    }
    let wanted: Vec<(u64, u64)> = moved.iter().map(|shard| (*shard, 1)).collect();
    assert_eq!(resumed, wanted, "(shard, RESUMEs)\n{account:#}");
}
