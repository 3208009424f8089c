//! What all tasks share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::hub::Hub;
use crate::server::Wires;

/// The shared state of one simulated Discord.
#[derive(Debug)]
pub(crate) struct App {
    hub: Mutex<Hub>,
    pub wires: Wires,
}

impl App {
    pub(crate) fn new(hub: Hub, wires: Wires) -> Self {
        Self {
            hub: Mutex::new(hub),
            wires,
        }
    }

    /// The hub. Never held across an await.
    pub(crate) fn hub(&self) -> MutexGuard<'_, Hub> {
        // A panic in a handler leaves counters at worst one off.
        self.hub.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
