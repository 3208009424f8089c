//! Which processes a table shows and in which order.
//!
//! Kept between updates: a delta re-examines only the processes it changed, and re-sorts an order
//! that is nearly sorted already, which a merge sort does in one pass. Ten thousand processes cost
//! nothing while nothing happens.

use std::cmp::Ordering;

use regex::{Regex, RegexBuilder};
use tanako_proto::fleet::v1::Process;

use super::{
    state::{self, Model},
    text::natural,
};

/// What a table can be sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SortKey {
    #[default]
    Name,
    State,
    Host,
    Shards,
    Guilds,
    Events,
    Latency,
    Cpu,
    Rss,
    Restarts,
    Age,
}

impl SortKey {
    /// In the order `s` goes through them.
    pub const ALL: [Self; 11] = [
        Self::Name,
        Self::State,
        Self::Host,
        Self::Shards,
        Self::Guilds,
        Self::Events,
        Self::Latency,
        Self::Cpu,
        Self::Rss,
        Self::Restarts,
        Self::Age,
    ];

    /// As `:sort` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::State => "state",
            Self::Host => "host",
            Self::Shards => "shards",
            Self::Guilds => "guilds",
            Self::Events => "events",
            Self::Latency => "latency",
            Self::Cpu => "cpu",
            Self::Rss => "rss",
            Self::Restarts => "restarts",
            Self::Age => "age",
        }
    }

    /// The next one for `s`.
    pub fn next(self) -> Self {
        let at = Self::ALL.iter().position(|key| *key == self).unwrap_or(0);
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    /// Numbers start with the largest, words with the first.
    pub fn descends(self) -> bool {
        !matches!(self, Self::Name | Self::State | Self::Host | Self::Age)
    }

    fn compare(self, a: &Process, b: &Process) -> Ordering {
        let number = |x: f64, y: f64| x.total_cmp(&y);
        let order = match self {
            Self::Name => Ordering::Equal,
            Self::State => rank(a).cmp(&rank(b)),
            Self::Host => natural(&a.host, &b.host),
            Self::Shards => a.shards.len().cmp(&b.shards.len()),
            Self::Guilds => state::guilds(a).cmp(&state::guilds(b)),
            Self::Events => number(state::load(a), state::load(b)),
            Self::Latency => number(
                state::latency(a).unwrap_or(0.0),
                state::latency(b).unwrap_or(0.0),
            ),
            Self::Cpu => number(a.cpu_percent, b.cpu_percent),
            Self::Rss => a.rss_bytes.cmp(&b.rss_bytes),
            Self::Restarts => a.restarts.cmp(&b.restarts),
            Self::Age => a.uptime_s.cmp(&b.uptime_s),
        };
        if self.descends() {
            order.reverse()
        } else {
            order
        }
    }
}

/// The worst first.
fn rank(process: &Process) -> u8 {
    const ORDER: [&str; 8] = [
        "failed", "backoff", "stopping", "draining", "starting", "running", "stopped", "ready",
    ];
    ORDER
        .iter()
        .position(|state| *state == process.state)
        .map_or(0, |at| at as u8)
}

/// A filter as it was typed: a regex, `!` in front = does not match.
#[derive(Clone, Debug)]
pub struct Filter {
    typed: String,
    regex: Regex,
    inverse: bool,
}

impl Filter {
    /// Reads what was typed; `None` for nothing. Small letters match capitals too.
    pub fn parse(typed: &str) -> Result<Option<Self>, String> {
        let (inverse, pattern) = match typed.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, typed),
        };
        if pattern.is_empty() {
            return Ok(None);
        }
        let caseless = !pattern.chars().any(char::is_uppercase);
        let regex = RegexBuilder::new(pattern)
            .case_insensitive(caseless)
            .size_limit(1 << 20)
            .build()
            .map_err(|error| bad_regex(&error))?;
        Ok(Some(Self {
            typed: typed.to_owned(),
            regex,
            inverse,
        }))
    }

    /// As it was typed.
    pub fn typed(&self) -> &str {
        &self.typed
    }

    /// Whether `text` passes.
    pub fn accepts(&self, text: &str) -> bool {
        self.regex.is_match(text) != self.inverse
    }

    /// Where in `text` it matches; empty for an inverse filter.
    pub fn ranges(&self, text: &str) -> Vec<std::ops::Range<usize>> {
        if self.inverse {
            return Vec::new();
        }
        self.regex
            .find_iter(text)
            .take(64)
            .map(|m| m.range())
            .filter(|r| !r.is_empty())
            .collect()
    }

    fn accepts_process(&self, process: &Process) -> bool {
        let any = [
            &process.name,
            &process.host,
            &process.state,
            &process.bot,
            &process.kind,
        ]
        .into_iter()
        .any(|text| self.regex.is_match(text));
        any != self.inverse
    }
}

