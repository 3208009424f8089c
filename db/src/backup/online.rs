//! Backup and restore of a node while it serves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{BackupError, Header, Loaded, Manifest, Progress, archive, io, restore};
use crate::failure::{Code, Failure};
use crate::node::Node;
use crate::schema;
use crate::schema::value::now;

fn given_up(_: tokio::task::JoinError) -> BackupError {
    BackupError::Store(Failure::new(
        Code::Storage,
        "the work was given up; see the node's log",
    ))
}

impl Node {
    /// Writes a verified archive and its manifest into an existing directory, while serving.
    pub async fn backup(
        self: &Arc<Self>,
        directory: PathBuf,
        mut progress: Box<Progress<'static>>,
    ) -> Result<(PathBuf, Manifest), BackupError> {
        let _alone = self.one_backup().map_err(BackupError::Store)?;
        let node = Arc::clone(self);
        let work = move || {
            if !directory.is_dir() {
                let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
                return Err(io("find directory", &directory)(missing));
            }
            let ring = node.topology();
            let engine = node.store.engine().map_err(BackupError::Store)?;
            let header = Header {
                node: node.name.clone(),
                ring_nodes: ring
                    .ring
                    .nodes()
                    .iter()
                    .map(|node| node.name.clone())
                    .collect(),
                created_at: now(),
                schema_version: schema::VERSION,
                tanako_version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            let snapshot = engine.snapshot();
            archive::write(&*snapshot, &header, &directory, &mut *progress)
        };
        let (path, manifest) = tokio::task::spawn_blocking(work)
            .await
            .map_err(given_up)??;
        tracing::info!(archive = %path.display(), rows = manifest.rows(), bytes = manifest.bytes, "backup verified");
        Ok((path, manifest))
    }

    /// Reads archives completely and checks them.
    pub async fn verify(
        self: &Arc<Self>,
        archives: Vec<PathBuf>,
        mut progress: Box<Progress<'static>>,
    ) -> Result<Vec<Manifest>, BackupError> {
        tokio::task::spawn_blocking(move || {
            archives
                .iter()
                .map(|path| archive::verify(path, &mut *progress))
                .collect()
        })
        .await
        .map_err(given_up)?
    }

    /// Replaces this node's data by the rows of the archives whose primary it is. The node serves
    /// the old data until the new is complete; writes made meanwhile are replaced with it.
    pub async fn restore(
        self: &Arc<Self>,
        archives: Vec<PathBuf>,
        mut progress: Box<Progress<'static>>,
    ) -> Result<Loaded, BackupError> {
        let _alone = self.one_backup().map_err(BackupError::Store)?;
        let node = Arc::clone(self);
        let prepare = move || {
            let ring = node.topology();
            let (generation, path) = node.store.prepare_generation()?;
            let sizes = node.store.sizes();
            let loaded = restore::load(
                &archives,
                &ring.ring,
                &node.name,
                &path,
                sizes,
                &mut *progress,
            )
            .inspect_err(|_| discard(&path))?;
            Ok::<_, BackupError>((generation, loaded))
        };
        let (generation, loaded) = tokio::task::spawn_blocking(prepare)
            .await
            .map_err(given_up)??;
        let store = Arc::clone(&self.store);
        let metrics = Arc::clone(&self.metrics);
        self.writer
            .alone(move || {
                store.switch_to(&generation)?;
                metrics.set_rows(&loaded.rows);
                Ok::<_, BackupError>(())
            })
            .await
            .map_err(BackupError::Store)??;
        tracing::info!(
            rows = loaded.rows_loaded,
            rows_in_archives = loaded.rows_total,
            "restored"
        );
        Ok(loaded)
    }

    /// A backup that a client asked for: always below this node's own backup directory.
    pub(crate) async fn client_backup(self: &Arc<Self>) -> Result<PathBuf, Failure> {
        let root =
            std::path::absolute(self.backup_dir()).unwrap_or_else(|_| self.backup_dir().to_owned());
        let stamp = jiff::Timestamp::now()
            .strftime("%Y%m%dT%H%M%S%3fZ")
            .to_string();
        let directory = root.join(stamp);
        let made = directory.clone();
        tokio::task::spawn_blocking(move || std::fs::create_dir_all(&made))
            .await
            .map_err(|_| Failure::new(Code::Storage, "Backup failed: the work was given up"))?
            .map_err(|error| {
                Failure::new(
                    Code::Storage,
                    format!(
                        "Backup failed: cannot make {}: {error}",
                        directory.display()
                    ),
                )
            })?;
        match self.backup(directory.clone(), Box::new(|_, _| {})).await {
            Ok((path, _)) => Ok(path),
            Err(error) => {
                // Empty, since the archive removes what it began.
                let _ = std::fs::remove_dir(&directory);
                tracing::error!(error = %crate::store::chain(&error), "backup failed");
                Err(match error {
                    BackupError::Store(failure) => failure,
                    BackupError::DiskFull { .. } => {
                        Failure::new(Code::DiskFull, format!("Backup failed: {error}"))
                    }
                    error => Failure::new(
                        Code::Storage,
                        format!("Backup failed: {}", crate::store::chain(&error)),
                    ),
                })
            }
        }
    }
}

fn discard(path: &Path) {
    // The present data was not touched; a leftover is removed at the next start.
    let _ = std::fs::remove_dir_all(path);
}
