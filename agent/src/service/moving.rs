//! The store's move to etcd, as it is asked for. See [`crate::migrate`].

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tanako_proto::fleet::v1::{self as wire, Problem};
use tanako_store::{
    LeaseId, Store, StoreError,
    etcd::{EtcdStore, Options, Tls, User},
};
use tokio::sync::oneshot;

use super::rpc::Service;
use crate::{
    audit::Record,
    clock::now_ms,
    config::StoreConfig,
    coordinator::Caller,
    history::Severity,
    migrate::{
        copy::{self, Copied, CopyError},
        file::StoreFile,
        valve::Valve,
    },
    problem,
    tenure::{self, HandOnError},
};

/// How long writes under way may take to end.
const SHUT_WITHIN: Duration = Duration::from_secs(10);
/// How long all of the copying may take: decisions wait meanwhile.
const COPY_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for one call of etcd.
const CALL_WITHIN: Duration = Duration::from_secs(5);
/// How long the next agent may take to come up: before that its binary is tried, and this one stops.
const NEXT_WITHIN: Duration = Duration::from_secs(60);

impl Service {
    /// Moves the state and asks for the agent's replacement, or says why not; then all is as before.
    pub(super) async fn move_store(
        &self,
        request: wire::MigrateStoreRequest,
        caller: Caller,
    ) -> Result<wire::MigrateStoreReply, Box<Problem>> {
        let config = &self.sources.config;
        let dry_run = request.dry_run;
        let file = read(request)?;
        if let StoreConfig::Etcd(etcd) = &config.store {
            let same =
                etcd.options.prefix.trim_end_matches('/') == file.prefix.trim_end_matches('/');
            if same {
                return Ok(wire::MigrateStoreReply {
                    unchanged: true,
                    ..wire::MigrateStoreReply::default()
                });
            }
            return Err(Box::new(Problem::new(
                "on-etcd",
                "store",
                format!(
                    "this agent uses etcd already, under {}",
                    etcd.options.prefix
                ),
            )
            .hint(
                "what is on etcd is moved with etcd's own tools (etcdctl snapshot, make-mirror)",
            )));
        }
        let Some(valve) = self.sources.valve.clone() else {
            return Err(Box::new(problem::stopping()));
        };
        let target = open(&file)?;
        let source = format!("{} {}", config.host, config.data_dir.display());
        if dry_run {
            let looked = copy::look(&**valve.store(), &target, &source);
            let copied = in_time(looked)
                .await
                .map_err(|error| explain(&error, &file.prefix))?;
            return Ok(reply(copied));
        }
        let record = Record {
            at: now_ms(),
            who: caller.who,
            from: caller.from,
            action: "store-migrate".to_owned(),
            object: format!("host:{}", config.host),
            before: "embedded".to_owned(),
            after: format!("etcd {} under {}", file.endpoints.join(","), file.prefix),
            outcome: "accepted".to_owned(),
        };
        self.sources.coordinator.audit(record).await?;
        // The move goes on when whoever asked for it is gone.
        let (this, moving) = (self.clone(), valve);
        let moved = tokio::spawn(async move { this.carry_out(moving, target, file, source).await });
        moved
            .await
            .unwrap_or_else(|_| Err(Box::new(problem::stopping())))
    }

