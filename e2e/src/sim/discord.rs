//! Discord, as far as its rules reach: sessions with sequence numbers and resume buffers, IDENTIFY
//! buckets, the day's budget, interactions that can be answered once.
//!
//! It is also a judge: what it sees is what counts, whatever the fleet believes.

mod rest;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    config::Config,
    executor::WORLD,
    host::Pid,
    pipe::{self, pipe},
    trace::trace,
    world::Sim,
};

/// Discord's rule: between two IDENTIFYs of a bucket (discord-rules).
const BUCKET_MS: u64 = 5_000;
const DAY_MS: u64 = 24 * 3_600_000;
/// Discord's clock when the run began, in milliseconds since 2015, where the time in ids begins. It never
/// jumps.
const SNOWFLAKE_MS: u64 = 1_790_000_000_000 - 1_420_070_400_000;
/// Events that a session keeps for a replay.
const BUFFER_MAX: usize = 2_000;
/// Jitter of the way to Discord; together with a permit's validity it stays below the ledger's margin.
const JITTER_MS: u64 = 40;

pub use rest::{Original, RestError, answer, follow, limits, original};

/// Names a session.
pub type SessionId = u64;
/// A shard and of how many.
pub type Tuple = (u32, u32);

/// From the gateway to a bot.
#[derive(Debug, Clone)]
pub enum FromGateway {
    /// Opcode 10.
    Hello,
    /// Opcode 0.
    Dispatch {
        /// Its number.
        seq: u64,
        /// What.
        event: Event,
    },
    /// READY.
    Ready {
        /// The new session.
        session: SessionId,
    },
    /// RESUMED.
    Resumed {
        /// The number of the session's newest event.
        seq: u64,
    },
    /// Opcode 7.
    Reconnect,
    /// Opcode 9.
    Invalid {
        /// Its `d`.
        resumable: bool,
    },
    /// A close frame.
    Close(Option<u16>),
}

/// What happened in a guild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Unique.
    pub id: u64,
    /// It wants an answer.
    pub interaction: bool,
}

struct Session {
    tuple: Tuple,
    seq: u64,
    buffer: VecDeque<(u64, Event)>,
    /// Events that nobody has taken yet, by number.
    pending: BTreeMap<u64, Event>,
    conn: Option<u64>,
    lost_at: u64,
    void: bool,
    /// A RESUME of it came to nothing although it was there.
    refusals: u32,
    /// Its process has handed it to the agent, which has written it down.
    deposited: bool,
}

struct Conn {
    pid: Pid,
    sender: pipe::Sender<FromGateway>,
    /// The bot has sent IDENTIFY or RESUME for this shard.
    claims: Option<Tuple>,
    session: Option<SessionId>,
    established: bool,
    /// Nothing arrives any more, in neither direction; nobody knows yet.
    silent: bool,
    /// The bot has not closed its end.
    bot_open: bool,
}

#[derive(Default)]
struct Interaction {
    created: u64,
    answered: Option<u64>,
    finished: Option<u64>,
    /// A session that was to bring it ended by Discord's doing.
    excused: bool,
    /// Someone has dealt with it for good.
    settled: bool,
    /// Who ran its command, and whether that is over.
    runs: Vec<(Pid, bool)>,
    tuples: Vec<Tuple>,
}

/// What Discord has seen of a process on a shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// IDENTIFYs.
    pub identifies: u64,
    /// RESUMEs that it took.
    pub resumes: u64,
    /// Events sent again by them.
    pub replayed: u64,
    /// When it did one of them last.
    pub last_at: u64,
}

/// See the module's documentation.
pub struct Discord {
    sessions: BTreeMap<SessionId, Session>,
    conns: BTreeMap<u64, Conn>,
    interactions: BTreeMap<u64, Interaction>,
    next: u64,
    last_identify: BTreeMap<u32, u64>,
    identifies: VecDeque<u64>,
    /// Moment of the day at which the count starts again.
    phase: u64,
    used_before: u32,
    /// Shard counts of sets that serve or are about to.
    serving: BTreeSet<u32>,
    accounts: BTreeMap<(Pid, Tuple), Account>,
    /// Counters for tests.
    pub counts: Counts,
}

