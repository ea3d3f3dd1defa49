//! A disk over iSCSI for a system whose own initrd cannot reach it.
//!
//! This program is added to the image's own initrd, and the kernel starts it before that
//! one's init (`rdinit=`). It finds the card that the firmware used and the disk that the
//! firmware has logged in to, by the table that the firmware left (iBFT), logs in with the
//! kernel's initiator, and becomes the initrd's own init, for which the disk is simply
//! there. The process that logged in stays, logs in again whenever the connection is lost,
//! and leaves that to iscsid where the system has one. docs/formats/first-stage.md
//! describes what is added.

use std::convert::Infallible;
use std::env;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_iscsi::initiator::{Agreed, Initiator, InitiatorError, Step, Wish};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::system::{RebootCommand, reboot};
use serde::{Deserialize, Serialize};

use crate::console;
use crate::control::{Lines, send};
use crate::modules::Modules;
use crate::nic::{self, Nic};
use crate::server::{NAME, survive};
use crate::switch;
use crate::uevent::Uevents;
use ibft::Ibft;
use others::Others;
use transport::{Event, Parameter, Transport};

mod ibft;
mod others;
mod transport;

/// Where this program lies in the initrd that it is added to.
pub(crate) const PROGRAM: &str = "/rootstock/iscsi";
/// The role of the process that logs in.
pub(crate) const ROLE: &str = "iscsi";
/// Beside it: its modules, and firmware for cards.
const MODULES: &str = "/rootstock/modules";
const FIRMWARE: &str = "/rootstock/firmware";
/// Where the kernel looks for firmware first (`firmware_class.path`).
const FIRMWARE_PATH: &str = "/sys/module/firmware_class/parameters/path";
/// The initrd's own init.
const INIT: &str = "/init";

/// The card's driver may need firmware and a slow bus.
const NIC_LIMIT: Duration = Duration::from_secs(60);
/// The kernel asks the disk what it is, which takes some commands.
const DISK_LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Time to read why, before the machine starts anew.
const REBOOT_PAUSE: Duration = Duration::from_secs(15);

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Between a request of a login and its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// How long a machine that starts tries to log in.
const LOGIN_LIMIT: Duration = Duration::from_secs(120);
/// How often the kernel is asked whether what it did not tell has happened.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Portals that send on to another one, one after the other.
const MOVES_MAX: u32 = 4;

/// Silence, in seconds, after which the kernel asks for a sign of life, and how long it
/// waits for one.
const PING_AFTER_SECONDS: u32 = 10;
const PING_SECONDS: u32 = 20;

/// What the process that logged in says.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// The disk is there.
    Ready {
        /// Its name.
        disk: String,
    },
    /// There will be no disk.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Makes the disk ready and becomes the initrd's own init, or starts the machine anew.
pub(crate) fn run() -> ! {
    let reason = match catch_unwind(AssertUnwindSafe(begin)) {
        Ok(Err(reason)) => reason,
        Err(_) => "a fault inside the agent".to_owned(),
    };
    console::error(format_args!(
        "FAILED to reach the disk over iSCSI: {reason}; next: the machine starts anew in {} s",
        REBOOT_PAUSE.as_secs()
    ));
    thread::sleep(REBOOT_PAUSE);
    // The first process must not end: the kernel would panic.
    loop {
        let _ = reboot(RebootCommand::Restart);
        thread::sleep(REBOOT_PAUSE);
    }
}

fn begin() -> Result<Infallible, String> {
    switch::mount_basics().map_err(|error| error.to_string())?;
    console::open();
    console::info(concat!("a disk over iSCSI, ", env!("CARGO_PKG_VERSION")));
    // A kernel without it has its firmware elsewhere, or needs none.
    let _ = fs::write(FIRMWARE_PATH, FIRMWARE);
    let directory = Path::new(MODULES);
    let mut modules = Modules::open(directory);
    let list = fs::read_to_string(directory.join("load")).unwrap_or_default();
    for name in list.split_ascii_whitespace() {
        modules.load(name);
    }
    let ibft = Ibft::read().map_err(|error| console::chain(&error))?;
    network(&ibft, &mut modules)?;
    let disk = log_in()?;
    console::info(format_args!("{} is {disk}", ibft.target));
    // Nothing at all would not be written.
    let _ = fs::write(FIRMWARE_PATH, "\0");
    switch::leave_basics();
    let error = Command::new(INIT).args(env::args_os().skip(1)).exec();
    Err(format!("{INIT} cannot be started: {error}"))
}

