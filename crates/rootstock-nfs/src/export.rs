//! One version's process: it mounts the version and has nfs-ganesha serve it.

use std::{
    collections::VecDeque,
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use rootstock_core::chain;
use rootstock_image::{ReadAt, inspect};
use rootstock_mount::{Kind, Part};

use crate::{
    FromExport, Start, ToExport,
    disk::{Disk, READERS},
    ganesha::{News, Site},
};

/// How long nfs-ganesha may take to start, or to read its configuration.
const GANESHA_LIMIT: Duration = Duration::from_secs(60);

/// Why a version cannot be exported.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("{spec} cannot be read from the daemon's NBD server at {address}")]
    Nbd {
        spec: String,
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("{spec} has no partition {number}")]
    NoPartition { spec: String, number: u32 },
    #[error("the head cannot mount {0}: it can mount ext4, xfs and btrfs")]
    Kind(String),
    #[error("{spec} cannot be mounted on the head")]
    Mount {
        spec: String,
        #[source]
        source: rootstock_mount::MountError,
    },
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("nfs-ganesha cannot be started: are nfs-ganesha and nfs-ganesha-vfs installed?")]
    Ganesha(#[source] io::Error),
    #[error("nfs-ganesha does not serve it: {0}")]
    Refused(String),
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> ExportError {
    move |source| ExportError::Io { what, source }
}

/// What happens to an export.
#[derive(Debug)]
pub(crate) enum Event {
    /// Its clients are these from now on.
    Clients(Vec<IpAddr>),
    /// Nobody wants it any more.
    Over,
    /// nfs-ganesha said so.
    Ganesha(News),
}

/// Exports what standard input says until that ends, and says on standard output how it
/// goes. It wants a mount namespace of its own.
///
/// # Errors
/// When standard input or output cannot be used.
pub fn export() -> io::Result<()> {
    let mut lines = BufReader::new(io::stdin()).lines();
    let first = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    let ToExport::Start(start) = serde_json::from_str(&first)? else {
        return Err(io::Error::other(
            "the first line does not say what to export",
        ));
    };
    let (sender, events) = mpsc::channel();
    let from_head = sender.clone();
    thread::Builder::new()
        .name("head".to_owned())
        .spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(ToExport::Clients(clients)) = serde_json::from_str(&line) {
                    let _ = from_head.send(Event::Clients(clients));
                }
            }
            let _ = from_head.send(Event::Over);
        })?;
    let events = Events {
        coming: events,
        kept: VecDeque::new(),
    };
    match run(&start, sender, events) {
        Ok(()) => Ok(()),
        Err(error) => say(&FromExport::Failed(chain(&error))),
    }
}

fn say(what: &FromExport) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, what)?;
    out.write_all(b"\n")?;
    out.flush()
}

fn run(start: &Start, sender: Sender<Event>, mut events: Events) -> Result<(), ExportError> {
    let site = Site {
        root: &start.root,
        directory: &start.directory,
        port: start.port,
    };
    fs::create_dir_all(site.tree()).map_err(failed("its directory cannot be made"))?;
    mount(start, &site)?;
    let write = failed("nfs-ganesha's configuration cannot be written");
    site.write(&start.clients).map_err(&write)?;
    let ganesha = site.start(sender).map_err(ExportError::Ganesha)?;
    events.settle(&News::Serves)?;
    tell(start.clients.clone())?;
    loop {
        match events.next() {
            Event::Over => return Ok(()),
            Event::Clients(clients) => {
                site.write(&clients).map_err(&write)?;
                ganesha
                    .reload()
                    .map_err(failed("nfs-ganesha cannot be told to read anew"))?;
                events.settle(&News::Reread)?;
                tell(clients)?;
            }
            Event::Ganesha(News::Ended) => {
                return Err(ExportError::Refused("it ended".to_owned()));
            }
            Event::Ganesha(News::Trouble(words)) => {
                tracing::warn!(version = %start.root.spec(), words, "nfs-ganesha complains");
            }
            Event::Ganesha(News::Serves | News::Reread) => {}
        }
    }
}

fn tell(clients: Vec<IpAddr>) -> Result<(), ExportError> {
    say(&FromExport::Ready(clients)).map_err(failed("the head cannot be told"))
}

/// What happens, in order.
struct Events {
    coming: Receiver<Event>,
    /// What came while something else was waited for.
    kept: VecDeque<Event>,
}

impl Events {
    fn next(&mut self) -> Event {
        let kept = self.kept.pop_front();
        kept.unwrap_or_else(|| self.coming.recv().unwrap_or(Event::Over))
    }

    /// Waits until nfs-ganesha says this. Only the newest clients are kept meanwhile.
    fn settle(&mut self, expected: &News) -> Result<(), ExportError> {
        let refused = |what: &str| Err(ExportError::Refused(what.to_owned()));
        let until = Instant::now() + GANESHA_LIMIT;
        let mut trouble = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.coming.recv_timeout(left) {
                Ok(Event::Ganesha(News::Trouble(words))) => trouble = trouble.or(Some(words)),
                Ok(Event::Ganesha(News::Ended)) => {
                    return refused(trouble.as_deref().unwrap_or("it ended"));
                }
                Ok(Event::Ganesha(said)) if said == *expected => break,
                Ok(Event::Ganesha(_)) => {}
                Ok(Event::Clients(clients)) => {
                    self.kept
                        .retain(|event| !matches!(event, Event::Clients(_)));
                    self.kept.push_back(Event::Clients(clients));
                }
                Ok(Event::Over) => self.kept.push_front(Event::Over),
                Err(RecvTimeoutError::Timeout) => {
                    return refused(trouble.as_deref().unwrap_or("it does not answer"));
                }
                Err(RecvTimeoutError::Disconnected) => return refused("its log ended"),
            }
        }
        match trouble {
            // It starts without what it could not read.
            Some(words) if *expected == News::Serves => refused(&words),
            // Who reads goes on, whatever it is.
            Some(words) => {
                tracing::warn!(words, "nfs-ganesha complains");
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn mount(start: &Start, site: &Site<'_>) -> Result<(), ExportError> {
    let root = &start.root;
    let spec = root.spec();
    let kind = Kind::of(&root.fs).ok_or_else(|| ExportError::Kind(root.fs.clone()))?;
    let nbd = |source| ExportError::Nbd {
        spec: spec.to_string(),
        address: start.nbd.to_string(),
        source,
    };
    let disk: Arc<dyn ReadAt> = Arc::new(Disk::open(&start.nbd, &spec).map_err(nbd)?);
    let partitions = inspect::partitions(&*disk).map_err(nbd)?;
    let place = partitions
        .iter()
        .find(|place| place.number == root.partition);
    let place = place.ok_or_else(|| ExportError::NoPartition {
        spec: spec.to_string(),
        number: root.partition,
    })?;
    let part = Part {
        disk: Arc::clone(&disk),
        start_bytes: place.start_bytes,
        len_bytes: place.len_bytes,
    };
    let mounted = rootstock_mount::mount(part, kind, &root.options, READERS);
    let mounted = mounted.map_err(|source| ExportError::Mount {
        spec: spec.to_string(),
        source,
    })?;
    rootstock_mount::attach(&mounted, &site.tree())
        .map_err(failed("the mount cannot be attached to its directory"))
}
