//! `rootstock-agent hold`: a machine with a system of its own keeps a version for others.
//!
//! It is a member of the swarm as every machine is that we booted, and has no root of
//! ours: a room's server, or a box in a building at the end of a thin line.

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::{BootOrder, BootStep, Identity, NodeControl, NodeMode, SessionState};
use rootstock_api::swarm::SwarmMode;
use rootstock_core::MacAddress;
use rootstock_core::units::{HumanBytes, SizeError, parse_size_bytes};
use rootstock_image::manifest::Manifest;

use crate::control::Start;
use crate::disk::file::{self, Place, PlaceError};
use crate::disk::find::Found;
use crate::inventory;
use crate::order::Site;
use crate::report::{self, Reporter};
use crate::server::on_disk;
use crate::service::{CallError, Service};
use crate::sources::{Here, Sources};
use crate::stats::Stats;
use crate::swarm::{Swarm, SwarmFetch};
use crate::tiers::attach::Attached;
use crate::{console, steer};

/// How the command is used.
pub(crate) const USAGE: &str = "\
usage: rootstock-agent hold --mac MAC --site FILE --server URL [--server URL]
                            [--keep PATH [--size SIZE]]

hold    keeps the version of a node's image here, whole, and gives it to other
        machines of the swarm, for as long as it runs. The node is the one with
        this MAC, and its mode is `hold`; its settings say which image. FILE is
        what `rootstock boot site` prints, and URL a node service, such as
        https://10.0.0.1:8481.
        --keep says where it is kept: on a disk or partition that `cache create`
        prepared, or in a file, or in a file in a directory. A file that is not
        there is made with SIZE, such as 40G, takes that room at once, and never
        takes more. What is kept so is there again after a restart. Without
        --keep the node's settings decide: a prepared disk, or else memory (at
        most half of it, or swarm-memory), and then it is fetched again.";

/// Until a server is asked again that does not answer, or does not want to.
const PAUSE: Duration = Duration::from_secs(5);

/// Between looks how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The longest such time.
const LOOK_LATEST: Duration = Duration::from_secs(1);

/// The looks take at most one part in so many of a processor.
const LOOK_PART: u32 = 50;

/// Looks between lines that tell.
const TELL_EVERY: u32 = 50;

/// A session that was over so soon after it was begun was ended by somebody.
const RENEWED_SOON: Duration = Duration::from_secs(120);
/// How often the pause before another one doubles.
const RENEWALS_DOUBLINGS_MAX: u32 = 6;

/// Until another version is begun with: what changes often changes once.
const ANEW_PAUSE: Duration = Duration::from_secs(10);

/// Why nothing is held.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HoldError {
    #[error("{USAGE}")]
    Usage,
    #[error("{path} cannot be read")]
    SiteFile {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{mac} is no MAC address: write it as 52:54:00:12:34:56")]
    Mac { mac: String },
    #[error("--size {text} is not a size")]
    Size {
        text: String,
        #[source]
        source: SizeError,
    },
    #[error("nothing can be kept there")]
    Place(#[from] PlaceError),
    #[error("no session with a server")]
    Session(#[source] CallError),
    #[error(
        "{node} is not to hold an image any more: `rootstock node set {node} --mode hold` says so"
    )]
    Mode { node: String },
    #[error(
        "{node} is not in the swarm, and nobody would ask it: `rootstock node set {node} --swarm tls`"
    )]
    Alone { node: String },
    #[error(
        "no boot of {spec} is learnt yet: let a machine boot it once, and `rootstock image show {spec}` shows its boot set"
    )]
    NothingLearnt { spec: String },
    #[error("{what}")]
    Other { what: String },
}

pub(crate) fn other(error: &(dyn std::error::Error + 'static)) -> HoldError {
    let what = console::chain(error);
    HoldError::Other { what }
}

/// What the command was told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Words<'a> {
    urls: Vec<String>,
    mac: &'a str,
    site: &'a str,
    /// Where chunks are kept, and how much there is to be.
    pub(crate) keep: Option<(&'a str, Option<&'a str>)>,
}

