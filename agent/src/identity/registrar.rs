//! Issues, renews and revokes the fleet's certificates, in the store.
//!
//! Every agent can make tokens, revoke and list; only one that holds the authority's key issues. Each
//! change is one transaction with its line in the audit log.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tanako_pki::{
    Authority, Given, Holder, Issued, JoinToken, KeyRequest, Peer, Renewal, Role, Secret, Serial,
    Subject, check_name,
};
use tanako_proto::{fleet::v1::Problem, identity::v1 as wire};
use tanako_store::{Store, StoreError, Txn};

use super::{
    Credentials,
    ledger::{HOLDERS, INVITATIONS, Invitation, Refused, entered},
    revoked::{self, Revocation, Revoked},
};
use crate::{
    audit::{self, Record},
    clock::now_ms,
    coordinator::Caller,
    operations::ledger::{decode, encode},
    problem,
};

/// Life of an agent's certificate unless configured. Short: it renews itself.
pub const AGENT_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Life of a user's certificate unless asked for, and at most.
const USER_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
const USER_LIFE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Life of a token unless asked for, and at most.
const TOKEN_LIFE: Duration = Duration::from_secs(15 * 60);
const TOKEN_LIFE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// Addresses in a token.
const TOKEN_ADDRESSES_MAX: usize = 5;
/// Tries of a change that others come before.
const TRIES_MAX: usize = 8;
/// Old entries dropped along with one change.
const PURGED_MAX: usize = 16;
/// A certificate that nobody knows is remembered as revoked for so long.
const UNKNOWN_LIFE_MS: i64 = 366 * 24 * 3600 * 1000;

/// Why something was not done, apart from its form on the wire.
#[derive(Debug, thiserror::Error)]
pub enum RegistrarError {
    /// The rules say no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Its certificate is revoked.
    #[error("the certificate is revoked")]
    Revoked,
    /// What was sent cannot be used.
    #[error(transparent)]
    Invalid(#[from] tanako_pki::Error),
    /// A value that cannot be used.
    #[error("{0}")]
    Argument(String),
    /// The authority's key is elsewhere.
    #[error("this agent does not hold the authority's key")]
    NotIssuer,
    /// The store does not answer, or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Others changed the same again and again.
    #[error("others change the same at the same time")]
    Busy,
    /// There is nobody of that name or number.
    #[error("there is no identity {0:?}")]
    Nobody(String),
}

impl RegistrarError {
    /// Whether somebody tried what they may not.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Revoked)
            || matches!(
                self,
                Self::Invalid(tanako_pki::Error::Signature | tanako_pki::Error::Untrusted(_))
            )
    }

    /// For the caller.
    pub fn problem(&self, object: &str) -> Problem {
        let text = self.to_string();
        match self {
            Self::Store(error) => problem::from_store(error),
            Self::Refused(Refused::Taken { .. }) => Problem::new("conflict", object, text)
                .hint("choose another name, or revoke that identity first: tanakoctl access revoke"),
            Self::Refused(Refused::TooMany(_)) => Problem::new("conflict", object, text)
                .hint("revoke those that are not needed: tanakoctl access list, tanakoctl access revoke SERIAL"),
            Self::Refused(Refused::Unknown) | Self::Revoked => Problem::new("denied", object, text)
                .hint("ask an admin for a new identity: `tanakoctl access grant`, or `tanakoctl join-token` for a host"),
            Self::Refused(_) => Problem::new("denied", object, text)
                .hint("make a new token on a host of the fleet: tanakoctl join-token --host NAME"),
            Self::Invalid(error) if self.is_refusal() => {
                Problem::new("denied", object, "the renewal is refused")
                    .cause(problem::with_sources(error))
                    .hint("ask an admin for a new identity: `tanakoctl access grant`, or `tanakoctl join-token` for a host")
            }
            Self::Invalid(error) => {
                Problem::new("invalid-argument", object, problem::with_sources(error))
                    .hint("use tanakoctl and tanako-agent of this version")
            }
            Self::Argument(_) => Problem::new("invalid-argument", object, text),
            Self::NotIssuer => Problem::new("not-issuer", object, text)
                .hint("run it on a host that holds ca.key, or with a context that reaches one"),
            Self::Busy => Problem::new("store-unavailable", object, text)
                .hint("try again")
                .retryable(),
            Self::Nobody(_) => Problem::new("unknown-target", object, text)
                .hint("`tanakoctl access list` lists names and serial numbers"),
        }
    }
}

type Result<T> = std::result::Result<T, RegistrarError>;

/// Issues and revokes; clones are cheap.
#[derive(Clone)]
pub struct Registrar {
    store: Arc<dyn Store>,
    authority: Option<Arc<Authority>>,
    credentials: Credentials,
    revoked: Revoked,
    agent_life: Duration,
}

