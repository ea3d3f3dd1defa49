//! Plug-ins: executables that are told of nodes and may add to what they boot.
//!
//! Each gets one JSON document on its standard input and answers with one, or
//! with nothing. They run side by side, as the daemon's user, in a clean
//! environment; one that takes too long is killed with everything it started, and
//! what it would have said is left out. `docs/guide/plugins.md` has the documents.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rootstock_api::boot::NodeFile;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::Semaphore,
    task::JoinSet,
};

/// How long a plug-in may take, its wait for a place included.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// The most plug-ins of a directory.
const PLUGINS_MAX: usize = 32;

/// Processes at once.
const PROCESSES_MAX: usize = 64;

/// The largest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// How much of its standard error is kept for the log, in bytes.
const ERROR_BYTES_MAX: u64 = 4096;

/// What may be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum PluginEvent {
    /// There is a new node.
    #[serde(rename = "node-registered")]
    Registered,
    /// A node asks for what it is to run.
    #[serde(rename = "node-booting")]
    Booting,
    /// A node's system is up.
    #[serde(rename = "node-up")]
    Up,
    /// A node was shut down or went silent.
    #[serde(rename = "node-gone")]
    Gone,
}

impl PluginEvent {
    fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "node-registered",
            Self::Booting => "node-booting",
            Self::Up => "node-up",
            Self::Gone => "node-gone",
        }
    }
}

/// What a plug-in answers. Everything is optional; only `node-booting` takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PluginAnswer {
    /// More arguments for the kernel.
    pub(crate) kernel_arguments: Vec<String>,
    /// Files for the node's root.
    pub(crate) files: Vec<NodeFile>,
    /// Its host name.
    pub(crate) host_name: Option<String>,
    /// Its address.
    pub(crate) address: Option<Ipv4Addr>,
    /// More lines for `/etc/hosts`.
    pub(crate) hosts: Vec<String>,
    /// More for the image's own scripts.
    pub(crate) settings: BTreeMap<String, String>,
}

/// Why a plug-in's answer was left out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PluginError {
    /// It cannot be started.
    #[error("it cannot be started")]
    Start(#[source] io::Error),
    /// Others could change what runs as the daemon's user.
    #[error("it is not run: {reason}")]
    Unsafe {
        /// Why.
        reason: &'static str,
    },
    /// It took too long and was killed.
    #[error("it took longer than {} s and was killed", limit.as_secs_f32())]
    Slow {
        /// The limit.
        limit: Duration,
    },
    /// It wrote too much and was killed.
    #[error("it wrote more than {ANSWER_BYTES_MAX} bytes and was killed")]
    TooMuch,
    /// It failed.
    #[error("it ended with {status}{}{stderr}", if stderr.is_empty() { "" } else { ": " })]
    Failed {
        /// How.
        status: ExitStatus,
        /// The last line it wrote to its standard error.
        stderr: String,
    },
    /// Its answer is not what this release understands.
    #[error("its answer is not understood: {message}")]
    Answer {
        /// What is wrong.
        message: String,
    },
    /// Talking to it failed.
    #[error("it cannot be talked to")]
    Pipe(#[source] io::Error),
}

/// The plug-ins of a site.
#[derive(Debug, Clone)]
pub(crate) struct Plugins {
    directory: PathBuf,
    limit: Duration,
    places: Arc<Semaphore>,
}

/// What one plug-in said.
pub(crate) type Said = (String, Result<PluginAnswer, PluginError>);

impl Plugins {
    /// The plug-ins of a directory.
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            limit: TIME_LIMIT,
            places: Arc::new(Semaphore::new(PROCESSES_MAX)),
        }
    }

    /// Whether there is none. Looks at the directory.
    pub(crate) fn is_empty(&self) -> bool {
        list(&self.directory).is_empty()
    }

    /// Tells all of them. Their answers come by name, those that cannot be used as
    /// errors, which are logged here.
    pub(crate) async fn tell(&self, event: PluginEvent, document: &serde_json::Value) -> Vec<Said> {
        let directory = self.directory.clone();
        let listed = tokio::task::spawn_blocking(move || list(&directory)).await;
        let files = listed.unwrap_or_default();
        if files.is_empty() {
            return Vec::new();
        }
        let input: Arc<[u8]> = document.to_string().into_bytes().into();
        let mut running = JoinSet::new();
        for (name, path) in files {
            let (plugins, input) = (self.clone(), Arc::clone(&input));
            running.spawn(async move {
                let answer = plugins.limited(&path, event, &input).await;
                (name, answer)
            });
        }
        let mut said = running.join_all().await;
        said.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, answer) in &said {
            if let Err(error) = answer {
                tracing::warn!(
                    plugin = name,
                    event = event.as_str(),
                    error = crate::http::chain(error),
                    "plug-in left out"
                );
            }
        }
        said
    }

    async fn limited(
        &self,
        path: &Path,
        event: PluginEvent,
        input: &[u8],
    ) -> Result<PluginAnswer, PluginError> {
        check(path)?;
        let mut group = Group(None);
        // When the time is over the future is dropped, and with it the group.
        let ran = tokio::time::timeout(self.limit, async {
            let place = self.places.acquire().await;
            let answer = run(path, event, input, &mut group).await;
            drop(place);
            answer
        });
        ran.await
            .unwrap_or(Err(PluginError::Slow { limit: self.limit }))
    }
}

