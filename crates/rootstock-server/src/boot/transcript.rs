//! What happens on the way from power-on to a running system: steps, with times.
//!
//! Steps come from DHCP, from boot files that were served and from the machine
//! itself. Before a script is made nobody knows whose boot it will be, so steps
//! wait with the card's address; from then on they are a boot's, go to the catalog
//! in batches, and to everybody who watches. A boot that stands still is noticed
//! here, and the step it stands at says what usually causes it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rootstock_api::boot::BootStep;
use rootstock_catalog::{Catalog, StepRow};
use rootstock_core::{MacAddress, NodeName};
use tokio::sync::{broadcast, mpsc};

use super::causes;
use crate::{http::chain, stop::Stop};

/// The most machines whose way is followed at once.
const MACHINES_MAX: usize = 16_384;

/// The most steps that wait for a machine to become a node's boot.
const PENDING_STEPS_MAX: usize = 64;

/// How long a machine that is no node is remembered after its last step.
const UNKNOWN_PATIENCE: Duration = Duration::from_secs(600);

/// News that a slow watcher may lag behind before it misses some.
const NEWS_MAX: usize = 4096;

/// Steps that wait for the catalog at most; beyond it some are not stored.
const QUEUE_MAX: usize = 65_536;

/// How long steps are gathered before they are stored together.
const GATHER: Duration = Duration::from_millis(200);

/// The most notes beside the steps of a boot: who causes them must not fill its transcript.
const NOTES_MAX: u32 = 16;

/// How often boots are looked at that may stand still.
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// Who speaks DHCP: a new boot begins with firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DhcpStage {
    /// The firmware or the network card's ROM.
    Firmware,
    /// iPXE.
    Ipxe,
    /// An operating system, or our own first stage.
    System,
}

/// A step, for those who watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BootNews {
    /// The node, once it is known.
    pub(crate) node: Option<NodeName>,
    /// The card.
    pub(crate) mac: MacAddress,
    /// The boot, once there is one.
    pub(crate) boot: Option<String>,
    /// What happened.
    pub(crate) step: BootStep,
    /// When.
    pub(crate) time: Timestamp,
    /// How long the boot had been going on.
    pub(crate) since_start_ms: u64,
    /// Bytes.
    pub(crate) bytes: u64,
    /// More.
    pub(crate) detail: String,
}

/// A step as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) step: BootStep,
    pub(crate) uptime_ms: Option<u64>,
    pub(crate) bytes: u64,
    pub(crate) detail: String,
}

impl Told {
    /// A step without more to say.
    pub(crate) fn new(step: BootStep, detail: impl Into<String>) -> Self {
        Self {
            step,
            uptime_ms: None,
            bytes: 0,
            detail: detail.into(),
        }
    }

    /// With the bytes that moved.
    pub(crate) fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }
}

/// A step on its way to the catalog.
#[derive(Debug)]
struct Queued {
    boot: String,
    node: Option<NodeName>,
    row: StepRow,
}

/// The ways of all machines.
#[derive(Debug)]
pub(crate) struct Transcripts {
    machines: Mutex<HashMap<MacAddress, Machine>>,
    news: broadcast::Sender<BootNews>,
    queue: mpsc::Sender<Queued>,
    receiver: Mutex<Option<mpsc::Receiver<Queued>>>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    steps: Mutex<BTreeMap<BootStep, u64>>,
    up_count: AtomicU64,
    up_millis: AtomicU64,
    program_bytes: AtomicU64,
    kernel_bytes: AtomicU64,
    initrd_bytes: AtomicU64,
    lost: AtomicU64,
}

#[derive(Debug)]
struct Machine {
    node: Option<NodeName>,
    boot: Option<String>,
    started: Timestamp,
    began: Instant,
    last: BootStep,
    last_at: Instant,
    is_stalled: bool,
    notes: u32,
    pending: Vec<StepRow>,
}

impl Machine {
    fn new(now: Timestamp, at: Instant) -> Self {
        Self {
            node: None,
            boot: None,
            started: now,
            began: at,
            last: BootStep::Discovered,
            last_at: at,
            is_stalled: false,
            notes: 0,
            pending: Vec::new(),
        }
    }
}

