//! The unix socket of the fleet service: bound only by the holder of the agent's lock, open to its
//! own user and root, and, if so configured, to its group.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tanako_proto::fleet::v1::{Problem, fleet_server::FleetServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Status,
    transport::{Server, server::UdsConnectInfo},
};

use super::Service;
use crate::{coordinator::Caller, problem};

/// Largest request. A spec is the largest.
const REQUEST_BYTES_MAX: usize = 2 * 1024 * 1024;
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
    service: Service,
    group: bool,
    cancel: CancellationToken,
    tracker: &TaskTracker,
) {
    let own = rustix::process::geteuid().as_raw();
    let service = FleetServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX);
    let service = tonic::service::interceptor::InterceptedService::new(
        service,
        move |request: Request<()>| admit(request, own, group),
    );
    let server = Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(30)))
        .add_service(service)
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            cancel.clone().cancelled_owned(),
        );
    tracker.spawn(async move {
        // Streams end with the same token; a client that holds its connection open is not waited for.
        let grace = async {
            cancel.cancelled().await;
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        };
        tokio::select! {
            result = server => if let Err(error) = result {
                tracing::error!(%error, "the fleet service has ended");
            },
            () = grace => {}
        }
    });
}

/// Lets a call pass if its maker may, and says who it is.
fn admit(mut request: Request<()>, own: u32, group: bool) -> Result<Request<()>, Status> {
    let credentials = request
        .extensions()
        .get::<UdsConnectInfo>()
        .and_then(|info| info.peer_cred);
    let Some(credentials) = credentials else {
        return Err(denied("the system does not tell who asks"));
    };
    let uid = credentials.uid();
    if uid != own && uid != 0 && !group {
        return Err(denied(&format!(
            "uid {uid} is neither root nor the agent's user ({own})"
        )));
    }
    let from = credentials.pid().map_or_else(
        || "unix socket".to_owned(),
        |pid| format!("unix socket, pid {pid}"),
    );
    request.extensions_mut().insert(Caller {
        who: user(uid),
        from,
    });
    Ok(request)
}

fn denied(cause: &str) -> Status {
    problem::status(
        Problem::new("denied", "agent", "this agent does not serve you")
            .cause(cause)
            .hint("run tanakoctl as root or as the agent's user, or start the agent with --group-access"),
    )
}

/// `uid 0 (root)`; the name as the local user database has it.
fn user(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_of(&passwd, uid).map_or_else(
        || format!("uid {uid}"),
        |name| format!("uid {uid} ({name})"),
    )
}

fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let found: u32 = fields.nth(1)?.parse().ok()?;
        (found == uid && !name.is_empty()).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_user_database() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nbot:x:1001:1001::/:/bin/false\n";
        assert_eq!(name_of(passwd, 0), Some("root"));
        assert_eq!(name_of(passwd, 1001), Some("bot"));
        assert_eq!(name_of(passwd, 7), None);
    }

    #[test]
    fn nobody_without_credentials_is_let_in() {
        let status = admit(Request::new(()), 0, true).expect_err("denied");
        assert_eq!(Problem::from_status(&status).code, "denied");
    }

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
