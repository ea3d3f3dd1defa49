//! Kernels with their image's own initrd, and an initiator in it: for a machine whose disk is
//! reached over iSCSI by a system that cannot do so by itself.
//!
//! What is on the disk decides, which is the machine's own and may not be what any version
//! is: its kernel may have been upgraded. So it is looked at before each boot, and what was
//! made before is taken again where every byte that goes into it is the same: machines have
//! owners, and what one puts among its modules must not come to another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use rootstock_api::{IscsiStart, settings::Settings};
use rootstock_core::Digest;
use rootstock_image::{
    ReadAt,
    boot::{self, Initrd, Kernel, System},
};

use super::{
    FirstStageError, FirstStages, Shared, cache,
    make::{self, Made},
};
use crate::{boot::stage::Stage, http::chain};

/// Where the agent lies in what is added, which the kernel starts first
/// (Documentation/admin-guide/kernel-parameters.txt, `rdinit=`).
const RUN_FIRST: &str = "rdinit=/rootstock/iscsi";

/// The most initrds of which it is remembered what is in them.
const KNOWN_MAX: usize = 4096;

/// What is in an initrd, by its digest.
pub(super) type Known = Mutex<HashMap<Digest, Initrd>>;

/// What a machine is to start.
pub(crate) enum Way {
    /// The boot loader on its disk; and what an administrator should know of that.
    Loader(Option<String>),
    /// A kernel, with an initrd that has an initiator.
    Kernel(Arc<Stage>),
}

impl FirstStages {
    /// What a machine is to start from its disk.
    ///
    /// # Errors
    /// When it is to start the kernel, and that cannot be.
    pub(crate) async fn way(
        &self,
        disk: Arc<dyn ReadAt>,
        settings: Settings,
    ) -> Result<Way, FirstStageError> {
        if settings.iscsi_start == Some(IscsiStart::Loader) {
            return Ok(Way::Loader(None));
        }
        let place = self.0.makes.acquire().await;
        let shared = Arc::clone(&self.0);
        let work = move || shared.way(disk, &settings);
        let found = tokio::task::spawn_blocking(work).await;
        drop(place);
        found.unwrap_or_else(|error| {
            tracing::error!(%error, "looking at a disk ended");
            Err(FirstStageError::Unfinished)
        })
    }
}

impl Shared {
    fn way(&self, disk: Arc<dyn ReadAt>, settings: &Settings) -> Result<Way, FirstStageError> {
        let is_asked_for = settings.iscsi_start == Some(IscsiStart::Kernel);
        let found = match Found::on(disk, settings) {
            Ok(found) => found,
            Err(error) if is_asked_for => return Err(error),
            // Windows, and what else is none of ours to start.
            Err(_) => return Ok(Way::Loader(None)),
        };
        let digest = Digest::of(&found.initrd);
        let initrd = match self.initrd(digest, &found.initrd) {
            Ok(initrd) => initrd,
            Err(error) if is_asked_for => return Err(error),
            // One that cannot be read is left as it is.
            Err(_) => return Ok(Way::Loader(None)),
        };
        let arguments = boot::iscsi_arguments(&found.system.fs);
        let arguments = arguments.unwrap_or(boot::IscsiArguments::None);
        if !is_asked_for && initrd.logs_in(arguments) {
            return Ok(Way::Loader(None));
        }
        match self.with_initiator(&found, &initrd, digest) {
            Ok(stage) => Ok(Way::Kernel(stage)),
            Err(error) if is_asked_for => Err(error),
            Err(error) => Ok(Way::Loader(Some(format!(
                "its initrd has no iSCSI initiator, and none can be added to it: {}",
                chain(&error)
            )))),
        }
    }

    fn initrd(&self, digest: Digest, bytes: &[u8]) -> Result<Initrd, FirstStageError> {
        let known = || self.initrds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(initrd) = known().get(&digest) {
            return Ok(initrd.clone());
        }
        let initrd = Initrd::read(bytes)?;
        let mut known = known();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(digest, initrd.clone());
        Ok(initrd)
    }

    fn with_initiator(
        &self,
        found: &Found,
        initrd: &Initrd,
        digest: Digest,
    ) -> Result<Arc<Stage>, FirstStageError> {
        let (system, kernel) = (&found.system, &found.kernel);
        let agent = self.agent.read()?;
        let mut made = Made::of(system, kernel)?;
        made.arguments.splice(0..0, found.arguments()?);
        let key = format!(
            "{} initiator {} {digest} {} {:?} {:?} {}",
            cache::FORMAT,
            Digest::of(&made.kernel),
            boot::initiator_digest(&system.fs, kernel, &agent)?,
            made.arguments,
            made.root,
            made.kernel_version,
        );
        let key = Digest::of(key.as_bytes());
        if let Some(stage) = self.cache.get(key) {
            return Ok(stage);
        }
        self.keep(key, || {
            let added = boot::assemble_initiator(&system.fs, kernel, &agent)?;
            made.initrd = initrd.with(&found.initrd, &added.initrd);
            made.module_count = added.module_count;
            made.firmware_count = added.firmware_count;
            made.firmware_left_out = added.firmware_left_out;
            Ok(made)
        })
    }
}

/// A Linux on a disk.
struct Found {
    system: System,
    kernel: Kernel,
    /// Its own initrd.
    initrd: Vec<u8>,
    /// Of its root's file system.
    uuid: Option<String>,
}

impl Found {
    fn on(disk: Arc<dyn ReadAt>, settings: &Settings) -> Result<Self, FirstStageError> {
        let partitions = make::partitions(&*disk)?;
        let wanted = settings.kernel.as_deref();
        let (system, kernel) = make::find_in(&partitions, disk, settings.root, wanted)?;
        let initrd = make::own_initrd(&system, &kernel, settings.initrd.as_deref())?;
        let initrd = initrd.ok_or_else(|| FirstStageError::NoInitrd {
            kernel: kernel.version.clone(),
        })?;
        let mut all = partitions.into_iter();
        let root = all.find(|partition| partition.number == system.partition);
        Ok(Self {
            uuid: root.and_then(|root| root.fs?.uuid),
            system,
            kernel,
            initrd,
        })
    }

    /// What its kernel is told in the place of a boot loader.
    fn arguments(&self) -> Result<Vec<String>, FirstStageError> {
        let uuid = self.uuid.as_deref().ok_or(FirstStageError::NoUuid)?;
        let mut arguments = vec![
            RUN_FIRST.to_owned(),
            format!("root=UUID={uuid}"),
            "ro".to_owned(),
        ];
        if !self.system.options.is_empty() {
            arguments.push(format!("rootflags={}", self.system.options));
        }
        Ok(arguments)
    }
}
