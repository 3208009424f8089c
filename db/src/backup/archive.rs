//! The archive file.
//!
//! ```text
//! "TANAKO-TBK\n" · format u32 · length u32 · header (JSON)
//! zstd: { table: 1 · length u8 · name | row: 2 · length u32 · stored row | end: 3 · length u32 · sums (JSON) }
//! SHA-256 of everything before · "TBK-END\n"
//! ```
//!
//! Numbers are little-endian.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{BackupError, FORMAT, Manifest, Progress, TableSum, io};
use crate::engine::{Space, View};
use crate::row::Row;
use crate::schema::{self, TABLES, Table};
use crate::store::{sync_directory, write_atomically};

const MAGIC: &[u8; 11] = b"TANAKO-TBK\n";
const END: &[u8; 8] = b"TBK-END\n";
const TRAILER: u64 = 32 + END.len() as u64;
const TABLE: u8 = 1;
const ROW: u8 = 2;
const SUMS: u8 = 3;
/// No header, row or list of sums is larger: a damaged length must not make us ask for gigabytes.
const RECORD_BYTES_MAX: u32 = 64 << 20;
/// Between two reports of progress.
const ROWS_PER_REPORT: u64 = 2_000;

/// What an archive says about itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Header {
    /// The node whose rows it holds.
    pub node: String,
    /// All nodes of the ring at that time.
    pub ring_nodes: Vec<String>,
    /// When the snapshot was taken, ISO 8601.
    pub created_at: String,
    /// The declared tables' version.
    pub schema_version: u32,
    /// The version of Tanako that wrote it.
    pub tanako_version: String,
}

type Sums = BTreeMap<String, TableSum>;

/// Writes the archive `NODE.tbk` of a snapshot into the directory, reads it back, and only then
/// gives it its name and writes the manifest `NODE.json`. Returns the archive's path too.
pub fn write(
    view: &dyn View,
    header: &Header,
    directory: &Path,
    progress: &mut Progress<'_>,
) -> Result<(PathBuf, Manifest), BackupError> {
    let path = directory.join(format!("{}.tbk", header.node));
    let temporary = directory.join(format!(".{}.tbk.part", header.node));
    let result = write_checked(view, header, &temporary, progress).and_then(|manifest| {
        std::fs::rename(&temporary, &path).map_err(io("rename", &temporary))?;
        sync_directory(directory)?;
        let json = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| io("encode", &path)(error.into()))?;
        write_atomically(&path.with_extension("json"), &json)?;
        Ok(manifest)
    });
    if result.is_err() {
        // What was begun is worth nothing; that it cannot be removed matters less than the cause.
        let _ = std::fs::remove_file(&temporary);
    }
    Ok((path, result?))
}

fn write_checked(
    view: &dyn View,
    header: &Header,
    temporary: &Path,
    progress: &mut Progress<'_>,
) -> Result<Manifest, BackupError> {
    let sums = write_file(view, header, temporary, progress)?;
    let read_back = read(temporary, &mut |_, _| Ok(()), &mut |_, _| {})?;
    if read_back.sums != sums || read_back.header != *header {
        return Err(BackupError::Damaged {
            path: temporary.to_owned(),
            why: "what was read back is not what was written; check the disk".to_owned(),
        });
    }
    Ok(Manifest {
        format: FORMAT,
        node: header.node.clone(),
        ring_nodes: header.ring_nodes.clone(),
        created_at: header.created_at.clone(),
        tables: sums,
        bytes: read_back.bytes,
        archive_sha256: read_back.sha256,
        schema_version: header.schema_version,
        tanako_version: header.tanako_version.clone(),
        verified: true,
    })
}

