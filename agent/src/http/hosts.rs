//! The hosts of the fleet, as this agent sees them.

use tanako_fleet::failover::{SHARE, brake_limit};

use super::exposition::{Kind::Gauge, Page};
use crate::{
    clock::boot_ms,
    registry::{Hosts, Registry},
    tenure::Tenure,
};

/// Nothing on one machine, which cannot lose a host.
pub(super) fn render(page: &mut Page, registry: &Registry, tenure: &Tenure) {
    if !tenure.is_bounded() {
        return;
    }
    let until = tenure.watch().borrow().until;
    let left = until.saturating_sub(boot_ms()).max(0);
    page.family(
        "tanako_tenure_seconds",
        Gauge,
        "For how long this host owns the bots that it runs, unless its lease is renewed.",
    )
    .add(&[], left as f64 / 1_000.0);
    let hosts = registry.hosts();
    let mut present = page.family(
        "tanako_host_present",
        Gauge,
        "Whether the lease of a host lives.",
    );
    for (host, known) in hosts.iter() {
        let lives = u8::from(known.present.is_some());
        present.add(&[("host", host)], f64::from(lives));
    }
    let (lost, limit) = losses(&hosts);
    page.family(
        "tanako_failover_waiting",
        Gauge,
        "Hosts that are lost and whose bots may not be started elsewhere yet.",
    )
    .add(&[], lost as f64);
    page.family(
        "tanako_failover_braked",
        Gauge,
        "Whether more hosts are lost than are moved without being asked.",
    )
    .add(&[], f64::from(u8::from(lost > limit)));
}

/// How many hosts are lost and not released, and how many may be.
fn losses(hosts: &Hosts) -> (usize, usize) {
    let tenured = hosts.values().filter(|known| known.is_tenured());
    let lost = tenured.clone().filter(|known| known.present.is_none());
    (lost.count(), brake_limit(tenured.count(), SHARE))
}
