//! What can become of an office and of a term, and how long to wait before the next try.

use std::time::Duration;

use tanako_store::StoreError;

use crate::{desired::DesiredError, problem::with_sources};

/// Pauses between two tries when the store refuses.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// Why the office is no longer held.
pub(super) enum End {
    /// The agent stops.
    Cancelled,
    /// The lease has ended, or another was elected.
    Lost(String),
}

impl End {
    pub(super) fn lapsed() -> Self {
        Self::Lost("its lease has ended".to_owned())
    }
}

/// Why a term has not begun.
pub(super) enum Trouble {
    /// The store does not answer.
    Away(String),
    /// What is in it cannot be used.
    Unusable(String),
    /// The office has passed.
    Lost(String),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Fenced { .. } => Self::Lost(error.to_string()),
            StoreError::Corrupt { .. } | StoreError::Format { .. } => {
                Self::Unusable(error.to_string())
            }
            error => Self::Away(error.to_string()),
        }
    }
}

impl From<DesiredError> for Trouble {
    fn from(error: DesiredError) -> Self {
        match error {
            DesiredError::Store(error) => error.into(),
            error => Self::Unusable(with_sources(&error)),
        }
    }
}

/// What follows a term.
pub(super) enum After {
    /// Another one, at once.
    Again,
    /// Another one, when this is over.
    Wait(Trouble),
    /// None.
    End(End),
}
