//! The way from decisions to a connection: control messages for it and the signal that there is something to send.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::CloseCode;
use crate::server::Wire;

/// Control messages that may wait; a client that reads none of its answers is cut off.
const CONTROLS_MAX: usize = 512;

/// What a connection is told besides events.
#[derive(Debug, Clone)]
pub(crate) enum Control {
    /// A payload without a sequence number.
    Send(String),
    /// Close with a code.
    Close(CloseCode),
}

/// One open connection, as others see it.
#[derive(Debug)]
pub(crate) struct Link {
    pub id: u64,
    wire: Wire,
    signal: Notify,
    state: Mutex<State>,
    /// Key of the session that the client attached to; 0 before.
    session: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    controls: VecDeque<Control>,
    silenced: bool,
}

impl Link {
    pub(crate) fn new(id: u64, wire: Wire) -> Self {
        Self {
            id,
            wire,
            signal: Notify::new(),
            state: Mutex::default(),
            session: AtomicU64::new(0),
        }
    }

    /// The session that the client has identified for or resumed.
    pub(crate) fn session(&self) -> Option<u64> {
        Some(self.session.load(Ordering::Acquire)).filter(|key| *key != 0)
    }

    pub(crate) fn attach(&self, key: u64) {
        self.session.store(key, Ordering::Release);
        self.wake();
    }

    /// The session is void: the client may identify again on this connection.
    pub(crate) fn detach(&self) {
        self.session.store(0, Ordering::Release);
    }

    /// There are events to fetch from the session.
    pub(crate) fn wake(&self) {
        self.signal.notify_one();
    }

    /// Waits for something to do.
    pub(crate) async fn woken(&self) {
        self.signal.notified().await;
    }

    pub(crate) fn control(&self, control: Control) {
        let mut state = self.state();
        if state.controls.len() >= CONTROLS_MAX {
            drop(state);
            self.reset();
            return;
        }
        state.controls.push_back(control);
        drop(state);
        self.wake();
    }

    /// The next control message. None while silenced.
    pub(crate) fn next_control(&self) -> Option<Control> {
        let mut state = self.state();
        if state.silenced {
            None
        } else {
            state.controls.pop_front()
        }
    }

    /// Nothing is sent any more, but nothing is closed.
    pub(crate) fn silence(&self, silenced: bool) {
        self.state().silenced = silenced;
        self.wake();
    }

    pub(crate) fn is_silenced(&self) -> bool {
        self.state().silenced
    }

    /// Cuts the TCP connection without a close frame.
    pub(crate) fn reset(&self) {
        self.wire.reset();
    }

    /// What the client still sends when the connection is over is read and dropped.
    pub(crate) fn linger(&self) {
        self.wire.linger();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
