//! What a plan has decided so far: each host's load and room, where each process is.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use super::{
    APART_HOSTS, Aim, Evenness, Host, HostState, Input, Process, Rules, Unplaced, Why, why,
};

/// Equally full hosts that are compared to keep a bot's processes apart; more would cost time and
/// change little.
const TIES_MAX: usize = 32;

/// Index of a host in [`Table::hosts`].
pub(super) type At = u32;
/// Index of a process in [`Table::processes`].
pub(super) type Id = u32;

/// Processes that any host treats alike: same bot, weight, memory, rules and pin.
#[derive(Clone)]
pub(super) struct Kind {
    pub bot: u32,
    pub weight: u64,
    pub memory: u64,
    pub rules: u32,
    /// It has one host where it belongs, which placement does not choose.
    pub fixed: bool,
    /// That host, if the fleet has it.
    pub pinned: Option<At>,
    /// For the kinds that also share everything but the bot.
    pub shape: u32,
}

#[derive(Clone)]
pub(super) struct Row<'a> {
    pub host: &'a Host,
    /// May get processes.
    pub open: bool,
    pub share: u64,
    pub load: u64,
    pub used: u32,
    pub memory: u64,
    /// What runs on it, by kind.
    pub on: BTreeMap<u32, BTreeSet<Id>>,
}

/// A relative load, ordered: fuller is greater.
#[derive(Clone, Copy)]
pub(super) struct Level {
    pub load: u64,
    pub share: u64,
}

impl Ord for Level {
    fn cmp(&self, other: &Self) -> Ordering {
        (u128::from(self.load) * u128::from(other.share))
            .cmp(&(u128::from(other.load) * u128::from(self.share)))
    }
}

impl PartialOrd for Level {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Level {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Level {}

#[derive(Clone)]
pub(super) struct Table<'a> {
    pub hosts: Vec<Row<'a>>,
    pub processes: Vec<&'a Process>,
    pub kinds: Vec<Kind>,
    pub rules: Vec<&'a Rules>,
    /// Kind of each process.
    pub kind: Vec<u32>,
    /// Where each was, if that host is known.
    pub was: Vec<Option<At>>,
    /// Where each is to be.
    pub at: Vec<Option<At>>,
    /// Why each moved first.
    pub why: Vec<Option<Why>>,
    /// Name of the host each was on, known or not.
    named: Vec<Option<&'a str>>,
    /// By rules and host: how many preferred labels it has; `None` = it lacks a required one.
    grade: Vec<Vec<Option<u32>>>,
    /// By rules and host: what anti-affinity compares.
    domain: Vec<Vec<u32>>,
    /// Processes of a bot in a domain of its anti-affinity.
    apart: HashMap<(u32, u32, u32), u32>,
    /// Processes of a bot on a host.
    count: HashMap<(u32, At), u32>,
    /// The processes of the same bot before and after.
    beside: Vec<[Option<Id>; 2]>,
    /// Open hosts of each share, emptiest first.
    by_share: BTreeMap<u64, BTreeSet<(u64, At)>>,
}

impl<'a> Table<'a> {
    pub fn new(input: &'a Input) -> Self {
        let mut index: HashMap<&str, At> = HashMap::new();
        let mut hosts = Vec::new();
        for host in &input.hosts {
            if index.contains_key(host.name.as_str()) {
                continue;
            }
            index.insert(&host.name, hosts.len() as At);
            hosts.push(Row {
                host,
                open: host.state == HostState::Present,
                share: u64::from(host.capacity.share.max(1)),
                load: 0,
                used: 0,
                memory: 0,
                on: BTreeMap::new(),
            });
        }
        let mut names = BTreeSet::new();
        let processes: Vec<&Process> = input
            .processes
            .iter()
            .filter(|process| names.insert(&process.name))
            .collect();
        let (mut kinds, mut rules) = (Vec::new(), Vec::new());
        let (mut bot_of, mut rules_of) = (HashMap::new(), BTreeMap::new());
        let (mut kind_of, mut shape_of) = (HashMap::new(), HashMap::new());
        let mut kind = Vec::with_capacity(processes.len());
        for process in &processes {
            let next = bot_of.len() as u32;
            let bot = *bot_of.entry(process.bot.as_str()).or_insert(next);
            let rule = *rules_of.entry(&*process.rules).or_insert_with(|| {
                rules.push(&*process.rules);
                rules.len() as u32 - 1
            });
            let pinned = process.pinned.as_deref();
            let weight = u64::from(process.weight.max(1));
            let memory = process.memory_bytes;
            let alone = process.rules.anti_affinity.is_some().then_some(bot);
            let shapes = shape_of.len() as u32;
            let shape = *shape_of
                .entry((weight, memory, rule, pinned, alone))
                .or_insert(shapes);
            kind.push(*kind_of.entry((bot, shape)).or_insert_with(|| {
                kinds.push(Kind {
                    bot,
                    weight,
                    memory,
                    rules: rule,
                    pinned: pinned.and_then(|name| index.get(name).copied()),
                    fixed: pinned.is_some(),
                    shape,
                });
                kinds.len() as u32 - 1
            }));
        }
        let mut by_share: BTreeMap<u64, BTreeSet<(u64, At)>> = BTreeMap::new();
        for (at, row) in hosts.iter().enumerate().filter(|(_, row)| row.open) {
            by_share.entry(row.share).or_default().insert((0, at as At));
        }
        let named: Vec<Option<&str>> = processes
            .iter()
            .map(|it| input.assignment.get(&it.name).map(String::as_str))
            .collect();
        let was: Vec<Option<At>> = named
            .iter()
            .map(|name| index.get((*name)?).copied())
            .collect();
        let mut table = Self {
            grade: rules.iter().map(|rule| grades(rule, &hosts)).collect(),
            domain: rules.iter().map(|rule| domains(rule, &hosts)).collect(),
            beside: neighbours(&processes),
            at: vec![None; processes.len()],
            why: vec![None; processes.len()],
            apart: HashMap::new(),
            count: HashMap::new(),
            hosts,
            kinds,
            rules,
            kind,
            was,
            named,
            by_share,
            processes,
        };
        for id in 0..table.processes.len() {
            if let Some(at) = table.was[id]
                && matches!(
                    table.hosts[at as usize].host.state,
                    HostState::Present | HostState::Cordoned
                )
            {
                table.put(id as Id, at);
            }
        }
        table
    }

