//! A real etcd under a demo of several hosts, and the certificates of both.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use tanako_pki::{AUTHORITIES_FILE, Authority, IDENTITY_FILE, Role, Subject};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    daemon::Daemon,
    place::{Place, private_directory},
    process::Live,
    record::Record,
    seat::{Etcd, Member, Seat, seats},
    setup::fleet_name,
};
use crate::failure::Failure;

/// The argument by which a member is found again.
const DATA_FLAG: &str = "--data-dir";

/// Seconds until another agent decides in place of one that is gone. Short: a demo is there to be
/// broken.
const OFFICE_LEASE_S: &str = "3";

/// How long one question about health may take.
const ASK: Duration = Duration::from_secs(2);

/// Certificates of a demo last so long; agents renew theirs before.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The etcd of this machine.
pub fn program() -> Result<PathBuf, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("etcd"))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            Failure::new(
                "missing-program",
                "etcd",
                "a fleet of several hosts keeps its state in etcd, and there is no etcd in PATH",
            )
            .hint(
                "Debian and Ubuntu: apt-get install etcd-server (it need not run as a service); \
                 elsewhere: the release of https://github.com/etcd-io/etcd in PATH; a demo of one host \
                 needs none: `tanakoctl demo up`",
            )
        })
}

/// Makes the fleet's authority and everybody's certificate; what is there stays.
pub fn certificates(place: &Place, record: &Record) -> Result<(), Failure> {
    let seats = seats(place, record);
    let members: Vec<&Member> = seats
        .iter()
        .filter_map(|seat| seat.member.as_ref())
        .collect();
    let Some(first) = members.first() else {
        return Ok(());
    };
    let failed = |path: &Path, error: tanako_pki::Error| {
        let mut failure = Failure::new(
            "certificates",
            path.display().to_string(),
            "the demo's certificates cannot be made",
        );
        failure = failure.cause(crate::client::chain(&error));
        failure.hint(format!(
            "`{}` removes them with everything else; then start again",
            place.command("down --purge")
        ))
    };
    // The first host holds the authority's key: it lets others join.
    private_directory(&place.host_dir(&first.name))?;
    let known = Authority::load(&first.identity).map_err(|error| failed(&first.identity, error))?;
    let authority = if let Some(authority) = known {
        authority
    } else {
        let made = Authority::create(&fleet_name(&record.context)).and_then(|authority| {
            authority.save(&first.identity)?;
            Ok(authority)
        });
        made.map_err(|error| failed(&first.identity, error))?
    };
    let issue = |directory: &Path, subject: &Subject| -> Result<(), Failure> {
        if directory.join(IDENTITY_FILE).exists() {
            return Ok(());
        }
        let issued = authority.issue_to(directory, subject, LIFE);
        issued.map(drop).map_err(|error| failed(directory, error))
    };
    for member in members {
        private_directory(&place.host_dir(&member.name))?;
        let subject = Subject::agent(&member.name, [member.listen.ip()]);
        issue(&member.identity, &subject)?;
        if let Some(etcd) = &member.etcd {
            // Connections between loopback addresses come from 127.0.0.1, and members check that.
            let addresses = [etcd.client.ip(), Ipv4Addr::LOCALHOST.into()];
            issue(&etcd.identity, &Subject::agent(&member.name, addresses))?;
        }
    }
    issue(&place.admin_identity(), &Subject::user("demo", Role::Admin))
}

/// How the agent of one of several hosts is told of etcd and of itself.
pub fn agent_arguments(place: &Place, record: &Record, member: &Member) -> Vec<OsString> {
    let endpoints: Vec<String> = etcds(place, record)
        .iter()
        .map(|(_, etcd)| format!("https://{}", etcd.client))
        .collect();
    let own = member.identity.join(IDENTITY_FILE);
    [
        "--host".into(),
        OsString::from(&member.name),
        "--store".into(),
        "etcd".into(),
        "--etcd-endpoints".into(),
        endpoints.join(",").into(),
        "--etcd-prefix".into(),
        format!("tanako/{}/", fleet_name(&record.context)).into(),
        "--etcd-lease-seconds".into(),
        OFFICE_LEASE_S.into(),
        "--etcd-ca".into(),
        member.identity.join(AUTHORITIES_FILE).into(),
        "--etcd-cert".into(),
        own.clone().into(),
        "--etcd-key".into(),
        own.into(),
        "--identity".into(),
        member.identity.clone().into(),
        "--listen".into(),
        member.listen.to_string().into(),
    ]
    .into()
}

