//! What the processes of a fleet wrote.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

/// Every log below a directory, with its whole text.
pub(crate) fn below(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut logs = Vec::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "log") {
                let bytes = fs::read(&path).unwrap_or_default();
                logs.push((path, String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
    }
    logs
}

/// The last lines of every log below a directory, for the message of a failed test.
pub fn tails(directory: &Path, lines: usize) -> String {
    let mut all = String::new();
    for (path, log) in below(directory) {
        let whole: Vec<&str> = log.lines().collect();
        let tail = &whole[whole.len().saturating_sub(lines)..];
        let _ = writeln!(all, "--- {}\n{}", path.display(), tail.join("\n"));
    }
    all
}

/// IDENTIFY permits that no bot used because it was stopped, or had no processor, for longer than they are
/// good. Discord never heard of them. The ledger takes each back that it hears of; it does not where Discord's
/// own count came in between.
pub fn wasted_permits(directory: &Path) -> u64 {
    let logs = below(directory);
    let lines = logs.iter().flat_map(|(_, log)| log.lines());
    let wasted = lines.filter(|line| line.contains("IDENTIFY permit came too late to be used"));
    wasted.count() as u64
}
