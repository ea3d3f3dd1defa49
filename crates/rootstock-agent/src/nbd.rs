//! The kernel's nbd driver, set up by generic netlink.
//!
//! Numbers are those of the kernel's `include/uapi/linux/nbd-netlink.h`. Netlink
//! and not the older ioctls: those need a process that sits in `NBD_DO_IT`, and
//! know nothing of a time to wait for a new connection.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::netlink;

use crate::netlink::{ACK, Message, REQUEST, Socket, find_attribute};

/// `GENL_ID_CTRL`: who tells the numbers of families.
const CONTROL: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_ID: u16 = 1;
const CONTROL_FAMILY_NAME: u16 = 2;

const FAMILY: &[u8] = b"nbd\0";
const COMMAND_CONNECT: u8 = 1;
const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const SERVER_FLAGS: u16 = 5;
const CLIENT_FLAGS: u16 = 6;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// Which of the driver's devices is the root.
const DEVICE: u32 = 0;

/// Sectors of 512 bytes: partition tables count in the sectors of the disk they
/// were written for, and a device of 4 KiB sectors would read them wrong.
const SECTOR_BYTES: u64 = 512;

/// How long the driver holds requests without a connection. The other end is a
/// process of this machine: when it is gone, its memory and the writes in it are
/// too, and waiting longer mends nothing. There is no `NBD_ATTR_TIMEOUT`, so a
/// request itself may wait for a server for ever.
const DEAD_CONN_SECONDS: u64 = 30;

/// Requests of up to 1 MiB; the driver's own choice is 128 KiB.
const REQUEST_KIB: u32 = 1024;

/// The driver makes its devices while it is loaded.
const APPEAR_LIMIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the kernel calls the device.
pub(crate) const NAME: &str = "nbd0";

/// Hands one end of a socket pair to the driver, as a disk of this size.
///
/// # Errors
/// When the driver is not there or refuses.
pub(crate) fn connect(socket: BorrowedFd<'_>, size_bytes: u64, flags: u16) -> io::Result<()> {
    wait_for(Path::new("/sys/block/nbd0"))?;
    let mut netlink = Socket::open(Some(netlink::GENERIC), 0)?;
    let family = family(&mut netlink)?;
    let (message, list) = general(family, COMMAND_CONNECT)
        .number32(INDEX, DEVICE)
        .number64(SIZE_BYTES, size_bytes)
        .number64(BLOCK_SIZE_BYTES, SECTOR_BYTES)
        .number64(SERVER_FLAGS, u64::from(flags))
        .number64(CLIENT_FLAGS, 0)
        .number64(DEAD_CONN_TIMEOUT, DEAD_CONN_SECONDS)
        .begin(SOCKETS);
    let (message, item) = message.begin(SOCKET_ITEM);
    let message = message
        .number32(SOCKET_FD, socket.as_raw_fd() as u32)
        .end(&item)
        .end(&list);
    netlink.request(message)?;
    // Larger requests are an improvement, not a need.
    let _ = fs::write(
        "/sys/block/nbd0/queue/max_sectors_kb",
        REQUEST_KIB.to_string(),
    );
    Ok(())
}

/// Waits until the kernel shows a path.
///
/// # Errors
/// When it does not within some seconds.
pub(crate) fn wait_for(path: &Path) -> io::Result<()> {
    let began = Instant::now();
    while !path.exists() {
        if began.elapsed() > APPEAR_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("{} did not appear", path.display()),
            ));
        }
        thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

fn general(family: u16, command: u8) -> Message {
    Message::new(family, REQUEST | ACK).raw(&[command, 1, 0, 0])
}

fn family(netlink: &mut Socket) -> io::Result<u16> {
    let message = general(CONTROL, CONTROL_GET_FAMILY).attribute(CONTROL_FAMILY_NAME, FAMILY);
    let answers = netlink.request(message)?;
    answers
        .iter()
        .find_map(|body| find_attribute(body.get(4..)?, CONTROL_FAMILY_ID)?.first_chunk::<2>())
        .map(|id| u16::from_ne_bytes(*id))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the kernel has no nbd driver"))
}
