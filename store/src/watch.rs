//! What a watcher holds.

use std::{fmt, pin::Pin};

use futures_util::{Stream, StreamExt};

use crate::{
    error::StoreError,
    model::{Event, Revision},
};

/// Changes of one or more whole revisions, in order. A revision is never split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchBatch {
    /// The latest revision contained: watch from the next one to resume.
    pub revision: Revision,
    /// The changes under the prefix.
    pub events: Vec<Event>,
}

/// A running watch. Dropping it ends it. It holds back nothing: a slow watcher is served from the
/// store's history and, when it sleeps past that, gets what was on its way already and then
/// [`StoreError::Compacted`].
pub struct Watch {
    stream: Pin<Box<dyn Stream<Item = Result<WatchBatch, StoreError>> + Send>>,
}

impl Watch {
    /// Wraps a backend's stream.
    pub fn new(
        stream: impl Stream<Item = Result<WatchBatch, StoreError>> + Send + 'static,
    ) -> Self {
        Self {
            stream: Box::pin(stream),
        }
    }

    /// The next changes. After an error the watch has ended.
    pub async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        self.stream.next().await.unwrap_or(Err(StoreError::Closed))
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
