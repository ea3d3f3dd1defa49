//! The logical units of targets, each shared by all its sessions.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rootstock_scsi::{
    Access, BlockSize, Identity, InitiatorPort, Limits, LogicalUnit, Naa, NexusHandle, NexusId,
    Reservations, Unit,
};

use super::{OpenUnit, Targets, jobs::Claim};

/// The longest transfer of one command, in bytes.
pub(super) const TRANSFER_BYTES_MAX: u32 = 8 << 20;

/// The longest WRITE SAME, in blocks: what its short form can say.
const WRITE_SAME_BLOCKS_MAX: u64 = 65_535;

/// There is one portal group, and one target port.
const PORTAL_GROUP: u16 = 1;
const RELATIVE_PORT: u16 = 1;

/// A logical unit. The device behind it is each session's own.
pub(super) struct Disk {
    name: String,
    /// The target that it is in.
    target: String,
    identity: u64,
    block_bytes: u64,
    unit: Mutex<LogicalUnit>,
    /// Shared by writes, alone for commands that read and write in one step.
    pub(super) writes: RwLock<()>,
    /// Held while reservations are kept, so that older ones never replace newer ones.
    keeping: Mutex<()>,
    /// For each session, how often others have ended its commands.
    epochs: Mutex<HashMap<NexusHandle, (NexusId, Arc<AtomicU64>)>>,
}

impl Disk {
    fn new(target: &str, opened: &OpenUnit, kept: Option<Reservations>) -> Self {
        let device = &opened.device;
        let block_size = match opened.block_bytes {
            4096 => BlockSize::B4096,
            _ => BlockSize::B512,
        };
        let product = if device.read_only() {
            "VERSION"
        } else {
            "VOLUME"
        };
        let unit = Unit {
            block_size,
            blocks: device.size_bytes() / u64::from(block_size.bytes()),
            access: if device.read_only() {
                Access::ReadOnly
            } else {
                Access::ReadWrite
            },
            limits: Limits {
                write_same_blocks_max: WRITE_SAME_BLOCKS_MAX,
                ..Limits::for_transfers(TRANSFER_BYTES_MAX, block_size)
            },
            identity: Identity {
                product: product.to_owned(),
                revision: env!("CARGO_PKG_VERSION").to_owned(),
                serial: format!("{:016x}", opened.identity),
                naa: Naa::locally_assigned(opened.identity),
                target_name: target.to_owned(),
                portal_group_tag: PORTAL_GROUP,
                relative_port: RELATIVE_PORT,
            },
        };
        Self {
            name: opened.name.clone(),
            target: target.to_owned(),
            identity: opened.identity,
            block_bytes: block_size.bytes().into(),
            unit: Mutex::new(LogicalUnit::new(unit, kept)),
            writes: RwLock::default(),
            keeping: Mutex::default(),
            epochs: Mutex::default(),
        }
    }

    /// What it is called, apart from any target.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) const fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    pub(super) fn unit(&self) -> MutexGuard<'_, LogicalUnit> {
        self.unit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keeping(&self) -> MutexGuard<'_, ()> {
        self.keeping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attaches a session; none when there are too many.
    pub(super) fn attach(self: &Arc<Self>, initiator: InitiatorPort) -> Option<Attached> {
        let nexus = NexusId {
            initiator,
            relative_port: RELATIVE_PORT,
        };
        let handle = self.unit().attach(nexus.clone()).ok()?;
        let epoch = Arc::new(AtomicU64::new(0));
        self.epochs().insert(handle, (nexus, Arc::clone(&epoch)));
        Some(Attached {
            disk: Arc::clone(self),
            handle,
            epoch,
        })
    }

    /// Has other sessions forget their commands; what they have begun to write is
    /// written before this returns.
    pub(super) fn abort_others(&self, by: NexusHandle) {
        for (handle, (_, epoch)) in self.epochs().iter() {
            if *handle != by {
                epoch.fetch_add(1, Ordering::AcqRel);
            }
        }
        self.wait_for_writes();
    }

    /// Has the sessions of these nexuses forget their commands, as above.
    pub(super) fn abort(&self, nexuses: &[NexusId]) {
        for (nexus, epoch) in self.epochs().values() {
            if nexuses.contains(nexus) {
                epoch.fetch_add(1, Ordering::AcqRel);
            }
        }
        if !nexuses.is_empty() {
            self.wait_for_writes();
        }
    }

    /// Those that begin later see that they are void.
    fn wait_for_writes(&self) {
        drop(self.writes.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn epochs(&self) -> MutexGuard<'_, HashMap<NexusHandle, (NexusId, Arc<AtomicU64>)>> {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place at a disk, given back when dropped.
pub(super) struct Attached {
    pub(super) disk: Arc<Disk>,
    pub(super) handle: NexusHandle,
    epoch: Arc<AtomicU64>,
}

impl Attached {
    /// Its logical unit.
    pub(super) fn unit(&self) -> MutexGuard<'_, LogicalUnit> {
        self.disk.unit()
    }

    /// What a command that begins now is carried out by.
    pub(super) fn claim(&self) -> Claim {
        Claim::new(&self.epoch)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.disk.epochs().remove(&self.handle);
        self.disk.unit().detach(self.handle);
    }
}

/// All logical units that are in use, or of which something is reserved.
#[derive(Default)]
pub(super) struct Disks(Mutex<HashMap<String, Arc<Disk>>>);

impl Disks {
    pub(super) fn open(&self, target: &str, unit: &OpenUnit, targets: &dyn Targets) -> Arc<Disk> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |disk: &Arc<Disk>| {
            Arc::strong_count(disk) == 1 && disk.unit().reservations().is_empty()
        };
        all.retain(|_, disk| !idle(disk));
        let known = all
            .get(&unit.name)
            .filter(|disk| disk.identity == unit.identity && disk.target == target);
        if let Some(disk) = known {
            return Arc::clone(disk);
        }
        let kept = targets
            .reservations(&unit.name)
            .and_then(|text| read(&unit.name, &text));
        let disk = Arc::new(Disk::new(target, unit, kept));
        all.insert(unit.name.clone(), Arc::clone(&disk));
        disk
    }
}

fn read(unit: &str, text: &str) -> Option<Reservations> {
    match serde_json::from_str(text) {
        Ok(kept) => Some(kept),
        Err(error) => {
            tracing::error!(unit, %error, "kept reservations cannot be read, and are void");
            None
        }
    }
}
