//! Sockets and connections: Unix and TLS, bounded, and closed gracefully.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body, response::IntoResponse as _};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use super::{
    ApiError, STOPPING_IDLE,
    auth::Peer,
    traffic::{Counted, Traffic},
};
use crate::{config::ApiAddress, stop::Stop};

/// Connections at once, to all of the API's addresses.
const CONNECTIONS_MAX: usize = 1024;

/// How long a client may take for its TLS handshake, and for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The most headers of a request.
const HEADERS_MAX: usize = 64;

/// How long accepting rests after the system refused a connection, as when
/// descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon answers on the socket.
    #[error("another daemon is listening on {}: stop it, or choose another --api", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else at the socket's path.
    #[error("{} is there and is no socket: remove it, or choose another --api", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot listen on {address}")]
    Io {
        /// Where.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A bound socket.
enum Bound {
    Unix(UnixListener, PathBuf),
    Https(TcpListener, TlsAcceptor),
}

/// The API's sockets, bound and not yet served.
pub(crate) struct ApiServer {
    bound: Vec<Bound>,
    /// `HOST:PORT` of the HTTPS listeners, with the port that the system chose.
    pub(crate) https: Vec<std::net::SocketAddr>,
}

impl ApiServer {
    /// Binds all addresses, or none.
    pub(crate) async fn bind(
        addresses: &[ApiAddress],
        tls: Option<Arc<rustls::ServerConfig>>,
    ) -> Result<Self, ListenError> {
        let mut server = Self {
            bound: Vec::new(),
            https: Vec::new(),
        };
        for address in addresses {
            let failed = |source| ListenError::Io {
                address: address.to_string(),
                source,
            };
            match (address, &tls) {
                (ApiAddress::Unix(path), _) => {
                    let listener = bind_unix(path)?;
                    listener.set_nonblocking(true).map_err(failed)?;
                    let listener = UnixListener::from_std(listener).map_err(failed)?;
                    server.bound.push(Bound::Unix(listener, path.clone()));
                }
                (ApiAddress::Https(host), Some(tls)) => {
                    let listener = TcpListener::bind(host).await.map_err(failed)?;
                    server.https.push(listener.local_addr().map_err(failed)?);
                    let acceptor = TlsAcceptor::from(Arc::clone(tls));
                    server.bound.push(Bound::Https(listener, acceptor));
                }
                (ApiAddress::Https(_), None) => {
                    return Err(failed(io::Error::other("there is no TLS certificate")));
                }
            }
        }
        Ok(server)
    }

    /// Serves until `stop` is true, then finishes what is under way, for at most
    /// `patience`. The sockets' files are removed.
    pub(crate) async fn serve(self, router: Router, mut stop: Stop, patience: Duration) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        // Nothing is ever sent: it closes when the last request has ended.
        let (requests, mut requests_ended) = mpsc::channel(1);
        let mut listeners = JoinSet::new();
        let mut sockets = Vec::new();
        for bound in self.bound {
            let serving = Serving {
                router: router.clone(),
                places: Arc::clone(&places),
                requests: requests.clone(),
                stop: stop.clone(),
                patience,
            };
            match bound {
                Bound::Unix(listener, path) => {
                    sockets.push(path);
                    listeners.spawn(serving.unix(listener));
                }
                Bound::Https(listener, acceptor) => {
                    listeners.spawn(serving.https(listener, acceptor));
                }
            }
        }
        drop(requests);
        stop.wait().await;
        for path in sockets {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "socket not removed");
            }
        }
        while let Some(done) = listeners.join_next().await {
            if let Err(error) = done {
                tracing::error!(%error, "listener panicked");
            }
        }
        let ended = tokio::time::timeout(patience, requests_ended.recv());
        if ended.await.is_err() {
            tracing::warn!("requests cut off at shutdown");
        }
    }
}