fn etcds(place: &Place, record: &Record) -> Vec<(String, Etcd)> {
    let members = seats(place, record)
        .into_iter()
        .filter_map(|seat| seat.member);
    members
        .filter_map(|member| Some((member.name, member.etcd?)))
        .collect()
}

/// Whether a host has a member.
pub fn is_wanted(seat: &Seat) -> bool {
    seat.member
        .as_ref()
        .is_some_and(|member| member.etcd.is_some())
}

/// Where the member of a host listens, and whose that is.
pub fn addresses(seat: &Seat) -> Vec<(SocketAddr, String)> {
    let etcd = seat.member.as_ref().and_then(|member| member.etcd.as_ref());
    etcd.into_iter()
        .flat_map(|etcd| [etcd.client, etcd.peer, etcd.health])
        .map(|address| (address, seat.whose("etcd")))
        .collect()
}

/// The member of a host, if it lives.
pub fn member(seat: &Seat, record: &Record) -> Option<Live> {
    let etcd = seat.member.as_ref()?.etcd.as_ref()?;
    let known = record.hosts[seat.index?].etcd.as_ref();
    known.and_then(Live::by_identity).or_else(|| {
        Live::by_argument(DATA_FLAG, &etcd.data_dir)
            .into_iter()
            .next()
    })
}

/// Starts the members of these hosts and waits until all of them serve.
pub async fn start(place: &Place, record: &mut Record, seats: &[&Seat]) -> Result<(), Failure> {
    let program = program()?;
    let cluster: Vec<String> = etcds(place, record)
        .iter()
        .map(|(name, etcd)| format!("{name}=https://{}", etcd.peer))
        .collect();
    let mut started = Vec::new();
    for seat in seats {
        let (Some(member), Some(index)) = (&seat.member, seat.index) else {
            continue;
        };
        let Some(etcd) = &member.etcd else {
            continue;
        };
        let arguments = arguments(&member.name, etcd, &cluster.join(","));
        let daemon = Daemon::start("etcd", &program, &arguments, etcd.log.clone(), place)?;
        record.hosts[index].etcd = daemon.identity();
        record.save(&place.record())?;
        started.push((daemon, etcd));
    }
    for (daemon, etcd) in &mut started {
        daemon.until(async || is_healthy(etcd).await).await?;
    }
    Ok(())
}

fn arguments(name: &str, etcd: &Etcd, cluster: &str) -> Vec<OsString> {
    let (clients, peers) = (
        format!("https://{}", etcd.client),
        format!("https://{}", etcd.peer),
    );
    let mut arguments: Vec<OsString> = [
        "--name".into(),
        name.into(),
        DATA_FLAG.into(),
        etcd.data_dir.clone().into_os_string(),
        "--listen-client-urls".into(),
        OsString::from(&clients),
        "--advertise-client-urls".into(),
        clients.into(),
        "--listen-peer-urls".into(),
        OsString::from(&peers),
        "--initial-advertise-peer-urls".into(),
        peers.into(),
        "--initial-cluster".into(),
        cluster.into(),
        "--initial-cluster-token".into(),
        cluster.into(),
        "--listen-metrics-urls".into(),
        format!("http://{}", etcd.health).into(),
        "--logger".into(),
        "zap".into(),
        "--log-outputs".into(),
        "stderr".into(),
        "--log-level".into(),
        "warn".into(),
    ]
    .into();
    let own = etcd.identity.join(IDENTITY_FILE);
    let trusted = etcd.identity.join(AUTHORITIES_FILE);
    for kind in ["", "peer-"] {
        arguments.extend([
            format!("--{kind}cert-file").into(),
            own.clone().into(),
            format!("--{kind}key-file").into(),
            own.clone().into(),
            format!("--{kind}trusted-ca-file").into(),
            trusted.clone().into(),
            format!("--{kind}client-cert-auth").into(),
        ]);
    }
    arguments
}

/// Whether a member serves, and knows a leader.
async fn is_healthy(etcd: &Etcd) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(etcd.health).await?;
        let request = format!(
            "GET /health HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            etcd.health
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).contains(r#""health":"true""#))
    };
    matches!(tokio::time::timeout(ASK, ask).await, Ok(Ok(true)))
}
