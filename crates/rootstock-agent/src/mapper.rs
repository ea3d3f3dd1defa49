//! The kernel's device mapper: disks that are made of parts of others.
//!
//! Layouts and numbers are those of the kernel's `include/uapi/linux/dm-ioctl.h`,
//! tables those of `Documentation/admin-guide/device-mapper`. Numbers are in the
//! machine's own order.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;

use crate::sys;

/// The interface's version that is spoken here; any later 4.x takes it.
const VERSION: [u32; 3] = [4, 0, 0];
/// `struct dm_ioctl`, and where its fields are.
const HEADER_BYTES: usize = 312;
const DATA_SIZE_AT: usize = 12;
const DATA_START_AT: usize = 16;
const TARGET_COUNT_AT: usize = 20;
const FLAGS_AT: usize = 28;
const DEVICE_AT: usize = 40;
const NAME_AT: usize = 48;
const NAME_BYTES_MAX: usize = 127;
/// `struct dm_target_spec`.
const SPEC_BYTES: usize = 40;

const CREATE: u8 = 3;
const REMOVE: u8 = 4;
const SUSPEND: u8 = 6;
const TABLE_LOAD: u8 = 9;
const TABLE_CLEAR: u8 = 10;
const TABLE_STATUS: u8 = 12;

const FLAG_SUSPEND: u32 = 1 << 1;
/// The answer did not fit.
const FLAG_BUFFER_FULL: u32 = 1 << 8;
/// The file system above is not to be frozen: it may be the one that is read for it.
const FLAG_SKIP_LOCKFS: u32 = 1 << 10;
/// What waits in the kernel waits on: it is not written out first.
const FLAG_NOFLUSH: u32 = 1 << 11;
/// The request holds a key: the kernel wipes its copy.
const FLAG_SECURE: u32 = 1 << 15;

/// Longer than the status of any device made here.
const STATUS_BYTES_MAX: usize = 16 << 10;

/// What a snapshot maps at once. It cuts every request into as much, reads of what was
/// never written too, so that chunks as short as a block cost a long read most of its
/// speed. What is written in part is copied as a whole.
const SNAPSHOT_CHUNK_SECTORS: u64 = 128;

/// What sizes and places are counted in.
pub(crate) const SECTOR_BYTES: u64 = 512;

/// A device's numbers, major and minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceNumber(pub(crate) u32, pub(crate) u32);

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

impl DeviceNumber {
    /// From what `stat(2)` tells.
    pub(crate) fn of(device: u64) -> Self {
        Self(rustix::fs::major(device), rustix::fs::minor(device))
    }

    /// Of the device that has this path.
    pub(crate) fn of_path(path: &str) -> io::Result<Self> {
        Ok(Self::of(rustix::fs::stat(path)?.st_rdev))
    }

    /// `huge_decode_dev` of the kernel's `include/linux/kdev_t.h`.
    fn decode(device: u64) -> Self {
        let major = (device & 0xf_ff00) >> 8;
        let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
        Self(major as u32, minor as u32)
    }
}

/// What a stretch of a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Zeros.
    Zero,
    /// A stretch of another device.
    Linear {
        /// Which.
        device: DeviceNumber,
        /// Where it begins there.
        start_sectors: u64,
    },
    /// The same, encrypted.
    Crypt {
        /// Which.
        device: DeviceNumber,
        /// Where it begins there.
        start_sectors: u64,
        /// The two halves of an XTS key.
        key: Key,
    },
    /// Another device whose writes go to a third one, and are lost with this one.
    Snapshot {
        /// What is read where nothing was written.
        origin: DeviceNumber,
        /// Where writes go.
        writes: DeviceNumber,
    },
}

/// A key, which is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) [u8; 64]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// A stretch of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// How long it is.
    pub(crate) sectors: u64,
    /// What it is.
    pub(crate) kind: Kind,
}

impl Target {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Zero => "zero",
            Kind::Linear { .. } => "linear",
            Kind::Crypt { .. } => "crypt",
            Kind::Snapshot { .. } => "snapshot",
        }
    }

    fn parameters(&self) -> String {
        match &self.kind {
            Kind::Zero => String::new(),
            Kind::Linear {
                device,
                start_sectors,
            } => format!("{device} {start_sectors}"),
            Kind::Crypt {
                device,
                start_sectors,
                key,
            } => {
                let key: String = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("aes-xts-plain64 {key} 0 {device} {start_sectors} 1 allow_discards")
            }
            // Not persistent.
            Kind::Snapshot { origin, writes } => {
                format!("{origin} {writes} N {SNAPSHOT_CHUNK_SECTORS}")
            }
        }
    }
}