impl<'a> Words<'a> {
    pub(crate) fn parse(words: &'a [String]) -> Option<Self> {
        let (mut urls, mut mac, mut site) = (Vec::new(), None, None);
        let (mut keep, mut size) = (None, None);
        for pair in words.chunks(2) {
            let [name, value] = pair else { return None };
            match name.as_str() {
                "--server" => urls.push(value.trim_end_matches('/').to_owned()),
                "--mac" if mac.is_none() => mac = Some(value.as_str()),
                "--site" if site.is_none() => site = Some(value.as_str()),
                "--keep" if keep.is_none() => keep = Some(value.as_str()),
                "--size" if size.is_none() => size = Some(value.as_str()),
                _ => return None,
            }
        }
        let (mac, site) = mac.zip(site).filter(|_| !urls.is_empty())?;
        if keep.is_none() && size.is_some() {
            return None;
        }
        let keep = keep.map(|path| (path, size));
        Some(Self {
            urls,
            mac,
            site,
            keep,
        })
    }

    /// The place for chunks that they name.
    fn place(&self) -> Result<Option<Place>, HoldError> {
        let Some((path, size)) = self.keep else {
            return Ok(None);
        };
        let size = size.map(|text| {
            parse_size_bytes(text).map_err(|source| HoldError::Size {
                text: text.to_owned(),
                source,
            })
        });
        let place = file::open(Path::new(path), size.transpose()?)?;
        Ok(Some(place))
    }
}

/// Runs the command, which ends when it cannot go on; why.
pub(crate) fn run(words: &[String]) -> String {
    match hold(words) {
        Ok(never) => match never {},
        Err(error) => console::chain(&error),
    }
}

fn hold(words: &[String]) -> Result<std::convert::Infallible, HoldError> {
    let words = Words::parse(words).ok_or(HoldError::Usage)?;
    // Before anybody is asked: what cannot be kept is not fetched.
    let (own, lock) = words
        .place()?
        .map_or((None, None), |place| (Some(place.found), place.lock));
    let never = keep(&Order::ask(words)?, own);
    drop(lock);
    never
}

/// What a server ordered, and the way to it.
pub(crate) struct Order {
    pub(crate) start: Start,
    pub(crate) service: Service,
    pub(crate) manifest: Manifest,
    mac: MacAddress,
    site: Site,
}

impl Order {
    /// Asks the first server that gives a session. One that is away is waited for.
    pub(crate) fn ask(words: Words<'_>) -> Result<Self, HoldError> {
        let mac: MacAddress = words.mac.parse().map_err(|_| HoldError::Mac {
            mac: words.mac.to_owned(),
        })?;
        let text = fs::read_to_string(words.site).map_err(|source| HoldError::SiteFile {
            path: words.site.to_owned(),
            source,
        })?;
        let site = Site::parse(&text).map_err(|error| other(&error))?;
        let service = Service::new(&site.file.authority_pem).map_err(|error| other(&error))?;
        let (url, session) = open(&service, &words.urls, mac)?;
        service.join(&session);
        let (order, manifest) = ordered(&service, &url, &site, &session)?;
        let mut urls = words.urls;
        urls.sort_by_key(|other| *other != url);
        let start = Start {
            urls,
            session: Some(session),
            join: None,
            membership: None,
            trace: None,
            site: site.file.clone(),
            order,
            manifest: manifest.encode(),
            identity: Identity::default(),
            words: Vec::new(),
        };
        Ok(Self {
            start,
            service,
            manifest,
            mac,
            site,
        })
    }

    /// Goes on under another session, for which the server is asked until it gives one;
    /// whether it is the same version that is to be held.
    fn renew(&self) -> bool {
        let mut told = String::new();
        loop {
            for url in &self.start.urls {
                let why = match self.renew_at(url) {
                    Ok(is_same) => return is_same,
                    Err(error) => console::chain(&error),
                };
                if told != why {
                    console::warn(format_args!("it holds on without a session: {why}"));
                    told = why;
                }
            }
            thread::sleep(PAUSE);
        }
    }

    fn renew_at(&self, url: &str) -> Result<bool, HoldError> {
        if self.service.is_refused() {
            match ask_session(&self.service, url, self.mac).map_err(HoldError::Session)? {
                SessionState::Open { session, .. } => self.service.renew(&session),
                SessionState::Held { message: what, .. } => return Err(HoldError::Other { what }),
            }
        }
        let (bytes, signature) = self.service.order(url).map_err(|error| other(&error))?;
        let session = self.service.session().unwrap_or_default();
        let order = self.site.order(&bytes, &signature, &session);
        let order = order.map_err(|error| other(&error))?;
        Ok(order.manifest == self.start.order.manifest)
    }
}

/// Sessions that were over soon after they were begun.
#[derive(Default)]
struct Renewals {
    last: Option<Instant>,
    /// How many in a row.
    soon: u32,
}

