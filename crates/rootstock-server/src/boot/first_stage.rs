//! First stages: made once for each version, kept as files, given to all who boot.
//!
//! A stage is made by whoever asks first; all others wait for that one. What is
//! kept may be lost at any time: it is made again. docs/formats/first-stage.md
//! describes the files.

use std::{
    collections::HashMap,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rootstock_api::{ImageBootFacts, settings::Settings};
use rootstock_catalog::VersionRow;
use rootstock_core::Digest;
use rootstock_image::boot::{AssembleError, FsError, InitrdError, KernelError, SystemError};
use tokio::sync::{Semaphore, watch};

use super::stage::{Stage, Stages};
use crate::{
    app::{App, hex},
    http::chain,
    volumes::Volumes,
};

mod agent;
mod cache;
mod disk;
mod initiator;
mod make;
mod mounted;

use agent::Agent;
use cache::Cache;
pub(crate) use disk::DiskBytes;
pub(crate) use initiator::Way;
use make::Made;

/// What all first stages may take on the disk, in bytes.
const STAGES_BYTES_MAX: u64 = 4 << 30;

/// The most stages that are made at once: each takes a processor and the memory
/// of a kernel.
const MAKES_MAX: usize = 2;

/// The most images whose facts are remembered.
const FACTS_MAX: usize = 1024;

/// First stages of all versions.
#[derive(Clone)]
pub(crate) struct FirstStages(Arc<Shared>);

struct Shared {
    volumes: Arc<Volumes>,
    agent: Agent,
    site: Site,
    cache: Cache,
    flights: Mutex<HashMap<Wanted, watch::Receiver<Flight>>>,
    makes: Semaphore,
    facts: Mutex<HashMap<Digest, ImageBootFacts>>,
    initrds: initiator::Known,
}

/// What the first stages of a site carry of it.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// The site's public key, in hex.
    pub(crate) public_key: String,
    /// The authority of the node service's certificate, PEM.
    pub(crate) authority_pem: String,
}

/// A version with what a node has in the place of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    /// The version's manifest.
    pub(crate) manifest: Digest,
    /// The kernel, by its version or its path in the image.
    pub(crate) kernel: Option<String>,
    /// An initrd of the image, by its path, in the place of the first stage.
    pub(crate) initrd: Option<String>,
    /// The partition of the root.
    pub(crate) root: Option<u32>,
    /// Whether the root is mounted over NFS.
    pub(crate) nfs: bool,
}

/// The outcome of a stage that somebody makes, once there is one.
type Flight = Option<Result<Arc<Stage>, Arc<FirstStageError>>>;

