//! What a command works with: the daemon's client and how to print.

use std::{
    io::IsTerminal,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context as _;
use rootstock_client::{AWAY_SECONDS_MAX, Client, ClientError, ClientOptions, Endpoint};

use crate::{cli::Global, error::WrongUse};

/// Where the packaged daemon listens.
const API_DEFAULT: &str = "unix:/run/rootstock/api.sock";

/// The longest token file that is read, in bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// One run of a command.
pub(crate) struct Session {
    global: Global,
    client: OnceLock<Client>,
}

impl Session {
    /// The session of a command line.
    pub(crate) fn new(global: &Global) -> Self {
        Self {
            global: global.clone(),
            client: OnceLock::new(),
        }
    }

    /// The daemon's client.
    ///
    /// # Errors
    /// When the token or the certificates cannot be read.
    pub(crate) fn client(&self) -> anyhow::Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = self.own_client()?;
        Ok(self.client.get_or_init(|| client))
    }

    /// A client of the daemon for threads that outlive the session.
    ///
    /// # Errors
    /// As for [`Session::client`].
    pub(crate) fn own_client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(ClientOptions {
            endpoint: self.endpoint()?,
            token: self.token()?,
            ca_file: self.global.ca.clone(),
            on_away: if self.global.quiet { |_| {} } else { say_away },
        })?)
    }

    /// Whether results are printed as JSON.
    pub(crate) fn json(&self) -> bool {
        self.global.json
    }

    /// Whether remarks are wanted.
    pub(crate) fn chatty(&self) -> bool {
        !self.global.quiet && !self.global.json
    }

    /// Whether progress is shown: to people only.
    pub(crate) fn shows_progress(&self) -> bool {
        !self.global.quiet && std::io::stderr().is_terminal()
    }

    fn endpoint(&self) -> anyhow::Result<Endpoint> {
        let text = match self.global.api.as_slice() {
            [] => std::env::var("ROOTSTOCK_API").unwrap_or_else(|_| API_DEFAULT.to_owned()),
            [one] => one.clone(),
            _ => {
                return Err(WrongUse {
                    message: "--api is given more than once".to_owned(),
                    hint: "only 'rootstock serve' has several".to_owned(),
                }
                .into());
            }
        };
        text.parse()
            .map_err(|error: rootstock_client::EndpointError| {
                WrongUse {
                    message: error.to_string(),
                    hint: format!("without --api and ROOTSTOCK_API it is {API_DEFAULT}"),
                }
                .into()
            })
    }

    fn token(&self) -> anyhow::Result<Option<String>> {
        use std::io::Read as _;
        let Some(path) = &self.global.token_file else {
            return Ok(std::env::var("ROOTSTOCK_TOKEN").ok());
        };
        let mut token = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut token))
            .with_context(|| format!("the token file '{}' cannot be read", path.display()))?;
        Ok(Some(token.trim().to_owned()))
    }
}

fn say_away(error: &ClientError) {
    eprintln!("note:  {error}: it is tried again for {AWAY_SECONDS_MAX} s");
}

/// A flag that Ctrl-C and SIGTERM set, so that temporary files are removed and
/// helpers end. A second signal ends the process at once.
///
/// # Errors
/// When the signals cannot be watched.
pub(crate) fn cancel_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let flag = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                    if watched.swap(true, Ordering::Relaxed) {
                        std::process::exit(i32::from(crate::error::FAILED));
                    }
                }
            });
        })?;
    Ok(flag)
}