/// Binds a Unix socket. A socket's file that nobody answers on is what a daemon
/// left that was killed; it is replaced.
pub(crate) fn bind_unix(path: &Path) -> Result<std::os::unix::net::UnixListener, ListenError> {
    let failed = |source| ListenError::Io {
        address: format!("unix:{}", path.display()),
        source,
    };
    if let Ok(metadata) = fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt as _;
        if !metadata.file_type().is_socket() {
            return Err(ListenError::NoSocket {
                path: path.to_owned(),
            });
        }
        match StdUnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => {
                return Err(ListenError::Taken {
                    path: path.to_owned(),
                });
            }
        }
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

/// What a listener needs to serve.
#[derive(Clone)]
struct Serving {
    router: Router,
    places: Arc<Semaphore>,
    /// Held by every request that is being answered.
    requests: mpsc::Sender<()>,
    stop: Stop,
    patience: Duration,
}

impl Serving {
    async fn unix(self, listener: UnixListener) {
        let mut connections = JoinSet::new();
        let mut stop = self.stop.clone();
        while let Some(place) = self.place(&mut stop).await {
            tokio::select! {
                () = stop.wait() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let peer = Peer::of_unix(&stream);
                        connections.spawn(self.clone().connection(stream, peer, place));
                    }
                    Err(error) => pause(&error).await,
                },
            }
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        self.finish(connections).await;
    }

    async fn https(self, listener: TcpListener, acceptor: TlsAcceptor) {
        let mut connections = JoinSet::new();
        let mut stop = self.stop.clone();
        while let Some(place) = self.place(&mut stop).await {
            tokio::select! {
                () = stop.wait() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let (serving, acceptor) = (self.clone(), acceptor.clone());
                        connections.spawn(async move {
                            // Latency matters more than the packets saved.
                            let _ = stream.set_nodelay(true);
                            let handshake = acceptor.accept(stream);
                            let handshake = tokio::time::timeout(HEAD_TIMEOUT, handshake);
                            let mut stop = serving.stop.clone();
                            let handshake = tokio::select! {
                                handshake = handshake => handshake,
                                () = stop.wait() => return,
                            };
                            match handshake {
                                Ok(Ok(stream)) => {
                                    serving.connection(stream, Peer::Remote, place).await;
                                }
                                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                                Err(_) => tracing::debug!("TLS handshake timed out"),
                            }
                        });
                    }
                    Err(error) => pause(&error).await,
                },
            }
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        self.finish(connections).await;
    }

    /// A place for one more connection, unless the daemon stops first.
    async fn place(&self, stop: &mut Stop) -> Option<OwnedSemaphorePermit> {
        let places = Arc::clone(&self.places);
        tokio::select! {
            () = stop.wait() => None,
            place = places.acquire_owned() => place.ok(),
        }
    }

    async fn connection<S>(self, stream: S, peer: Peer, _place: OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, requests) = (self.router, self.requests);
        let traffic = Traffic::default();
        let stream = Counted::new(stream, traffic.clone());
        let (stopping, answers) = (self.stop.clone(), traffic.clone());
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer);
            request.extensions_mut().insert(stopping.clone());
            let (router, requests) = (router.clone(), requests.clone());
            let answering = answers.answering();
            // In a task of its own: when the client goes away the connection is
            // dropped, and a change must not be dropped half-way with it.
            let answer = tokio::spawn(async move {
                let _requests = requests;
                let _answering = answering;
                router.oneshot(request.map(Body::new)).await
            });
            async move {
                match answer.await {
                    Ok(answer) => answer,
                    Err(error) => {
                        Ok(ApiError::internal("answer a request", &error).into_response())
                    }
                }
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut stop = self.stop;
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.wait() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = traffic.rested(STOPPING_IDLE) => {
                        tracing::debug!("connection cut off at shutdown: its peer rests");
                        return;
                    }
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended early");
        }
    }

    /// Waits for the connections, and ends those that take too long.
    async fn finish(self, mut connections: JoinSet<()>) {
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(self.patience, all).await.is_err() {
            tracing::warn!(left = connections.len(), "connections cut off at shutdown");
            connections.shutdown().await;
        }
    }
}

async fn pause(error: &io::Error) {
    tracing::warn!(%error, "connection not accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}
