//! The head: which versions run, and what the daemon is told of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use rootstock_api::nfs::{NFS_EXPORTS_MAX, NfsExport, NfsRoot, NfsState, NfsWanted};
use rootstock_client::Client;
use rootstock_core::chain;

use crate::{FromExport, Options, ports::Ports, running::Running, sockets};

/// How often it is looked who is connected.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often the daemon is told what it knows, which may have started anew.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// Between questions to a daemon that is away.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// Before an export that failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its directories cannot be used.
    #[error("{what} cannot be used")]
    Directory {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no thread to be had.
    #[error("the system has no thread to give")]
    Thread(#[source] io::Error),
}

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// The daemon wants this.
    Wanted(NfsWanted),
    /// An export's process says so.
    Said(u64, FromExport),
    /// It ended.
    Ended(u64),
}

/// What the daemon is told.
#[derive(Default)]
struct Board {
    exports: Mutex<(u64, Vec<NfsExport>)>,
    changed: Condvar,
}

/// Exports what the daemon wants, for as long as the process runs.
///
/// # Errors
/// [`ServeError`], before anything is served.
pub fn serve(client: Client, options: Options) -> Result<(), ServeError> {
    let unusable = |what: &std::path::Path| {
        let what = what.display().to_string();
        move |source| ServeError::Directory { what, source }
    };
    std::fs::create_dir_all(&options.run_dir).map_err(unusable(&options.run_dir))?;
    let ports = Ports::open(&options.state_dir, options.ports.clone());
    let ports = ports.map_err(unusable(&options.state_dir))?;
    let (client, board) = (Arc::new(client), Arc::new(Board::default()));
    let (sender, events) = mpsc::channel();
    let (asker, teller) = (Arc::clone(&client), Arc::clone(&board));
    let wants = sender.clone();
    let named = |name: &str| thread::Builder::new().name(name.to_owned());
    named("asker")
        .spawn(move || ask(&asker, &wants))
        .map_err(ServeError::Thread)?;
    named("teller")
        .spawn(move || tell(&client, &teller))
        .map_err(ServeError::Thread)?;
    let mut head = Head {
        options,
        ports,
        board,
        sender,
        exports: BTreeMap::new(),
        numbers: BTreeMap::new(),
        number: 0,
        wanted: BTreeMap::new(),
    };
    loop {
        match events.recv_timeout(head.rest()) {
            Ok(event) => head.take(event),
            Err(RecvTimeoutError::Timeout) => {}
            // Its own sender is one.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        head.look();
        head.post();
    }
}

/// Asks what is wanted, again and again.
fn ask(client: &Client, wants: &Sender<Event>) {
    let (mut after, mut was_away) = (0, false);
    loop {
        let state = NfsState {
            after,
            exports: None,
        };
        match client.nfs(&state) {
            Ok(wanted) => {
                if was_away {
                    tracing::info!("the daemon answers");
                }
                (after, was_away) = (wanted.number, false);
                if wants.send(Event::Wanted(wanted)).is_err() {
                    return;
                }
            }
            Err(error) => {
                if !was_away {
                    let error = chain(&error);
                    tracing::warn!(error, "the daemon cannot be asked; exports stay");
                }
                was_away = true;
                thread::sleep(AWAY_PAUSE);
            }
        }
    }
}

/// Tells the daemon what is exported, when that changes and now and then.
fn tell(client: &Client, board: &Board) {
    let mut told = 0;
    loop {
        let exports = board.exports.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = board
            .changed
            .wait_timeout_while(exports, TELL_EVERY, |(number, _)| *number == told);
        let (exports, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let (number, exports) = exports.clone();
        let state = NfsState {
            after: 0,
            exports: Some(exports),
        };
        match client.nfs(&state) {
            Ok(_) => told = number,
            Err(_) => thread::sleep(AWAY_PAUSE),
        }
    }
}

struct Head {
    options: Options,
    ports: Ports,
    board: Arc<Board>,
    sender: Sender<Event>,
    exports: BTreeMap<NfsRoot, Running>,
    /// What processes are called in events.
    numbers: BTreeMap<u64, NfsRoot>,
    number: u64,
    wanted: BTreeMap<NfsRoot, BTreeSet<IpAddr>>,
}

impl Head {
    /// How long nothing is to be done.
    fn rest(&self) -> Duration {
        let again = self.exports.values().filter_map(|export| export.again_at);
        let until = again
            .min()
            .map(|at| at.saturating_duration_since(Instant::now()));
        until.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Wanted(wanted) => {
                let wants = wanted.exports.into_iter().take(NFS_EXPORTS_MAX);
                let wants = wants.map(|want| (want.root, want.clients.into_iter().collect()));
                self.wanted = wants.collect();
            }
            Event::Said(number, said) => {
                let root = self.numbers.get(&number);
                if let Some(root) = root
                    && let Some(export) = self.exports.get_mut(root)
                {
                    heard(root, export, said);
                }
            }
            Event::Ended(number) => {
                let root = self.numbers.remove(&number);
                let export = root.as_ref().and_then(|root| self.exports.get_mut(root));
                if let Some(export) = export {
                    export.ended();
                    export.again_at = Some(Instant::now() + AGAIN_AFTER);
                    let unsaid = || "its process ended".to_owned();
                    export.trouble.get_or_insert_with(unsaid);
                }
            }
        }
    }

    /// Starts what is wanted, lets in who wants it, and ends what nobody uses.
    fn look(&mut self) {
        self.give_ports();
        let connected = sockets::connected();
        let now = Instant::now();
        let mut over = Vec::new();
        for (root, export) in &mut self.exports {
            let there = connected.iter().filter(|(port, _)| *port == export.port);
            let there: BTreeSet<IpAddr> = there.map(|(_, address)| *address).collect();
            let wants = self.wanted.get(root);
            if wants.is_some() || !there.is_empty() {
                export.idle_since = None;
            } else if now - *export.idle_since.get_or_insert(now) >= self.options.linger {
                over.push(root.clone());
                continue;
            }
            // Who reads it may go on, also when the daemon thinks that it is gone.
            let known = export.clients.iter().filter(|own| there.contains(own));
            let clients = wants.into_iter().flatten().chain(known).copied().collect();
            if export.runs() {
                export.let_in(clients);
            } else if export.again_at.is_none_or(|at| at <= now) {
                self.number += 1;
                self.numbers.insert(self.number, root.clone());
                let events = (self.sender.clone(), self.number);
                if let Err(error) = export.start(root, clients, &self.options, events) {
                    self.numbers.remove(&self.number);
                    export.trouble = Some(format!("its process cannot be started: {error}"));
                    export.again_at = Some(now + AGAIN_AFTER);
                }
            }
        }
        for root in over {
            tracing::info!(version = %root.spec(), "nobody uses it: not exported any more");
            self.exports.remove(&root);
        }
    }

    /// Gives what is newly wanted a port. The daemon is told of what gets none.
    fn give_ports(&mut self) {
        for root in self.wanted.keys() {
            if self.exports.contains_key(root) {
                continue;
            }
            let runs = |other: &NfsRoot| self.exports.contains_key(other);
            match self.ports.of(root, runs) {
                Ok(Some(port)) => drop(self.exports.insert(root.clone(), Running::new(port))),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "ports cannot be kept"),
            }
        }
    }

    /// Puts up what the daemon is told.
    fn post(&self) {
        let states = self
            .exports
            .iter()
            .filter_map(|(root, export)| export.state(root));
        let lacking = self
            .wanted
            .keys()
            .filter(|root| !self.exports.contains_key(root));
        let lacking = lacking.map(|root| NfsExport {
            root: root.clone(),
            port: 0,
            clients: Vec::new(),
            trouble: Some("`rootstock nfs serve` has no port left: see its --ports".to_owned()),
        });
        let states: Vec<_> = states.chain(lacking).collect();
        let mut exports = self
            .board
            .exports
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if exports.1 != states {
            *exports = (exports.0 + 1, states);
            self.board.changed.notify_one();
        }
    }
}

/// Notes what an export's process says.
fn heard(root: &NfsRoot, export: &mut Running, said: FromExport) {
    let version = root.spec();
    match said {
        FromExport::Ready(clients) => {
            let (port, count) = (export.port, clients.len());
            tracing::info!(%version, port, clients = count, "exported");
            export.clients = clients;
            export.trouble = None;
        }
        FromExport::Failed(why) => {
            tracing::error!(%version, why, "not exported");
            export.trouble = Some(why);
        }
    }
}
