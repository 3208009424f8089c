//! What a machine must bring along. Each check reads the system once; what the values mean is decided in
//! functions of their own, so that tests can ask them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Access, access, statvfs},
    process::{PidfdFlags, Resource, getpid, getrlimit, pidfd_open},
};
use tanako_proto::fleet::v1::Finding;

use super::finding;
use crate::{context::Config, units::bytes};

/// Everything about this machine.
pub(super) fn findings(socket: Option<&Path>) -> Vec<Finding> {
    let mut all = vec![kernel(), descriptors_here(), cgroup(), clock()];
    all.extend(disks(socket));
    all.push(config());
    all
}

fn kernel() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    // The agent adopts and signals processes through pidfds only.
    match pidfd_open(getpid(), PidfdFlags::empty()) {
        Ok(_) => finding("ok", "kernel", &format!("Linux {release}, with pidfd"), ""),
        Err(_) => finding(
            "error",
            "kernel",
            &format!("Linux {release} has no pidfd"),
            "the agent needs Linux 5.4 or newer, and a container must not forbid pidfd_open",
        ),
    }
}

fn descriptors_here() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    descriptors(limit.current, limit.maximum)
}

fn descriptors(soft: Option<u64>, hard: Option<u64>) -> Finding {
    let show =
        |limit: Option<u64>| limit.map_or_else(|| "unlimited".into(), |limit| limit.to_string());
    let message = format!("{} open files (at most {})", show(soft), show(hard));
    let hint = "raise it: LimitNOFILE=65536 in the unit of tanako-agent, or `nofile` in /etc/security/limits.conf";
    match hard.unwrap_or(u64::MAX) {
        0..1024 => finding("error", "open files", &message, hint),
        1024..4096 => finding("warning", "open files", &message, hint),
        _ => finding("ok", "open files", &message, ""),
    }
}

fn cgroup() -> Finding {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(|below| PathBuf::from(format!("/sys/fs/cgroup{below}")));
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok();
    let delegated = path.is_some_and(|path| {
        access(&path, Access::WRITE_OK).is_ok()
            && access(path.join("cgroup.procs"), Access::WRITE_OK).is_ok()
    });
    limits(controllers.as_deref(), delegated)
}

fn limits(controllers: Option<&str>, delegated: bool) -> Finding {
    let hint = "under systemd: Delegate=cpu memory pids in the unit of tanako-agent; without it memory is watched by the agent, and cpus and tasks are not enforced";
    match controllers {
        None => finding(
            "warning",
            "cgroup v2",
            "not mounted at /sys/fs/cgroup: limits of fleet.toml are not enforced by the kernel",
            "boot with systemd.unified_cgroup_hierarchy=1; until then the agent watches memory itself",
        ),
        Some(names) => {
            let missing: Vec<&str> = ["cpu", "memory", "pids"]
                .into_iter()
                .filter(|name| !names.split_whitespace().any(|one| one == *name))
                .collect();
            if !missing.is_empty() {
                finding(
                    "warning",
                    "cgroup v2",
                    &format!("mounted, but without {}", missing.join(", ")),
                    hint,
                )
            } else if delegated {
                finding(
                    "ok",
                    "cgroup v2",
                    "mounted, and this user's group may be divided",
                    "",
                )
            } else {
                finding(
                    "warning",
                    "cgroup v2",
                    "mounted, but not delegated to this user",
                    hint,
                )
            }
        }
    }
}

fn clock() -> Finding {
    // Files that the usual services keep while they run; asking them would start programs.
    const MARKS: [(&str, &str); 5] = [
        ("/run/systemd/timesync/synchronized", "systemd-timesyncd"),
        ("/run/chrony/chronyd.pid", "chrony"),
        ("/run/chronyd.pid", "chrony"),
        ("/run/ntpd.pid", "ntpd"),
        ("/run/openntpd.sock", "openntpd"),
    ];
    match MARKS.iter().find(|(path, _)| Path::new(path).exists()) {
        Some((_, service)) => finding("ok", "clock", &format!("kept by {service}"), ""),
        None => finding(
            "warning",
            "clock",
            "no time service seen: a wrong clock upsets the 24 h window of IDENTIFYs and backup labels",
            "install one: apt install systemd-timesyncd, or chrony (a container uses its host's clock; then ignore this)",
        ),
    }
}