impl Renewals {
    /// How long the next one waits: another agent with this MAC may have ended the last
    /// one, and would do so again.
    fn pause(&mut self) -> Duration {
        let is_soon = self.last.is_some_and(|last| last.elapsed() < RENEWED_SOON);
        self.soon = if is_soon { self.soon + 1 } else { 0 };
        self.last = Some(Instant::now());
        match self.soon {
            0 => Duration::ZERO,
            soon => PAUSE * 2_u32.pow(soon.min(RENEWALS_DOUBLINGS_MAX)),
        }
    }
}

/// Tells the site how the machine does.
pub(crate) fn reporter(
    start: &Start,
    service: &Service,
    stats: &Arc<Stats>,
    attached: &Arc<Attached<SwarmFetch>>,
) -> Result<Reporter, HoldError> {
    Reporter::start(report::Source {
        service: service.clone(),
        urls: start.urls.clone(),
        stats: Arc::clone(stats),
        fill: Box::new(|| None),
        disk: on_disk(Arc::clone(attached)),
        install: None,
        report_seconds: start.order.report_seconds,
        check: None,
    })
    .map_err(|error| other(&error))
}

/// A session with the first server that gives one. One that is away is waited for.
fn open(
    service: &Service,
    urls: &[String],
    mac: MacAddress,
) -> Result<(String, String), HoldError> {
    let mut told = String::new();
    loop {
        for url in urls {
            let wait = match ask_session(service, url, mac) {
                Ok(SessionState::Open { session, node }) => {
                    tell(&format!("this machine is {node}"));
                    return Ok((url.clone(), session));
                }
                Ok(SessionState::Held { message, .. }) => message,
                Err(error) if error.may_pass() => console::chain(&error),
                Err(error) => return Err(HoldError::Session(error)),
            };
            if told != wait {
                console::info(&wait);
                told = wait;
            }
        }
        thread::sleep(PAUSE);
    }
}

fn ask_session(service: &Service, url: &str, mac: MacAddress) -> Result<SessionState, CallError> {
    let token = service.hold_token(url, mac)?;
    service.open(url, &inventory::session_create(token, mac))
}

/// What is to be held, as the site signed it.
fn ordered(
    service: &Service,
    url: &str,
    site: &Site,
    session: &str,
) -> Result<(BootOrder, Manifest), HoldError> {
    let (bytes, signature) = service.order(url).map_err(|error| other(&error))?;
    let order = site
        .order(&bytes, &signature, session)
        .map_err(|error| other(&error))?;
    if order.mode != NodeMode::Hold {
        return Err(HoldError::Mode { node: order.node });
    }
    let is_on = |mode| mode != SwarmMode::Off;
    if !order.swarm.as_ref().is_some_and(|swarm| is_on(swarm.mode)) {
        return Err(HoldError::Alone { node: order.node });
    }
    let (bytes, seal) = service.manifest(url).map_err(|error| other(&error))?;
    let manifest = site
        .manifest(&bytes, &seal, &order)
        .map_err(|error| other(&error))?;
    Ok((order, manifest))
}

/// Holds it, and tells how far that is.
fn keep(member: &Order, disk: Option<Found>) -> Result<std::convert::Infallible, HoldError> {
    let (start, service) = (&member.start, &member.service);
    let stats = Arc::new(Stats::default());
    // There is no boot to be observed.
    stats.trace.system_is_up();
    let here = Here { disk, ..Here::OWN };
    let sources = Sources::start(start, service, &member.manifest, &stats, here)
        .map_err(|what| HoldError::Other { what })?;
    let reporter = reporter(start, service, &stats, &sources.attached)?;
    reporter.step(report::step(BootStep::Up, 0, "it holds its image"));
    let is_over = Arc::new(AtomicBool::new(false));
    let (over, told) = (Arc::clone(&is_over), sources.told);
    let each = move |control: NodeControl| {
        if control.next.is_some() || control.reboot.is_some() {
            over.store(true, Ordering::Relaxed);
        }
        told(control);
    };
    steer::start(service.clone(), start.urls.clone(), each).map_err(|error| other(&error))?;
    let mut progress = Progress {
        spec: format!("{}:{}", start.order.image, start.order.version),
        swarm: sources.swarm,
        attached: sources.attached,
        began: Instant::now(),
        last: 0,
        looks: 0,
        is_full_told: false,
    };
    let mut renewals = Renewals::default();
    while !is_over.load(Ordering::Relaxed) {
        progress.look();
        if service.is_refused() {
            thread::sleep(renewals.pause());
            if !member.renew() {
                break;
            }
            tell("goes on under another session");
            let step = report::step(BootStep::Up, 0, "it held its image on");
            reporter.step(step);
        }
    }
    thread::sleep(ANEW_PAUSE);
    tell("begins with what it is to hold now");
    Err(anew())
}

