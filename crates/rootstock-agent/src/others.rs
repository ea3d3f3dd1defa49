//! Booting others: while every head is gone, a machine that runs gives machines of its
//! subnet what they boot with.
//!
//! All of it comes from a head beforehand: kernel, first stage, and the site's order for
//! strangers. It is kept in memory, and given over HTTP to whoever is on the same link.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::NextVersion;
use rootstock_api::guest::GuestOrder;
use rootstock_api::local::LocalFile;
use rootstock_core::Digest;

use crate::console;
use crate::guest::{Document, TRACE_KEPT_BYTES_MAX};
use crate::order::{Site, TrustError};
use crate::service::{CallError, Service};
use crate::swarm::Swarm;
use crate::sys;

mod http;

/// Where it is given.
const PORT: u16 = 8487;

/// How often it is fetched anew: its certificate is of some days.
const RENEW_EVERY: Duration = Duration::from_secs(6 * 3600);

/// After it could not be.
const RETRY: Duration = Duration::from_secs(30);

/// Between two looks at whether it is wanted at all.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What kernel and first stage may take of the machine's memory, as one part in so many.
const MEMORY_PART: u64 = 8;

/// Why others are not booted by now.
#[derive(Debug, thiserror::Error)]
enum OffersError {
    #[error("what others boot cannot be fetched")]
    Call(#[from] CallError),
    #[error("the order for others is refused")]
    Trust(#[from] TrustError),
    #[error("{name} is not as the site signed it")]
    File { name: String },
    #[error("{name} cannot be read")]
    Read {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("kernel and first stage are {bytes} B, and an eighth of this machine's memory less")]
    Memory { bytes: u64 },
    #[error("port {PORT} cannot be had")]
    Listen(#[source] io::Error),
}

/// What is needed of the rest of the agent.
pub(crate) struct Boots {
    /// The client of heads.
    pub(crate) service: Service,
    /// Their base URLs, best first.
    pub(crate) urls: Vec<String>,
    /// Where machines ask them for scripts, over plain HTTP.
    pub(crate) plain_urls: Vec<String>,
    /// Who must have signed what is given.
    pub(crate) site: Site,
    /// What the machine runs.
    pub(crate) runs: NextVersion,
    /// This machine among others.
    pub(crate) swarm: Arc<Swarm>,
    /// Its memory.
    pub(crate) memory_bytes: u64,
}

/// What is given.
struct Offer {
    document: Document,
    arguments: Vec<String>,
    kernel: Vec<u8>,
    first_stage: Vec<u8>,
}

impl Boots {
    /// Goes on from here by itself, while settings say so.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(crate) fn start(self) -> io::Result<()> {
        let thread = thread::Builder::new().name("boots-others".to_owned());
        thread.spawn(move || self.run()).map(|_| ())
    }

    fn run(self) {
        let boots = Arc::new(self);
        let mut told = String::new();
        loop {
            boots.swarm.wait_until_it_boots_others();
            let served = boots
                .fetch()
                .and_then(|offer| Arc::clone(&boots).serve(offer));
            if let Err(error) = served {
                let why = console::chain(&error);
                if told != why {
                    console::info(format_args!(
                        "this machine does not boot others by now: {why}"
                    ));
                    told = why;
                }
                thread::sleep(RETRY);
            }
        }
    }

    /// Serves until it is not wanted any more.
    fn serve(self: Arc<Self>, offer: Offer) -> Result<(), OffersError> {
        let listener = listen().map_err(OffersError::Listen)?;
        console::info(format_args!(
            "this machine boots others of its subnet at port {PORT}"
        ));
        let server = Arc::new(http::Server::new(offer));
        let stop = Arc::new(AtomicBool::new(false));
        let (accepts, boots) = (Arc::clone(&stop), Arc::clone(&self));
        let (asked, thread) = (Arc::clone(&server), thread::Builder::new());
        let accept = thread
            .name("boots-others-http".to_owned())
            .spawn(move || http::accept(&listener, &asked, &boots, &accepts))
            .map_err(OffersError::Listen)?;
        let mut renew_at = Instant::now() + RENEW_EVERY;
        while self.swarm.boots_others() {
            thread::sleep(LOOK_EVERY);
            if Instant::now() >= renew_at {
                // While no head answers, the old one is given.
                renew_at = match self.fetch() {
                    Ok(offer) => {
                        server.set(offer);
                        Instant::now() + RENEW_EVERY
                    }
                    Err(_) => Instant::now() + RETRY,
                };
            }
        }
        stop.store(true, Ordering::Relaxed);
        // It looks at that some times a second.
        let _ = accept.join();
        Ok(())
    }

    /// Gets all of it from a head.
    fn fetch(&self) -> Result<Offer, OffersError> {
        let mut last = CallError::NoSession;
        for url in &self.urls {
            match self.service.guest_order(url, &self.runs) {
                Ok(signed) => return self.fetch_from(url, signed),
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    fn fetch_from(
        &self,
        url: &str,
        (order, signature): (Vec<u8>, String),
    ) -> Result<Offer, OffersError> {
        let guest: GuestOrder = self.site.guest_order(&order, &signature, None)?;
        let bytes = guest
            .kernel
            .len_bytes
            .saturating_add(guest.first_stage.len_bytes);
        if bytes > self.memory_bytes / MEMORY_PART {
            return Err(OffersError::Memory { bytes });
        }
        let (manifest, seal) = self.service.manifest_of(url, &self.runs)?;
        self.site.manifest(&manifest, &seal, &guest.order)?;
        // A boot goes on without it.
        let trace = self.service.trace(url).ok().flatten();
        let trace = trace.filter(|trace| trace.len() <= TRACE_KEPT_BYTES_MAX);
        let document = Document::new(order, signature, (&manifest, seal), trace.as_deref())?;
        Ok(Offer {
            document,
            kernel: self.file(url, &guest.kernel)?,
            first_stage: self.file(url, &guest.first_stage)?,
            arguments: guest.arguments,
        })
    }

    /// A file, as it was signed.
    fn file(&self, url: &str, file: &LocalFile) -> Result<Vec<u8>, OffersError> {
        let name = || file.name.clone();
        let body = self.service.local_file(url, &self.runs, &file.name)?;
        let mut bytes = Vec::new();
        let read = body.take(file.len_bytes + 1).read_to_end(&mut bytes);
        read.map_err(|source| OffersError::Read {
            name: name(),
            source,
        })?;
        match Digest::of(&bytes) == file.digest {
            true => Ok(bytes),
            false => Err(OffersError::File { name: name() }),
        }
    }

    /// Who is there to be asked for chunks, this machine among them.
    fn members(&self, offer: &Offer, local: Ipv4Addr) -> Document {
        let mut document = offer.document.clone();
        document.set_members(self.swarm.introduce(local.into()));
        document
    }
}

/// Nobody is answered beyond the next router.
fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    sys::stay_on_link(listener.as_fd())?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