    pub fn kind(&self, id: Id) -> &Kind {
        &self.kinds[self.kind[id as usize] as usize]
    }

    /// What has no host that may keep it: those with the fewest hosts to choose from first, then the
    /// largest.
    pub fn pending(&self, aim: Aim) -> Vec<Id> {
        let choice: Vec<usize> = self
            .kinds
            .iter()
            .map(|kind| {
                let hosts = 0..self.hosts.len() as At;
                let may = hosts.filter(|at| !kind.fixed && self.open_to(kind, *at));
                may.count()
            })
            .collect();
        let mut pending: Vec<Id> = (0..self.processes.len() as Id)
            .filter(|id| self.at[*id as usize].is_none())
            .filter(|id| aim != Aim::New || self.named[*id as usize].is_none())
            .collect();
        pending.sort_by(|a, b| {
            let key = |id: Id| {
                let (kind, process) = (self.kind(id), self.processes[id as usize]);
                (
                    choice[self.kind[id as usize] as usize],
                    std::cmp::Reverse((kind.memory, kind.weight)),
                    &process.bot,
                    process.order,
                    &process.name,
                )
            };
            key(*a).cmp(&key(*b))
        });
        pending
    }

    pub fn grade(&self, rules: u32, at: At) -> Option<u32> {
        self.grade[rules as usize][at as usize]
    }

    /// Whether the host is open to processes of this kind and has room for one more.
    pub fn fits(&self, kind: &Kind, at: At) -> bool {
        self.open_to(kind, at) && self.room(kind, at, None)
    }

    /// Whether the host may run processes of this kind, were there room.
    pub fn open_to(&self, kind: &Kind, at: At) -> bool {
        self.hosts[at as usize].open && self.grade(kind.rules, at).is_some()
    }

    /// Whether there is room for one of `kind`, were `without` not there.
    pub fn room(&self, kind: &Kind, at: At, without: Option<Id>) -> bool {
        let row = &self.hosts[at as usize];
        let (mut used, mut memory) = (row.used, row.memory);
        let mut apart = self.apart_count(kind, at);
        if let Some(other) = without.map(|id| self.kind(id)) {
            used -= 1;
            memory -= other.memory;
            if other.bot == kind.bot && other.rules == kind.rules {
                apart = apart.saturating_sub(1);
            }
        }
        apart == 0
            && row.host.capacity.processes.is_none_or(|most| used < most)
            && row
                .host
                .capacity
                .memory_bytes
                .is_none_or(|most| memory.saturating_add(kind.memory) <= most)
    }

