//! Keeping what a version starts with on the machine's own disk.

use std::io::{self, Read};
use std::path::Path;

use rootstock_api::boot::{Identity, NextVersion};
use rootstock_api::local::{BOOT_EFI, BOOT_IMG, CORE_IMG, LocalFile, LocalOrder};
use rootstock_core::Digest;

use super::disk::StartDisk;
use super::files::{LOADERS, StartFiles};
use super::loader::{self, LoaderError};
use super::write::{self, GRUB_CFG, NewStart, WriteError, Written};
use super::{DOCUMENT_BYTES_MAX, Kept};
use crate::disk::find::Devices;
use crate::order::{Site, TrustError};
use crate::service::{CallError, Service};

/// The longest file of a boot loader, in bytes.
const LOADER_BYTES_MAX: u64 = 8 << 20;

/// Why nothing was kept. What was kept before is started as before.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// The server did not answer, or said no.
    #[error("what starts it cannot be fetched")]
    Call(#[from] CallError),
    /// What it gave is not what the site signed.
    #[error("what starts it is refused")]
    Trust(#[from] TrustError),
    /// The order is for something else.
    #[error("the local order is for {got} and not for {wanted}")]
    Other {
        /// What it is for.
        got: String,
        /// What was asked for.
        wanted: String,
    },
    /// The server has no boot loader for this machine.
    #[error(
        "the server has no boot loader for this machine's {firmware}: {why}; \
         `rootstock boot doctor` there says what it lacks"
    )]
    NoLoader {
        /// `BIOS` or `UEFI`.
        firmware: &'static str,
        /// What it says itself.
        why: String,
    },
    /// Somebody uses the partition.
    #[error("/dev/{partition} is in use: unmount it")]
    InUse {
        /// Its name.
        partition: String,
    },
    /// What is to be kept is too much.
    #[error("the document of {len_bytes} B is longer than {DOCUMENT_BYTES_MAX} B")]
    TooLong {
        /// Its length.
        len_bytes: u64,
    },
    /// The files cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The boot loader cannot be written.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The disk's.
    #[error("the disk that starts this machine fails")]
    Disk(#[from] io::Error),
}

impl KeepError {
    /// Whether it may go well later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Call(error) | Self::Write(WriteError::Fetch { source: error, .. }) => {
                error.may_pass()
            }
            Self::InUse { .. } => true,
            _ => false,
        }
    }
}

/// What the firmware of a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Firmware {
    Bios,
    Uefi,
}

/// What a later start of this machine has in common with this one.
pub(crate) struct Common {
    /// The client.
    pub(crate) service: Service,
    /// Node services, best first.
    pub(crate) urls: Vec<String>,
    /// Who must have signed what is kept.
    pub(crate) site: Site,
    /// Who the machine is.
    pub(crate) identity: Identity,
    /// The first words of the kernel's command line.
    pub(crate) words: Vec<String>,
}

/// A disk that the machine can start from.
pub(crate) struct Starter {
    common: Common,
    devices: Devices,
    disk: StartDisk,
    firmware: Firmware,
}

impl Starter {
    /// For the disk that has this cache; nothing when it was not divided for it.
    pub(crate) fn of_cache(cache: &str, common: Common) -> Option<Self> {
        let devices = Devices::open().ok()?;
        let disk = StartDisk::of_cache(&devices, cache)?;
        let firmware = match Path::new("/sys/firmware/efi").exists() {
            true => Firmware::Uefi,
            false => Firmware::Bios,
        };
        Some(Self {
            common,
            devices,
            disk,
            firmware,
        })
    }

    /// The disk, such as `/dev/sda`.
    pub(crate) fn disk(&self) -> String {
        self.disk.path()
    }

