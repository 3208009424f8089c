//! The jobs of backup, verify, prune and restore. A job speaks to the database nodes over the worker
//! socket and reports to the coordinator; it decides nothing about operations.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::join_all;
use tanako_fleet::ProcessName;
use tanako_proto::{
    fleet::v1::Problem,
    worker::v1::{CommandResult, DbBackup, DbRestore, DbVerify, command::Command},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::set::{self, Condition, Manifest, NodeArchive};
use crate::{clock::now_ms, hosts::Hosts, operations::Kind, worker::CommandError};

/// Longest a node may work on an archive.
const DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// How long a node that is not attached is waited for: it may just be coming back.
const ATTACH_WAIT: Duration = Duration::from_secs(20);
/// The same for a node whose host does not answer: its agent is started again, or the host is.
const AWAY_WAIT: Duration = Duration::from_secs(3 * 60);
/// It is asked again after a change, and at least this often.
const AWAY_RETRY: Duration = Duration::from_secs(2);
const AWAY_PAUSE: Duration = Duration::from_millis(200);

/// What is to be done.
#[derive(Clone)]
pub struct Job {
    /// Id of the operation.
    pub id: String,
    /// Backup, verify, prune or restore.
    pub kind: Kind,
    /// The set's label.
    pub label: String,
    /// How many good sets a prune keeps.
    pub keep: u32,
    /// Where sets are.
    pub root: PathBuf,
    /// The fleet's name.
    pub fleet: String,
    /// The database nodes.
    pub nodes: Vec<ProcessName>,
    /// The way to them.
    pub hosts: Hosts,
    /// The way back.
    pub events: mpsc::Sender<JobEvent>,
    /// Ends the job early.
    pub cancel: CancellationToken,
}

/// What a job reports.
#[derive(Debug)]
pub enum JobEvent {
    /// Work on an object has begun.
    Began {
        /// Operation.
        id: String,
        /// Node or `backups`.
        object: String,
    },
    /// Progress on an object.
    Progress {
        /// Operation.
        id: String,
        /// Node or `backups`.
        object: String,
        /// So far.
        done: u64,
        /// In all.
        total: u64,
        /// rows, bytes.
        unit: String,
    },
    /// Work on an object has ended.
    Ended {
        /// Operation.
        id: String,
        /// Node or `backups`.
        object: String,
        /// What was done, or why not.
        result: Result<String, String>,
    },
    /// The job has ended.
    Finished {
        /// Operation.
        id: String,
        /// How.
        outcome: JobOutcome,
    },
}

/// How a job has ended.
#[derive(Debug)]
pub enum JobOutcome {
    /// As asked, in words.
    Done {
        /// What was done.
        message: String,
        /// How much.
        amount: u64,
    },
    /// It was told to end.
    Aborted,
    /// It failed.
    Failed(Box<Problem>),
}

impl Job {
    /// Does it.
    pub async fn run(self) {
        let cancel = self.cancel.clone();
        let work = async {
            match self.kind {
                Kind::Backup => self.backup().await,
                Kind::BackupVerify => self.verify().await,
                Kind::BackupPrune => self.prune().await,
                _ => self.restore().await,
            }
        };
        let outcome = tokio::select! {
            () = cancel.cancelled() => JobOutcome::Aborted,
            result = work => match result {
                Ok((message, amount)) => JobOutcome::Done { message, amount },
                Err(problem) => JobOutcome::Failed(problem),
            },
        };
        self.send(JobEvent::Finished {
            id: self.id.clone(),
            outcome,
        })
        .await;
    }

    async fn backup(&self) -> Result<(String, u64), Box<Problem>> {
        let (root, label, fleet) = (self.root.clone(), self.label.clone(), self.fleet.clone());
        let made = self
            .disk(move || Ok(set::made(&root, &label, &fleet)))
            .await?;
        if let Some(made) = made {
            // The agent that carried this out died before it could say so.
            for node in &self.nodes {
                let archive = made.nodes.iter().find(|one| one.node == node.instance());
                let rows = archive.map_or(0, |archive| archive.rows);
                self.ended(node.as_str(), Ok(format!("{rows} rows"))).await;
            }
            return self.completed(made.rows()).await;
        }
        let (root, label) = (self.root.clone(), self.label.clone());
        let partial = self.disk(move || set::make_partial(&root, &label)).await?;
        let directory = partial.to_string_lossy().into_owned();
        let command = Command::Backup(DbBackup { directory });
        let results = self.on_all_nodes(&self.nodes, &command).await?;
        self.began(crate::coordinator::ARCHIVES).await;
        let mut archives = Vec::new();
        for (name, result) in self.nodes.iter().zip(results) {
            let partial = partial.clone();
            let node = name.instance().to_owned();
            let checked =
                tokio::task::spawn_blocking(move || check_archive(&partial, &node, &result))
                    .await
                    .unwrap_or_else(|_| Err("the check was interrupted".to_owned()));
            archives.push(checked.map_err(|fault| {
                Problem::new(
                    "damaged-backup",
                    name.as_str(),
                    "the new archive cannot be trusted",
                )
                .cause(fault)
                .hint("check the disk and the node's log, then make the backup again")
            })?);
        }
        let rows = archives.iter().map(|archive| archive.rows).sum();
        let manifest = Manifest::new(&self.label, &self.fleet, now_ms(), archives);
        let (root, label) = (self.root.clone(), self.label.clone());
        self.disk(move || {
            manifest.write(&partial)?;
            set::complete(&root, &label)
        })
        .await?;
        self.completed(rows).await
    }

    async fn completed(&self, rows: u64) -> Result<(String, u64), Box<Problem>> {
        let message = format!("backup {} verified: {rows} rows", self.label);
        self.ended(crate::coordinator::ARCHIVES, Ok(message.clone()))
            .await;
        Ok((message, rows))
    }

    async fn verify(&self) -> Result<(String, u64), Box<Problem>> {
        let (directory, manifest) = self.manifest()?;
        let rows = self.read_back(&directory, manifest).await?;
        Ok((format!("backup {} verified: {rows} rows", self.label), rows))
    }

    async fn restore(&self) -> Result<(String, u64), Box<Problem>> {
        let (directory, manifest) = self.manifest()?;
        let archives = manifest.archives(&directory);
        if !manifest.fleet.is_empty() && manifest.fleet != self.fleet {
            return Err(Box::new(
                Problem::new(
                    "foreign-backup",
                    &self.label,
                    format!(
                        "backup {} is of fleet {:?}, this is {:?}",
                        self.label, manifest.fleet, self.fleet
                    ),
                )
                .hint("restore it into the fleet that it was made of"),
            ));
        }
        let rows = self.read_back(&directory, manifest).await?;
        let command = Command::Restore(DbRestore { archives });
        self.on_all_nodes(&self.nodes, &command)
            .await
            .map_err(|problem| {
                Box::new(problem.hint(
                "nodes that ended hold the backup, the others what they had: repair the cause and \
                 restore again; restoring twice does no harm",
            ))
            })?;
        Ok((format!("restored backup {}: {rows} rows", self.label), rows))
    }

    async fn prune(&self) -> Result<(String, u64), Box<Problem>> {
        let object = crate::coordinator::ARCHIVES;
        self.began(object).await;
        let root = self.root.clone();
        let sets = self.disk(move || set::list(&root)).await?;
        let doomed = set::prunable(&sets, self.keep);
        let total = doomed.len() as u64;
        for (done, directory) in (1..).zip(&doomed) {
            let (root, doomed) = (self.root.clone(), directory.clone());
            self.disk(move || set::remove(&root, &doomed)).await?;
            self.progress(object, done, total, "sets").await;
        }
        let kept = sets
            .iter()
            .filter(|set| set.condition == Condition::Verified)
            .count()
            - sets
                .iter()
                .filter(|set| {
                    set.condition == Condition::Verified && doomed.contains(&set.directory)
                })
                .count();
        let message = format!("{total} deleted, {kept} verified kept");
        self.ended(object, Ok(message.clone())).await;
        Ok((message, total))
    }

    fn manifest(&self) -> Result<(PathBuf, Manifest), Box<Problem>> {
        let directory = self.root.join(&self.label);
        let manifest = Manifest::read(&directory).map_err(|fault| {
            Problem::new(
                "damaged-backup",
                &self.label,
                "the backup set cannot be used",
            )
            .cause(fault)
            .hint("use another one: `tanakoctl backup list`")
        })?;
        Ok((directory, manifest))
    }

    /// Has a node read all archives back and compares with the manifest; remembers what came out.
    async fn read_back(
        &self,
        directory: &Path,
        mut manifest: Manifest,
    ) -> Result<u64, Box<Problem>> {
        let object = crate::coordinator::ARCHIVES;
        self.began(object).await;
        let archives = manifest.archives(directory);
        let command = Command::Verify(DbVerify { archives });
        let mut outcome = Err(Box::new(not_attached("db")));
        for node in &self.nodes {
            outcome = self.on_node(node, object, &command).await;
            // Any node can read any archive; the next one is asked only when this one is not there.
            if !matches!(&outcome, Err(problem) if problem.code == "not-ready") {
                break;
            }
        }
        let rows = manifest.rows();
        let outcome = outcome.and_then(|result| match number(&result.json, "rows") {
            Some(read) if read == rows => Ok(()),
            read => Err(Box::new(
                Problem::new(
                    "damaged-backup",
                    &self.label,
                    format!(
                        "{} rows can be read, {rows} were written",
                        read.map_or_else(|| "no".to_owned(), |read| read.to_string())
                    ),
                )
                .hint("use another one: `tanakoctl backup list`"),
            )),
        });
        // A node that was not there says nothing about the archives.
        let judged = !matches!(&outcome, Err(problem) if problem.retryable);
        if judged {
            manifest.damage = outcome
                .as_ref()
                .err()
                .map_or_else(String::new, |problem| problem.message.clone());
            if outcome.is_ok() {
                manifest.verified_at = now_ms();
            }
            let directory = directory.to_owned();
            self.disk(move || manifest.write(&directory)).await?;
        }
        let text = outcome.as_ref().map(|()| format!("{rows} rows read back"));
        let text = text.map_err(|problem| problem.message.clone());
        self.ended(object, text).await;
        outcome.map(|()| rows)
    }

    async fn on_all_nodes(
        &self,
        nodes: &[ProcessName],
        command: &Command,
    ) -> Result<Vec<CommandResult>, Box<Problem>> {
        let runs = nodes.iter().map(|node| async move {
            self.began(node.as_str()).await;
            let result = self.on_node(node, node.as_str(), command).await;
            let text = match &result {
                Ok(result) => Ok(number(&result.json, "rows")
                    .map_or_else(|| "done".to_owned(), |rows| format!("{rows} rows"))),
                Err(problem) => Err(problem.message.clone()),
            };
            self.ended(node.as_str(), text).await;
            result
        });
        // All of them come to their end, so that none is left at work behind a failed operation.
        join_all(runs).await.into_iter().collect()
    }

    async fn on_node(
        &self,
        node: &ProcessName,
        object: &str,
        command: &Command,
    ) -> Result<CommandResult, Box<Problem>> {
        let began = Instant::now();
        let mut attached_by = began + ATTACH_WAIT;
        let mut states = self.hosts.watch();
        let result = loop {
            match self.try_node(node, object, command).await {
                Err(CommandError::NotAttached(_)) => {
                    let changed = tokio::time::timeout_at(attached_by, states.changed()).await;
                    if !matches!(changed, Ok(Ok(()))) {
                        return Err(Box::new(not_attached(node.as_str())));
                    }
                }
                // Its agent may be about to come back, and to find the node at work as it was; what was
                // asked for is asked for again, which does no harm.
                Err(CommandError::Away(..)) if began.elapsed() < AWAY_WAIT => {
                    // A change or not: it is tried again.
                    let _ = tokio::time::timeout(AWAY_RETRY, states.changed()).await;
                    tokio::time::sleep(AWAY_PAUSE).await;
                    attached_by = Instant::now() + ATTACH_WAIT;
                }
                other => break other,
            }
        };
        match result {
            Ok(result) if result.ok => Ok(result),
            Ok(result) => {
                let code = if result.code.is_empty() {
                    "failed"
                } else {
                    &result.code
                };
                let mut problem =
                    Problem::new(code, node.as_str(), format!("{node}: {}", result.message));
                problem.hint = if result.hint.is_empty() {
                    format!("look at `tanakoctl logs {node}`")
                } else {
                    result.hint
                };
                Err(Box::new(problem))
            }
            Err(error) => Err(Box::new(failed(node, &error))),
        }
    }

    async fn try_node(
        &self,
        node: &ProcessName,
        object: &str,
        command: &Command,
    ) -> Result<CommandResult, CommandError> {
        let mut run = self.hosts.command(node, command.clone(), DEADLINE).await?;
        loop {
            tokio::select! {
                Some(progress) = run.progress.recv() => {
                    self.progress(object, progress.done, progress.total, &progress.unit).await;
                }
                result = &mut run.result => {
                    return result.unwrap_or_else(|_| Err(CommandError::Gone(node.clone())));
                }
            }
        }
    }

    async fn disk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Box<Problem>> {
        let result = tokio::task::spawn_blocking(work).await;
        let result = result.unwrap_or_else(|_| Err(std::io::Error::other("interrupted")));
        result.map_err(|error| Box::new(set::unreadable(&self.root, &error)))
    }

    async fn began(&self, object: &str) {
        self.send(JobEvent::Began {
            id: self.id.clone(),
            object: object.to_owned(),
        })
        .await;
    }

    async fn ended(&self, object: &str, result: Result<String, String>) {
        self.send(JobEvent::Ended {
            id: self.id.clone(),
            object: object.to_owned(),
            result,
        })
        .await;
    }

    async fn progress(&self, object: &str, done: u64, total: u64, unit: &str) {
        let event = JobEvent::Progress {
            id: self.id.clone(),
            object: object.to_owned(),
            done,
            total,
            unit: unit.to_owned(),
        };
        // Progress that nobody has time for is worth nothing.
        let _ = self.events.try_send(event);
    }

    async fn send(&self, event: JobEvent) {
        let _ = self.events.send(event).await;
    }
}

fn not_attached(object: &str) -> Problem {
    Problem::new(
        "not-ready",
        object,
        format!("{object} does not run, or does not answer"),
    )
    .hint("start it: `tanakoctl start db`; then try again")
    .retryable()
}

fn failed(node: &ProcessName, error: &CommandError) -> Problem {
    let code = match error {
        CommandError::Timeout(..) => "timeout",
        _ => "node-failed",
    };
    Problem::new(code, node.as_str(), error.to_string())
        .hint(format!("look at `tanakoctl logs {node}`, then try again"))
        .retryable()
}

/// A number in a JSON object.
fn number(json: &str, field: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(json)
        .ok()?
        .get(field)?
        .as_u64()
}

/// What this needs of the manifest that a node writes beside its archive.
#[derive(serde::Deserialize)]
struct NodeManifest {
    bytes: u64,
    tables: BTreeMap<String, TableRows>,
}

#[derive(serde::Deserialize)]
struct TableRows {
    rows: u64,
}

/// The archive that a node says it has written, compared with the manifest and the file it left.
fn check_archive(
    directory: &Path,
    node: &str,
    result: &CommandResult,
) -> Result<NodeArchive, String> {
    let archive = format!("{node}.tbk");
    let bytes = std::fs::metadata(directory.join(&archive))
        .map_err(|error| format!("{archive}: {error}"))?
        .len();
    let path = directory.join(format!("{node}.json"));
    let text = set::read_small(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let manifest: NodeManifest = serde_json::from_slice(&text)
        .map_err(|error| format!("{} is not a manifest: {error}", path.display()))?;
    let rows: u64 = manifest.tables.values().map(|table| table.rows).sum();
    let told = number(&result.json, "rows").ok_or_else(|| format!("{node} told of no rows"))?;
    if told != rows {
        return Err(format!(
            "{node} told of {told} rows, its manifest of {rows}"
        ));
    }
    if manifest.bytes != bytes {
        return Err(format!(
            "{archive} has {bytes} bytes, its manifest says {}",
            manifest.bytes
        ));
    }
    std::fs::File::open(directory.join(&archive))
        .and_then(|file| file.sync_all())
        .map_err(|error| format!("{archive}: {error}"))?;
    Ok(NodeArchive {
        node: node.to_owned(),
        archive,
        bytes,
        rows,
    })
}
