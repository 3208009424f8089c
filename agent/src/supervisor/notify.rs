//! The socket to which children send `READY=1` and the like (`sd_notify`).

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    path::Path,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg,
    sockopt::set_socket_passcred,
};
use tokio::{io::Interest, net::UnixDatagram};

/// A longer datagram is dropped; `sd_notify` messages have a few dozen bytes.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Text shown to the operator; more is cut off.
const STATUS_CHARS_MAX: usize = 256;
/// File descriptors that a datagram may carry (`BARRIER=1` carries one); they are closed.
const DESCRIPTORS_MAX: usize = 4;

/// What one datagram says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) ready: bool,
    pub(super) stopping: bool,
    pub(super) alive: bool,
    pub(super) status: Option<String>,
}

pub(super) struct NotifySocket {
    socket: UnixDatagram,
}

impl NotifySocket {
    /// Takes the place of the socket of an earlier agent.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        // Bound beside and moved over: at no time is there no socket.
        let beside = path.with_extension("new");
        let _ = std::fs::remove_file(&beside);
        let socket = UnixDatagram::bind(&beside)?;
        set_socket_passcred(&socket, true)?;
        std::fs::rename(&beside, path)?;
        Ok(Self { socket })
    }

    /// The next message and the pid of who sent it, as the kernel says. Safe to cancel.
    pub(super) async fn next(&self) -> io::Result<(u32, Notice)> {
        loop {
            self.socket.readable().await?;
            let received = self
                .socket
                .try_io(Interest::READABLE, || receive(&self.socket));
            match received {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn receive(socket: &UnixDatagram) -> io::Result<Option<(u32, Notice)>> {
    let mut bytes = [0_u8; MESSAGE_BYTES_MAX];
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut sender = None;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmCredentials(credentials) = ancillary {
            sender = u32::try_from(credentials.pid.as_raw_nonzero().get()).ok();
        }
        // Descriptors are closed by being dropped.
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Ok(None);
    }
    Ok(sender.map(|pid| (pid, parse(&bytes[..message.bytes]))))
}

fn parse(bytes: &[u8]) -> Notice {
    let mut notice = Notice::default();
    for line in String::from_utf8_lossy(bytes).lines() {
        match line.split_once('=') {
            Some(("READY", "1")) => notice.ready = true,
            Some(("STOPPING", "1")) => notice.stopping = true,
            Some(("WATCHDOG", "1")) => notice.alive = true,
            Some(("STATUS", text)) => {
                notice.status = Some(
                    text.chars()
                        .filter(|char| !char.is_control())
                        .take(STATUS_CHARS_MAX)
                        .collect(),
                );
            }
            _ => {}
        }
    }
    notice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_parsed_leniently() {
        assert_eq!(
            parse(b"READY=1\nSTATUS=up\x1b[2J and well\nMAINPID=1\nX"),
            Notice {
                ready: true,
                status: Some("up[2J and well".to_owned()),
                ..Notice::default()
            }
        );
        assert_eq!(parse(b"READY=0\n\xff=1"), Notice::default());
        assert!(parse(b"WATCHDOG=1").alive);
        let long = format!("STATUS={}", "x".repeat(4000));
        assert_eq!(parse(long.as_bytes()).status.map(|s| s.len()), Some(256));
    }

    #[tokio::test]
    async fn the_sender_is_known_by_its_pid() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("n.sock");
        let _old = NotifySocket::bind(&path).expect("it binds");
        let socket = NotifySocket::bind(&path).expect("it binds again");
        let client = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
        client
            .send_to(&[b'x'; MESSAGE_BYTES_MAX + 1], &path)
            .expect("it sends");
        client.send_to(b"STOPPING=1", &path).expect("it sends");
        let (pid, notice) = socket.next().await.expect("a message");
        assert_eq!(pid, std::process::id());
        assert!(notice.stopping && !notice.ready);
    }
}
