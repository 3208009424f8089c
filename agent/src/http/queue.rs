//! The identify queue for foreign bots: ask over HTTP, and identify when the answer comes.
//!
//! The convention is that of twilight's queue server (github.com/twilight-rs/gateway-queue, and its
//! client in twilight's `examples/gateway-queue-http.rs`): any method, the shard in the query as
//! `?shard=3`, and an answer of 200 with a `message` once that shard may identify. Until then the
//! request is left without an answer.
//!
//! Two things follow from how such clients are made. They take *any* answer for leave, whatever its
//! status: so while there is no permit, and when there will be none, nothing is answered at all and
//! the connection ends after [`HOLD_MAX`]; clients then ask again. Only a question that is wrong in
//! itself is answered with an error. And they do not say who they are: so each attempt of a process
//! gets an address of its own in `TANAKO_IDENTIFY_QUEUE`, which ends in a secret that nobody else
//! knows. Only this host's own programs are served.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json,
    http::{StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tanako_fleet::{ProcessName, identify::Via};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};

use crate::{
    identify::{AcquireError, Ask, Broker},
    supervisor::Table,
};

/// Every address begins so.
pub(super) const PATH: &str = "/identify/";
/// Requests that wait at once.
const WAITING_MAX: usize = 1024;
/// A request waits no longer than this, then it is hung up on. Whoever asks again loses nothing: the
/// lowest shard is served first, not the oldest request.
const HOLD_MAX: Duration = Duration::from_secs(15 * 60);
/// After the broker refused, it is asked again so much later.
const AGAIN: Duration = Duration::from_secs(5);
const KEY_BYTES: usize = 32;
/// Of the secret in an address, which lives as long as an attempt of a process.
const PROOF_BYTES: usize = 16;

/// The addresses at which processes ask. They are the same after the agent's restart, since the
/// processes outlive it.
#[derive(Clone)]
pub struct Addresses {
    at: SocketAddr,
    key: Arc<[u8; KEY_BYTES]>,
}

impl std::fmt::Debug for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Addresses")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Addresses {
    /// Addresses at the HTTP server `at`, with the key in `file`, which is made when it is missing.
    pub fn open(at: SocketAddr, file: &Path) -> io::Result<Self> {
        let key = match fs::read(file) {
            Ok(key) => key.try_into().ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let key = match key {
            Some(key) => key,
            None => make_key(file)?,
        };
        Ok(Self {
            at,
            key: Arc::new(key),
        })
    }

    /// Where this attempt of the process asks.
    pub fn of(&self, process: &ProcessName, attempt: u64) -> String {
        let host = match self.at.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let server = SocketAddr::new(host, self.at.port());
        let proof = u128::from_be_bytes(self.proof(process, attempt));
        format!("http://{server}{PATH}{process}/{attempt}/{proof:032x}")
    }

    /// Hashed twice with the key, so that nothing can be appended.
    fn proof(&self, process: &ProcessName, attempt: u64) -> [u8; PROOF_BYTES] {
        let inner = Sha256::new()
            .chain_update(*self.key)
            .chain_update(process.as_str())
            .chain_update(b"\0")
            .chain_update(attempt.to_be_bytes())
            .finalize();
        let outer = Sha256::new()
            .chain_update(*self.key)
            .chain_update(inner)
            .finalize();
        let mut proof = [0; PROOF_BYTES];
        proof.copy_from_slice(&outer[..PROOF_BYTES]);
        proof
    }

    /// Whose address this path is, if anyone's.
    fn read(&self, path: &str) -> Option<(ProcessName, u64)> {
        let rest = path.strip_prefix(PATH)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (rest, proof) = rest.rsplit_once('/')?;
        let (process, attempt) = rest.rsplit_once('/')?;
        let process: ProcessName = process.parse().ok()?;
        let attempt: u64 = attempt.parse().ok()?;
        let told = from_hex(proof)?;
        bool::from(self.proof(&process, attempt).ct_eq(&told)).then_some((process, attempt))
    }
}

fn from_hex(text: &str) -> Option<[u8; PROOF_BYTES]> {
    let mut bytes = [0; PROOF_BYTES];
    if text.len() != 2 * PROOF_BYTES || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).ok()?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(bytes)
}

fn make_key(file: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let mut key = [0; KEY_BYTES];
    fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
    let draft = file.with_extension("new");
    // A draft that was left behind may have been readable for others.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut new = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    new.write_all(&key)?;
    new.sync_all()?;
    fs::rename(&draft, file)?;
    Ok(key)
}

/// The queue.
#[derive(Clone)]
pub struct Queue {
    addresses: Addresses,
    broker: Broker,
    table: watch::Receiver<Arc<Table>>,
    places: Arc<Semaphore>,
}

/// No answer: the connection ends. Clients take any answer for leave.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("there is no permit")]
pub(super) struct NoAnswer;

impl Queue {
    /// Answers by the broker, for the processes of the table.
    pub fn new(addresses: Addresses, broker: Broker, table: watch::Receiver<Arc<Table>>) -> Self {
        Self {
            addresses,
            broker,
            table,
            places: Arc::new(Semaphore::new(WAITING_MAX)),
        }
    }

