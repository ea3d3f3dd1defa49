//! `rootstock-agent rehearse`: what a boot reads is read, and nothing boots.
//!
//! A room's storm can be tried out while its machines run: each joins the swarm as a
//! machine without a disk does that was just switched on, reads the boot set in its
//! order, and then gives others what it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rootstock_api::boot::{BootStep, CacheChoice, NodeControl, NodeMode};
use rootstock_core::ChunkId;
use rootstock_core::units::HumanBytes;
use rootstock_volume::{BlockDevice as _, ChunkCache, VersionDisk};

use crate::console;
use crate::hold::{self, HoldError, Order, Words};
use crate::replay::{ChunkSink, Landing, Replay, ServicePacks};
use crate::report;
use crate::sources::{Here, Sources};
use crate::stats::Stats;
use crate::steer;
use crate::swarm::SwarmPacks;

/// How the command is used.
pub(crate) const USAGE: &str = "\
usage: rootstock-agent rehearse --mac MAC --site FILE --server URL [--server URL]

rehearse  reads what a boot of a node's image reads, as its boots were learnt,
          and says how long that took and what of it came from servers. Then it
          gives other machines what it holds, until it is ended. Started on many
          machines at once it shows what nine o'clock is like, and nothing has
          to boot. The words are those of `hold`, and so is the node's mode.";

/// The swarm's counters are taken twice a second.
const COUNTED_AFTER: Duration = Duration::from_secs(1);

/// Counts what comes.
#[derive(Default)]
struct Counted {
    chunks: AtomicU64,
}

impl ChunkSink for Counted {
    fn offer(&self, _: ChunkId, _: Bytes) {
        self.chunks.fetch_add(1, Ordering::Relaxed);
    }

    fn has(&self, _: ChunkId) -> bool {
        false
    }
}

/// Runs the command, which ends when it cannot go on; why.
pub(crate) fn run(words: &[String]) -> String {
    let words = Words::parse(words);
    let Some(words) = words.filter(|words| words.keep.is_none()) else {
        return USAGE.to_owned();
    };
    match rehearse(words) {
        Ok(never) => match never {},
        Err(error) => console::chain(&error),
    }
}

fn rehearse(words: Words<'_>) -> Result<std::convert::Infallible, HoldError> {
    let Order {
        mut start,
        service,
        manifest,
        ..
    } = Order::ask(words)?;
    start.order.mode = NodeMode::Diskless;
    start.order.cache = CacheChoice::None;
    let order = &start.order;
    let stats = Arc::new(Stats::default());
    let sources = Sources::start(&start, &service, &manifest, &stats, Here::OWN)
        .map_err(|what| HoldError::Other { what })?;
    let reporter = hold::reporter(&start, &service, &stats, &sources.attached)?;
    let cache = Arc::new(ChunkCache::new(
        Arc::clone(&sources.tiers),
        order.cache_bytes,
    ));
    let version = VersionDisk::new(manifest, cache);
    stats.trace.start(version.size_bytes());
    let read = Arc::new(Counted::default());
    let replay = Replay {
        packs: SwarmPacks {
            trace: None,
            swarm: Arc::clone(&sources.swarm),
            service: ServicePacks {
                service: service.clone(),
                urls: order.chunk_urls.clone(),
            },
            stats: Arc::clone(&stats),
        },
        version,
        sink: Arc::clone(&read) as Arc<dyn ChunkSink>,
        landing: Arc::new(Landing::new(order.cache_bytes)),
        stats: Arc::clone(&stats),
    };
    let began = Instant::now();
    let spec = format!("{}:{}", order.image, order.version);
    if replay.run().is_none() {
        return Err(HoldError::NothingLearnt { spec });
    }
    let took = began.elapsed();
    thread::sleep(COUNTED_AFTER);
    let (from_heads, _) = sources.swarm.came();
    hold::tell(&format!(
        "read: {} chunks of the boot set of {spec} within {:.2} s; {} came, {} of it from servers",
        read.chunks.load(Ordering::Relaxed),
        took.as_secs_f64(),
        HumanBytes(stats.fetched_bytes()),
        HumanBytes(from_heads + stats.http_bytes()),
    ));
    // Until here nothing was fetched but what the boot reads.
    stats.trace.system_is_up();
    reporter.step(report::step(BootStep::Up, 0, "it rehearsed a boot"));
    let told = sources.told;
    let each = move |control: NodeControl| told(control);
    steer::start(service, start.urls.clone(), each).map_err(|error| hold::other(&error))?;
    loop {
        thread::park();
    }
}
