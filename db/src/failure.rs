//! What a request is answered with when it cannot be carried out.

use std::borrow::Cow;

/// The stable name of a kind of failure, sent as `code` beside `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Not JSON, or not an object.
    InvalidJson,
    /// No such action.
    UnknownAction,
    /// No such table.
    UnknownTable,
    /// No such column in that table.
    UnknownColumn,
    /// A value of the wrong type or out of range.
    BadValue,
    /// The request lacks something, or has it in the wrong form.
    BadRequest,
    /// A row with that primary key exists.
    DuplicateKey,
    /// An update or delete that would hit every row.
    EmptyConditions,
    /// The row to change does not exist.
    NotFound,
    /// A compare-and-set within a transaction did not match; nothing was changed.
    Conflict,
    /// The node that holds the data cannot be reached just now.
    Unavailable,
    /// The nodes do not agree on the ring just now.
    RingChanged,
    /// Too much is waiting already.
    Overloaded,
    /// The answer would be larger than a message may be.
    TooLarge,
    /// The disk is full.
    DiskFull,
    /// The storage engine failed.
    Storage,
    /// The node is stopping.
    ShuttingDown,
}

impl Code {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::UnknownAction => "unknown_action",
            Self::UnknownTable => "unknown_table",
            Self::UnknownColumn => "unknown_column",
            Self::BadValue => "bad_value",
            Self::BadRequest => "bad_request",
            Self::DuplicateKey => "duplicate_key",
            Self::EmptyConditions => "empty_conditions",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::RingChanged => "ring_changed",
            Self::Overloaded => "overloaded",
            Self::TooLarge => "too_large",
            Self::DiskFull => "disk_full",
            Self::Storage => "storage",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// Whether the same request may succeed later without a change.
    pub fn retryable(self) -> bool {
        matches!(
            self,
            Self::Unavailable
                | Self::RingChanged
                | Self::Overloaded
                | Self::DiskFull
                | Self::ShuttingDown
        )
    }
}

/// A failed request: the text a person reads and the code a program reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// The kind.
    pub code: Code,
    /// What happened, where, and what to do. Starts with a capital: it is the protocol's own text.
    pub text: Cow<'static, str>,
}

impl Failure {
    /// A failure of that kind.
    pub fn new(code: Code, text: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// A request that lacks something.
    pub fn bad_request(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::BadRequest, text)
    }
}
