//! `install.sh` into a directory of the test's own: what it installs, that it never overwrites a
//! changed configuration, and that it takes away what it brought.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tanako_e2e::{binaries, fleet::text};

fn install(destination: &Path, arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace");
    let binaries = binaries::path("tanakoctl");
    let from = binaries.parent().expect("a folder");
    Command::new(root.join("install.sh"))
        .env("DESTDIR", destination)
        .env("HOME", destination)
        .arg("--from")
        .arg(from)
        .args(arguments)
        .output()
        .expect("install.sh runs")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn installs_upgrades_and_uninstalls() {
    // Some tests' binaries are built by another package: name all that install.sh wants.
    for name in [
        "tanakoctl",
        "tanako-agent",
        "tanako-bot",
        "tanako-db",
        "simcord",
    ] {
        binaries::path(name);
    }
    let place = tempfile::tempdir().expect("a temporary directory");
    let at = |path: &str| place.path().join(path);

    let dry = install(place.path(), &["--dry-run"]);
    assert!(dry.status.success(), "{}", text(&dry));
    assert!(files(place.path()).is_empty(), "a dry run installs nothing");

    let first = install(place.path(), &[]);
    assert!(first.status.success(), "{}", text(&first));
    for path in [
        "usr/local/bin/tanakoctl",
        "usr/local/bin/tanako-agent",
        "usr/local/bin/tanako-bot",
        "usr/local/bin/tanako-db",
        "usr/local/share/man/man1/tanakoctl.1",
        "usr/local/share/bash-completion/completions/tanakoctl",
        "usr/local/share/zsh/site-functions/_tanakoctl",
        "usr/local/share/fish/vendor_completions.d/tanakoctl.fish",
        "etc/systemd/system/tanako-agent.service",
        "etc/tanako/fleet.toml",
    ] {
        assert!(at(path).exists(), "{path} is missing:\n{}", text(&first));
    }
    let unit = fs::read_to_string(at("etc/systemd/system/tanako-agent.service")).expect("the unit");
    assert!(
        unit.contains("ExecStart=/usr/local/bin/tanako-agent"),
        "{unit}"
    );

    let token = fs::metadata(at("etc/tanako/db.token")).expect("a token for the database");
    assert_eq!(token.permissions().mode() & 0o777, 0o600);

    // What the operator changed stays; what nobody changed is replaced.
    let config = at("etc/tanako/fleet.toml");
    fs::write(&config, "# mine\n").expect("the configuration");
    let again = install(place.path(), &[]);
    assert!(again.status.success(), "{}", text(&again));
    assert_eq!(
        fs::read_to_string(&config).expect("the configuration"),
        "# mine\n"
    );
    assert!(at("etc/tanako/fleet.toml.new").exists(), "{}", text(&again));

    let gone = install(place.path(), &["--uninstall"]);
    assert!(gone.status.success(), "{}", text(&gone));
    let left = files(place.path());
    let kept = ["db.token", "fleet.toml", "fleet.toml.new"];
    assert_eq!(
        left,
        kept.map(|name| at("etc/tanako").join(name)),
        "configuration is kept"
    );
    let purged = install(place.path(), &["--uninstall", "--purge"]);
    assert_eq!(purged.status.code(), Some(3), "{}", text(&purged));
}

#[test]
fn wrong_arguments_say_what_to_do() {
    let place = tempfile::tempdir().expect("a temporary directory");
    for (arguments, said) in [
        (&["--perfix", "/x"][..], "unknown argument '--perfix'"),
        (&["--prefix", "relative"][..], "must be an absolute path"),
        (&["--purge"][..], "--purge goes with --uninstall"),
        (
            &["--uninstall", "--prefix", "/nowhere"][..],
            "nothing is installed",
        ),
    ] {
        let output = install(place.path(), arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(
            text(&output).contains(said),
            "{arguments:?}: {}",
            text(&output)
        );
    }
    assert!(files(place.path()).is_empty());
}
