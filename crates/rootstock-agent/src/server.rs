//! The process that serves the root: it starts before the root is mounted and
//! ends with the machine.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rootstock_api::boot::{
    BootOrder, DiskCacheReport, FillOrder, NextVersion, NodeControl, NodeMode, NodeReport,
};
use rootstock_image::manifest::Manifest;
use rootstock_volume::{BlockDevice, ChunkCache, ChunkSource, VersionDisk};
use rustix::mm::MlockAllFlags;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::console;
use crate::control::{FromServer, Lines, Start, ToServer, send};
use crate::cow::CowDisk;
use crate::engine::{self, Engine, Writes};
use crate::install::chunks::Chunks;
use crate::install::mark::Mark;
use crate::install::{self, Installation};
use crate::native::{self, Native};
use crate::nbd;
use crate::nfs;
use crate::overlay::{Fill, Overlay, memory::MemorySlots, zram::ZramSlots};
use crate::personal::commit::{self, Commits};
use crate::personal::{RemoteVolume, disk};
use crate::ram::RamFrames;
use crate::rejoin;
use crate::remote::{Fetch, Remote, ServiceFetch};
use crate::replay::{self, Landed, Landing, ServicePacks};
use crate::report::{Reporter, Source};
use crate::restart::Restart;
use crate::room::Views;
use crate::service::Service;
use crate::sources::{Here, Sources};
use crate::stats::Stats;
use crate::steer;
use crate::swarm::SwarmPacks;
use crate::swarm::membership::Membership;
use crate::sys;
use crate::tiers::attach::Attached;
use crate::tiers::boot::BootSink;
use crate::tiers::remember;

/// The part of memory that writes may take when the order does not say.
const OVERLAY_PART: u64 = 2;
/// The part of the cache's memory that chunks take beside it which came before
/// they were asked for, while the machine boots.
const LANDING_PART: u64 = 2;
/// The part of memory that writes take before those to the machine's own disk begin.
const BEFORE_DISK_PART: u64 = 8;
/// The file system whose writers can be told in time that there is no room.
const NATIVE_FS: &str = "ext4";
/// What is left free when an image goes to memory.
const RAM_PART: (u64, u64) = (3, 4);
/// `argv[0]` of this process. systemd spares what begins with `@` when it kills
/// all else (its document "Storage Daemons for the Root File System").
pub(crate) const NAME: &str = "@rootstock-agent";

/// Serves what pid 1 asks for, on standard input's socket.
pub(crate) fn run(control: &UnixStream) -> io::Result<()> {
    console::open();
    survive();
    let mut lines = Lines::new(control);
    let Some(ToServer::Start(start)) = lines.next()? else {
        return Err(io::Error::other("pid 1 did not say what to serve"));
    };
    let stats = Arc::new(Stats::default());
    let served = match serve(&start, &stats) {
        Ok(served) => served,
        Err(reason) => return send(control, &FromServer::Failed { reason }),
    };
    let reporter = Reporter::start(Source {
        service: served.service,
        urls: start.urls.clone(),
        stats: Arc::clone(&stats),
        fill: served.fill,
        disk: served.disk,
        install: served.install,
        report_seconds: start.order.report_seconds,
        check: start.order.check.clone(),
    })?;
    let restart = Restart::new(reporter.switched());
    let (told, keeps_writes) = (served.told, served.keeps_writes);
    let (service, urls) = (served.steered.clone(), start.urls.clone());
    let each = move |control: NodeControl| {
        restart.order(control.reboot);
        if let Some(order) = control.commit.as_ref().filter(|_| !keeps_writes) {
            commit::decline(&service, &urls, order);
        }
        told(control);
    };
    if let Some(join) = start.join.clone() {
        let runs = NextVersion {
            image: start.order.image.clone(),
            version: start.order.version,
            manifest: start.order.manifest,
        };
        rejoin::start(served.steered.clone(), start.urls.clone(), join, runs)?;
    }
    steer::start(served.steered, start.urls.clone(), each)?;
    let bytes = stats.fetched_bytes();
    let (root, lost) = (served.root, served.lost);
    send(control, &FromServer::Ready { bytes, root, lost })?;
    // Until pid 1 becomes the image's own init.
    while let Some(ToServer::Step(step)) = lines.next()? {
        reporter.step(step);
    }
    served
        .engine
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the engine failed inside the agent")))
}

