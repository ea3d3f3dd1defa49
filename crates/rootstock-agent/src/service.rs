//! The node service as the machine calls it: blocking HTTP with deadlines.

use std::io::Read;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use rootstock_api::boot::{
    BOOT_PACK, CHUNKS, CONTROL, CONTROL_HOLD_SECONDS, COVERAGE_HEADER, DELTAS, FETCH_IDS_MAX,
    MANIFEST, NextVersion, NodeControl, NodeReport, ORDER, ORDER_BYTES_MAX, ORDER_SIGNATURE_HEADER,
    REPORT, ReportAnswer, SESSION, STEPS, SessionCreate, SessionState, Steps, TRACE,
};
use rootstock_api::guest::{GUEST_ORDER, GUEST_ORDER_BYTES_MAX};
use rootstock_api::local::{
    HOLD_TOKEN, LOCAL_FILE, LOCAL_ORDER, LOCAL_ORDER_BYTES_MAX, LOCAL_TOKEN,
};
use rootstock_api::personal::{COMMIT, COMMIT_CHUNKS, COMMIT_LACKING, CommitTold};
use rootstock_api::record::{Bitmap, FETCH_BYTES_MAX, FETCH_MAX, encode_ids};
use rootstock_api::swarm::{SWARM, SWARM_HOLDS, SwarmAnnounce, SwarmAnswer};
use rootstock_core::{ChunkId, Digest, MacAddress};
use rootstock_image::manifest::MANIFEST_BYTES_MAX;
use rootstock_image::trace::TRACE_BYTES_MAX;
use serde::{Serialize, de::DeserializeOwned};
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::typestate::WithBody;
use ureq::{Agent, Body, RequestBuilder};

use crate::guest::DOCUMENT_BYTES_MAX;

/// A server in the same building connects at once, or is not there.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A whole answer: 16 MiB at the pace of a bad link.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// A whole boot pack, as slowly as a guest takes it.
const PACK_LIMIT: Duration = Duration::from_secs(900);
/// The ids of one, which are 256 KiB at most.
const PACK_SEND_LIMIT: Duration = Duration::from_secs(10);
/// Steps and reports are small.
const SMALL_LIMIT: Duration = Duration::from_secs(10);
/// Kept connections: one for each worker, and for what is sent beside.
const CONNECTIONS_MAX: usize = 24;
/// A JSON answer other than an order.
const SMALL_BYTES_MAX: u64 = 64 << 10;
/// The members of a swarm: 512 of them, with their racks.
const SWARM_BYTES_MAX: u64 = 256 << 10;
/// What is shown of a refusal.
const REFUSAL_BYTES_MAX: u64 = 4 << 10;

const _: () = assert!(FETCH_IDS_MAX <= FETCH_MAX, "an answer fits its bound");

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No answer came: the network, the server, or its certificate.
    #[error("no answer from {url}")]
    Unreachable {
        /// What was called.
        url: String,
        /// What happened.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The server said no.
    #[error("{url} answered {status}: {reason}")]
    Refused {
        /// What was called.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's words.
        reason: String,
    },
    /// The machine started from its own disk, and no server knows of it yet.
    #[error("this machine has no session with its server")]
    NoSession,
    /// The answer makes no sense.
    #[error("the answer from {url} is not what it should be: {what}")]
    Answer {
        /// What was called.
        url: String,
        /// What is wrong with it.
        what: String,
    },
}

impl CallError {
    /// Whether the same call may go well later: the network may come back, a
    /// server may be starting or have too much to do (RFC 9110, section 15).
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoSession => true,
            Self::Refused { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            Self::Answer { .. } => false,
        }
    }
}

/// A client of the node service. Clones have one session.
#[derive(Clone)]
pub(crate) struct Service {
    agent: Agent,
    session: Arc<RwLock<Session>>,
}

/// What a server knows this machine by.
#[derive(Debug, Default)]
struct Session {
    secret: Option<String>,
    /// Whether a server does not know it any more.
    is_refused: bool,
}

