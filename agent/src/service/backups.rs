//! The backups of the fleet, wherever they lie.

use std::path::PathBuf;

use tanako_proto::fleet::v1 as wire;
use tonic::Status;

use super::{
    everywhere,
    rpc::{Service, refused},
};
use crate::{
    backup::set::{self, Condition},
    desired::Desired,
    hub::peer,
};

impl Service {
    /// The backups of this host, and of all others when the question was not passed on.
    pub(super) async fn backups(
        &self,
        desired: &Desired,
        passed_on: bool,
    ) -> Result<wire::BackupList, Status> {
        let Some(directory) = desired.backup_dir() else {
            return Ok(wire::BackupList::default());
        };
        let root = PathBuf::from(&directory);
        let listed = {
            let root = root.clone();
            tokio::task::spawn_blocking(move || set::list(&root)).await
        };
        let listed = listed.unwrap_or_else(|_| Err(std::io::Error::other("interrupted")));
        let sets = listed.map_err(|error| refused(set::unreadable(&root, &error)))?;
        let mut backups: Vec<wire::Backup> = sets.iter().map(set::Found::to_wire).collect();
        if !passed_on {
            let answers = everywhere::ask(&self.sources.hub, |mut client| async move {
                client
                    .list_backups(peer::hop(wire::ListBackupsRequest {}))
                    .await
            });
            everywhere::add_backups(&mut backups, self.sources.hub.host(), answers.await);
        }
        Ok(wire::BackupList { backups, directory })
    }
}

/// What the doctor says of them; nothing, where there is nothing to back up.
pub fn finding(
    desired: &Desired,
    listed: Result<wire::BackupList, Status>,
) -> Option<wire::Finding> {
    desired.spec.as_ref()?.database.as_ref()?;
    let finding = |severity: &str, message: String, hint: &str| wire::Finding {
        severity: severity.to_owned(),
        check: "backup".to_owned(),
        message,
        hint: hint.to_owned(),
        host: String::new(),
    };
    let list = match listed {
        Ok(list) => list,
        Err(status) => {
            let problem = wire::Problem::from_status(&status);
            let text = format!("{}: {}", problem.message, problem.cause);
            return Some(finding("error", text, &problem.hint));
        }
    };
    let verified = |backup: &&wire::Backup| backup.state == Condition::Verified.as_str();
    Some(match list.backups.iter().find(verified) {
        Some(newest) => finding("ok", format!("newest verified set: {}", newest.date), ""),
        None => finding(
            "warning",
            format!("there is no verified backup in {}", list.directory),
            "make one: `tanakoctl backup`; and set a schedule in [backup]",
        ),
    })
}
