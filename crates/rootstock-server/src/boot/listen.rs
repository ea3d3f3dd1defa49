//! Sockets of the boot service: plain HTTP and HTTPS on each boot address, bounded.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Uri},
    response::{IntoResponse as _, Response},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::{
    http::{ApiError, Counted, STOPPING_IDLE, Traffic},
    stop::Stop,
};

/// Connections at once, to all boot addresses.
const CONNECTIONS_MAX: usize = 8192;

/// Connections at once from one address.
const PEER_CONNECTIONS_MAX: usize = 64;

/// How long a client may take for its TLS handshake, and for a request's head.
/// Firmware on a busy machine is slow.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a connection may move nothing, between requests and within one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The most headers of a request.
const HEADERS_MAX: usize = 64;

/// How long accepting rests after the system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// Who sent it.
    pub(crate) peer: SocketAddr,
    /// The address that was asked: the machine reaches us by it.
    pub(crate) local: SocketAddr,
    /// Plain or over TLS.
    pub(crate) transport: Transport,
}

/// How a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Not at all.
    Plain,
    /// By TLS with the site's authority.
    Tls,
}

/// The places of all boot listeners together.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    by_peer: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            by_peer: Arc::default(),
        }
    }
}

/// A connection's place among its peer's.
struct PeerPlace {
    places: Places,
    peer: IpAddr,
}

impl Places {
    fn of_peer(&self, peer: IpAddr) -> Option<PeerPlace> {
        let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
        let count = by_peer.entry(peer).or_default();
        if *count >= PEER_CONNECTIONS_MAX {
            return None;
        }
        *count += 1;
        Some(PeerPlace {
            places: self.clone(),
            peer,
        })
    }
}

impl Drop for PeerPlace {
    fn drop(&mut self) {
        let by_peer = self.places.by_peer.lock();
        let mut by_peer = by_peer.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_peer.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                by_peer.remove(&self.peer);
            }
        }
    }
}

/// What a listener needs to serve.
#[derive(Clone)]
pub(crate) struct Listener {
    pub(crate) router: Router,
    pub(crate) places: Places,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) stop: Stop,
}

impl Listener {
    /// Serves until the stop.
    pub(crate) async fn serve(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        let mut stop = self.stop.clone();
        loop {
            let accepted = tokio::select! {
                () = stop.wait() => break,
                accepted = self.accept(&listener) => accepted,
            };
            match accepted {
                Ok((stream, peer, place)) => {
                    if let Some(of_peer) = self.places.of_peer(peer.ip()) {
                        let listener = self.clone();
                        connections.spawn(async move {
                            let _places = (place, of_peer);
                            listener.connection(stream, peer).await;
                        });
                    } else {
                        tracing::warn!(%peer, "too many connections from one machine");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "boot connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        // Each of them hears of the stop, and gives up on peers that rest.
        while connections.join_next().await.is_some() {}
    }

    async fn accept(
        &self,
        listener: &TcpListener,
    ) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let place = Arc::clone(&self.places.all).acquire_owned().await;
        let place = place.map_err(io::Error::other)?;
        let (stream, peer) = listener.accept().await?;
        Ok((stream, peer, place))
    }

    async fn connection(self, stream: TcpStream, peer: SocketAddr) {
        // Latency matters more than the packets saved.
        let _ = stream.set_nodelay(true);
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let arrival = |transport| Arrival {
            peer,
            local,
            transport,
        };
        let Some(tls) = &self.tls else {
            return self.requests(stream, arrival(Transport::Plain)).await;
        };
        let mut stop = self.stop.clone();
        let handshake = tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream));
        let handshake = tokio::select! {
            handshake = handshake => handshake,
            () = stop.wait() => return,
        };
        match handshake {
            Ok(Ok(stream)) => self.requests(stream, arrival(Transport::Tls)).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake of a node failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake of a node timed out"),
        }
    }

    async fn requests<S>(self, stream: S, arrival: Arrival)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let traffic = Traffic::default();
        let stream = Counted::new(stream, traffic.clone());
        let (router, answers) = (self.router, traffic.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let router = router.clone();
            let answering = answers.answering();
            // In a task of its own: what a request changes is not left half-way
            // when its client goes.
            let answer = tokio::spawn(async move {
                let _answering = answering;
                answer(router, request.map(Body::new), arrival).await
            });
            async move {
                Ok::<_, Infallible>(answer.await.unwrap_or_else(|error| {
                    ApiError::internal("answer a machine", &error).into_response()
                }))
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
            () = traffic.rested(IDLE_TIMEOUT) => {
                tracing::debug!(peer = %arrival.peer, "boot connection idle");
                return;
            }
            () = stop.wait() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    ended = connection => ended,
                    () = traffic.rested(STOPPING_IDLE) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %arrival.peer, %error, "boot connection ended early");
        }
    }
}

/// Answers a request, whose path is taken as firmware means it.
pub(crate) async fn answer(
    router: Router,
    mut request: Request<Body>,
    arrival: Arrival,
) -> Response {
    if let Some(uri) = canonical(request.uri()) {
        *request.uri_mut() = uri;
    }
    request.extensions_mut().insert(arrival);
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The same URI with single slashes: firmware and boot programs put paths
/// together with `//` in between, and do not follow a redirect (edk2#9714).
fn canonical(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if !path.contains("//") {
        return None;
    }
    let mut text = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !text.ends_with('/') {
            text.push(c);
        }
    }
    if let Some(query) = uri.query() {
        text.push('?');
        text.push_str(query);
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn double_slashes_become_single() {
        for (given, expected) in [
            ("/boot/ipxe", None),
            ("//boot//file///x.efi", Some("/boot/file/x.efi")),
            ("//boot/ipxe?a=//b", Some("/boot/ipxe?a=//b")),
        ] {
            let uri = canonical(&given.parse().expect("a URI"));
            assert_eq!(uri.map(|uri| uri.to_string()).as_deref(), expected);
        }
    }

    #[test]
    fn one_machine_cannot_take_all_places() {
        let places = Places::default();
        let one: IpAddr = [10, 0, 0, 1].into();
        let held: Vec<_> = (0..PEER_CONNECTIONS_MAX)
            .map(|_| places.of_peer(one).expect("a place"))
            .collect();
        assert!(places.of_peer(one).is_none());
        assert!(places.of_peer([10, 0, 0, 2].into()).is_some());
        drop(held);
        assert!(places.of_peer(one).is_some());
    }
}
