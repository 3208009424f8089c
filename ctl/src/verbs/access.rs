//! `tanakoctl access`.

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;
use tanako_pki::{IDENTITY_FILE, Pending, Serial};
use tanako_proto::{
    fleet::v1::Problem,
    identity::v1::{Certificate, GrantRequest, Issued, RevokeRequest},
};

use crate::{
    client::{Fleet, Way, chain},
    confirm::{Change, Consent, Severity, confirm},
    exit::Exit,
    failure::{Failure, Outcome},
    paint::Paint,
    remote::Remote,
    session::{Session, status},
    table::{Cell, Table},
    ui::Report,
    units::{age, parse_duration},
};

/// Decide who may use the fleet: grant, revoke and list identities
///
/// Roles: viewer looks, operator runs the fleet, admin also decides who else may. An identity is a
/// directory with a certificate and its key; `tanakoctl context add NAME --address IP:PORT --identity DIR`
/// uses it. Revoke exits 3 when there was nothing to revoke.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make an identity; its key is made here and never leaves the directory
    Grant {
        /// Whose it is
        name: String,
        /// What they may do
        #[arg(long, value_name = "ROLE", value_parser = ["viewer", "operator", "admin"])]
        role: String,
        /// Directory for certificate and key, made with mode 0700
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long it holds, 366 days at most
        #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = parse_duration)]
        ttl: Duration,
        /// Say what would be made, make nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Make identities worthless, at once and on every host
    Revoke {
        /// A name (all its certificates), or a serial number (that one)
        #[arg(value_name = "NAME|SERIAL")]
        what: String,
        #[command(flatten)]
        consent: Consent,
        /// Say what would be revoked, revoke nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// List the identities that hold, and those that were revoked
    List,
}

#[derive(Debug, Serialize)]
struct CertificateView {
    name: String,
    role: String,
    /// holds, revoked.
    state: &'static str,
    serial: String,
    issued_at: i64,
    not_after: i64,
    issued_by: String,
    revoked_at: i64,
    revoked_by: String,
}

impl From<Certificate> for CertificateView {
    fn from(one: Certificate) -> Self {
        Self {
            state: if one.revoked_at == 0 {
                "holds"
            } else {
                "revoked"
            },
            name: one.name,
            role: one.role,
            serial: one.serial,
            issued_at: one.issued_at,
            not_after: one.not_after,
            issued_by: one.issued_by,
            revoked_at: one.revoked_at,
            revoked_by: one.revoked_by,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Certificates(Vec<CertificateView>);

impl Report for Certificates {
    fn table(&self, paint: Paint, _wide: bool) -> String {
        if self.0.is_empty() {
            return "no identities are listed\n".into();
        }
        let now = Timestamp::now().as_millisecond();
        let mut table = Table::new(&["NAME", "ROLE", "STATE", "SERIAL", "BY", "ENDS IN"]);
        for one in &self.0 {
            let left = u64::try_from((one.not_after - now) / 1000).unwrap_or(0);
            let by = if one.revoked_at == 0 {
                &one.issued_by
            } else {
                &one.revoked_by
            };
            table.row(vec![
                Cell::new(&*one.name),
                Cell::new(&*one.role),
                Cell::new(one.state),
                Cell::new(&*one.serial),
                Cell::new(&**by),
                Cell::new(age(left)),
            ]);
        }
        table.render(paint)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|one| one.name.clone()).collect()
    }
}

#[derive(Debug, Serialize)]
struct Granted {
    name: String,
    role: String,
    serial: String,
    not_after: i64,
    directory: PathBuf,
}

impl Report for Granted {
    fn table(&self, _paint: Paint, _wide: bool) -> String {
        format!("{}\n", self.directory.display())
    }

    fn names(&self) -> Vec<String> {
        vec![self.name.clone()]
    }
}

#[derive(Debug, Serialize)]
struct RevokedView {
    serials: Vec<String>,
}

impl Report for RevokedView {
    fn table(&self, _paint: Paint, _wide: bool) -> String {
        match self.serials.len() {
            0 => "nothing was left to revoke\n".to_owned(),
            n => format!("{n} revoked: {}\n", self.serials.join(", ")),
        }
    }

    fn names(&self) -> Vec<String> {
        self.serials.clone()
    }
}

impl Args {
    pub(super) async fn run(self, session: &Session) -> Outcome {
        match self.verb {
            Verb::List => list(session).await,
            Verb::Grant {
                name,
                role,
                out,
                ttl,
                dry_run,
            } => grant(session, name, role, out, ttl, dry_run).await,
            Verb::Revoke {
                what,
                consent,
                dry_run,
            } => revoke(session, what, consent, dry_run).await,
        }
    }
}

async fn list(session: &Session) -> Outcome {
    let all = session.fleet().await?.identities().await?.certificates;
    let views = all.into_iter().map(CertificateView::from).collect();
    session.ui.report(&Certificates(views))?;
    Ok(Exit::Ok)
}

async fn grant(
    session: &Session,
    name: String,
    role: String,
    out: PathBuf,
    ttl: Duration,
    dry_run: bool,
) -> Outcome {
    let mut fleet = session.fleet().await?;
    if dry_run {
        session.ui.print(&format!(
            "would make an identity for {name} with the role {role} in {}\n",
            out.display()
        ))?;
        return Ok(Exit::Changes);
    }
    session.may_write()?;
    if out.join(IDENTITY_FILE).exists() {
        return Err(Failure::new(
            "exists",
            out.display().to_string(),
            "there is an identity already, and it stays as it is",
        )
        .hint("name another directory with --out"));
    }
    let made_wrong = |error: tanako_pki::Error| {
        Failure::new("internal", &name, "the key or certificate cannot be made")
            .cause(chain(&error))
    };
    let pending = Pending::generate().map_err(made_wrong)?;
    let request = GrantRequest {
        name: name.clone(),
        role: role.clone(),
        csr: pending.request().to_vec().into(),
        ttl_s: ttl.as_secs(),
    };
    let issued = at_issuer(session, &mut fleet, request).await?;
    let der = |list: Vec<tanako_proto::Bytes>| list.into_iter().map(|der| der.to_vec());
    let identity = pending
        .complete(der(issued.chain), der(issued.authorities))
        .map_err(made_wrong)?;
    identity.save(&out).map_err(|error| {
        Failure::new(
            "io",
            out.display().to_string(),
            "the identity is not written",
        )
        .cause(chain(&error))
        .hint(format!(
            "revoke it, then try another directory: tanakoctl access revoke {}",
            issued.serial
        ))
    })?;
    session.ui.note(&format!(
        "Whoever has this directory is {name}. They use it with:\n  tanakoctl context add NAME --address IP:PORT --identity {}",
        out.display()
    ));
    session.ui.report(&Granted {
        name,
        role,
        serial: issued.serial,
        not_after: issued.not_after,
        directory: out,
    })?;
    Ok(Exit::Ok)
}

/// Asks the agent at hand, and those that hold the authority's key when it does not.
async fn at_issuer(
    session: &Session,
    fleet: &mut Fleet,
    request: GrantRequest,
) -> Result<Issued, Failure> {
    let first = fleet.writer()?.grant(request.clone()).await;
    let mut problem: Problem = match first {
        Ok(issued) => return Ok(issued),
        Err(problem) => problem,
    };
    let Way::Fleet(remote) = fleet.endpoint().way().clone() else {
        return Err(problem.into());
    };
    if problem.code != "not-issuer" {
        return Err(problem.into());
    }
    for member in fleet.members().await?.members {
        let Some(address) = member.address.parse().ok().filter(|_| member.issuer) else {
            continue;
        };
        let only = Remote {
            addresses: vec![address],
            ..remote.clone()
        };
        let asked = async {
            let issuer = session.endpoint_by(Way::Fleet(only)).open().await?;
            issuer.writer()?.grant(request.clone()).await
        };
        match asked.await {
            Ok(issued) => return Ok(issued),
            Err(other) => problem = other,
        }
    }
    Err(problem.into())
}

async fn revoke(session: &Session, what: String, consent: Consent, dry_run: bool) -> Outcome {
    let mut fleet = session.fleet().await?;
    let known = fleet.identities().await?.certificates;
    let by_name = known.iter().any(|one| one.name == what);
    let serial = Serial::try_from(what.clone()).map(String::from);
    let request = match serial {
        Ok(serial) if !by_name => RevokeRequest {
            serial,
            ..RevokeRequest::default()
        },
        _ => RevokeRequest {
            name: what.clone(),
            ..RevokeRequest::default()
        },
    };
    let meant: Vec<&Certificate> = known
        .iter()
        .filter(|one| one.revoked_at == 0)
        .filter(|one| one.name == what || one.serial == request.serial)
        .collect();
    let blast = match meant.first() {
        Some(first) => format!(
            "makes {} certificate(s) of {} ({}) worthless on every host",
            meant.len(),
            first.name,
            first.role
        ),
        None => format!("revokes {what}, of which nothing is listed that holds"),
    };
    if dry_run {
        session.ui.print(&format!("this {blast}\n"))?;
        return Ok(if meant.is_empty() {
            Exit::Nothing
        } else {
            Exit::Changes
        });
    }
    session.may_write()?;
    let now = status(&mut fleet).await?;
    let change = Change {
        severity: Severity::Disruptive,
        blast: &blast,
        name: &what,
        production: now.production.then_some(now.fleet.as_str()),
    };
    confirm(&session.ui, &consent, &change).await?;
    let revoked = fleet.writer()?.revoke(request).await?;
    session.ui.report(&RevokedView {
        serials: revoked.serials,
    })?;
    Ok(if revoked.unchanged {
        Exit::Nothing
    } else {
        Exit::Ok
    })
}
