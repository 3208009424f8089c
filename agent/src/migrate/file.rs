//! `store.json`: which store this data directory uses, once it is not what the flags say.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Its name in the data directory.
const NAME: &str = "store.json";

/// How etcd is reached. Holds no secret: the password lies in a file of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreFile {
    /// URLs of the members.
    pub endpoints: Vec<String>,
    /// What all keys of the fleet begin with.
    pub prefix: String,
    /// CA of the members (PEM).
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// Own certificate (PEM).
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// User.
    #[serde(default)]
    pub user: Option<String>,
    /// File with the user's password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("{path} cannot be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what an agent writes.
    #[error(
        "{path} is damaged; it says which store this agent uses, so that nothing is started without it"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl StoreFile {
    /// What the data directory says; `None` = nothing: the flags decide.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, FileError> {
        let path = data_dir.join(NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FileError::Io { path, source }),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| FileError::Damaged { path, source })
    }

    /// Makes it what the data directory says, at once and for good: there is no moment at which half of
    /// it is there.
    pub fn save(&self, data_dir: &Path) -> Result<(), FileError> {
        let path = data_dir.join(NAME);
        let draft = data_dir.join("store.json.new");
        let write = || -> std::io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            fs::File::open(data_dir)?.sync_all()
        };
        write().map_err(|source| FileError::Io {
            path: path.clone(),
            source,
        })
    }

    /// Takes it back: the flags decide again.
    pub fn remove(data_dir: &Path) -> Result<(), FileError> {
        let path = data_dir.join(NAME);
        let remove = || -> std::io::Result<()> {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => fs::File::open(data_dir)?.sync_all(),
            }
        };
        remove().map_err(|source| FileError::Io {
            path: path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(StoreFile::load(dir.path()).expect("reads"), None);
        let file = StoreFile {
            endpoints: vec!["http://127.0.0.1:2379".to_owned()],
            prefix: "tanako/t/".to_owned(),
            ..StoreFile::default()
        };
        file.save(dir.path()).expect("writes");
        file.save(dir.path()).expect("writes again");
        assert_eq!(StoreFile::load(dir.path()).expect("reads"), Some(file));
        fs::write(dir.path().join(NAME), "{\"endpoints\":").expect("writes");
        let damaged = StoreFile::load(dir.path()).expect_err("damaged");
        assert!(damaged.to_string().contains("store.json"), "{damaged}");
        StoreFile::remove(dir.path()).expect("removes");
        StoreFile::remove(dir.path()).expect("removes nothing");
        assert_eq!(StoreFile::load(dir.path()).expect("reads"), None);
    }
}