/// What was seen in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// IDENTIFYs.
    pub identifies: u64,
    /// Sessions resumed.
    pub resumes: u64,
    /// Events sent.
    pub events: u64,
    /// Events whose session ended, by Discord's doing, before they were taken.
    pub lost: u64,
    /// RESUMEs refused.
    pub refused: u64,
}

impl Discord {
    /// With no connection.
    pub fn new(config: &Config) -> Self {
        Self {
            sessions: BTreeMap::new(),
            conns: BTreeMap::new(),
            interactions: BTreeMap::new(),
            next: 1,
            last_identify: BTreeMap::new(),
            identifies: VecDeque::new(),
            phase: config.seed.wrapping_mul(0x9e37_79b9) % DAY_MS,
            used_before: 0,
            serving: BTreeSet::new(),
            accounts: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Someone else has used up this much of the day.
    pub fn spend_elsewhere(&mut self, identifies: u32) {
        self.used_before = identifies;
    }

    /// Connections that a bot believes in: process, shard.
    pub fn claims(&self) -> impl Iterator<Item = (Pid, Tuple)> + '_ {
        self.conns
            .values()
            .filter(|conn| conn.bot_open)
            .filter_map(|conn| Some((conn.pid, conn.claims?)))
    }

    /// Open connections.
    pub fn conns(&self) -> Vec<u64> {
        self.conns
            .iter()
            .filter(|(_, conn)| conn.bot_open)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Open connections of a process.
    pub fn conns_of(&self, pid: Pid) -> Vec<u64> {
        let own = self.conns.iter().filter(|(_, conn)| conn.pid == pid);
        own.map(|(id, _)| *id).collect()
    }

    /// Shards with an established session.
    pub fn served(&self) -> Vec<Tuple> {
        let mut served: Vec<Tuple> = self
            .conns
            .values()
            .filter(|conn| conn.established && conn.bot_open && !conn.silent)
            .filter_map(|conn| conn.claims)
            .collect();
        served.sort_unstable();
        served
    }

    /// The deposit of this session is written down: from now on it may not be forgotten.
    pub fn deposited(&mut self, session: SessionId) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.deposited = true;
        }
    }

    /// These sets are gone for good, and with them the way back to their sessions.
    pub fn abandoned(&mut self, count: u32) {
        for session in self.sessions.values_mut() {
            if session.tuple.1 == count {
                session.deposited = false;
            }
        }
    }

    /// What sets serve, by their shard counts.
    pub fn serve(&mut self, counts: BTreeSet<u32>) {
        self.serving = counts;
    }

    /// What was seen of a process on a shard.
    pub fn account(&self, pid: Pid, tuple: Tuple) -> Account {
        self.accounts
            .get(&(pid, tuple))
            .copied()
            .unwrap_or_default()
    }

    /// Someone has dealt with an interaction for good, or knows that someone has.
    pub fn settled(&mut self, id: u64) {
        if let Some(known) = self.interactions.get_mut(&id) {
            known.settled = true;
        }
    }

    /// Interactions that reached a session and that nobody has dealt with: id, created, shards.
    pub fn unsettled(&self) -> Option<(u64, u64, Vec<Tuple>)> {
        let open =
            |known: &&Interaction| !known.settled && !known.excused && !known.tuples.is_empty();
        let (id, known) = self.interactions.iter().find(|(_, known)| open(known))?;
        Some((*id, known.created, known.tuples.clone()))
    }

    /// IDENTIFYs that are left of the day.
    pub fn remaining(&self, sim: &Sim) -> u32 {
        sim.config.total.saturating_sub(self.used(sim.now()))
    }

    /// Ends a session. What it was to bring is lost, by Discord's doing.
    fn end_session(&mut self, id: SessionId, excuses: bool) {
        let Some(session) = self.sessions.get_mut(&id).filter(|session| !session.void) else {
            return;
        };
        session.void = true;
        self.counts.lost += session.pending.len() as u64;
        for event in session.pending.values().filter(|_| excuses) {
            if let Some(known) = self.interactions.get_mut(&event.id) {
                known.excused = true;
            }
        }
    }

