//! Finding the machine's cache while it boots, and putting it into service.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::{CacheChoice, DiskCacheReport, FillOrder, NodeControl};
use rootstock_core::ByteRange;

use super::Tiers;
use super::fill::{Fill, More};
use super::keeper::{Keeper, Patience};
use super::next::{ServiceUpgrades, Upgrade};
use super::remember::Version;
use super::starts::Starts;
use crate::console;
use crate::disk::device::Claim;
use crate::disk::find::{Devices, Found};
use crate::local::keep::{Common, Starter};
use crate::remote::Fetch;

/// A disk that is there by now is waited for this long: then the boot's first reads
/// are its already.
pub(crate) const SOON: Duration = Duration::from_millis(400);
/// Slow disks are looked for this long, while the machine boots from the network.
pub(crate) const LATE: Duration = Duration::from_secs(30);
/// Between two looks at all disks, at first and later.
const LOOK_SOON: Duration = Duration::from_millis(50);
const LOOK_LATE: Duration = Duration::from_millis(500);

/// Hears of a disk once it is in service, and of its device.
pub(crate) type OnFound = Box<dyn FnOnce(&Arc<Keeper>, &str) + Send>;

/// What the machine is to keep, and how.
pub(crate) struct Wanted {
    /// On which disk.
    pub(crate) choice: CacheChoice,
    /// This one instead, which somebody on the machine named.
    pub(crate) own: Option<Found>,
    /// How long the boot waits for it.
    pub(crate) patience: Duration,
    /// How much of it.
    pub(crate) bytes_max: Option<u64>,
    /// Of which version.
    pub(crate) version: Version,
    /// How it fetches ahead, until it is told otherwise.
    pub(crate) fill: FillOrder,
    /// What brings other versions.
    pub(crate) upgrade: Upgrade<ServiceUpgrades>,
    /// What a start from this disk has in common with this one.
    pub(crate) common: Common,
    /// Who else is told of the disk.
    pub(crate) found: OnFound,
}

/// A disk in service, and what else is on it.
#[derive(Clone)]
pub(crate) struct Ground {
    /// The device, such as `/dev/sda3`.
    pub(crate) device: String,
    /// Its chunks.
    pub(crate) keeper: Arc<Keeper>,
    /// The right to it.
    pub(crate) claim: Arc<Claim>,
    /// What lies behind the cache, for the machine's own writes.
    pub(crate) spare: Option<ByteRange>,
}

/// The disk and its filling, from when they are found.
pub(crate) struct Attached<F> {
    ground: OnceLock<Ground>,
    fill: OnceLock<Arc<Fill<F>>>,
    /// What was told last, for a disk that is found later.
    control: Mutex<Option<NodeControl>>,
}

impl<F: Fetch + 'static> Attached<F> {
    /// Looks for the disk and returns when it is there, or not there soon.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(tiers: &Arc<Tiers<F>>, mut wanted: Wanted) -> io::Result<Arc<Self>> {
        let attached = Arc::new(Self {
            ground: OnceLock::new(),
            fill: OnceLock::new(),
            control: Mutex::default(),
        });
        if let Some(own) = wanted.own.take() {
            attached.take(tiers, own, wanted);
            return Ok(attached);
        }
        if wanted.choice == CacheChoice::None {
            return Ok(attached);
        }
        let devices = Devices::open()?;
        if let Some(found) = look(&devices, &wanted.choice, wanted.patience, LOOK_SOON) {
            attached.take(tiers, found, wanted);
            return Ok(attached);
        }
        let (later, tiers) = (Arc::clone(&attached), Arc::clone(tiers));
        thread::Builder::new()
            .name("disk-find".to_owned())
            .spawn(
                move || match look(&devices, &wanted.choice, LATE, LOOK_LATE) {
                    Some(found) => later.take(&tiers, found, wanted),
                    None => none_found(&wanted.choice),
                },
            )?;
        Ok(attached)
    }

    /// The disk, if it is there by now.
    pub(crate) fn ground(&self) -> Option<Ground> {
        self.ground.get().cloned()
    }

    /// How the disk does; nothing without one.
    pub(crate) fn report(&self) -> Option<DiskCacheReport> {
        let mut report = self.ground.get()?.keeper.report();
        if let Some(fill) = self.fill.get() {
            fill.report(&mut report);
        }
        Some(report)
    }

    /// What holds from now on.
    pub(crate) fn set_control(&self, control: NodeControl) {
        *self.lock_control() = Some(control);
        self.pass_on();
    }

    fn pass_on(&self) {
        if let (Some(fill), Some(control)) = (self.fill.get(), &*self.lock_control()) {
            fill.set_order(control.fill.clone());
            fill.set_next(control.next.clone());
        }
    }

    fn lock_control(&self) -> MutexGuard<'_, Option<NodeControl>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, tiers: &Arc<Tiers<F>>, found: Found, wanted: Wanted) {
        let device = found.device.clone();
        if let Some(bytes_max) = wanted.bytes_max {
            found.cache.set_bytes_max(bytes_max);
        }
        let started =
            Keeper::start(found.device, found.cache, Patience::default()).and_then(|keeper| {
                tiers.attach(Arc::clone(&keeper));
                let _ = self.ground.set(Ground {
                    device: device.clone(),
                    keeper: Arc::clone(&keeper),
                    claim: found.claim,
                    spare: found.spare,
                });
                let Wanted {
                    version,
                    fill,
                    upgrade,
                    common,
                    found,
                    ..
                } = wanted;
                found(&keeper, &device);
                let more = More {
                    upgrade,
                    starts: Starts::new(Starter::of_cache(&device, common)),
                };
                Fill::start(Arc::clone(tiers), keeper, version, fill, more)
            });
        match started {
            Ok(fill) => {
                let _ = self.fill.set(fill);
                self.pass_on();
                console::info(format_args!("chunks are kept on {device}"));
            }
            Err(error) => console::warn(format_args!("{device} is not used: {error}")),
        }
    }
}

fn look(
    devices: &Devices,
    choice: &CacheChoice,
    limit: Duration,
    every: Duration,
) -> Option<Found> {
    let began = Instant::now();
    loop {
        if let Some(found) = devices.find(choice) {
            return Some(found);
        }
        if began.elapsed() >= limit {
            return None;
        }
        thread::sleep(every);
    }
}

fn none_found(choice: &CacheChoice) {
    if let CacheChoice::Device(device) = choice {
        console::warn(format_args!(
            "{device} is not there, or not prepared (rootstock-agent cache create {device}): \
             nothing is kept on this machine"
        ));
    }
}
