//! Requests and answers: the one place that knows the HTTP library.

use std::{
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use reqwest::{Method, RequestBuilder, Response, header};
use rootstock_api::{BINARY_MEDIA_TYPE, Problem};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde::{Serialize, de::DeserializeOwned};

use crate::{ClientError, Endpoint};

/// How long a connection may take to be made.
const CONNECT_SECONDS_MAX: u64 = 10;
/// How long an answer may stall: a commit may wait for a large flush.
const STALL_SECONDS_MAX: u64 = 600;
/// The largest JSON or binary answer that is taken, in bytes.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// The longest line of progress, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// How long a call that may be repeated is repeated while the daemon is away, as
/// when it restarts.
pub const AWAY_SECONDS_MAX: u64 = 30;
/// The rest before a call is made again: at first, and at most.
const AWAY_PAUSE_MIN: Duration = Duration::from_millis(100);
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How to reach a daemon.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The bearer token, needed over TCP.
    pub token: Option<String>,
    /// A file of PEM certificates to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Hears that the daemon went away and is waited for; once each time.
    pub on_away: fn(&ClientError),
}

/// A daemon's API.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    endpoint: Endpoint,
    token: Option<String>,
    on_away: fn(&ClientError),
    away: AtomicBool,
}

impl Client {
    /// A client of the daemon at an endpoint; nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError::Tls`] when the certificates cannot be used.
    pub fn new(options: ClientOptions) -> Result<Self, ClientError> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
            .read_timeout(Duration::from_secs(STALL_SECONDS_MAX))
            .user_agent(concat!("rootstock/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .tls_backend_preconfigured(tls(&options)?);
        if let Endpoint::Unix(path) = &options.endpoint {
            builder = builder.unix_socket(path.as_path());
        }
        let http = builder.build().map_err(|cause| ClientError::Tls {
            what: cause.to_string(),
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("api-client")
            .enable_all()
            .build()
            .map_err(ClientError::Start)?;
        Ok(Self {
            http,
            runtime,
            endpoint: options.endpoint,
            token: options.token,
            on_away: options.on_away,
            away: AtomicBool::new(false),
        })
    }

    /// Where the daemon is.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.request(Method::GET, path))
    }

    pub(crate) fn get_with<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &str,
    ) -> Result<T, ClientError> {
        self.json(self.request(Method::GET, &format!("{path}?{query}")))
    }

    pub(crate) fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.json(self.request(method, path).json(body))
    }