    /// What was written down is gone, as after a loss of power.
    pub fn undeposit_all(&mut self) {
        for session in self.sessions.values_mut() {
            session.deposited = false;
        }
    }

    /// The bot has dealt with this event for good.
    pub fn taken(&mut self, session: SessionId, seq: u64) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.pending.remove(&seq);
        }
    }

    /// Events of living sessions that nobody has dealt with: session, number, event.
    pub fn untaken(&self) -> Vec<(Tuple, u64, Event)> {
        self.sessions
            .values()
            .filter(|session| !session.void && session.conn.is_some())
            .flat_map(|session| {
                let tuple = session.tuple;
                session
                    .pending
                    .iter()
                    .map(move |(seq, event)| (tuple, *seq, *event))
            })
            .collect()
    }

    /// Ends the sessions that have been without a connection for too long.
    pub fn expire(&mut self, sim: &Sim) {
        let now = sim.now();
        let weather = sim.weather.borrow();
        let mut over = Vec::new();
        for (id, session) in &self.sessions {
            // Where sessions outlive an outage, their time begins with its end.
            let since = if sim.config.outage_keeps {
                session.lost_at.max(weather.outage_until)
            } else {
                session.lost_at
            };
            if session.conn.is_none() && since + sim.config.window_ms < now && !session.void {
                // That of a set which is no more was nobody's any more.
                over.push((*id, self.serving.contains(&session.tuple.1)));
            }
        }
        for (id, excuses) in over {
            self.end_session(id, excuses);
        }
        self.sessions
            .retain(|_, session| !session.void || session.conn.is_some());
    }

    fn used(&self, now: u64) -> u32 {
        let start = (now + self.phase) / DAY_MS * DAY_MS;
        let own = self
            .identifies
            .iter()
            .filter(|at| **at + self.phase >= start)
            .count();
        let before = if start == 0 { self.used_before } else { 0 };
        own as u32 + before
    }
}

/// A bot's end of a connection. Dropping it closes the socket.
pub struct Gateway {
    sim: Sim,
    /// Its number.
    pub conn: u64,
    receiver: pipe::Receiver<FromGateway>,
}

impl Gateway {
    /// The next message; `None` when the connection is broken.
    pub async fn recv(&mut self) -> Option<FromGateway> {
        self.receiver.recv().await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        {
            let mut discord = self.sim.discord.borrow_mut();
            if let Some(conn) = discord.conns.get_mut(&self.conn) {
                conn.bot_open = false;
            }
        }
        self.sim.touch();
        let (sim, conn) = (self.sim.clone(), self.conn);
        self.sim.spawn(WORLD, async move {
            sim.sleep(one_way(&sim)).await;
            disconnect(&sim, conn);
        });
    }
}

fn one_way(sim: &Sim) -> u64 {
    sim.config.network_ms + sim.draw(0..=JITTER_MS)
}

/// Opens a connection.
pub async fn connect(sim: &Sim, pid: Pid, by_resume_url: bool) -> Option<Gateway> {
    sim.sleep(2 * one_way(sim)).await;
    let (down, dead) = {
        let weather = sim.weather.borrow();
        let now = sim.now();
        (weather.outage_until > now, weather.dead_urls_until > now)
    };
    if down || (dead && by_resume_url) {
        // Refused at once, or no answer at all.
        if sim.chance(300) {
            sim.sleep(10_000).await;
        }
        return None;
    }
    let (sender, receiver) = pipe(sim);
    sender.send(sim.now() + one_way(sim), FromGateway::Hello);
    let conn = {
        let mut discord = sim.discord.borrow_mut();
        let number = discord.number();
        discord.conns.insert(
            number,
            Conn {
                pid,
                sender,
                claims: None,
                session: None,
                established: false,
                silent: false,
                bot_open: true,
            },
        );
        number
    };
    Some(Gateway {
        sim: sim.clone(),
        conn,
        receiver,
    })
}

fn claim(sim: &Sim, conn: u64, tuple: Tuple) {
    if let Some(conn) = sim.discord.borrow_mut().conns.get_mut(&conn) {
        conn.claims = Some(tuple);
    }
    sim.touch();
}