    /// Processes of the kind's bot that its anti-affinity keeps away from the host.
    pub fn apart_count(&self, kind: &Kind, at: At) -> u32 {
        if self.rules[kind.rules as usize].anti_affinity.is_none() {
            return 0;
        }
        let domain = self.domain[kind.rules as usize][at as usize];
        let key = (kind.bot, kind.rules, domain);
        self.apart.get(&key).copied().unwrap_or(0)
    }

    /// Whether the host holds more than it can, or one it must not.
    pub fn over(&self, at: At) -> bool {
        let row = &self.hosts[at as usize];
        let capacity = &row.host.capacity;
        capacity.processes.is_some_and(|most| row.used > most)
            || capacity.memory_bytes.is_some_and(|most| row.memory > most)
    }

    pub fn level(&self, at: At, more: u64) -> Level {
        let row = &self.hosts[at as usize];
        Level {
            load: row.load + more,
            share: row.share,
        }
    }

    pub fn put(&mut self, id: Id, at: At) {
        self.account(id, at, true);
        self.at[id as usize] = Some(at);
    }

    pub fn take(&mut self, id: Id) {
        if let Some(at) = self.at[id as usize].take() {
            self.account(id, at, false);
        }
    }

    /// Moves it, and remembers why it moved first.
    pub fn shift(&mut self, id: Id, to: At, why: Why) {
        self.take(id);
        self.put(id, to);
        self.why[id as usize].get_or_insert(why);
    }

    /// The processes that are to be elsewhere than they are.
    pub fn moved(&self) -> Vec<Id> {
        (0..self.processes.len() as Id)
            .filter(|id| {
                let at = self.at[*id as usize];
                at.is_some() && at != self.was[*id as usize]
            })
            .collect()
    }

    fn account(&mut self, id: Id, at: At, more: bool) {
        let number = self.kind[id as usize];
        let kind = &self.kinds[number as usize];
        let row = &mut self.hosts[at as usize];
        let old = row.load;
        let count = self.count.entry((kind.bot, at)).or_default();
        let domain = self.domain[kind.rules as usize][at as usize];
        let apart = self
            .apart
            .entry((kind.bot, kind.rules, domain))
            .or_default();
        if more {
            row.load += kind.weight;
            row.used += 1;
            row.memory = row.memory.saturating_add(kind.memory);
            row.on.entry(number).or_default().insert(id);
            *count += 1;
            *apart += 1;
        } else {
            row.load -= kind.weight;
            row.used -= 1;
            row.memory = row.memory.saturating_sub(kind.memory);
            if let Some(alike) = row.on.get_mut(&number) {
                alike.remove(&id);
                if alike.is_empty() {
                    row.on.remove(&number);
                }
            }
            *count -= 1;
            *apart -= 1;
        }
        if row.open
            && let Some(order) = self.by_share.get_mut(&row.share)
        {
            order.remove(&(old, at));
            order.insert((row.load, at));
        }
    }

    /// The emptiest host that can take one of the kind, with at least `grade` preferred labels: those
    /// with most labels first, then the least load, then the fewest of the bot, then no neighbour.
    pub fn best(&self, id: Id, not: Option<At>, grade: u32) -> Option<At> {
        let kind = self.kind(id);
        if kind.fixed {
            return None;
        }
        let most = self.rules[kind.rules as usize].preferred.len() as u32;
        (grade..=most)
            .rev()
            .find_map(|grade| self.best_of_grade(id, kind, not, grade))
    }

    fn best_of_grade(&self, id: Id, kind: &Kind, not: Option<At>, grade: u32) -> Option<At> {
        let mut ties: Vec<At> = Vec::new();
        let mut least: Option<Level> = None;
        for order in self.by_share.values() {
            let (mut load, mut found) = (None, 0);
            for &(own, at) in order {
                if load.is_some_and(|load| own > load) || found >= TIES_MAX {
                    break;
                }
                let level = self.level(at, kind.weight);
                if least.is_some_and(|least| level > least) {
                    break;
                }
                if Some(at) == not
                    || self.grade(kind.rules, at) != Some(grade)
                    || !self.fits(kind, at)
                {
                    continue;
                }
                if least.is_none_or(|least| level < least) {
                    ties.clear();
                    least = Some(level);
                }
                load = Some(own);
                found += 1;
                ties.push(at);
            }
        }
        ties.into_iter().min_by_key(|at| self.closeness(id, *at))
    }