fn write_file(
    view: &dyn View,
    header: &Header,
    path: &Path,
    progress: &mut Progress<'_>,
) -> Result<Sums, BackupError> {
    let total = crate::read::all_rows(view)
        .map_err(BackupError::Store)?
        .iter()
        .sum();
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(path)
        .map_err(io("create", path))?;
    let mut out = Hashed {
        inner: BufWriter::with_capacity(256 << 10, file),
        hash: Sha256::new(),
    };
    let json = serde_json::to_vec(header).map_err(|error| io("encode", path)(error.into()))?;
    let mut begin = Vec::new();
    begin.extend_from_slice(MAGIC);
    begin.extend(FORMAT.to_le_bytes());
    begin.extend((json.len() as u32).to_le_bytes());
    begin.extend(json);
    out.write_all(&begin).map_err(io("write", path))?;
    let mut zstd = zstd::stream::write::Encoder::new(out, 3).map_err(io("write", path))?;
    let mut sums = Sums::new();
    let mut done = 0u64;
    progress(0, total);
    for table in TABLES {
        let mut name = vec![TABLE, table.name.len() as u8];
        name.extend_from_slice(table.name.as_bytes());
        zstd.write_all(&name).map_err(io("write", path))?;
        let mut sum = Sum::new();
        let mut failed = None;
        let scanned = view.scan(Space::Rows, &[table.id], &mut |_, stored| {
            let length = (stored.len() as u32).to_le_bytes();
            let written = zstd
                .write_all(&[ROW])
                .and_then(|()| zstd.write_all(&length))
                .and_then(|()| zstd.write_all(stored));
            if let Err(error) = written {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            sum.add(stored);
            done += 1;
            if done.is_multiple_of(ROWS_PER_REPORT) {
                progress(done, total.max(done));
            }
            ControlFlow::Continue(())
        });
        scanned.map_err(|error| BackupError::Store(error.into()))?;
        if let Some(error) = failed {
            return Err(io("write", path)(error));
        }
        sums.insert(table.name.to_owned(), sum.finish());
    }
    let json = serde_json::to_vec(&sums).map_err(|error| io("encode", path)(error.into()))?;
    let mut end = vec![SUMS];
    end.extend((json.len() as u32).to_le_bytes());
    end.extend(json);
    zstd.write_all(&end).map_err(io("write", path))?;
    let out = zstd.finish().map_err(io("write", path))?;
    let digest = out.hash.finalize();
    let mut file = out.inner;
    file.write_all(&digest)
        .and_then(|()| file.write_all(END))
        .and_then(|()| file.flush())
        .and_then(|()| file.get_ref().sync_all())
        .map_err(io("write", path))?;
    progress(done, done);
    Ok(sums)
}

/// An archive that was read from its first to its last byte.
pub(super) struct Checked {
    pub header: Header,
    pub sums: Sums,
    pub bytes: u64,
    pub sha256: String,
}

impl Checked {
    pub fn rows(&self) -> u64 {
        self.sums.values().map(|table| table.rows).sum()
    }
}

/// Reads an archive completely and compares it with its own checksums and, where there is one, with
/// the manifest beside it. Returns what it holds.
pub fn verify(path: &Path, progress: &mut Progress<'_>) -> Result<Manifest, BackupError> {
    let checked = read(path, &mut |_, _| Ok(()), progress)?;
    let found = Manifest {
        format: FORMAT,
        node: checked.header.node,
        ring_nodes: checked.header.ring_nodes,
        created_at: checked.header.created_at,
        tables: checked.sums,
        bytes: checked.bytes,
        archive_sha256: checked.sha256,
        schema_version: checked.header.schema_version,
        tanako_version: checked.header.tanako_version,
        verified: true,
    };
    let beside = path.with_extension("json");
    match std::fs::read(&beside) {
        Ok(json) => {
            let manifest: Manifest =
                serde_json::from_slice(&json).map_err(|error| BackupError::Damaged {
                    path: beside.clone(),
                    why: error.to_string(),
                })?;
            if manifest != found {
                return Err(BackupError::Damaged {
                    path: path.to_owned(),
                    why: format!("it is not the archive that {} describes", beside.display()),
                });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io("read", &beside)(error)),
    }
    Ok(found)
}

/// Takes the rows of an archive.
pub(super) type OnRow<'r> = dyn FnMut(&'static Table, &[u8]) -> Result<(), BackupError> + 'r;

/// Reads the archive, handing every row to `on_row`. The whole file is hashed before the first row
/// is handed out, so `on_row` only ever sees rows of an intact archive.
pub(super) fn read(
    path: &Path,
    on_row: &mut OnRow<'_>,
    progress: &mut Progress<'_>,
) -> Result<Checked, BackupError> {
    let damaged = |why: &str| BackupError::Damaged {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let mut file = File::open(path).map_err(io("open", path))?;
    let bytes = file.metadata().map_err(io("read", path))?.len();
    let header = read_header(&mut file, path)?;
    let body = file.stream_position().map_err(io("read", path))?;
    let Some(end) = bytes.checked_sub(TRAILER).filter(|end| *end >= body) else {
        return Err(damaged("it is cut short"));
    };
    let sha256 = check_hash(&mut file, end, path)?;
    file.seek(SeekFrom::Start(body)).map_err(io("read", path))?;
    let stream = BufReader::with_capacity(256 << 10, file.take(end - body));
    let mut zstd = zstd::stream::read::Decoder::with_buffer(stream)
        .map_err(io("read", path))?
        .single_frame();
    let broken = |error: io::Error| damaged(&format!("its content cannot be read ({error})"));
    let mut table: Option<(&'static Table, Sum)> = None;
    let mut sums = Sums::new();
    let mut done = 0u64;
    let declared: Sums = loop {
        let [tag] = take(&mut zstd).map_err(broken)?;
        if tag != ROW
            && let Some((table, sum)) = table.take()
        {
            sums.insert(table.name.to_owned(), sum.finish());
        }
        match tag {
            TABLE => {
                let [length] = take(&mut zstd).map_err(broken)?;
                let mut name = vec![0; usize::from(length)];
                zstd.read_exact(&mut name).map_err(broken)?;
                let name = String::from_utf8_lossy(&name);
                let known = Table::find(&name)
                    .ok_or_else(|| damaged(&format!("it has an unknown table {name}")))?;
                table = Some((known, Sum::new()));
            }
            ROW => {
                let (table, sum) = table
                    .as_mut()
                    .ok_or_else(|| damaged("a row has no table"))?;
                let stored = record(&mut zstd).map_err(broken)?;
                Row::decode(table, &stored).map_err(|error| damaged(&error.to_string()))?;
                sum.add(&stored);
                on_row(table, &stored)?;
                done += 1;
                if done.is_multiple_of(ROWS_PER_REPORT) {
                    progress(done, 0);
                }
            }
            SUMS => {
                let json = record(&mut zstd).map_err(broken)?;
                break serde_json::from_slice(&json)
                    .map_err(|_| damaged("its sums cannot be read"))?;
            }
            _ => return Err(damaged("its content cannot be read (unknown record)")),
        }
    };
    if zstd.read(&mut [0]).map_err(broken)? != 0 {
        return Err(damaged("it has content after its end"));
    }
    if declared != sums {
        return Err(damaged("its row counts or checksums do not agree"));
    }
    progress(done, done);
    Ok(Checked {
        header,
        sums,
        bytes,
        sha256,
    })
}

/// The header alone: cheap, and refuses what is no archive before anything else is read.
pub(super) fn read_header(file: &mut File, path: &Path) -> Result<Header, BackupError> {
    let foreign = || BackupError::Foreign {
        path: path.to_owned(),
    };
    let mut magic = [0; MAGIC.len()];
    match file.read_exact(&mut magic) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(foreign()),
        other => other.map_err(io("read", path))?,
    }
    if magic != *MAGIC {
        return Err(foreign());
    }
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::Damaged {
            path: path.to_owned(),
            why: "it is cut short".to_owned(),
        },
        _ => io("read", path)(error),
    };
    let version = |what, found, known| BackupError::Version {
        path: path.to_owned(),
        what,
        found,
        known,
    };
    let format = u32::from_le_bytes(take(file).map_err(cut)?);
    if format != FORMAT {
        return Err(version("archive format", format, FORMAT));
    }
    let json = record(file).map_err(cut)?;
    let header: Header = serde_json::from_slice(&json).map_err(|error| BackupError::Damaged {
        path: path.to_owned(),
        why: format!("its header cannot be read ({error})"),
    })?;
    if header.schema_version > schema::VERSION {
        return Err(version(
            "schema version",
            header.schema_version,
            schema::VERSION,
        ));
    }
    Ok(header)
}

/// Hashes the whole file; returns the hash of all of it, trailer included.
fn check_hash(file: &mut File, end: u64, path: &Path) -> Result<String, BackupError> {
    let damaged = |why: &str| BackupError::Damaged {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    file.seek(SeekFrom::Start(0)).map_err(io("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut left = end;
    while left > 0 {
        let want = left.min(buffer.len() as u64) as usize;
        let count = file.read(&mut buffer[..want]).map_err(io("read", path))?;
        if count == 0 {
            return Err(damaged("it is cut short"));
        }
        hash.update(&buffer[..count]);
        left -= count as u64;
    }
    let mut trailer = [0; TRAILER as usize];
    file.read_exact(&mut trailer).map_err(io("read", path))?;
    let (digest, magic) = trailer.split_at(32);
    if magic != END {
        return Err(damaged("it is cut short"));
    }
    if hash.clone().finalize()[..] != *digest {
        return Err(damaged("its checksum does not agree"));
    }
    hash.update(trailer);
    Ok(hex(&hash.finalize()))
}

fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn record(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let length = u32::from_le_bytes(take(from)?);
    if length > RECORD_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a record is impossibly long",
        ));
    }
    let mut bytes = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut bytes)?;
    if bytes.len() < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

struct Sum {
    rows: u64,
    hash: Sha256,
}

impl Sum {
    fn new() -> Self {
        Self {
            rows: 0,
            hash: Sha256::new(),
        }
    }

    fn add(&mut self, stored: &[u8]) {
        self.rows += 1;
        self.hash.update((stored.len() as u32).to_le_bytes());
        self.hash.update(stored);
    }

    fn finish(self) -> TableSum {
        TableSum {
            rows: self.rows,
            sha256: hex(&self.hash.finalize()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}

struct Hashed<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