/// The bot sends IDENTIFY.
pub fn identify(sim: &Sim, conn: u64, tuple: Tuple) {
    claim(sim, conn, tuple);
    let sim_later = sim.clone();
    let delay = one_way(sim);
    sim.spawn(WORLD, async move {
        let sim = sim_later;
        sim.sleep(delay).await;
        identified(&sim, conn, tuple);
    });
}

fn identified(sim: &Sim, number: u64, tuple: Tuple) {
    let now = sim.now();
    let mut violations = Vec::new();
    {
        let mut guard = sim.discord.borrow_mut();
        let discord = &mut *guard;
        discord.expire(sim);
        let Some(conn) = discord.conns.get(&number) else {
            return;
        };
        if conn.silent {
            return;
        }
        let pid = conn.pid;
        let bucket = tuple.0 % sim.config.max_concurrency;
        if let Some(last) = discord.last_identify.insert(bucket, now)
            && now - last < BUCKET_MS
        {
            violations.push((
                "2 (buckets)",
                format!(
                    "bucket {bucket}: IDENTIFY of shard {} only {} ms after the last",
                    tuple.0,
                    now - last
                ),
            ));
        }
        while discord
            .identifies
            .front()
            .is_some_and(|at| at + DAY_MS <= now)
        {
            discord.identifies.pop_front();
        }
        discord.identifies.push_back(now);
        discord.counts.identifies += 1;
        let spendable = sim.config.total - sim.config.reserve;
        if discord.identifies.len() as u32 > spendable {
            violations.push((
                "2 (reserve)",
                format!(
                    "{} IDENTIFYs within a day, {spendable} may be spent",
                    discord.identifies.len()
                ),
            ));
        }
        if discord.used(now) > sim.config.total {
            violations.push(("2 (budget)", "the token is reset".to_owned()));
        }
        let wasted = discord.sessions.values().find(|session| {
            session.tuple == tuple && !session.void && session.deposited && session.refusals == 0
        });
        if let Some(session) = wasted {
            let lost_at = session.lost_at;
            violations.push((
                "no IDENTIFY is wasted",
                format!("shard {} identifies although its session (lost at {lost_at} ms) could be resumed", tuple.0),
            ));
        }
        trace!(
            sim,
            [pid, tuple.0],
            "discord: IDENTIFY of shard {}/{} by pid {pid}",
            tuple.0,
            tuple.1
        );
        let account = discord.accounts.entry((pid, tuple)).or_default();
        account.identifies += 1;
        account.last_at = now;
        // Whatever was there before is given up.
        let before: Vec<SessionId> = discord
            .sessions
            .iter()
            .filter(|(_, session)| session.tuple == tuple)
            .map(|(id, _)| *id)
            .collect();
        for session in before {
            discord.end_session(session, true);
        }
        let id = discord.number();
        discord.sessions.insert(
            id,
            Session {
                tuple,
                seq: 1,
                buffer: VecDeque::new(),
                pending: BTreeMap::new(),
                conn: Some(number),
                lost_at: now,
                void: false,
                refusals: 0,
                deposited: false,
            },
        );
        if let Some(conn) = discord.conns.get_mut(&number) {
            conn.session = Some(id);
            conn.established = true;
            let at = now + one_way(sim);
            conn.sender.send(at, FromGateway::Ready { session: id });
        }
    }
    for (invariant, what) in violations {
        sim.violated(invariant, what);
    }
    sim.touch();
}

/// The bot sends RESUME.
pub fn resume(sim: &Sim, conn: u64, tuple: Tuple, session: SessionId, seq: u64) {
    claim(sim, conn, tuple);
    let sim_later = sim.clone();
    let delay = one_way(sim);
    sim.spawn(WORLD, async move {
        let sim = sim_later;
        sim.sleep(delay).await;
        resumed(&sim, conn, session, seq);
    });
}