    async fn carry_out(
        &self,
        valve: Valve,
        target: EtcdStore,
        file: StoreFile,
        source: String,
    ) -> Result<wire::MigrateStoreReply, Box<Problem>> {
        let data_dir = self.sources.config.data_dir.clone();
        // From here on until the agent is replaced, nothing is decided; dropping it goes back.
        let Some(shut) = valve.shut(SHUT_WITHIN).await else {
            let refusal = Problem::new(
                "timeout",
                "store",
                "writes under way did not come to an end",
            );
            return Err(Box::new(refusal.retryable()));
        };
        let copied = in_time(copy::copy(&**valve.store(), &target, &source))
            .await
            .map_err(|error| explain(&error, &file.prefix))?;
        let io = |error: crate::migrate::file::FileError| {
            Problem::new("io", "store.json", error.to_string())
                .hint("nothing was changed; look at the disk of the data directory")
        };
        let config = &self.sources.config;
        // The next agent is started with the arguments of this one.
        let lease = hand_on(&target, &config.host, &data_dir, config.host_lease)
            .await
            .map_err(|error| {
                let refusal = Problem::new("store-unavailable", "etcd", error.to_string())
                    .cause(problem::with_sources(&error));
                refusal.hint("nothing was changed; see `tanakoctl store migrate --help`")
            })?;
        file.save(&data_dir).map_err(io)?;
        self.sources.history.event(
            Severity::Warning,
            "store-moved",
            "store",
            format!(
                "{} keys are in etcd under {}; the agent goes on there",
                copied.keys, file.prefix
            ),
        );
        let (answer, checked) = oneshot::channel();
        let asked = self.upgrades.send(answer).await.is_ok();
        let failure = match checked.await {
            Ok(Ok(_)) if asked => {
                // What were written here now would be lost.
                valve.seal(shut);
                return Ok(reply(copied));
            }
            Ok(Err(error)) => error.to_string(),
            _ => "the agent is stopping".to_owned(),
        };
        StoreFile::remove(&data_dir).map_err(io)?;
        // Otherwise it ends by itself, and holds up the next try until then.
        let _ = target.revoke(lease).await;
        drop(shut);
        let refusal = Problem::new(
            "upgrade-failed",
            "agent",
            "the agent could not be replaced, and goes on with the store it had",
        );
        Err(Box::new(
            refusal
                .cause(failure)
                .hint("install a working tanako-agent and try again"),
        ))
    }
}

/// Hands what runs on to the next agent, which has a minute to come up. On a busy machine that may take longer
/// than a lease lives, and an agent that finds its time over kills every bot. Nobody else can own them
/// meanwhile: this is the only host of its fleet, and such a one is released by nobody but the operator
/// ([`tanako_fleet::tenure::Terms::stay`] is 0). The minute ends with the first word of the store: no lease
/// is written down, so that the next agent takes its key again, and from then on goes by that lease.
async fn hand_on(
    target: &dyn Store,
    host: &str,
    data_dir: &Path,
    life: Duration,
) -> Result<LeaseId, HandOnError> {
    tenure::hand_on(target, host, data_dir, life).await?;
    let Some(mut written) = tenure::file::read(data_dir) else {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    };
    let lease = std::mem::take(&mut written.lease);
    written.until += NEXT_WITHIN.as_millis() as u64;
    tenure::file::write(data_dir, &written)?;
    Ok(lease)
}

