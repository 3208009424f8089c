//! What a demo needs before anything starts: tokens, ports, and its fleet.toml.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::{
    place::{Place, fingerprint},
    record::Record,
    seat,
};
use crate::failure::Failure;

/// Nodes of the demo's database.
pub const DB_NODES: u16 = 3;

/// Shards in each process of the demo's bot.
pub const SHARDS_PER_PROCESS: u16 = 2;

/// Ports of demos: below the range from which the kernel takes the local ports of connections, so that
/// a port that was free at the first start is free at the next.
const PORTS: std::ops::Range<u16> = 21_000..29_000;

/// A file with a random token, for this user alone; one that is there stays.
pub fn token(path: &Path) -> Result<(), Failure> {
    let mut random = [0_u8; 32];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(|error| Failure::io("/dev/urandom", "get random bytes", &error))?;
    let text = random.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path);
    let written = match file {
        Ok(mut file) => file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => Err(error),
    };
    written.map_err(|error| Failure::io(path, "write the token file", &error))
}

/// The first of a row of free ports. Each directory begins its search elsewhere, so that demos side by
/// side, also stopped ones, do not take each other's. Several hosts use the same ports, each on its
/// own address.
pub fn base_port(place: &Place, hosts: u16) -> Result<u16, Failure> {
    let fingerprint = fingerprint(&place.data_dir);
    let (row, addresses) = if hosts > 1 {
        let own = (0..usize::from(hosts)).map(|index| seat::address(fingerprint, index));
        (seat::PORTS, own.chain([Ipv4Addr::LOCALHOST]).collect())
    } else {
        (2 + DB_NODES, vec![Ipv4Addr::LOCALHOST])
    };
    let rows = (PORTS.end - PORTS.start) / row;
    let first = (fingerprint % u64::from(rows)) as u16;
    let all_free = |base: &u16| {
        (*base..base + row).all(|port| {
            let mut addresses = addresses.iter();
            addresses.all(|address| is_free((*address, port).into()))
        })
    };
    (0..rows)
        .map(|n| PORTS.start + (first + n) % rows * row)
        .find(all_free)
        .ok_or_else(|| {
            Failure::new(
                "no-port",
                "127.0.0.1",
                format!(
                    "no {row} free ports in a row between {} and {}",
                    PORTS.start, PORTS.end
                ),
            )
            .hint("end what uses them, then try again")
        })
}

/// Whether nobody listens on a port of this machine.
pub fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

/// Writes the fleet.toml; one that is there stays, whatever its owner made of it.
pub fn spec(place: &Place, record: &Record) -> Result<(), Failure> {
    let path = place.spec();
    if path.exists() {
        return Ok(());
    }
    crate::context::write_atomically(&path, spec_text(place, record)?.as_bytes(), 0o600)
}

fn spec_text(place: &Place, record: &Record) -> Result<String, Failure> {
    let quoted = |path: &Path| -> Result<String, Failure> {
        let text = path.to_str().ok_or_else(|| {
            Failure::new(
                "bad-path",
                path.display().to_string(),
                "the path is not UTF-8, and fleet.toml must be",
            )
            .hint("choose another directory with --data-dir")
        })?;
        Ok(toml_edit::Value::from(text).to_string())
    };
    let name = fleet_name(&record.context);
    let simcord = record.simcord_url();
    let nodes = if record.hosts.is_empty() {
        format!(
            "nodes = {}\nbase_port = {}",
            record.db_nodes,
            record.db_port()
        )
    } else {
        String::new()
    };
    let mut more = String::new();
    for (number, (listen, host)) in (1..).zip(record.db_nodes()) {
        if let Some(host) = host {
            let _ = write!(
                more,
                "\n[[database.node]]\nname = \"node{number}\"\nlisten = \"{listen}\"\nhost = \"{host}\"\n"
            );
        }
    }
    Ok(format!(
        r#"# The demo's fleet. Change it, look at what that would do with
#   tanakoctl --context {context} plan {spec}
# and do it with `apply` in place of `plan`.

[fleet]
name = "{name}"

# {shards} shards, {per_process} in each of {processes} processes, against the simulated Discord.
[bots.tanako]
command = ["tanako-bot"]
token_file = {discord_token}
shards = {shards}
shards_per_process = {per_process}
api_url = "{simcord}"
max_concurrency = {shards}

# Every guild has one of these nodes as its home.
[database]
token_file = {db_token}
{nodes}
{more}
[backup]
directory = {backups}
keep = 7
"#,
        context = record.context,
        shards = record.shards(),
        per_process = SHARDS_PER_PROCESS,
        processes = record.shards() / SHARDS_PER_PROCESS,
        spec = place.spec().display(),
        discord_token = quoted(&place.discord_token())?,
        db_token = quoted(&place.db_token())?,
        backups = quoted(&place.backups())?,
    ))
}

