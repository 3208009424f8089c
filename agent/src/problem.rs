//! How the failures of the parts become problems that `tanakoctl` shows.

use tanako_fleet::{spec::SpecError, target::TargetError};
use tanako_proto::fleet::v1::Problem;
use tanako_store::StoreError;
use tonic::{Code, Status};

/// A store that refused. Nothing was changed, or it is not known whether; the hint says.
pub fn from_store(error: &StoreError) -> Problem {
    let code = match error {
        StoreError::NoSpace { .. } | StoreError::Full { .. } => "no-space",
        StoreError::Denied(_) => "store-denied",
        StoreError::Fenced { .. } => "not-coordinator",
        StoreError::Corrupt { .. } | StoreError::Format { .. } => "store-damaged",
        StoreError::TooLarge { .. } => "too-large",
        _ => "store-unavailable",
    };
    let mut problem = Problem::new(code, "store", "the change could not be written down")
        .cause(error.to_string())
        .hint(error.hint());
    // Fenced: whoever decides now can do it.
    problem.retryable = error.is_retryable() || matches!(error, StoreError::Fenced { .. });
    problem
}

/// A store from which nothing can be read at the moment.
pub fn unread(cause: impl Into<String>) -> Problem {
    Problem::new("store-unavailable", "store", "the fleet's state cannot be read")
        .cause(cause)
        .hint("check the etcd servers (etcdctl endpoint health), and this host's way to them; the processes run on")
        .retryable()
}

/// Why a call to another agent failed, in a few words.
pub fn said(status: &Status) -> String {
    let problem = Problem::from_status(status);
    if problem.cause.is_empty() {
        problem.message
    } else {
        format!("{}: {}", problem.message, problem.cause)
    }
}

/// A target that stands for nothing.
pub fn from_target(error: &TargetError) -> Problem {
    let (code, object) = match error {
        TargetError::Malformed { text } => ("invalid-target", text),
        TargetError::Unknown { text, .. } => ("unknown-target", text),
    };
    Problem::new(code, object, error.to_string()).hint(error.hint())
}

/// A spec that is refused: every problem in the cause, the first one in front.
pub fn from_spec(error: &SpecError, file_name: &str) -> Problem {
    let object = error.problems().first().map_or_else(
        || file_name.to_owned(),
        |problem| format!("{file_name}:{}", error.place(problem).0),
    );
    let text = error.to_string();
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    Problem::new("invalid-spec", object, first)
        .cause(rest)
        .hint(error.hint())
}

/// A plan made from a version that is no longer current.
pub fn stale(base: u64, current: u64) -> Problem {
    Problem::new(
        "stale-plan",
        "fleet",
        format!("the plan was made from version {base}, the fleet is at version {current}"),
    )
    .cause("someone changed the desired state in between")
    .hint("make the plan again and look at it: `tanakoctl plan`")
}

/// Code of [`stopping`].
pub const STOPPING: &str = "stopping";

/// The agent is on its way out.
pub fn stopping() -> Problem {
    Problem::new(STOPPING, "agent", "the agent is stopping")
        .hint("try again when it runs")
        .retryable()
}

/// The status that carries a problem; the code follows from the problem's.
pub fn status(problem: Problem) -> Status {
    let code = match problem.code.as_str() {
        "unknown-target" | "unknown-operation" | "unknown-backup" | "no-spec" => Code::NotFound,
        "conflict" | "stale-plan" => Code::Aborted,
        "denied" => Code::PermissionDenied,
        "no-space" | "too-large" => Code::ResourceExhausted,
        "store-unavailable" | "not-coordinator" | "stopping" | "host-unreachable" => {
            Code::Unavailable
        }
        "timeout" => Code::DeadlineExceeded,
        "not-ready" | "store-damaged" | "store-denied" | "already-ended" | "upgrade-failed"
        | "no-database" | "not-issuer" => Code::FailedPrecondition,
        "internal" => Code::Internal,
        _ => Code::InvalidArgument,
    };
    problem.into_status(code)
}

/// An error with everything behind it, on one line.
pub fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
