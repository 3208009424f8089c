//! A byte stream's worth of order: what goes in comes out in the same order, each after a delay,
//! until one end is gone. What is under way when the sender dies still arrives; then comes the end.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    task::{Poll, Waker},
};

use super::world::Sim;

struct State<T> {
    queue: VecDeque<(u64, T)>,
    last_at: u64,
    /// The sender is gone: the end comes after what is queued.
    ended: bool,
    /// The receiver is gone, or the line was cut.
    cut: bool,
    waker: Option<Waker>,
}

/// The end that sends.
pub struct Sender<T>(Rc<RefCell<State<T>>>);

/// The end that receives.
pub struct Receiver<T> {
    sim: Sim,
    state: Rc<RefCell<State<T>>>,
}

/// A new pipe.
pub fn pipe<T>(sim: &Sim) -> (Sender<T>, Receiver<T>) {
    let state = Rc::new(RefCell::new(State {
        queue: VecDeque::new(),
        last_at: 0,
        ended: false,
        cut: false,
        waker: None,
    }));
    let receiver = Receiver {
        sim: sim.clone(),
        state: Rc::clone(&state),
    };
    (Sender(state), receiver)
}

impl<T> State<T> {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl<T> Sender<T> {
    /// Sends; it arrives at `at` or right behind what was sent before. False when nobody receives.
    pub fn send(&self, at: u64, item: T) -> bool {
        let mut state = self.0.borrow_mut();
        if state.cut {
            return false;
        }
        state.last_at = state.last_at.max(at);
        let at = state.last_at;
        state.queue.push_back((at, item));
        state.wake();
        true
    }

    /// Cuts the line: what is under way is lost, the receiver sees the end at once.
    pub fn cut(&self) {
        let mut state = self.0.borrow_mut();
        state.cut = true;
        state.queue.clear();
        state.wake();
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.borrow_mut();
        state.ended = true;
        state.wake();
    }
}

impl<T> Receiver<T> {
    /// The next item, or `None` at the end.
    pub async fn recv(&mut self) -> Option<T> {
        loop {
            let due = std::future::poll_fn(|cx| {
                let mut state = self.state.borrow_mut();
                if state.cut {
                    return Poll::Ready(None);
                }
                if let Some((at, _)) = state.queue.front() {
                    return Poll::Ready(Some(*at));
                }
                if state.ended {
                    return Poll::Ready(None);
                }
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            })
            .await?;
            if due > self.sim.now() {
                self.sim.sleep_until(due).await;
                continue;
            }
            if let Some((_, item)) = self.state.borrow_mut().queue.pop_front() {
                return Some(item);
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.cut = true;
        state.queue.clear();
    }
}
