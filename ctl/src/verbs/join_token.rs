//! `tanakoctl join-token`.

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use tanako_proto::identity::v1::TokenRequest;

use crate::{
    exit::Exit,
    failure::{Failure, Outcome},
    paint::Paint,
    session::Session,
    ui::Report,
    units::parse_duration,
};

/// Make a token with which one host can join the fleet, once
///
/// Whoever has it can become that host: hand it over like a password, best in a file of mode 0600. The
/// fleet keeps only a hash of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the new host
    #[arg(long, value_name = "NAME")]
    host: String,
    /// How long it can be used
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = parse_duration)]
    ttl: Duration,
    /// What the host becomes
    #[arg(long, value_name = "ROLE", default_value = "agent", value_parser = ["agent"])]
    role: String,
    /// Write the token to this new file of mode 0600 instead of printing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Say what would be made, make nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Made {
    id: String,
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    expires_at: i64,
}

impl Report for Made {
    fn table(&self, _paint: Paint, _wide: bool) -> String {
        match (&self.token, &self.file) {
            (Some(token), _) => format!("{token}\n"),
            (None, Some(file)) => format!("{}\n", file.display()),
            (None, None) => String::new(),
        }
    }

    fn names(&self) -> Vec<String> {
        vec![self.id.clone()]
    }
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        let ttl_s = u32::try_from(self.ttl.as_secs())
            .map_err(|_| Failure::usage("--ttl", "a token lives for 7 days at most"))?;
        if ttl_s == 0 {
            return Err(Failure::usage("--ttl", "a token needs at least a second"));
        }
        let fleet = session.fleet().await?;
        if self.dry_run {
            session.ui.print(&format!(
                "would make a token for host {}, good once within {ttl_s} s\n",
                self.host
            ))?;
            return Ok(Exit::Changes);
        }
        if let Some(path) = &self.out
            && path.exists()
        {
            return Err(Failure::new(
                "exists",
                path.display().to_string(),
                "the file is there already and stays as it is",
            )
            .hint("name another file"));
        }
        let made = fleet
            .writer()?
            .create_token(TokenRequest {
                host: self.host.clone(),
                ttl_s,
                role: self.role,
            })
            .await?;
        if let Some(path) = &self.out {
            tanako_pki::write_private(path, format!("{}\n", made.token).as_bytes()).map_err(
                |error| {
                    Failure::new("io", path.display().to_string(), "the token is not written")
                        .cause(crate::client::chain(&error))
                        .hint("make another one; this one helps nobody")
                },
            )?;
        }
        let until = Timestamp::from_millisecond(made.expires_at)
            .map_or_else(|_| String::new(), |at| format!(" until {at:.0}"));
        session.ui.note(&format!(
            "On host {}, once{until}:\n  tanako-agent join --token-file FILE --data-dir /var/lib/tanako",
            self.host
        ));
        session.ui.report(&Made {
            id: made.id,
            host: self.host,
            token: self.out.is_none().then_some(made.token),
            file: self.out,
            expires_at: made.expires_at,
        })?;
        Ok(Exit::Ok)
    }
}
