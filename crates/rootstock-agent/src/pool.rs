//! A fixed number of threads for what waits, with what is wanted now before what
//! may be wanted soon.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::console;

/// Reading ahead that waits: more is dropped.
const AHEAD_MAX: usize = 32;

/// Threads hold a TLS connection's buffers and a chunk, nothing deeper.
const STACK_BYTES: usize = 512 << 10;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queues {
    now: VecDeque<Job>,
    ahead: VecDeque<Job>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queues: Mutex<Queues>,
    more: Condvar,
}

impl Shared {
    // Jobs run outside the lock, so a panic cannot leave it half-changed.
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads; they end when this is dropped and the queue is empty.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Starts `threads` threads.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .stack_size(STACK_BYTES)
                .spawn(move || work(&shared))?;
        }
        Ok(Self { shared })
    }

    /// Has a job done. The kernel's queue depth bounds how many wait.
    pub(crate) fn now(&self, job: impl FnOnce() + Send + 'static) {
        self.shared.lock().now.push_back(Box::new(job));
        self.shared.more.notify_one();
    }

    /// Has a job done when nothing else is to do, or not at all.
    pub(crate) fn ahead(&self, job: impl FnOnce() + Send + 'static) {
        let mut queues = self.shared.lock();
        if queues.ahead.len() < AHEAD_MAX {
            queues.ahead.push_back(Box::new(job));
            self.shared.more.notify_one();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.more.notify_all();
    }
}

fn work(shared: &Shared) {
    loop {
        let job = {
            let mut queues = shared.lock();
            loop {
                if let Some(job) = queues.now.pop_front() {
                    break job;
                }
                if queues.closed {
                    return;
                }
                if let Some(job) = queues.ahead.pop_front() {
                    break job;
                }
                queues = shared
                    .more
                    .wait(queues)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        };
        // A fault in one request must not take the root away from all others.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            console::error("a request of the root device failed inside the agent");
        }
    }
}