/// How full the overlay is, if there is one.
pub(crate) type FillOf = Box<dyn Fn() -> Option<Fill> + Send>;

/// How the machine's own disk does, if chunks are kept on one.
pub(crate) type DiskOf = Box<dyn Fn() -> Option<OnDisk> + Send>;

/// How a machine's own disk does.
pub(crate) struct OnDisk {
    /// As the site is told.
    pub(crate) report: DiskCacheReport,
    /// What the kernel read of it without the agent.
    pub(crate) native_read_bytes: u64,
}

/// What hears of what changes while the machine runs.
pub(crate) type ToldOf = Box<dyn Fn(NodeControl) + Send>;

struct Served {
    service: Service,
    /// The same, for the thread that hears what changes.
    steered: Service,
    told: ToldOf,
    /// The device of the root's file system, when it is not its partition.
    root: Option<String>,
    /// Why what is to be kept is not.
    lost: Option<String>,
    /// Whether what is written stays on this machine.
    keeps_writes: bool,
    fill: FillOf,
    disk: DiskOf,
    install: Option<Arc<Installation>>,
    engine: thread::JoinHandle<io::Result<()>>,
}

fn serve(start: &Start, stats: &Arc<Stats>) -> Result<Served, String> {
    let service = Service::new(&start.site.authority_pem)
        .map_err(|error| format!("the site's authority is no certificate: {error}"))?;
    if let Some(session) = &start.session {
        service.join(session);
    }
    if start.order.nfs.is_some() {
        return serve_nothing(service);
    }
    let parts = parts(start, &service, stats)?;
    let size_bytes = parts.device.size_bytes();
    let engine = attach(parts.device, Arc::clone(stats), parts.writes, size_bytes)
        .map_err(|error| format!("the kernel's nbd device could not be set up: {error}"))?;
    let mut served = Served {
        steered: service.clone(),
        told: parts.told,
        service,
        root: None,
        lost: parts.lost,
        keeps_writes: parts.writes_on_disk.is_some(),
        fill: parts.fill,
        disk: parts.disk,
        install: None,
        engine,
    };
    if let Some(wanted) = parts.install {
        served.install(wanted, start.order.fill.clone());
    }
    if let Some(writes) = parts.writes_on_disk
        && let Err(error) = disk::watch(writes, start.order.root.partition)
    {
        console::warn(format_args!("writers are not told of a full disk: {error}"));
    }
    match parts.native.map(Native::start) {
        Some(Ok(native)) => served.put_below(native),
        Some(Err(error)) => console::info(format_args!(
            "the kernel does not read the root itself: {error}"
        )),
        None => {}
    }
    Ok(served)
}

/// The kernel mounts the root itself: what is left is to tell how the machine does.
fn serve_nothing(service: Service) -> Result<Served, String> {
    let rest = || -> io::Result<()> {
        loop {
            thread::park();
        }
    };
    let engine = thread::Builder::new().name("rest".to_owned()).spawn(rest);
    Ok(Served {
        steered: service.clone(),
        told: Box::new(|_| {}),
        service,
        root: None,
        lost: None,
        keeps_writes: false,
        fill: Box::new(nfs::fill),
        disk: Box::new(|| None),
        install: None,
        engine: engine.map_err(|error| format!("the system has no thread to give: {error}"))?,
    })
}

impl Served {
    /// Has the version laid out on a disk, too.
    fn install(&mut self, wanted: install::Wanted, fill: FillOrder) {
        let installation = Installation::start(wanted, fill);
        self.install = Some(Arc::clone(&installation));
        let others = std::mem::replace(&mut self.told, Box::new(|_| {}));
        self.told = Box::new(move |control: NodeControl| {
            installation.set_order(control.fill.clone());
            others(control);
        });
    }

    /// Has the root on the kernel's own devices.
    fn put_below(&mut self, native: Arc<Native>) {
        self.root = Some(native.device());
        let (others, writes) = (
            std::mem::replace(&mut self.fill, Box::new(|| None)),
            Arc::clone(&native),
        );
        self.fill = Box::new(move || Some(writes.fill().with(others())));
        let disk = std::mem::replace(&mut self.disk, Box::new(|| None));
        self.disk = Box::new(move || {
            let mut on_disk = disk()?;
            on_disk.report.native_bytes = native.native_bytes();
            on_disk.native_read_bytes = native.read_bytes();
            Some(on_disk)
        });
    }
}