impl Service {
    /// A client that trusts certificates of this authority (PEM) alone.
    ///
    /// # Errors
    /// When the text is no certificate.
    pub(crate) fn new(authority_pem: &str) -> Result<Self, ureq::Error> {
        let authority = Certificate::from_pem(authority_pem.as_bytes())?;
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::new_with_certs(&[authority]))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("rootstock-agent/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(CONNECTIONS_MAX)
            .max_idle_connections_per_host(CONNECTIONS_MAX)
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_global(Some(ANSWER_LIMIT))
            .tls_config(tls)
            .build()
            .into();
        Ok(Self {
            agent,
            session: Arc::default(),
        })
    }

    /// The same client with a session's secret.
    #[must_use]
    pub(crate) fn with_session(&self, session: &str) -> Self {
        Self {
            agent: self.agent.clone(),
            session: Arc::new(RwLock::new(Session {
                secret: Some(session.to_owned()),
                is_refused: false,
            })),
        }
    }

    /// Has this client and its clones go on with a session, unless they have one.
    pub(crate) fn join(&self, session: &str) {
        let mut present = self.lock_session();
        present.secret.get_or_insert_with(|| session.to_owned());
    }

    /// Has this client and its clones go on with another session.
    pub(crate) fn renew(&self, session: &str) {
        *self.lock_session() = Session {
            secret: Some(session.to_owned()),
            is_refused: false,
        };
    }

    /// The session.
    pub(crate) fn session(&self) -> Option<String> {
        let session = self.session.read();
        let session = session.unwrap_or_else(PoisonError::into_inner);
        session.secret.clone()
    }

    /// Whether a server does not know the session any more.
    pub(crate) fn is_refused(&self) -> bool {
        let session = self.session.read();
        session.unwrap_or_else(PoisonError::into_inner).is_refused
    }

    fn lock_session(&self) -> RwLockWriteGuard<'_, Session> {
        self.session.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a session.
    pub(crate) fn has_session(&self) -> bool {
        self.session().is_some()
    }

    /// A boot token for a machine that started from its own disk, if it is to run
    /// this version.
    pub(crate) fn local_token(
        &self,
        base: &str,
        mac: MacAddress,
        runs: &NextVersion,
    ) -> Result<String, CallError> {
        let (mac, spec, manifest) = (mac.dashed(), runs.spec(), runs.manifest);
        self.token(&format!(
            "{base}{LOCAL_TOKEN}{mac}?runs={spec}&manifest={manifest}"
        ))
    }

    /// A boot token for a machine that holds a version, if it is to.
    pub(crate) fn hold_token(&self, base: &str, mac: MacAddress) -> Result<String, CallError> {
        self.token(&format!("{base}{HOLD_TOKEN}{}", mac.dashed()))
    }

