//! What a fleet.toml needs from this machine: programs, token files, ports.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use tanako_fleet::{Spec, spec::parse};
use tanako_proto::fleet::v1::Finding;

use super::finding;

/// Checks a file.
pub(super) fn of_file(file: &Path, ports: bool) -> Vec<Finding> {
    match fs::read_to_string(file) {
        Ok(text) => of_text(&text, &file.display().to_string(), ports),
        Err(error) => vec![finding(
            "error",
            "spec",
            &format!("{}: {error}", file.display()),
            "name another file with --spec",
        )],
    }
}

/// Checks a text; `ports` unless the fleet runs and holds them itself.
pub(super) fn of_text(text: &str, name: &str, ports: bool) -> Vec<Finding> {
    let spec = match parse(text, name) {
        Ok(spec) => spec,
        Err(error) => {
            return error
                .problems()
                .iter()
                .map(|problem| {
                    let (line, _) = error.place(problem);
                    finding(
                        "error",
                        "spec",
                        &format!("{name}:{line}: {}", problem.message),
                        &problem.hint,
                    )
                })
                .collect();
        }
    };
    let mut findings = vec![finding(
        "ok",
        "spec",
        &format!("{name}: fleet {}", spec.name),
        "",
    )];
    findings.extend(
        spec.warnings
            .iter()
            .map(|warning| finding("warning", "spec", warning, "change it in fleet.toml")),
    );
    findings.extend(programs(&spec));
    findings.extend(tokens(&spec));
    if ports {
        findings.extend(listens(&spec));
    }
    findings
}

fn programs(spec: &Spec) -> Vec<Finding> {
    let mut commands: Vec<&str> = spec
        .bots
        .values()
        .map(|bot| &bot.command)
        .chain(spec.database.iter().map(|database| &database.command))
        .filter_map(|command| command.first().map(String::as_str))
        .collect();
    commands.sort_unstable();
    commands.dedup();
    commands
        .into_iter()
        .map(|command| match find(command) {
            Some(path) => finding("ok", "program", &path.display().to_string(), ""),
            None => finding("error", "program", &format!("{command} is not there"), "install it, or correct `command` in fleet.toml: a path, or a name beside tanako-agent or in PATH"),
        })
        .collect()
}

/// As the agent looks for it: a path, beside the agent, in PATH.
fn find(command: &str) -> Option<PathBuf> {
    if command.contains('/') {
        return Some(PathBuf::from(command)).filter(|path| path.is_file());
    }
    let beside = std::env::current_exe()
        .ok()
        .map(|own| own.with_file_name(command));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&path).map(|directory| directory.join(command)))
        .find(|path| path.is_file())
}

fn tokens(spec: &Spec) -> Vec<Finding> {
    let mut files: Vec<&str> = spec
        .bots
        .values()
        .filter_map(|bot| bot.token_file.as_deref())
        .chain(
            spec.database
                .iter()
                .map(|database| database.token_file.as_str()),
        )
        .filter(|file| !file.is_empty())
        .collect();
    files.sort_unstable();
    files.dedup();
    files
        .into_iter()
        .map(|file| token(Path::new(file)))
        .collect()
}

fn token(file: &Path) -> Finding {
    let name = file.display();
    let metadata = match fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) => {
            return finding(
                "error",
                "token file",
                &format!("{name}: {error}"),
                &format!("make it: install -m 600 /dev/null {name}, then write the token into it"),
            );
        }
    };
    if metadata.mode() & 0o077 != 0 {
        return finding(
            "error",
            "token file",
            &format!(
                "{name}: others may read it (mode {:o})",
                metadata.mode() & 0o777
            ),
            &format!("chmod 600 {name}, and make a new token if others use this machine"),
        );
    }
    if metadata.len() == 0 {
        return finding(
            "error",
            "token file",
            &format!("{name} is empty"),
            "write the token into it",
        );
    }
    finding(
        "ok",
        "token file",
        &format!("{name}: mode {:o}", metadata.mode() & 0o777),
        "",
    )
}

fn listens(spec: &Spec) -> Vec<Finding> {
    spec.database
        .iter()
        .flat_map(|database| &database.nodes)
        .map(|node| match TcpListener::bind(&node.listen) {
            Ok(_) => finding(
                "ok",
                "port",
                &format!("{} is free for db/{}", node.listen, node.name),
                "",
            ),
            Err(error) => finding(
                "error",
                "port",
                &format!("db/{} cannot listen on {}: {error}", node.name, node.listen),
                "end what uses it (ss -ltnp shows it), or choose another base_port in fleet.toml",
            ),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_a_fleet_needs_is_looked_at() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, mode: u32| {
            let path = directory.path().join(name);
            fs::write(&path, "secret").expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
            path.display().to_string()
        };
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let text = format!(
            "[fleet]\nname = \"f\"\n[bots.a]\ncommand = [\"no-such-program\"]\ntoken_file = {:?}\nshards = 1\n[database]\nnodes = 1\nbase_port = {port}\ncommand = [\"/bin/sh\"]\ntoken_file = {:?}\n",
            file("open", 0o644),
            file("closed", 0o600),
        );
        let findings = of_text(&text, "fleet.toml", true);
        let severity = |check: &str, part: &str| {
            findings
                .iter()
                .find(|finding| finding.check == check && finding.message.contains(part))
                .map(|finding| finding.severity.as_str())
        };
        assert_eq!(
            severity("program", "no-such-program"),
            Some("error"),
            "{findings:#?}"
        );
        assert_eq!(severity("program", "/bin/sh"), Some("ok"));
        assert_eq!(severity("token file", "open"), Some("error"));
        assert_eq!(severity("token file", "closed"), Some("ok"));
        assert_eq!(severity("port", "db/node1"), Some("error"));
        assert!(
            !findings
                .iter()
                .any(|finding| finding.message.contains("secret"))
        );
        assert!(
            of_text(&text, "fleet.toml", false)
                .iter()
                .all(|finding| finding.check != "port")
        );
        assert_eq!(
            of_text("[fleet]\nnme = 1", "f.toml", true)[0].message,
            "f.toml:2: unknown field `nme`, expected `name` or `production`"
        );
    }
}
