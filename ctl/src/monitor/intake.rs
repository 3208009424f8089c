//! Cleaning of what the fleet reports, before anything else sees it.

use tanako_proto::fleet::v1::{Event, GuildLocation, Host, IdentifyStatus, Operation, Process};

use super::text::clean_in;

/// Characters kept of any one text from the network, log lines aside.
pub(super) const TEXT_MAX: usize = 1_000;

/// Cleans all texts of an event.
pub(super) fn event(event: &mut Event) {
    for text in [
        &mut event.severity,
        &mut event.kind,
        &mut event.object,
        &mut event.message,
        &mut event.host,
    ] {
        clean_in(text, TEXT_MAX);
    }
}

/// Cleans all texts of a host.
pub(super) fn host(host: &mut Host) {
    for text in [
        &mut host.name,
        &mut host.state,
        &mut host.address,
        &mut host.agent_version,
        &mut host.os,
        &mut host.lease,
    ] {
        clean_in(text, TEXT_MAX);
    }
}

/// Cleans all texts of the budget.
pub(super) fn identify(identify: &mut IdentifyStatus) {
    for bucket in &mut identify.buckets {
        clean_in(&mut bucket.bot, TEXT_MAX);
    }
    for bot in &mut identify.bots {
        clean_in(&mut bot.bot, TEXT_MAX);
    }
}

/// Cleans all texts of a process.
pub(super) fn process(process: &mut Process) {
    for text in [
        &mut process.name,
        &mut process.kind,
        &mut process.host,
        &mut process.state,
        &mut process.desired,
        &mut process.detail,
        &mut process.last_exit,
        &mut process.bot,
    ] {
        clean_in(text, TEXT_MAX);
    }
    for shard in &mut process.shards {
        clean_in(&mut shard.stage, TEXT_MAX);
        clean_in(&mut shard.last_error, TEXT_MAX);
        clean_in(&mut shard.health, TEXT_MAX);
        clean_in(&mut shard.health_detail, TEXT_MAX);
        if shard
            .events_by_type
            .keys()
            .any(|key| key.bytes().any(|b| !b.is_ascii_graphic()))
        {
            shard.events_by_type = std::mem::take(&mut shard.events_by_type)
                .into_iter()
                .map(cleaned_key)
                .collect();
        }
    }
    if let Some(db) = &mut process.db {
        clean_in(&mut db.url, TEXT_MAX);
    }
    if process
        .metrics
        .keys()
        .any(|key| key.bytes().any(|b| !b.is_ascii_graphic()))
    {
        process.metrics = std::mem::take(&mut process.metrics)
            .into_iter()
            .map(cleaned_key)
            .collect();
    }
    process.shards.sort_by_key(|shard| shard.id);
}

fn cleaned_key<V>((mut key, value): (String, V)) -> (String, V) {
    clean_in(&mut key, TEXT_MAX);
    (key, value)
}

/// Cleans all texts of an operation.
pub(super) fn operation(operation: &mut Operation) {
    for text in [
        &mut operation.id,
        &mut operation.kind,
        &mut operation.state,
        &mut operation.unit,
        &mut operation.message,
        &mut operation.requested_by,
        &mut operation.date,
        &mut operation.strategy,
    ]
    .into_iter()
    .chain(&mut operation.targets)
    {
        clean_in(text, TEXT_MAX);
    }
    for step in &mut operation.steps {
        for text in [
            &mut step.object,
            &mut step.action,
            &mut step.state,
            &mut step.message,
        ] {
            clean_in(text, TEXT_MAX);
        }
    }
    for receipt in &mut operation.receipt {
        clean_in(&mut receipt.process, TEXT_MAX);
        clean_in(&mut receipt.how, TEXT_MAX);
    }
    if let Some(problem) = &mut operation.problem {
        for text in [
            &mut problem.code,
            &mut problem.object,
            &mut problem.message,
            &mut problem.cause,
            &mut problem.hint,
        ] {
            clean_in(text, TEXT_MAX);
        }
    }
}

/// Cleans all texts of the answer where a guild is.
pub(super) fn location(mut location: GuildLocation) -> GuildLocation {
    for text in [
        &mut location.db_node,
        &mut location.db_url,
        &mut location.db_host,
    ] {
        clean_in(text, TEXT_MAX);
    }
    for shard in &mut location.shards {
        for text in [
            &mut shard.bot,
            &mut shard.process,
            &mut shard.host,
            &mut shard.state,
            &mut shard.stage,
        ] {
            clean_in(text, TEXT_MAX);
        }
    }
    location
}
