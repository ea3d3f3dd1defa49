//! What a machine that boots and its server say to each other: the node service.
//!
//! The boot token comes to the machine on its kernel's command line, is good for
//! one boot, and is given in once for a session. Every document a machine takes
//! orders from is signed with the site's key, which its first stage carries, so
//! that plain HTTP is enough where TLS is impossible; what is secret travels only
//! over TLS. Binary bodies are those of [`crate::record`].

use std::{collections::BTreeMap, fmt, str::FromStr};

use rootstock_core::{Digest, ImageName, VersionNumber, VersionSelector, VersionSpec};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use crate::{
    install::{InstallOrder, InstallReport},
    nfs::NfsPlace,
    personal::{CommitOrder, PersonalOrder},
    swarm::SwarmOrder,
};

/// Where a boot token is given in for a session.
pub const SESSION: &str = "/node/v1/session";
/// What this machine is to run: a [`BootOrder`], with its signature in
/// [`ORDER_SIGNATURE_HEADER`].
pub const ORDER: &str = "/node/v1/order";
/// The manifest of the version it runs, with its seal in
/// [`crate::SEAL_HEADER`]; with `?image=lab&version=3` that of the version it is
/// to run next.
pub const MANIFEST: &str = "/node/v1/manifest";
/// Chunks by id: ids in, records out, at most [`FETCH_IDS_MAX`] at once.
pub const CHUNKS: &str = "/node/v1/chunks";
/// What boots of this version read first, on machines like this one: 204 when
/// nobody knows. A machine sends its own boot's there too, once, with
/// [`COVERAGE_HEADER`]. docs/formats/trace.md has the bytes.
pub const TRACE: &str = "/node/v1/trace";
/// Chunks by id as one stream: ids in, records in their order out, at most
/// [`PACK_IDS_MAX`] at once.
pub const BOOT_PACK: &str = "/node/v1/boot-pack";
/// Chunks and pages by id, as little of them as can be: ids in, records out, as at
/// [`CHUNKS`]. `?from=lab:2` names a version whose chunks the machine has: a chunk
/// that can be made of its blocks comes as a delta, with the codec
/// [`crate::record::CODEC_DELTA`]. `?to=lab:3` is the version that is fetched: the
/// one it runs when absent, or the one it is to run next.
pub const DELTAS: &str = "/node/v1/deltas";
/// Steps of the boot, as they happen: [`Steps`].
pub const STEPS: &str = "/node/v1/steps";
/// How the machine does, now and then: [`NodeReport`].
pub const REPORT: &str = "/node/v1/report";
/// What may change while the machine runs: [`NodeControl`], answered when it is
/// another than the one numbered `after`, or after [`CONTROL_HOLD_SECONDS`].
pub const CONTROL: &str = "/node/v1/control";

/// The header that carries the site's signature (ed25519, hex) on the bytes of
/// an order.
pub const ORDER_SIGNATURE_HEADER: &str = "rootstock-signature";

/// The header that says, in thousandths, how much of what a boot read lay in the
/// chunks of the trace that it was given; absent when it was given none.
pub const COVERAGE_HEADER: &str = "rootstock-coverage";

/// The most ids of one boot pack: 2 GiB of raw chunks. A desktop's boot takes some
/// hundreds.
pub const PACK_IDS_MAX: usize = 8192;

/// The most ids in one fetch.
pub const FETCH_IDS_MAX: usize = 64;

/// The most steps in one request.
pub const STEPS_MAX: usize = 64;

/// How long a request for a changed [`NodeControl`] is held.
pub const CONTROL_HOLD_SECONDS: u32 = 25;

/// The largest order, in bytes: identity and plug-in files included.
pub const ORDER_BYTES_MAX: usize = 1 << 20;

/// The largest inventory, in bytes of JSON.
pub const INVENTORY_BYTES_MAX: usize = 64 << 10;

