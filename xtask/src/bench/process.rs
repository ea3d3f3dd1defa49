//! Processes whose time, processor seconds and memory are measured.

use std::{
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// How long a server may take until it answers.
const READY_SECONDS_MAX: u64 = 30;

/// How long it may take to end.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// Runs a command to its end and returns its wall-clock seconds.
pub(crate) fn run(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    output(command)?;
    Ok(start.elapsed().as_secs_f64())
}

/// Runs a command to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| shown.clone())?;
    if !output.status.success() {
        std::io::stderr().write_all(&output.stderr)?;
        bail!("{shown}: {}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A server that is ended, by its own process id, when dropped.
pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts a server and waits until `ready` says that it answers.
    pub(crate) fn start(command: &mut Command, ready: impl Fn() -> bool) -> Result<Self> {
        let shown = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| shown.clone())?;
        let mut server = Self { child };
        let start = Instant::now();
        while !ready() {
            if let Some(status) = server.child.try_wait()? {
                bail!("{shown} ended early: {status}");
            }
            ensure!(
                start.elapsed().as_secs() < READY_SECONDS_MAX,
                "{shown} does not answer"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Processor seconds used so far, user and system, of all its threads.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds_of(self.child.id())
    }

    /// The largest resident set so far, in bytes.
    pub(crate) fn peak_bytes(&self) -> Result<u64> {
        peak_bytes_of(self.child.id())
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(mut self) -> Result<()> {
        run(Command::new("kill").arg(self.child.id().to_string()))?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() {
            // tgtd stays as long as it has targets, whatever it is asked.
            if asked.elapsed() > LEAVE_LIMIT {
                self.child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Counts the processor time of a server with all that it starts, also of children that
/// nobody waits for: by a control group of its own.
pub(crate) struct Meter {
    group: PathBuf,
}

impl Meter {
    /// Puts a process and its children into a group; what they start is in it too.
    pub(crate) fn of(id: u32) -> Result<Self> {
        let root = CONTROL_GROUPS
            .iter()
            .map(Path::new)
            .find(|path| path.join(PROCESSES).exists() && path.join("cgroup.controllers").exists())
            .context("the processor's time is counted by cgroup2, which is not mounted here")?;
        let group = root.join(format!("rootstock-bench-{}-{id}", std::process::id()));
        std::fs::create_dir(&group).with_context(|| format!("make {}", group.display()))?;
        let meter = Self { group };
        for process in children(id)?.into_iter().chain([id]) {
            std::fs::write(meter.group.join(PROCESSES), process.to_string())?;
        }
        Ok(meter)
    }

    /// User and system together, since it was made.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(self.group.join("cpu.stat"))?;
        let usage = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))
            .context("cpu.stat has no usage")?;
        Ok(usage.trim().parse::<f64>()? / 1e6)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        // A group can be removed when nobody is in it.
        let members = std::fs::read_to_string(self.group.join(PROCESSES)).unwrap_or_default();
        let above = self.group.with_file_name(PROCESSES);
        for member in members.lines() {
            let _ = std::fs::write(&above, member);
        }
        let _ = std::fs::remove_dir(&self.group);
    }
}

/// Where cgroup2 is: alone, or beside the first version.
const CONTROL_GROUPS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// The members of a group.
const PROCESSES: &str = "cgroup.procs";

fn children(id: u32) -> Result<Vec<u32>> {
    let path = format!("/proc/{id}/task/{id}/children");
    let list = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let children = list.split_whitespace().map(str::parse);
    Ok(children.collect::<Result<_, _>>()?)
}

/// User and system time of a process, of all its threads, in seconds.
pub(crate) fn cpu_seconds_of(id: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // Fields are counted after the command's name, which may hold spaces.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .context("/proc/PID/stat has no name")?
        .1
        .split_whitespace()
        .collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

/// `VmHWM` of a process, in bytes.
pub(crate) fn peak_bytes_of(id: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("no VmHWM")?
        .parse()?;
    Ok(kib * 1024)
}

/// A port that is free now.
pub(crate) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Whether something listens on a local port.
pub(crate) fn listens(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Bytes that the files under `path` take on the disk.
pub(crate) fn disk_bytes(path: &Path) -> Result<u64> {
    let printed = output(Command::new("du").args(["-s", "--block-size=1"]).arg(path))?;
    Ok(printed
        .split_whitespace()
        .next()
        .context("du prints a number")?
        .parse()?)
}

/// Drops the page cache, so that the next reads come from the disk.
pub(crate) fn drop_page_cache() -> Result<()> {
    output(&mut Command::new("sync"))?;
    std::fs::write("/proc/sys/vm/drop_caches", "1").context("dropping the page cache needs root")
}