/// What a mode is made of.
struct Parts {
    device: Arc<dyn BlockDevice>,
    fill: FillOf,
    disk: DiskOf,
    told: ToldOf,
    writes: Writes,
    /// What the kernel may read and write without the agent.
    native: Option<native::Parts>,
    /// A personal machine's writes on its own disk.
    writes_on_disk: Option<Arc<disk::Writes>>,
    /// Why what is to be kept is not.
    lost: Option<String>,
    /// What is laid out on a disk.
    install: Option<install::Wanted>,
}

impl Parts {
    /// A device, and nothing beside it.
    fn new(device: Arc<dyn BlockDevice>, writes: Writes) -> Self {
        Self {
            device,
            fill: Box::new(|| None),
            disk: Box::new(|| None),
            told: Box::new(|_| {}),
            writes,
            native: None,
            writes_on_disk: None,
            lost: None,
            install: None,
        }
    }
}

fn parts(start: &Start, service: &Service, stats: &Arc<Stats>) -> Result<Parts, String> {
    let order = &start.order;
    if let (NodeMode::Personal, Some(place)) = (order.mode, &order.volume) {
        let volume = RemoteVolume::connect(place, &start.site.authority_pem)
            .map_err(|error| console::chain(&error))?;
        return Ok(Parts::new(Arc::new(volume), Writes::Pooled));
    }
    let manifest = Manifest::decode(&start.manifest).map_err(|error| error.to_string())?;
    if order.mode == NodeMode::Ram {
        let fetch = ServiceFetch {
            service: service.clone(),
            urls: order.chunk_urls.clone(),
        };
        let remote = Remote::new(fetch, Arc::clone(stats));
        let free = memory_bytes("MemAvailable:") * RAM_PART.0 / RAM_PART.1;
        let frames =
            RamFrames::fetch(&manifest, &remote, free).map_err(|error| console::chain(&error))?;
        let cache = Arc::new(ChunkCache::new(frames, order.cache_bytes));
        let bytes_max = writes_bytes_max(order);
        let (disk, told) = (Box::new(|| None), Box::new(|_| {}));
        return Ok(cow(manifest, cache, bytes_max, disk, told));
    }
    let Sources {
        tiers,
        swarm,
        attached,
        told,
    } = Sources::start(start, service, &manifest, stats, Here::IMAGE)?;
    let is_guest = start.membership.as_ref().is_some_and(Membership::is_guest);
    if !service.has_session() && !is_guest {
        must_be_whole(&attached, order, &manifest)?;
    }
    let landing = Arc::new(Landing::new(order.cache_bytes / LANDING_PART));
    let source = Landed {
        source: Arc::clone(&tiers),
        landing: Arc::clone(&landing),
    };
    let cache = Arc::new(ChunkCache::new(source, order.cache_bytes));
    let packs = SwarmPacks {
        swarm,
        service: ServicePacks {
            service: service.clone(),
            urls: order.chunk_urls.clone(),
        },
        trace: start.trace.clone(),
        stats: Arc::clone(stats),
    };
    let install = order.install.as_ref().map(|install| install::Wanted {
        order: install.clone(),
        mark: Mark {
            site: start.site.public_key.clone(),
            node: order.node.clone(),
            table: None,
        },
        root: order.root.clone(),
        identity: start.identity.clone(),
        grid: manifest.grid().clone(),
        version: format!("{}:{}", order.image, order.version),
        chunks: Box::new(Chunks {
            tiers: Arc::clone(&tiers),
            version: VersionDisk::new(manifest.clone(), Arc::clone(&cache)),
        }),
    });
    let version = VersionDisk::new(manifest.clone(), Arc::clone(&cache));
    let busy = Arc::clone(&tiers);
    let sink = Arc::new(BootSink::new(tiers, Arc::clone(&landing)));
    replay::start(packs, version, landing, sink, Arc::clone(stats))
        .map_err(|error| format!("the boot's replay cannot be started: {error}"))?;
    let lost = match order.personal.map(|personal| {
        let version = Arc::new(VersionDisk::new(manifest.clone(), Arc::clone(&cache)));
        let runs = disk::Runs {
            image: order.image.clone(),
            version: order.version,
            manifest: order.manifest,
        };
        let base = Arc::clone(&version).into_base();
        disk::Writes::open(&personal, &runs, base).map(|writes| (writes, version))
    }) {
        Some(Ok((writes, version))) => {
            let writes = Arc::new(writes);
            let views = Views::open()
                .map_err(|error| format!("the kernel's views cannot be opened: {error}"))?;
            let commits = Commits::new(commit::Source {
                writes: Arc::clone(&writes),
                version,
                service: service.clone(),
                urls: start.urls.clone(),
                views,
            });
            let told = Box::new(move |control: NodeControl| {
                commits.set(control.commit.clone());
                told(control);
            });
            return Ok(personal(&writes, on_disk(attached), told));
        }
        // Its user goes on.
        Some(Err(error)) => Some(console::chain(&error)),
        None => None,
    };
    let mut bytes_max = writes_bytes_max(order);
    let mut native = None;
    if let Some(ground) = attached.ground().filter(|_| order.root.fs == NATIVE_FS) {
        // The other partitions' writes have the other half.
        bytes_max /= 2;
        let memory_bytes_max = match ground.spare {
            Some(_) => bytes_max.min(memory_bytes("MemTotal:") / BEFORE_DISK_PART),
            None => bytes_max,
        };
        let version = VersionDisk::new(manifest.clone(), Arc::clone(&cache));
        native = Some(native::Parts {
            ground,
            partition: order.root.partition,
            grid: manifest.grid().clone(),
            chunk_at: Box::new(move |span| version.chunk(span).ok()),
            memory_bytes_max,
            stats: Arc::clone(stats),
            is_busy: Box::new(move || busy.foreground().is_busy(Duration::ZERO)),
        });
    }
    let mut parts = cow(manifest, cache, bytes_max, on_disk(attached), told);
    parts.native = native;
    parts.lost = lost;
    parts.install = install;
    Ok(parts)
}