/// Asks for a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionCreate {
    /// The boot token from the kernel's command line.
    pub token: String,
    /// The address of the card it booted from, as `52:54:00:12:34:56`.
    pub mac: String,
    /// The SMBIOS UUID, where the machine has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// The agent's release.
    pub release: String,
    /// What the machine is made of.
    #[serde(default)]
    pub inventory: Inventory,
}

/// A session, or the word to wait for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum SessionState {
    /// The machine may go on.
    Open {
        /// The bearer secret of all further requests of this boot.
        session: String,
        /// The machine's name.
        node: String,
    },
    /// An administrator has to approve the machine first: ask again with the
    /// same token, which is not used up.
    Held {
        /// What to show on the console.
        message: String,
        /// When to ask again.
        retry_seconds: u32,
    },
}

/// What a machine is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Inventory {
    /// Its maker, from SMBIOS.
    pub vendor: String,
    /// Its model, from SMBIOS.
    pub product: String,
    /// Its serial number, from SMBIOS.
    pub serial: String,
    /// `bios` or `uefi`.
    pub firmware: String,
    /// Whether Secure Boot is on, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<bool>,
    /// The processor's name for itself.
    pub cpu: String,
    /// Logical processors.
    pub cpu_count: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Disks, none of which was written to.
    pub disks: Vec<DiskFacts>,
    /// Network cards.
    pub nics: Vec<NicFacts>,
    /// Graphics cards, as `vendor:device` of PCI in hex.
    pub graphics: Vec<String>,
}

/// A disk of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct DiskFacts {
    /// The kernel's name, such as `sda`.
    pub name: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Its size.
    pub size_bytes: u64,
}

/// A network card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NicFacts {
    /// The kernel's name, such as `enp1s0`.
    pub name: String,
    /// Its address.
    pub mac: String,
    /// Its driver.
    pub driver: String,
    /// Link speed, when there is a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed_mbit: Option<u32>,
}

/// How a machine treats its root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeMode {
    /// Chunks on demand from the server, writes in memory: every boot is fresh.
    #[default]
    #[serde(alias = "frozen")]
    Diskless,
    /// All of the image goes to memory first; then no server is needed.
    Ram,
    /// Writes stay: in the machine's own volume on the server, or on its own disk.
    Personal,
    /// As diskless, while the image is laid out on a disk of the machine's own, which
    /// then boots without us.
    Install,
    /// It boots without us, and holds its image for others of the swarm
    /// (`rootstock-agent hold`).
    Hold,
    /// It runs no agent: its disk is a volume on the server, over iSCSI, and what it
    /// writes stays.
    Iscsi,
    /// The same, but every boot begins with the image as it is.
    IscsiFrozen,
    /// Files come from the server over NFS, writes stay in memory: every boot is fresh.
    Nfs,
}

/// What a machine is to run. The bytes on the wire are what is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootOrder {
    /// The session this order is for: an old order does not fit a new boot.
    pub boot: String,
    /// The machine's name.
    pub node: String,
    /// How it treats its root.
    pub mode: NodeMode,
    /// The image.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// Its version.
    #[schema(value_type = u32)]
    pub version: VersionNumber,
    /// The manifest's id.
    #[schema(value_type = String)]
    pub manifest: Digest,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Where the root is on the disk.
    pub root: RootPlace,
    /// `personal`: where the volume is served, and as which export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumePlace>,
    /// `personal`, without a volume: how the machine keeps what it writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personal: Option<PersonalOrder>,
    /// `nfs`: where the root is mounted from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nfs: Option<NfsPlace>,
    /// Base URLs of the node service to fetch chunks from, best first, such as
    /// `http://10.0.0.1:8480`.
    pub chunk_urls: Vec<String>,
    /// What writes may take of the machine's memory; a part of it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay_bytes_max: Option<u64>,
    /// Memory for decompressed chunks.
    pub cache_bytes: u64,
    /// Which of its own disks the machine keeps chunks on.
    #[serde(default)]
    #[schema(value_type = String)]
    pub cache: CacheChoice,
    /// What it may take of that disk; all of the cache when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_disk_bytes_max: Option<u64>,
    /// That the version is to be laid out on a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub install: Option<InstallOrder>,
    /// How it fetches what nobody has asked for yet, until it is told otherwise.
    #[serde(default)]
    pub fill: FillOrder,
    /// How it takes part in the swarm, until it is told otherwise; it does not when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swarm: Option<SwarmOrder>,
    /// Paths of the root that lie on a file system of the machine's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub keep: Vec<KeptPath>,
    /// Seconds between reports.
    pub report_seconds: u32,
    /// What says that its system works, once it is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// Whether a failure offers a shell of the image on the console.
    #[serde(default)]
    pub rescue_shell: bool,
    /// Who the machine is.
    pub identity: Identity,
}

