//! Devices and their drivers: modules by modalias, as the kernel tells of devices.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink;

use crate::modules::Modules;
use crate::netlink::Socket;

/// The kernel's own group of uevents; udev's is 2.
const KERNEL_GROUP: u32 = 1;
/// The kernel's `UEVENT_BUFFER_SIZE` and room for its header.
const EVENT_BYTES_MAX: usize = 8 << 10;
/// Directories below `/sys/devices` are less deep.
const DEPTH_MAX: usize = 32;

/// The kernel's news of devices, from when it is opened.
pub(crate) struct Uevents {
    socket: Socket,
}

impl Uevents {
    /// Listens.
    ///
    /// # Errors
    /// When the kernel has no uevents.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = Socket::open(Some(netlink::KOBJECT_UEVENT), KERNEL_GROUP)?;
        Ok(Self { socket })
    }

    /// Loads what the devices that are there, and those that come, need, until
    /// `ready` finds what it looks for.
    pub(crate) fn settle<T>(
        &self,
        modules: &mut Modules,
        limit: Duration,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        coldplug(modules);
        let began = Instant::now();
        loop {
            if let Some(found) = ready() {
                return Some(found);
            }
            let left = limit.checked_sub(began.elapsed())?;
            // A look now and then: not every change has an event.
            self.wait(left.min(Duration::from_millis(200)));
            self.drain(modules);
        }
    }

    /// Goes on loading drivers of what comes, such as slow disks, until `stop`.
    pub(crate) fn follow(&self, modules: &mut Modules, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            self.wait(Duration::from_millis(200));
            if !stop.load(Ordering::Relaxed) {
                self.drain(modules);
            }
        }
    }

    fn wait(&self, limit: Duration) {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, Some(&limit));
    }

    fn drain(&self, modules: &mut Modules) {
        let mut buffer = vec![0; EVENT_BYTES_MAX];
        loop {
            match self.socket.receive(&mut buffer) {
                Ok(len) => {
                    if let Some(alias) = modalias(&buffer[..len]) {
                        modules.load_alias(alias);
                    }
                }
                // The kernel dropped events: look at all devices again.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => coldplug(modules),
                Err(_) => return,
            }
        }
    }
}

/// The alias of a device that was added.
fn modalias(event: &[u8]) -> Option<&str> {
    let mut fields = event.split(|byte| *byte == 0);
    if !fields.next()?.starts_with(b"add@") {
        return None;
    }
    let alias = fields.find_map(|field| field.strip_prefix(b"MODALIAS="))?;
    std::str::from_utf8(alias).ok()
}

/// Loads the modules of every device that is there.
fn coldplug(modules: &mut Modules) {
    let mut aliases = Vec::new();
    collect(Path::new("/sys/devices"), 0, &mut aliases);
    aliases.sort_unstable();
    aliases.dedup();
    for alias in &aliases {
        modules.load_alias(alias);
    }
}

fn collect(directory: &Path, depth: usize, aliases: &mut Vec<String>) {
    if depth > DEPTH_MAX {
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let path: PathBuf = entry.path();
        if kind.is_dir() {
            collect(&path, depth + 1, aliases);
        } else if entry.file_name() == "modalias"
            && let Ok(alias) = fs::read_to_string(&path)
        {
            aliases.push(alias.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_added_devices_have_an_alias() {
        let event = |text: &str| text.replace('|', "\0").into_bytes();
        let added = event("add@/devices/x|ACTION=add|MODALIAS=pci:v1|SEQNUM=3|");
        assert_eq!(modalias(&added), Some("pci:v1"));
        for other in ["remove@/x|MODALIAS=pci:v1|", "add@/x|ACTION=add|", ""] {
            assert_eq!(modalias(&event(other)), None, "{other}");
        }
    }
}
