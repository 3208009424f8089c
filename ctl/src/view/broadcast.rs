//! What every shard says to a question: `tanakoctl broadcast`.

use std::fmt::Write as _;

use serde::Serialize;
use tanako_proto::worker::v1::{BroadcastReply, ShardAnswer};

use super::text;
use crate::{
    paint::{Paint, clean},
    table::{Cell, Table},
    ui::Report,
    units::count,
};

/// Letters of an answer in the table; `-o json` has all of it.
const SHOWN_MAX: usize = 120;

/// `broadcast -o json`.
#[derive(Debug, Serialize)]
pub struct BroadcastView {
    question: String,
    answered: usize,
    failed: usize,
    answers: Vec<AnswerView>,
}

#[derive(Debug, Serialize)]
struct AnswerView {
    shard_id: u32,
    shard_count: u32,
    process: String,
    host: Option<String>,
    ms: u32,
    /// As the bot said it; null where there is an error.
    answer: serde_json::Value,
    error: Option<AnswerError>,
}

#[derive(Debug, Serialize)]
struct AnswerError {
    code: String,
    message: String,
}

impl BroadcastView {
    /// The answers to `question`.
    pub fn new(question: String, reply: BroadcastReply) -> Self {
        let answers: Vec<AnswerView> = reply.answers.into_iter().map(Into::into).collect();
        let failed = answers.iter().filter(|one| one.error.is_some()).count();
        Self {
            question,
            answered: answers.len() - failed,
            failed,
            answers,
        }
    }

    /// Whether every shard answered, and there was one.
    pub fn is_complete(&self) -> bool {
        self.failed == 0 && self.answered > 0
    }
}

impl From<ShardAnswer> for AnswerView {
    fn from(answer: ShardAnswer) -> Self {
        let error = text(answer.code).map(|code| AnswerError {
            code,
            message: answer.message,
        });
        Self {
            shard_id: answer.shard_id,
            shard_count: answer.shard_count,
            process: answer.process,
            host: text(answer.host),
            ms: answer.ms,
            answer: serde_json::from_str(&answer.json).unwrap_or_default(),
            error,
        }
    }
}

impl Report for BroadcastView {
    fn table(&self, paint: Paint, wide: bool) -> String {
        let mut table = Table::new(&["SHARD", "PROCESS", "HOST", "MS", "ANSWER"]);
        for one in &self.answers {
            let said = match &one.error {
                Some(error) => format!("{}: {}", error.code, error.message),
                None => one.answer.to_string(),
            };
            let mut said = clean(&said, false);
            if !wide && said.chars().count() > SHOWN_MAX {
                said = said.chars().take(SHOWN_MAX - 1).chain(['…']).collect();
            }
            table.row(vec![
                Cell::new(format!("{} of {}", one.shard_id, one.shard_count)),
                Cell::new(&one.process),
                Cell::new(one.host.as_deref().unwrap_or("-")),
                Cell::new(one.ms.to_string()),
                Cell::new(said),
            ]);
        }
        if table.is_empty() {
            return "the bot has no shards\n".to_owned();
        }
        let mut out = table.render(paint);
        out.push_str(&count(self.answered as u64, "answer", "answers"));
        if self.failed > 0 {
            let _ = write!(out, ", {} without", self.failed);
        }
        out.push('\n');
        out
    }

    fn names(&self) -> Vec<String> {
        let failed = self.answers.iter().filter(|one| one.error.is_some());
        failed
            .map(|one| format!("shard:{}", one.shard_id))
            .collect()
    }
}