impl Registrar {
    /// Over the store; with the authority where its key is here.
    pub fn new(
        store: Arc<dyn Store>,
        authority: Option<Arc<Authority>>,
        credentials: Credentials,
        revoked: Revoked,
        agent_life: Duration,
    ) -> Self {
        Self {
            store,
            authority,
            credentials,
            revoked,
            agent_life,
        }
    }

    /// Whether the authority's key is here.
    pub fn is_issuer(&self) -> bool {
        self.authority.is_some()
    }

    /// A token for a new host. Only its hash is kept.
    pub async fn invite(
        &self,
        host: &str,
        ttl: Duration,
        addresses: Vec<SocketAddr>,
        caller: &Caller,
    ) -> Result<JoinToken> {
        check_name(host).map_err(tanako_pki::Error::from)?;
        let ttl = if ttl.is_zero() { TOKEN_LIFE } else { ttl };
        if ttl > TOKEN_LIFE_MAX {
            return Err(RegistrarError::Argument(
                "a join token lives for 7 days at most".to_owned(),
            ));
        }
        let identity = self.credentials.current().identity.clone();
        let now = now_ms();
        let token = JoinToken {
            id: JoinToken::new_id()?,
            secret: Secret::generate()?,
            fleet: identity.peer().fleet.clone(),
            host: host.to_owned(),
            addresses: addresses.into_iter().take(TOKEN_ADDRESSES_MAX).collect(),
            authority: identity
                .authorities()
                .first()
                .cloned()
                .ok_or(RegistrarError::NotIssuer)?,
            expires_at: now + i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 2),
        };
        let invitation = Invitation::new(host, &token.secret, token.expires_at, &caller.who);
        let key = format!("{INVITATIONS}{}", token.id);
        let mut txn = Txn::new().if_absent(&key).put(&key, encode(&invitation));
        let old = self.store.list(INVITATIONS).await?.items;
        let over = old.iter().filter(|item| {
            decode::<Invitation>(&item.key, &item.value).is_none_or(|old| old.expires <= now)
        });
        for item in over.take(PURGED_MAX) {
            txn = txn.delete(&item.key);
        }
        let record = record("join-token", host, caller, format!("token {}", token.id));
        let txn = audit::note(&*self.store, txn, &record).await?;
        match self.store.commit(txn).await?.committed() {
            Some(_) => Ok(token),
            None => Err(RegistrarError::Busy),
        }
    }

    /// A certificate for a host that shows its token.
    pub async fn join(
        &self,
        request: &wire::JoinRequest,
        address: SocketAddr,
        caller: &Caller,
    ) -> Result<Issued> {
        let authority = self.authority.as_ref().ok_or(RegistrarError::NotIssuer)?;
        let valid = check_name(&request.host).is_ok() && check_name(&request.token_id).is_ok();
        if !valid {
            return Err(Refused::NoInvitation.into());
        }
        let key = format!("{INVITATIONS}{}", request.token_id);
        for _ in 0..TRIES_MAX {
            let now = now_ms();
            let item = self.store.get(&key).await?.ok_or(Refused::NoInvitation)?;
            let invitation: Invitation =
                decode(&item.key, &item.value).ok_or(Refused::NoInvitation)?;
            let by = format!("token of {}", invitation.by);
            let used = invitation.used(&request.secret, &request.host, now)?;
            let key_request = KeyRequest::from_der(&request.csr)?;
            let subject = Subject::agent(&request.host, [address.ip()]);
            let issued = authority.issue(&key_request, &subject, self.agent_life)?;
            let txn = Txn::new()
                .if_unchanged(&key, item.mod_revision)
                .put(&key, encode(&used));
            let txn = self.enter(txn, &issued.peer, &by, now).await?;
            let caller = Caller {
                who: format!("host {} (token {})", request.host, request.token_id),
                ..caller.clone()
            };
            let after = format!("certificate {}", issued.peer.serial);
            let record = record("join", &request.host, &caller, after);
            let txn = audit::note(&*self.store, txn, &record).await?;
            if self.store.commit(txn).await?.committed().is_some() {
                return Ok(issued);
            }
        }
        Err(RegistrarError::Busy)
    }

    /// A successor for a certificate that holds.
    pub async fn renew(&self, renewal: &Renewal) -> Result<Issued> {
        let authority = self.authority.as_ref().ok_or(RegistrarError::NotIssuer)?;
        let current = self.credentials.current();
        let (peer, key) = renewal.check(current.identity.authorities())?;
        let revoked = revoked::key(&peer.serial);
        for _ in 0..TRIES_MAX {
            let now = now_ms();
            // The store knows best; the list here may be a moment old.
            if self.revoked.contains(&peer.serial) || self.store.get(&revoked).await?.is_some() {
                return Err(RegistrarError::Revoked);
            }
            let life = match peer.role {
                Role::Agent => self.agent_life,
                _ => Duration::from_secs((peer.not_after - peer.not_before).max(60) as u64)
                    .min(USER_LIFE_MAX),
            };
            let subject = Subject {
                name: peer.name.clone(),
                role: peer.role,
                addresses: peer.addresses.clone(),
            };
            let holder = self.holder(&peer.name).await?;
            if let (Some(holder), _) = &holder
                && !holder.has(&peer.serial)
            {
                return Err(Refused::Unknown.into());
            }
            let issued = authority.issue(&key, &subject, life)?;
            let txn = Txn::new().if_absent(&revoked);
            let txn = enter_into(holder, txn, &issued.peer, "renewal", now)?;
            if self.store.commit(txn).await?.committed().is_some() {
                return Ok(issued);
            }
        }
        Err(RegistrarError::Busy)
    }

    /// A certificate for a person or program.
    pub async fn grant(&self, request: &wire::GrantRequest, caller: &Caller) -> Result<Issued> {
        let authority = self.authority.as_ref().ok_or(RegistrarError::NotIssuer)?;
        let role: Role = request
            .role
            .parse()
            .map_err(|error| RegistrarError::Argument(format!("{error}")))?;
        if role == Role::Agent {
            return Err(RegistrarError::Argument(
                "agents join with a token: tanakoctl join-token --host NAME".to_owned(),
            ));
        }
        let life = match request.ttl_s {
            0 => USER_LIFE,
            seconds => Duration::from_secs(seconds),
        };
        if life > USER_LIFE_MAX {
            return Err(RegistrarError::Argument(
                "a certificate lives for 366 days at most".to_owned(),
            ));
        }
        check_name(&request.name).map_err(tanako_pki::Error::from)?;
        let key = KeyRequest::from_der(&request.csr)?;
        for _ in 0..TRIES_MAX {
            let now = now_ms();
            let subject = Subject::user(&request.name, role);
            let issued = authority.issue(&key, &subject, life)?;
            let txn = self
                .enter(Txn::new(), &issued.peer, &caller.who, now)
                .await?;
            let after = format!("{role}, certificate {}", issued.peer.serial);
            let record = record("access-grant", &request.name, caller, after);
            let txn = audit::note(&*self.store, txn, &record).await?;
            if self.store.commit(txn).await?.committed().is_some() {
                return Ok(issued);
            }
        }
        Err(RegistrarError::Busy)
    }

    /// Takes all certificates of a name, or one, out of the world. What was revoked.
    pub async fn revoke(
        &self,
        request: &wire::RevokeRequest,
        caller: &Caller,
    ) -> Result<Vec<Serial>> {
        for _ in 0..TRIES_MAX {
            let now = now_ms();
            let (mut holder, revision, gone) = self.revocable(request, now).await?;
            let gone: Vec<Given> = gone
                .into_iter()
                .filter(|given| given.not_after > now)
                .collect();
            if gone.is_empty() {
                return Ok(Vec::new());
            }
            let key = format!("{HOLDERS}{}", holder.name);
            let mut txn = Txn::new().if_unchanged(&key, revision);
            for given in &gone {
                let revocation = Revocation {
                    name: holder.name.clone(),
                    role: holder.role.to_string(),
                    at: now,
                    by: caller.who.clone(),
                    not_after: given.not_after,
                };
                txn = txn.put(revoked::key(&given.serial), revoked::value(&revocation));
            }
            holder
                .certificates
                .retain(|kept| gone.iter().all(|given| given.serial != kept.serial));
            if !holder.certificates.is_empty() {
                txn = txn.put(&key, encode(&holder));
            } else if revision != 0 {
                txn = txn.delete(&key);
            }
            let all = self.revoked.all();
            let over = all.iter().filter(|(_, old)| old.not_after <= now);
            for (serial, _) in over.take(PURGED_MAX) {
                txn = txn.delete(revoked::key(serial));
            }
            let serials: Vec<Serial> = gone.into_iter().map(|given| given.serial).collect();
            let list: Vec<&str> = serials.iter().map(Serial::as_str).collect();
            let after = format!("revoked: {}", list.join(", "));
            let record = record("access-revoke", &holder.name, caller, after);
            let txn = audit::note(&*self.store, txn, &record).await?;
            if self.store.commit(txn).await?.committed().is_some() {
                return Ok(serials);
            }
        }
        Err(RegistrarError::Busy)
    }

    /// Whose certificates a request means, the revision of their document, and which.
    async fn revocable(
        &self,
        request: &wire::RevokeRequest,
        now: i64,
    ) -> Result<(Holder, u64, Vec<Given>)> {
        if !request.name.is_empty() {
            check_name(&request.name).map_err(tanako_pki::Error::from)?;
            let (holder, revision) = self.holder(&request.name).await?;
            let known = self.revoked.all();
            let Some(holder) = holder else {
                let was = known.values().find(|old| old.name == request.name);
                let was = was.ok_or_else(|| RegistrarError::Nobody(request.name.clone()))?;
                let holder = Holder {
                    name: was.name.clone(),
                    role: was.role.parse().unwrap_or(Role::Viewer),
                    certificates: Vec::new(),
                };
                return Ok((holder, revision, Vec::new()));
            };
            let gone = holder.certificates.clone();
            return Ok((holder, revision, gone));
        }
        let serial = Serial::try_from(request.serial.clone())
            .map_err(|_| RegistrarError::Nobody(request.serial.clone()))?;
        for item in self.store.list(HOLDERS).await?.items {
            let Some(holder) = decode::<Holder>(&item.key, &item.value) else {
                continue;
            };
            if let Some(given) = holder.certificates.iter().find(|one| one.serial == serial) {
                let gone = vec![given.clone()];
                return Ok((holder, item.mod_revision, gone));
            }
        }
        if self.store.get(&revoked::key(&serial)).await?.is_some() {
            let holder = Holder {
                name: "unknown".to_owned(),
                role: Role::Viewer,
                certificates: Vec::new(),
            };
            return Ok((holder, 0, Vec::new()));
        }
        // Better to revoke what the fleet has forgotten than to refuse it.
        let holder = Holder {
            name: format!("unknown-{serial}"),
            role: Role::Viewer,
            certificates: Vec::new(),
        };
        let given = Given {
            serial,
            issued_at: now,
            not_after: now + UNKNOWN_LIFE_MS,
            by: String::new(),
        };
        Ok((holder, 0, vec![given]))
    }

    /// Every certificate that is known, those that do not count any more last.
    pub async fn list(&self) -> Result<Vec<wire::Certificate>> {
        let now = now_ms();
        let mut all = Vec::new();
        for item in self.store.list(HOLDERS).await?.items {
            let Some(holder) = decode::<Holder>(&item.key, &item.value) else {
                continue;
            };
            for given in holder.certificates {
                if given.not_after <= now {
                    continue;
                }
                all.push(wire::Certificate {
                    name: holder.name.clone(),
                    role: holder.role.to_string(),
                    serial: given.serial.into(),
                    issued_at: given.issued_at,
                    not_after: given.not_after,
                    issued_by: given.by,
                    ..wire::Certificate::default()
                });
            }
        }
        for item in self.store.list(revoked::PREFIX).await?.items {
            let Some(old) = decode::<Revocation>(&item.key, &item.value) else {
                continue;
            };
            all.push(wire::Certificate {
                name: old.name,
                role: old.role,
                serial: item.key[revoked::PREFIX.len()..].to_owned(),
                not_after: old.not_after,
                revoked_at: old.at,
                revoked_by: old.by,
                ..wire::Certificate::default()
            });
        }
        Ok(all)
    }

    /// Enters certificates that were made before there was a store: those of `tanakoctl init`.
    pub async fn adopt(&self, holders: &[Holder]) -> Result<()> {
        for holder in holders {
            let key = format!("{HOLDERS}{}", holder.name);
            let revoked = holder.certificates.iter();
            let mut txn = Txn::new().if_absent(&key).put(&key, encode(holder));
            for given in revoked {
                txn = txn.if_absent(revoked::key(&given.serial));
            }
            // A conflict says that they are known.
            self.store.commit(txn).await?;
        }
        Ok(())
    }

    async fn holder(&self, name: &str) -> Result<(Option<Holder>, u64)> {
        let item = self.store.get(&format!("{HOLDERS}{name}")).await?;
        Ok(match item {
            Some(item) => (decode(&item.key, &item.value), item.mod_revision),
            None => (None, 0),
        })
    }

    async fn enter(&self, txn: Txn, peer: &Peer, by: &str, now: i64) -> Result<Txn> {
        let holder = self.holder(&peer.name).await?;
        enter_into(holder, txn, peer, by, now)
    }
}

/// Enters a certificate into the document of its name.
fn enter_into(
    (before, revision): (Option<Holder>, u64),
    txn: Txn,
    peer: &Peer,
    by: &str,
    now: i64,
) -> Result<Txn> {
    let key = format!("{HOLDERS}{}", peer.name);
    let holder = entered(before, peer, by, now)?;
    Ok(txn.if_unchanged(&key, revision).put(&key, encode(&holder)))
}

fn record(action: &str, object: &str, caller: &Caller, after: String) -> Record {
    Record {
        at: now_ms(),
        who: caller.who.clone(),
        from: caller.from.clone(),
        action: action.to_owned(),
        object: object.to_owned(),
        after,
        outcome: "succeeded".to_owned(),
        ..Record::default()
    }
}
