//! The network that the other tests of hosts stand on: what it cuts is cut and nothing else, what it
//! kills is dead without a word, and nothing of it is left behind, however its maker ends.

mod netns {
    use std::{
        fs,
        io::{ErrorKind, Read as _, Write as _},
        net::{SocketAddr, TcpListener, TcpStream},
        path::Path,
        process::{Command, Stdio},
        time::Duration,
    };

    use tanako_e2e::{
        netns::{Fault, Lan, Link, Owner, sweep},
        processes, wait,
    };

    /// Longer than a connection on one machine takes, however busy it is: packets that are lost once
    /// come again within it.
    const PATIENCE: Duration = Duration::from_secs(8);
    /// How long a cut is looked at.
    const SILENCE: Duration = Duration::from_millis(1500);

    /// A listener on a host, and where it is.
    fn listen(lan: &Lan, host: &str, port: u16) -> (TcpListener, SocketAddr) {
        let address = SocketAddr::from((lan.address(host), port));
        let listener = lan.host(host).within(|| TcpListener::bind(address));
        (listener.expect("a listener"), address)
    }

    fn reaches(lan: &Lan, from: &str, to: SocketAddr, patience: Duration) -> bool {
        lan.host(from)
            .within(|| TcpStream::connect_timeout(&to, patience))
            .is_ok()
    }

    #[test]
    fn a_cut_link_is_cut_and_no_other() {
        let mut lan = Lan::new(&["a", "b", "c"]);
        let (_agent, agent) = listen(&lan, "b", 7443);
        let (_etcd, etcd) = listen(&lan, "b", 2379);
        let (_own, own) = listen(&lan, "a", 2379);
        let (_peer, peer) = listen(&lan, "b", 2380);
        let discord = SocketAddr::from(([10, 77, 0, 2], 8080));
        let _discord = lan
            .discord()
            .within(|| TcpListener::bind(discord))
            .expect("a listener");
        let all = [agent, etcd, own, peer, discord];
        let reached = |lan: &Lan, from: &str, patience| -> Vec<bool> {
            all.iter()
                .map(|to| reaches(lan, from, *to, patience))
                .collect()
        };
        assert_eq!(reached(&lan, "a", PATIENCE), [true; 5], "nothing is wrong");
        for (link, wanted) in [
            (Link::Others, [false, true, true, true, true]),
            (Link::Etcd, [true, false, false, true, true]),
            (Link::EtcdPeers, [true, true, true, false, true]),
            (Link::Discord, [true, true, true, true, false]),
            // What does not leave the host goes on.
            (Link::All, [false, false, true, false, false]),
        ] {
            lan.impair("a", link, Fault::Cut);
            assert_eq!(reached(&lan, "a", SILENCE), wanted, "{link:?}");
            assert!(reaches(&lan, "c", agent, PATIENCE), "c has no part in it");
            lan.heal("a");
            assert_eq!(reached(&lan, "a", PATIENCE), [true; 5], "healed");
        }
    }

