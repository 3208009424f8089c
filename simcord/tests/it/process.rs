//! The binary: info file, token file, signals, a port in use.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::client::PATIENCE;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simcord"));
    command
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn info(path: &Path) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        // The file is whole as soon as it is there.
        if let Ok(text) = std::fs::read_to_string(path) {
            return serde_json::from_str(&text).expect("whole JSON");
        }
        assert!(Instant::now() < end, "no info file");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn signal(child: &mut Child, name: &str) -> ExitStatus {
    let pid = child.id().expect("it runs").to_string();
    let sent = Command::new("kill")
        .args([name, &pid])
        .status()
        .await
        .expect("kill runs");
    assert!(sent.success());
    timeout(PATIENCE, child.wait())
        .await
        .expect("it stops")
        .expect("a status")
}

#[tokio::test]
async fn it_serves_until_a_signal_and_never_shows_its_token() {
    let dir = tempfile::tempdir().expect("a directory");
    let (info_file, token_file) = (dir.path().join("info.json"), dir.path().join("token"));
    let mut made = String::new();
    for name in ["-TERM", "-INT"] {
        let mut child = command(&["--guilds", "5", "--events-per-second", "50"])
            .arg("--info-file")
            .arg(&info_file)
            .arg("--token-file")
            .arg(&token_file)
            .env("SIMCORD_LOG", "trace")
            .spawn()
            .expect("it starts");
        let info = info(&info_file).await;
        assert_eq!(info["pid"].as_u64(), child.id().map(u64::from));
        let http = info["http"].as_str().expect("a URL");
        let gateway = info["gateway"].as_str().expect("a URL");
        assert_eq!(gateway.strip_prefix("ws://"), http.strip_prefix("http://"));
        let token = std::fs::read_to_string(&token_file).expect("a token");
        let mode = std::fs::metadata(&token_file)
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        // The same token the second time.
        assert!(made.is_empty() || made == token);
        made.clone_from(&token);
        // Somebody connected does not hold up the stop.
        let mut client = crate::client::Gateway::connect_to(gateway).await;
        client
            .send(crate::client::identify([0, 1], 1, token.trim()))
            .await;
        client.ready().await;
        let status = signal(&mut child, name).await;
        assert!(status.success(), "{name}: {status}");
        let output = child.wait_with_output().await.expect("its output");
        let secret = token.trim().rsplit('.').next().expect("a last part");
        for stream in [output.stdout, output.stderr] {
            assert!(!String::from_utf8_lossy(&stream).contains(secret));
        }
        std::fs::remove_file(&info_file).expect("removed");
    }
}

#[tokio::test]
async fn a_port_in_use_and_bad_flags_are_told_clearly() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let output = command(&["--listen", &address])
        .output()
        .await
        .expect("it ran");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains(&address) && error.contains("in use"),
        "{error}"
    );
    for bad in [
        ["--resume-window", "0s"],
        ["--resume-window", "soon"],
        ["--guilds", "2000000"],
        ["--events-per-second", "-1"],
        ["--max-concurrency", "0"],
        ["--listen", "here"],
    ] {
        let output = command(&bad).output().await.expect("it ran");
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(bad[0]),
            "{bad:?}"
        );
    }
}

#[tokio::test]
async fn a_bad_token_file_is_told_without_its_contents() {
    let dir = tempfile::tempdir().expect("a directory");
    let token = dir.path().join("token");
    std::fs::write(&token, "not-a-token-but-secret").expect("written");
    let path = token.to_str().expect("a path");
    let output = command(&["--token-file", path])
        .output()
        .await
        .expect("it ran");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains(path) && !error.contains("not-a-token"),
        "{error}"
    );
    let missing = dir.path().join("no/such/directory/token");
    let missing = missing.to_str().expect("a path");
    let output = command(&["--token-file", missing])
        .output()
        .await
        .expect("it ran");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(missing));
}
