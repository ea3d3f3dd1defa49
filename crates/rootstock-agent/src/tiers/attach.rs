//! Finding the machine's cache while it boots, and putting it into service.

use std::io;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::{CacheChoice, DiskCacheReport, FillOrder};

use super::Tiers;
use super::fill::Fill;
use super::keeper::Keeper;
use super::remember::Version;
use crate::console;
use crate::disk::find::{Devices, Found};
use crate::remote::Fetch;

/// A disk that is there by now is waited for this long: then the boot's first reads
/// are its already.
const SOON: Duration = Duration::from_millis(400);
/// Slow disks are looked for this long, while the machine boots from the network.
const LATE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the machine is to keep, and how.
pub(crate) struct Wanted {
    /// On which disk.
    pub(crate) choice: CacheChoice,
    /// How much of it.
    pub(crate) bytes_max: Option<u64>,
    /// Of which version.
    pub(crate) version: Version,
    /// How it fetches ahead, until it is told otherwise.
    pub(crate) fill: FillOrder,
}

/// The disk and its filling, from when they are found.
pub(crate) struct Attached<F> {
    keeper: OnceLock<Arc<Keeper>>,
    fill: OnceLock<Arc<Fill<F>>>,
    /// What came before the disk was found.
    order: OnceLock<FillOrder>,
}

impl<F: Fetch + 'static> Attached<F> {
    /// Looks for the disk and returns when it is there, or not there soon.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(tiers: &Arc<Tiers<F>>, wanted: Wanted) -> io::Result<Arc<Self>> {
        let attached = Arc::new(Self {
            keeper: OnceLock::new(),
            fill: OnceLock::new(),
            order: OnceLock::new(),
        });
        if wanted.choice == CacheChoice::None {
            return Ok(attached);
        }
        let devices = Devices::open()?;
        if let Some(found) = look(&devices, &wanted.choice, SOON) {
            attached.take(tiers, found, wanted);
            return Ok(attached);
        }
        let (later, tiers) = (Arc::clone(&attached), Arc::clone(tiers));
        thread::Builder::new()
            .name("disk-find".to_owned())
            .spawn(move || match look(&devices, &wanted.choice, LATE) {
                Some(found) => later.take(&tiers, found, wanted),
                None => none_found(&wanted.choice),
            })?;
        Ok(attached)
    }

    /// How the disk does; nothing without one.
    pub(crate) fn report(&self) -> Option<DiskCacheReport> {
        let mut report = self.keeper.get()?.report();
        if let Some(fill) = self.fill.get() {
            fill.report(&mut report);
        }
        Some(report)
    }

    /// How it fetches ahead from now on.
    pub(crate) fn set_fill(&self, order: FillOrder) {
        match self.fill.get() {
            Some(fill) => fill.set_order(order),
            None => drop(self.order.set(order)),
        }
    }

    fn take(&self, tiers: &Arc<Tiers<F>>, found: Found, wanted: Wanted) {
        let device = found.device.clone();
        if let Some(bytes_max) = wanted.bytes_max {
            found.cache.set_bytes_max(bytes_max);
        }
        let started = Keeper::start(found.device, found.cache).and_then(|keeper| {
            tiers.attach(Arc::clone(&keeper));
            let _ = self.keeper.set(Arc::clone(&keeper));
            let order = self.order.get().cloned().unwrap_or(wanted.fill);
            Fill::start(Arc::clone(tiers), keeper, wanted.version, order)
        });
        match started {
            Ok(fill) => {
                let _ = self.fill.set(fill);
                console::info(format_args!("chunks are kept on {device}"));
            }
            Err(error) => console::warn(format_args!("{device} is not used: {error}")),
        }
    }
}

fn look(devices: &Devices, choice: &CacheChoice, limit: Duration) -> Option<Found> {
    let began = Instant::now();
    loop {
        if let Some(found) = devices.find(choice) {
            return Some(found);
        }
        if began.elapsed() >= limit {
            return None;
        }
        thread::sleep(LOOK_EVERY);
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