/// A command of the image that says whether its system works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// For the image's `/bin/sh`, as root; it passes when it ends with 0.
    pub command: String,
    /// How long the boot has not failed while it does not pass.
    pub limit_seconds: u32,
}

/// Which of its own disks a machine keeps chunks on: `auto`, `none`, or a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CacheChoice {
    /// A disk or partition that was prepared for it, if there is one.
    #[default]
    Auto,
    /// No disk is touched.
    None,
    /// This one, such as `/dev/sda3` or `/dev/disk/by-id/...`, which must have been
    /// prepared for it too.
    Device(String),
}

/// Longest name of a device, in bytes.
const DEVICE_BYTES_MAX: usize = 255;

impl fmt::Display for CacheChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::None => "none",
            Self::Device(path) => path,
        })
    }
}

impl FromStr for CacheChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            path if is_device(path) => Ok(Self::Device(path.to_owned())),
            _ => Err("write auto, none, or a device such as /dev/sda3".to_owned()),
        }
    }
}

/// Whether this is the path of a device.
pub(crate) fn is_device(path: &str) -> bool {
    path.len() <= DEVICE_BYTES_MAX
        && path
            .strip_prefix("/dev/")
            .is_some_and(|name| !name.is_empty())
        && path.bytes().all(|byte| byte.is_ascii_graphic())
        && path.split('/').all(|part| part != "..")
}

impl Serialize for CacheChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CacheChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Longest path that is kept, in bytes: it becomes one name, with room for an end.
const KEPT_PATH_BYTES_MAX: usize = 120;

/// A path of a root that is to outlive it, such as `/home`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptPath(String);

impl KeptPath {
    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name that it has among others that are kept.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.0[1..].replace('%', "%25").replace('/', "%2f")
    }
}

impl fmt::Display for KeptPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for KeptPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = || text.split('/').skip(1);
        let is_path = text.starts_with('/')
            && text.len() <= KEPT_PATH_BYTES_MAX
            && text.bytes().all(|byte| byte.is_ascii_graphic())
            && parts().all(|part| !matches!(part, "" | "." | ".."));
        // The system's own, which the machine makes anew each time.
        let is_own = parts()
            .next()
            .is_some_and(|first| matches!(first, "dev" | "proc" | "run" | "sys"));
        if is_path && !is_own {
            Ok(Self(text.to_owned()))
        } else {
            Err("write absolute paths such as /home or /var/lib/docker".to_owned())
        }
    }
}

impl Serialize for KeptPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeptPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// How a machine fetches what nobody has asked for yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct FillOrder {
    /// Why it fetches nothing ahead now; it does when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// The most it may take of the network, in Mbit/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mbit_max: Option<u32>,
}

