//! The first stage: from the kernel's first process to the image's own init.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rootstock_api::boot::{BootOrder, BootStep, SessionState, StepReport, Steps};
use rootstock_core::units::HumanBytes;
use rustix::system::{RebootCommand, reboot};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::cmdline::{CommandLine, Ipv4Config};
use crate::confined::Root;
use crate::console;
use crate::control::{FromServer, Join, Lines, Start, ToServer, send};
use crate::identity::Link;
use crate::modules::Modules;
use crate::nic::{self, Nic};
use crate::order::{Site, TrustError};
use crate::report::step;
use crate::service::{CallError, Service};
use crate::swarm::membership::Membership;
use crate::uevent::Uevents;
use crate::{dhcp, identity, inventory, keep, nfs, server, switch};

mod guest;
mod local;

/// The card's driver may need firmware and a slow bus.
const NIC_LIMIT: Duration = Duration::from_secs(60);
/// Tries of what may pass, each after a longer pause, before the machine starts anew.
const TRIES_MAX: u32 = 12;
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Time to read why, before the machine starts anew.
const REBOOT_PAUSE: Duration = Duration::from_secs(15);
/// Between questions whether the machine was approved, whatever the server says.
const HELD_SECONDS_MAX: u32 = 60;

/// Where a boot stopped, and why.
struct Failure {
    step: BootStep,
    reason: String,
}

/// What a failure needs to be told and mended.
#[derive(Default)]
struct Told {
    /// The service with its session, and where it is.
    service: Option<(Service, String)>,
    /// Steps that were not told yet.
    steps: Vec<StepReport>,
    /// Whether there is a mounted root, and its administrator wants a shell.
    shell: bool,
    /// Ends the loading of drivers before their files go.
    drivers_stop: Arc<AtomicBool>,
}

/// Boots. Ends by becoming the image's init, or by starting the machine anew.
pub(crate) fn run() -> ! {
    let mut told = Told::default();
    let failure = match catch_unwind(AssertUnwindSafe(|| boot(&mut told))) {
        Ok(Err(failure)) => failure,
        Err(_) => Failure {
            step: BootStep::FirstStage,
            reason: "a fault inside the agent".to_owned(),
        },
    };
    fail(&told, &failure);
    // The first process must not end: the kernel would panic.
    loop {
        let _ = reboot(RebootCommand::Restart);
        thread::sleep(REBOOT_PAUSE);
    }
}

fn boot(told: &mut Told) -> Result<Infallible, Failure> {
    let first = |reason: String| Failure {
        step: BootStep::FirstStage,
        reason,
    };
    switch::mount_basics().map_err(|error| first(error.to_string()))?;
    console::open();
    console::info(concat!("first stage ", env!("CARGO_PKG_VERSION")));
    told.steps.push(step(BootStep::FirstStage, 0, ""));
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let line = CommandLine::parse(&line).map_err(|error| first(error.to_string()))?;
    let text = fs::read_to_string("/rootstock/site.json")
        .map_err(|error| first(format!("/rootstock/site.json cannot be read: {error}")))?;
    let site = Site::parse(&text).map_err(|error| first(error.to_string()))?;
    set_clock(site.file.made_seconds);

    let drivers = Drivers::load(told)?;
    let known = match (line.local.clone(), line.guest.clone()) {
        (Some(name), _) => local::begin(&line, &site, &name, drivers, told)?,
        (None, Some(url)) => guest::begin(&line, &site, &url, drivers, told)?,
        (None, None) => from_network(&line, &site, drivers, told)?,
    };
    let order = known.order.clone();
    let link = known.link.clone();
    let device = device(&line, &site, known, told)?;
    root(&order, link.as_ref(), told, &device)?;
    enter(&order, told, &device.control)
}

/// What a boot needs to know before it has a root.
struct Known {
    order: BootOrder,
    /// The manifest's bytes, checked.
    manifest: Vec<u8>,
    /// The card, with its address.
    link: Option<(Nic, Ipv4Config)>,
    /// Who knows of this boot.
    opened: Option<Opened>,
    /// How the machine asks for a session, while nobody does.
    join: Option<Join>,
    /// Whom it knew last, while nobody does.
    membership: Option<Membership>,
    /// What boots read, while no server says so.
    trace: Option<Vec<u8>>,
}

fn from_network(
    line: &CommandLine,
    site: &Site,
    mut drivers: Drivers,
    told: &mut Told,
) -> Result<Known, Failure> {
    let (nic, address) = network(line, &mut drivers, told)?;
    drivers.follow(told);
    let opened = session(line, site, &nic, told)?;
    let (order, manifest) = order(site, &opened)?;
    Ok(Known {
        order,
        manifest,
        link: Some((nic, address)),
        opened: Some(opened),
        join: None,
        membership: None,
        trace: None,
    })
}