/// Whether all of a version is on the machine's own disk: nobody else has it now.
fn must_be_whole<F: Fetch + 'static>(
    attached: &Attached<F>,
    order: &BootOrder,
    manifest: &Manifest,
) -> Result<(), String> {
    let spec = format!("{}:{}", order.image, order.version);
    let ground = attached.ground().ok_or_else(|| {
        format!(
            "no server answers, and the cache that has {spec} is not found on this machine's \
             disks: check the disk, or start this machine with its server"
        )
    })?;
    let why = match remember::lacking(ground.keeper.cache(), manifest) {
        Some(0) => return Ok(()),
        Some(lacking) => format!("{lacking} chunks lack"),
        None => "its manifest is not there".to_owned(),
    };
    Err(format!(
        "no server answers, and {spec} is not complete on {}: {why}; start this machine with its \
         server, until `rootstock node watch` says that its disk is complete",
        ground.device
    ))
}

/// How a machine's own disk does, as long as the agent reads it.
pub(crate) fn on_disk<F: Fetch + 'static>(attached: Arc<Attached<F>>) -> DiskOf {
    Box::new(move || {
        Some(OnDisk {
            report: attached.report()?,
            native_read_bytes: 0,
        })
    })
}

/// A version under writes that stay on the machine's own disk.
fn personal(writes: &Arc<disk::Writes>, disk: DiskOf, told: ToldOf) -> Parts {
    let filled = Arc::clone(writes);
    Parts {
        fill: Box::new(move || Some(filled.usage().fill())),
        disk,
        told,
        writes_on_disk: Some(Arc::clone(writes)),
        // They wait for the disk.
        ..Parts::new(writes.volume.clone(), Writes::Pooled)
    }
}

/// What writes may take of memory.
pub(crate) fn writes_bytes_max(order: &BootOrder) -> u64 {
    let part = || memory_bytes("MemTotal:") / OVERLAY_PART;
    order.overlay_bytes_max.unwrap_or_else(part)
}