fn resumed(sim: &Sim, number: u64, id: SessionId, seq: u64) {
    let now = sim.now();
    let (cut, given_up) = {
        let mut guard = sim.discord.borrow_mut();
        let discord = &mut *guard;
        discord.expire(sim);
        let Some(conn) = discord.conns.get_mut(&number) else {
            return;
        };
        if conn.silent {
            return;
        }
        let pid = conn.pid;
        let at = now + one_way(sim);
        let tuple = discord.sessions.get(&id).map(|session| session.tuple);
        let given_up = discord.sessions.iter().find_map(|(newer, session)| {
            let lives = !session.void && session.deposited && session.refusals == 0;
            (*newer > id && lives && Some(session.tuple) == tuple).then_some(*newer)
        });
        let session = discord
            .sessions
            .get_mut(&id)
            .filter(|session| !session.void);
        let oldest = session
            .as_ref()
            .and_then(|session| Some(session.buffer.front()?.0));
        let Some(session) = session.filter(|session| {
            seq <= session.seq
                && (seq == session.seq || oldest.is_some_and(|oldest| oldest <= seq + 1))
        }) else {
            discord.counts.refused += 1;
            trace!(
                sim,
                [pid, id],
                "discord: RESUME of session {id} by pid {pid} refused"
            );
            conn.sender
                .send(at, FromGateway::Invalid { resumable: false });
            discord.end_session(id, true);
            return;
        };
        if sim.weather.borrow().refuse_resumes > now {
            // Something is wrong over there: closed without a word about the session.
            session.refusals += 1;
            conn.sender.send(at, FromGateway::Close(Some(4000)));
            return;
        }
        trace!(
            sim,
            [pid, id, seq, session.seq],
            "discord: RESUME of shard {} by pid {pid} from {seq} (newest {})",
            session.tuple.0,
            session.seq
        );
        discord.counts.resumes += 1;
        let account = discord.accounts.entry((pid, session.tuple)).or_default();
        account.resumes += 1;
        account.replayed += session.seq - seq;
        account.last_at = now;
        let cut = session.conn.replace(number).filter(|old| *old != number);
        conn.session = Some(id);
        conn.established = true;
        for (event_seq, event) in session.buffer.iter().filter(|(event, _)| *event > seq) {
            let dispatch = FromGateway::Dispatch {
                seq: *event_seq,
                event: *event,
            };
            conn.sender.send(at, dispatch);
        }
        conn.sender
            .send(at, FromGateway::Resumed { seq: session.seq });
        (cut, given_up)
    };
    if let Some(newer) = given_up {
        let what = format!("session {id} is resumed although the newer {newer} could be");
        sim.violated("no session is given up", what);
    }
    if let Some(old) = cut {
        // The session has moved: the old connection is closed.
        let sender = sim.discord.borrow_mut().conns.remove(&old);
        if let Some(conn) = sender {
            conn.sender.send(now, FromGateway::Close(Some(4000)));
        }
    }
    sim.touch();
}

/// The connection is gone at Discord's end; the session waits.
pub fn disconnect(sim: &Sim, number: u64) {
    let mut discord = sim.discord.borrow_mut();
    let Some(conn) = discord.conns.remove(&number) else {
        return;
    };
    if let Some(id) = conn.session
        && let Some(session) = discord.sessions.get_mut(&id)
        && session.conn == Some(number)
    {
        session.conn = None;
        session.lost_at = sim.now();
    }
    drop(discord);
    sim.touch();
}

/// What Discord, or the way to it, does to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// Opcode 7.
    Reconnect,
    /// Opcode 9.
    Invalid(bool),
    /// A close frame.
    Close(Option<u16>),
    /// The transport breaks.
    Cut,
    /// Nothing arrives any more; the bot notices after so many milliseconds.
    Silence(u64),
}