    fn token(&self, url: &str) -> Result<String, CallError> {
        let request = self.agent.get(url).config();
        let request = request.timeout_global(Some(SMALL_LIMIT)).build();
        let response = accepted(url, request.call())?;
        let body = bytes(url, response, REFUSAL_BYTES_MAX)?;
        let token = String::from_utf8(body).map_err(|error| answer(url, error))?;
        let token = token.trim();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(answer(url, "it is no token"));
        }
        Ok(token.to_owned())
    }

    /// What a start of a version from the machine's own disk is, and its signature in
    /// hex.
    pub(crate) fn local_order(
        &self,
        base: &str,
        of: &NextVersion,
    ) -> Result<(Vec<u8>, String), CallError> {
        let (image, version) = (&of.image, of.version);
        let url = format!("{base}{LOCAL_ORDER}?image={image}&version={version}");
        let response = self.get(&url)?;
        let signature = header(&url, &response, ORDER_SIGNATURE_HEADER)?;
        Ok((
            bytes(&url, response, LOCAL_ORDER_BYTES_MAX as u64)?,
            signature,
        ))
    }

    /// The order for strangers of a version, and its signature in hex.
    pub(crate) fn guest_order(
        &self,
        base: &str,
        of: &NextVersion,
    ) -> Result<(Vec<u8>, String), CallError> {
        let (image, version) = (&of.image, of.version);
        let url = format!("{base}{GUEST_ORDER}?image={image}&version={version}");
        let response = self.get(&url)?;
        let signature = header(&url, &response, ORDER_SIGNATURE_HEADER)?;
        Ok((
            bytes(&url, response, GUEST_ORDER_BYTES_MAX as u64)?,
            signature,
        ))
    }

    /// What a machine of the swarm gives to others that boot.
    pub(crate) fn guest_document(&self, base: &str) -> Result<Vec<u8>, CallError> {
        let url = format!("{base}/guest.json");
        let response = accepted(&url, self.agent.get(&url).call())?;
        bytes(&url, response, DOCUMENT_BYTES_MAX)
    }

    /// A file that such a start needs, as it comes.
    pub(crate) fn local_file(
        &self,
        base: &str,
        of: &NextVersion,
        name: &str,
    ) -> Result<Box<dyn Read>, CallError> {
        let (image, version) = (&of.image, of.version);
        let url = format!("{base}{LOCAL_FILE}?image={image}&version={version}&name={name}");
        let request = self.agent.get(&url).config();
        let mut request = request.timeout_global(Some(PACK_LIMIT)).build();
        request = request.header("authorization", self.bearer()?);
        let response = accepted(&url, request.call())?;
        let body = response.into_body().into_with_config();
        Ok(Box::new(body.limit(u64::MAX).reader()))
    }

    /// Gives the token in for a session.
    pub(crate) fn open(&self, base: &str, ask: &SessionCreate) -> Result<SessionState, CallError> {
        let url = format!("{base}{SESSION}");
        let response = self.send_json(self.agent.post(&url), &url, ask)?;
        json(&url, response)
    }

    /// The order's bytes and its signature in hex.
    pub(crate) fn order(&self, base: &str) -> Result<(Vec<u8>, String), CallError> {
        let url = format!("{base}{ORDER}");
        let response = self.get(&url)?;
        let signature = header(&url, &response, ORDER_SIGNATURE_HEADER)?;
        Ok((bytes(&url, response, ORDER_BYTES_MAX as u64)?, signature))
    }

    /// The manifest's bytes and its seal in hex.
    pub(crate) fn manifest(&self, base: &str) -> Result<(Vec<u8>, String), CallError> {
        let url = format!("{base}{MANIFEST}");
        let response = self.get(&url)?;
        let seal = header(&url, &response, rootstock_api::SEAL_HEADER)?;
        Ok((bytes(&url, response, MANIFEST_BYTES_MAX as u64)?, seal))
    }

    /// As [`Service::manifest`], of another version.
    pub(crate) fn manifest_of(
        &self,
        base: &str,
        next: &NextVersion,
    ) -> Result<(Vec<u8>, String), CallError> {
        let (image, version) = (&next.image, next.version);
        let url = format!("{base}{MANIFEST}?image={image}&version={version}");
        let response = self.get(&url)?;
        let seal = header(&url, &response, rootstock_api::SEAL_HEADER)?;
        Ok((bytes(&url, response, MANIFEST_BYTES_MAX as u64)?, seal))
    }

    /// Records of these chunks of another version, as deltas out of `from` where
    /// that is given and the server has them.
    pub(crate) fn deltas(
        &self,
        base: &str,
        from: Option<&str>,
        next: &NextVersion,
        ids: &[ChunkId],
    ) -> Result<Vec<u8>, CallError> {
        let from = from.map_or_else(String::new, |from| format!("&from={from}"));
        let url = format!("{base}{DELTAS}?to={}:{}{from}", next.image, next.version);
        self.records(&url, ids)
    }

    /// Records of these chunks: those that the server has, in any order.
    pub(crate) fn chunks(&self, base: &str, ids: &[ChunkId]) -> Result<Vec<u8>, CallError> {
        self.records(&format!("{base}{CHUNKS}"), ids)
    }

    fn records(&self, url: &str, ids: &[ChunkId]) -> Result<Vec<u8>, CallError> {
        let response = self.send_bytes(url, &encode_ids(ids))?;
        bytes(url, response, FETCH_BYTES_MAX as u64)
    }

    fn send_bytes(&self, url: &str, body: &[u8]) -> Result<Response<Body>, CallError> {
        let request = self
            .agent
            .post(url)
            .header("content-type", "application/octet-stream")
            .header("authorization", self.bearer()?);
        accepted(url, request.send(body))
    }

    /// The site's trace of this version, if it has one.
    pub(crate) fn trace(&self, base: &str) -> Result<Option<Vec<u8>>, CallError> {
        let url = format!("{base}{TRACE}");
        let bytes = bytes(&url, self.get(&url)?, TRACE_BYTES_MAX as u64)?;
        Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    /// Tells what this boot read.
    pub(crate) fn tell_trace(
        &self,
        base: &str,
        trace: &[u8],
        coverage_permille: Option<u16>,
    ) -> Result<(), CallError> {
        let url = format!("{base}{TRACE}");
        let mut request = self
            .agent
            .post(&url)
            .header("content-type", "application/octet-stream");
        if let Some(permille) = coverage_permille {
            request = request.header(COVERAGE_HEADER, permille.to_string());
        }
        request = request.header("authorization", self.bearer()?);
        accepted(&url, request.send(trace)).map(drop)
    }

    /// Records of these chunks in this order, as the server sends them.
    pub(crate) fn boot_pack(
        &self,
        base: &str,
        ids: &[ChunkId],
    ) -> Result<Box<dyn Read>, CallError> {
        let url = format!("{base}{BOOT_PACK}");
        let mut request = self
            .agent
            .post(&url)
            .config()
            .timeout_global(Some(PACK_LIMIT))
            .timeout_send_body(Some(PACK_SEND_LIMIT))
            .build()
            .header("content-type", "application/octet-stream");
        request = request.header("authorization", self.bearer()?);
        let response = accepted(&url, request.send(&encode_ids(ids)[..]))?;
        let body = response.into_body().into_with_config();
        Ok(Box::new(body.limit(u64::MAX).reader()))
    }

    /// Tells steps of the boot.
    pub(crate) fn steps(&self, base: &str, steps: &Steps) -> Result<(), CallError> {
        self.post_json(&format!("{base}{STEPS}"), steps).map(|_| ())
    }

    /// Tells how the machine does.
    pub(crate) fn report(
        &self,
        base: &str,
        report: &NodeReport,
    ) -> Result<ReportAnswer, CallError> {
        let url = format!("{base}{REPORT}");
        let response = self.post_json(&url, report)?;
        json(&url, response)
    }

    /// What may change while the machine runs, when that is another than `after`.
    pub(crate) fn control(&self, base: &str, after: u64) -> Result<NodeControl, CallError> {
        let url = format!("{base}{CONTROL}?after={after}");
        let limit = Duration::from_secs(u64::from(CONTROL_HOLD_SECONDS)) + SMALL_LIMIT;
        let mut request = self
            .agent
            .get(&url)
            .config()
            .timeout_global(Some(limit))
            .build();
        request = request.header("authorization", self.bearer()?);
        let response = accepted(&url, request.call())?;
        json(&url, response)
    }

    /// Which of these chunks the server lacks, for a commit of what this machine wrote.
    pub(crate) fn commit_lacking(
        &self,
        base: &str,
        commit: &str,
        ids: &[ChunkId],
    ) -> Result<Bitmap, CallError> {
        let url = format!("{base}{COMMIT_LACKING}?commit={commit}");
        let response = self.send_bytes(&url, &encode_ids(ids))?;
        let body = bytes(&url, response, SMALL_BYTES_MAX)?;
        Bitmap::from_bytes(body, ids.len()).ok_or_else(|| answer(&url, "it has other bits"))
    }

    /// Sends chunks of a commit, as records.
    pub(crate) fn commit_chunks(
        &self,
        base: &str,
        commit: &str,
        records: &[u8],
    ) -> Result<(), CallError> {
        let url = format!("{base}{COMMIT_CHUNKS}?commit={commit}");
        self.send_bytes(&url, records).map(drop)
    }

    /// Tells how far a commit is.
    pub(crate) fn commit_told(
        &self,
        base: &str,
        commit: &str,
        told: &CommitTold,
    ) -> Result<(), CallError> {
        let url = format!("{base}{COMMIT}?commit={commit}");
        let text = serde_json::to_vec(told).map_err(|error| answer(&url, error))?;
        let request = self.agent.post(&url).config();
        let limit = match told {
            // The server goes through all of the version before it answers.
            CommitTold::Sent { .. } => PACK_LIMIT,
            CommitTold::Going(_) | CommitTold::Failed { .. } => SMALL_LIMIT,
        };
        let request = request.timeout_global(Some(limit)).build();
        let request = request.header("content-type", "application/json");
        let request = request.header("authorization", self.bearer()?);
        accepted(&url, request.send(&text[..])).map(drop)
    }

    /// Says that this machine is in the swarm, and hears of the others.
    pub(crate) fn swarm(&self, base: &str, said: &SwarmAnnounce) -> Result<SwarmAnswer, CallError> {
        let url = format!("{base}{SWARM}");
        let response = self.post_json(&url, said)?;
        let body = bytes(&url, response, SWARM_BYTES_MAX)?;
        serde_json::from_slice(&body).map_err(|error| answer(&url, error))
    }

    /// Says which chunks of a version are here.
    pub(crate) fn swarm_holds(
        &self,
        base: &str,
        version: Digest,
        bits: &[u8],
    ) -> Result<(), CallError> {
        let url = format!("{base}{SWARM_HOLDS}?version={version}");
        self.send_bytes(&url, bits).map(drop)
    }

    fn get(&self, url: &str) -> Result<Response<Body>, CallError> {
        let request = self.agent.get(url);
        accepted(url, request.header("authorization", self.bearer()?).call())
    }

    fn post_json(&self, url: &str, body: &impl Serialize) -> Result<Response<Body>, CallError> {
        let bearer = self.bearer()?;
        let request = self.agent.post(url).header("authorization", &bearer);
        let sent = self.send_json(request, url, body);
        if let Err(CallError::Refused { status: 401, .. }) = &sent {
            self.was_refused(&bearer);
        }
        sent
    }

    /// What is sent again and again finds out that a server does not know the session.
    fn was_refused(&self, bearer: &str) {
        let mut session = self.lock_session();
        // There may be another one by now.
        let is_it = |secret: &String| bearer_of(secret) == bearer;
        session.is_refused |= session.secret.as_ref().is_some_and(is_it);
    }

    fn send_json(
        &self,
        request: RequestBuilder<WithBody>,
        url: &str,
        body: &impl Serialize,
    ) -> Result<Response<Body>, CallError> {
        let text = serde_json::to_vec(body).map_err(|error| answer(url, error))?;
        let request = request
            .config()
            .timeout_global(Some(SMALL_LIMIT))
            .build()
            .header("content-type", "application/json");
        accepted(url, request.send(&text[..]))
    }

    fn bearer(&self) -> Result<String, CallError> {
        let secret = self.session().ok_or(CallError::NoSession)?;
        Ok(bearer_of(&secret))
    }
}

