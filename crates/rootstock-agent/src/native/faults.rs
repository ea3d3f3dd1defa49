//! What the kernel says of a disk that it reads without the agent.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

/// The longest record of the kernel's log.
const RECORD_BYTES_MAX: usize = 8192;
/// Records that are looked at at once: the log of a machine in trouble is long.
const RECORDS_MAX: usize = 4096;

/// The kernel's log, from now on.
pub(super) struct Faults {
    log: File,
    /// The disk, such as `sda`.
    disk: String,
}

impl Faults {
    /// Listens for faults of a disk, which may be named by one of its partitions.
    pub(super) fn of(device: &str) -> io::Result<Self> {
        let flags = OFlags::NONBLOCK.bits() as i32;
        let mut log = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open("/dev/kmsg")?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self {
            log,
            disk: device.trim_start_matches("/dev/").to_owned(),
        })
    }

    /// What was said since the last time, if it is one.
    pub(super) fn next(&mut self) -> Option<String> {
        let mut record = [0; RECORD_BYTES_MAX];
        for _ in 0..RECORDS_MAX {
            match self.log.read(&mut record) {
                Ok(0) => return None,
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    if let Some(fault) = fault(&text, &self.disk) {
                        return Some(fault);
                    }
                }
                // Records were lost before they were read: the next one is there.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(_) => return None,
            }
        }
        None
    }
}

/// `I/O error, dev sda, sector 12 op ...`, as `blk_print_req_error` of the kernel's
/// `block/blk-mq.c` has it. Disks are named whole there.
fn fault(record: &str, disk: &str) -> Option<String> {
    let text = record.split_once(';').map_or(record, |(_, text)| text);
    let text = text.lines().next().unwrap_or_default();
    let (_, rest) = text.split_once(" error, dev ")?;
    let (name, _) = rest.split_once(',')?;
    let is_part = disk.strip_prefix(name).is_some_and(|rest| {
        let number = rest.strip_prefix('p').unwrap_or(rest);
        number.bytes().all(|byte| byte.is_ascii_digit())
    });
    is_part.then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_those_of_the_disk() {
        let io = "3,1234,5678,-;I/O error, dev sda, sector 8192 op 0x0:(READ) flags 0x0\n";
        let medium = "3,1,5,-;critical medium error, dev nvme0n1, sector 1 op 0x0:(READ)\n";
        for (record, disk, expected) in [
            (io, "sda", true),
            (io, "sda3", true),
            (io, "sdab", false),
            (io, "sdb", false),
            (medium, "nvme0n1p2", true),
            (medium, "nvme0n1", true),
            (medium, "nvme0n2", false),
            ("6,1,5,-;rootstock: sda error, dev\n", "sda", false),
            ("", "sda", false),
        ] {
            assert_eq!(fault(record, disk).is_some(), expected, "{record} {disk}");
        }
    }
}
