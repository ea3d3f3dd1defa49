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
    /// How many jobs of each connection are under way.
    running: BTreeMap<u64, usize>,
    /// How many of one connection may be.
    running_max: usize,
    stopping: bool,
}

impl Pool {
    /// Threads with a name and a number each. One connection has at most `of_one_max`
    /// of them.
    pub(crate) fn start(
        name: &str,
        workers: usize,
        of_one_max: usize,
    ) -> io::Result<(Arc<Self>, Vec<JoinHandle<()>>)> {
        let pool = Arc::new(Self::default());
        pool.lock().running_max = of_one_max.max(1);
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

    /// Queues a job of a connection. Once the workers end, it is done here and now:
    /// somebody may wait for it.
    pub(crate) fn submit(&self, connection: u64, job: Job) {
        let mut state = self.lock();
        if state.stopping {
            drop(state);
            return run(job);
        }
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
        while let Some((connection, job)) = self.next() {
            run(job);
            if self.lock().done(connection) {
                self.work.notify_one();
            }
        }
    }

    fn next(&self) -> Option<(u64, Job)> {
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

/// Three quarters of these workers, or the only one: what one connection may have so
/// that another one's job begins at once.
pub(crate) fn share_of_one(workers: usize) -> usize {
    workers.saturating_sub(workers.div_ceil(4)).max(1)
}

fn run(job: Job) {
    if panic::catch_unwind(AssertUnwindSafe(job)).is_err() {
        tracing::error!("a worker's job panicked");
    }
}

impl State {
    fn take(&mut self) -> Option<(u64, Job)> {
        let may = |connection: &u64| self.running.get(connection) < Some(&self.running_max);
        let at = self.turns.iter().position(may)?;
        let connection = self.turns.remove(at)?;
        let queue = self.queues.get_mut(&connection)?;
        let job = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&connection);
        } else {
            self.turns.push_back(connection);
        }
        *self.running.entry(connection).or_default() += 1;
        Some((connection, job))
    }

    /// Whether there is more to do for the connection, which an idle worker may do.
    fn done(&mut self, connection: u64) -> bool {
        if let Some(running) = self.running.get_mut(&connection) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(&connection);
            }
        }
        self.queues.contains_key(&connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_turns() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let pool = Pool::default();
        pool.lock().running_max = 1;
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
        // Nobody is left to do it.
        let late = Arc::clone(&order);
        pool.submit(7, Box::new(move || late.lock().unwrap().push('!')));
        assert_eq!(order.lock().unwrap().last(), Some(&'!'));
    }

    #[test]
    fn one_connection_leaves_a_worker_to_others() {
        assert_eq!([1, 2, 4, 16].map(share_of_one), [1, 1, 3, 12]);
        let mut state = State {
            running_max: 2,
            ..State::default()
        };
        for (connection, jobs) in [(7, 4), (8, 1)] {
            let queue = (0..jobs).map(|_| Box::new(|| ()) as Job).collect();
            state.queues.insert(connection, queue);
            state.turns.push_back(connection);
        }
        let mut next = || state.take().map(|(connection, _)| connection);
        assert_eq!(
            [next(), next(), next(), next()],
            [Some(7), Some(8), Some(7), None]
        );
        state.done(7);
        assert_eq!(state.take().map(|(connection, _)| connection), Some(7));
    }
}
