//! The signal that the daemon stops.

use std::time::Duration;

use tokio::sync::watch;

/// Hears of the stop. Clones hear of the same.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A signal, and who hears of it.
    pub(crate) fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Returns when the daemon stops.
    pub(crate) async fn wait(&mut self) {
        // An error means that the sender is gone, which is a stop too.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Rests; true when the daemon stops meanwhile.
    pub(crate) async fn rest(&mut self, pause: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = self.wait() => true,
        }
    }
}
