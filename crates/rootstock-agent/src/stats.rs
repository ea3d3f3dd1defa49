//! Counters that the machine reports, and what its boot reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rootstock_api::boot::NodeReport;

use crate::trace::Recorder;

/// Counts from the start of the agent, by any thread.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    read_bytes: AtomicU64,
    fetched_bytes: AtomicU64,
    /// Those of them that came over HTTP.
    http_bytes: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    local_bytes: AtomicU64,
    stall_us: AtomicU64,
    stall_worst_us: AtomicU64,
    /// What the boot reads.
    pub(crate) trace: Recorder,
}

impl Stats {
    /// The kernel was answered from memory.
    pub(crate) fn hit(&self, bytes: u64) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The kernel had to wait this long for its answer.
    pub(crate) fn waited(&self, bytes: u64, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.stall_us.fetch_add(micros, Ordering::Relaxed);
        self.stall_worst_us.fetch_max(micros, Ordering::Relaxed);
    }

    /// A chunk came from a server.
    pub(crate) fn fetched(&self, bytes: u64) {
        self.misses.fetch_add(1, Ordering::Relaxed);
        self.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Some of what was fetched came over HTTP, and not from the swarm.
    pub(crate) fn over_http(&self, bytes: u64) {
        self.http_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The bytes that came over HTTP.
    pub(crate) fn http_bytes(&self) -> u64 {
        self.http_bytes.load(Ordering::Relaxed)
    }

    /// A chunk came from the machine's own disk.
    pub(crate) fn local(&self, bytes: u64) {
        self.local_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that came from servers.
    pub(crate) fn fetched_bytes(&self) -> u64 {
        self.fetched_bytes.load(Ordering::Relaxed)
    }

    /// Enters the counters into a report.
    pub(crate) fn report(&self, report: &mut NodeReport) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        report.read_bytes = get(&self.read_bytes);
        report.fetched_bytes = get(&self.fetched_bytes);
        report.local_bytes = get(&self.local_bytes);
        report.cache_hits = get(&self.hits);
        report.cache_misses = get(&self.misses);
        report.stall_ms = get(&self.stall_us) / 1000;
        report.stall_worst_ms = get(&self.stall_worst_us) / 1000;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_add_up_and_the_worst_is_kept() {
        let stats = Stats::default();
        stats.hit(100);
        for millis in [5, 70, 3] {
            stats.waited(10, Duration::from_millis(millis));
        }
        stats.fetched(1000);
        let mut report = NodeReport::default();
        stats.report(&mut report);
        assert_eq!((report.stall_ms, report.stall_worst_ms), (78, 70));
        assert_eq!((report.read_bytes, report.fetched_bytes), (130, 1000));
        assert_eq!((report.cache_hits, report.cache_misses), (1, 1));
    }
}
