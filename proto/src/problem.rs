//! A [`Problem`] inside a gRPC status: the one way in which every service of the fleet reports a
//! failure, so that `tanakoctl` can print code, cause and hint and pick its exit code.

use prost::Message;
use tonic::{Code, Status, metadata::MetadataMap};

pub use crate::fleet::v1::Problem;

impl Problem {
    /// A problem with its stable `code`, the `object` it is about, and what happened.
    pub fn new(
        code: impl Into<String>,
        object: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            code: code.into(),
            object: object.into(),
            message: message.into(),
            ..Self::default()
        }
    }

    /// Adds why it happened.
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        self.cause = cause.into();
        self
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Says that the same request may succeed later.
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// The status that carries this problem to the caller.
    pub fn into_status(self, code: Code) -> Status {
        let text = self.message.clone();
        Status::with_details_and_metadata(
            code,
            text,
            self.encode_to_vec().into(),
            MetadataMap::new(),
        )
    }

    /// The problem that a status carries; one made from the status itself when it carries none
    /// (the connection failed, or the answer came from something that is not an agent).
    pub fn from_status(status: &Status) -> Self {
        if !status.details().is_empty()
            && let Ok(problem) = Self::decode(status.details())
            && !problem.code.is_empty()
        {
            return problem;
        }
        let code = match status.code() {
            Code::Unavailable => "unreachable",
            Code::DeadlineExceeded => "timeout",
            Code::PermissionDenied | Code::Unauthenticated => "denied",
            Code::NotFound => "not-found",
            Code::InvalidArgument => "invalid-argument",
            Code::Cancelled => "cancelled",
            Code::Unimplemented => "unsupported",
            _ => "internal",
        };
        let mut problem = Self::new(code, "", status.message());
        problem.retryable = matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded);
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_survives_the_status() {
        let problem = Problem::new("conflict", "tanako/3", "another operation runs")
            .cause("restart 17 holds tanako/3")
            .hint("wait for it: tanakoctl operation watch 17")
            .retryable();
        let status = problem.clone().into_status(Code::Aborted);
        assert_eq!(status.message(), "another operation runs");
        assert_eq!(Problem::from_status(&status), problem);
    }

    #[test]
    fn a_bare_status_and_foreign_details_still_make_a_problem() {
        let bare = Problem::from_status(&Status::unavailable("connection refused"));
        assert_eq!((bare.code.as_str(), bare.retryable), ("unreachable", true));
        let foreign = Status::with_details(Code::NotFound, "no such thing", vec![0xff; 9].into());
        assert_eq!(Problem::from_status(&foreign).code, "not-found");
    }
}