/// A clock that is behind would refuse every certificate; one that was never set is.
fn set_clock(made_seconds: i64) {
    if clock_gettime(ClockId::Realtime).tv_sec < made_seconds {
        let made = Timespec {
            tv_sec: made_seconds,
            tv_nsec: 0,
        };
        match clock_settime(ClockId::Realtime, made) {
            Ok(()) => console::info("the clock was behind and is set to when this was made"),
            Err(error) => console::warn(format_args!("the clock cannot be set: {error}")),
        }
    }
}

/// The kernel's news of devices, and their drivers.
struct Drivers {
    uevents: Uevents,
    modules: Modules,
}

impl Drivers {
    /// Loads what the root needs, in order, before the rest.
    fn load(told: &Told) -> Result<Self, Failure> {
        debug_assert!(told.service.is_none(), "the network comes later");
        let release = rustix::system::uname();
        let directory =
            Path::new("/lib/modules").join(release.release().to_string_lossy().as_ref());
        let mut modules = Modules::open(&directory);
        let uevents = Uevents::open().map_err(|error| Failure {
            step: BootStep::Network,
            reason: format!("the kernel tells no events: {error}"),
        })?;
        let list = fs::read_to_string("/rootstock/modules.load").unwrap_or_default();
        for name in list.split_ascii_whitespace() {
            modules.load(name);
        }
        Ok(Self { uevents, modules })
    }

    /// Loads drivers of what is there and comes, until something is found.
    fn until<T>(&mut self, limit: Duration, find: impl FnMut() -> Option<T>) -> Option<T> {
        self.uevents.settle(&mut self.modules, limit, find)
    }

    /// The card that the machine booted from.
    fn nic(&mut self, line: &CommandLine, limit: Duration) -> Option<Nic> {
        let find = || nic::choose(&nic::list(Path::new("/sys/class/net")), line.boot_mac).cloned();
        self.until(limit, find)
    }

    /// Goes on with it beside the boot.
    fn follow(mut self, told: &Told) {
        let stop = Arc::clone(&told.drivers_stop);
        let drivers = move || self.uevents.follow(&mut self.modules, &stop);
        let follow = thread::Builder::new().name("drivers".to_owned());
        if let Err(error) = follow.spawn(drivers) {
            console::warn(format_args!(
                "drivers of slow disks are not loaded: {error}"
            ));
        }
    }
}

fn network(
    line: &CommandLine,
    drivers: &mut Drivers,
    told: &mut Told,
) -> Result<(Nic, Ipv4Config), Failure> {
    let failed = |reason: String| Failure {
        step: BootStep::Network,
        reason,
    };
    let nic = drivers
        .nic(line, NIC_LIMIT)
        .ok_or_else(|| failed(no_card(line)))?;
    let address = address(&nic, line, nic::CARRIER_LIMIT, &dhcp::WAITS)
        .map_err(|error| failed(error.to_string()))?;
    tell_address(&nic, &address, told);
    Ok((nic, address))
}

/// Brings a card up and gives it its address.
fn address(
    nic: &Nic,
    line: &CommandLine,
    link_limit: Duration,
    waits: &[Duration],
) -> io::Result<Ipv4Config> {
    nic.bring_up(link_limit)?;
    let address = match &line.address {
        Some(address) => address.clone(),
        None => dhcp::ask(nic, waits)?,
    };
    nic.configure(&address)
        .map_err(|error| io::Error::other(format!("{} takes no address: {error}", nic.name)))?;
    Ok(address)
}

fn tell_address(nic: &Nic, address: &Ipv4Config, told: &mut Told) {
    let text = format!("{} {}/{}", nic.name, address.address, address.prefix_bits);
    console::info(&text);
    told.steps.push(step(BootStep::Network, 0, text));
}

fn no_card(line: &CommandLine) -> String {
    let found = nic::list(Path::new("/sys/class/net"));
    let found: Vec<String> = found.iter().map(|nic| nic.mac.to_string()).collect();
    let found = match found.len() {
        0 => "none at all: the first stage may lack its driver or firmware".to_owned(),
        _ => found.join(", "),
    };
    match line.boot_mac {
        Some(mac) => format!("there is no network card {mac}; found: {found}"),
        None => format!("which network card to use is not told (BOOTIF=); found: {found}"),
    }
}

/// A service that knows this boot.
struct Opened {
    service: Service,
    url: String,
    session: String,
}

