//! What a session has handed to workers, and the bell by which they call its thread.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rootstock_scsi::{Action, Sense};
use rootstock_volume::BlockDevice;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::{
    disk::Disk,
    execute::{Execution, Outcome},
};

/// Wakes a connection's thread: a worker has finished, or the target stops.
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    /// Readable from the ring on.
    pub(super) fn event(&self) -> &OwnedFd {
        &self.0
    }

    pub(super) fn ring(&self) {
        // It fails only when the counter is full, and then it is readable already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Call before looking for what it was rung for, so that nothing is missed.
    pub(super) fn hush(&self) {
        let mut count = [0; 8];
        // Nothing to read when it was not rung.
        let _ = rustix::io::read(&self.0, &mut count);
    }

    fn wait(&self) {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        // An interrupted wait is followed by a look, and by another wait.
        let _ = poll(&mut fds, None);
        self.hush();
    }
}

/// By what a command knows that another session's reset has ended it.
#[derive(Clone)]
pub(super) struct Claim {
    epoch: Arc<AtomicU64>,
    began: u64,
}

impl Claim {
    pub(super) fn new(epoch: &Arc<AtomicU64>) -> Self {
        Self {
            began: epoch.load(Ordering::Acquire),
            epoch: Arc::clone(epoch),
        }
    }

    pub(super) fn is_void(&self) -> bool {
        self.epoch.load(Ordering::Acquire) != self.began
    }
}

/// A command for a worker.
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) tag: u32,
    pub(super) action: Action,
    pub(super) data: Vec<u8>,
    pub(super) claim: Claim,
    pub(super) disk: Arc<Disk>,
    pub(super) device: Arc<dyn BlockDevice>,
}

impl Job {
    /// The memory that it takes until it is answered.
    pub(super) fn carried_bytes(&self) -> u64 {
        let read = match &self.action {
            Action::Read { range } => range.len,
            _ => 0,
        };
        self.data.len() as u64 + read
    }

    /// Carries it out in a worker.
    pub(super) fn run(self, done: &Completions) {
        let mut answer = Unanswered {
            done,
            number: self.number,
            tag: self.tag,
            carried_bytes: self.carried_bytes(),
            outcome: None,
        };
        let execution = Execution {
            disk: &self.disk,
            device: self.device.as_ref(),
            data: &self.data,
            claim: &self.claim,
        };
        answer.outcome = Some(execution.run(&self.action));
        // Whoever hears of the end may close the device.
        drop(self);
    }
}

/// What a worker has finished.
pub(super) struct Done {
    pub(super) number: u64,
    pub(super) tag: u32,
    pub(super) carried_bytes: u64,
    pub(super) outcome: Outcome,
}

/// Where workers put what they have finished.
pub(super) struct Completions {
    done: Mutex<Vec<Done>>,
    bell: Arc<Bell>,
}

impl Completions {
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        Self {
            done: Mutex::default(),
            bell,
        }
    }

    pub(super) fn take(&self) -> Vec<Done> {
        std::mem::take(&mut *self.lock())
    }

    /// Waits until there may be something to take. The bell may have been hushed
    /// for what is there already.
    pub(super) fn wait(&self) {
        if self.lock().is_empty() {
            self.bell.wait();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, done: Done) {
        self.lock().push(done);
        self.bell.ring();
    }
}

/// Brings a job's end back even when the job panics: its session waits for it.
struct Unanswered<'a> {
    done: &'a Completions,
    number: u64,
    tag: u32,
    carried_bytes: u64,
    outcome: Option<Outcome>,
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let failed = || Outcome::Reply(Sense::INTERNAL_FAILURE.into());
        self.done.push(Done {
            number: self.number,
            tag: self.tag,
            carried_bytes: self.carried_bytes,
            outcome: self.outcome.take().unwrap_or_else(failed),
        });
    }
}