fn bearer_of(secret: &str) -> String {
    format!("Bearer {secret}")
}

fn accepted(
    url: &str,
    result: Result<Response<Body>, ureq::Error>,
) -> Result<Response<Body>, CallError> {
    let mut response = result.map_err(|source| CallError::Unreachable {
        url: url.to_owned(),
        source: Box::new(source),
    })?;
    if response.status().is_success() {
        return Ok(response);
    }
    let text = response
        .body_mut()
        .with_config()
        .limit(REFUSAL_BYTES_MAX)
        .read_to_string()
        .unwrap_or_default();
    Err(CallError::Refused {
        url: url.to_owned(),
        status: response.status().as_u16(),
        reason: reason(&text),
    })
}

/// The words of a problem document (RFC 9457), or the text itself.
fn reason(text: &str) -> String {
    let problem: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let word = |name: &str| {
        problem
            .as_ref()
            .and_then(|problem| problem.get(name)?.as_str())
            .map(str::to_owned)
    };
    word("detail")
        .or_else(|| word("title"))
        .unwrap_or_else(|| text.lines().next().unwrap_or_default().to_owned())
}

fn header(url: &str, response: &Response<Body>, name: &str) -> Result<String, CallError> {
    response
        .headers()
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
        .ok_or_else(|| answer(url, format_args!("it has no {name} header")))
}