    /// Has the machine start this version when no server answers. All of it must be
    /// in the cache.
    ///
    /// # Errors
    /// [`KeepError`].
    pub(crate) fn keep(&self, version: &NextVersion) -> Result<Written, KeepError> {
        let service = &self.common.service;
        let (url, (order, signature)) = self.first(|url| service.local_order(url, version))?;
        let local = self.common.site.local_order(&order, &signature)?;
        let wanted = version.spec().to_string();
        let got = format!("{}:{}", local.order.image, local.order.version);
        if got != wanted || local.order.manifest != version.manifest {
            return Err(KeepError::Other { got, wanted });
        }
        self.must_have_loader(&local)?;
        let (manifest, seal) = service.manifest_of(&url, version)?;
        self.common.site.manifest(&manifest, &seal, &local.order)?;
        let identity = self.common.identity.clone();
        let kept = Kept::new(order, signature, (&manifest, seal), identity)?;
        let document = serde_json::to_vec(&kept).map_err(io::Error::from)?;
        let len_bytes = document.len() as u64;
        if len_bytes > DOCUMENT_BYTES_MAX {
            return Err(KeepError::TooLong { len_bytes });
        }
        let mut words = self.common.words.clone();
        words.extend(local.arguments.iter().cloned());
        let start = NewStart {
            title: format!("{}: {wanted}", local.order.node),
            words,
            kernel: local.kernel.clone(),
            first_stage: local.first_stage.clone(),
            document,
        };
        let fetch = |file: &LocalFile| service.local_file(&url, version, &file.name);
        self.write(&local, &start, fetch)
    }

    fn write(
        &self,
        local: &LocalOrder,
        start: &NewStart,
        fetch: impl Fn(&LocalFile) -> Result<Box<dyn Read>, CallError>,
    ) -> Result<Written, KeepError> {
        let partition = self.disk.start_partition();
        let claimed = self.devices.claim(&partition);
        let _claim = claimed.map_err(|_| KeepError::InUse { partition })?;
        let files = StartFiles::open(&self.disk.device, self.disk.start())?;
        let written = write::write(&files, start, &mut |file| fetch(file))?;
        files.replace("GRUB.CFG", GRUB_CFG.as_bytes())?;
        for file in local.loader.iter().filter(|file| is_efi(&file.name)) {
            let path = format!("{LOADERS}/{}", file.name);
            if !files.holds(&path, file.len_bytes, file.digest)? {
                files.replace(&file.name, &whole(file, fetch(file)?)?)?;
            }
        }
        files.close()?;
        let named = |name: &str| local.loader.iter().find(|file| file.name == name);
        if let (Some(boot), Some(core)) = (named(BOOT_IMG), named(CORE_IMG)) {
            let boot = whole(boot, fetch(boot)?)?;
            let core = whole(core, fetch(core)?)?;
            loader::install(&self.disk.device, self.disk.layout.loader, &boot, &core)?;
        }
        Ok(written)
    }

    fn must_have_loader(&self, local: &LocalOrder) -> Result<(), KeepError> {
        let (firmware, needed) = match self.firmware {
            Firmware::Bios => ("BIOS", &[BOOT_IMG, CORE_IMG][..]),
            Firmware::Uefi => ("UEFI", &[BOOT_EFI][..]),
        };
        let has = |name: &&str| local.loader.iter().any(|file| file.name == **name);
        if needed.iter().all(has) {
            return Ok(());
        }
        Err(KeepError::NoLoader {
            firmware,
            why: local.lacks.join(", "),
        })
    }

    /// The answer of the first server that gives one, and which that was.
    fn first<T>(
        &self,
        ask: impl Fn(&str) -> Result<T, CallError>,
    ) -> Result<(String, T), CallError> {
        let mut error = CallError::NoSession;
        for url in &self.common.urls {
            match ask(url) {
                Ok(answer) => return Ok((url.clone(), answer)),
                Err(other) => error = other,
            }
        }
        Err(error)
    }
}

/// Whether it is a name that FAT has for a program of UEFI's.
fn is_efi(name: &str) -> bool {
    let base = name.strip_suffix(".EFI").unwrap_or_default();
    (1..=8).contains(&base.len()) && base.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// A file's bytes, if they are those that were signed.
fn whole(file: &LocalFile, bytes: Box<dyn Read>) -> Result<Vec<u8>, KeepError> {
    let mut read = Vec::new();
    let limit = file.len_bytes.min(LOADER_BYTES_MAX) + 1;
    let taken = bytes.take(limit).read_to_end(&mut read);
    let is_whole = taken.is_ok() && Digest::of(&read) == file.digest;
    if is_whole {
        return Ok(read);
    }
    Err(WriteError::File {
        name: file.name.clone(),
        source: taken
            .err()
            .unwrap_or_else(|| io::ErrorKind::InvalidData.into()),
    }
    .into())
}
