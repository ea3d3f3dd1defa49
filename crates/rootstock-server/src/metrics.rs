//! Counters, and their Prometheus text.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rootstock_api::{CollectReport, ImportReceipt};

/// What the daemon counts itself; the store and the NBD server count their own.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// By method, route and status: the routes bound how many there are.
    requests: Mutex<BTreeMap<(String, String, u16), Requests>>,
    chunks_stored: AtomicU64,
    chunks_present: AtomicU64,
    chunk_bytes_stored: AtomicU64,
    chunks_served: AtomicU64,
    chunk_bytes_served: AtomicU64,
    deltas_served: AtomicU64,
    delta_bytes_served: AtomicU64,
    collections: AtomicU64,
    collected_bytes: AtomicU64,
    damage_found: AtomicU64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Requests {
    count: u64,
    micros: u64,
}

/// A metric with one value.
pub(crate) struct Gauge {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    /// `counter` or `gauge`.
    pub(crate) kind: &'static str,
    pub(crate) value: u64,
}

impl Metrics {
    pub(crate) fn request(&self, method: &str, route: &str, status: u16, took: Duration) {
        let requests = self.requests.lock();
        let mut requests = requests.unwrap_or_else(PoisonError::into_inner);
        let key = (method.to_owned(), route.to_owned(), status);
        let entry = requests.entry(key).or_default();
        entry.count += 1;
        entry.micros += u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    }

    pub(crate) fn chunks_received(&self, receipt: &ImportReceipt) {
        self.chunks_stored.fetch_add(receipt.stored_count, Relaxed);
        self.chunks_present
            .fetch_add(receipt.present_count, Relaxed);
        self.chunk_bytes_stored
            .fetch_add(receipt.stored_bytes, Relaxed);
    }

    pub(crate) fn chunks_served(&self, count: u64, bytes: u64) {
        self.chunks_served.fetch_add(count, Relaxed);
        self.chunk_bytes_served.fetch_add(bytes, Relaxed);
    }

    /// Chunks that went out as deltas; they are counted as chunks too.
    pub(crate) fn deltas_served(&self, count: u64, bytes: u64) {
        self.deltas_served.fetch_add(count, Relaxed);
        self.delta_bytes_served.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn collected(&self, report: &CollectReport) {
        self.collections.fetch_add(1, Relaxed);
        self.collected_bytes.fetch_add(report.freed_bytes, Relaxed);
    }

    pub(crate) fn damage(&self, count: u64) {
        self.damage_found.fetch_add(count, Relaxed);
    }

    /// The exposition format, version 0.0.4.
    pub(crate) fn render(&self, others: &[Gauge]) -> String {
        let mut text = String::new();
        let counter = |name, help, value: &AtomicU64| Gauge {
            name,
            help,
            kind: "counter",
            value: value.load(Relaxed),
        };
        let own = [
            counter(
                "rootstock_chunks_stored_total",
                "Chunks received that were new.",
                &self.chunks_stored,
            ),
            counter(
                "rootstock_chunks_present_total",
                "Chunks received that the store had.",
                &self.chunks_present,
            ),
            counter(
                "rootstock_chunk_stored_bytes_total",
                "Bytes of new frames received.",
                &self.chunk_bytes_stored,
            ),
            counter(
                "rootstock_chunks_served_total",
                "Chunks sent to API clients.",
                &self.chunks_served,
            ),
            counter(
                "rootstock_chunk_served_bytes_total",
                "Bytes of frames sent to API clients.",
                &self.chunk_bytes_served,
            ),
            counter(
                "rootstock_deltas_served_total",
                "Chunks sent to machines as deltas.",
                &self.deltas_served,
            ),
            counter(
                "rootstock_delta_served_bytes_total",
                "Bytes of these deltas.",
                &self.delta_bytes_served,
            ),
            counter(
                "rootstock_collections_total",
                "Collections done.",
                &self.collections,
            ),
            counter(
                "rootstock_collected_bytes_total",
                "Bytes that collections freed.",
                &self.collected_bytes,
            ),
            counter(
                "rootstock_damage_found_total",
                "Damaged chunks found.",
                &self.damage_found,
            ),
        ];
        for gauge in own.iter().chain(others) {
            let Gauge {
                name,
                help,
                kind,
                value,
            } = gauge;
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
            );
        }
        self.render_requests(&mut text);
        text
    }

    fn render_requests(&self, text: &mut String) {
        let requests = self.requests.lock();
        let requests = requests.unwrap_or_else(PoisonError::into_inner).clone();
        let name = "rootstock_http_requests_total";
        let _ = write!(
            text,
            "# HELP {name} Requests to the API.\n# TYPE {name} counter\n"
        );
        for ((method, route, status), entry) in &requests {
            let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
            let _ = writeln!(text, "{name}{{{labels}}} {}", entry.count);
        }
        let name = "rootstock_http_request_seconds_total";
        let _ = write!(
            text,
            "# HELP {name} Time to the answers' heads.\n# TYPE {name} counter\n"
        );
        for ((method, route, status), entry) in &requests {
            let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
            let seconds = Duration::from_micros(entry.micros).as_secs_f64();
            let _ = writeln!(text, "{name}{{{labels}}} {seconds}");
        }
    }
}