/// Why a version has no first stage.
#[derive(Debug, thiserror::Error)]
pub enum FirstStageError {
    /// The agent is not there, or is not what it should be.
    #[error(
        "{} cannot be the first stage's program: {why}; \
         install `rootstock-agent`, or say where it is with `agent` in [boot]",
        path.display()
    )]
    Agent {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The image has no root that can be used.
    #[error(transparent)]
    System(#[from] SystemError),
    /// The image has no kernel that can be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel lacks what is needed.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// A file of the image cannot be had.
    #[error(transparent)]
    Image(#[from] FsError),
    /// The version cannot be opened.
    #[error("the version cannot be opened: {0}")]
    Version(String),
    /// The stage cannot be kept.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The image has no initrd of its own.
    #[error("it has no initrd of its own for its kernel {kernel}")]
    NoInitrd {
        /// The kernel's release.
        kernel: String,
    },
    /// Its own initrd cannot be read.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// Its root cannot be named to its kernel.
    #[error("the file system of its root has no UUID, by which its kernel would find it")]
    NoUuid,
    /// The work ended before its time.
    #[error("the first stage was not finished: see the daemon's log")]
    Unfinished,
}

/// Gives the daemon its first stages, kept below `dir`.
///
/// # Errors
/// When the directory cannot be used.
pub(crate) fn install(
    app: &App,
    dir: PathBuf,
    authority_pem: String,
) -> Result<(), FirstStageError> {
    let found = super::agent_path(&app.config.boot);
    let site = Site {
        public_key: hex(app.key.verifying_key().as_bytes()),
        authority_pem,
    };
    let is_found = found.is_some();
    let agent = found
        .or_else(|| app.config.boot.agent.clone())
        .unwrap_or_else(|| super::AGENT_DEFAULT.into());
    let stages = FirstStages::open(Arc::clone(&app.volumes), dir, agent, site)?;
    if is_found {
        app.boot.set_stages(Arc::new(stages.clone()));
    }
    // There is one daemon to an app.
    let _ = app.first_stages.set(stages);
    Ok(())
}

impl FirstStages {
    /// Stages kept below `dir`, with the agent at `agent`.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub(crate) fn open(
        volumes: Arc<Volumes>,
        dir: PathBuf,
        agent: PathBuf,
        site: Site,
    ) -> Result<Self, FirstStageError> {
        Ok(Self(Arc::new(Shared {
            volumes,
            agent: Agent::new(agent),
            site,
            cache: Cache::open(dir, STAGES_BYTES_MAX)?,
            flights: Mutex::default(),
            makes: Semaphore::new(MAKES_MAX),
            facts: Mutex::default(),
            initrds: initiator::Known::default(),
        })))
    }

    /// What a machine is given of the site.
    pub(crate) fn site_file(&self) -> rootstock_api::boot::SiteFile {
        self.0.site.file()
    }

    /// The stage of a version: at once when it is there, else when it is made.
    pub(crate) async fn stage(&self, wanted: Wanted) -> Result<Arc<Stage>, Arc<FirstStageError>> {
        let mut flight = self.join(wanted);
        let outcome = flight.wait_for(Option::is_some).await;
        match outcome.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            _ => Err(Arc::new(FirstStageError::Unfinished)),
        }
    }

    /// Has a version's stage made, so that its first boot need not wait.
    pub(crate) fn prepare(&self, version: &VersionRow) {
        let (stages, name) = (self.clone(), version.spec().to_string());
        let wanted = Wanted::of(version.manifest, &Settings::default());
        tokio::spawn(async move {
            if let Err(error) = stages.stage(wanted).await {
                tracing::info!(image = name, error = chain(&*error), "no first stage");
            }
        });
    }

    /// What boots from a version, or why nothing does; without making the stage.
    /// It reads from the disk.
    pub(crate) fn facts(&self, manifest: Digest) -> ImageBootFacts {
        let known = self.facts_known().get(&manifest).cloned();
        let mut facts = known.unwrap_or_else(|| {
            let facts = self.0.look(manifest);
            let mut known = self.facts_known();
            if known.len() >= FACTS_MAX {
                known.clear();
            }
            // What a daemon may do can change; what an image is cannot.
            if facts.why_not.is_none() {
                known.insert(manifest, facts.clone());
            }
            facts
        });
        let wanted = Wanted::of(manifest, &Settings::default());
        if facts.why_not.is_none()
            && let Ok(key) = self.0.key(&wanted)
        {
            facts.initrd_bytes = self.0.cache.initrd_bytes(key);
        }
        facts
    }

    /// Joins those who wait for a stage, or begins with it.
    fn join(&self, wanted: Wanted) -> watch::Receiver<Flight> {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(&wanted) {
            return flight.clone();
        }
        let (done, flight) = watch::channel(None);
        flights.insert(wanted.clone(), flight.clone());
        drop(flights);
        let stages = self.clone();
        // Not the caller's own task: who gave up must not end it for the others.
        tokio::spawn(async move {
            let outcome = stages.work(wanted.clone()).await;
            stages.flights().remove(&wanted);
            // Nobody may wait any more.
            let _ = done.send(Some(outcome.map_err(Arc::new)));
        });
        flight
    }

    async fn work(&self, wanted: Wanted) -> Result<Arc<Stage>, FirstStageError> {
        let place = self.0.makes.acquire().await;
        let shared = Arc::clone(&self.0);
        let work = tokio::task::spawn_blocking(move || shared.get_or_make(&wanted));
        let outcome = work.await;
        drop(place);
        outcome.unwrap_or_else(|error| {
            tracing::error!(%error, "making a first stage ended");
            Err(FirstStageError::Unfinished)
        })
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Wanted, watch::Receiver<Flight>>> {
        let flights = self.0.flights.lock();
        flights.unwrap_or_else(PoisonError::into_inner)
    }

    fn facts_known(&self) -> MutexGuard<'_, HashMap<Digest, ImageBootFacts>> {
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stages for FirstStages {
    fn get<'a>(
        &'a self,
        _app: &'a Arc<App>,
        version: &'a VersionRow,
        settings: &'a Settings,
    ) -> Pin<Box<dyn Future<Output = Result<Stage, String>> + Send + 'a>> {
        Box::pin(async move {
            let stage = self.stage(Wanted::of(version.manifest, settings)).await;
            stage.map(|stage| (*stage).clone()).map_err(|error| {
                let why = chain(&*error);
                tracing::warn!(image = %version.spec(), error = why, "no first stage");
                format!("image {} cannot boot: {why}", version.spec())
            })
        })
    }
}