/// A fleet's name has fewer letters to choose from than a context's.
pub fn fleet_name(context: &str) -> String {
    context
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn place(directory: &Path) -> Place {
        Place {
            data_dir: directory.join("it's a \"demo\""),
            context: "My.Demo".into(),
            named: true,
            elsewhere: true,
        }
    }

    #[test]
    fn tokens_are_private_random_and_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        token(&a).expect("written");
        token(&b).expect("written");
        let first = fs::read_to_string(&a).expect("read");
        assert_eq!(first.len(), 64);
        assert_ne!(first, fs::read_to_string(&b).expect("read"));
        assert_eq!(
            fs::metadata(&a).expect("metadata").permissions().mode() & 0o777,
            0o600
        );
        token(&a).expect("kept");
        assert_eq!(fs::read_to_string(&a).expect("read"), first);
    }

    #[test]
    fn the_spec_is_one_that_the_fleet_accepts() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = place(directory.path());
        let record = Record::new(&place, 10_000, 21_000, DB_NODES).expect("a record");
        let text = spec_text(&place, &record).expect("a text");
        let spec = tanako_fleet::spec::parse(&text, "fleet.toml").expect("a spec");
        assert_eq!(spec.name, "my-demo");
        let bot = &spec.bots["tanako"];
        assert_eq!(
            (bot.shards, bot.shards_per_process, bot.worker),
            (8, 2, true)
        );
        let database = spec.database.expect("a database");
        let urls: Vec<String> = database
            .nodes
            .iter()
            .map(tanako_fleet::spec::Node::url)
            .collect();
        assert_eq!(urls, record.db_urls());
        assert_eq!(spec.warnings, Vec::<String>::new());
    }

    #[test]
    fn a_row_of_ports_in_use_is_passed_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = place(directory.path());
        let first = base_port(&place, 1).expect("ports");
        let Ok(_taken) = TcpListener::bind(("127.0.0.1", first + 2)) else {
            return; // Somebody was faster; then it is passed over as well.
        };
        assert_ne!(base_port(&place, 1).expect("ports"), first);
    }

    #[test]
    fn each_host_has_a_node_of_the_database_and_two_processes() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = place(directory.path());
        let port = base_port(&place, 3).expect("ports");
        let record = Record::new(&place, 10_000, port, DB_NODES)
            .expect("a record")
            .over(&place, 3);
        let text = spec_text(&place, &record).expect("a text");
        let spec = tanako_fleet::spec::parse(&text, "fleet.toml").expect("a spec");
        let bot = &spec.bots["tanako"];
        assert_eq!((bot.shards, bot.shards_per_process), (12, 2));
        let nodes = spec.database.expect("a database").nodes;
        let hosts: Vec<Option<&str>> = nodes.iter().map(|node| node.host.as_deref()).collect();
        assert_eq!(hosts, [Some("a"), Some("b"), Some("c")]);
        let urls: Vec<String> = nodes.iter().map(tanako_fleet::spec::Node::url).collect();
        assert_eq!(urls, record.db_urls());
        assert_eq!(spec.warnings, Vec::<String>::new());
    }
}