    /// A call that has no body and whose answer has none that matters.
    pub(crate) fn order(&self, method: Method, path: &str) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let response = self.answer(self.request(method, path)).await?;
            self.body(response).await?;
            Ok(())
        })
    }

    /// Sends bytes and reads a document. May be sent again: see [`Self::exchange`].
    pub(crate) fn send_bytes<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Bytes,
    ) -> Result<T, ClientError> {
        self.parse(&self.repeat(path, body)?)
    }

    /// Sends bytes and reads bytes. Calls with bytes are about chunks, which their
    /// content names: made twice they do what they do once, so they are made again
    /// when the daemon goes away meanwhile.
    pub(crate) fn exchange(&self, path: &str, body: Vec<u8>) -> Result<Vec<u8>, ClientError> {
        self.repeat(path, &body.into())
    }

    fn repeat(&self, path: &str, body: &Bytes) -> Result<Vec<u8>, ClientError> {
        let mut lost = None;
        let mut pause = AWAY_PAUSE_MIN;
        self.runtime.block_on(async {
            loop {
                let outcome = match self.answer(self.binary(path, body.clone())).await {
                    Ok(response) => self.body(response).await,
                    Err(error) => Err(error),
                };
                let error = match outcome {
                    Err(error) if error.is_passing() => error,
                    outcome => {
                        self.away.store(false, Ordering::Relaxed);
                        return outcome;
                    }
                };
                let since = lost.get_or_insert_with(Instant::now);
                if since.elapsed() >= Duration::from_secs(AWAY_SECONDS_MAX) {
                    return Err(error);
                }
                if !self.away.swap(true, Ordering::Relaxed) {
                    (self.on_away)(&error);
                }
                tokio::time::sleep(pause).await;
                pause = AWAY_PAUSE_MAX.min(pause * 2);
            }
        })
    }

    /// Reads bytes and the named headers of the answer.
    pub(crate) fn get_bytes<const N: usize>(
        &self,
        path: &str,
        headers: [&str; N],
    ) -> Result<(Vec<u8>, [String; N]), ClientError> {
        self.runtime.block_on(async {
            let response = self.answer(self.request(Method::GET, path)).await?;
            let values = headers.map(|name| {
                let value = response.headers().get(name);
                value
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default()
                    .to_owned()
            });
            Ok((self.body(response).await?, values))
        })
    }

    /// Hands every line of a long operation's progress to `line`.
    pub(crate) fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        mut line: impl FnMut(T),
    ) -> Result<(), ClientError> {
        self.lines_of(Method::POST, path, |document| {
            line(document);
            ControlFlow::Continue(())
        })
    }

    /// Hands every line of an answer to `line`, until it wants no more.
    pub(crate) fn lines_of<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        mut line: impl FnMut(T) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let mut response = self.answer(self.request(method, path)).await?;
            let mut pending: Vec<u8> = Vec::new();
            while let Some(bytes) = response.chunk().await.map_err(|e| self.lost(e))? {
                pending.extend_from_slice(&bytes);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let rest = pending.split_off(end + 1);
                    if line(self.parse(&pending)?).is_break() {
                        return Ok(());
                    }
                    pending = rest;
                }
                if pending.len() > LINE_BYTES_MAX {
                    return Err(self.not_the_api("a line of progress has no end".to_owned()));
                }
            }
            if !pending.is_empty() {
                // It was the last one: whether more are wanted is all the same.
                let _ = line(self.parse(&pending)?);
            }
            Ok(())
        })
    }

    pub(crate) fn not_the_api(&self, what: String) -> ClientError {
        ClientError::NotTheApi {
            endpoint: self.endpoint.clone(),
            what,
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let base = match &self.endpoint {
            // The host is not looked up: the socket is the address.
            Endpoint::Unix(_) => "http://rootstock".to_owned(),
            Endpoint::Https(host) => format!("https://{host}"),
        };
        let request = self.http.request(method, format!("{base}{path}"));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn binary(&self, path: &str, body: Bytes) -> RequestBuilder {
        self.request(Method::POST, path)
            .header(header::CONTENT_TYPE, BINARY_MEDIA_TYPE)
            .body(body)
    }

    fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        self.runtime.block_on(async {
            let response = self.answer(request).await?;
            self.parse(&self.body(response).await?)
        })
    }

    /// The answer, when it is one; otherwise the problem it is.
    async fn answer(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|cause| {
            if cause.is_connect() {
                ClientError::Connect {
                    endpoint: self.endpoint.clone(),
                    cause,
                }
            } else {
                self.lost(cause)
            }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.body(response).await?;
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(ClientError::Problem(Box::new(problem))),
            Err(_) => Err(self.not_the_api(format!("it answers {status}"))),
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(bytes) = response.chunk().await.map_err(|e| self.lost(e))? {
            if body.len() + bytes.len() > ANSWER_BYTES_MAX {
                return Err(self.not_the_api("an answer is larger than any can be".to_owned()));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    fn parse<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(bytes).map_err(|error| self.not_the_api(error.to_string()))
    }

    fn lost(&self, cause: reqwest::Error) -> ClientError {
        ClientError::Lost {
            endpoint: self.endpoint.clone(),
            cause,
        }
    }
}

/// TLS with the system's certificates, or with those of one file.
fn tls(options: &ClientOptions) -> Result<rustls::ClientConfig, ClientError> {
    let error = |what: String| ClientError::Tls { what };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| error(e.to_string()))?;
    let builder = match (&options.endpoint, &options.ca_file) {
        (Endpoint::Https(_), None) => builder
            .with_platform_verifier()
            .map_err(|e| error(e.to_string()))?,
        (_, None) => builder.with_root_certificates(rustls::RootCertStore::empty()),
        (_, Some(path)) => {
            let unusable = |e: &dyn std::fmt::Display| {
                error(format!("{}: no certificates read: {e}", path.display()))
            };
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(path).map_err(|e| unusable(&e))? {
                let certificate = certificate.map_err(|e| unusable(&e))?;
                roots.add(certificate).map_err(|e| unusable(&e))?;
            }
            if roots.is_empty() {
                return Err(unusable(&"it has none"));
            }
            builder.with_root_certificates(roots)
        }
    };
    Ok(builder.with_no_client_auth())
}