    /// How much the host holds of what should be elsewhere: of the bot, of its neighbours.
    pub fn closeness(&self, id: Id, at: At) -> (u32, usize, At) {
        let bot = self.kind(id).bot;
        let neighbours = self.beside[id as usize]
            .into_iter()
            .flatten()
            .filter(|other| self.at[*other as usize] == Some(at))
            .count();
        (self.count_of(bot, at), neighbours, at)
    }

    /// Processes of the bot on the host.
    pub fn count_of(&self, bot: u32, at: At) -> u32 {
        self.count.get(&(bot, at)).copied().unwrap_or(0)
    }

    pub fn evenness(&self) -> Evenness {
        let open = || self.hosts.iter().filter(|row| row.open);
        let (load, share) = open().fold((0_u64, 0_u64), |(load, share), row| {
            (load + row.load, share + row.share)
        });
        if load == 0 {
            return Evenness::default();
        }
        let mean = load as f64 / share as f64;
        let relative = || open().map(|row| row.load as f64 / row.share as f64 / mean);
        Evenness {
            fullest: relative().fold(0.0, f64::max),
            emptiest: relative().fold(f64::INFINITY, f64::min),
        }
    }

    /// What is left, in words, in the order of the input.
    pub fn unplaced(&self, pending: &[Id]) -> Vec<Unplaced> {
        let mut left: Vec<Id> = pending.to_vec();
        left.sort_unstable();
        let mut known: HashMap<u32, String> = HashMap::new();
        left.into_iter()
            .map(|id| Unplaced {
                process: self.processes[id as usize].name.clone(),
                on: self.named[id as usize].map(str::to_owned),
                reason: known
                    .entry(self.kind[id as usize])
                    .or_insert_with(|| why::unplaced(self, id))
                    .clone(),
            })
            .collect()
    }

    /// Name of the host the process was on, known or not.
    pub fn from(&self, id: Id) -> Option<String> {
        self.named[id as usize].map(str::to_owned)
    }

    /// Why a process is placed that has no host that may keep it.
    pub fn cause(&self, id: Id) -> Why {
        match (self.named[id as usize], self.was[id as usize]) {
            (None, _) => Why::New,
            (Some(_), Some(at)) if self.hosts[at as usize].host.state == HostState::Draining => {
                Why::Drain
            }
            (Some(_), _) => Why::Lost,
        }
    }
}

fn grades(rules: &Rules, hosts: &[Row]) -> Vec<Option<u32>> {
    let has = |row: &Row, (key, value): (&String, &String)| row.host.labels.get(key) == Some(value);
    hosts
        .iter()
        .map(|row| {
            rules.required.iter().all(|it| has(row, it)).then(|| {
                let liked = rules.preferred.iter().filter(|it| has(row, *it));
                liked.count() as u32
            })
        })
        .collect()
}

/// Hosts with the same number must not both run processes of the bot. One without the label is alone.
fn domains(rules: &Rules, hosts: &[Row]) -> Vec<u32> {
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let alone = hosts.len() as u32;
    hosts
        .iter()
        .enumerate()
        .map(|(at, row)| {
            let label = rules
                .anti_affinity
                .as_deref()
                .filter(|key| *key != APART_HOSTS)
                .and_then(|key| row.host.labels.get(key));
            match label {
                None => at as u32,
                Some(value) => {
                    let next = alone + numbers.len() as u32;
                    *numbers.entry(value).or_insert(next)
                }
            }
        })
        .collect()
}

fn neighbours(processes: &[&Process]) -> Vec<[Option<Id>; 2]> {
    let mut order: Vec<Id> = (0..processes.len() as Id).collect();
    let key = |id: Id| {
        let process = processes[id as usize];
        (&process.bot, process.order, &process.name)
    };
    order.sort_by(|a, b| key(*a).cmp(&key(*b)));
    let mut beside = vec![[None; 2]; processes.len()];
    for pair in order.windows(2) {
        let (first, second) = (pair[0] as usize, pair[1] as usize);
        if processes[first].bot == processes[second].bot {
            beside[first][1] = Some(pair[1]);
            beside[second][0] = Some(pair[0]);
        }
    }
    beside
}