/// What may change while a machine runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NodeControl {
    /// Another one has another number; the first of a session is asked for with 0.
    pub number: u64,
    /// How it fetches ahead.
    pub fill: FillOrder,
    /// How it takes part in the swarm; it does not when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swarm: Option<SwarmOrder>,
    /// What its next boot is to run, when that is not what runs now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<NextVersion>,
    /// That it is to start anew. Its session is of one boot, so that only that one
    /// obeys, and once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reboot: Option<RebootOrder>,
    /// That it is to send what it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<CommitOrder>,
}

/// How a machine is to start anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RebootOrder {
    /// By its own init, in order.
    Orderly,
    /// The same, once nobody is logged in, if that holds still.
    Idle,
    /// By the kernel, when its init does not do it in time.
    Forced,
}

/// A version that a machine will run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NextVersion {
    /// The image.
    #[schema(value_type = String)]
    pub image: ImageName,
    /// Its version.
    #[schema(value_type = u32)]
    pub version: VersionNumber,
    /// The manifest's id.
    #[schema(value_type = String)]
    pub manifest: Digest,
}

impl NextVersion {
    /// It as it is written, such as `lab:8`.
    #[must_use]
    pub fn spec(&self) -> VersionSpec {
        VersionSpec {
            image: self.image.clone(),
            selector: VersionSelector::Number(self.version),
        }
    }
}

/// Where the root file system is on the disk; nowhere where a machine has none of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RootPlace {
    /// The partition's number; 0 is the whole disk.
    pub partition: u32,
    /// The kernel's name of the file system, such as `ext4`.
    pub fs: String,
    /// Mount options, such as `subvol=@`.
    #[serde(default)]
    pub options: String,
    /// What `switch_root` runs; `/sbin/init` unless an image says otherwise.
    pub init: String,
}

/// A volume that the server exports to one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumePlace {
    /// `HOST:PORT` of the NBD server.
    pub address: String,
    /// The export's name, known to this boot alone.
    pub export: String,
    /// Whether it speaks TLS with the site's authority.
    pub tls: bool,
}

/// Who a machine is: what is its own in a root that all share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Identity {
    /// Its host name.
    pub host_name: String,
    /// Its domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Its `/etc/machine-id`: 32 hex digits.
    pub machine_id: String,
    /// Lines for `/etc/hosts`.
    pub hosts: Vec<String>,
    /// Name servers for `/etc/resolv.conf`.
    pub name_servers: Vec<String>,
    /// Files to be written into the root: SSH host keys, what plug-ins give.
    pub files: Vec<NodeFile>,
    /// Anything else the image's own scripts may want, as
    /// `/run/rootstock/settings.json`.
    pub settings: BTreeMap<String, String>,
}

/// A file for a machine's root.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeFile {
    /// Its absolute path, without `..`.
    pub path: String,
    /// Its permissions, such as `0o600` as a number.
    pub mode: u32,
    /// Its contents.
    pub text: String,
}

/// Contents may be a private key, and a log is no place for one.
impl fmt::Debug for NodeFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeFile")
            .field("path", &self.path)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// The way of a boot, in order. A transcript is made of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BootStep {
    /// The firmware asked for an address or a boot file.
    Discovered,
    /// We offered.
    Offered,
    /// It took the offer.
    Acknowledged,
    /// A boot program was sent by TFTP or HTTP.
    FileServed,
    /// iPXE or GRUB fetched its script.
    ScriptServed,
    /// The kernel was sent.
    KernelServed,
    /// The first stage was sent.
    InitrdServed,
    /// The first stage runs.
    FirstStage,
    /// An administrator has to approve the machine.
    Held,
    /// It has a session.
    Session,
    /// The network is set up in the first stage.
    Network,
    /// Its firmware reads its disk over iSCSI.
    Iscsi,
    /// The device answers.
    DeviceUp,
    /// The root is mounted.
    RootMounted,
    /// The image's own init runs.
    Switched,
    /// The system says it is up.
    Up,
    /// It starts what is installed on its own disk, and says nothing more.
    OwnDisk,
    /// The installer of a distribution runs on it.
    Installer,
    /// That installer is done.
    Installed,
    /// It was shut down or went silent.
    Gone,
    /// It failed.
    Failed,
}

