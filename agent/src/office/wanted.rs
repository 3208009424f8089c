//! The desired state, for whoever may not be the one who decides.

use std::{path::Path, sync::Arc, time::Duration};

use tanako_fleet::spec::Places;
use tanako_proto::fleet::v1::Problem;
use tanako_store::Store;

use super::{Front, Standing};
use crate::{
    desired::Desired,
    problem::{self, with_sources},
};

/// How long the store may take to tell what is wanted.
const STORE_WITHIN: Duration = Duration::from_secs(2);

/// Where an agent finds the desired state; clones are cheap and equal.
#[derive(Clone)]
pub struct Wanted {
    front: Front,
    store: Arc<dyn Store>,
    places: Places,
}

impl Wanted {
    /// Of the agent on this data directory.
    pub fn new(front: Front, store: Arc<dyn Store>, data_dir: &Path) -> Self {
        let data_dir = data_dir.to_string_lossy().into_owned();
        Self {
            front,
            store,
            places: Places { data_dir },
        }
    }

    /// The desired state as this agent knows it, where it decides; else as it is stored. While the store
    /// is away the latest known, if this agent has decided before.
    pub async fn told(&self) -> Result<Arc<Desired>, Box<Problem>> {
        let known = self.front.watch_desired().borrow().clone();
        if self.decides() && known.spec.is_some() {
            return Ok(known);
        }
        let loading = Desired::load(&*self.store, self.places.clone());
        let cause = match tokio::time::timeout(STORE_WITHIN, loading).await {
            Ok(Ok(stored)) => return Ok(Arc::new(stored)),
            Ok(Err(error)) => with_sources(&error),
            Err(_) => format!("no answer within {} s", STORE_WITHIN.as_secs()),
        };
        if known.spec.is_some() {
            return Ok(known);
        }
        Err(Box::new(problem::unread(cause)))
    }

    /// The same; nothing, where nothing is known.
    pub async fn now(&self) -> Arc<Desired> {
        match self.told().await {
            Ok(told) => told,
            Err(_) => self.front.watch_desired().borrow().clone(),
        }
    }

    /// Whether this agent decides.
    pub fn decides(&self) -> bool {
        matches!(*self.front.standing().borrow(), Standing::Holding { .. })
    }
}
