//! One question to every shard of a bot, on all hosts, and what each says to it.
//!
//! Asked by `tanakoctl broadcast` and by the bots themselves, over their agent. Programs know questions
//! by name; nothing is evaluated. Every shard of the bot is in the result: with its answer, or with why
//! there is none.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::BoxFuture, future::join, stream};
use serde::Deserialize;
use tanako_fleet::{ProcessName, ProcessSpec};
use tanako_proto::{
    fleet::v1::{Problem, Process},
    host::v1::ShardsQuestion,
    worker::v1::{Ask, BroadcastReply, ShardAnswer, command::Command},
};
use tokio::sync::{Semaphore, watch};

use crate::{
    desired::Desired,
    supervisor::Table,
    worker::{CommandError, Workers},
};

/// Broadcasts under way at one agent; the next one is refused.
const AT_ONCE: usize = 4;
/// Questions of other agents under way.
const VISITS_AT_ONCE: usize = 64;
/// Processes asked at once by one broadcast.
const PROCESSES_AT_ONCE: usize = 64;
/// Hosts asked at once by one broadcast; each may have a large answer.
const HOSTS_AT_ONCE: usize = 32;
/// Longest name of a question.
const QUESTION_MAX: usize = 40;
/// Longest text that goes with it.
const JSON_MAX: usize = 16 * 1024;
/// Longest answer of one shard.
const ANSWER_MAX: usize = 64 * 1024;
/// All answers together.
const ANSWERS_MAX: usize = 4 << 20;
/// Hosts named in one message.
const NAMED_MAX: usize = 5;
/// How long all answers together may take.
const WITHIN: Duration = Duration::from_secs(5);
const WITHIN_MAX: Duration = Duration::from_secs(60);
/// What the way to another host may take besides.
const SLACK: Duration = Duration::from_millis(500);

/// A question that is well formed.
#[derive(Debug, Clone)]
pub struct Question {
    name: String,
    json: String,
    within: Duration,
}

impl Question {
    /// Checks what somebody asks.
    pub fn new(name: String, json: String, timeout_ms: u32) -> Result<Self, Box<Problem>> {
        let fits =
            |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'-';
        if name.is_empty() || name.len() > QUESTION_MAX || !name.bytes().all(fits) {
            let refusal = Problem::new(
                "invalid-argument",
                "question",
                format!(
                    "a question is a name of at most {QUESTION_MAX} letters a-z, digits and dashes"
                ),
            );
            return Err(Box::new(
                refusal.hint("tanako-bot knows `stats` and `version`"),
            ));
        }
        if json.len() > JSON_MAX {
            let text = format!(
                "what goes with a question has {} bytes, at most {JSON_MAX} are taken",
                json.len()
            );
            return Err(Box::new(Problem::new("too-large", name, text)));
        }
        if !json.is_empty()
            && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&json)
        {
            let refusal = Problem::new(
                "invalid-argument",
                name,
                "what goes with the question is not JSON",
            );
            return Err(Box::new(refusal.cause(error.to_string())));
        }
        let within = match timeout_ms {
            0 => WITHIN,
            ms => Duration::from_millis(ms.into()).min(WITHIN_MAX),
        };
        Ok(Self { name, json, within })
    }
}

/// The rest of the fleet.
pub trait Elsewhere: Send + Sync + 'static {
    /// What is wanted, as far as it can be known now.
    fn desired(&self) -> BoxFuture<'_, Arc<Desired>>;
    /// What all hosts told last.
    fn view(&self) -> BoxFuture<'_, View>;
    /// Asks the shards of one; or why that cannot be done.
    fn ask(
        &self,
        host: String,
        question: ShardsQuestion,
    ) -> BoxFuture<'_, Result<BroadcastReply, String>>;
}

/// What hosts told last.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The other hosts, and why one of them need not be asked.
    pub hosts: BTreeMap<String, Result<(), String>>,
    /// The processes of all.
    pub processes: Vec<Arc<Process>>,
}

/// A process that is to answer.
#[derive(Debug)]
struct Expected {
    name: ProcessName,
    /// Where it was last; empty = nowhere.
    host: String,
    shard_ids: Vec<u32>,
    shard_count: u32,
}

/// Asks shards; clones are cheap and equal.
#[derive(Clone)]
pub struct Broadcast(Arc<Inner>);

struct Inner {
    host: String,
    workers: Workers,
    table: watch::Receiver<Arc<Table>>,
    desired: watch::Receiver<Arc<Desired>>,
    elsewhere: OnceLock<Arc<dyn Elsewhere>>,
    turns: Semaphore,
    /// Of other agents.
    visits: Semaphore,
}

