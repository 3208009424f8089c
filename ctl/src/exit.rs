//! What the exit code of `tanakoctl` says: one table for all verbs.

use std::process::ExitCode;

/// The exit codes, as `--help` shows them.
pub const TABLE: &str = "\
Exit codes:
    0  ok
    1  error
    2  usage: the command line is wrong
    3  nothing to change, or only part of it done; each verb says which
    4  the plan has changes (plan, --dry-run)
   10  unhealthy
   11  locked: another operation runs
   12  timeout
   13  denied
  130  cancelled (Ctrl-C)";

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As asked.
    Ok,
    /// It failed.
    Error,
    /// The command line is wrong.
    Usage,
    /// There was nothing to change, or only part was done.
    Nothing,
    /// The plan has changes.
    Changes,
    /// The fleet or the machine is not well.
    Unhealthy,
    /// Another operation runs.
    Locked,
    /// It took too long.
    Timeout,
    /// Not allowed.
    Denied,
    /// The user stopped it.
    Cancelled,
}

impl Exit {
    /// The number of the table.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Error => 1,
            Self::Usage => 2,
            Self::Nothing => 3,
            Self::Changes => 4,
            Self::Unhealthy => 10,
            Self::Locked => 11,
            Self::Timeout => 12,
            Self::Denied => 13,
            Self::Cancelled => 130,
        }
    }

    /// The exit code that a problem's `code` leads to.
    pub fn of(problem: &str) -> Self {
        match problem {
            "usage" => Self::Usage,
            "conflict" | "locked" | "busy" => Self::Locked,
            "timeout" => Self::Timeout,
            "denied" | "readonly" => Self::Denied,
            "unhealthy" => Self::Unhealthy,
            "cancelled" => Self::Cancelled,
            _ => Self::Error,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lists_every_code() {
        for exit in [
            Exit::Ok,
            Exit::Error,
            Exit::Usage,
            Exit::Nothing,
            Exit::Changes,
            Exit::Unhealthy,
            Exit::Locked,
            Exit::Timeout,
            Exit::Denied,
            Exit::Cancelled,
        ] {
            assert!(
                TABLE
                    .lines()
                    .any(|line| line.split_whitespace().next() == Some(&exit.code().to_string())),
                "{exit:?}"
            );
        }
    }
}