/// The kernel's device mapper.
pub(crate) struct Mapper {
    control: File,
}

/// A device that it made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapped {
    name: String,
    /// Its numbers.
    pub(crate) number: DeviceNumber,
}

impl Mapped {
    /// The kernel's name of it, below `/dev` and in `/sys/block`.
    pub(crate) fn kernel_name(&self) -> String {
        format!("dm-{}", self.number.1)
    }
}

impl Mapper {
    /// The kernel's.
    ///
    /// # Errors
    /// When it has none.
    pub(crate) fn open() -> io::Result<Self> {
        let path = "/dev/mapper/control";
        let control = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Self { control })
    }

    /// Makes a device of these stretches.
    ///
    /// # Errors
    /// The kernel's; nothing is left then.
    pub(crate) fn create(&self, name: &str, table: &[Target]) -> io::Result<Mapped> {
        let answer = self.call(CREATE, Request::new(name, 0))?;
        let mapped = Mapped {
            name: name.to_owned(),
            number: DeviceNumber::decode(answer.device()),
        };
        let made = self
            .load(&mapped, table)
            .and_then(|()| self.resume(&mapped));
        if let Err(error) = made {
            self.remove(&mapped);
            return Err(error);
        }
        Ok(mapped)
    }

    /// Has a device made of other stretches from now on. What is being read is
    /// waited for, what is asked meanwhile waits.
    ///
    /// # Errors
    /// The kernel's; the device stays what it was.
    pub(crate) fn replace(&self, mapped: &Mapped, table: &[Target]) -> io::Result<()> {
        self.load(mapped, table)?;
        let flags = FLAG_SUSPEND | FLAG_SKIP_LOCKFS | FLAG_NOFLUSH;
        let suspended = self.call(SUSPEND, Request::new(&mapped.name, flags));
        if let Err(error) = suspended {
            // It is to go on as it was.
            let _ = self.call(TABLE_CLEAR, Request::new(&mapped.name, 0));
            self.resume(mapped)?;
            return Err(error);
        }
        // A table that does not fit is found out here, and dropped: the second time
        // the device goes on with the one that it had.
        self.resume(mapped).or_else(|error| {
            self.resume(mapped)?;
            Err(error)
        })
    }

    /// Removes a device that nobody uses.
    pub(crate) fn remove(&self, mapped: &Mapped) {
        // One that is in use stays, and does no harm.
        let _ = self.call(REMOVE, Request::new(&mapped.name, 0));
    }

    /// What the kernel says of the device's first stretch.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn status(&self, mapped: &Mapped) -> io::Result<String> {
        let mut request = Request::new(&mapped.name, 0);
        request.make_room(STATUS_BYTES_MAX);
        let answer = self.call(TABLE_STATUS, request)?;
        answer
            .first_status()
            .ok_or_else(|| io::Error::other("the device mapper tells no status"))
    }

    fn load(&self, mapped: &Mapped, table: &[Target]) -> io::Result<()> {
        let mut request = Request::new(&mapped.name, 0);
        request.put_table(table);
        self.call(TABLE_LOAD, request).map(|_| ())
    }

    fn resume(&self, mapped: &Mapped) -> io::Result<()> {
        self.call(SUSPEND, Request::new(&mapped.name, 0))
            .map(|_| ())
    }

    fn call(&self, number: u8, mut request: Request) -> io::Result<Request> {
        request.finish();
        sys::device_mapper(self.control.as_fd(), number, &mut request.bytes)?;
        Ok(request)
    }
}

