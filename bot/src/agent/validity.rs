//! Until when this process may act.
//!
//! In a fleet of hosts a process acts only while its host owns it: past the time that its agent told it last
//! its shards may be another host's. That is looked at right before anything is read from the gateway, and
//! so before each event is handled and each IDENTIFY or RESUME is sent: a process that was stopped in its
//! tracks does nothing when it goes on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;

use crate::identify::boot_ms;

/// The timer follows a clock that stands still while the machine sleeps, so it is looked up often.
const NAP_MAX: i64 = 250;

/// The bound that the agent told; clones share it. There is none until one is told.
#[derive(Debug, Clone, Default)]
pub struct Validity(Arc<AtomicI64>);

impl Validity {
    /// CLOCK_BOOTTIME in milliseconds; 0 = for ever.
    pub fn set(&self, until_boot_ms: i64) {
        self.0.store(until_boot_ms, Ordering::Release);
    }

    /// Whether there is a bound.
    pub fn is_bounded(&self) -> bool {
        self.0.load(Ordering::Acquire) != 0
    }

    /// Whether the process may act now.
    pub fn holds(&self) -> bool {
        let until = self.0.load(Ordering::Acquire);
        until == 0 || boot_ms() < until
    }

    /// Resolves when it may not act any more.
    pub async fn over(&self) {
        loop {
            let left = match self.0.load(Ordering::Acquire) {
                0 => NAP_MAX,
                until => until - boot_ms(),
            };
            if left <= 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(left.min(NAP_MAX).unsigned_abs())).await;
        }
    }

    /// The next item of `stream`, which is not even looked at past the bound: then it never comes.
    pub fn poll_next<S: Stream + Unpin>(
        &self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Option<S::Item>> {
        if self.holds() {
            Pin::new(stream).poll_next(cx)
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn past_the_bound_nothing_is_read() {
        let validity = Validity::default();
        let mut source = stream::iter(1..);
        let mut next = async |validity: &Validity| {
            std::future::poll_fn(|cx| Poll::Ready(validity.poll_next(&mut source, cx))).await
        };
        assert!(validity.holds() && !validity.is_bounded());
        assert_eq!(next(&validity).await, Poll::Ready(Some(1)));
        validity.set(boot_ms() + 60_000);
        assert_eq!(next(&validity).await, Poll::Ready(Some(2)));
        validity.set(boot_ms() - 1);
        assert_eq!(next(&validity).await, Poll::Pending);
        validity.over().await;
        validity.set(boot_ms() + 60_000);
        assert_eq!(next(&validity).await, Poll::Ready(Some(3)), "none is lost");
    }
}