fn disks(socket: Option<&Path>) -> Vec<Finding> {
    // The agent's own directory when it is one of the usual ones, else where its socket is.
    let mut places: Vec<PathBuf> = vec![PathBuf::from("/var/lib/tanako")];
    places.extend(
        socket
            .and_then(Path::parent)
            .and_then(Path::parent)
            .map(Path::to_owned),
    );
    let mut found = Vec::new();
    for place in places.iter().filter(|place| place.is_dir()) {
        if let Ok(stats) = statvfs(place) {
            found.push(space(
                place,
                stats.f_bavail * stats.f_frsize,
                stats.f_blocks * stats.f_frsize,
                stats.f_favail,
            ));
        }
    }
    found
}

fn space(place: &Path, free: u64, total: u64, inodes: u64) -> Finding {
    let message = format!(
        "{} of {} free in {}",
        bytes(free),
        bytes(total),
        place.display()
    );
    let hint =
        "free some: old backups (tanakoctl backup prune), old logs; or move the data directory";
    // A file system without inodes of its own says 0 for all and is not full.
    let few_inodes = inodes > 0 && inodes < 1_000;
    if free < 100 << 20 {
        finding("error", "disk", &message, hint)
    } else if few_inodes {
        finding(
            "error",
            "disk",
            &format!("{message}, but room for only {inodes} files"),
            hint,
        )
    } else if free < 1 << 30 || free < total / 20 {
        finding("warning", "disk", &message, hint)
    } else {
        finding("ok", "disk", &message, "")
    }
}

fn config() -> Finding {
    match Config::path().and_then(|path| Config::load().map(|config| (path, config))) {
        Ok((path, config)) => {
            let contexts = config
                .contexts()
                .map(|contexts| contexts.len())
                .unwrap_or_default();
            let current = config.current().unwrap_or("none");
            if config
                .current()
                .is_some_and(|name| config.get(name).is_err())
            {
                return finding(
                    "error",
                    "contexts",
                    &format!("the current context {current} does not exist"),
                    "choose another: tanakoctl context use NAME",
                );
            }
            finding(
                "ok",
                "contexts",
                &format!("{contexts} in {}, current: {current}", path.display()),
                "",
            )
        }
        Err(failure) => {
            let problem = failure.problem.unwrap_or_default();
            finding(
                "error",
                "contexts",
                &format!("{}: {}", problem.object, problem.message),
                &problem.hint,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        assert_eq!(descriptors(Some(256), Some(512)).severity, "error");
        assert_eq!(descriptors(Some(1024), Some(2048)).severity, "warning");
        assert_eq!(descriptors(Some(1024), None).severity, "ok");
        let disk = |free, total, inodes| space(Path::new("/d"), free, total, inodes).severity;
        assert_eq!(disk(50 << 20, 100 << 30, 9_999), "error");
        assert_eq!(disk(2 << 30, 100 << 30, 9_999), "warning");
        assert_eq!(disk(50 << 30, 100 << 30, 10), "error");
        assert_eq!(disk(50 << 30, 100 << 30, 0), "ok");
        assert_eq!(limits(None, true).severity, "warning");
        assert_eq!(limits(Some("cpu io memory pids"), true).severity, "ok");
        assert_eq!(
            limits(Some("cpu io memory pids"), false).severity,
            "warning"
        );
        assert!(limits(Some("cpu"), true).message.contains("memory, pids"));
    }

    #[test]
    fn every_finding_that_is_not_ok_says_what_to_do() {
        for finding in findings(Some(Path::new("/tmp/a/agent.sock"))) {
            assert!(
                finding.severity == "ok" || !finding.hint.is_empty(),
                "{finding:?}"
            );
            assert!(!finding.message.is_empty());
        }
    }
}
