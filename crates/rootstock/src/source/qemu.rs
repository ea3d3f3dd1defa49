//! Foreign disk formats, read through a `qemu-nbd` of our own.
//!
//! QEMU is given a file that is open already, the format's driver by name, no
//! backing file and no other protocol than plain files, so neither a name such
//! as `nbd:…` nor anything that the image says makes it open something else.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{fd::AsRawFd, unix::fs::FileTypeExt, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rootstock_client::push::{Changed, Source};
use rootstock_core::ByteRange;
use rootstock_image::ReadAt;
use rootstock_nbd::client::Client;
use rustix::io::FdFlags;
use serde::Deserialize;
use serde_json::json;

use super::{SourceError, detect::Foreign, file::FileDisk, refs};

/// How long QEMU's tools may take to open an image.
const OPEN_SECONDS_MAX: u64 = 30;
/// How long QEMU may take to go over an image's tables.
const CHECK_SECONDS_MAX: u64 = 1800;
/// `qemu-img check`: nothing is wrong.
const CHECK_SOUND: i32 = 0;
/// `qemu-img check`: the image is corrupt.
const CHECK_DAMAGED: i32 = 2;
/// `qemu-img check`: space is lost, and no data.
const CHECK_LEAKS: i32 = 3;
/// How long one read may take.
const READ_SECONDS_MAX: u64 = 120;
/// How often a starting tool is looked at, in milliseconds.
const POLL_MILLISECONDS: u64 = 5;
/// Connections to one `qemu-nbd`.
const CONNECTIONS_MAX: usize = 16;
/// How far ahead is asked where data is, in bytes.
const STATUS_BYTES: u64 = 1 << 30;
/// The longest output of a tool that is read, in bytes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// A disk in a foreign format.
pub(crate) struct QemuDisk {
    image: FileDisk,
    server: Mutex<Server>,
    idle: Mutex<Vec<Client<UnixStream>>>,
    status: Mutex<Status>,
    len_bytes: u64,
}

/// The running `qemu-nbd`; it ends with its last connection, or here.
struct Server {
    child: Child,
    socket: PathBuf,
    /// Holds the socket; removed when dropped.
    _dir: tempfile::TempDir,
}

/// What the server last said of where data is.
#[derive(Default)]
struct Status {
    /// What the answer covers.
    covers: Option<ByteRange>,
    /// The data in it, in order.
    data: Vec<ByteRange>,
}

/// The part of `qemu-img info`'s report that matters here.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: u64,
    #[serde(default)]
    encrypted: bool,
    backing_filename: Option<String>,
    format_specific: Option<FormatSpecific>,
}

#[derive(Deserialize)]
struct FormatSpecific {
    data: serde_json::Value,
}

impl QemuDisk {
    /// Checks the image and starts a `qemu-nbd` on it.
    ///
    /// # Errors
    /// When the image names other files, is larger than `disk_bytes_max`, or
    /// QEMU cannot read it or is not there.
    pub(crate) fn open(
        format: Foreign,
        image: FileDisk,
        path: &Path,
        disk_bytes_max: u64,
    ) -> Result<Self, SourceError> {
        let header = |cause| SourceError::Header {
            path: path.to_owned(),
            format,
            cause,
        };
        refs::check(format, &image).map_err(header)?;
        let node = node(format, &image).map_err(|cause| SourceError::Open {
            path: path.to_owned(),
            cause,
        })?;
        let info = info(&node, format, path)?;
        if info.encrypted {
            return Err(header(refs::HeaderError::Encrypted));
        }
        let data_file = info
            .format_specific
            .and_then(|specific| specific.data.get("data-file")?.as_str().map(str::to_owned));
        if let Some(name) = info.backing_filename.or(data_file) {
            return Err(header(refs::HeaderError::OtherFile {
                what: "another file",
                name: Some(name),
            }));
        }
        if info.virtual_size > disk_bytes_max {
            return Err(SourceError::TooLarge {
                path: path.to_owned(),
                disk_bytes_max,
            });
        }
        check(&node, format, path)?;
        let (server, first) = Server::start(&node, format, path)?;
        Ok(Self {
            len_bytes: first.size_bytes(),
            image,
            server: Mutex::new(server),
            idle: Mutex::new(vec![first]),
            status: Mutex::new(Status::default()),
        })
    }

