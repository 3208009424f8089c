//! What is different on a terminal: questions, colours, moving progress.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags, open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use crate::{
    fake::{restart_plan, restarted, restarting},
    world::World,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A process on a pseudo terminal.
struct Terminal {
    child: Child,
    writer: File,
    chunks: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(mut command: Command) -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pty");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("a name");
        let slave = || -> OwnedFd {
            open(
                name.as_c_str(),
                OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .expect("opened")
        };
        command.stdin(slave()).stdout(slave()).stderr(slave());
        let child = command.spawn().expect("a process");
        // The parent's ends of the terminal, or reading would never end.
        drop(command);
        let mut reader = File::from(master.try_clone().expect("cloned"));
        let (sender, chunks) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // EIO when the last process has closed it.
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            writer: File::from(master),
            chunks,
            seen: String::new(),
        }
    }

    fn until(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.contains(text) {
            match self
                .chunks
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(chunk) => self.seen.push_str(&String::from_utf8_lossy(&chunk)),
                Err(error) => {
                    let _ = self.child.kill();
                    panic!("{text:?} never came ({error}): {:?}", self.seen);
                }
            }
        }
    }

    fn say(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).expect("written");
    }

    fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().expect("waited") {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    let _ = self.child.kill();
                    panic!("it did not end: {:?}", self.seen);
                }
                None => std::thread::park_timeout(Duration::from_millis(2)),
            }
        };
        while let Ok(chunk) = self.chunks.recv_timeout(Duration::from_secs(10)) {
            self.seen.push_str(&String::from_utf8_lossy(&chunk));
        }
        (status.code(), self.seen)
    }
}

/// Blocking work beside the fake agent.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

fn restartable() -> World {
    let world = World::new();
    {
        let mut state = world.fake.state();
        state.plan = restart_plan();
        state.operation = restarting();
        state.updates = vec![restarting(), restarted()];
        state.backups = vec![tanako_proto::fleet::v1::Backup {
            date: "20261118".into(),
            ..Default::default()
        }];
    }
    world
}

#[tokio::test]
async fn a_disruptive_change_asks_and_names_the_damage() {
    let world = restartable();
    for (answer, code, asked) in [("n\n", 130, 0), ("\n", 130, 0), ("y\n", 0, 1)] {
        let command = world.command(&["restart", "tanako"]);
        let (ended, seen) = blocking(move || {
            let mut terminal = Terminal::start(command);
            terminal.until("[y/N]");
            terminal.say(answer);
            terminal.end()
        })
        .await;
        assert_eq!(ended, Some(code), "{seen}");
        assert!(
            seen.contains(
                "restarts tanako: 2 processes (4 shards with 10000 guilds) of fleet test"
            ),
            "{seen}"
        );
        assert_eq!(world.fake.state().submitted.len(), asked, "{seen}");
    }
}

#[tokio::test]
async fn a_destructive_change_wants_the_name_typed() {
    let world = restartable();
    for (answer, code) in [("y\n", 130), ("tset\n", 130), ("test\n", 0)] {
        let command = world.command(&["restore", "--date", "20261118"]);
        let (ended, seen) = blocking(move || {
            let mut terminal = Terminal::start(command);
            terminal.until("to go on:");
            terminal.say(answer);
            terminal.end()
        })
        .await;
        assert_eq!(ended, Some(code), "{answer:?}: {seen}");
        assert!(
            seen.contains("everything written since then is lost"),
            "{seen}"
        );
    }
    assert_eq!(world.fake.state().submitted.len(), 1);
}

#[tokio::test]
async fn no_input_never_asks_even_on_a_terminal() {
    let world = restartable();
    let command = world.command(&["--no-input", "restart", "tanako"]);
    let (code, seen) = blocking(move || Terminal::start(command).end()).await;
    assert_eq!(code, Some(1), "{seen}");
    assert!(seen.contains("--yes"), "{seen}");
}

#[tokio::test]
async fn colours_only_where_they_are_wanted() {
    let world = World::new();
    let plain = |arguments: &[&str], variable: (&str, &str)| {
        let mut command = world.command(arguments);
        command.env(variable.0, variable.1);
        blocking(move || Terminal::start(command).end())
    };
    let (_, coloured) = plain(&["status"], ("LANG", "C")).await;
    assert!(coloured.contains("\x1b[32mhealthy\x1b[0m"), "{coloured:?}");
    for (arguments, variable) in [
        (vec!["status"], ("NO_COLOR", "1")),
        (vec!["status"], ("TERM", "dumb")),
        (vec!["status", "--no-color"], ("LANG", "C")),
    ] {
        let (_, seen) = plain(&arguments, variable).await;
        assert!(
            !seen.contains('\x1b') && seen.contains("healthy"),
            "{arguments:?} {variable:?}: {seen:?}"
        );
    }
}

#[tokio::test]
async fn progress_moves_on_a_terminal_and_leaves_nothing_behind() {
    let world = restartable();
    world.fake.state().updates = vec![restarting()];
    let command = world.command(&["restart", "tanako", "--yes"]);
    let fake = world.fake.clone();
    let (code, seen) = blocking(move || {
        let mut terminal = Terminal::start(command);
        terminal.until("1/2");
        // The stream is open and silent; the next one ends well.
        fake.state().updates = vec![restarted()];
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&terminal.child),
            rustix::process::Signal::INT,
        )
        .expect("signalled");
        terminal.end()
    })
    .await;
    assert_eq!(code, Some(130), "{seen:?}");
    assert!(
        seen.contains("operation op-17 goes on in the fleet"),
        "{seen:?}"
    );
    assert!(seen.contains('\x1b'), "a bar was drawn: {seen:?}");
}

#[tokio::test]
async fn watching_repaints_and_marks_what_is_stale() {
    let world = World::new();
    let command = world.command(&["status", "--watch", "--interval", "100ms"]);
    let fake = world.fake.clone();
    let (code, seen) = blocking(move || {
        let mut terminal = Terminal::start(command);
        terminal.until("healthy");
        fake.state()
            .fails
            .insert("status", (tonic::Code::Unavailable, None));
        terminal.until("STALE");
        fake.state().fails.clear();
        fake.state().status.fleet = "came-back".into();
        terminal.until("came-back");
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&terminal.child),
            rustix::process::Signal::INT,
        )
        .expect("signalled");
        terminal.end()
    })
    .await;
    assert_eq!(code, Some(130), "{seen:?}");
    assert!(seen.contains("\x1b[H"), "{seen:?}");
}
