//! Tells which of many processes have ended: one epoll over their pidfds, itself watched by the
//! runtime. One task then waits for a thousand children at the cost of one descriptor each.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::event::{Timespec, epoll};
use tokio::io::{Interest, unix::AsyncFd};

/// Ended processes handled in one go.
const BATCH: usize = 256;

pub(super) struct Exits {
    epoll: AsyncFd<OwnedFd>,
}

impl Exits {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, to make sure that the descriptor stays open and the \
                      same as long as it is registered: an OwnedFd that is never replaced does"
        )]
        Ok(Self {
            epoll: AsyncFd::with_interest(epoll, Interest::READABLE)?,
        })
    }

    /// Waits for this process too; `key` comes back when it ends.
    pub(super) fn add(&self, pidfd: &OwnedFd, key: u64) -> io::Result<()> {
        epoll::add(
            self.epoll.get_ref(),
            pidfd,
            epoll::EventData::new_u64(key),
            epoll::EventFlags::IN,
        )?;
        Ok(())
    }

    /// Waits for it no longer.
    pub(super) fn remove(&self, pidfd: &OwnedFd) {
        // Closing the descriptor right after would do the same.
        let _ = epoll::delete(self.epoll.get_ref(), pidfd);
    }

    /// Keys of processes that have ended. Those not removed come again. Safe to cancel.
    pub(super) async fn next(&mut self) -> io::Result<Vec<u64>> {
        loop {
            let mut guard = self.epoll.readable().await?;
            let ready = poll(guard.get_inner())?;
            if ready.is_empty() {
                guard.clear_ready();
            } else {
                return Ok(ready);
            }
        }
    }
}

fn poll(epoll: &OwnedFd) -> io::Result<Vec<u64>> {
    let mut ready: Vec<epoll::Event> = Vec::with_capacity(BATCH);
    let at_once = Timespec::try_from(Duration::ZERO).expect("invariant: zero fits");
    epoll::wait(
        epoll,
        rustix::buffer::spare_capacity(&mut ready),
        Some(&at_once),
    )?;
    Ok(ready.iter().map(|event| event.data.u64()).collect())
}
