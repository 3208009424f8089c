//! The unix socket of the services: bound only by the holder of the agent's lock, open to its own user
//! and root, and, if so configured, to its group.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Server};

use super::admission::Admission;

/// Calls under way on one connection.
const STREAMS_MAX: u32 = 128;
/// Longest header list.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;

/// The socket cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("the socket {} cannot be bound", path.display())]
pub struct BindError {
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Binds the socket. A file left there by an agent that is gone is removed: the caller holds the
/// lock, so nobody listens on it. Anything but a socket is left alone.
pub fn bind(path: &Path, group: bool) -> Result<UnixListener, BindError> {
    let fail = |source| BindError {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path).map_err(fail)?,
        Ok(_) => {
            return Err(fail(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is no socket lies there",
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    // The directory is closed to others, so nobody gets in before the mode is set.
    let listener = UnixListener::bind(path).map_err(fail)?;
    let mode = if group { 0o660 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fail)?;
    Ok(listener)
}

/// Serves until cancelled.
pub fn serve(
    listener: UnixListener,
    routes: Routes,
    admission: Admission,
    cancel: CancellationToken,
    tracker: &TaskTracker,
) {
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(30)))
        .layer(admission)
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            cancel.clone().cancelled_owned(),
        );
    tracker.spawn(super::until_stopped(server, cancel, "the fleet service"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("agent.sock");
        drop(bind(&path, false).expect("free"));
        assert!(path.exists(), "a listener leaves its file");
        let listener = bind(&path, true).expect("replaced");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        drop(listener);
        let file = dir.path().join("precious");
        fs::write(&file, "data").expect("writes");
        assert!(bind(&file, false).is_err());
        assert_eq!(fs::read_to_string(&file).expect("still there"), "data");
    }
}
