//! Everything there is, shared by all tasks of one run.

use std::{
    cell::{Cell, RefCell},
    ops::Deref,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    agent::{
        Agent,
        office::{Lease, Office},
    },
    config::Config,
    discord::Discord,
    executor::{Executor, Group, Sleep},
    faults::Weather,
    host::Host,
    judge::Judge,
    store::SimStore,
    trace::Trace,
};

/// A handle on the world; clones are cheap.
#[derive(Clone)]
pub struct Sim(Rc<World>);

/// See the module's documentation.
pub struct World {
    /// Runs the tasks.
    pub executor: Rc<Executor>,
    /// What this run is like.
    pub config: Config,
    rng: RefCell<fastrand::Rng>,
    trace: RefCell<Trace>,
    base: Instant,
    /// What is on the machine: its clocks, its processes, its disk.
    pub host: RefCell<Host>,
    /// The other side.
    pub discord: RefCell<Discord>,
    /// The durable store.
    pub store: Arc<SimStore>,
    /// Who decides, or did last.
    pub office: RefCell<Option<Rc<Office>>>,
    /// Those elsewhere that seek the office.
    pub candidates: RefCell<Vec<Rc<Office>>>,
    /// The lease of the office elsewhere, as the store has it.
    pub lease: Cell<Lease>,
    /// The agent, while it lives.
    pub agent: RefCell<Option<Rc<Agent>>>,
    /// Who watches over the invariants.
    pub judge: RefCell<Judge>,
    /// The faults of the moment.
    pub weather: RefCell<Weather>,
    /// Whether anything that the invariants are about has changed since the last look.
    pub touched: Cell<bool>,
    /// Everything has come to rest.
    pub done: Cell<bool>,
}

impl Deref for Sim {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl Sim {
    /// The world of a seed.
    pub fn new(config: Config, verbose: bool, loud: bool) -> Self {
        // What the bot's own helpers draw is drawn from here.
        fastrand::seed(config.seed);
        let rng = fastrand::Rng::with_seed(config.seed ^ 0x51a7_e0f5_1337_0001);
        Self(Rc::new(World {
            executor: Executor::new(),
            rng: RefCell::new(rng),
            trace: RefCell::new(Trace::new(verbose, loud)),
            // Far enough ahead that everything in the past can be said.
            base: Instant::now() + Duration::from_secs(40 * 86_400),
            host: RefCell::new(Host::new(&config)),
            discord: RefCell::new(Discord::new(&config)),
            store: Arc::new(SimStore::default()),
            office: RefCell::default(),
            candidates: RefCell::default(),
            lease: Cell::default(),
            agent: RefCell::new(None),
            judge: RefCell::new(Judge::new(&config)),
            weather: RefCell::new(Weather::default()),
            touched: Cell::new(false),
            done: Cell::new(false),
            config,
        }))
    }

    /// Virtual milliseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.executor.now()
    }

    /// Now, on the clock that never steps.
    pub fn instant(&self) -> Instant {
        self.base + Duration::from_millis(self.now())
    }

    /// The virtual time of an instant, rounded up.
    pub fn at(&self, instant: Instant) -> u64 {
        let span = instant.saturating_duration_since(self.base);
        u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// Milliseconds since 1970 on the machine's clock, which may be set.
    pub fn wall_ms(&self) -> i64 {
        self.host.borrow().wall_ms(self.now())
    }

    /// Waits until a virtual time.
    pub fn sleep_until(&self, at: u64) -> Sleep {
        self.executor.sleep_until(at)
    }

    /// Waits for so many milliseconds.
    pub fn sleep(&self, ms: u64) -> Sleep {
        self.executor.sleep_until(self.now().saturating_add(ms))
    }

    /// Waits for a time, rounded up to milliseconds.
    pub fn pause(&self, time: Duration) -> Sleep {
        let ms = u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX / 4);
        self.sleep(ms)
    }

    /// Starts a task.
    pub fn spawn(&self, group: Group, future: impl Future<Output = ()> + 'static) {
        self.executor.spawn(group, future);
    }

    /// A number of the range.
    pub fn draw(&self, range: std::ops::RangeInclusive<u64>) -> u64 {
        self.rng.borrow_mut().u64(range)
    }

    /// True so many times in a thousand.
    pub fn chance(&self, per_mille: u64) -> bool {
        per_mille > 0 && self.rng.borrow_mut().u64(0..1000) < per_mille
    }

    /// 0..1.
    pub fn jitter(&self) -> f64 {
        self.rng.borrow_mut().f64()
    }

    /// A generator of its own.
    pub fn fork(&self) -> fastrand::Rng {
        self.rng.borrow_mut().fork()
    }

    /// One of these.
    pub fn choose<T: Clone>(&self, items: &[T]) -> Option<T> {
        if items.is_empty() {
            return None;
        }
        let at = self.rng.borrow_mut().usize(0..items.len());
        Some(items[at].clone())
    }

    /// Notes what happened; use [`super::trace::trace!`].
    pub fn note(&self, place: u32, numbers: &[u64], line: impl FnOnce() -> String) {
        let now = self.now();
        self.trace.borrow_mut().note(now, place, numbers, line);
    }

    /// The hash of the trace.
    pub fn hash(&self) -> u64 {
        self.trace.borrow().hash()
    }

    /// The latest lines of the trace.
    pub fn lines(&self) -> Vec<String> {
        self.trace.borrow().lines()
    }

    /// An invariant does not hold.
    pub fn violated(&self, invariant: &str, what: impl Into<String>) {
        let what = what.into();
        trace!(self, [0], "VIOLATED {invariant}: {what}");
        self.judge
            .borrow_mut()
            .violate(format!("{invariant}: {what}"));
    }

    /// Whether everything has come to rest.
    pub fn is_done(&self) -> bool {
        self.done.get()
    }

    /// Something that the invariants are about has changed.
    pub fn touch(&self) {
        self.touched.set(true);
    }
}

use super::trace::trace;
