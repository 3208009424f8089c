//! The real binary in a real terminal (tmux) against a Fleet service on a unix socket.
//!
//! Every wait is for something on the screen, with a deadline.

mod monitor_fixture;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use monitor_fixture::{bot, fake::Fake, status};
use tempfile::TempDir;

/// How long anything may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at the screen.
const LOOK: Duration = Duration::from_millis(50);

/// A tmux server of its own, ended with its test.
struct Terminal {
    server: String,
    home: TempDir,
}

impl Terminal {
    /// Starts the monitor of `socket` in a terminal of `columns` and `lines`, under a shell that then
    /// says how it ended.
    fn open(socket: &Path, columns: u16, lines: u16, options: &str) -> Self {
        let command = format!(
            "{} --socket {} monitor {options}",
            env!("CARGO_BIN_EXE_tanakoctl"),
            socket.display()
        );
        Self::run(&command, columns, lines)
    }

    /// As [`Terminal::open`], for any command.
    fn run(command: &str, columns: u16, lines: u16) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let unique = home
            .path()
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let server = format!("tanako{}-{unique}", std::process::id());
        let terminal = Self { server, home };
        // The shell comes first, so that what it shows before and after can be compared.
        let script = format!(
            "echo before; stty -a | grep -o -- '-*icanon'; {command}; \
             echo ended $?; stty -a | grep -o -- '-*icanon'; read -r line; echo read $line; read -r line"
        );
        let (columns, lines) = (columns.to_string(), lines.to_string());
        let state = format!("XDG_STATE_HOME={}", terminal.home.path().display());
        let out = terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-s",
            "m",
            "-x",
            &columns,
            "-y",
            &lines,
            "-e",
            &state,
            "-e",
            "LC_ALL=C.UTF-8",
            "-e",
            "NO_COLOR=",
            "-e",
            "TERM=tmux-256color",
            "sh",
            "-c",
            &script,
        ]);
        assert!(
            out.status.success(),
            "tmux: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command.arg("-L").arg(&self.server).args(arguments);
        // Inside another tmux a nested one would refuse to start.
        command.env_remove("TMUX").env("HOME", self.home.path());
        command
            .output()
            .expect("tmux is installed (test.sh installs it)")
    }

    fn keys(&self, keys: &[&str]) {
        let mut arguments = vec!["send-keys", "-t", "m"];
        arguments.extend(keys);
        assert!(
            self.tmux(&arguments).status.success(),
            "the terminal is still there"
        );
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.tmux(&["capture-pane", "-p", "-t", "m"]).stdout).into_owned()
    }

    /// Waits until the screen satisfies `holds`, and returns it.
    async fn until(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if holds(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "never seen: {what}\n{screen}");
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn shows(&self, text: &str) -> String {
        self.until(text, |screen| screen.contains(text)).await
    }

    /// The process id of the monitor, which is the only child of the shell.
    fn monitor(&self) -> u32 {
        let shell = self
            .tmux(&["display-message", "-p", "-t", "m", "#{pane_pid}"])
            .stdout;
        let shell = String::from_utf8_lossy(&shell).trim().to_owned();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))
            .expect("a shell");
        children.trim().parse().expect("one child")
    }

    /// Waits until the shell is back, its terminal as it was before.
    async fn ended(&self, code: i32) {
        let screen = self.shows(&format!("ended {code}")).await;
        // The first screen is back with what stood there, and lines are edited by the terminal again.
        assert!(
            screen.contains("before") && !screen.contains("live "),
            "{screen}"
        );
        let screen = self
            .until("both modes", |screen| screen.matches("icanon").count() == 2)
            .await;
        assert!(!screen.contains("-icanon"), "{screen}");
        self.keys(&["hello", "Enter"]);
        self.shows("read hello").await;
        let cursor = self
            .tmux(&["display-message", "-p", "-t", "m", "#{cursor_flag}"])
            .stdout;
        assert_eq!(
            String::from_utf8_lossy(&cursor).trim(),
            "1",
            "the cursor is hidden"
        );
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

fn socket(home: &TempDir) -> PathBuf {
    home.path().join("agent.sock")
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_work_and_quitting_restores_the_terminal() {
    let home = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(&socket(&home), status());
    let terminal = Terminal::open(&socket(&home), 100, 30, "");
    let screen = terminal.shows("tanako/3").await;
    assert!(
        screen.contains("shop") && screen.contains("6/7") && screen.contains("live"),
        "{screen}"
    );

    // What happens in the fleet is on the screen within a second; a loaded machine gets more.
    fake.change(|world| world.status.processes.push(bot(7, "starting")));
    terminal.shows("tanako/7").await;

    terminal.keys(&["/", "backoff", "Enter"]);
    terminal
        .until("only the fault", |screen| {
            screen.contains("tanako/3") && !screen.contains("db/node1")
        })
        .await;
    terminal.keys(&["Enter"]);
    terminal.shows("2 shards").await;
    terminal.keys(&["l"]);
    terminal.shows("following").await;
    terminal.shows("heartbeat 29").await;
    terminal.keys(&["s"]);
    terminal.shows("saved to").await;
    let saved = terminal.home.path().join("tanako/logs");
    let saved: Vec<_> = std::fs::read_dir(saved)
        .expect("saved")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert_eq!(saved.len(), 1);
    assert!(
        std::fs::read_to_string(&saved[0])
            .expect("text")
            .contains("heartbeat 3 ")
    );

    terminal.keys(&["Escape"]);
    terminal.shows("2 shards").await;
    terminal.keys(&["Escape"]);
    terminal.shows("filter backoff").await;
    terminal.keys(&["?"]);
    terminal.shows("this help").await;
    terminal.tmux(&["resize-window", "-t", "m", "-x", "40", "-y", "10"]);
    terminal
        .until("ten lines", |screen| {
            screen.contains("Everywhere") && screen.lines().count() <= 10
        })
        .await;
    terminal.keys(&["q"]);
    terminal.ended(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_agent_leaves_stale_data_and_comes_back() {
    let home = tempfile::tempdir().expect("a directory");
    let mut fake = Fake::start(&socket(&home), status());
    let terminal = Terminal::open(&socket(&home), 100, 30, "");
    terminal.shows("live").await;
    terminal.shows("tanako/3").await;
    fake.kill().await;
    let screen = terminal.shows("STALE").await;
    assert!(
        screen.contains("tanako/3") && screen.contains("6/7"),
        "the data is kept\n{screen}"
    );
    terminal.shows("no agent runs there").await;
    // Keys still work on what is known.
    terminal.keys(&["G", "Enter"]);
    terminal.shows("last exit: status 101").await;
    terminal.keys(&["Escape"]);
    fake.change(|world| world.status.processes[3] = bot(3, "ready"));
    fake.resume();
    terminal
        .until("live again", |screen| {
            screen.contains("live") && !screen.contains("STALE")
        })
        .await;
    terminal.shows("7/7").await;
    terminal.keys(&[":", "quit", "Enter"]);
    terminal.ended(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_action_asks_first_and_shows_its_result() {
    let home = tempfile::tempdir().expect("a directory");
    let fake = Fake::start(&socket(&home), status());
    let terminal = Terminal::open(&socket(&home), 100, 30, "");
    terminal.shows("tanako/3").await;
    terminal.keys(&["G", "r"]);
    terminal.shows("touches 1 process").await;
    terminal.keys(&["Enter"]);
    terminal.shows("cancelled, nothing was changed").await;
    assert!(fake.world.lock().expect("held").submitted.is_empty());
    terminal.keys(&["r"]);
    terminal.shows("touches 1 process").await;
    terminal.keys(&["Tab", "Enter"]);
    terminal
        .until("it is submitted", |_| {
            !fake.world.lock().expect("held").submitted.is_empty()
        })
        .await;
    let submitted = fake.world.lock().expect("held").submitted.clone();
    assert_eq!(
        (
            submitted.len(),
            submitted[0].kind.as_str(),
            submitted[0].base_version
        ),
        (1, "restart", 12)
    );
    assert_eq!(submitted[0].targets, ["tanako/3"]);
    terminal.shows("restart tanako/3  running").await;
    fake.change(|world| {
        let ended = world.status.operations.last_mut().expect("the operation");
        ended.state = "succeeded".into();
        (ended.done, ended.updated_at) = (1, ended.updated_at + 1);
        ended.ended_at = ended.updated_at;
    });
    terminal.shows("restart tanako/3  succeeded").await;
    terminal.keys(&["C-c"]);
    terminal.ended(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn read_only_and_hostile_text() {
    let home = tempfile::tempdir().expect("a directory");
    let mut hostile = status();
    hostile.reasons = vec!["\u{1b}[2J\u{1b}[31mred\u{1b}]0;owned\u{7}\u{202e}".into()];
    let fake = Fake::start(&socket(&home), hostile);
    fake.change(|world| {
        world.lines = vec!["\u{1b}c\u{1b}[?1049l\u{1b}]0;owned\u{7}survived".into()];
    });
    let terminal = Terminal::open(&socket(&home), 100, 30, "--ascii");
    let screen = terminal.shows("red").await;
    assert!(screen.contains("shop") && screen.is_ascii(), "{screen}");
    terminal.keys(&["G", "l"]);
    terminal.shows("survived").await;
    let title = terminal
        .tmux(&[
            "display-message",
            "-p",
            "-t",
            "m",
            "#{pane_title} #{alternate_on}",
        ])
        .stdout;
    let title = String::from_utf8_lossy(&title).into_owned();
    assert!(
        !title.contains("owned") && title.trim().ends_with('1'),
        "{title}"
    );
    terminal.keys(&["q"]);
    terminal.ended(0).await;

    let terminal = Terminal::open(&socket(&home), 100, 30, "--readonly");
    terminal.shows("tanako/3").await;
    terminal.keys(&["r"]);
    terminal.shows("read-only: nothing can be changed").await;
    terminal.keys(&["q"]);
    terminal.ended(0).await;
    assert!(fake.world.lock().expect("held").submitted.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_and_hang_ups_end_it() {
    let home = tempfile::tempdir().expect("a directory");
    let _fake = Fake::start(&socket(&home), status());
    let terminal = Terminal::open(&socket(&home), 80, 24, "");
    terminal.shows("live").await;
    let pid = terminal.monitor();
    let signalled = Command::new("kill")
        .args(["-TERM", &pid.to_string()])
        .status()
        .expect("kill runs");
    assert!(signalled.success());
    terminal.ended(0).await;

    let terminal = Terminal::open(&socket(&home), 80, 24, "");
    terminal.shows("live").await;
    let pid = terminal.monitor();
    terminal.tmux(&["kill-server"]);
    let deadline = Instant::now() + PATIENCE;
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < deadline, "it lives on without a terminal");
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_it_says_what_to_use() {
    let home = tempfile::tempdir().expect("a directory");
    let out = Command::new(env!("CARGO_BIN_EXE_tanakoctl"))
        .args(["--socket", &socket(&home).display().to_string(), "monitor"])
        .output()
        .expect("it runs");
    assert!(!out.status.success());
    assert!(out.stdout.is_empty());
    assert!(String::from_utf8_lossy(&out.stderr).contains("tanakoctl status"));
}

/// A terminal that is nobody's controlling terminal sends no signal when it goes, and this one
/// answers no query either, as some do.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_vanishes_silently_ends_it() {
    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{Winsize, tcsetwinsize};

    let home = tempfile::tempdir().expect("a directory");
    let _fake = Fake::start(&socket(&home), status());
    let master =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
    grantpt(&master).expect("granted");
    unlockpt(&master).expect("unlocked");
    let size = Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&master, size).expect("sized");
    let name = ptsname(&master, Vec::new()).expect("a name");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(name, flags, Mode::empty()).expect("its other end");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tanakoctl"))
        .args(["--socket", &socket(&home).display().to_string(), "monitor"])
        .env("XDG_STATE_HOME", home.path())
        .env("TERM", "xterm-256color")
        .stdin(slave.try_clone().expect("cloned"))
        .stdout(slave.try_clone().expect("cloned"))
        .stderr(slave)
        .spawn()
        .expect("it runs");
    let seen = tokio::task::spawn_blocking(move || {
        let (mut seen, mut part) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&seen).contains("tanako/3") {
            let n = rustix::io::read(&master, &mut part).expect("it draws");
            seen.extend_from_slice(&part[..n]);
        }
        // The master closes here.
        seen.len()
    });
    let seen = tokio::time::timeout(PATIENCE, seen).await;
    assert!(seen.expect("it draws in time").expect("read") > 0);
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        if let Some(ended) = child.try_wait().expect("a child") {
            break ended;
        }
        if Instant::now() > deadline {
            child.kill().expect("killed");
            panic!("it lives on without a terminal");
        }
        tokio::time::sleep(LOOK).await;
    };
    assert_eq!(ended.code(), Some(0), "{ended}");
}

/// Not a test by itself: the next one runs it in a terminal.
#[tokio::test]
async fn a_panic_in_a_terminal() {
    if std::env::var_os("PANIC_IN_A_TERMINAL").is_none() {
        return;
    }
    let stop = tokio_util::sync::CancellationToken::new();
    let _term = tanakoctl::monitor::term::Term::take(true, stop.clone()).expect("a terminal");
    let failed = tokio::spawn(async { panic!("on purpose") }).await;
    assert!(failed.is_err());
    // The runner ends on this.
    assert!(stop.is_cancelled());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_gives_the_terminal_back_and_can_be_read() {
    let this = std::env::current_exe().expect("a path");
    let command = format!(
        "RUST_BACKTRACE=0 PANIC_IN_A_TERMINAL=1 {} --exact a_panic_in_a_terminal --nocapture",
        this.display()
    );
    let terminal = Terminal::run(&command, 100, 40);
    let screen = terminal.shows("on purpose").await;
    assert!(screen.contains("before"), "{screen}");
    terminal.ended(0).await;
}