impl Default for Transcripts {
    fn default() -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        Self {
            machines: Mutex::default(),
            news: broadcast::channel(NEWS_MAX).0,
            queue,
            receiver: Mutex::new(Some(receiver)),
            counts: Counts::default(),
        }
    }
}

impl Transcripts {
    /// Everything that happens from now on.
    #[cfg(test)]
    pub(crate) fn watch(&self) -> broadcast::Receiver<BootNews> {
        self.news.subscribe()
    }

    /// A DHCP message of a machine, or our answer to it.
    pub(crate) fn dhcp(&self, mac: MacAddress, stage: DhcpStage, told: Told) {
        let mut machines = self.machines();
        if let Some(machine) = machines.get(&mac) {
            let begins = told.step == BootStep::Discovered
                && match stage {
                    DhcpStage::Firmware => machine.last >= BootStep::FileServed,
                    // iPXE asks again after it was loaded, and never after the kernel was.
                    DhcpStage::Ipxe => machine.last >= BootStep::KernelServed,
                    DhcpStage::System => false,
                };
            if begins {
                machines.remove(&mac);
            } else if machine.last >= BootStep::KernelServed {
                // Renewals of the first stage or of the system.
                return;
            }
        } else if stage == DhcpStage::System {
            return;
        }
        drop(machines);
        self.step(mac, told);
    }

    /// A step of a machine.
    pub(crate) fn step(&self, mac: MacAddress, told: Told) {
        self.step_at(mac, told, Timestamp::now(), Instant::now());
    }

    fn step_at(&self, mac: MacAddress, told: Told, now: Timestamp, at: Instant) {
        let mut machines = self.machines();
        if !machines.contains_key(&mac) && machines.len() >= MACHINES_MAX {
            self.counts.lost.fetch_add(1, Relaxed);
            return;
        }
        let machine = machines.entry(mac).or_insert_with(|| Machine::new(now, at));
        // Firmware asks several times over; the first time is the one that counts.
        let repeats = machine.last == told.step
            && (machine.boot.is_some() || !machine.pending.is_empty())
            && (told.step < BootStep::FileServed || told.step == BootStep::Held);
        if repeats {
            machine.last_at = at;
            return;
        }
        machine.last = told.step;
        machine.last_at = at;
        machine.is_stalled = told.step == BootStep::Failed;
        self.count(machine, &told, at);
        let row = StepRow {
            step: name_of(told.step),
            time: now,
            uptime_ms: told.uptime_ms,
            bytes: told.bytes,
            detail: told.detail,
        };
        let news = news(mac, machine, &row, told.step);
        match &machine.boot {
            Some(boot) => self.store(boot.clone(), machine.node.clone(), row),
            None if machine.pending.len() < PENDING_STEPS_MAX => machine.pending.push(row),
            None => {}
        }
        drop(machines);
        tracing::info!(
            mac = %news.mac,
            node = news.node.as_ref().map(tracing::field::display),
            step = name_of(news.step),
            since_start_ms = news.since_start_ms,
            bytes = news.bytes,
            detail = news.detail,
            "boot step"
        );
        // Nobody may be watching.
        let _ = self.news.send(news);
    }

    /// Something that an administrator should know of a boot, and that leaves it at
    /// the step where it is: what somebody else tried, or what a plug-in failed to do.
    pub(crate) fn note(&self, boot: &str, detail: impl Into<String>) {
        let mut machines = self.machines();
        let mut all = machines.values_mut();
        let of = all.find(|machine| machine.boot.as_deref() == Some(boot));
        let Some(machine) = of.filter(|machine| machine.notes < NOTES_MAX) else {
            return;
        };
        machine.notes += 1;
        let row = StepRow {
            step: name_of(machine.last),
            time: Timestamp::now(),
            uptime_ms: None,
            bytes: 0,
            detail: detail.into(),
        };
        self.store(boot.to_owned(), machine.node.clone(), row);
    }

    /// The boot of a machine that has not come far enough to need a new one.
    pub(crate) fn open_boot(&self, mac: MacAddress) -> Option<String> {
        let machines = self.machines();
        let machine = machines.get(&mac)?;
        let open = machine.last < BootStep::FirstStage || machine.last == BootStep::Held;
        machine.boot.clone().filter(|_| open)
    }

