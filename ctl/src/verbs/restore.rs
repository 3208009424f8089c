//! `tanakoctl restore`.

use tanako_proto::fleet::v1::{ListBackupsRequest, OperationRequest};

use super::backup::{PATIENCE, parse_label, unknown_label};
use crate::{
    confirm::Severity,
    failure::Outcome,
    operate::{self, Running, Wish},
    session::Session,
};

/// Put the database back to what a backup holds
///
/// The backup is verified first, and everything written since it was made is lost: asks for the fleet's
/// name, or give --confirm=FLEET where there is no terminal.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which backup
    #[arg(long, value_name = "YYYYMMDD", value_parser = parse_label)]
    date: String,
    #[command(flatten)]
    running: Running,
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        if !self.running.dry_run {
            session.may_write()?;
        }
        let list = session
            .fleet()
            .await?
            .list_backups(ListBackupsRequest {})
            .await?;
        let known: Vec<String> = list.backups.into_iter().map(|backup| backup.date).collect();
        if !known.contains(&self.date) {
            return Err(unknown_label(&self.date, &known));
        }
        let wish = Wish {
            loses: Some(format!(
                "replaces the whole database by the backup {}; everything written since then is lost",
                self.date
            )),
            request: OperationRequest {
                kind: "restore".into(),
                date: self.date,
                ..OperationRequest::default()
            },
            severity: Severity::Destructive,
            patience: PATIENCE,
        };
        operate::run(session, &self.running, wish).await
    }
}