    /// A place to wait at, if there is one.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Who asks for what, or the answer to a question that is wrong.
    #[expect(clippy::result_large_err, reason = "the answer is what is wanted")]
    pub(super) fn question(&self, uri: &Uri, own_host: bool) -> Result<Ask, Response> {
        if !own_host {
            let message = "only programs of the agent's own host may ask";
            return Err(refuse(StatusCode::FORBIDDEN, message));
        }
        let Some((name, attempt)) = self.addresses.read(uri.path()) else {
            let message = "nobody has this address: ask at the one in TANAKO_IDENTIFY_QUEUE, with \
                           ?shard=N behind it";
            return Err(refuse(StatusCode::NOT_FOUND, message));
        };
        let process = self.table.borrow().get(&name).cloned();
        let Some(process) = process.filter(|process| process.attempt == attempt) else {
            let message = format!(
                "{name} does not run as attempt {attempt} any more: take the address from the \
                 process's own environment"
            );
            return Err(refuse(StatusCode::GONE, &message));
        };
        let spec = &process.spec;
        let shard_id = match shard_of(uri.query().unwrap_or_default()) {
            Ok(Some(shard)) if spec.shard_ids.contains(&shard) => shard,
            Ok(None) if spec.shard_ids.len() == 1 => spec.shard_ids[0],
            Ok(shard) => {
                let of = shard.map_or_else(
                    || "no shard was named".to_owned(),
                    |shard| format!("{name} does not hold shard {shard}"),
                );
                let message = format!("{of}: it holds {:?}, ask with ?shard=N", spec.shard_ids);
                return Err(refuse(StatusCode::BAD_REQUEST, &message));
            }
            Err(what) => {
                let message = format!("{what:?} is no shard: ask with ?shard=N");
                return Err(refuse(StatusCode::BAD_REQUEST, &message));
            }
        };
        Ok(Ask {
            process: name,
            attempt,
            shard_id,
            shard_count: spec.shard_count,
            unused: None,
        })
    }

    /// Waits for the permit. Dropping the future gives up the place.
    pub(super) async fn wait(&self, ask: Ask) -> Result<Response, NoAnswer> {
        let end = Instant::now() + HOLD_MAX;
        loop {
            let answer = self.broker.acquire_via(ask.clone(), Via::Queue);
            let refused = match tokio::time::timeout_at(end, answer).await {
                Ok(Ok(permit)) => {
                    let body = json!({
                        "message": "identify now",
                        "shard": ask.shard_id,
                        "permit": permit.number,
                        "remaining": permit.remaining,
                    });
                    return Ok(close(Json(body).into_response()));
                }
                Ok(Err(refused)) => refused,
                Err(_) => return Err(NoAnswer),
            };
            match refused {
                // Somebody else asks for this shard now.
                AcquireError::Superseded => return Err(NoAnswer),
                AcquireError::Exhausted { .. } | AcquireError::Unavailable(_) => {
                    let again = Instant::now() + AGAIN;
                    if again >= end {
                        return Err(NoAnswer);
                    }
                    tokio::time::sleep_until(again).await;
                }
            }
        }
    }
}

/// The `shard` of a query; the last one counts. An error is what stands there instead of a number.
fn shard_of(query: &str) -> Result<Option<u32>, String> {
    let named = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .rfind(|(name, _)| *name == "shard");
    match named {
        None => Ok(None),
        Some((_, value)) => match value.parse() {
            Ok(shard) => Ok(Some(shard)),
            Err(_) => Err(value.chars().take(20).collect()),
        },
    }
}

fn refuse(code: StatusCode, message: &str) -> Response {
    close((code, Json(json!({ "message": message }))).into_response())
}

/// A connection serves one question, so that a place is given back.
fn close(mut response: Response) -> Response {
    response.headers_mut().insert(
        header::CONNECTION,
        header::HeaderValue::from_static("close"),
    );
    response
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn addresses(file: &Path) -> Addresses {
        let at = SocketAddr::from(([0, 0, 0, 0], 9464));
        Addresses::open(at, file).expect("a key")
    }

    #[test]
    fn an_address_outlives_the_agent_and_fits_one_attempt_of_one_process() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("queue.key");
        let one = addresses(&file);
        let name: ProcessName = "legacy/0".parse().expect("a name");
        let address = one.of(&name, 3);
        let path = address
            .strip_prefix("http://127.0.0.1:9464")
            .expect("loopback");
        assert_eq!(one.read(path), Some((name.clone(), 3)));
        assert_eq!(one.read(&format!("{path}/")), Some((name.clone(), 3)));
        assert_eq!(addresses(&file).read(path), Some((name.clone(), 3)));
        assert_eq!(
            fs::metadata(&file).expect("a file").permissions().mode() & 0o777,
            0o600
        );

        // Another attempt, another process, one digit, more, less, nothing.
        let proof = path.rsplit_once('/').expect("a proof").1;
        let swapped = if proof.starts_with('0') { "1" } else { "0" };
        for wrong in [
            format!("/identify/legacy/0/4/{proof}"),
            format!("/identify/legacy/1/3/{proof}"),
            format!("/identify/legacy/0/3/{swapped}{}", &proof[1..]),
            format!("{path}00"),
            path[..path.len() - 1].to_owned(),
            "/identify/legacy/0/3/".to_owned(),
            "/identify/".to_owned(),
            format!("/identify/legacy/0/3/{}", "é".repeat(16)),
        ] {
            assert_eq!(one.read(&wrong), None, "{wrong}");
        }
        fs::write(&file, "short").expect("writes");
        assert_eq!(addresses(&file).read(path), None, "a new key");
        assert!(!format!("{one:?}").contains("key"));
    }

    #[test]
    fn the_shard_is_read_as_clients_write_it() {
        assert_eq!(shard_of("shard=42"), Ok(Some(42)));
        assert_eq!(shard_of("a=1&shard=7&b"), Ok(Some(7)));
        assert_eq!(shard_of(""), Ok(None));
        assert_eq!(shard_of("shards=7"), Ok(None));
        assert_eq!(shard_of("shard=-1"), Err("-1".to_owned()));
        assert_eq!(shard_of("shard="), Err(String::new()));
        assert_eq!(shard_of("shard=4294967296"), Err("4294967296".to_owned()));
    }
}
