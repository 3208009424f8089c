//! What a failed call means: whether it can have happened, and whether trying again can help. Pure.

use std::error::Error;

use tonic::{Code, ConnectError, Status};

/// What a failed call means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It cannot have reached the server's store: any call may be sent again, best to another member.
    NotDone(String),
    /// Nobody knows whether it happened.
    Unknown(String),
    /// The token is missing or no longer good.
    Token(String),
    /// The user may not do this.
    Denied(String),
    /// The lease is not there.
    NoLease,
    /// The revision's history has been dropped.
    Compacted,
    /// The revision is yet to come.
    Future,
    /// The server's quota is used up; nothing was changed.
    Full,
    /// Larger than this server allows.
    TooLarge(&'static str),
}

/// Reads the server's codes and texts. The texts are part of etcd's interface: its own clients compare
/// them.
pub(super) fn judge(status: &Status) -> Verdict {
    let text = status.message();
    let says = |part: &str| text.contains(part);
    if is_unconnected(status) {
        return Verdict::NotDone(connect_text(status));
    }
    match status.code() {
        Code::Unauthenticated => Verdict::Token(text.to_owned()),
        Code::PermissionDenied => Verdict::Denied(text.to_owned()),
        Code::InvalidArgument
            if says("user name is empty") || says("revision of auth store is old") =>
        {
            Verdict::Token(text.to_owned())
        }
        Code::InvalidArgument if says("authentication failed") => Verdict::Denied(text.to_owned()),
        Code::InvalidArgument if says("too large") => {
            Verdict::TooLarge("a transaction for this etcd (--max-request-bytes)")
        }
        Code::InvalidArgument if says("too many operations") => {
            Verdict::TooLarge("a transaction for this etcd (--max-txn-ops)")
        }
        Code::ResourceExhausted if says("space exceeded") => Verdict::Full,
        Code::ResourceExhausted if says("too many requests") => Verdict::NotDone(text.to_owned()),
        Code::ResourceExhausted if says("larger than max") => {
            Verdict::TooLarge("a message for this etcd (--max-request-bytes)")
        }
        Code::OutOfRange if says("message length too large") => Verdict::TooLarge("an answer"),
        Code::OutOfRange if says("compacted") => Verdict::Compacted,
        Code::OutOfRange if says("future revision") => Verdict::Future,
        Code::NotFound if says("lease") => Verdict::NoLease,
        // We ask for a member that has a leader; one without refuses before it looks at the call.
        Code::Unavailable if says("etcdserver: no leader") => Verdict::NotDone(text.to_owned()),
        code => Verdict::Unknown(if text.is_empty() {
            code.description().to_owned()
        } else {
            text.to_owned()
        }),
    }
}

/// Whether a watch was ended for want of rights or of a good token: not all versions tell which.
pub(super) fn is_refusal(reason: &str) -> bool {
    [
        "permission denied",
        "auth token",
        "user name is empty",
        "auth store is old",
    ]
    .iter()
    .any(|part| reason.contains(part))
}

/// Whether there was no connection to send it on.
fn is_unconnected(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The innermost reason, which names the fault: connection refused, certificate expired.
fn connect_text(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_surely_did_not_happen_counts_as_not_done() {
        let unknown = [
            Status::unavailable("etcdserver: request timed out"),
            Status::unavailable(
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            Status::unavailable("etcdserver: leader changed"),
            Status::unavailable("etcdserver: server stopped"),
            Status::unknown("transport error"),
            Status::internal("h2 protocol error: broken pipe"),
            Status::cancelled("operation was canceled"),
            Status::deadline_exceeded(""),
            Status::resource_exhausted("something else"),
        ];
        for status in unknown {
            assert!(
                matches!(judge(&status), Verdict::Unknown(text) if !text.is_empty()),
                "{status}"
            );
        }
        let refused = Status::from_error(Box::new(ConnectError(
            std::io::Error::from(std::io::ErrorKind::ConnectionRefused).into(),
        )));
        assert!(matches!(judge(&refused), Verdict::NotDone(text) if text.contains("refused")));
        let leaderless = Status::unavailable("etcdserver: no leader");
        assert!(matches!(judge(&leaderless), Verdict::NotDone(_)));
    }

    #[test]
    fn the_servers_texts_are_told_apart() {
        for (status, verdict) in [
            (
                Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
                Verdict::Compacted,
            ),
            (
                Status::out_of_range("etcdserver: mvcc: required revision is a future revision"),
                Verdict::Future,
            ),
            (
                Status::not_found("etcdserver: requested lease not found"),
                Verdict::NoLease,
            ),
            (
                Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
                Verdict::Full,
            ),
        ] {
            assert_eq!(judge(&status), verdict);
        }
        for status in [
            Status::unauthenticated("etcdserver: invalid auth token"),
            Status::invalid_argument("etcdserver: user name is empty"),
            Status::invalid_argument("etcdserver: revision of auth store is old"),
        ] {
            assert!(matches!(judge(&status), Verdict::Token(_)));
        }
        for status in [
            Status::permission_denied("etcdserver: permission denied"),
            Status::invalid_argument(
                "etcdserver: authentication failed, invalid user ID or password",
            ),
        ] {
            assert!(matches!(judge(&status), Verdict::Denied(_)));
        }
        for status in [
            Status::invalid_argument("etcdserver: request is too large"),
            Status::invalid_argument("etcdserver: too many operations in txn request"),
        ] {
            assert!(matches!(judge(&status), Verdict::TooLarge(_)));
        }
    }
}