impl Wanted {
    pub(crate) fn of(manifest: Digest, settings: &Settings) -> Self {
        Self {
            manifest,
            kernel: settings.kernel.clone(),
            initrd: settings.initrd.clone(),
            root: settings.root,
            nfs: settings.is_nfs(),
        }
    }
}

impl Shared {
    /// What a stage is kept under: all that decides what is in it.
    fn key(&self, wanted: &Wanted) -> Result<Digest, FirstStageError> {
        let agent = self.agent.digest()?;
        let of = (&wanted.kernel, &wanted.initrd, wanted.root, wanted.nfs);
        let text = format!(
            "{} {} {agent} {of:?} {:?}",
            cache::FORMAT,
            wanted.manifest,
            self.site
        );
        Ok(Digest::of(text.as_bytes()))
    }

    fn get_or_make(&self, wanted: &Wanted) -> Result<Arc<Stage>, FirstStageError> {
        let key = self.key(wanted)?;
        if let Some(stage) = self.cache.get(key) {
            return Ok(stage);
        }
        let make = || make::make(&self.volumes, &self.agent, &self.site, wanted);
        self.keep(key, make)
    }

    /// Makes a stage and keeps it.
    fn keep(
        &self,
        key: Digest,
        make: impl FnOnce() -> Result<Made, FirstStageError>,
    ) -> Result<Arc<Stage>, FirstStageError> {
        let started = std::time::Instant::now();
        let made = make()?;
        tracing::info!(
            kernel = made.kernel_version,
            initrd_bytes = made.initrd.len(),
            modules = made.module_count,
            firmware = made.firmware_count,
            firmware_left_out = made.firmware_left_out.len(),
            seconds = started.elapsed().as_secs_f32(),
            "first stage made"
        );
        self.cache.put(key, &made)
    }

    fn look(&self, manifest: Digest) -> ImageBootFacts {
        let wanted = Wanted::of(manifest, &Settings::default());
        match make::look(&self.volumes, &wanted) {
            Ok((system, kernel)) => ImageBootFacts {
                has_initiator: make::has_initiator(&system, &kernel),
                kernel: Some(kernel.version),
                partition: Some(system.partition),
                fs: Some(system.fs_kind.to_owned()),
                initrd_bytes: None,
                why_not: None,
            },
            Err(error) => ImageBootFacts {
                why_not: Some(chain(&error)),
                ..ImageBootFacts::default()
            },
        }
    }
}

/// A name for a directory of its own that nobody else has.
fn random_name() -> io::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(hex(&bytes))
}
