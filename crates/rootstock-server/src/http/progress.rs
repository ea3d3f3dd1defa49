//! Long operations' answers: one JSON document a line, as it happens.

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::stream;
use rootstock_api::PROGRESS_MEDIA_TYPE;
use serde::Serialize;
use tokio::sync::mpsc;

/// Lines that wait for a client to read them.
const LINES_WAITING_MAX: usize = 64;

/// Where an operation reports.
#[derive(Debug, Clone)]
pub(crate) struct Progress(mpsc::Sender<Bytes>);

/// A client that went away.
#[derive(Debug)]
pub(crate) struct Gone;

impl Progress {
    /// An answer, and where its lines come from.
    pub(crate) fn response() -> (Self, Response) {
        let (sender, receiver) = mpsc::channel::<Bytes>(LINES_WAITING_MAX);
        let lines = stream::unfold(receiver, |mut receiver| async move {
            let line = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(line), receiver))
        });
        let mut response = Body::from_stream(lines).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(PROGRESS_MEDIA_TYPE),
        );
        (Self(sender), response)
    }

    /// Sends a line, from a thread that may wait.
    pub(crate) fn send(&self, event: &impl Serialize) -> Result<(), Gone> {
        let mut line = serde_json::to_vec(event).map_err(|_| Gone)?;
        line.push(b'\n');
        self.0.blocking_send(line.into()).map_err(|_| Gone)
    }

    /// Sends a line, from a task.
    pub(crate) async fn send_async(&self, event: &impl Serialize) -> Result<(), Gone> {
        let mut line = serde_json::to_vec(event).map_err(|_| Gone)?;
        line.push(b'\n');
        self.0.send(line.into()).await.map_err(|_| Gone)
    }

    /// Sends a line that may be left out when the client reads slowly.
    pub(crate) fn send_if_room(&self, event: &impl Serialize) {
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            // Full or gone: the next line, or nobody, makes up for it.
            let _ = self.0.try_send(line.into());
        }
    }
}
