//! Backups: `tanakoctl backup list`.

use serde::Serialize;
use tanako_proto::fleet::v1::{Backup, BackupList};

use super::{clock, text, time};
use crate::{
    paint::{Paint, clean},
    table::{Cell, Table},
    ui::Report,
    units::{bytes, now_ms},
};

/// `backup list -o json`.
#[derive(Debug, Serialize)]
pub struct BackupListView {
    directory: String,
    backups: Vec<BackupView>,
}

#[derive(Debug, Serialize)]
struct BackupView {
    date: String,
    created_at: Option<String>,
    bytes: u64,
    rows: u64,
    nodes: u32,
    /// The host it lies on; null = the fleet's only one.
    host: Option<String>,
    state: String,
    detail: Option<String>,
    verified_at: Option<String>,
    #[serde(skip)]
    created_at_ms: i64,
    #[serde(skip)]
    verified_at_ms: i64,
}

impl From<Backup> for BackupView {
    fn from(backup: Backup) -> Self {
        Self {
            date: backup.date,
            created_at: time(backup.created_at),
            bytes: backup.bytes,
            rows: backup.rows,
            nodes: backup.nodes,
            host: text(backup.host),
            state: backup.state,
            detail: text(backup.detail),
            verified_at: time(backup.verified_at),
            created_at_ms: backup.created_at,
            verified_at_ms: backup.verified_at,
        }
    }
}

impl From<BackupList> for BackupListView {
    fn from(list: BackupList) -> Self {
        Self {
            directory: list.directory,
            backups: list.backups.into_iter().map(Into::into).collect(),
        }
    }
}

impl Report for BackupListView {
    fn table(&self, paint: Paint, wide: bool) -> String {
        if self.backups.is_empty() {
            return format!("no backups in {}\n", self.directory);
        }
        let now = now_ms();
        let mut head = vec![
            "DATE", "STATE", "ROWS", "SIZE", "NODES", "VERIFIED", "CREATED",
        ];
        let hosts = self.backups.iter().any(|backup| backup.host.is_some());
        if hosts {
            head.push("HOST");
        }
        if wide {
            head.push("DETAIL");
        }
        let mut table = Table::new(&head);
        for backup in &self.backups {
            let mut row = vec![
                Cell::new(&backup.date),
                Cell::state(&backup.state),
                Cell::number(backup.rows),
                Cell::number(bytes(backup.bytes)),
                Cell::number(backup.nodes),
                Cell::new(clock(backup.verified_at_ms, now)),
                Cell::new(clock(backup.created_at_ms, now)),
            ];
            if hosts {
                row.push(Cell::new(backup.host.as_deref().unwrap_or("-")));
            }
            if wide {
                row.push(Cell::new(clean(
                    backup.detail.as_deref().unwrap_or(""),
                    false,
                )));
            }
            table.row(row);
        }
        table.render(paint)
    }

    fn names(&self) -> Vec<String> {
        self.backups
            .iter()
            .map(|backup| backup.date.clone())
            .collect()
    }
}
