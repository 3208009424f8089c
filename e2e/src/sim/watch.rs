//! A value that changes, and those who wait for that, woken in the order in which they began to wait.
//! The one of tokio wakes them in an order drawn from a generator that no seed reaches.

use std::{
    cell::{Ref, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
};

struct State<T> {
    value: T,
    version: u64,
    senders: usize,
    waiting: Vec<Waker>,
}

impl<T> State<T> {
    fn wake_all(state: &RefCell<Self>) {
        let waiting = std::mem::take(&mut state.borrow_mut().waiting);
        for waker in waiting {
            waker.wake();
        }
    }
}

/// The end that sets the value.
pub struct Sender<T>(Rc<RefCell<State<T>>>);

/// The end that looks.
pub struct Receiver<T> {
    state: Rc<RefCell<State<T>>>,
    seen: u64,
}

/// The last sender is gone.
#[derive(Debug)]
pub struct Gone;

/// A value with both ends.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let state = Rc::new(RefCell::new(State {
        value,
        version: 0,
        senders: 1,
        waiting: Vec::new(),
    }));
    let receiver = Receiver {
        state: Rc::clone(&state),
        seen: 0,
    };
    (Sender(state), receiver)
}

impl<T> Sender<T> {
    /// Sets the value.
    pub fn send_replace(&self, value: T) {
        self.send_modify(|old| *old = value);
    }

    /// Changes the value.
    pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
        {
            let mut state = self.0.borrow_mut();
            change(&mut state.value);
            state.version += 1;
        }
        State::wake_all(&self.0);
    }

    /// Another receiver, which has seen the present value.
    pub fn subscribe(&self) -> Receiver<T> {
        Receiver {
            state: Rc::clone(&self.0),
            seen: self.0.borrow().version,
        }
    }

    /// The present value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref::map(self.0.borrow(), |state| &state.value)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.borrow_mut().senders -= 1;
        State::wake_all(&self.0);
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self {
            state: Rc::clone(&self.state),
            seen: self.seen,
        }
    }
}

impl<T> Receiver<T> {
    /// The present value.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref::map(self.state.borrow(), |state| &state.value)
    }

    /// Takes the present value for seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.state.borrow().version;
    }

    /// Waits until the value has been set since it was last seen.
    pub async fn changed(&mut self) -> Result<(), Gone> {
        let seen = self.seen;
        self.until(|state| state.version != seen).await
    }

    /// Waits until the value is as asked.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&T) -> bool) -> Result<(), Gone> {
        self.until(|state| wanted(&state.value)).await
    }

    async fn until(&mut self, mut there: impl FnMut(&State<T>) -> bool) -> Result<(), Gone> {
        poll_fn(|context| self.poll(context, &mut there)).await
    }

    fn poll(
        &mut self,
        context: &Context<'_>,
        there: &mut impl FnMut(&State<T>) -> bool,
    ) -> Poll<Result<(), Gone>> {
        let mut state = self.state.borrow_mut();
        if there(&state) {
            self.seen = state.version;
            return Poll::Ready(Ok(()));
        }
        if state.senders == 0 {
            return Poll::Ready(Err(Gone));
        }
        if !state
            .waiting
            .iter()
            .any(|waiting| waiting.will_wake(context.waker()))
        {
            state.waiting.push(context.waker().clone());
        }
        Poll::Pending
    }
}