/// Brings the card up that the firmware used, with the address that it had.
fn network(ibft: &Ibft, modules: &mut Modules) -> Result<(), String> {
    let events = Uevents::open().map_err(|error| format!("the kernel tells no events: {error}"))?;
    let find = || nic::choose(&nic::list(Path::new("/sys/class/net")), Some(ibft.mac)).cloned();
    let card: Nic = events
        .settle(modules, NIC_LIMIT, find)
        .ok_or_else(|| format!("there is no network card {}", ibft.mac))?;
    let up = card.bring_up(nic::CARRIER_LIMIT);
    let configured = up.and_then(|()| card.configure(&ibft.address));
    configured.map_err(|error| format!("{} cannot be used: {error}", card.name))?;
    let (address, prefix) = (ibft.address.address, ibft.address.prefix_bits);
    console::info(format_args!("{} {address}/{prefix}", card.name));
    Ok(())
}

/// Starts the process that logs in, and waits until it has.
fn log_in() -> Result<String, String> {
    let failed = |error: io::Error| format!("the initiator cannot be started: {error}");
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    Command::new("/proc/self/exe")
        .arg0(NAME)
        .arg(ROLE)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    match Lines::new(&ours).next().map_err(failed)? {
        Some(Said::Ready { disk }) => Ok(disk),
        Some(Said::Failed { reason }) => Err(reason),
        None => Err("the initiator ended".to_owned()),
    }
}

/// Logs in, and again whenever the connection is lost; it tells of the first time on
/// `control`.
pub(crate) fn serve(control: &UnixStream) -> io::Result<()> {
    console::open();
    survive();
    let began = Session::begin().and_then(|session| {
        let disk = session.disk()?;
        Ok((session, disk))
    });
    match began {
        Ok((session, disk)) => {
            send(control, &Said::Ready { disk })?;
            session.keep()
        }
        Err(reason) => send(control, &Said::Failed { reason }),
    }
}

/// The kernel's session with the disk.
struct Session {
    ibft: Ibft,
    transport: Transport,
    /// What else can be seen of the session, and who else sees it.
    others: Others,
    isid: [u8; 6],
    session: u32,
    connection: u32,
    host: u32,
    /// The socket is the kernel's; this end keeps it from being closed.
    stream: Option<TcpStream>,
}

/// Why a connection is not there.
enum Lack {
    /// Another try may go well.
    Passing(String),
    /// It may not.
    Lasting(String),
}

impl From<io::Error> for Lack {
    fn from(error: io::Error) -> Self {
        Self::Passing(error.to_string())
    }
}

impl Lack {
    fn into_text(self) -> String {
        match self {
            Self::Passing(text) | Self::Lasting(text) => text,
        }
    }
}

