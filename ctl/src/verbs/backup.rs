//! `tanakoctl backup`.

use std::time::Duration;

use clap::Subcommand;
use tanako_proto::fleet::v1::{ListBackupsRequest, OperationRequest};

use crate::{
    confirm::Severity,
    exit::Exit,
    failure::{Failure, Outcome},
    operate::{self, Running, Wish},
    session::Session,
    view::backup::BackupListView,
};

/// How long a backup is followed unless `--timeout` says else.
pub(super) const PATIENCE: Duration = Duration::from_hours(12);

/// Back up the fleet's database while it serves; list, verify and prune backups
///
/// A backup counts as good only after it was read back and its checksums and row counts agreed.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Its label [default: today]
    #[arg(long, value_name = "YYYYMMDD", value_parser = parse_label)]
    date: Option<String>,
    #[command(flatten)]
    running: Running,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the backups
    List,
    /// Read a backup back and compare checksums and row counts
    Verify {
        /// Which one [default: the latest]
        #[arg(long, value_name = "YYYYMMDD", value_parser = parse_label)]
        date: Option<String>,
        #[command(flatten)]
        running: Running,
    },
    /// Delete all but the newest backups (asks for the fleet's name; exit 3 when there are none to delete)
    Prune {
        /// How many to keep [default: as fleet.toml says]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
        #[command(flatten)]
        running: Running,
    },
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let (kind, running, wish) = match self.verb {
            Some(Verb::List) => {
                let list = session
                    .fleet()
                    .await?
                    .list_backups(ListBackupsRequest {})
                    .await?;
                session.ui.report(&BackupListView::from(list))?;
                return Ok(Exit::Ok);
            }
            None => ("backup", self.running, wish(self.date, Severity::Harmless)),
            Some(Verb::Verify { date, running }) => {
                ("backup-verify", running, wish(date, Severity::Harmless))
            }
            Some(Verb::Prune { keep, running }) => {
                let mut wish = wish(None, Severity::Destructive);
                wish.request.keep = keep.unwrap_or(0);
                wish.loses = Some(match keep {
                    Some(keep) => format!("deletes all backups but the newest {keep}"),
                    None => "deletes all backups but the newest that fleet.toml keeps".into(),
                });
                ("backup-prune", running, wish)
            }
        };
        let wish = Wish {
            request: OperationRequest {
                kind: kind.into(),
                ..wish.request
            },
            ..wish
        };
        operate::run(session, &running, wish).await
    }
}

fn wish(date: Option<String>, severity: Severity) -> Wish {
    Wish {
        request: OperationRequest {
            date: date.unwrap_or_default(),
            ..OperationRequest::default()
        },
        severity,
        loses: None,
        patience: PATIENCE,
    }
}

/// Reads a backup's label: a day, or a day and which backup of that day.
pub(super) fn parse_label(text: &str) -> Result<String, String> {
    let (day, number) = text
        .split_once('-')
        .map_or((text, None), |(day, number)| (day, Some(number)));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let number_is_good =
        number.is_none_or(|number| !number.is_empty() && number.len() <= 4 && digits(number));
    let date = (day.len() == 8 && digits(day))
        .then(|| {
            let part = |range: std::ops::Range<usize>| day[range].parse::<i16>().ok();
            jiff::civil::Date::new(part(0..4)?, part(4..6)? as i8, part(6..8)? as i8).ok()
        })
        .flatten();
    if date.is_some() && number_is_good {
        return Ok(text.to_owned());
    }
    Err("a backup's label is a day, as in 20261121, or 20261121-2 for the second of a day".into())
}

/// Why a verb about backups has nothing to work on.
pub(super) fn unknown_label(date: &str, known: &[String]) -> Failure {
    let failure = Failure::new("unknown-backup", date, "there is no backup of this label");
    match (
        crate::target::nearest(date, known.iter().map(String::as_str)),
        known.last(),
    ) {
        (Some(near), _) => failure.hint(format!(
            "did you mean {near}? `tanakoctl backup list` shows all"
        )),
        (None, Some(_)) => failure.hint("`tanakoctl backup list` shows what there is"),
        (None, None) => failure.hint("there are no backups at all; `tanakoctl backup` makes one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_days() {
        for good in ["20261121", "20240229", "20261121-2"] {
            assert_eq!(parse_label(good).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "2026-11-21",
            "20261321",
            "20230229",
            "2026112",
            "20261121-",
            "20261121-x",
            "../../etc",
            "２０２６１１２１",
        ] {
            assert!(parse_label(bad).is_err(), "{bad}");
        }
    }
}