    /// A machine's way is this boot's from now on. What happened before belongs to
    /// it, unless it was another boot.
    pub(crate) fn adopt(&self, mac: MacAddress, node: &NodeName, boot: &str) {
        let (now, at) = (Timestamp::now(), Instant::now());
        let mut machines = self.machines();
        if machines
            .get(&mac)
            .is_some_and(|machine| machine.boot.is_some())
        {
            machines.remove(&mac);
        }
        let machine = machines.entry(mac).or_insert_with(|| Machine::new(now, at));
        machine.node = Some(node.clone());
        machine.boot = Some(boot.to_owned());
        let pending = std::mem::take(&mut machine.pending);
        drop(machines);
        for row in pending {
            self.store(boot.to_owned(), Some(node.clone()), row);
        }
    }

    /// Follows a boot again that began before the daemon did.
    pub(crate) fn resume(
        &self,
        mac: MacAddress,
        node: &NodeName,
        boot: &str,
        started: Timestamp,
        last: BootStep,
    ) {
        let at = Instant::now();
        let mut machines = self.machines();
        machines.entry(mac).or_insert_with(|| Machine {
            node: Some(node.clone()),
            boot: Some(boot.to_owned()),
            last,
            ..Machine::new(started, at)
        });
    }

    /// Which machine a boot is of.
    pub(crate) fn mac_of(&self, boot: &str) -> Option<MacAddress> {
        let machines = self.machines();
        let mut of = machines.iter();
        of.find(|(_, machine)| machine.boot.as_deref() == Some(boot))
            .map(|(mac, _)| *mac)
    }

    /// Whether a boot was heard of not long ago.
    pub(crate) fn is_followed(&self, boot: &str) -> bool {
        let machines = self.machines();
        let mut of = machines.values();
        of.any(|machine| {
            machine.boot.as_deref() == Some(boot) && machine.last_at.elapsed() < UNKNOWN_PATIENCE
        })
    }

    /// How far a machine has come.
    pub(crate) fn last(&self, mac: MacAddress) -> Option<BootStep> {
        self.machines().get(&mac).map(|machine| machine.last)
    }

    /// Notices boots that stand still, and forgets machines that are none.
    fn look(&self, at: Instant) {
        let mut stalled = Vec::new();
        let mut machines = self.machines();
        machines.retain(|mac, machine| {
            let rests = at.saturating_duration_since(machine.last_at);
            if machine.boot.is_none() {
                return rests < UNKNOWN_PATIENCE;
            }
            if !machine.is_stalled
                && let Some(patience) = causes::patience(machine.last)
                && rests > patience
            {
                machine.is_stalled = true;
                stalled.push((*mac, machine.last, rests));
            }
            machine.last != BootStep::Gone
        });
        drop(machines);
        for (mac, step, rests) in stalled {
            let detail = format!(
                "nothing for {} s after {}: {}",
                rests.as_secs(),
                name_of(step),
                causes::usual(step)
            );
            self.step(mac, Told::new(BootStep::Failed, detail));
        }
    }

    /// Stores steps and looks for boots that stand still, until the stop.
    /// The nodes whose steps were stored are told to `changed`.
    pub(crate) async fn work(
        self: Arc<Self>,
        catalog: Catalog,
        changed: mpsc::Sender<NodeName>,
        mut stop: Stop,
    ) {
        let receiver = self
            .receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(mut receiver) = receiver else {
            return;
        };
        let mut watch = tokio::time::interval(WATCH_INTERVAL);
        loop {
            tokio::select! {
                () = stop.wait() => break,
                _ = watch.tick() => self.look(Instant::now()),
                first = receiver.recv() => {
                    let Some(first) = first else { return };
                    let stopping = stop.rest(GATHER).await;
                    write(&catalog, first, &mut receiver, &changed).await;
                    if stopping {
                        break;
                    }
                }
            }
        }
        // What is there by now is stored; what comes later is lost with the rest.
        if let Ok(first) = receiver.try_recv() {
            write(&catalog, first, &mut receiver, &changed).await;
        }
    }

