//! The workers: threads that may wait for disks and decompressors.
//!
//! Each connection has a queue of its own and the workers take one job from each
//! in turn, so a client with many requests does not delay one with few. How many
//! jobs a connection may queue is for the connection to bound.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

/// Something to do that may wait.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    /// Jobs by connection; no queue is empty.
    queues: BTreeMap<u64, VecDeque<Job>>,
    /// The connections with jobs, each once, next first.
    turns: VecDeque<u64>,
    stopping: bool,
}

impl Pool {
    /// Threads with a name and a number each.
    pub(crate) fn start(
        name: &str,
        workers: usize,
    ) -> io::Result<(Arc<Self>, Vec<JoinHandle<()>>)> {
        let pool = Arc::new(Self::default());
        let mut threads = Vec::new();
        for number in 0..workers.max(1) {
            let its_pool = Arc::clone(&pool);
            let thread = thread::Builder::new()
                .name(format!("{name}-{number}"))
                .spawn(move || its_pool.work());
            match thread {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    pool.stop();
                    return Err(error);
                }
            }
        }
        Ok((pool, threads))
    }

    /// Queues a job of a connection.
    pub(crate) fn submit(&self, connection: u64, job: Job) {
        let mut state = self.lock();
        let queue = state.queues.entry(connection).or_default();
        queue.push_back(job);
        if queue.len() == 1 {
            state.turns.push_back(connection);
        }
        drop(state);
        self.work.notify_one();
    }

    /// Lets the workers end once the queues are empty.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.work.notify_all();
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            if panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::error!("a worker's job panicked");
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.take() {
                return Some(job);
            }
            if state.stopping {
                return None;
            }
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Option<Job> {
        let connection = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&connection)?;
        let job = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&connection);
        } else {
            self.turns.push_back(connection);
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_turns() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let pool = Pool::default();
        for (connection, job) in [(7, 'a'), (7, 'b'), (7, 'c'), (8, 'x'), (9, 'y'), (8, 'z')] {
            let order = Arc::clone(&order);
            pool.submit(
                connection,
                Box::new(move || order.lock().unwrap().push(job)),
            );
        }
        pool.stop();
        pool.work();
        assert_eq!(order.lock().unwrap().iter().collect::<String>(), "axybzc");
    }
}
