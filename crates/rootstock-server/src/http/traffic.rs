//! What moves on a connection, so that a peer that rests is told from a slow one.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What has moved on a connection, and what is being answered on it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Bytes, in both directions.
    moved: AtomicU64,
    /// Requests that have come and have no answer yet.
    answering: AtomicU64,
}

/// A request that is being answered, while it lives.
#[derive(Debug)]
pub(crate) struct Answering(Traffic);

impl Traffic {
    /// Counts a request as being answered.
    pub(crate) fn answering(&self) -> Answering {
        self.0.answering.fetch_add(1, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// Returns when nothing has moved for at least `patience`, and nothing was
    /// being answered either.
    pub(crate) async fn rested(&self, patience: Duration) {
        let mut before = None;
        loop {
            let moved = self.0.moved.load(Ordering::Relaxed);
            let now = (self.0.answering.load(Ordering::Relaxed) == 0).then_some(moved);
            if now.is_some() && now == before {
                return;
            }
            before = now;
            tokio::time::sleep(patience).await;
        }
    }

    fn moved(&self, len: usize) {
        self.0.moved.fetch_add(len as u64, Ordering::Relaxed);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    traffic: Traffic,
}

impl<S> Counted<S> {
    /// Counts the stream's bytes in `traffic`.
    pub(crate) fn new(stream: S, traffic: Traffic) -> Self {
        Self { stream, traffic }
    }

    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(len)) = &written {
            self.traffic.moved(*len);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.traffic.moved(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// How often others get their turn before a future counts as waiting.
    const TURNS: u32 = 1000;

    #[tokio::test]
    async fn only_a_peer_that_does_nothing_rests() {
        let traffic = Traffic::default();
        let (near, mut far) = tokio::io::duplex(16);
        let mut near = Counted::new(near, traffic.clone());
        far.write_all(b"abc").await.expect("is taken");
        assert_eq!(near.read_u8().await.expect("comes"), b'a');
        near.write_all(b"de").await.expect("is taken");
        // One byte in, two out.
        assert_eq!(traffic.0.moved.load(Ordering::Relaxed), 3);
        let answering = traffic.answering();
        let turns = async {
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = traffic.rested(Duration::ZERO) => panic!("a request is being answered"),
            () = turns => {}
        }
        drop(answering);
        traffic.rested(Duration::ZERO).await;
    }
}
