//! Things that must be taken back: when their guard is dropped, or all at once on a signal.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// How one thing is taken back.
#[derive(Clone, Debug)]
pub enum Action {
    /// End a process that we started and have not yet reaped.
    Kill(u32),
    /// End all processes of a group that we started.
    KillGroup(u32),
    /// Unmount a file system that we mounted.
    Unmount(PathBuf),
    /// Remove a directory that we made, with all in it.
    RemoveTree(PathBuf),
    /// Delete a network namespace that we made.
    DeleteNamespace(String),
}

/// Takes its action back when dropped.
#[derive(Debug)]
#[must_use = "dropping it takes the thing back at once"]
pub struct Undo {
    key: u64,
}

/// What is still to be taken back, oldest first.
struct Pending {
    next_key: u64,
    actions: BTreeMap<u64, Action>,
}

/// Set when everything is being taken back and the process is about to leave.
static LEAVING: AtomicBool = AtomicBool::new(false);

static PENDING: Mutex<Pending> = Mutex::new(Pending {
    next_key: 0,
    actions: BTreeMap::new(),
});

impl Undo {
    /// Remembers `action` until the guard is dropped or [`run_all`] is called.
    pub fn new(action: Action) -> Self {
        let mut pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner);
        let key = pending.next_key;
        pending.next_key += 1;
        pending.actions.insert(key, action);
        Self { key }
    }

    /// Takes the thing back now.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn now(self) -> io::Result<()> {
        take(self.key).map_or(Ok(()), |action| action.run())
    }

    /// Forgets the action without running it, such as for a process already reaped.
    pub fn forget(&self) {
        take(self.key);
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(action) = take(self.key)
            && let Err(error) = action.run()
        {
            eprintln!("could not take back {action:?}: {error}");
        }
    }
}

/// Takes everything back, newest first. For a signal's last moments.
pub fn run_all() {
    LEAVING.store(true, Ordering::SeqCst);
    let actions = {
        let mut pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut pending.actions)
    };
    for action in actions.into_values().rev() {
        if let Err(error) = action.run() {
            eprintln!("could not take back {action:?}: {error}");
        }
    }
}

/// Stops this thread for good when [`run_all`] was called: what fails from then on
/// fails because of it, and must neither be reported nor end the process too early.
pub fn stop_if_leaving() {
    while LEAVING.load(Ordering::SeqCst) {
        thread::park();
    }
}

fn take(key: u64) -> Option<Action> {
    let mut pending = PENDING.lock().unwrap_or_else(PoisonError::into_inner);
    pending.actions.remove(&key)
}

impl Action {
    fn run(&self) -> io::Result<()> {
        match self {
            Self::Kill(pid) => kill(*pid, kill_process),
            Self::KillGroup(pid) => kill(*pid, kill_process_group),
            Self::Unmount(path) => unmount(path),
            Self::RemoveTree(path) => match fs::remove_dir_all(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
            Self::DeleteNamespace(name) => delete_namespace(name),
        }
    }
}

fn kill(pid: u32, send: impl Fn(Pid, Signal) -> rustix::io::Result<()>) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    match pid.map(|pid| send(pid, Signal::KILL)) {
        Some(Err(rustix::io::Errno::SRCH)) | None => Ok(()),
        Some(result) => Ok(result?),
    }
}

/// A child that was just killed may hold the mount for a moment: then it is detached lazily.
fn unmount(path: &PathBuf) -> io::Result<()> {
    if Command::new("umount").arg(path).status()?.success() {
        return Ok(());
    }
    let status = Command::new("umount").arg("--lazy").arg(path).status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("umount ended with {status}")))
}

fn delete_namespace(name: &str) -> io::Result<()> {
    let status = Command::new("ip")
        .args(["netns", "delete", name])
        .status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "ip netns delete ended with {status}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_guard_takes_its_directory_back_and_a_forgotten_one_does_not() {
        let parent = tempfile::tempdir().unwrap();
        let [gone, kept] = ["gone", "kept"].map(|name| parent.path().join(name));
        for path in [&gone, &kept] {
            fs::create_dir(path).unwrap();
        }
        drop(Undo::new(Action::RemoveTree(gone.clone())));
        Undo::new(Action::RemoveTree(kept.clone())).forget();
        assert!(!gone.exists());
        assert!(kept.exists());
    }
}
