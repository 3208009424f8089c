//! What `/proc` says about a process: one small file a second, kept open.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
};

/// Longest `/proc/PID/stat`: 52 numbers of at most 20 digits, and a name of at most 64 bytes.
const STAT_BYTES_MAX: usize = 1280;

/// The fields of `/proc/PID/stat` that are used (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    /// CPU time in clock ticks, user and system.
    pub(super) cpu_ticks: u64,
    pub(super) threads: u32,
    /// Resident pages.
    pub(super) rss_pages: u64,
}

/// Fields behind the name, which itself may contain anything.
fn fields(stat: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    Some(
        stat.get(close + 1..)?
            .split(u8::is_ascii_whitespace)
            .filter(|field| !field.is_empty()),
    )
}

fn number(field: &[u8]) -> Option<u64> {
    // Some fields are signed; none of those used is ever negative.
    std::str::from_utf8(field).ok()?.parse().ok()
}

impl Stat {
    fn parse(stat: &[u8]) -> Option<Self> {
        // The state is the 3rd field of the file and the 1st here.
        let mut fields = fields(stat)?;
        let user = number(fields.nth(14 - 3)?)?;
        let system = number(fields.next()?)?;
        let threads = number(fields.nth(20 - 16)?)?;
        let rss_pages = number(fields.nth(24 - 21)?)?;
        Some(Self {
            cpu_ticks: user.saturating_add(system),
            threads: u32::try_from(threads).unwrap_or(u32::MAX),
            rss_pages,
        })
    }
}

/// The process group in a `/proc/PID/stat`.
pub(crate) fn process_group_of(stat: &[u8]) -> Option<u32> {
    u32::try_from(number(fields(stat)?.nth(5 - 3)?)?).ok()
}

/// An open `/proc/PID/stat`. It stays with its process: once that has gone, reading fails, even
/// when another has got the same number.
#[derive(Debug)]
pub(super) struct ProcFile {
    stat: File,
    pid: u32,
}

impl ProcFile {
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        Ok(Self {
            stat: File::open(format!("/proc/{pid}/stat"))?,
            pid,
        })
    }

    pub(super) fn read(&self) -> io::Result<Stat> {
        let mut buffer = [0; STAT_BYTES_MAX];
        let len = self.stat.read_at(&mut buffer, 0)?;
        Stat::parse(&buffer[..len]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Open file descriptors. Linux 6.2 and later say so in the directory's size; before, it is
    /// read.
    pub(super) fn fds(&self) -> io::Result<u32> {
        let path = format!("/proc/{}/fd", self.pid);
        let size = std::fs::metadata(&path)?.size();
        let count = if size > 0 {
            size
        } else {
            std::fs::read_dir(&path)?.count() as u64
        };
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }
}

/// Proportional set size in bytes.
pub(super) fn pss_bytes(pid: u32) -> io::Result<u64> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kb| kb.trim().parse::<u64>().ok())
        .map(|kb| kb * 1024)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let line = b"1234 (a ) S (b) c) S 1 77 77 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 9 0 \
                     12345 10000000 4321 18446744073709551615 1 1 0 0";
        assert_eq!(
            Stat::parse(line),
            Some(Stat {
                cpu_ticks: 300,
                threads: 9,
                rss_pages: 4321
            })
        );
        assert_eq!(process_group_of(line), Some(77));
    }

    #[test]
    fn this_process_is_measured() {
        let me = ProcFile::open(std::process::id()).expect("opens");
        let stat = me.read().expect("reads");
        assert!(stat.threads >= 1 && stat.rss_pages > 10, "{stat:?}");
        assert!(me.fds().expect("counts") >= 3);
        assert!(pss_bytes(std::process::id()).expect("reads") > 4096);
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Stat::parse(&bytes);
            let _ = process_group_of(&bytes);
        }
    }
}
