//! What a demo needs before anything starts: tokens, ports, and its fleet.toml.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    net::TcpListener,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::{
    place::{Place, fingerprint},
    record::Record,
};
use crate::failure::Failure;

/// Nodes of the demo's database.
pub const DB_NODES: u16 = 3;

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
/// side, also stopped ones, do not take each other's.
pub fn base_port(place: &Place) -> Result<u16, Failure> {
    let row = 2 + DB_NODES;
    let rows = (PORTS.end - PORTS.start) / row;
    let first = (fingerprint(&place.data_dir) % u64::from(rows)) as u16;
    (0..rows)
        .map(|n| PORTS.start + (first + n) % rows * row)
        .find(|base| (*base..base + row).all(is_free))
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
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
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
    Ok(format!(
        r#"# The demo's fleet. Change it, look at what that would do with
#   tanakoctl --context {context} plan {spec}
# and do it with `apply` in place of `plan`.

[fleet]
name = "{name}"

# 8 shards, 2 in each of 4 processes, against the simulated Discord.
[bots.tanako]
command = ["tanako-bot"]
token_file = {discord_token}
shards = 8
shards_per_process = 2
api_url = "{simcord}"
max_concurrency = 8

# Every guild has one of these nodes as its home.
[database]
nodes = {nodes}
base_port = {base_port}
token_file = {db_token}

[backup]
directory = {backups}
keep = 7
"#,
        context = record.context,
        spec = place.spec().display(),
        discord_token = quoted(&place.discord_token())?,
        nodes = record.db_nodes,
        base_port = record.db_port(),
        db_token = quoted(&place.db_token())?,
        backups = quoted(&place.backups())?,
    ))
}

/// A fleet's name has fewer letters to choose from than a context's.
fn fleet_name(context: &str) -> String {
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
        let first = base_port(&place).expect("ports");
        let Ok(_taken) = TcpListener::bind(("127.0.0.1", first + 2)) else {
            return; // Somebody was faster; then it is passed over as well.
        };
        assert_ne!(base_port(&place).expect("ports"), first);
    }
}