impl Session {
    fn begin() -> Result<Self, String> {
        let kernel = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| format!("the kernel's initiator {what}: {error}")
        };
        let ibft = Ibft::read().map_err(|error| console::chain(&error))?;
        let mut transport = Transport::open().map_err(kernel("is not there"))?;
        let (session, host) = transport
            .create_session()
            .map_err(kernel("makes no session"))?;
        let connection = transport
            .create_connection(session)
            .map_err(kernel("makes no connection"))?;
        // Of the random kind (RFC 7143, section 11.12.5).
        let mut isid = [0x80, 0, 0, 0, 0, 0];
        getrandom(&mut isid[1..4], GetRandomFlags::empty())
            .map_err(|error| format!("there are no random numbers: {error}"))?;
        let mut begun = Self {
            ibft,
            transport,
            others: Others::open(session),
            isid,
            session,
            connection,
            host,
            stream: None,
        };
        let began = Instant::now();
        let mut pause = PAUSE_MIN;
        loop {
            match begun.connect() {
                Ok(()) => return Ok(begun),
                Err(Lack::Passing(why)) if began.elapsed() < LOGIN_LIMIT => {
                    console::warn(format_args!("{why}; trying again"));
                }
                Err(lack) => return Err(lack.into_text()),
            }
            let _ = begun.transport.stop(begun.session, begun.connection);
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Connects, logs in, and hands the connection to the kernel.
    fn connect(&mut self) -> Result<(), Lack> {
        let mut portal = self.ibft.portal;
        for _ in 0..MOVES_MAX {
            match self.connect_to(portal)? {
                Ok(agreed) => return self.start(&agreed),
                Err(moved) => {
                    portal = moved;
                    // The kernel takes one socket after the other.
                    self.transport.stop(self.session, self.connection)?;
                }
            }
        }
        let text = format!("{portal} sends on to others, and those as well");
        Err(Lack::Passing(text))
    }

    /// Connects and logs in; it may be sent on to another portal.
    fn connect_to(&mut self, portal: SocketAddr) -> Result<Result<Agreed, SocketAddr>, Lack> {
        let lost = |error: io::Error| Lack::Passing(format!("{portal} cannot be reached: {error}"));
        let stream = TcpStream::connect_timeout(&portal, CONNECT_LIMIT).map_err(lost)?;
        stream.set_nodelay(true)?;
        let (session, connection) = (self.session, self.connection);
        self.transport.bind(session, connection, &stream)?;
        self.stream = Some(stream);
        self.describe()?;
        let wish = Wish {
            initiator: self.ibft.initiator.clone(),
            target: self.ibft.target.clone(),
            isid: self.isid,
            tsih: 0,
            secret: self.ibft.secret.clone(),
        };
        let (mut login, mut request) = Initiator::begin(wish);
        loop {
            self.transport
                .send_pdu(session, connection, &request.header, &request.text)?;
            let answer = self.transport.pdu(session, connection, ANSWER_LIMIT)?;
            let frame = answer
                .frame()
                .ok_or_else(|| Lack::Passing(format!("{portal} gave half an answer")))?;
            match login.receive(&frame) {
                Ok(Step::Send(next)) => request = next,
                Ok(Step::Done(agreed)) => return Ok(Ok(*agreed)),
                Err(InitiatorError::Moved { address }) => {
                    let moved = address.parse();
                    return moved.map(Err).map_err(|_| {
                        Lack::Passing(format!(
                            "{portal} sends on to {address}, which is no address"
                        ))
                    });
                }
                Err(error) => {
                    let text = format!("{portal}: {error}");
                    return Err(if error.may_pass() {
                        Lack::Passing(text)
                    } else {
                        Lack::Lasting(text)
                    });
                }
            }
        }
    }

    /// What the system's own daemon and its tools find of the session.
    fn describe(&mut self) -> io::Result<()> {
        let (user, password) = match &self.ibft.secret {
            Some((user, secret)) => (user.clone(), String::from_utf8_lossy(secret).into_owned()),
            None => (String::new(), String::new()),
        };
        let portal = self.ibft.portal;
        for (parameter, value) in [
            (Parameter::TargetName, self.ibft.target.clone()),
            (Parameter::InitiatorName, self.ibft.initiator.clone()),
            (Parameter::PersistentAddress, portal.ip().to_string()),
            (Parameter::PersistentPort, portal.port().to_string()),
            (Parameter::UserName, user),
            (Parameter::Password, password),
            (Parameter::PingTimeout, PING_SECONDS.to_string()),
            (Parameter::ReceiveTimeout, PING_AFTER_SECONDS.to_string()),
            // Nothing that uses the root is told that it is gone: it waits.
            (Parameter::RecoveryTimeout, "-1".to_owned()),
        ] {
            if !value.is_empty() {
                self.set(parameter, &value)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, parameter: Parameter, value: &str) -> io::Result<()> {
        self.transport
            .set(self.session, self.connection, parameter, value)
    }

    /// Has the kernel go on with a connection that is logged in.
    fn start(&mut self, agreed: &Agreed) -> Result<(), Lack> {
        let operational = &agreed.operational;
        let flag = u32::from;
        for (parameter, value) in [
            (
                Parameter::ReceiveSegment,
                operational.initiator_segment_bytes_max,
            ),
            (Parameter::SendSegment, agreed.target_segment_bytes_max),
            (Parameter::HeaderDigest, flag(operational.digests.header)),
            (Parameter::DataDigest, flag(operational.digests.data)),
            (Parameter::InitialR2t, flag(operational.initial_r2t)),
            (Parameter::MaxR2t, operational.outstanding_r2t_max),
            (Parameter::ImmediateData, flag(operational.immediate_data)),
            (Parameter::FirstBurst, operational.first_burst_bytes_max),
            (Parameter::MaxBurst, operational.burst_bytes_max),
            (Parameter::PduInOrder, flag(operational.data_pdu_in_order)),
            (
                Parameter::SequenceInOrder,
                flag(operational.data_sequence_in_order),
            ),
            (Parameter::RecoveryLevel, 0),
            (Parameter::StatusNumber, agreed.status_number),
            (Parameter::PortalGroup, u32::from(agreed.portal_group)),
        ] {
            self.set(parameter, &value.to_string())?;
        }
        self.transport.start(self.session, self.connection)?;
        Ok(())
    }

    /// Has the kernel look at the disk, and gives its name.
    fn disk(&self) -> Result<String, String> {
        let (host, lun) = (self.host, self.ibft.lun);
        // Channel, target, unit.
        fs::write(
            format!("/sys/class/scsi_host/host{host}/scan"),
            format!("- - {lun}"),
        )
        .map_err(|error| format!("the kernel does not look for the disk: {error}"))?;
        let began = Instant::now();
        while began.elapsed() < DISK_LIMIT {
            if let Some(name) = disk_of(host, self.session) {
                return Ok(name);
            }
            thread::sleep(LOOK_EVERY);
        }
        Err(format!(
            "{} has no disk with the number {lun}",
            self.ibft.target
        ))
    }

    /// Logs in again whenever the connection is lost.
    fn keep(mut self) -> io::Result<()> {
        loop {
            let lost = match self.transport.event(Some(LOOK_AGAIN))? {
                Some(Event::Lost { session, .. }) => session == self.session,
                Some(_) => false,
                // The kernel drops events that it has no memory for.
                None => self.others.has_failed(),
            };
            if lost && !self.recover() {
                return Ok(());
            }
        }
    }

    /// Logs in again; false when the system's own daemon does.
    fn recover(&mut self) -> bool {
        let portal = self.ibft.portal;
        console::warn(format_args!(
            "the disk at {portal} is away; reads and writes wait"
        ));
        let mut pause = PAUSE_MIN;
        let mut last = String::new();
        loop {
            if self.others.have_iscsid() {
                return false;
            }
            // The kernel may have done so by itself.
            let _ = self.transport.stop(self.session, self.connection);
            match self.connect() {
                Ok(()) => {
                    console::info(format_args!("the disk at {portal} is back"));
                    return true;
                }
                Err(lack) => {
                    let why = lack.into_text();
                    if why != last {
                        console::warn(format_args!("{why}; trying again"));
                        last = why;
                    }
                }
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// The disk of a session, once the kernel knows it.
fn disk_of(host: u32, session: u32) -> Option<String> {
    let session = format!("/sys/class/scsi_host/host{host}/device/session{session}");
    let below = |path: &Path, start: &str| {
        let entries = fs::read_dir(path).ok()?.flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.find(|name| name.starts_with(start))
    };
    let session = Path::new(&session);
    let target = session.join(below(session, "target")?);
    let unit = target.join(below(&target, &format!("{host}:"))?);
    below(&unit.join("block"), "")
}
