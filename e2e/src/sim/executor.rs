//! Virtual time and cooperative tasks on one thread: what runs when is decided by the order of
//! wake-ups and timers alone, so that the same seed gives the same run.
//!
//! Tasks belong to groups: an operating-system process, a life of the agent, the network. Killing a
//! group drops its tasks wherever they wait, which is what kill -9 does. A paused group is not
//! polled until it goes on.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

/// Names a group of tasks. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(usize);

/// The group of what outlives every process: the network, Discord, the operator, the judge.
pub const WORLD: Group = Group(0);

type Task = Pin<Box<dyn Future<Output = ()>>>;
type Ready = Arc<Mutex<VecDeque<usize>>>;

struct Slot {
    group: Group,
    future: Option<Task>,
    waker: Waker,
}

#[derive(Default)]
struct GroupState {
    dead: bool,
    paused: bool,
    parked: Vec<usize>,
    tasks: Vec<usize>,
}

struct WakeTask {
    id: usize,
    ready: Ready,
}

impl Wake for WakeTask {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        // Mostly the same task is woken twice in a row; a spurious poll does no harm otherwise.
        if ready.back() != Some(&self.id) {
            ready.push_back(self.id);
        }
    }
}

struct Timer {
    at: u64,
    number: u64,
    waker: Waker,
    alive: Rc<Cell<bool>>,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// See the module's documentation.
pub struct Executor {
    now: Cell<u64>,
    number: Cell<u64>,
    timers: RefCell<BinaryHeap<Reverse<Timer>>>,
    ready: Ready,
    tasks: RefCell<Vec<Option<Slot>>>,
    groups: RefCell<Vec<GroupState>>,
    doomed: RefCell<Vec<Group>>,
}

impl Executor {
    /// At time 0, with nothing to do.
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            now: Cell::new(0),
            number: Cell::new(0),
            timers: RefCell::default(),
            ready: Ready::default(),
            tasks: RefCell::default(),
            groups: RefCell::new(vec![GroupState::default()]),
            doomed: RefCell::default(),
        })
    }

    /// Milliseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// A new group.
    pub fn group(&self) -> Group {
        let mut groups = self.groups.borrow_mut();
        groups.push(GroupState::default());
        Group(groups.len() - 1)
    }

    /// Starts a task. One of a dead group never runs.
    pub fn spawn(&self, group: Group, future: impl Future<Output = ()> + 'static) {
        let mut groups = self.groups.borrow_mut();
        if groups[group.0].dead {
            return;
        }
        let mut tasks = self.tasks.borrow_mut();
        let id = tasks.len();
        let waker = Waker::from(Arc::new(WakeTask {
            id,
            ready: Arc::clone(&self.ready),
        }));
        tasks.push(Some(Slot {
            group,
            future: Some(Box::pin(future)),
            waker,
        }));
        groups[group.0].tasks.push(id);
        self.wake(id);
    }

    /// Ends a group: none of its tasks is polled again; they are dropped after the present step.
    pub fn kill(&self, group: Group) {
        assert!(group != WORLD, "the world cannot be killed");
        let state = &mut self.groups.borrow_mut()[group.0];
        if !std::mem::replace(&mut state.dead, true) {
            self.doomed.borrow_mut().push(group);
        }
    }

    /// Stops a group where it is, or lets it go on.
    pub fn pause(&self, group: Group, paused: bool) {
        let mut groups = self.groups.borrow_mut();
        let state = &mut groups[group.0];
        state.paused = paused;
        if !paused {
            for id in std::mem::take(&mut state.parked) {
                self.wake(id);
            }
        }
    }

    /// Whether the group has been killed.
    pub fn is_dead(&self, group: Group) -> bool {
        self.groups.borrow()[group.0].dead
    }

    /// Whether the group is stopped where it is.
    pub fn is_paused(&self, group: Group) -> bool {
        self.groups.borrow()[group.0].paused
    }

    fn wake(&self, id: usize) {
        self.ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(id);
    }

    /// One step: polls one task, or goes to the next timer not after `until`. False when there is
    /// nothing to do before.
    pub fn step(&self, until: u64) -> bool {
        self.bury();
        let next = self
            .ready
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        if let Some(id) = next {
            self.poll(id);
            self.bury();
            return true;
        }
        let mut timers = self.timers.borrow_mut();
        while let Some(Reverse(timer)) = timers.peek() {
            if timer.alive.get() && timer.at > until {
                return false;
            }
            let Some(Reverse(timer)) = timers.pop() else {
                return false;
            };
            if timer.alive.get() {
                self.now.set(self.now.get().max(timer.at));
                timer.waker.wake();
                return true;
            }
        }
        false
    }

    fn poll(&self, id: usize) {
        let (mut future, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(slot) = tasks[id].as_mut() else {
                return;
            };
            let group = &mut self.groups.borrow_mut()[slot.group.0];
            if group.dead {
                return;
            }
            if group.paused {
                if !group.parked.contains(&id) {
                    group.parked.push(id);
                }
                return;
            }
            let Some(future) = slot.future.take() else {
                return;
            };
            (future, slot.waker.clone())
        };
        let done = future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_ready();
        let back = {
            let mut tasks = self.tasks.borrow_mut();
            if done {
                let slot = tasks[id].take();
                if let Some(slot) = slot {
                    let tasks = &mut self.groups.borrow_mut()[slot.group.0].tasks;
                    if let Some(at) = tasks.iter().position(|task| *task == id) {
                        tasks.swap_remove(at);
                    }
                }
                Some(future)
            } else if let Some(slot) = tasks[id].as_mut() {
                slot.future = Some(future);
                None
            } else {
                Some(future)
            }
        };
        // Dropped without any of our own borrows held: it may wake or spawn.
        drop(back);
    }

    fn bury(&self) {
        loop {
            let Some(group) = self.doomed.borrow_mut().pop() else {
                return;
            };
            let mut ids = std::mem::take(&mut self.groups.borrow_mut()[group.0].tasks);
            ids.sort_unstable();
            for id in ids {
                let slot = self.tasks.borrow_mut()[id].take();
                drop(slot);
            }
        }
    }

    /// Waits until `at`.
    pub fn sleep_until(self: &Rc<Self>, at: u64) -> Sleep {
        Sleep {
            executor: Rc::clone(self),
            at,
            alive: None,
        }
    }
}

/// See [`Executor::sleep_until`].
pub struct Sleep {
    executor: Rc<Executor>,
    at: u64,
    alive: Option<Rc<Cell<bool>>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.executor.now() >= self.at {
            return Poll::Ready(());
        }
        if self.alive.is_none() {
            let alive = Rc::new(Cell::new(true));
            let number = self.executor.number.get();
            self.executor.number.set(number + 1);
            self.executor.timers.borrow_mut().push(Reverse(Timer {
                at: self.at,
                number,
                waker: cx.waker().clone(),
                alive: Rc::clone(&alive),
            }));
            self.alive = Some(alive);
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(alive) = &self.alive {
            alive.set(false);
        }
    }
}