/// A request, which becomes its answer.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(name: &str, flags: u32) -> Self {
        debug_assert!(name.len() <= NAME_BYTES_MAX, "names are our own");
        let mut request = Self {
            bytes: vec![0; HEADER_BYTES],
        };
        for (at, number) in VERSION.into_iter().enumerate() {
            request.put(4 * at, number);
        }
        request.put(DATA_START_AT, HEADER_BYTES as u32);
        request.put(FLAGS_AT, flags);
        request.bytes[NAME_AT..NAME_AT + name.len()].copy_from_slice(name.as_bytes());
        request
    }

    fn put(&mut self, at: usize, number: u32) {
        self.bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }

    fn number(&self, at: usize) -> u32 {
        let mut field = [0; 4];
        field.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_ne_bytes(field)
    }

    fn device(&self) -> u64 {
        let mut field = [0; 8];
        field.copy_from_slice(&self.bytes[DEVICE_AT..DEVICE_AT + 8]);
        u64::from_ne_bytes(field)
    }

    fn make_room(&mut self, len: usize) {
        self.bytes.resize(HEADER_BYTES + len, 0);
    }

    /// Appends stretches, each behind the one before.
    fn put_table(&mut self, table: &[Target]) {
        let mut start_sectors = 0;
        for target in table {
            let parameters = target.parameters();
            // With the zero that ends it, and the next one aligned.
            let len = (SPEC_BYTES + parameters.len() + 1).next_multiple_of(8);
            let at = self.bytes.len();
            self.bytes.resize(at + len, 0);
            let spec = &mut self.bytes[at..];
            spec[..8].copy_from_slice(&u64::to_ne_bytes(start_sectors));
            spec[8..16].copy_from_slice(&target.sectors.to_ne_bytes());
            spec[20..24].copy_from_slice(&(len as u32).to_ne_bytes());
            spec[24..24 + target.name().len()].copy_from_slice(target.name().as_bytes());
            spec[SPEC_BYTES..SPEC_BYTES + parameters.len()].copy_from_slice(parameters.as_bytes());
            start_sectors += target.sectors;
        }
        self.put(TARGET_COUNT_AT, table.len() as u32);
        if table
            .iter()
            .any(|one| matches!(one.kind, Kind::Crypt { .. }))
        {
            self.put(FLAGS_AT, self.number(FLAGS_AT) | FLAG_SECURE);
        }
    }

    fn finish(&mut self) {
        let len = self.bytes.len() as u32;
        self.put(DATA_SIZE_AT, len);
    }

    fn first_status(&self) -> Option<String> {
        if self.number(TARGET_COUNT_AT) == 0 || self.number(FLAGS_AT) & FLAG_BUFFER_FULL != 0 {
            return None;
        }
        let start = self.number(DATA_START_AT) as usize;
        let text = self.bytes.get(start.checked_add(SPEC_BYTES)?..)?;
        let end = text.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&text[..end]).into_owned())
    }
}

impl Drop for Request {
    /// It may hold a key.
    fn drop(&mut self) {
        self.bytes.fill(0);
        std::hint::black_box(&self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_what_the_kernel_documents() {
        let disk = DeviceNumber(8, 3);
        let target = |kind| Target { sectors: 8, kind };
        let linear = Kind::Linear {
            device: disk,
            start_sectors: 2048,
        };
        let crypt = Kind::Crypt {
            device: disk,
            start_sectors: 16,
            key: Key([0xa5; 64]),
        };
        let snapshot = Kind::Snapshot {
            origin: DeviceNumber(254, 0),
            writes: DeviceNumber(254, 1),
        };
        let key = "a5".repeat(64);
        for (kind, name, parameters) in [
            (Kind::Zero, "zero", String::new()),
            (linear, "linear", "8:3 2048".to_owned()),
            (
                crypt,
                "crypt",
                format!("aes-xts-plain64 {key} 0 8:3 16 1 allow_discards"),
            ),
            (snapshot, "snapshot", "254:0 254:1 N 128".to_owned()),
        ] {
            let target = target(kind);
            assert_eq!(target.name(), name);
            assert_eq!(target.parameters(), parameters);
        }
    }

    #[test]
    fn a_table_is_laid_out_stretch_by_stretch() {
        let mut request = Request::new("root", 0);
        let zero = Target {
            sectors: 100,
            kind: Kind::Zero,
        };
        request.put_table(&[zero.clone(), zero]);
        request.finish();
        assert_eq!(request.bytes.len(), HEADER_BYTES + 2 * 48);
        assert_eq!(request.number(DATA_SIZE_AT) as usize, request.bytes.len());
        assert_eq!(request.number(TARGET_COUNT_AT), 2);
        let second = HEADER_BYTES + 48;
        assert_eq!(request.number(second), 100);
        assert_eq!(request.number(second + 20), 48);
        assert_eq!(&request.bytes[second + 24..second + 29], b"zero\0");
        assert_eq!(&request.bytes[NAME_AT..NAME_AT + 5], b"root\0");
    }

    #[test]
    fn device_numbers_are_read_as_the_kernel_writes_them() {
        // Major 254; minor 0x12345, whose upper bits lie above the major.
        let encoded = 0x45 | (254 << 8) | (0x123 << 20);
        assert_eq!(DeviceNumber::decode(encoded), DeviceNumber(254, 0x12345));
    }

    #[test]
    fn the_first_status_is_found() {
        let mut request = Request::new("root", 0);
        request.make_room(100);
        assert_eq!(request.first_status(), None);
        request.put(TARGET_COUNT_AT, 1);
        let at = HEADER_BYTES + SPEC_BYTES;
        request.bytes[at..at + 10].copy_from_slice(b"16/4096 16");
        assert_eq!(request.first_status().expect("there"), "16/4096 16");
        request.put(DATA_START_AT, u32::MAX);
        assert_eq!(request.first_status(), None);
    }
}