/// The whole body, which has this many bytes at most.
fn bytes(url: &str, mut response: Response<Body>, bytes_max: u64) -> Result<Vec<u8>, CallError> {
    // Its reader refuses a body that has just as many bytes as the limit.
    let body = response.body_mut().with_config().limit(bytes_max + 1);
    body.read_to_vec().map_err(|source| CallError::Unreachable {
        url: url.to_owned(),
        source: Box::new(source),
    })
}

fn json<T: DeserializeOwned>(url: &str, response: Response<Body>) -> Result<T, CallError> {
    let body = bytes(url, response, SMALL_BYTES_MAX)?;
    serde_json::from_slice(&body).map_err(|error| answer(url, error))
}

fn answer(url: &str, what: impl std::fmt::Display) -> CallError {
    CallError::Answer {
        url: url.to_owned(),
        what: what.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use rootstock_api::Record;
    use rootstock_core::CHUNK_BYTES;

    use super::*;

    /// A server's answer of so many bytes.
    fn answer_of(len: usize) -> Response<Body> {
        Response::new(Body::builder().data(vec![7; len]))
    }

    #[test]
    fn a_session_is_refused_until_there_is_another() {
        let service = Service {
            agent: Agent::new_with_defaults(),
            session: Arc::default(),
        };
        service.was_refused(&bearer_of("one"));
        assert!(!service.is_refused() && !service.has_session());
        service.join("one");
        service.join("other");
        assert_eq!(service.session().as_deref(), Some("one"), "it has one");
        service.was_refused(&bearer_of("one"));
        assert!(service.clone().is_refused());
        service.renew("other");
        // An answer that was on its way.
        service.was_refused(&bearer_of("one"));
        assert!(!service.is_refused());
    }

    #[test]
    fn an_answer_may_be_as_long_as_its_bound() {
        for (len, bytes_max, is_taken) in [(0, 8, true), (8, 8, true), (9, 8, false)] {
            let read = bytes("it", answer_of(len), bytes_max);
            assert_eq!(read.is_ok(), is_taken, "{len} of {bytes_max}");
        }
    }

    #[test]
    fn as_many_chunks_as_are_asked_for_come_even_if_none_compresses() {
        let raw = vec![7; CHUNK_BYTES as usize];
        let record = Record {
            chunk: ChunkId::of(&raw),
            raw_bytes: CHUNK_BYTES as u32,
            codec: 0,
            frame: &raw,
        };
        let len = FETCH_IDS_MAX * record.len_bytes();
        let read = bytes("it", answer_of(len), FETCH_BYTES_MAX as u64);
        assert_eq!(read.expect("it fits").len(), len);
    }

    #[test]
    fn refusals_are_told_in_the_servers_words() {
        for (text, expected) in [
            (
                r#"{"title":"no","detail":"the token was used"}"#,
                "the token was used",
            ),
            (r#"{"title":"no"}"#, "no"),
            ("plain words\nand more", "plain words"),
            ("", ""),
        ] {
            assert_eq!(reason(text), expected);
        }
    }
}
