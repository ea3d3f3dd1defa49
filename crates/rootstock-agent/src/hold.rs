//! `rootstock-agent hold`: a machine with a system of its own keeps a version for others.
//!
//! It is a member of the swarm as every machine is that we booted, and has no root of
//! ours: a room's server, or a box in a building at the end of a thin line.

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::{BootOrder, BootStep, Identity, NodeControl, NodeMode, SessionState};
use rootstock_api::swarm::SwarmMode;
use rootstock_core::MacAddress;
use rootstock_core::units::HumanBytes;
use rootstock_image::manifest::Manifest;

use crate::control::Start;
use crate::inventory;
use crate::order::Site;
use crate::report::{self, Reporter};
use crate::server::on_disk;
use crate::service::{CallError, Service};
use crate::sources::Sources;
use crate::stats::Stats;
use crate::swarm::SwarmFetch;
use crate::tiers::attach::Attached;
use crate::{console, steer};

/// How the command is used.
pub(crate) const USAGE: &str = "\
usage: rootstock-agent hold --mac MAC --site FILE --server URL [--server URL]

hold    keeps the version of a node's image here, whole, and gives it to other
        machines of the swarm, for as long as it runs. The node is the one with
        this MAC, and its mode is `hold`; its settings say which image, and
        where that is kept: on a disk that `cache create` prepared, or in memory
        (at most half of it, or swarm-memory). FILE is what `rootstock boot site`
        prints, and URL a node service, such as https://10.0.0.1:8481.";

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
}

impl<'a> Words<'a> {
    pub(crate) fn parse(words: &'a [String]) -> Option<Self> {
        let (mut urls, mut mac, mut site) = (Vec::new(), None, None);
        for pair in words.chunks(2) {
            let [name, value] = pair else { return None };
            match name.as_str() {
                "--server" => urls.push(value.trim_end_matches('/').to_owned()),
                "--mac" if mac.is_none() => mac = Some(value.as_str()),
                "--site" if site.is_none() => site = Some(value.as_str()),
                _ => return None,
            }
        }
        let (mac, site) = mac.zip(site).filter(|_| !urls.is_empty())?;
        Some(Self { urls, mac, site })
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
    let member = Order::ask(Words::parse(words).ok_or(HoldError::Usage)?)?;
    keep(&member.start, &member.service, &member.manifest)
}

/// What a server ordered, and the way to it.
pub(crate) struct Order {
    pub(crate) start: Start,
    pub(crate) service: Service,
    pub(crate) manifest: Manifest,
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
        })
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
    let ask = |token| inventory::session_create(token, mac);
    let mut told = String::new();
    loop {
        for url in urls {
            let token = service.hold_token(url, mac);
            let state = token.and_then(|token| service.open(url, &ask(token)));
            let wait = match state {
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
fn keep(
    start: &Start,
    service: &Service,
    manifest: &Manifest,
) -> Result<std::convert::Infallible, HoldError> {
    let stats = Arc::new(Stats::default());
    // There is no boot to be observed.
    stats.trace.system_is_up();
    let sources = Sources::start(start, service, manifest, &stats)
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
    let began = Instant::now();
    let spec = format!("{}:{}", start.order.image, start.order.version);
    let (mut last, mut looks) = (0, 0);
    while !is_over.load(Ordering::Relaxed) {
        let looked = Instant::now();
        let progress = sources.swarm.progress();
        // A version of millions of chunks is looked at less often.
        thread::sleep((looked.elapsed() * LOOK_PART).clamp(LOOK_EVERY, LOOK_LATEST));
        let Some((held, all)) = progress else {
            continue;
        };
        looks += 1;
        if held == last || (held < all && looks % TELL_EVERY != 0) {
            continue;
        }
        last = held;
        let (heads, others) = sources.swarm.came();
        let what = if held == all { "complete" } else { "holds" };
        tell(&format!(
            "{what}: {held} of {all} chunks of {spec} after {:.1} s; {} came from servers, {} from machines",
            began.elapsed().as_secs_f64(),
            HumanBytes(heads),
            HumanBytes(others),
        ));
    }
    thread::sleep(ANEW_PAUSE);
    tell("begins with what it is to hold now");
    Err(anew())
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
                let (mac, site) = (words.mac.to_owned(), words.site.to_owned());
                (words.urls, mac, site)
            })
        };
        let (urls, mac, site) =
            parse("--server https://a/ --mac m --server http://b --site s").expect("what it needs");
        assert_eq!((mac.as_str(), site.as_str()), ("m", "s"));
        assert_eq!(urls, ["https://a", "http://b"]);
        for wrong in [
            "--mac m --site s",
            "--server u --mac m",
            "--server u --site s",
            "--server u --mac m --site s --mac n",
            "--server u --mac m --site",
            "--server u --mac m --sites s",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
