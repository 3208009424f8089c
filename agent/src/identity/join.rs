//! How a new host gets its identity: `tanako-agent join`.
//!
//! The key is made here and stays here; only a request for a certificate travels, to an agent that the
//! token names and whose certificate must come from the authority in the token.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use clap::Parser;
use hyper_util::rt::TokioIo;
use tanako_pki::{IDENTITY_FILE, Identity, JoinToken, Pending, Role, tls};
use tanako_proto::{
    fleet::v1::Problem,
    identity::v1::{self as wire, identity_client::IdentityClient},
};
use tonic::transport::Endpoint;
use tower::service_fn;

use crate::clock::now_ms;

/// Port that an agent listens on unless told otherwise.
pub const PORT: u16 = 7400;
/// Longest that one agent of the fleet may take.
const WITHIN: Duration = Duration::from_secs(10);
/// Longest token file.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;
/// Nothing to do: the host has joined.
const EXIT_UNCHANGED: u8 = 3;

/// Make this host a member of a fleet: fetches its certificate for a one-time token.
///
/// The token comes from `tanakoctl join-token --host NAME` on a host of the fleet. Afterwards start the
/// agent with --store etcd, --listen and the same --data-dir.
#[derive(Debug, Parser)]
#[command(name = "tanako-agent join", version, long_about = None, after_help = "\
Exit codes: 0 joined · 1 error · 2 usage · 3 this host had joined already")]
pub struct Args {
    /// The token; anyone who lists processes sees it while this runs, so better use --token-file
    #[arg(value_name = "TOKEN", required_unless_present = "token_file")]
    token: Option<String>,
    /// Read the token from this file; - is the standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The agent's data directory
    #[arg(long, value_name = "DIR", env = "TANAKO_DATA_DIR")]
    data_dir: PathBuf,
    /// Where certificate and key go [default: DATA_DIR/identity]
    #[arg(long, value_name = "DIR", env = "TANAKO_IDENTITY")]
    identity: Option<PathBuf>,
    /// Where the others will reach this host's agent [default: the address that reaches them, port 7400]
    #[arg(long, value_name = "IP:PORT", env = "TANAKO_ADVERTISE")]
    advertise: Option<SocketAddr>,
}

/// Runs it.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let args = Args::parse_from(arguments);
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tanako-agent join: the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tanako-agent join: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => read_token(path)?,
        (None, None) => bail!("there is no token"),
    };
    let token = JoinToken::decode(&text)?;
    let directory = args
        .identity
        .clone()
        .unwrap_or_else(|| args.data_dir.join("identity"));
    if directory.join(IDENTITY_FILE).exists() {
        let identity = Identity::load(&directory)
            .with_context(|| format!("the identity that is in {} already", directory.display()))?;
        let peer = identity.peer();
        let same = peer.name == token.host && peer.fleet == token.fleet && peer.role == Role::Agent;
        if !same {
            bail!(
                "{} holds the identity of {peer} of fleet {}; move it away, or name another --identity",
                directory.display(),
                peer.fleet
            );
        }
        if identity.ends_at() > SystemTime::now() {
            eprintln!(
                "host {} belongs to fleet {} already; the token was not used",
                token.host, token.fleet
            );
            return Ok(ExitCode::from(EXIT_UNCHANGED));
        }
    }
    if token.expires_at <= now_ms() {
        bail!(
            "the token has expired; make a new one with `tanakoctl join-token --host {}`",
            token.host
        );
    }
    // Its mode is the agent's to choose when it starts, unless it is new.
    tanako_pki::private_dir(&args.data_dir)?;
    let identity = ask(&token, args.advertise).await?;
    identity.save(&directory)?;
    eprintln!(
        "host {} belongs to fleet {}; certificate {} in {}",
        token.host,
        token.fleet,
        identity.peer().serial,
        directory.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(TOKEN_BYTES_MAX)
            .read_to_string(&mut text)
            .context("the token on standard input cannot be read")?;
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
            .with_context(|| format!("the token file {} cannot be read", path.display()))?;
    }
    Ok(text)
}

/// Asks the agents of the token in turn.
async fn ask(token: &JoinToken, advertise: Option<SocketAddr>) -> anyhow::Result<Identity> {
    let pending = Pending::generate()?;
    let mut tried = Vec::new();
    for address in &token.addresses {
        match ask_one(token, *address, advertise, &pending).await {
            Ok(issued) => {
                let der = |list: Vec<bytes::Bytes>| list.into_iter().map(|der| der.to_vec());
                let identity = pending.complete(der(issued.chain), der(issued.authorities))?;
                let peer = identity.peer();
                let right = peer.name == token.host
                    && peer.fleet == token.fleet
                    && peer.role == Role::Agent
                    && identity.authorities().contains(&token.authority);
                if !right {
                    bail!(
                        "{address} sent a certificate that is not for host {}",
                        token.host
                    );
                }
                return Ok(identity);
            }
            Err(Failed::Decided(problem)) => bail!(
                "{address} refused: {} {}\nhint: {}",
                problem.message,
                problem.cause,
                problem.hint
            ),
            Err(Failed::Unreachable(why)) => tried.push(format!("{address}: {why}")),
        }
    }
    bail!(
        "no agent of the fleet gave an answer:\n  {}",
        tried.join("\n  ")
    )
}

enum Failed {
    /// Another one would say the same.
    Decided(Box<Problem>),
    Unreachable(String),
}

async fn ask_one(
    token: &JoinToken,
    address: SocketAddr,
    advertise: Option<SocketAddr>,
    pending: &Pending,
) -> Result<wire::Issued, Failed> {
    let unreachable =
        |error: &dyn std::error::Error| Failed::Unreachable(crate::problem::with_sources(error));
    let config = tls::newcomer(token.authority.clone(), &token.fleet)
        .map_err(|error| unreachable(&error))?;
    let stream = tls::connect(address, config, WITHIN)
        .await
        .map_err(|error| unreachable(&error))?;
    let local = stream.get_ref().0.local_addr();
    let own: IpAddr = local.map_err(|error| unreachable(&error))?.ip();
    let mut stream = Some(stream);
    let channel = Endpoint::from_static("http://agent.tanako")
        .connect_with_connector(service_fn(move |_| {
            let stream = stream.take().map(TokioIo::new);
            std::future::ready(stream.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)))
        }))
        .await
        .map_err(|error| unreachable(&error))?;
    let request = wire::JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret.reveal().to_vec().into(),
        host: token.host.clone(),
        address: advertise
            .unwrap_or_else(|| SocketAddr::new(own, PORT))
            .to_string(),
        csr: pending.request().to_vec().into(),
    };
    let answer = tokio::time::timeout(WITHIN, IdentityClient::new(channel).join(request)).await;
    match answer {
        Ok(Ok(issued)) => Ok(issued.into_inner()),
        Ok(Err(status)) => {
            let problem = Problem::from_status(&status);
            if problem.retryable {
                Err(Failed::Unreachable(problem.message))
            } else {
                Err(Failed::Decided(Box::new(problem)))
            }
        }
        Err(_) => Err(Failed::Unreachable("no answer in time".to_owned())),
    }
}