/// The processes of a plug-in: all of them end when it does.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error means that they have all ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn list(directory: &Path) -> Vec<(String, PathBuf)> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(directory = %directory.display(), %error, "plug-ins not listed");
            return Vec::new();
        }
    };
    let mut files: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, path)| !name.starts_with('.') && !name.ends_with('~') && is_program(path))
        .collect();
    files.sort();
    if files.len() > PLUGINS_MAX {
        tracing::warn!(
            count = files.len(),
            limit = PLUGINS_MAX,
            "too many plug-ins"
        );
        files.truncate(PLUGINS_MAX);
    }
    files
}

fn is_program(path: &Path) -> bool {
    let metadata = path.metadata();
    metadata.is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Whoever can write the file could run as the daemon's user.
fn check(path: &Path) -> Result<(), PluginError> {
    let metadata = path.metadata().map_err(PluginError::Start)?;
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != own {
        return Err(PluginError::Unsafe {
            reason: "it belongs to another user than root and the daemon's",
        });
    }
    if metadata.permissions().mode() & 0o002 != 0 {
        return Err(PluginError::Unsafe {
            reason: "everybody can write it (chmod o-w)",
        });
    }
    Ok(())
}

async fn run(
    path: &Path,
    event: PluginEvent,
    input: &[u8],
    group: &mut Group,
) -> Result<PluginAnswer, PluginError> {
    let mut child = Command::new(path)
        .arg(event.as_str())
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LANG", "C.UTF-8")
        .env("ROOTSTOCK_EVENT", event.as_str())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(PluginError::Start)?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    group.0 = pid.and_then(Pid::from_raw);
    let (output, errors, status) = talk(&mut child, input).await?;
    if !status.success() {
        let text = String::from_utf8_lossy(&errors);
        let last = text.lines().rfind(|line| !line.trim().is_empty());
        let last = last.unwrap_or_default().trim();
        return Err(PluginError::Failed {
            status,
            stderr: last.chars().filter(|c| !c.is_control()).take(200).collect(),
        });
    }
    answer(&output)
}

async fn talk(
    child: &mut Child,
    input: &[u8],
) -> Result<(Vec<u8>, Vec<u8>, ExitStatus), PluginError> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its input closes it, which is its affair.
            let _ = stdin.write_all(input).await;
        }
        Ok(())
    };
    let read = async {
        let output = bounded(stdout, ANSWER_BYTES_MAX + 1).await?;
        if output.len() as u64 > ANSWER_BYTES_MAX {
            return Err(PluginError::TooMuch);
        }
        Ok(output)
    };
    let complaints = async {
        let mut stderr = stderr;
        let errors = bounded(stderr.as_mut(), ERROR_BYTES_MAX).await?;
        // The rest is read and forgotten, so that it does not block there.
        if let Some(mut rest) = stderr {
            let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
        }
        Ok(errors)
    };
    let ((), output, errors) = tokio::try_join!(write, read, complaints)?;
    let status = child.wait().await.map_err(PluginError::Pipe)?;
    Ok((output, errors, status))
}

