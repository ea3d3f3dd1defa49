//! The daemon's life: everything is opened in order, and closed in the other.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use rootstock_catalog::Catalog;
use rootstock_store::{ChunkStore, StoreOptions, disk::RealDisk, objects::DirectoryObjects};
use tokio::{
    runtime::Handle,
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::{
    app::App,
    boot::{
        self, ClaimError,
        first_stage::{self, FirstStageError},
    },
    collector,
    config::{ApiAddress, Config, NbdAddress, NbdTls},
    data_dir::{DataDir, DataDirError},
    exports::DaemonExports,
    http::{self, ApiServer, ListenError},
    imports, iscsi,
    nbd::{self, NbdLimits, NbdListener, NbdServer},
    recipes, rollouts, scrub,
    stop::Stop,
    targets::DaemonTargets,
    tls::{self, PeerAuthority, TlsError},
    traces,
    volumes::{self, Volumes},
};

/// How long requests may take to finish at shutdown.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(20);

/// How often volumes are flushed whose guests do not.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(30);

/// How often idle imports are looked for.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(3600);

/// Why the daemon did not start. What it had opened is closed again.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] rootstock_catalog::OpenError),
    /// The chunk store.
    #[error(transparent)]
    Store(#[from] rootstock_store::OpenError),
    /// A directory of the data.
    #[error("cannot open the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The TLS certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The API's addresses.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// An interface of `boot.interfaces`.
    #[error("cannot boot machines on {interface}, as boot.interfaces says")]
    Boot {
        /// Its name.
        interface: String,
        /// What cannot be had.
        #[source]
        source: ClaimError,
    },
    /// The directory of the first stages.
    #[error("the directory of the first stages cannot be used")]
    FirstStages(#[source] FirstStageError),
    /// Volumes that a crash left unfinished.
    #[error("cannot settle unfinished volumes")]
    Volumes(#[source] Box<rootstock_api::Problem>),
    /// The NBD server.
    #[error("cannot serve NBD on {address}")]
    Nbd {
        /// Where.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The iSCSI target.
    #[error("cannot serve iSCSI on {address}")]
    Iscsi {
        /// Where.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A part of the start failed in an unforeseen way.
    #[error("the start was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

/// What could not be finished at shutdown. What was committed is safe.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    /// Chunks of open imports were not written.
    #[error("chunks of unfinished imports could not be stored: the imports will send them again")]
    Flush(#[source] rootstock_store::PutError),
    /// A part of it panicked.
    #[error("a part of the daemon panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

/// A running daemon.
pub struct Daemon {
    app: Arc<App>,
    stop: watch::Sender<bool>,
    api: JoinHandle<()>,
    workers: JoinSet<()>,
    https: Vec<SocketAddr>,
    nbd: Vec<SocketAddr>,
    iscsi: Vec<SocketAddr>,
    /// Dropped last: the lock on the directory goes with it.
    data: DataDir,
}

impl Daemon {
    /// Starts a daemon: when this returns, the API answers.
    ///
    /// # Errors
    /// [`StartError`], naming the thing and the next step.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        raise_open_files();
        let root = config.data.clone();
        let (data, key) = blocking(move || {
            let data = DataDir::open(&root)?;
            let key = data.site_key()?;
            Ok::<_, StartError>((data, key))
        })
        .await?;
        let mut config = config;
        config.data = data.root().to_owned();
        let tls = tls_config(&config, &data)?;
        let catalog = Catalog::open(&data.catalog()).await?;
        let started = Self::start_with(config, data, key, tls, catalog.clone()).await;
        if started.is_err() {
            catalog.close().await;
        }
        started
    }

    async fn start_with(
        config: Config,
        data: DataDir,
        key: ed25519_dalek::SigningKey,
        tls: Option<Arc<rustls::ServerConfig>>,
        catalog: Catalog,
    ) -> Result<Self, StartError> {
        let store_dir = data.store();
        let pack_bytes = u32::try_from(config.store.pack_bytes).unwrap_or(u32::MAX);
        let store = blocking(move || open_store(store_dir, pack_bytes)).await?;
        let volumes_dir = data.volumes();
        let volumes_disk = RealDisk::new(&volumes_dir).map_err(|source| StartError::Directory {
            path: volumes_dir,
            source,
        })?;
        let volumes = Volumes::new(volumes_disk, store.clone(), config.store.cache_bytes);
        boot::claim(&config)
            .map_err(|(interface, source)| StartError::Boot { interface, source })?;
        let server = ApiServer::bind(&config.api.listen, tls.clone()).await?;
        let https = server.https.clone();
        let app = Arc::new(App::new(config, catalog, store, key, volumes));
        app.boot
            .swarm
            .set_authority(PeerAuthority::open(&data.keys())?);
        first_stage::install(
            &app,
            data.root().join("boot"),
            tls::authority_pem(&data.keys())?,
        )
        .map_err(StartError::FirstStages)?;
        volumes::settle(&app)
            .await
            .map_err(|error| StartError::Volumes(error.0))?;
        let nbd = start_nbd(&app, tls)?;
        let iscsi = start_iscsi(&app)?;
        let (stop, stopped) = Stop::new();
        let router = http::router(Arc::clone(&app));
        let api = tokio::spawn(server.serve(router, stopped.clone(), SHUTDOWN_PATIENCE));
        let mut workers = JoinSet::new();
        workers.spawn(scrub::work(Arc::clone(&app), stopped.clone()));
        workers.spawn(recipes::work(Arc::clone(&app), stopped.clone()));
        workers.spawn(boot::work(Arc::clone(&app), data.keys(), stopped.clone()));
        workers.spawn(rollouts::work(Arc::clone(&app), stopped.clone()));
        workers.spawn(traces::work(Arc::clone(&app), stopped.clone()));
        workers.spawn(flush_volumes(Arc::clone(&app), stopped.clone()));
        workers.spawn(tend_imports(Arc::clone(&app), stopped.clone()));
        if app.config.store.gc_interval_minutes > 0 {
            workers.spawn(collect_now_and_then(Arc::clone(&app), stopped));
        }
        // With the ports that the system chose, which the configuration cannot tell.
        tracing::info!(
            data = %app.config.data.display(),
            release = env!("CARGO_PKG_VERSION"),
            ?https,
            ?nbd,
            ?iscsi,
            "daemon started"
        );
        Ok(Self {
            app,
            stop,
            api,
            workers,
            https,
            nbd,
            iscsi,
            data,
        })
    }

    /// Where HTTPS clients connect, with the ports that the system chose.
    #[must_use]
    pub fn https_addresses(&self) -> &[SocketAddr] {
        &self.https
    }

    /// Where NBD clients connect over TCP, with the ports that the system chose.
    #[must_use]
    pub fn nbd_addresses(&self) -> &[SocketAddr] {
        &self.nbd
    }

    /// Where iSCSI initiators connect, with the ports that the system chose.
    #[must_use]
    pub fn iscsi_addresses(&self) -> &[SocketAddr] {
        &self.iscsi
    }

    /// The certificate that HTTPS clients are to trust when the daemon made its
    /// own.
    #[must_use]
    pub fn authority_path(&self) -> PathBuf {
        self.data.keys().join(tls::AUTHORITY_FILE)
    }

    /// Stops listening, finishes what is under way for a bounded time, writes
    /// what is in memory, and closes everything.
    ///
    /// # Errors
    /// [`ShutdownError`]; everything is closed all the same.
    pub async fn shutdown(mut self) -> Result<(), ShutdownError> {
        tracing::info!("daemon stopping");
        self.stop.send_replace(true);
        // Live views would go on for ever.
        self.app.nodes.close();
        // Clients first: what they wrote is flushed when they have gone.
        let nbd = self.app.nbd().handle.take();
        let iscsi = self.app.iscsi().handle.take();
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(iscsi) = iscsi {
                iscsi.shutdown(SHUTDOWN_PATIENCE);
            }
            if let Some(nbd) = nbd {
                nbd.shutdown(SHUTDOWN_PATIENCE);
            }
        });
        let mut result = closed.await.map_err(ShutdownError::Panicked);
        remove_nbd_sockets(&self.app.config);
        result = result.and(self.api.await.map_err(ShutdownError::Panicked));
        while let Some(worker) = self.workers.join_next().await {
            result = result.and(worker.map_err(ShutdownError::Panicked));
        }
        let store = self.app.store.clone();
        let volumes = Arc::clone(&self.app.volumes);
        let flushed = tokio::task::spawn_blocking(move || {
            volumes.checkpoint();
            store.flush()
        })
        .await;
        result = result.and(match flushed {
            Ok(flushed) => flushed.map_err(ShutdownError::Flush),
            Err(error) => Err(ShutdownError::Panicked(error)),
        });
        self.app.catalog.close().await;
        drop(self.data);
        tracing::info!("daemon stopped");
        result
    }
}

/// Binds the NBD addresses and serves them.
fn start_nbd(
    app: &Arc<App>,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Result<Vec<SocketAddr>, StartError> {
    let config = &app.config.nbd;
    if config.listen.is_empty() {
        return Ok(Vec::new());
    }
    let mut listeners = Vec::new();
    for address in &config.listen {
        let failed = |source| StartError::Nbd {
            address: address.to_string(),
            source,
        };
        listeners.push(match address {
            NbdAddress::Unix(path) => NbdListener::Unix(http::bind_unix(path)?),
            NbdAddress::Tcp(host) => {
                NbdListener::Tcp(std::net::TcpListener::bind(host).map_err(failed)?)
            }
        });
    }
    let all = config
        .listen
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>();
    let tls = match (config.tls, tls) {
        (NbdTls::Optional, Some(tls)) => nbd::NbdTls::Optional(tls),
        (NbdTls::Required, Some(tls)) => nbd::NbdTls::Required(tls),
        _ => nbd::NbdTls::Off,
    };
    let server = nbd::NbdConfig {
        listeners,
        tls,
        limits: NbdLimits {
            connections_max: config.connections_max as usize,
            ..NbdLimits::default()
        },
    };
    let exports = DaemonExports {
        app: Arc::clone(app),
        runtime: Handle::current(),
    };
    let handle = NbdServer::start(server, Arc::new(exports)).map_err(|source| StartError::Nbd {
        address: all.join(", "),
        source,
    })?;
    let tcp = handle.addresses().to_vec();
    let unix = config
        .listen
        .iter()
        .filter(|a| matches!(a, NbdAddress::Unix(_)));
    let addresses = tcp.iter().map(ToString::to_string);
    let mut nbd = app.nbd();
    nbd.addresses = addresses.chain(unix.map(ToString::to_string)).collect();
    nbd.handle = Some(handle);
    Ok(tcp)
}

/// Binds the iSCSI addresses and serves them.
fn start_iscsi(app: &Arc<App>) -> Result<Vec<SocketAddr>, StartError> {
    let config = &app.config.iscsi;
    if config.listen.is_empty() {
        return Ok(Vec::new());
    }
    let mut listeners = Vec::new();
    for address in &config.listen {
        let bound = std::net::TcpListener::bind(&address.0);
        listeners.push(bound.map_err(|source| StartError::Iscsi {
            address: address.to_string(),
            source,
        })?);
    }
    let limits = iscsi::Limits {
        connections_max: config.sessions_max as usize,
        per_address_max: config.sessions_per_address_max as usize,
        ..iscsi::Limits::default()
    };
    let targets = DaemonTargets {
        app: Arc::clone(app),
        runtime: Handle::current(),
    };
    let started = iscsi::start(listeners, limits, Arc::new(targets));
    let handle = started.map_err(|source| StartError::Iscsi {
        address: "the addresses of iscsi.listen".to_owned(),
        source,
    })?;
    let addresses = handle.addresses().to_vec();
    app.iscsi().handle = Some(handle);
    Ok(addresses)
}

fn remove_nbd_sockets(config: &Config) {
    for address in &config.nbd.listen {
        if let NbdAddress::Unix(path) = address
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(path = %path.display(), %error, "socket not removed");
        }
    }
}

/// Bounds how long what guests wrote without flushing can be lost.
async fn flush_volumes(app: Arc<App>, mut stop: Stop) {
    while !stop.rest(CHECKPOINT_INTERVAL).await {
        let volumes = Arc::clone(&app.volumes);
        let flushing = app.blocking(move |_| {
            volumes.checkpoint();
            Ok(())
        });
        if let Err(error) = flushing.await {
            tracing::error!(detail = error.0.detail, "volumes not flushed");
        }
    }
}

fn open_store(dir: PathBuf, pack_bytes: u32) -> Result<ChunkStore, StartError> {
    let objects = RealDisk::new(&dir)
        .and_then(|disk| DirectoryObjects::new(Arc::new(disk), ""))
        .map_err(|source| StartError::Directory { path: dir, source })?;
    let options = StoreOptions {
        pack_bytes,
        ..StoreOptions::default()
    };
    Ok(ChunkStore::open(Arc::new(objects), options)?)
}

/// The TLS identity, if something needs one.
fn tls_config(
    config: &Config,
    data: &DataDir,
) -> Result<Option<Arc<rustls::ServerConfig>>, StartError> {
    let hosts = config
        .api
        .listen
        .iter()
        .filter_map(|address| match address {
            ApiAddress::Https(host) => Some(host.as_str()),
            ApiAddress::Unix(_) => None,
        });
    let nbd_hosts = config
        .nbd
        .listen
        .iter()
        .filter_map(|address| match address {
            NbdAddress::Tcp(host) => Some(host.as_str()),
            NbdAddress::Unix(_) => None,
        });
    let mut names = vec![
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    let hosts: Vec<_> = hosts.collect();
    if hosts.is_empty() && config.nbd.tls == NbdTls::Off {
        return Ok(None);
    }
    names.extend(
        rustix::system::uname()
            .nodename()
            .to_str()
            .map(str::to_owned)
            .ok(),
    );
    for host in hosts.into_iter().chain(nbd_hosts) {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        names.push(name.trim_matches(['[', ']']).to_owned());
    }
    names.retain(|name| name != "0.0.0.0" && name != "::" && !name.is_empty());
    names.sort_unstable();
    names.dedup();
    Ok(Some(tls::server_config(&config.api, &data.keys(), &names)?))
}

/// Runs a part of the start that waits for the disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StartError::Interrupted(error)))
}

/// Expires imports that nobody continues.
async fn tend_imports(app: Arc<App>, mut stop: Stop) {
    loop {
        if let Err(error) = imports::expire(&app, jiff::Timestamp::now()).await {
            tracing::error!(detail = error.0.detail, "imports not expired");
        }
        if stop.rest(EXPIRE_INTERVAL).await {
            return;
        }
    }
}

/// Collects from time to time.
async fn collect_now_and_then(app: Arc<App>, mut stop: Stop) {
    let interval = Duration::from_secs(60 * u64::from(app.config.store.gc_interval_minutes));
    while !stop.rest(interval).await {
        if let Err(error) = collector::run(&app, None).await {
            tracing::error!(detail = error.0.detail, "collection failed");
        }
    }
}

/// Each NBD connection takes two descriptors, and systems give 1,024 unless they
/// are asked: the limit that an administrator set is taken in full.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