/// The last line of the regex crate's message says what is wrong; the rest draws it.
fn bad_regex(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text
        .lines()
        .last()
        .unwrap_or("")
        .trim()
        .trim_start_matches("error: ");
    format!("bad regex: {last}")
}

/// What a table shows.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Column to sort by.
    pub sort: SortKey,
    /// The other way round.
    pub reverse: bool,
    /// What to show only.
    pub filter: Option<Filter>,
    /// Only what needs attention.
    pub faults_only: bool,
    /// Only processes of this host.
    pub host: Option<String>,
}

impl Query {
    fn accepts(&self, model: &Model, process: &Process) -> bool {
        self.host.as_ref().is_none_or(|host| process.host == *host)
            && (!self.faults_only || model.is_fault(process))
            && self
                .filter
                .as_ref()
                .is_none_or(|filter| filter.accepts_process(process))
    }
}

/// The rows of a table as indexes into [`Model::processes`].
#[derive(Clone, Debug, Default)]
pub struct Rows {
    query: Query,
    order: Vec<u32>,
    shown: Vec<bool>,
    seen: Option<(u64, u64)>,
}

impl Rows {
    /// What is shown.
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// Changes what is shown; [`Rows::refresh`] then examines everything anew.
    pub fn query_mut(&mut self) -> &mut Query {
        self.seen = None;
        &mut self.query
    }

    /// Rows shown.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether nothing is shown.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Index of the process in `row`.
    pub fn at(&self, row: usize) -> Option<usize> {
        self.order.get(row).map(|at| *at as usize)
    }

    /// The process in `row`.
    pub fn process<'m>(&self, model: &'m Model, row: usize) -> Option<&'m Process> {
        model.processes().get(self.at(row)?)
    }

    /// The row of the process called `name`; `hint` is where it was.
    pub fn position(&self, model: &Model, name: &str, hint: usize) -> Option<usize> {
        let is = |row: usize| {
            self.process(model, row)
                .is_some_and(|process| process.name == name)
        };
        if is(hint) {
            Some(hint)
        } else {
            (0..self.len()).find(|row| is(*row))
        }
    }

    /// Brings the rows up to date with `model`, of which `dirty` processes changed.
    pub fn refresh(&mut self, model: &Model, dirty: &[u32]) {
        let now = (model.structure, model.generation);
        let processes = model.processes();
        // Names do not change: an order by name is still one when no row came or went.
        let mut sorted = self.query.sort == SortKey::Name;
        match self.seen {
            Some(seen) if seen == now => return,
            Some((structure, _)) if structure == model.structure && !self.query.faults_only => {
                let mut left = false;
                for at in dirty {
                    let at = *at as usize;
                    let shown = self.query.accepts(model, &processes[at]);
                    match (self.shown[at], shown) {
                        (false, true) => {
                            self.order.push(at as u32);
                            sorted = false;
                        }
                        (true, false) => left = true,
                        _ => {}
                    }
                    self.shown[at] = shown;
                }
                if left {
                    self.order.retain(|at| self.shown[*at as usize]);
                }
            }
            // A host that becomes unreachable makes faults of processes that did not change.
            _ => {
                sorted = false;
                self.shown = processes
                    .iter()
                    .map(|process| self.query.accepts(model, process))
                    .collect();
                self.order = (0..processes.len() as u32)
                    .filter(|at| self.shown[*at as usize])
                    .collect();
            }
        }
        self.seen = Some(now);
        if sorted {
            return;
        }
        let (sort, reverse) = (self.query.sort, self.query.reverse);
        self.order.sort_by(|a, b| {
            let (a, b) = (&processes[*a as usize], &processes[*b as usize]);
            let order = sort.compare(a, b).then_with(|| natural(&a.name, &b.name));
            if reverse { order.reverse() } else { order }
        });
    }
}