/// How far the holding is, for who looks on.
struct Progress {
    spec: String,
    swarm: Arc<Swarm>,
    attached: Arc<Attached<SwarmFetch>>,
    began: Instant,
    last: usize,
    looks: u32,
    is_full_told: bool,
}

impl Progress {
    /// Looks, tells what is new, and takes its time.
    fn look(&mut self) {
        let looked = Instant::now();
        let progress = self.swarm.progress();
        // A version of millions of chunks is looked at less often.
        thread::sleep((looked.elapsed() * LOOK_PART).clamp(LOOK_EVERY, LOOK_LATEST));
        let Some((held, all)) = progress else {
            return;
        };
        self.tell_limits(held, all);
        self.looks += 1;
        if held == self.last || (held < all && !self.looks.is_multiple_of(TELL_EVERY)) {
            return;
        }
        if held == all
            && let Some(ground) = self.attached.ground()
        {
            // What is said to be here is here after a power cut, too.
            ground.keeper.settle();
        }
        self.last = held;
        let (heads, others) = self.swarm.came();
        let what = if held == all { "complete" } else { "holds" };
        tell(&format!(
            "{what}: {held} of {all} chunks of {} after {:.1} s; {} came from servers, {} from machines",
            self.spec,
            self.began.elapsed().as_secs_f64(),
            HumanBytes(heads),
            HumanBytes(others),
        ));
    }

    /// Says once that there is less room than all of it takes.
    fn tell_limits(&mut self, held: usize, all: usize) {
        if self.is_full_told {
            return;
        }
        let spec = &self.spec;
        let line = match self.attached.ground() {
            Some(ground) => {
                let usage = ground.keeper.cache().usage();
                let needed = HumanBytes(all as u64 * u64::from(usage.slot_bytes));
                let room = HumanBytes(usage.slots_max * u64::from(usage.slot_bytes));
                let device = &ground.device;
                (usage.slots_max < all as u64).then(|| format!(
                    "{device} has room for {room}, and {spec} takes {needed}: the rest is not held here"
                ))
            }
            None => self.swarm.memory_full_bytes().map(|bytes| format!(
                "memory for chunks is full with {}, and {held} of {all} chunks of {spec} are held: \
                 swarm-memory gives it more, or --keep a place on a disk",
                HumanBytes(bytes)
            )),
        };
        if let Some(line) = line {
            tell(&line);
            self.is_full_told = true;
        }
    }
}

/// A line for whoever started it, who may be gone.
pub(crate) fn tell(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Becomes a new one, which asks what it is to hold.
fn anew() -> HoldError {
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => return other(&error),
    };
    other(&Command::new(program).args(env::args_os().skip(1)).exec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lacks_or_is_said_twice_is_refused() {
        let parse = |text: &str| {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            Words::parse(&words).map(|words| {
                let all = [words.mac, words.site].map(str::to_owned);
                let keep = words.keep.map(|(path, size)| {
                    let size = size.map(str::to_owned);
                    (path.to_owned(), size)
                });
                (words.urls, all, keep)
            })
        };
        let (urls, all, keep) =
            parse("--server https://a/ --mac m --server http://b --site s").expect("what it needs");
        assert_eq!(all, ["m", "s"]);
        assert_eq!(urls, ["https://a", "http://b"]);
        assert_eq!(keep, None);
        let (_, _, keep) =
            parse("--keep /srv --server u --mac m --size 4G --site s").expect("with a place");
        assert_eq!(keep, Some(("/srv".to_owned(), Some("4G".to_owned()))));
        for wrong in [
            "--mac m --site s",
            "--server u --mac m",
            "--server u --site s",
            "--server u --mac m --site s --mac n",
            "--server u --mac m --site",
            "--server u --mac m --sites s",
            "--server u --mac m --site s --size 4G",
            "--server u --mac m --site s --keep /a --keep /b",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sessions_that_end_soon_are_begun_more_seldom() {
        let mut renewals = Renewals::default();
        assert_eq!(renewals.pause(), Duration::ZERO);
        for seconds in [10, 20, 40, 80, 160, 320, 320] {
            assert_eq!(renewals.pause(), Duration::from_secs(seconds));
        }
        renewals.last = Instant::now().checked_sub(RENEWED_SOON);
        assert_eq!(renewals.pause(), Duration::ZERO);
    }
}
