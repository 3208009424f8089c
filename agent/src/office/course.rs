//! What can become of an office and of a term, and how long to wait before the next try.

use std::time::Duration;

use tanako_store::StoreError;

use crate::desired::DesiredError;

/// Pauses between two tries when the store refuses.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// Why the office is no longer held.
pub(super) enum End {
    /// The agent stops.
    Cancelled,
    /// The lease has ended, or another was elected.
    Lost(String),
    /// The agent of the processes' host wants it.
    Yielded,
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

/// Doubling pauses with jitter.
pub(super) struct Pauses {
    next: Duration,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self { next: RETRY.0 }
    }

    pub(super) fn next(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(RETRY.1);
        full.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    pub(super) fn reset(&mut self) {
        self.next = RETRY.0;
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
