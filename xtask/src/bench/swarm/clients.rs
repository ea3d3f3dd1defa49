//! Clients that wait at a gate, and when each of them has all bytes.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdout, Command};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rootstock_tests::namespace::Namespace;
use rootstock_tests::{Process, undo};

use super::load::Load;
use crate::bench::process::cpu_seconds_of;

/// Says that it is there, and becomes the client when it reads a line.
pub(super) const GATE: &str = "echo ready; read go; exec \"$@\"";
const READY: &[u8] = b"ready";
const COMPLETE: &[u8] = b"complete";
/// How long clients may take until they wait at the gate.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// How long they may take to end.
const END_LIMIT: Duration = Duration::from_secs(60);

/// How a client shows that it has all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// It ends.
    Ends,
    /// It says `complete`, and stays to serve others.
    Says,
}

/// What one measurement came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// From the opening of the gate until the last client had all.
    pub(super) seconds: f64,
    /// How much of the machine's processors was busy meanwhile, in percent.
    pub(super) busy_percent: f64,
}

/// One client for each node.
pub(super) struct Clients {
    processes: Vec<Process>,
    events: Receiver<(usize, Event)>,
    done: Done,
}

enum Event {
    Ready,
    Complete(Instant),
    /// It says nothing more.
    Ended(Instant),
}

impl Clients {
    /// Starts them and waits until all are at the gate. `command` makes the client of
    /// the node with this number, from 0.
    pub(super) fn at_gate(
        nodes: &[Namespace],
        logs: &Path,
        done: Done,
        command: impl Fn(usize, &Namespace) -> Command,
    ) -> Result<Self> {
        let (sender, events) = mpsc::channel();
        let mut processes = Vec::new();
        for (number, node) in nodes.iter().enumerate() {
            let log = logs.join(format!("client-{number}.log"));
            let name = format!("client {number}");
            let mut process = Process::start_piped(&name, &mut command(number, node), &log)?;
            let said = process.child().stdout.take();
            let said = said.context("a client has standard output")?;
            let sender = sender.clone();
            let log = File::options().create(true).append(true).open(&log)?;
            thread::spawn(move || listen(number, said, log, &sender));
            processes.push(process);
        }
        let mut clients = Self {
            processes,
            events,
            done,
        };
        clients.wait_ready()?;
        Ok(clients)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        for _ in 0..self.processes.len() {
            match self.next(deadline)? {
                (_, Event::Ready) => {}
                (number, _) => bail!("it ended too early: {}", self.log_end(number)),
            }
        }
        Ok(())
    }

    /// Lets them go, and waits until the last has all.
    pub(super) fn run(&mut self, limit: Duration) -> Result<Outcome> {
        let load = Load::now()?;
        let start = Instant::now();
        for process in &mut self.processes {
            let gate = process.child().stdin.as_mut().context("a gate")?;
            gate.write_all(b"go\n")?;
        }
        let mut last = start;
        let mut missing = self.processes.len();
        while missing > 0 {
            let (number, event) = self.next(start + limit)?;
            last = match (self.done, event) {
                (Done::Says, Event::Complete(at)) => at,
                (Done::Ends, Event::Ended(at)) => {
                    let status = self.processes[number].wait(END_LIMIT)?;
                    ensure!(status.success(), "{status}: {}", self.log_end(number));
                    at
                }
                (Done::Says, Event::Ended(_)) => bail!("it ended: {}", self.log_end(number)),
                _ => continue,
            };
            missing -= 1;
        }
        Ok(Outcome {
            seconds: (last - start).as_secs_f64(),
            busy_percent: Load::now()?.busy_percent_since(&load),
        })
    }

    /// User and system time of the client with this number, in seconds.
    pub(super) fn cpu_seconds(&self, number: usize) -> Result<f64> {
        cpu_seconds_of(self.processes[number].id())
    }

    /// Ends those that stay.
    pub(super) fn end(mut self) -> Result<()> {
        for process in &mut self.processes {
            if process.ended()?.is_none() {
                process.ask_to_end()?;
            }
        }
        for process in &mut self.processes {
            process.wait(END_LIMIT)?;
        }
        Ok(())
    }

    fn next(&self, deadline: Instant) -> Result<(usize, Event)> {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = self.events.recv_timeout(left);
        undo::stop_if_leaving();
        event.with_context(|| format!("nothing more came in time; {}", self.log_end(0)))
    }

    fn log_end(&self, number: usize) -> String {
        format!("client {number} said: {}", self.processes[number].log_end())
    }
}

/// Tells what matters of what a client says, and notes all of it in its log.
fn listen(number: usize, said: ChildStdout, mut log: File, tell: &Sender<(usize, Event)>) {
    for line in BufReader::new(said).split(b'\n') {
        let Ok(mut line) = line else { break };
        let event = if line.starts_with(READY) {
            Some(Event::Ready)
        } else if line.starts_with(COMPLETE) {
            Some(Event::Complete(Instant::now()))
        } else {
            None
        };
        if let Some(event) = event {
            // Nobody listens when the measurement has failed.
            let _ = tell.send((number, event));
        }
        line.push(b'\n');
        // The log is for people, and a full disk shows elsewhere.
        let _ = log.write_all(&line);
    }
    let _ = tell.send((number, Event::Ended(Instant::now())));
}

/// `words` in a namespace, behind the gate.
pub(super) fn gated(node: &Namespace, words: &[&str]) -> Command {
    let mut command = node.command("sh");
    command.args(["-c", GATE, "sh"]).args(words);
    command
}
