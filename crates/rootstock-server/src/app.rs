//! What requests and workers share.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use rootstock_catalog::Catalog;
use rootstock_store::ChunkStore;
use tokio::sync::{Semaphore, TryAcquireError};

use crate::{
    boot::{Boot, first_stage::FirstStages},
    config::Config,
    http::ApiError,
    imports::Sessions,
    iscsi,
    leases::Leases,
    metrics::Metrics,
    nbd::NbdHandle,
    nodes::Nodes,
    recipes::Recipes,
    scrub::Scrub,
    traces::Traces,
    volumes::Volumes,
};
use rootstock_api::ProblemCode;

/// Bodies of up to 16 MiB that may be in memory at once.
const BODIES_MAX: usize = 8;

/// Threads that requests may block at once.
const BLOCKING_MAX: usize = 32;

/// Verifications at once.
const VERIFICATIONS_MAX: usize = 2;

/// What requests and workers share.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) catalog: Catalog,
    pub(crate) store: ChunkStore,
    pub(crate) key: SigningKey,
    pub(crate) leases: Arc<Leases>,
    pub(crate) imports: Sessions,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) nodes: Nodes,
    pub(crate) metrics: Metrics,
    pub(crate) scrub: Scrub,
    pub(crate) recipes: Recipes,
    pub(crate) boot: Boot,
    pub(crate) traces: Traces,
    /// Held while a rollout is changed: its steps, and what an administrator says.
    pub(crate) rollouts: tokio::sync::Mutex<()>,
    /// There once the daemon has started.
    pub(crate) first_stages: OnceLock<FirstStages>,
    pub(crate) body_places: Arc<Semaphore>,
    blocking_places: Arc<Semaphore>,
    verify_places: Arc<Semaphore>,
    pub(crate) started: Timestamp,
    nbd: Mutex<Nbd>,
    iscsi: Mutex<Iscsi>,
}

impl App {
    pub(crate) fn new(
        config: Config,
        catalog: Catalog,
        store: ChunkStore,
        key: SigningKey,
        volumes: Volumes,
    ) -> Self {
        Self {
            volumes: Arc::new(volumes),
            scrub: Scrub::new(config.store.scrub_rate_bytes, &config.data),
            boot: Boot::new(&config),
            traces: Traces::default(),
            rollouts: tokio::sync::Mutex::default(),
            config,
            catalog,
            store,
            key,
            leases: Arc::default(),
            imports: Sessions::default(),
            nodes: Nodes::default(),
            recipes: Recipes::default(),
            metrics: Metrics::default(),
            first_stages: OnceLock::new(),
            body_places: Arc::new(Semaphore::new(BODIES_MAX)),
            blocking_places: Arc::new(Semaphore::new(BLOCKING_MAX)),
            verify_places: Arc::new(Semaphore::new(VERIFICATIONS_MAX)),
            started: Timestamp::now(),
            nbd: Mutex::default(),
            iscsi: Mutex::default(),
        }
    }

    /// Runs what hashes, compresses or waits for a disk on a thread that may, and
    /// waits when too many do so already.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let places = Arc::clone(&self.blocking_places);
        let place = places.acquire_owned().await;
        let app = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            work(&app)
        });
        done.await
            .unwrap_or_else(|error| Err(ApiError::internal("finish a request", &error)))
    }

    /// Runs a verification in the background, unless too many run already.
    pub(crate) fn spawn_verification(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) + Send + 'static,
    ) -> Result<(), ApiError> {
        let places = Arc::clone(&self.verify_places);
        let place = match places.try_acquire_owned() {
            Ok(place) => place,
            Err(TryAcquireError::NoPermits) => {
                let detail = format!("{VERIFICATIONS_MAX} verifications are running already");
                return Err(ApiError::new(ProblemCode::Busy, detail)
                    .with_hint("wait until one of them is done"));
            }
            Err(TryAcquireError::Closed) => return Err(crate::http::stopping()),
        };
        let app = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let _place = place;
            work(&app);
        });
        Ok(())
    }

    /// The NBD server, once it runs and until it stops.
    pub(crate) fn nbd(&self) -> MutexGuard<'_, Nbd> {
        self.nbd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The iSCSI target, once it runs and until it stops.
    pub(crate) fn iscsi(&self) -> MutexGuard<'_, Iscsi> {
        self.iscsi.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The iSCSI target, as the API shows it.
#[derive(Default)]
pub(crate) struct Iscsi {
    pub(crate) handle: Option<iscsi::Handle>,
}

impl Iscsi {
    /// Where initiators connect.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let addresses = self.handle.as_ref().map(iscsi::Handle::addresses);
        let addresses = addresses.unwrap_or_default().iter();
        addresses.map(ToString::to_string).collect()
    }
}

/// The NBD server, as the API shows it.
#[derive(Default)]
pub(crate) struct Nbd {
    pub(crate) handle: Option<NbdHandle>,
    /// Where its clients connect, as they write it.
    pub(crate) addresses: Vec<String>,
}

/// A new random id, 32 hex digits.
pub(crate) fn random_id() -> Result<String, ApiError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal("draw an id", &error))?;
    Ok(hex(&bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
