//! One question to every shard of a bot, on all hosts, and what each says to it.
//!
//! Asked by `tanakoctl broadcast` and by the bots themselves, over their agent. Programs know questions
//! by name; nothing is evaluated. Every shard of the bot is in the result: with its answer, or with why
//! there is none.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::BoxFuture, future::join, stream};
use serde::Deserialize;
use tanako_fleet::{ProcessName, ProcessSpec};
use tanako_proto::{
    fleet::v1::Problem,
    host::v1::ShardsQuestion,
    worker::v1::{Ask, BroadcastReply, ShardAnswer, command::Command},
};
use tokio::sync::{Semaphore, watch};
use tonic::Status;

use crate::{
    desired::Desired,
    supervisor::Table,
    worker::{CommandError, Workers},
};

/// Broadcasts under way at one agent; the next one is refused.
const AT_ONCE: usize = 4;
/// Processes asked at once by one broadcast.
const PROCESSES_AT_ONCE: usize = 64;
/// Longest name of a question.
const QUESTION_MAX: usize = 40;
/// Longest text that goes with it.
const JSON_MAX: usize = 16 * 1024;
/// Longest answer of one shard.
const ANSWER_MAX: usize = 64 * 1024;
/// All answers together.
const ANSWERS_MAX: usize = 4 << 20;
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

/// The other hosts of the fleet.
pub trait Elsewhere: Send + Sync + 'static {
    /// Their names.
    fn hosts(&self) -> Vec<String>;
    /// The host of a process, where it is known.
    fn host_of(&self, process: &ProcessName) -> Option<String>;
    /// Asks the shards of one.
    fn ask(
        &self,
        host: String,
        question: ShardsQuestion,
    ) -> BoxFuture<'_, Result<BroadcastReply, Status>>;
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
        let desired = self.0.desired.borrow().clone();
        // An agent that does not decide may know of the bot by its processes alone.
        let runs_here = {
            let table = self.0.table.borrow();
            !bot.is_empty() && table.keys().any(|name| name.group() == bot)
        };
        let bot = if runs_here {
            bot.to_owned()
        } else {
            choose(&desired, bot)?
        };
        let expected: Vec<Arc<ProcessSpec>> = desired
            .processes
            .iter()
            .filter(|spec| spec.name.group() == bot && !desired.is_next(&spec.name))
            .cloned()
            .collect();
        let here = self.ask_here(&bot, &question);
        let there = self.ask_elsewhere(&bot, &question);
        let (mut answers, (far, silent)) = join(here, there).await;
        answers.extend(far);
        Ok(BroadcastReply {
            answers: self.complete(&expected, answers, &silent),
        })
    }

    /// Asks the shards of this host alone.
    pub async fn ask_here(&self, bot: &str, question: &Question) -> Vec<ShardAnswer> {
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
            .map(|spec| self.ask_process(spec, question));
        let answers: Vec<Vec<ShardAnswer>> = stream::iter(asked)
            .buffer_unordered(PROCESSES_AT_ONCE)
            .collect()
            .await;
        answers.into_iter().flatten().collect()
    }

    async fn ask_process(&self, spec: Arc<ProcessSpec>, question: &Question) -> Vec<ShardAnswer> {
        let began = Instant::now();
        let command = Command::Ask(Ask {
            question: question.name.clone(),
            json: question.json.clone(),
            within_ms: u32::try_from(question.within.as_millis()).unwrap_or(u32::MAX),
        });
        let run = async {
            let run = self
                .0
                .workers
                .command(&spec.name, command, question.within)
                .await?;
            match run.result.await {
                Ok(result) => result,
                Err(_) => Err(CommandError::Gone(spec.name.clone())),
            }
        };
        let outcome = run.await;
        let ms = u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX);
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
    ) -> (Vec<ShardAnswer>, BTreeMap<String, String>) {
        let Some(elsewhere) = self.0.elsewhere.get() else {
            return (Vec::new(), BTreeMap::new());
        };
        let asked = elsewhere.hosts().into_iter().map(|host| async {
            let message = ShardsQuestion {
                bot: bot.to_owned(),
                question: question.name.clone(),
                json: question.json.clone(),
                timeout_ms: u32::try_from(question.within.as_millis()).unwrap_or(u32::MAX),
            };
            let answer = elsewhere.ask(host.clone(), message);
            let answer = tokio::time::timeout(question.within + SLACK, answer).await;
            (host, answer)
        });
        let outcomes: Vec<_> = stream::iter(asked)
            .buffer_unordered(PROCESSES_AT_ONCE)
            .collect()
            .await;
        let (mut answers, mut silent) = (Vec::new(), BTreeMap::new());
        for (host, outcome) in outcomes {
            match outcome {
                Ok(Ok(reply)) => answers.extend(reply.answers),
                Ok(Err(status)) => {
                    silent.insert(host, status.message().to_owned());
                }
                Err(_) => {
                    silent.insert(host, "its agent did not answer in time".to_owned());
                }
            }
        }
        (answers, silent)
    }

    /// One line for each shard there is to be, within the bounds.
    fn complete(
        &self,
        expected: &[Arc<ProcessSpec>],
        answers: Vec<ShardAnswer>,
        silent: &BTreeMap<String, String>,
    ) -> Vec<ShardAnswer> {
        let mut given: BTreeMap<(u32, String), ShardAnswer> = BTreeMap::new();
        for answer in answers {
            given.insert((answer.shard_id, answer.process.clone()), answer);
        }
        for spec in expected {
            let elsewhere = self.0.elsewhere.get();
            let host = elsewhere.and_then(|hosts| hosts.host_of(&spec.name));
            for shard in &spec.shard_ids {
                given
                    .entry((*shard, spec.name.to_string()))
                    .or_insert_with(|| {
                        let host = host.clone().unwrap_or_default();
                        let (code, message) = match silent.get(&host) {
                            Some(why) => ("unreachable", format!("host {host}: {why}")),
                            None => ("not-running", format!("{} does not run", spec.name)),
                        };
                        let none = ShardAnswer {
                            process: spec.name.to_string(),
                            host,
                            shard_id: *shard,
                            shard_count: spec.shard_count,
                            ..ShardAnswer::default()
                        };
                        without(none, code, &message)
                    });
            }
        }
        let mut bytes = 0;
        given
            .into_values()
            .map(|answer| {
                bytes += answer.json.len();
                if bytes <= ANSWERS_MAX {
                    return answer;
                }
                let text = format!("all answers together have more than {ANSWERS_MAX} bytes");
                without(answer, "too-large", &text)
            })
            .collect()
    }
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

fn choose(desired: &Desired, bot: &str) -> Result<String, Box<Problem>> {
    let bots: Vec<&str> = desired
        .spec
        .iter()
        .flat_map(|spec| spec.bots.keys().map(String::as_str))
        .collect();
    match (bot, bots.as_slice()) {
        ("", [only]) => Ok((*only).to_owned()),
        ("", _) => {
            let refusal = Problem::new(
                "invalid-argument",
                "bot",
                "the fleet has not exactly one bot",
            );
            let names = bots.join(", ");
            Err(Box::new(
                refusal.hint(format!("name one with --bot: {names}")),
            ))
        }
        (named, bots) if bots.contains(&named) => Ok(named.to_owned()),
        (named, bots) => {
            let refusal = Problem::new(
                "unknown-target",
                named,
                format!("there is no bot {named:?}"),
            );
            Err(Box::new(
                refusal.hint(format!("bots are {}", bots.join(", "))),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
