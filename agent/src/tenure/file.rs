//! What is written down about the tenure, at each renewal: for the fence, and for the next agent.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Written {
    /// Names the boot of the machine: the times below are none of another one's.
    pub boot: String,
    /// Name of the tenure.
    pub instance: String,
    /// Its lease.
    pub lease: u64,
    /// Life of the lease, in milliseconds.
    pub ttl: u64,
    /// Until when the processes of this host may act, on CLOCK_BOOTTIME in milliseconds; 0 = not.
    pub until: u64,
    /// See [`tanako_fleet::tenure::Terms::stay`].
    pub stay: u32,
    /// The agent that wrote it.
    pub agent: u32,
}

/// Where it is.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("run").join("tenure")
}

/// What was written in this boot; `None` = nothing that can be used.
pub fn read(data_dir: &Path) -> Option<Written> {
    let text = fs::read(path(data_dir)).ok()?;
    let written: Written = serde_json::from_slice(&text).ok()?;
    (written.boot == crate::supervisor::boot_id()).then_some(written)
}

/// Replaces it. Not synced: after the death of the machine there is nobody who runs.
pub fn write(data_dir: &Path, written: &Written) -> io::Result<()> {
    let path = path(data_dir);
    let new = path.with_extension("new");
    let text = serde_json::to_vec(written).map_err(io::Error::other)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&new, text)?;
    fs::rename(&new, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_in_the_same_boot_only() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()), None);
        let mut written = Written {
            boot: crate::supervisor::boot_id(),
            instance: "i".to_owned(),
            lease: 7,
            ttl: 5_000,
            until: 5_000,
            stay: 1,
            agent: 1,
        };
        write(dir.path(), &written).expect("writes");
        assert_eq!(read(dir.path()), Some(written.clone()));
        "another".clone_into(&mut written.boot);
        write(dir.path(), &written).expect("writes");
        assert_eq!(read(dir.path()), None);
        fs::write(path(dir.path()), "{\"boot\":").expect("writes");
        assert_eq!(read(dir.path()), None, "half a file is none");
    }
}
