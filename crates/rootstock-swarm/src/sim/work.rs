//! What machines do with what comes: they read their boot, fill, and change versions.

use super::net::Came;
use super::*;
use crate::wire::Class;

impl World<'_> {
    /// A machine takes part in the version that it fetches.
    pub(super) fn join(&mut self, at: usize) {
        if !self.hosts[at].is_head {
            let goal = goal_of(self.scenario.work);
            // While it boots it fetches nothing that nobody waits for.
            let boots = self.scenario.work != Work::Fill;
            self.hosts[at].node.pause(self.now, boots);
            self.join_version(at, goal);
        }
        self.read_on(at);
        self.act(at);
    }

    fn join_version(&mut self, at: usize, goal: Goal) {
        let first = self.first_of(at);
        let table = &self.tables[self.hosts[at].version];
        let mut held = Bits::new(table.len());
        let host = &mut self.hosts[at];
        for number in 0..held.len() {
            if host.store.has(first + number) {
                held.set(number);
            }
        }
        host.lacks = held.len() - held.ones();
        host.node.join(self.now, Arc::clone(table), held, goal);
    }

    /// The number of the first chunk of a machine's version.
    pub(super) fn first_of(&self, at: usize) -> usize {
        self.hosts[at].version * (self.all.len() - self.scenario.chunks)
    }

    /// A machine hears of another version, and is to have that.
    pub(super) fn change(&mut self, at: usize) {
        self.coming -= 1;
        let host = &mut self.hosts[at];
        (host.version, host.done) = (1, None);
        if host.is_alive {
            self.join_version(at, Goal::All);
            self.act(at);
        }
        self.count_late();
    }

    /// Counts the machines that are there and lack something.
    pub(super) fn count_late(&mut self) {
        let late = |host: &&Host| !host.is_head && host.is_alive && host.done.is_none();
        self.late = self.hosts.iter().filter(late).count();
    }

    /// A chunk that came was looked at.
    pub(super) fn checked(&mut self, at: usize, came: &Came) {
        if !self.hosts[at].is_alive {
            return;
        }
        let number = self.all.find(came.chunk).unwrap_or_default();
        let wanted = self.first_of(at)..self.first_of(at) + self.scenario.chunks;
        let host = &mut self.hosts[at];
        host.node
            .checked(self.now, came.from.0, came.from.1, came.is_right);
        if !came.is_right {
            return;
        }
        if came.keep {
            if host.store.set(number) && wanted.contains(&number) {
                host.lacks -= 1;
            }
            self.got += 1;
            host.node.gained(self.now, came.chunk);
        }
        if let Some(asked) = host.reading.remove(&number) {
            host.read += 1;
            self.got += u64::from(!came.keep);
            self.reads_worst = self.reads_worst.max(self.now.since(asked));
        }
        self.read_on(at);
        self.is_done(at);
    }

    /// Notes what a machine has done.
    fn is_done(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let is_read = |chunks| host.read == chunks;
        let is_done = match self.scenario.work {
            Work::Fill => host.lacks == 0,
            Work::Boot { chunks, .. } => is_read(chunks),
            Work::Storm { chunks, then, .. } => {
                if is_read(chunks) && host.ready.is_none() {
                    host.ready = Some(self.now);
                    host.node.pause(self.now, then == Then::Stay);
                }
                is_read(chunks) && (then == Then::Stay || host.lacks == 0)
            }
        };
        if is_done && host.done.is_none() {
            host.done = Some(self.now);
            self.late -= 1;
        }
    }

    /// Asks for the next chunks of a boot.
    fn read_on(&mut self, at: usize) {
        let (chunks, ahead, is_handful) = match self.scenario.work {
            Work::Fill => return,
            Work::Boot { chunks, ahead } => (chunks, ahead, false),
            Work::Storm {
                chunks, handful, ..
            } => (chunks, handful, true),
        };
        let host = &mut self.hosts[at];
        if host.is_head || (is_handful && !host.reading.is_empty()) {
            return;
        }
        while host.reading.len() < ahead && host.next_read < chunks {
            let number = host.next_read;
            host.next_read += 1;
            if host.store.has(number) {
                // It was fetched for others.
                host.read += 1;
                continue;
            }
            host.reading.insert(number, self.now);
            let chunk = self.all.chunks()[number];
            host.node.want(self.now, chunk, Class::Boot);
        }
    }
}

/// All chunks that there are.
pub(super) fn table_of(chunks: usize) -> Arc<Table> {
    let chunk = |number: usize| ChunkId::of(&(number as u64).to_le_bytes());
    Table::new(Digest::of(b"all"), (0..chunks).map(chunk))
}