fn reply(copied: Copied) -> wire::MigrateStoreReply {
    wire::MigrateStoreReply {
        keys: copied.keys,
        bytes: copied.bytes,
        unchanged: false,
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, CopyError>>) -> Result<T, CopyError> {
    match tokio::time::timeout(COPY_WITHIN, work).await {
        Ok(done) => done,
        Err(_) => Err(CopyError::Store(StoreError::Unavailable(format!(
            "it took more than {} s",
            COPY_WITHIN.as_secs()
        )))),
    }
}

fn read(request: wire::MigrateStoreRequest) -> Result<StoreFile, Box<Problem>> {
    let path = |text: &str| -> Result<Option<PathBuf>, Box<Problem>> {
        match text {
            "" => Ok(None),
            text if text.starts_with('/') => Ok(Some(PathBuf::from(text))),
            text => {
                let refusal = Problem::new(
                    "invalid-argument",
                    text,
                    "files are named by absolute paths",
                );
                Err(Box::new(refusal.hint("they are read on the agent's host")))
            }
        }
    };
    Ok(StoreFile {
        endpoints: request.endpoints,
        prefix: request.prefix,
        ca: path(&request.ca)?,
        cert: path(&request.cert)?,
        key: path(&request.key)?,
        user: (!request.user.is_empty()).then_some(request.user),
        password_file: path(&request.password_file)?,
    })
}

fn open(file: &StoreFile) -> Result<EtcdStore, Box<Problem>> {
    let wrong = |text: String| {
        let refusal = Problem::new("invalid-argument", "etcd", text);
        Box::new(refusal.hint("see `tanakoctl store migrate --help`"))
    };
    if file.endpoints.is_empty() || file.prefix.is_empty() {
        return Err(wrong(
            "name the members with --endpoints, and a prefix of this fleet's own with --prefix"
                .to_owned(),
        ));
    }
    let tls = file.ca.clone().map(|ca| Tls {
        ca,
        cert: file.cert.clone(),
        key: file.key.clone(),
    });
    if tls.is_none() && (file.cert.is_some() || file.key.is_some()) {
        return Err(wrong("--cert and --key need --ca".to_owned()));
    }
    let user = match (&file.user, &file.password_file) {
        (Some(name), Some(password_file)) => Some(User {
            name: name.clone(),
            password_file: password_file.clone(),
        }),
        (None, None) => None,
        _ => return Err(wrong("--user and --password-file go together".to_owned())),
    };
    let options = Options {
        endpoints: file.endpoints.clone(),
        prefix: file.prefix.clone(),
        tls,
        user,
        timeout: CALL_WITHIN,
    };
    let options = options
        .checked()
        .map_err(|error| wrong(problem::with_sources(&error)))?;
    EtcdStore::open(options).map_err(|error| wrong(problem::with_sources(&error)))
}

fn explain(error: &CopyError, prefix: &str) -> Problem {
    let text = error.to_string();
    match error {
        CopyError::NotEmpty { .. } => Problem::new("not-empty", prefix, format!("the place in etcd is in use: {text}"))
            .hint("choose another --prefix; nothing there was changed"),
        CopyError::Raced(_) | CopyError::Different(_) => {
            Problem::new("conflict", prefix, format!("the copy in etcd cannot be trusted: {text}"))
                .hint("see that nobody else writes under this prefix, then try again; the agent goes on with the store it had")
                .retryable()
        }
        CopyError::Store(source) => Problem::new("store-unavailable", prefix, text)
            .cause(source.to_string())
            .hint("check the etcd servers (etcdctl endpoint health), then try again; nothing was changed")
            .retryable(),
    }
}

#[cfg(test)]
mod tests {
    use tanako_fleet::tenure::{Effect, Input, Tenure, Way};
    use tanako_store::embedded::{EmbeddedStore, Options};

    use super::*;
    use crate::{clock::boot_ms, config::HOST_LEASE};

    #[tokio::test]
    async fn the_next_agent_has_a_minute_and_then_goes_by_its_lease() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = EmbeddedStore::open(&dir.path().join("store"), &Options::default());
        let store = store.expect("opens");
        let before = u64::try_from(boot_ms()).expect("since the boot");
        hand_on(&store, "a", dir.path(), HOST_LEASE)
            .await
            .expect("handed on");
        let written = tenure::file::read(dir.path()).expect("written down");
        let late = before + 60_000;
        assert!(written.until > late, "{written:?}");

        let ttl = HOST_LEASE.as_millis() as u64;
        let mut next = Tenure::adopted(ttl, late, written.lease, written.until, written.stay);
        let (lease, way) = (0, Way::Direct);
        assert_eq!(next.step(late, Input::Tick), [Effect::Renew { lease, way }]);
        assert_eq!(next.step(late, Input::Ended { lease }), [Effect::Reclaim]);
        // It stays, as the only host may, and only so long as it lives.
        assert!(next.is_tenured(late) && next.until(late) < late + ttl);
    }
}