fn cow<S: ChunkSource + 'static>(
    manifest: Manifest,
    cache: Arc<ChunkCache<S>>,
    bytes_max: u64,
    disk: DiskOf,
    told: ToldOf,
) -> Parts {
    let device = Arc::new(CowDisk::new(
        VersionDisk::new(manifest, cache),
        overlay(bytes_max),
    ));
    let filled = Arc::clone(&device);
    Parts {
        fill: Box::new(move || Some(filled.fill())),
        disk,
        told,
        ..Parts::new(device, Writes::AtOnce)
    }
}

fn overlay(bytes_max: u64) -> Overlay {
    match ZramSlots::create(bytes_max) {
        Ok(zram) => Overlay::new(Box::new(zram.slots), zram.slots_max, bytes_max),
        Err(error) => {
            console::info(format_args!(
                "writes stay uncompressed in memory: the kernel gives no zram ({error})"
            ));
            let slots = bytes_max / rootstock_core::BLOCK_BYTES;
            let slots = slots.min(u64::from(u32::MAX)) as u32;
            Overlay::new(Box::new(MemorySlots::new()), slots, bytes_max)
        }
    }
}

/// Starts the engine and gives the kernel the other end.
fn attach(
    device: Arc<dyn BlockDevice>,
    stats: Arc<Stats>,
    writes: Writes,
    size_bytes: u64,
) -> io::Result<thread::JoinHandle<io::Result<()>>> {
    let (ours, kernels) = UnixStream::pair()?;
    let engine = Engine::new(device, stats, writes, ours.try_clone()?)?;
    let engine = thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || engine.run(ours))?;
    nbd::connect(kernels.as_fd(), size_bytes, engine::FLAGS)?;
    Ok(engine)
}

/// Makes this process outlive what ends others. What an old kernel lacks is
/// done without.
pub(crate) fn survive() {
    sys::ignore_signals();
    let soft = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            console::info(format_args!("{what} is not to be had: {error}"));
        }
    };
    let _ = rustix::process::setsid();
    soft("an own control group", own_group());
    soft(
        "protection from the kernel's memory killer",
        fs::write("/proc/self/oom_score_adj", "-1000"),
    );
    soft("the mark of an I/O flusher", sys::become_io_flusher());
    // As pages are touched: stacks and buffers are mostly never filled.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    soft(
        "locked memory",
        rustix::mm::mlockall(flags).map_err(Into::into),
    );
    // The paths of this process stay those of the first stage, which will be
    // empty; from here the image's init is found when it runs.
    soft("/run", env::set_current_dir("/run"));
}

/// A control group of its own: systemd moves what it finds in the root group to
/// its own scope, and ends with it. The group stays when the mount is gone, so
/// that an image with the older hierarchy finds `/sys/fs/cgroup` as it expects.
fn own_group() -> io::Result<()> {
    const MOUNT: &str = "/run/rootstock/cgroup";
    fs::create_dir_all(MOUNT)?;
    rustix::mount::mount("cgroup2", MOUNT, "cgroup2", MountFlags::empty(), None)?;
    let group = format!("{MOUNT}/rootstock-agent");
    let moved = fs::create_dir_all(&group).and_then(|()| {
        fs::write(
            format!("{group}/cgroup.procs"),
            std::process::id().to_string(),
        )
    });
    if moved.is_ok() {
        // `SurviveFinalKillSignal=`, systemd 255 and later.
        let _ = File::open(&group).map(|directory| {
            rustix::fs::fsetxattr(
                &directory,
                "user.survive_final_kill_signal",
                b"1",
                rustix::fs::XattrFlags::empty(),
            )
        });
    }
    rustix::mount::unmount(MOUNT, UnmountFlags::DETACH)?;
    let _ = fs::remove_dir(MOUNT);
    moved
}

/// A line of `/proc/meminfo`, in bytes.
pub(crate) fn memory_bytes(name: &str) -> u64 {
    meminfo(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
        name,
    )
}

/// A line of this text, in bytes; 0 when there is none.
pub(crate) fn meminfo(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

/// Enters an overlay's level into a report.
pub(crate) fn enter_fill(report: &mut NodeReport, fill: Option<Fill>) {
    if let Some(fill) = fill {
        report.overlay_used_bytes = fill.used_bytes;
        report.overlay_bytes_max = fill.bytes_max;
    }
}
