//! In-place upgrade: the agent replaces itself by the binary now on disk. Its process id stays, so
//! its children stay its children.
//!
//! The new binary is tried first ([`check`]); only then does the agent stop its tasks and call
//! [`replace`]. Should `execve` fail even so, the old image, which the kernel still holds, is executed
//! instead: the agent goes on in the old version and says why.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// Tells the next image why it is the old one.
const FAILED: &str = "TANAKO_UPGRADE_FAILED";
/// Tells the next image from which version it was executed.
const FROM: &str = "TANAKO_UPGRADED_FROM";
/// Longest time the new binary may take to tell its version.
const CHECK_MAX: Duration = Duration::from_secs(10);

/// How this image came to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Started from outside.
    Fresh,
    /// Executed by an agent of this version.
    Upgraded {
        /// The version before.
        from: String,
    },
    /// Executed anew because the new binary could not be.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Why the binary on disk is not used.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// It cannot be executed.
    #[error("{} cannot be executed", path.display())]
    Exec {
        /// The binary.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not an agent.
    #[error("{} does not tell its version as an agent does: {said:?}", path.display())]
    NotAnAgent {
        /// The binary.
        path: PathBuf,
        /// What it said.
        said: String,
    },
    /// It did not answer.
    #[error("{} did not tell its version in time", path.display())]
    Silent {
        /// The binary.
        path: PathBuf,
    },
}

/// Where this program lies. Must be asked at the start: later the file may have been replaced, and
/// then the kernel no longer tells its path.
pub fn own_path() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    // Executed from an image that had been replaced already: the name is the same all the same.
    let text = path.to_string_lossy();
    Ok(text
        .strip_suffix(" (deleted)")
        .map_or_else(|| path.clone(), PathBuf::from))
}

/// How this image came to run.
pub fn origin() -> Origin {
    let read = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (read(FAILED), read(FROM)) {
        (Some(reason), _) => Origin::Failed { reason },
        (None, Some(from)) => Origin::Upgraded { from },
        (None, None) => Origin::Fresh,
    }
}

/// Runs the binary at `path` with `--version`, and returns what it says.
pub async fn check(path: &Path) -> Result<String, UpgradeError> {
    let mut command = tokio::process::Command::new(path);
    command
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(CHECK_MAX, command.output())
        .await
        .map_err(|_| UpgradeError::Silent {
            path: path.to_owned(),
        })?
        .map_err(|source| UpgradeError::Exec {
            path: path.to_owned(),
            source,
        })?;
    let said: String = String::from_utf8_lossy(&output.stdout)
        .trim()
        .chars()
        .take(80)
        .collect();
    match said.strip_prefix("tanako-agent ") {
        Some(version) if output.status.success() => Ok(version.to_owned()),
        _ => Err(UpgradeError::NotAnAgent {
            path: path.to_owned(),
            said,
        }),
    }
}

/// Executes the binary at `path` in place of this process, with the same arguments. Returns only
/// when neither it nor the present image can be executed.
pub fn replace(path: &Path) -> io::Error {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let error = Command::new(path)
        .args(&arguments)
        .env(FROM, env!("CARGO_PKG_VERSION"))
        .env_remove(FAILED)
        .exec();
    tracing::error!(path = %path.display(), %error, "the new binary cannot be executed");
    Command::new("/proc/self/exe")
        .arg0(path)
        .args(&arguments)
        .env(FAILED, format!("{}: {error}", path.display()))
        .exec()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(dir: &Path, text: &str, mode: u32) -> PathBuf {
        let path = dir.join("new-agent");
        let staged = dir.join("staged");
        std::fs::write(&staged, text).expect("writes");
        std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(mode)).expect("sets");
        std::fs::rename(&staged, &path).expect("renames");
        path
    }

    #[tokio::test]
    async fn only_an_agent_passes() {
        let dir = tempfile::tempdir().expect("a directory");
        let good = script(dir.path(), "#!/bin/sh\necho tanako-agent 9.9.9\n", 0o755);
        assert_eq!(check(&good).await.expect("an agent"), "9.9.9");
        let other = script(dir.path(), "#!/bin/sh\necho something else\n", 0o755);
        assert!(matches!(
            check(&other).await,
            Err(UpgradeError::NotAnAgent { .. })
        ));
        let plain = script(dir.path(), "#!/bin/sh\necho tanako-agent 9.9.9\n", 0o644);
        assert!(matches!(
            check(&plain).await,
            Err(UpgradeError::Exec { .. })
        ));
        let absent = check(&dir.path().join("absent")).await;
        assert!(matches!(absent, Err(UpgradeError::Exec { .. })));
    }
}
