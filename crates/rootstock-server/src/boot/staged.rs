//! Kernels and first stages that were offered, each under the token of its boot.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rootstock_core::{Digest, MacAddress, NodeName};

use super::stage::Stage;

/// How long a token is good until it is given in, and its files are served.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(600);

/// The most tokens at once.
const TOKENS_MAX: usize = 65_536;

/// Where what is offered under a token is fetched, with a slash before and after it.
pub(crate) fn path(token: &str) -> String {
    format!("/boot/s/{token}/")
}

/// What was offered to a machine.
#[derive(Debug)]
pub(crate) struct Staged {
    /// Who may fetch it.
    pub(crate) peer: IpAddr,
    pub(crate) mac: MacAddress,
    pub(crate) node: NodeName,
    pub(crate) boot: String,
    pub(crate) stage: Stage,
    until: Instant,
}

/// Everything that is offered now. The daemon forgets it when it restarts; scripts
/// then ask for a new one.
#[derive(Debug, Default)]
pub(crate) struct StagedFiles(Mutex<HashMap<Digest, Arc<Staged>>>);

impl StagedFiles {
    /// Offers a stage under a token.
    pub(crate) fn offer(
        &self,
        token: &str,
        peer: IpAddr,
        mac: MacAddress,
        node: NodeName,
        boot: String,
        stage: Stage,
    ) {
        let now = Instant::now();
        let mut all = self.all();
        if all.len() >= TOKENS_MAX {
            all.retain(|_, staged| staged.until > now);
        }
        if all.len() >= TOKENS_MAX {
            tracing::warn!(limit = TOKENS_MAX, "too many boots at once");
            return;
        }
        let staged = Staged {
            peer,
            mac,
            node,
            boot,
            stage,
            until: now + TOKEN_LIFE,
        };
        all.insert(Digest::of(token.as_bytes()), Arc::new(staged));
    }

    /// What is offered under a token.
    pub(crate) fn get(&self, token: &str) -> Option<Arc<Staged>> {
        let all = self.all();
        let staged = all.get(&Digest::of(token.as_bytes()))?;
        (staged.until > Instant::now()).then(|| Arc::clone(staged))
    }

    /// Forgets what is over.
    pub(crate) fn tidy(&self) {
        let now = Instant::now();
        self.all().retain(|_, staged| staged.until > now);
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Staged>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
