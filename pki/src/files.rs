//! Files that only their owner may read, there in full or not at all.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::Error;

/// Largest file read here.
const BYTES_MAX: u64 = 1024 * 1024;

/// Makes a directory of mode 0700; one that is there keeps its mode.
pub fn private_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| io_error(path, "made", source))
}

/// Writes a file of mode 0600 through a temporary one and a rename, and syncs both it and the directory.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = directory.join(format!(
        ".{}.{}.{}",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    ));
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|source| {
        // Best effort: what failed is reported already.
        let _ = fs::remove_file(&temporary);
        io_error(path, "written", source)
    })
}

/// Reads a file, bounded.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    let meta = fs::metadata(path).map_err(|source| io_error(path, "read", source))?;
    if !meta.is_file() || meta.len() > BYTES_MAX {
        return Err(Error::Content {
            path: path.to_owned(),
            fault: "is no plain file of at most 1 MiB",
        });
    }
    fs::read_to_string(path).map_err(|source| io_error(path, "read", source))
}

/// Reads a file that nobody else may read.
pub(crate) fn read_private(path: &Path) -> Result<String, Error> {
    let meta = fs::metadata(path).map_err(|source| io_error(path, "read", source))?;
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    read(path)
}

fn io_error(path: &Path, done: &'static str, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        done,
        source,
    }
}