/// What a worker says of one of its shards.
#[derive(Debug, Deserialize)]
struct Said {
    shard_id: u32,
    #[serde(default)]
    json: Option<Box<serde_json::value::RawValue>>,
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Broadcast {
    /// Asks the workers of this host.
    pub fn new(
        host: String,
        workers: Workers,
        table: watch::Receiver<Arc<Table>>,
        desired: watch::Receiver<Arc<Desired>>,
    ) -> Self {
        Self(Arc::new(Inner {
            host,
            workers,
            table,
            desired,
            elsewhere: OnceLock::new(),
            turns: Semaphore::new(AT_ONCE),
            visits: Semaphore::new(VISITS_AT_ONCE),
        }))
    }

    /// There are other hosts. Said once.
    pub fn set_elsewhere(&self, elsewhere: Arc<dyn Elsewhere>) {
        if self.0.elsewhere.set(elsewhere).is_err() {
            tracing::error!("the other hosts were set twice");
        }
    }

    /// Asks every shard of `bot`; empty = the fleet's only one. By shard.
    pub async fn ask(&self, bot: &str, question: Question) -> Result<BroadcastReply, Box<Problem>> {
        let Ok(_turn) = self.0.turns.try_acquire() else {
            let refusal = Problem::new(
                "busy",
                "broadcast",
                format!("{AT_ONCE} broadcasts are under way at this agent"),
            )
            .hint("try again when they have ended")
            .retryable();
            return Err(Box::new(refusal));
        };
        let (desired, view) = match self.0.elsewhere.get() {
            Some(elsewhere) => join(elsewhere.desired(), elsewhere.view()).await,
            None => (self.0.desired.borrow().clone(), View::default()),
        };
        let bot = choose(&self.bots(&desired, &view), bot)?;
        let until = Instant::now() + question.within;
        let here = self.ask_here(&bot, &question, until);
        let there = self.ask_elsewhere(&bot, &question, &view, until);
        let (mut answers, (far, silent)) = join(here, there).await;
        answers.extend(far);
        // Those that do not serve yet are asked where nobody knows that of them.
        answers.retain(|answer| {
            let name = answer.process.parse::<ProcessName>();
            name.is_ok_and(|name| name.group() == bot && !desired.is_next(&name))
        });
        Ok(BroadcastReply {
            answers: complete(&expected(&desired, &view, &bot), answers, &silent),
        })
    }

    /// The bots of the fleet; while nobody can say what is wanted, those that have processes.
    fn bots(&self, desired: &Desired, view: &View) -> BTreeSet<String> {
        if let Some(spec) = &desired.spec {
            return spec.bots.keys().cloned().collect();
        }
        let table = self.0.table.borrow();
        let here = table
            .values()
            .filter(|process| !process.shard_ids.is_empty())
            .map(|process| process.name.group().to_owned());
        let there = view.processes.iter().filter_map(|process| {
            let name = process.name.parse::<ProcessName>().ok()?;
            (!process.shards.is_empty()).then(|| name.group().to_owned())
        });
        here.chain(there).collect()
    }

    /// What the shards of this host say to the question of another agent.
    pub async fn answer(&self, asked: ShardsQuestion) -> Result<BroadcastReply, Box<Problem>> {
        let Ok(_visit) = self.0.visits.try_acquire() else {
            let refusal = Problem::new(
                "busy",
                "broadcast",
                format!("{VISITS_AT_ONCE} questions to the shards of this host are under way"),
            );
            return Err(Box::new(refusal.retryable()));
        };
        let question = Question::new(asked.question, asked.json, asked.timeout_ms)?;
        let until = Instant::now() + question.within;
        let answers = self.ask_here(&asked.bot, &question, until).await;
        Ok(BroadcastReply {
            answers: within_bounds(answers),
        })
    }

    /// Asks the shards of this host alone.
    async fn ask_here(&self, bot: &str, question: &Question, until: Instant) -> Vec<ShardAnswer> {
        let table = self.0.table.borrow().clone();
        let desired = self.0.desired.borrow().clone();
        let processes: Vec<Arc<ProcessSpec>> = table
            .values()
            .filter(|process| process.name.group() == bot && !desired.is_next(&process.name))
            .filter(|process| !process.shard_ids.is_empty() && process.state.is_live())
            .map(|process| Arc::clone(&process.spec))
            .collect();
        let asked = processes
            .into_iter()
            .map(|spec| self.ask_process(spec, question, until));
        let answers: Vec<Vec<ShardAnswer>> = stream::iter(asked)
            .buffer_unordered(PROCESSES_AT_ONCE)
            .collect()
            .await;
        answers.into_iter().flatten().collect()
    }

    async fn ask_process(
        &self,
        spec: Arc<ProcessSpec>,
        question: &Question,
        until: Instant,
    ) -> Vec<ShardAnswer> {
        let began = Instant::now();
        let within = until.saturating_duration_since(began);
        let command = Command::Ask(Ask {
            question: question.name.clone(),
            json: question.json.clone(),
            within_ms: millis(within),
        });
        let run = async {
            let run = self.0.workers.command(&spec.name, command, within).await?;
            match run.result.await {
                Ok(result) => result,
                Err(_) => Err(CommandError::Gone(spec.name.clone())),
            }
        };
        let outcome = run.await;
        let ms = millis(began.elapsed());
        let of = |shard_id: u32| ShardAnswer {
            process: spec.name.to_string(),
            host: self.0.host.clone(),
            shard_id,
            shard_count: spec.shard_count,
            ms,
            ..ShardAnswer::default()
        };
        let all = |code: &str, message: &str| {
            let shards = spec.shard_ids.iter();
            shards
                .map(|shard| without(of(*shard), code, message))
                .collect()
        };
        let result = match outcome {
            Ok(result) if result.ok => result,
            Ok(result) => return all(&result.code, &result.message),
            Err(error) => {
                let code = match &error {
                    CommandError::NotAttached(_) => "not-attached",
                    CommandError::Busy(_) => "busy",
                    CommandError::Gone(_) => "gone",
                    CommandError::Timeout(..) => "timeout",
                    CommandError::Away(..) => "unreachable",
                };
                return all(code, &error.to_string());
            }
        };
        let Ok(said) = serde_json::from_str::<Vec<Said>>(&result.json) else {
            return all("malformed", "its answer is not a list by shard");
        };
        let mut said: BTreeMap<u32, Said> =
            said.into_iter().map(|one| (one.shard_id, one)).collect();
        spec.shard_ids
            .iter()
            .map(|shard| match said.remove(shard) {
                None => without(
                    of(*shard),
                    "no-answer",
                    "its process said nothing of this shard",
                ),
                Some(one) if !one.code.is_empty() => without(of(*shard), &one.code, &one.message),
                Some(one) => {
                    let json = one
                        .json
                        .map_or_else(String::new, |json| json.get().to_owned());
                    if json.len() > ANSWER_MAX {
                        let text = format!(
                            "its answer has {} bytes, at most {ANSWER_MAX} are taken",
                            json.len()
                        );
                        return without(of(*shard), "too-large", &text);
                    }
                    ShardAnswer { json, ..of(*shard) }
                }
            })
            .collect()
    }

    /// The answers of the other hosts, and which of them gave none and why.
    async fn ask_elsewhere(
        &self,
        bot: &str,
        question: &Question,
        view: &View,
        until: Instant,
    ) -> (Vec<ShardAnswer>, BTreeMap<String, String>) {
        let (mut answers, mut silent) = (Vec::new(), BTreeMap::new());
        let Some(elsewhere) = self.0.elsewhere.get() else {
            return (answers, silent);
        };
        let mut asked = Vec::new();
        for (host, askable) in &view.hosts {
            match askable {
                Ok(()) => asked.push(host.clone()),
                Err(why) => drop(silent.insert(host.clone(), why.clone())),
            }
        }
        let asked = asked.into_iter().map(|host| async move {
            let within = until.saturating_duration_since(Instant::now());
            // What it knows of shards that are silent is to be here in time.
            let theirs = within.saturating_sub(SLACK.min(within / 4));
            let message = ShardsQuestion {
                bot: bot.to_owned(),
                question: question.name.clone(),
                json: question.json.clone(),
                // 0 would mean the usual time.
                timeout_ms: millis(theirs).max(1),
            };
            let answer = elsewhere.ask(host.clone(), message);
            let answer = tokio::time::timeout(within + SLACK, answer).await;
            (host, answer)
        });
        let mut outcomes = stream::iter(asked).buffer_unordered(HOSTS_AT_ONCE);
        let mut bytes = 0;
        while let Some((host, outcome)) = outcomes.next().await {
            match outcome {
                Ok(Ok(reply)) => answers.extend(reply.answers.into_iter().map(|answer| {
                    // Nobody speaks for another host.
                    let answer = ShardAnswer {
                        host: host.clone(),
                        ..answer
                    };
                    let answer = tidy(answer);
                    bytes += answer.json.len();
                    if bytes <= ANSWERS_MAX {
                        return answer;
                    }
                    beyond_bounds(answer)
                })),
                Ok(Err(why)) => drop(silent.insert(host, why)),
                Err(_) => {
                    silent.insert(host, "its agent did not answer in time".to_owned());
                }
            }
        }
        (answers, silent)
    }
}

/// The processes of a bot that are to answer.
fn expected(desired: &Desired, view: &View, bot: &str) -> Vec<Expected> {
    let mut seen: BTreeMap<ProcessName, &Process> = BTreeMap::new();
    for process in &view.processes {
        if let Ok(name) = process.name.parse::<ProcessName>()
            && name.group() == bot
        {
            seen.insert(name, process);
        }
    }
    if desired.spec.is_none() {
        let all = seen.into_iter().map(|(name, process)| Expected {
            name,
            host: process.host.clone(),
            shard_ids: process.shards.iter().map(|shard| shard.id).collect(),
            shard_count: process.shards.first().map_or(0, |shard| shard.count),
        });
        return all.collect();
    }
    let specs = desired.processes.iter();
    specs
        .filter(|spec| spec.name.group() == bot && !desired.is_next(&spec.name))
        .map(|spec| Expected {
            name: spec.name.clone(),
            host: seen
                .get(&spec.name)
                .map(|process| process.host.clone())
                .unwrap_or_default(),
            shard_ids: spec.shard_ids.clone(),
            shard_count: spec.shard_count,
        })
        .collect()
}

/// One line for each shard there is to be, within the bounds.
fn complete(
    expected: &[Expected],
    answers: Vec<ShardAnswer>,
    silent: &BTreeMap<String, String>,
) -> Vec<ShardAnswer> {
    let mut given: BTreeMap<(u32, String), ShardAnswer> = BTreeMap::new();
    for answer in answers {
        match given.entry((answer.shard_id, answer.process.clone())) {
            Entry::Vacant(place) => drop(place.insert(answer)),
            // A process on its way may be told of by two hosts.
            Entry::Occupied(mut known) => {
                if !known.get().code.is_empty() && answer.code.is_empty() {
                    known.insert(answer);
                }
            }
        }
    }
    for process in expected {
        for shard in &process.shard_ids {
            given
                .entry((*shard, process.name.to_string()))
                .or_insert_with(|| missing(process, *shard, silent));
        }
    }
    within_bounds(given.into_values().collect())
}

/// Why nobody answered for a shard.
fn missing(process: &Expected, shard: u32, silent: &BTreeMap<String, String>) -> ShardAnswer {
    let Expected { name, host, .. } = process;
    let (code, message) = match silent.get(host) {
        Some(why) => ("unreachable", format!("host {host}: {why}")),
        None if host.is_empty() && !silent.is_empty() => {
            let silent: Vec<&str> = silent.keys().map(String::as_str).take(NAMED_MAX).collect();
            let silent = silent.join(", ");
            let text = format!("{name} may run on a host that does not answer: {silent}");
            ("unreachable", text)
        }
        None => ("not-running", format!("{name} does not run")),
    };
    let none = ShardAnswer {
        process: name.to_string(),
        host: host.clone(),
        shard_id: shard,
        shard_count: process.shard_count,
        ..ShardAnswer::default()
    };
    without(none, code, &message)
}

/// Answers without what is too much of them together.
fn within_bounds(answers: Vec<ShardAnswer>) -> Vec<ShardAnswer> {
    let mut bytes = 0;
    let within = answers.into_iter().map(|answer| {
        bytes += answer.json.len();
        if bytes <= ANSWERS_MAX {
            answer
        } else {
            beyond_bounds(answer)
        }
    });
    within.collect()
}

fn beyond_bounds(answer: ShardAnswer) -> ShardAnswer {
    if !answer.code.is_empty() {
        return answer;
    }
    let text = format!("all answers together have more than {ANSWERS_MAX} bytes");
    without(answer, "too-large", &text)
}

/// An answer of another host, with nothing in it that this one would not have said.
fn tidy(answer: ShardAnswer) -> ShardAnswer {
    if answer.code.is_empty() && answer.json.len() <= ANSWER_MAX {
        return ShardAnswer {
            message: String::new(),
            ..answer
        };
    }
    if answer.code.is_empty() {
        let text = format!("its answer has more than {ANSWER_MAX} bytes");
        return without(answer, "too-large", &text);
    }
    let (code, message) = (answer.code.clone(), answer.message.clone());
    without(answer, &code, &message)
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

fn without(answer: ShardAnswer, code: &str, message: &str) -> ShardAnswer {
    ShardAnswer {
        code: if code.is_empty() { "failed" } else { code }
            .chars()
            .take(40)
            .collect(),
        message: message.chars().take(300).collect(),
        json: String::new(),
        ..answer
    }
}

fn choose(bots: &BTreeSet<String>, bot: &str) -> Result<String, Box<Problem>> {
    let names = || bots.iter().cloned().collect::<Vec<_>>().join(", ");
    if bots.contains(bot) {
        return Ok(bot.to_owned());
    }
    if !bot.is_empty() {
        let refusal = Problem::new("unknown-target", bot, format!("there is no bot {bot:?}"));
        return Err(Box::new(refusal.hint(format!("bots are {}", names()))));
    }
    match bots.first() {
        Some(only) if bots.len() == 1 => Ok(only.clone()),
        _ => {
            let refusal = Problem::new(
                "invalid-argument",
                "bot",
                "the fleet has not exactly one bot",
            );
            Err(Box::new(
                refusal.hint(format!("name one with --bot: {}", names())),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(process: &str, shard_id: u32, json: &str) -> ShardAnswer {
        ShardAnswer {
            process: process.to_owned(),
            shard_id,
            json: json.to_owned(),
            ..ShardAnswer::default()
        }
    }

    #[test]
    fn every_shard_that_is_to_be_there_has_a_line_with_the_reason() {
        let process = |name: &str, host: &str, shard_ids: &[u32]| Expected {
            name: name.parse().expect("a good name"),
            host: host.to_owned(),
            shard_ids: shard_ids.to_vec(),
            shard_count: 6,
        };
        let expected = [
            process("t/0", "a", &[0, 1]),
            process("t/1", "b", &[2]),
            process("t/2", "c", &[3]),
            process("t/3", "", &[4]),
        ];
        let answers = vec![
            shard("t/0", 1, "1"),
            without(shard("t/2", 3, ""), "gone", "it ended"),
            // It moved meanwhile, and both hosts tell of it.
            shard("t/2", 3, "3"),
            without(shard("t/2", 3, ""), "gone", "it ended"),
        ];
        let silent = BTreeMap::from([("b".to_owned(), "no route".to_owned())]);
        let lines = complete(&expected, answers, &silent);
        let said: Vec<(u32, &str, &str)> = lines
            .iter()
            .map(|line| (line.shard_id, line.host.as_str(), line.code.as_str()))
            .collect();
        let wanted = [
            (0, "a", "not-running"),
            (1, "", ""),
            (2, "b", "unreachable"),
            (3, "", ""),
            (4, "", "unreachable"),
        ];
        assert_eq!(said, wanted, "{lines:#?}");
        assert_eq!(lines[2].message, "host b: no route");
        assert!(lines[4].message.contains("does not answer: b"));
    }

    #[test]
    fn what_is_too_much_is_left_out_and_said() {
        let json = format!("\"{}\"", "x".repeat(ANSWER_MAX - 2));
        let fit = ANSWERS_MAX / ANSWER_MAX;
        let answers = (0..fit as u32 + 2).map(|id| shard("t/0", id, &json));
        let lines = within_bounds(answers.collect());
        let whole = lines.iter().filter(|line| line.code.is_empty());
        assert_eq!((whole.count(), lines.len()), (fit, fit + 2));
        assert_eq!(lines[fit + 1].code, "too-large");
        let giant = tidy(shard("t/0", 0, &"1".repeat(ANSWER_MAX + 1)));
        assert_eq!(
            (giant.code.as_str(), giant.json.as_str()),
            ("too-large", "")
        );
    }

    #[test]
    fn a_question_is_a_name_and_some_json() {
        let refused = |name: &str, json: &str| {
            let question = Question::new(name.to_owned(), json.to_owned(), 0);
            question.expect_err("refused").code
        };
        assert_eq!(refused("", ""), "invalid-argument");
        assert_eq!(refused("stats()", ""), "invalid-argument");
        assert_eq!(refused("Stats", ""), "invalid-argument");
        assert_eq!(
            refused(&"s".repeat(QUESTION_MAX + 1), ""),
            "invalid-argument"
        );
        assert_eq!(refused("stats", "{"), "invalid-argument");
        let long = format!("\"{}\"", "x".repeat(JSON_MAX));
        assert_eq!(refused("stats", &long), "too-large");
        let fine = Question::new("stats".to_owned(), "{\"a\":1}".to_owned(), u32::MAX);
        assert_eq!(fine.expect("fine").within, WITHIN_MAX);
    }
}