    /// Does something on a connection that nobody else uses.
    fn with<T>(
        &self,
        work: impl FnOnce(&mut Client<UnixStream>) -> Result<T, rootstock_nbd::client::ClientError>,
    ) -> io::Result<T> {
        let idle = lock(&self.idle).pop();
        let mut client = match idle {
            Some(client) => client,
            None => lock(&self.server).connect()?,
        };
        match work(&mut client) {
            Ok(value) => {
                lock(&self.idle).push(client);
                Ok(value)
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

impl ReadAt for QemuDisk {
    fn read_exact_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset_bytes.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len_bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.with(|client| client.read_exact_at(offset_bytes, buffer))
    }

    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

impl Source for QemuDisk {
    fn next_data(&self, from_bytes: u64) -> io::Result<Option<ByteRange>> {
        let mut status = lock(&self.status);
        let mut from = from_bytes;
        while from < self.len_bytes {
            if status
                .covers
                .is_none_or(|range| from < range.start || from >= range.end())
            {
                *status = self.with(|client| ask(client, from, self.len_bytes))?;
            }
            let found = status.data.iter().find(|data| data.end() > from);
            if let Some(data) = found {
                let start = data.start.max(from);
                return Ok(Some(ByteRange::new(start, data.end() - start)));
            }
            from = status.covers.map_or(self.len_bytes, |range| range.end());
        }
        Ok(None)
    }

    fn check_unchanged(&self) -> Result<(), Changed> {
        self.image.check_unchanged()
    }
}

/// Asks where data is from `from` on.
fn ask(
    client: &mut Client<UnixStream>,
    from: u64,
    len_bytes: u64,
) -> Result<Status, rootstock_nbd::client::ClientError> {
    let want = STATUS_BYTES.min(len_bytes - from);
    if !client.has_block_status() {
        let all = ByteRange::new(from, want);
        return Ok(Status {
            covers: Some(all),
            data: vec![all],
        });
    }
    let mut data: Vec<ByteRange> = Vec::new();
    let mut end = from;
    for extent in client.block_status(from, want)? {
        if !extent.zero {
            match data.last_mut() {
                Some(last) if last.end() == end => last.len += extent.len,
                _ => data.push(ByteRange::new(end, extent.len)),
            }
        }
        end += extent.len;
    }
    Ok(Status {
        covers: Some(ByteRange::new(from, end - from)),
        data,
    })
}

impl Server {
    /// Starts `qemu-nbd` and makes the first connection.
    fn start(
        node: &str,
        format: Foreign,
        path: &Path,
    ) -> Result<(Self, Client<UnixStream>), SourceError> {
        let failed = |reason: String| SourceError::Tool {
            path: path.to_owned(),
            format,
            reason,
        };
        let dir = tempfile::Builder::new()
            .prefix("rootstock-")
            .tempdir()
            .map_err(|error| failed(error.to_string()))?;
        let socket = dir.path().join("nbd");
        let mut errors = tempfile::tempfile().map_err(|error| failed(error.to_string()))?;
        let stderr = errors
            .try_clone()
            .map_err(|error| failed(error.to_string()))?;
        let child = Command::new("qemu-nbd")
            .args(["--read-only", "--export-name="])
            .arg(format!("--shared={CONNECTIONS_MAX}"))
            .arg(format!("--socket={}", socket.display()))
            .arg(node)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|error| no_tool("qemu-nbd", &error, failed))?;
        let mut server = Self {
            child,
            socket,
            _dir: dir,
        };
        let begin = Instant::now();
        loop {
            // Until it listens there is nothing to wait for but its end.
            if server.socket.exists()
                && let Ok(client) = server.connect()
            {
                return Ok((server, client));
            }
            if let Ok(Some(_)) = server.child.try_wait() {
                return Err(failed(complaint(&mut errors)));
            }
            if begin.elapsed() > Duration::from_secs(OPEN_SECONDS_MAX) {
                return Err(failed(format!(
                    "qemu-nbd was not ready after {OPEN_SECONDS_MAX} s"
                )));
            }
            thread::sleep(Duration::from_millis(POLL_MILLISECONDS));
        }
    }

    fn connect(&mut self) -> io::Result<Client<UnixStream>> {
        let stream = UnixStream::connect(&self.socket)?;
        let patience = Some(Duration::from_secs(READ_SECONDS_MAX));
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(patience)?;
        Client::connect(stream, "").map_err(io::Error::other)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended with its last connection; then both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The image as a node of QEMU's block layer.
fn node(format: Foreign, image: &FileDisk) -> io::Result<String> {
    let file = image.file();
    // QEMU opens the file by its descriptor, so it must inherit it.
    rustix::io::fcntl_setfd(file, FdFlags::empty())?;
    let metadata = file.metadata()?;
    let is_device = metadata.file_type().is_block_device();
    let mut protocol = json!({
        "driver": if is_device { "host_device" } else { "file" },
        "filename": format!("/proc/self/fd/{}", file.as_raw_fd()),
        "read-only": true,
    });
    let part = image.range();
    if part.start != 0 || (!is_device && part.len != metadata.len()) {
        protocol = json!({
            "driver": "raw",
            "offset": part.start,
            "size": part.len,
            "read-only": true,
            "file": protocol,
        });
    }
    let node = json!({
        "driver": format.driver(),
        "read-only": true,
        "backing": null,
        "file": protocol,
    });
    Ok(format!("json:{node}"))
}

fn info(node: &str, format: Foreign, path: &Path) -> Result<Info, SourceError> {
    let failed = |reason: String| SourceError::Tool {
        path: path.to_owned(),
        format,
        reason,
    };
    let mut command = Command::new("qemu-img");
    command.args(["info", "--output=json"]).arg(node);
    let output = run(&mut command, Duration::from_secs(OPEN_SECONDS_MAX), failed)?;
    serde_json::from_str(&output).map_err(|error| failed(format!("qemu-img's report: {error}")))
}

/// Has QEMU go over the image's tables: it reads what a cut image lacks as zeros,
/// and would say nothing.
fn check(node: &str, format: Foreign, path: &Path) -> Result<(), SourceError> {
    // Its VPC driver has no check; the footer at the end shows that it is whole.
    if format == Foreign::Vhd {
        return Ok(());
    }
    let failed = |reason: String| SourceError::Tool {
        path: path.to_owned(),
        format,
        reason,
    };
    let mut command = Command::new("qemu-img");
    command.args(["check", "-q"]).arg(node);
    let (status, output, errors) =
        finish(&mut command, Duration::from_secs(CHECK_SECONDS_MAX), failed)?;
    match status {
        // Clusters that nothing refers to cost space and hurt nobody.
        Some(CHECK_SOUND | CHECK_LEAKS) => Ok(()),
        Some(CHECK_DAMAGED) => {
            let said = format!("{output}\n{errors}");
            Err(failed(format!(
                "it is damaged or cut short: {}",
                reason(&said)
            )))
        }
        _ => Err(failed(reason(&errors))),
    }
}

/// Runs one of QEMU's tools to its end and gives what it printed.
///
/// # Errors
/// What `failed` makes of its complaint.
pub(crate) fn run(
    command: &mut Command,
    patience: Duration,
    failed: impl Fn(String) -> SourceError + Copy,
) -> Result<String, SourceError> {
    match finish(command, patience, failed)? {
        (Some(0), output, _) => Ok(output),
        (_, _, errors) => Err(failed(reason(&errors))),
    }
}

/// Runs a tool to its end: its exit code and what it printed and complained of.
fn finish(
    command: &mut Command,
    patience: Duration,
    failed: impl Fn(String) -> SourceError + Copy,
) -> Result<(Option<i32>, String, String), SourceError> {
    let name = command.get_program().to_string_lossy().into_owned();
    // Files, since nobody would empty the pipes while it is waited for.
    let file = || tempfile::tempfile().map_err(|error| failed(error.to_string()));
    let (mut output, mut errors) = (file()?, file()?);
    let clone = |file: &File| file.try_clone().map_err(|error| failed(error.to_string()));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(clone(&output)?)
        .stderr(clone(&errors)?)
        .spawn()
        .map_err(|error| no_tool(&name, &error, failed))?;
    let status = wait(&mut child, patience).map_err(|error| failed(error.to_string()))?;
    let status = status.ok_or_else(|| {
        failed(format!(
            "{name} was not done after {} s",
            patience.as_secs()
        ))
    })?;
    Ok((status.code(), printed(&mut output), printed(&mut errors)))
}

/// Waits for a child and ends it when it takes too long.
fn wait(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begin.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(POLL_MILLISECONDS));
    }
}

fn no_tool(tool: &str, error: &io::Error, failed: impl Fn(String) -> SourceError) -> SourceError {
    if error.kind() == io::ErrorKind::NotFound {
        return SourceError::NoTool {
            tool: tool.to_owned(),
        };
    }
    failed(format!("{tool} cannot be started: {error}"))
}

fn printed(file: &mut File) -> String {
    let mut text = Vec::new();
    // What cannot be read back is empty, and then no report either.
    let _ = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.take(OUTPUT_BYTES_MAX).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

/// The reason in a tool's complaint: `qemu-img: Could not open 'json:…': REASON`.
fn complaint(errors: &mut File) -> String {
    reason(&printed(errors))
}

fn reason(text: &str) -> String {
    let line = text.lines().find(|line| !line.trim().is_empty());
    let line = line.unwrap_or("it ended without a word").trim();
    let reason = match line.rfind("}': ") {
        Some(at) => &line[at + 4..],
        None => line
            .split_once(": ")
            .filter(|(tool, _)| tool.starts_with("qemu-"))
            .map_or(line, |(_, rest)| rest),
    };
    reason.chars().take(300).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_found_in_a_complaint() {
        let cases = [
            (
                "qemu-img: Could not open 'json:{\"a\": {\"b\": 1}}': Image is corrupt\n",
                "Image is corrupt",
            ),
            (
                "qemu-nbd: Failed to blk_new_open\n",
                "Failed to blk_new_open",
            ),
            ("\nodd: words\n", "odd: words"),
            ("", "it ended without a word"),
        ];
        for (text, expected) in cases {
            assert_eq!(reason(text), expected);
        }
    }
}