fn session(line: &CommandLine, site: &Site, nic: &Nic, told: &mut Told) -> Result<Opened, Failure> {
    let failed = |reason: String| Failure {
        step: BootStep::Session,
        reason,
    };
    let service = Service::new(&site.file.authority_pem)
        .map_err(|error| failed(format!("the site's authority is no certificate: {error}")))?;
    let ask = inventory::session_create(line.token.clone(), nic.mac);
    loop {
        let (url, state) = call(&line.urls, |url| service.open(url, &ask))
            .map_err(|error| failed(console::chain(&error)))?;
        match state {
            SessionState::Open { session, node } => {
                console::info(format_args!("this machine is {node}"));
                let service = service.with_session(&session);
                told.service = Some((service.clone(), url.clone()));
                told.steps.push(step(BootStep::Session, 0, node));
                return Ok(Opened {
                    service,
                    url,
                    session,
                });
            }
            SessionState::Held {
                message,
                retry_seconds,
            } => {
                // Shown on a quiet console, too: someone stands before it.
                console::error(&message);
                let seconds = retry_seconds.clamp(1, HELD_SECONDS_MAX);
                thread::sleep(Duration::from_secs(u64::from(seconds)));
            }
        }
    }
}

fn order(site: &Site, opened: &Opened) -> Result<(BootOrder, Vec<u8>), Failure> {
    let failed = |error: &dyn std::error::Error| Failure {
        step: BootStep::Session,
        reason: console::chain(error),
    };
    let urls = [opened.url.clone()];
    let (_, (bytes, signature)) =
        call(&urls, |url| opened.service.order(url)).map_err(|error| failed(&error))?;
    let order = site
        .order(&bytes, &signature, &opened.session)
        .map_err(|error: TrustError| failed(&error))?;
    let (_, (manifest, seal)) =
        call(&urls, |url| opened.service.manifest(url)).map_err(|error| failed(&error))?;
    site.manifest(&manifest, &seal, &order)
        .map_err(|error| failed(&error))?;
    Ok((order, manifest))
}