/// Strikes a connection.
pub fn strike(sim: &Sim, number: u64, blow: Blow) {
    let now = sim.now();
    let silence = {
        let mut guard = sim.discord.borrow_mut();
        let discord = &mut *guard;
        let Some(conn) = discord.conns.get_mut(&number) else {
            return;
        };
        // Of a session that it has not heard of yet it says nothing.
        let blow = match blow {
            Blow::Invalid(false) | Blow::Close(Some(4007 | 4009)) if conn.session.is_none() => {
                Blow::Close(Some(4000))
            }
            blow => blow,
        };
        trace!(
            sim,
            [number, conn.pid],
            "discord: {blow:?} to pid {}",
            conn.pid
        );
        let at = now + one_way(sim);
        let voids = match blow {
            Blow::Reconnect => {
                conn.sender.send(at, FromGateway::Reconnect);
                false
            }
            Blow::Invalid(resumable) => {
                conn.sender.send(at, FromGateway::Invalid { resumable });
                !resumable
            }
            Blow::Close(code) => {
                conn.sender.send(at, FromGateway::Close(code));
                matches!(code, Some(4007 | 4009 | 1000 | 1001))
            }
            Blow::Cut => {
                conn.sender.cut();
                false
            }
            Blow::Silence(_) => {
                conn.silent = true;
                false
            }
        };
        if voids && let Some(id) = conn.session {
            discord.end_session(id, true);
        }
        if let Blow::Silence(ms) = blow {
            Some(ms)
        } else {
            None
        }
    };
    match silence {
        None => {
            // Opcodes 7 and 9 leave it to the bot to close.
            if matches!(blow, Blow::Close(_) | Blow::Cut) {
                disconnect(sim, number);
            }
        }
        Some(ms) => {
            let later = sim.clone();
            sim.spawn(WORLD, async move {
                let sim = later;
                sim.sleep(ms).await;
                if let Some(conn) = sim.discord.borrow().conns.get(&number) {
                    conn.sender.cut();
                }
                disconnect(&sim, number);
            });
        }
    }
}

/// Something happens in a guild; every session that holds its shard hears of it.
pub fn happen(sim: &Sim, guild: u64, interaction: bool) {
    let now = sim.now();
    let mut guard = sim.discord.borrow_mut();
    let discord = &mut *guard;
    discord.expire(sim);
    // Its lower bits count, as Discord's do.
    let number = discord.number();
    let event = Event {
        id: (SNOWFLAKE_MS + now) << 22 | number & 0x3f_ffff,
        interaction,
    };
    let mut tuples = Vec::new();
    for session in discord
        .sessions
        .values_mut()
        .filter(|session| !session.void)
    {
        if guild % u64::from(session.tuple.1) != u64::from(session.tuple.0) {
            continue;
        }
        // One that nobody wants any more brings nothing.
        if discord.serving.is_empty() || discord.serving.contains(&session.tuple.1) {
            tuples.push(session.tuple);
        }
        session.seq += 1;
        let seq = session.seq;
        session.pending.insert(seq, event);
        session.buffer.push_back((seq, event));
        if session.buffer.len() > BUFFER_MAX {
            session.buffer.pop_front();
        }
        if let Some(conn) = session.conn.and_then(|conn| discord.conns.get(&conn))
            && !conn.silent
        {
            let at = now + one_way(sim);
            conn.sender.send(at, FromGateway::Dispatch { seq, event });
        }
    }
    if !tuples.is_empty() {
        discord.counts.events += 1;
    }
    if interaction {
        let answer = Interaction {
            created: now,
            // The set whose it is has no session, and so has no way to hear of it.
            excused: tuples.len() < discord.serving.len(),
            tuples,
            ..Interaction::default()
        };
        discord.interactions.insert(event.id, answer);
    }
}

/// A command runs; dropped when that is over.
pub struct Running {
    sim: Sim,
    id: u64,
    pid: Pid,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut discord = self.sim.discord.borrow_mut();
        let known = discord.interactions.get_mut(&self.id);
        for run in known.into_iter().flat_map(|known| &mut known.runs) {
            run.1 |= run.0 == self.pid;
        }
    }
}

/// The command of an interaction begins to run. `fenced`: it was deferred first, which only one can do.
pub fn runs(sim: &Sim, id: u64, pid: Pid, fenced: bool) -> Running {
    let before = {
        let mut discord = sim.discord.borrow_mut();
        let known = discord.interactions.entry(id).or_default();
        let before = known.runs.clone();
        known.runs.push((pid, false));
        before
    };
    if before.iter().any(|(_, over)| !over) {
        let what = format!("interaction {id} is handled by pid {pid} while {before:?} are at it");
        sim.violated("1 (each event once)", what);
    } else if !before.is_empty() && !fenced {
        let what = format!("interaction {id} is handled by pid {pid} although {before:?} did");
        sim.violated("1 (each event once)", what);
    }
    Running {
        sim: sim.clone(),
        id,
        pid,
    }
}