    #[test]
    fn losses_slow_a_link_down_and_lose_nothing_for_good() {
        let mut lan = Lan::new(&["a", "b"]);
        let (listener, address) = listen(&lan, "b", 7443);
        lan.impair("a", Link::Others, Fault::Loss(100));
        assert!(!reaches(&lan, "a", address, SILENCE), "all of it is lost");
        lan.impair("a", Link::Others, Fault::Loss(20));
        let mut stream = lan.host("a").within(|| {
            wait::until("a connection", 60, || {
                TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| error.to_string())
            })
        });
        let (mut peer, _) = listener.accept().expect("accepted");
        let sent: Vec<u8> = (0..64 * 1024).map(|n| (n % 251) as u8).collect();
        let written = sent.clone();
        let writer = std::thread::spawn(move || stream.write_all(&written));
        peer.set_read_timeout(Some(Duration::from_secs(60)))
            .expect("set");
        let mut got = vec![0; sent.len()];
        peer.read_exact(&mut got).expect("all of it");
        assert!(got == sent, "in order and whole");
        writer.join().expect("a thread").expect("written");
    }

    #[test]
    fn a_frozen_host_stands_still_and_a_dead_one_says_nothing() {
        let mut lan = Lan::new(&["a", "b"]);
        let beat = lan.directory_of("a").join("beat");
        // A parent and a child, both of them at work.
        let script =
            r#"(while :; do echo >>"$1"; sleep 0.02; done) & while :; do sleep 0.02; done"#;
        let mut child = lan
            .host("a")
            .command("sh")
            .args(["-c", script, "sh"])
            .arg(&beat)
            .stdin(Stdio::null())
            .spawn()
            .expect("sh starts");
        let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
        let goes_on = |why: &str| {
            let before = length(&beat);
            wait::until(why, 60, || {
                let now = length(&beat);
                (now > before).then_some(()).ok_or(now.to_string())
            });
        };
        goes_on("a first beat");
        lan.host("a").freeze();
        let frozen = length(&beat);
        std::thread::park_timeout(Duration::from_millis(300));
        assert_eq!(length(&beat), frozen, "nothing moves");
        lan.host("a").thaw();
        goes_on("a beat after the thaw");

        // A connection between them: its other end hears nothing of the end.
        let (listener, address) = listen(&lan, "b", 7443);
        let mut held = lan
            .host("a")
            .command("bash")
            .args(["-c", "exec 3<>/dev/tcp/$0/$1; exec sleep 600"])
            .arg(address.ip().to_string())
            .arg(address.port().to_string())
            .stdin(Stdio::null())
            .spawn()
            .expect("bash starts");
        let (mut peer, _) = listener.accept().expect("accepted");
        lan.cut_power("a");
        assert_eq!(lan.host("a").pids(), Vec::<u32>::new());
        assert!(!child.wait().expect("its end").success());
        assert!(!held.wait().expect("its end").success());
        peer.set_read_timeout(Some(SILENCE)).expect("set");
        let error = peer.read(&mut [0; 1]).expect_err("no end of it came");
        assert!(
            matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "{error}"
        );
        lan.heal("a");
        let (_listener, address) = listen(&lan, "a", 7444);
        assert!(reaches(&lan, "b", address, PATIENCE), "it can come back");
    }

    /// What of a prefix is there: namespaces, processes, files.
    fn left(prefix: &str) -> Vec<String> {
        let mut left: Vec<String> = [Path::new("/run/netns"), &std::env::temp_dir()]
            .into_iter()
            .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
            .map(|entry| entry.path().display().to_string())
            .filter(|path| path.contains(prefix))
            .collect();
        left.extend(
            processes::of(Path::new(prefix))
                .into_iter()
                .filter(|(pid, _)| processes::alive(*pid))
                .map(|(pid, command)| format!("{pid} {command}")),
        );
        left
    }

    fn until_nothing_is_left(prefix: &str) {
        wait::until("nothing to be left", 60, || {
            let left = left(prefix);
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:#?}"))
            }
        });
    }

    /// Its prefix in a file, then sleep, with a process that would outlive it.
    const VICTIM: &str = "TANAKO_E2E_NETNS_VICTIM";

    /// In a process of its own, to be killed: see below.
    fn be_a_victim(told: &Path) -> ! {
        let lan = Lan::new(&["a"]);
        let prefix = lan.owner().prefix();
        let _child = lan
            .host("a")
            .command("sleep")
            .arg("600")
            .env("MARK", &prefix)
            .spawn();
        fs::write(told.with_extension("part"), &prefix).expect("written");
        fs::rename(told.with_extension("part"), told).expect("renamed");
        loop {
            std::thread::park();
        }
    }

    #[test]
    fn nothing_is_left_of_it_however_its_maker_ends() {
        if let Some(told) = std::env::var_os(VICTIM) {
            be_a_victim(Path::new(&told));
        }
        // In order.
        let lan = Lan::new(&["a", "b"]);
        let prefix = lan.owner().prefix();
        let mut child = lan
            .host("a")
            .command("sleep")
            .arg("600")
            .env("MARK", &prefix)
            .spawn()
            .expect("ip starts");
        lan.file("file", "text");
        drop(lan);
        assert!(!child.wait().expect("its end").success(), "killed");
        assert_eq!(left(&prefix), Vec::<String>::new());

        // Killed in the middle, once with and once without the one that clears up behind it.
        for reaper_as_well in [false, true] {
            let directory = tempfile::tempdir().expect("a directory");
            let told = directory.path().join("prefix");
            let mut victim = Command::new(std::env::current_exe().expect("this test"))
                .args([
                    "--exact",
                    "netns::nothing_is_left_of_it_however_its_maker_ends",
                ])
                .env(VICTIM, &told)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("this test starts");
            let prefix = wait::until("the victim's network", 60, || {
                fs::read_to_string(&told).map_err(|error| error.to_string())
            });
            let owner = Owner::of(&prefix).expect("an owner");
            assert!(owner.is_alive());
            assert!(!left(&prefix).is_empty());
            if reaper_as_well {
                for (pid, command) in processes::of(Path::new(&prefix)) {
                    if command.starts_with("sh ") {
                        processes::kill(pid);
                    }
                }
            }
            victim.kill().expect("killed");
            victim.wait().expect("reaped");
            assert!(!owner.is_alive());
            if reaper_as_well {
                assert!(!left(&prefix).is_empty(), "somebody else has cleared up");
                assert!(sweep().contains(&prefix));
                assert_eq!(left(&prefix), Vec::<String>::new());
            }
            until_nothing_is_left(&prefix);
        }
    }
}
