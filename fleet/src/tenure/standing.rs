//! What hosts tell each other of how they stand.

use super::Spans;

/// What a host says when it is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// It owns what it runs.
    pub tenured: bool,
    /// It is tenured and has not heard from the store for [`Spans::cut`].
    pub cut: bool,
    /// How long ago it took in answers of the store, oldest first.
    pub contact_ages: Vec<u64>,
}

/// A time within which something surely happened, on the clock of who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Not before.
    pub from: u64,
    /// Not after.
    pub to: u64,
}

impl Standing {
    /// When the contacts were, on the clock of who asked at `asked_at` and had the answer at
    /// `answered_at`.
    pub fn contacts(&self, asked_at: u64, answered_at: u64) -> Vec<Span> {
        self.contact_ages
            .iter()
            .map(|age| Span {
                from: asked_at.saturating_sub(*age),
                to: answered_at.saturating_sub(*age),
            })
            .collect()
    }
}

impl Span {
    /// Whether a peer that took in an answer of the store in this span proves that none of its
    /// statements to be cut off can carry a host at `at`. `asker` are the spans of that host, `peer` those
    /// of the peer.
    ///
    /// A statement that carries at `at` was made within `statement_max` before, and says that there was no
    /// answer within `cut` before it was made. An answer taken in between the two contradicts it.
    pub fn refutes(self, at: u64, asker: Spans, peer: Spans) -> bool {
        self.to + asker.statement_max <= at && at < self.from + peer.cut
    }
}