/// Steps, with when they happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Steps {
    /// In order.
    pub steps: Vec<StepReport>,
}

/// A step as the machine reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepReport {
    /// Which.
    pub step: BootStep,
    /// How long the machine's kernel had been running, in milliseconds.
    pub uptime_ms: u64,
    /// Bytes moved up to here.
    #[serde(default)]
    pub bytes: u64,
    /// For people: what was done, or why it failed.
    #[serde(default)]
    pub detail: String,
}

/// How a machine does. Counters run from the start of the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct NodeReport {
    /// How long its kernel has been running.
    pub uptime_seconds: u64,
    /// Bytes its system read from the device.
    pub read_bytes: u64,
    /// Bytes of frames that came from a server.
    pub fetched_bytes: u64,
    /// Chunks found in memory.
    pub cache_hits: u64,
    /// Chunks that had to be fetched.
    pub cache_misses: u64,
    /// The time that reads waited for the network, together.
    pub stall_ms: u64,
    /// The longest of these waits.
    pub stall_worst_ms: u64,
    /// What writes take now.
    pub overlay_used_bytes: u64,
    /// What they may take.
    pub overlay_bytes_max: u64,
    /// Whether the image's own init says that the system is up, and its check passes.
    pub up: bool,
    /// How many people are logged in; absent while the image's own system does not
    /// run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<u32>,
    /// Bytes of chunks that came from the machine's own disk.
    pub local_bytes: u64,
    /// How the disk that it keeps chunks on does; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_cache: Option<DiskCacheReport>,
    /// How it lays its image out on a disk; absent when it is not to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub install: Option<InstallReport>,
}

/// How the disk does that a machine keeps chunks on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct DiskCacheReport {
    /// The device.
    pub device: String,
    /// Why it is not used any more; it is when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off: Option<String>,
    /// Bytes of chunks that it can hold.
    pub bytes_max: u64,
    /// Bytes of chunks that it holds, of all versions.
    pub used_bytes: u64,
    /// Bytes of the running version that are not zeros; 0 while that is not known.
    pub version_bytes: u64,
    /// How many of them are on the disk.
    pub version_local_bytes: u64,
    /// Bytes of the root that its kernel reads without the agent.
    pub native_bytes: u64,
    /// Frames fetched ahead, in bytes per second over the last interval.
    pub fill_bytes_per_second: u64,
    /// The estimate until the version is complete, while it is being fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_to_complete: Option<u64>,
    /// How far the version is that is to run next; absent when that is what runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<NextReport>,
    /// What it starts from this disk; absent when the disk was not divided for that, or
    /// nothing is known yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<StartReport>,
}

/// What a machine starts from its own disk when no server answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StartReport {
    /// The version, as `lab:8`; absent when this boot put none there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub version: Option<VersionSpec>,
    /// Why it is not the newest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// How far a version is that a machine is to run next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NextReport {
    /// The version, as `lab:8`.
    #[schema(value_type = String)]
    pub version: VersionSpec,
    /// Bytes that came over the network for it in this boot.
    pub fetched_bytes: u64,
    /// Whether all of it is on the disk.
    pub complete: bool,
    /// Why it does not come, while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// The answer to a report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ReportAnswer {
    /// Seconds to the next report.
    pub report_seconds: u32,
}

/// What a machine needs to know of its site: the first stage carries it as
/// `/rootstock/site.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteFile {
    /// The format: 1.
    pub format: u32,
    /// The site's public key (ed25519), in hex: orders and seals are signed with it.
    pub public_key: String,
    /// The authority that the node service's certificate comes from, PEM.
    pub authority_pem: String,
    /// When the first stage was made, seconds since 1970: a clock that is behind
    /// is set to it before certificates are looked at.
    pub made_seconds: i64,
}
