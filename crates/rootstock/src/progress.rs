//! Progress bars: only for people, only on a terminal, always on stderr.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rootstock_client::{pull, push};
use rootstock_core::units::HumanBytes;

use crate::session::Session;

const BYTES: &str = "{msg} [{bar:32}] {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left{prefix}";
const PARTS: &str = "{msg} [{bar:32}] {percent} %, {elapsed} so far";
const SPINNER: &str = "{msg} {decimal_bytes}, {decimal_bytes_per_sec}";

/// How long something may take without a bar.
const LATE: Duration = Duration::from_secs(1);

/// A bar for what may be done before there is need of one.
pub(crate) struct Late<'a> {
    session: &'a Session,
    what: &'static str,
    total: u64,
    begun: Instant,
    bar: Option<ProgressBar>,
}

impl<'a> Late<'a> {
    /// Nothing is done yet, of so much.
    pub(crate) fn new(session: &'a Session, what: &'static str, total: u64) -> Self {
        Self {
            session,
            what,
            total,
            begun: Instant::now(),
            bar: None,
        }
    }

    /// So much is done.
    pub(crate) fn set(&mut self, done: u64) {
        if self.bar.is_none() && self.begun.elapsed() >= LATE {
            let bar = bar(self.session, self.what, PARTS);
            bar.set_length(self.total);
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar over a number of bytes.
pub(crate) fn bytes(session: &Session, what: &str, total_bytes: u64) -> ProgressBar {
    let bar = bar(session, what, BYTES);
    bar.set_length(total_bytes);
    bar
}

/// A count of bytes whose end is not known.
pub(crate) fn endless(session: &Session, what: &str) -> ProgressBar {
    bar(session, what, SPINNER)
}

fn bar(session: &Session, what: &str, template: &str) -> ProgressBar {
    let target = if session.shows_progress() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(None, target);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what.to_owned());
    bar
}

/// How far an import is, as a bar and as sums.
pub(crate) struct Importing {
    bar: ProgressBar,
    read_bytes: AtomicU64,
    skipped_bytes: AtomicU64,
    known_bytes: AtomicU64,
    sent_bytes: AtomicU64,
}

impl Importing {
    /// The progress of a disk of this size.
    pub(crate) fn new(session: &Session, disk_bytes: u64) -> Self {
        Self {
            bar: bytes(session, "importing", disk_bytes),
            read_bytes: AtomicU64::new(0),
            skipped_bytes: AtomicU64::new(0),
            known_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
        }
    }

    /// Takes the bar away and gives the sums.
    pub(crate) fn finish(&self) -> push::Counts {
        self.bar.finish_and_clear();
        let sum = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        push::Counts {
            read_bytes: sum(&self.read_bytes),
            skipped_bytes: sum(&self.skipped_bytes),
            known_bytes: sum(&self.known_bytes),
            sent_bytes: sum(&self.sent_bytes),
            zero_bytes: 0,
        }
    }
}

impl push::Progress for Importing {
    fn advance(&self, more: push::Counts) {
        let add = |counter: &AtomicU64, more| counter.fetch_add(more, Ordering::Relaxed) + more;
        add(&self.read_bytes, more.read_bytes);
        add(&self.skipped_bytes, more.skipped_bytes);
        add(&self.known_bytes, more.known_bytes);
        let sent_bytes = add(&self.sent_bytes, more.sent_bytes);
        self.bar.inc(more.read_bytes + more.skipped_bytes);
        self.bar
            .set_prefix(format!(", {} sent", HumanBytes(sent_bytes)));
    }
}

/// How far an export is.
pub(crate) struct Exporting(pub ProgressBar);

impl pull::Progress for Exporting {
    fn written(&self, more_bytes: u64) {
        self.0.inc(more_bytes);
    }
}