async fn bounded(
    from: Option<impl AsyncRead + Unpin>,
    bytes_max: u64,
) -> Result<Vec<u8>, PluginError> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        let mut from = from.take(bytes_max);
        from.read_to_end(&mut bytes)
            .await
            .map_err(PluginError::Pipe)?;
    }
    Ok(bytes)
}

fn answer(output: &[u8]) -> Result<PluginAnswer, PluginError> {
    if output.iter().all(u8::is_ascii_whitespace) {
        return Ok(PluginAnswer::default());
    }
    serde_json::from_slice(output).map_err(|error| PluginError::Answer {
        message: error
            .to_string()
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn plugin(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("sets");
    }

    /// All in one test: a file that is written in one thread while another starts
    /// a process cannot be executed (ETXTBSY).
    #[tokio::test]
    async fn good_ones_answer_and_bad_ones_delay_nothing_beyond_the_limit() {
        let dir = tempfile::tempdir().expect("a directory");
        let pipe = dir.path().join(".pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)
            .expect("is made");
        plugin(
            dir.path(),
            "a-good",
            "cat >/dev/null; echo '{\"kernel_arguments\": [\"quiet\"], \"files\": [{\"path\": \"/etc/motd\", \"mode\": 420, \"text\": \"hello\"}]}'",
        );
        plugin(dir.path(), "b-silent", "exit 0");
        plugin(
            dir.path(),
            "c-hangs",
            &format!("(echo started; exec sleep 600) > {} & wait", pipe.display()),
        );
        plugin(dir.path(), "d-rubbish", "echo '<html>'");
        plugin(
            dir.path(),
            "e-floods",
            "while :; do echo 0123456789012345678901234567890123456789; done",
        );
        plugin(
            dir.path(),
            "f-crashes",
            "echo 'no database' >&2; kill -SEGV $$",
        );
        plugin(dir.path(), "g-newer", "echo '{\"on_fire\": true}'");
        plugin(
            dir.path(),
            "h-echoes",
            "read -r document; case $document in *n001*) ;; *) exit 7;; esac; test \"$1 $ROOTSTOCK_EVENT $HOME\" = 'node-booting node-booting '",
        );
        plugin(dir.path(), "i-open", "exit 0");
        fs::set_permissions(dir.path().join("i-open"), fs::Permissions::from_mode(0o757))
            .expect("sets");
        plugin(dir.path(), ".hidden", "exit 1");
        fs::write(dir.path().join("README"), "no program").expect("writes");
        let mut plugins = Plugins::new(dir.path());
        plugins.limit = Duration::from_secs(2);
        let document = serde_json::json!({"node": {"name": "n001"}});
        // Ends when nobody has the pipe open for writing any more.
        let held = std::thread::spawn(move || fs::read(pipe));
        let said = plugins.tell(PluginEvent::Booting, &document).await;
        let lines: Vec<_> = said
            .iter()
            .map(|(name, answer)| match answer {
                Ok(answer) => format!("{name}: {} files", answer.files.len()),
                Err(error) => format!("{name}: {error}"),
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        a-good: 1 files
        b-silent: 0 files
        c-hangs: it took longer than 2 s and was killed
        d-rubbish: its answer is not understood: expected value at line 1 column 1
        e-floods: it wrote more than 1048576 bytes and was killed
        f-crashes: it ended with signal: 11 (SIGSEGV): no database
        g-newer: its answer is not understood: unknown field `on_fire`, expected one of `kernel_arguments`, `files`, `host_name`, `address`, `hosts`, `settings` at line 1 column 10
        h-echoes: 0 files
        i-open: it is not run: everybody can write it (chmod o-w)
        ");
        // What the one that hung had started is gone with it.
        let held = held.join().expect("reads").expect("reads");
        assert_eq!(held, b"started\n");
    }

    #[tokio::test]
    async fn no_directory_is_no_plugins() {
        let plugins = Plugins::new(Path::new("/nonexistent/plugins.d"));
        let said = plugins.tell(PluginEvent::Up, &serde_json::json!({})).await;
        assert!(said.is_empty());
    }
}
