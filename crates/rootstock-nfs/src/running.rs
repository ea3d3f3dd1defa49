//! A version's process, as the head sees it.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, BufReader, Write as _},
    net::IpAddr,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::Sender,
    thread,
    time::Instant,
};

use rootstock_api::nfs::{NfsExport, NfsRoot};

use crate::{FromExport, Options, Start, ToExport, head::Event};

/// The longest line of a process, in bytes: clients of one export.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// An export that runs, or is to.
pub(crate) struct Running {
    pub(crate) port: u16,
    process: Option<Process>,
    /// Who may read it, as it said last.
    pub(crate) clients: Vec<IpAddr>,
    /// Who is to.
    asked: BTreeSet<IpAddr>,
    /// Why it does not run.
    pub(crate) trouble: Option<String>,
    /// When it is started anew.
    pub(crate) again_at: Option<Instant>,
    /// Since when nobody wants it.
    pub(crate) idle_since: Option<Instant>,
}

struct Process {
    child: Child,
    input: ChildStdin,
}

impl Running {
    /// One that is to be started.
    pub(crate) fn new(port: u16) -> Self {
        Self {
            port,
            process: None,
            clients: Vec::new(),
            asked: BTreeSet::new(),
            trouble: None,
            again_at: Some(Instant::now()),
            idle_since: None,
        }
    }

    /// Starts its process. What that says comes as events of `number`.
    pub(crate) fn start(
        &mut self,
        root: &NfsRoot,
        clients: BTreeSet<IpAddr>,
        options: &Options,
        events: (Sender<Event>, u64),
    ) -> io::Result<()> {
        let name = format!("{}-{}-{}", root.image, root.version, root.partition);
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            .args(&options.program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (sender, number) = events;
        thread::Builder::new()
            .name("export".to_owned())
            .spawn(move || {
                let mut lines = output.map(BufReader::new);
                while let Some(said) = lines.as_mut().and_then(line) {
                    if sender.send(Event::Said(number, said)).is_err() {
                        return;
                    }
                }
                let _ = sender.send(Event::Ended(number));
            })?;
        let input = input.ok_or_else(|| io::Error::other("it has no input"))?;
        let mut process = Process { child, input };
        process.tell(&ToExport::Start(Box::new(Start {
            root: root.clone(),
            directory: options.run_dir.join(name),
            nbd: options.nbd.clone(),
            port: self.port,
            clients: clients.iter().copied().collect(),
        })))?;
        self.asked = clients;
        self.process = Some(process);
        self.again_at = None;
        Ok(())
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// Lets these read it, and nobody else.
    pub(crate) fn let_in(&mut self, clients: BTreeSet<IpAddr>) {
        if clients == self.asked {
            return;
        }
        if let Some(process) = &mut self.process {
            // One that ended says so.
            let _ = process.tell(&ToExport::Clients(clients.iter().copied().collect()));
            self.asked = clients;
        }
    }

    /// Its process ended.
    pub(crate) fn ended(&mut self) {
        self.process = None;
        self.clients.clear();
    }

    /// As the daemon is told; nothing while it starts.
    pub(crate) fn state(&self, root: &NfsRoot) -> Option<NfsExport> {
        let is_known = self.trouble.is_some() || !self.clients.is_empty();
        is_known.then(|| NfsExport {
            root: root.clone(),
            port: self.port,
            clients: self.clients.clone(),
            trouble: self.trouble.clone(),
        })
    }
}

impl Process {
    fn tell(&mut self, what: &ToExport) -> io::Result<()> {
        let mut line = serde_json::to_vec(what)?;
        line.push(b'\n');
        self.input.write_all(&line)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its nfs-ganesha and its mounts go with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line(lines: &mut BufReader<std::process::ChildStdout>) -> Option<FromExport> {
    let mut text = Vec::new();
    let mut bounded = io::Read::take(lines, LINE_BYTES_MAX);
    bounded.read_until(b'\n', &mut text).ok()?;
    serde_json::from_slice(&text).ok()
}