/// Calls the first URL that answers, again and again while it may pass.
fn call<T>(
    urls: &[String],
    mut one: impl FnMut(&str) -> Result<T, CallError>,
) -> Result<(String, T), CallError> {
    let mut pause = PAUSE_MIN;
    let mut tries = 0;
    loop {
        let url = &urls[tries as usize % urls.len()];
        match one(url) {
            Ok(answer) => return Ok((url.clone(), answer)),
            Err(error) if !error.may_pass() => return Err(error),
            Err(error) => {
                tries += 1;
                if tries >= TRIES_MAX {
                    return Err(error);
                }
                console::warn(format_args!(
                    "{}; trying again (try {tries} of {TRIES_MAX})",
                    console::chain(&error)
                ));
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The root's device, and who serves it.
struct Device {
    control: UnixStream,
    /// Where the root's file system is, when it is not on its partition.
    root: Option<String>,
    /// Why what is to be kept is not.
    lost: Option<String>,
}

/// Starts the process that serves the root, and waits until it does.
fn device(
    line: &CommandLine,
    site: &Site,
    known: Known,
    told: &mut Told,
) -> Result<Device, Failure> {
    let failed = |reason: String| Failure {
        step: BootStep::DeviceUp,
        reason,
    };
    let control = start_server()
        .map_err(|error| failed(format!("the root's server cannot be started: {error}")))?;
    let mut order = known.order;
    let mut urls = line.urls.clone();
    let mut words: Vec<String> = urls
        .iter()
        .map(|url| format!("rootstock.url={url}"))
        .collect();
    if let Some(mac) = line.boot_mac {
        words.push(format!("BOOTIF=01-{}", mac.dashed()));
    }
    if let Some(opened) = &known.opened {
        urls.sort_by_key(|url| *url != opened.url);
    }
    let start = ToServer::Start(Box::new(Start {
        urls,
        session: known.opened.map(|opened| opened.session),
        join: known.join,
        membership: known.membership,
        trace: known.trace,
        site: site.file.clone(),
        // Keys and files are pid 1's to write; a disk that the machine starts from
        // has them, too.
        identity: std::mem::take(&mut order.identity),
        order: order.clone(),
        manifest: known.manifest,
        words,
    }));
    send(&control, &start).map_err(|error| failed(error.to_string()))?;
    let answer = Lines::new(&control).next();
    match answer.map_err(|error| failed(format!("the root's server: {error}")))? {
        Some(FromServer::Ready { bytes, root, lost }) => {
            let text = format!("{}:{}", order.image, order.version);
            console::info(match &order.nfs {
                Some(place) => format!("{text} over NFS from {}:{}", place.server, place.path),
                None => format!("{text}, {} as /dev/nbd0", HumanBytes(order.disk_bytes)),
            });
            told.steps.push(step(BootStep::DeviceUp, bytes, text));
            for step in told.steps.drain(..) {
                tell(&control, step);
            }
            Ok(Device {
                control,
                root,
                lost,
            })
        }
        Some(FromServer::Failed { reason }) => Err(failed(reason)),
        None => Err(failed("the root's server ended".to_owned())),
    }
}

fn start_server() -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    Command::new("/proc/self/exe")
        .arg0(server::NAME)
        .arg("serve")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(ours)
}

/// The server of the root tells it on; a boot does not wait for that.
fn tell(control: &UnixStream, step: StepReport) {
    if let Err(error) = send(control, &ToServer::Step(step)) {
        console::warn(format_args!("a step could not be told: {error}"));
    }
}

fn root(
    order: &BootOrder,
    link: Option<&(Nic, Ipv4Config)>,
    told: &mut Told,
    device: &Device,
) -> Result<(), Failure> {
    let failed = |reason: String| Failure {
        step: BootStep::RootMounted,
        reason,
    };
    let mounted = match &order.nfs {
        Some(place) => nfs::mount_root(order, place, link.map(|(_, own)| own.address)),
        None => switch::mount_root(&order.root, device.root.as_deref()),
    };
    mounted.map_err(|error| failed(error.to_string()))?;
    told.shell = order.rescue_shell;
    let root = Root::new(Path::new(switch::SYSROOT));
    // Before what is written into them.
    let kept = keep::apply(&order.keep).map_err(|error| console::chain(&error));
    let kept = match &device.lost {
        Some(why) => Err(why.clone()),
        None => kept,
    };
    let link = link.map(|(nic, address)| Link { nic, address });
    identity::apply(order, link, &root).map_err(|error| failed(console::chain(&error)))?;
    // For an init that does not read /etc/hostname.
    let _ = rustix::system::sethostname(order.identity.host_name.as_bytes());
    tell(
        &device.control,
        step(BootStep::RootMounted, 0, told_root(order, kept)),
    );
    Ok(())
}

/// What was mounted; and that something is lost at power-off which was to stay.
fn told_root(order: &BootOrder, kept: Result<(), String>) -> String {
    let fs = match &order.nfs {
        Some(place) => format!("{} over NFS from {}", order.root.fs, place.server),
        None => order.root.fs.clone(),
    };
    match kept {
        Ok(()) => fs,
        Err(why) => {
            console::error(format_args!(
                "what is written on this machine is LOST at power-off: {why}"
            ));
            format!("{fs}; what is to be kept is lost at power-off: {why}")
        }
    }
}

fn enter(order: &BootOrder, told: &Told, control: &UnixStream) -> Result<Infallible, Failure> {
    let failed = |reason: String| Failure {
        step: BootStep::Switched,
        reason,
    };
    let init = &order.root.init;
    if !switch::has_init(init) {
        return Err(failed(format!("the image has no {init}")));
    }
    debug_assert!(told.steps.is_empty(), "all steps were handed on");
    told.drivers_stop.store(true, Ordering::Relaxed);
    if let Err(error) = switch::leave_program() {
        console::warn(format_args!("there is no rootstock-agent in /run: {error}"));
    }
    console::info(format_args!("starting {init}"));
    tell(control, step(BootStep::Switched, 0, init.clone()));
    switch::switch_root(init).map_err(|error| failed(format!("{init} cannot be started: {error}")))
}

/// Says why on the console and to the server, and waits so that it can be read.
fn fail(told: &Told, failure: &Failure) {
    let at = name(failure.step);
    let next = if told.shell {
        "a shell of the image; the machine starts anew when it ends".to_owned()
    } else {
        format!("the machine starts anew in {} s", REBOOT_PAUSE.as_secs())
    };
    console::error(format_args!(
        "FAILED at {at}: {}; next: {next}",
        failure.reason
    ));
    if let Some((service, url)) = &told.service {
        let mut steps = told.steps.clone();
        let detail = format!("{at}: {}", failure.reason);
        steps.push(step(BootStep::Failed, 0, detail));
        if let Err(error) = service.steps(url, &Steps { steps }) {
            console::warn(console::chain(&error));
        }
    }
    if told.shell {
        let shell = Command::new("/proc/self/exe").arg("rescue").status();
        match shell {
            Ok(status) if status.success() => return,
            Ok(status) => console::warn(format_args!("the shell ended with {status}")),
            Err(error) => console::warn(format_args!("there is no shell: {error}")),
        }
    }
    thread::sleep(REBOOT_PAUSE);
}

/// A step's name as documents have it.
fn name(step: BootStep) -> String {
    serde_json::to_value(step)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