    /// Prometheus text.
    pub(crate) fn render(&self, text: &mut String) {
        use std::fmt::Write as _;
        let steps = self.counts.steps.lock();
        let mut steps: Vec<_> = steps
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(step, count)| (*step, *count))
            .collect();
        steps.sort_unstable();
        let name = "rootstock_boot_steps_total";
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "# HELP {name} Steps of boots.\n# TYPE {name} counter\n"
        );
        for (step, count) in steps {
            let _ = writeln!(text, "{name}{{step=\"{}\"}} {count}", name_of(step));
        }
        let name = "rootstock_boot_up_seconds";
        let seconds = Duration::from_millis(self.counts.up_millis.load(Relaxed)).as_secs_f64();
        let count = self.counts.up_count.load(Relaxed);
        let _ = write!(
            text,
            "# HELP {name} Time from the first step of a boot to a system that is up.\n\
             # TYPE {name} summary\n{name}_sum {seconds}\n{name}_count {count}\n"
        );
        let name = "rootstock_boot_served_bytes_total";
        let _ = write!(
            text,
            "# HELP {name} Bytes of boot files sent.\n# TYPE {name} counter\n"
        );
        for (kind, bytes) in [
            ("program", &self.counts.program_bytes),
            ("kernel", &self.counts.kernel_bytes),
            ("initrd", &self.counts.initrd_bytes),
        ] {
            let _ = writeln!(text, "{name}{{kind=\"{kind}\"}} {}", bytes.load(Relaxed));
        }
        let name = "rootstock_boot_steps_lost_total";
        let lost = self.counts.lost.load(Relaxed);
        let _ = write!(
            text,
            "# HELP {name} Steps that were not recorded.\n# TYPE {name} counter\n{name} {lost}\n"
        );
    }

    fn count(&self, machine: &Machine, told: &Told, at: Instant) {
        let counts = &self.counts;
        let steps = counts.steps.lock();
        *steps
            .unwrap_or_else(PoisonError::into_inner)
            .entry(told.step)
            .or_default() += 1;
        let bytes = match told.step {
            BootStep::FileServed => &counts.program_bytes,
            BootStep::KernelServed => &counts.kernel_bytes,
            BootStep::InitrdServed => &counts.initrd_bytes,
            BootStep::Up => {
                let took = at.saturating_duration_since(machine.began).as_millis();
                counts.up_count.fetch_add(1, Relaxed);
                let took = u64::try_from(took).unwrap_or(u64::MAX);
                counts.up_millis.fetch_add(took, Relaxed);
                return;
            }
            _ => return,
        };
        bytes.fetch_add(told.bytes, Relaxed);
    }

    fn store(&self, boot: String, node: Option<NodeName>, row: StepRow) {
        if self.queue.try_send(Queued { boot, node, row }).is_err() {
            self.counts.lost.fetch_add(1, Relaxed);
        }
    }

    fn machines(&self) -> MutexGuard<'_, HashMap<MacAddress, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what has gathered, each boot's steps in one transaction.
async fn write(
    catalog: &Catalog,
    first: Queued,
    receiver: &mut mpsc::Receiver<Queued>,
    changed: &mpsc::Sender<NodeName>,
) {
    let mut by_boot: HashMap<String, (Option<NodeName>, Vec<StepRow>)> = HashMap::new();
    let mut next = Some(first);
    while let Some(queued) = next {
        let boot = by_boot.entry(queued.boot).or_default();
        boot.0 = queued.node.or(boot.0.take());
        boot.1.push(queued.row);
        next = receiver.try_recv().ok();
    }
    for (boot, (node, rows)) in by_boot {
        if let Err(error) = catalog.add_steps(&boot, &rows).await {
            tracing::warn!(boot, error = chain(&error), "boot steps not stored");
        } else if let Some(node) = node {
            // Whoever watches and is so far behind gets everything anew later.
            let _ = changed.try_send(node);
        }
    }
}

fn news(mac: MacAddress, machine: &Machine, row: &StepRow, step: BootStep) -> BootNews {
    let since = row.time.duration_since(machine.started).as_millis();
    BootNews {
        node: machine.node.clone(),
        mac,
        boot: machine.boot.clone(),
        step,
        time: row.time,
        since_start_ms: u64::try_from(since).unwrap_or(0),
        bytes: row.bytes,
        detail: row.detail.clone(),
    }
}

/// A step's name as it is stored and shown: that of its JSON.
pub(crate) fn name_of(step: BootStep) -> String {
    let json = serde_json::to_value(step).ok();
    json.and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// The step of a name.
pub(crate) fn step_of(name: &str) -> Option<BootStep> {
    serde_json::from_value(serde_json::Value::String(name.to_owned())).ok()
}

#[cfg(test)]
mod tests;
