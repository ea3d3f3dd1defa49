//! The thread that sends one file: its socket, its packets, and their bundles.

use std::{
    io::{self, ErrorKind},
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use rootstock_netboot::{
    Millis,
    tftp::{Action, Outcome, PACKET_BYTES_MAX, ReadRequest, Refusal, Transfer},
};

use super::{LOOK_INTERVAL, Place, TftpFile, TftpFiles, ahead::Ahead, is_pause};

/// How long a transfer may take in all: a client that acknowledges a block now and
/// then would hold its place for days.
const TRANSFER_TIME_MAX: Duration = Duration::from_secs(2 * 3600);

/// The MTU of a path that the kernel knows nothing of, in bytes: Ethernet's.
const PATH_MTU_BYTES: u32 = 1500;

/// The most that one system call sends, in bytes: a datagram of IPv4.
const BUNDLE_BYTES_MAX: usize = 65_507;

/// The most packets that the kernel cuts one call's bytes into (`UDP_MAX_SEGMENTS`).
const BUNDLE_PACKETS_MAX: usize = 64;

/// Blocks from this size on are bundled. Every other packet is smaller, which
/// matters because the kernel would cut those too.
const BUNDLE_BLOCK_BYTES_MIN: u16 = 256;

/// What is below it is named by a boot token.
const TOKEN_FILES: &str = "boot/s/";

/// A file to be sent, and everything that it takes.
pub(super) struct Job {
    pub(super) place: Place,
    pub(super) request: ReadRequest,
    pub(super) files: Arc<dyn TftpFiles>,
    pub(super) stop: Arc<AtomicBool>,
}

/// Why a transfer ended.
enum End {
    /// The protocol says so.
    Outcome(Outcome),
    /// The client was told so.
    Refused(Refusal),
    /// The client asked for something else.
    Superseded,
    /// It took more than [`TRANSFER_TIME_MAX`].
    Slow,
}

impl Job {
    /// Sends the file, and once more when the client only probed and asked the same
    /// from the same port again before we heard of that.
    pub(super) fn run(self) {
        loop {
            let declined = match self.send() {
                Ok(declined) => declined,
                Err(error) => {
                    let (peer, name) = (self.place.pair.peer, self.shown_name());
                    tracing::warn!(%error, %peer, name, "no socket for a TFTP transfer");
                    return;
                }
            };
            if !declined || !self.place.keep_if_asked_again() {
                return;
            }
        }
    }

    /// Sends the file; true when the client only wanted to know of it.
    fn send(&self) -> io::Result<bool> {
        let pair = self.place.pair;
        let socket = UdpSocket::bind((pair.local, 0))?;
        // From here on the kernel drops what others send to this port.
        socket.connect(pair.peer)?;
        socket.set_read_timeout(Some(LOOK_INTERVAL))?;
        let opened = self
            .files
            .open(&self.request.name, *pair.peer.ip(), pair.local);
        let file = match opened {
            Ok(file) => file,
            Err(refusal) => {
                self.refused(&socket, &refusal);
                return Ok(false);
            }
        };
        let mtu = getsockopt(&socket, sockopt::IpMtu).ok();
        let mtu = mtu.and_then(|mtu| u32::try_from(mtu).ok());
        let mtu = mtu.unwrap_or(PATH_MTU_BYTES);
        let TftpFile { content, on_sent } = file;
        let clock = Instant::now();
        let begun = Transfer::new(&self.request, content.len_bytes(), mtu, Millis(0));
        let (mut transfer, first) = match begun {
            Ok(begun) => begun,
            Err(refusal) => {
                self.refused(&socket, &refusal);
                return Ok(false);
            }
        };
        let mut packets = Packets {
            socket,
            file: Ahead::new(content),
            bundle: Vec::new(),
            bundling: Bundling::of(&transfer),
        };
        let end = self.exchange(&mut transfer, first, &mut packets, clock);
        let declined = matches!(end, End::Outcome(Outcome::Declined));
        if matches!(end, End::Outcome(Outcome::Complete)) {
            on_sent(transfer.len_bytes());
        }
        self.tell(end, &transfer, &packets.socket, clock.elapsed());
        Ok(declined)
    }

    fn exchange(
        &self,
        transfer: &mut Transfer,
        first: Action,
        packets: &mut Packets,
        clock: Instant,
    ) -> End {
        let mut packet = [0; PACKET_BYTES_MAX];
        let mut action = first;
        let mut now = clock.elapsed();
        loop {
            let sent = match action {
                Action::Nothing => Ok(()),
                Action::Send(packet) => packets.send(&packet),
                Action::SendWindow { first, count } => {
                    packets.send_window(transfer, first, u64::from(count))
                }
                Action::End(outcome) => return End::Outcome(outcome),
            };
            match sent {
                Ok(()) => {}
                Err(SendError::Left) => {
                    action = transfer.left();
                    continue;
                }
                Err(SendError::Read(error)) => {
                    tracing::error!(%error, name = self.shown_name(), "boot file not readable");
                    return End::Refused(Refusal::Unreadable);
                }
            }
            if self.stop.load(Relaxed) {
                return End::Refused(Refusal::Stopping);
            } else if self.place.is_superseded() {
                return End::Superseded;
            } else if now > TRANSFER_TIME_MAX {
                return End::Slow;
            }
            let received = packets.socket.recv(&mut packet);
            now = clock.elapsed();
            action = match received {
                Ok(len) => transfer.handle(millis(now), &packet[..len]),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => transfer.left(),
                Err(error) => {
                    if !is_pause(&error) {
                        // A route that is away for a moment is as good as silence.
                        let peer = self.place.pair.peer;
                        tracing::debug!(%error, %peer, "TFTP packet not received");
                    }
                    Action::Nothing
                }
            };
            if action == Action::Nothing {
                // Also after a packet: who sends rubbish without end gets no more time.
                action = transfer.poll(millis(now));
            }
        }
    }

    /// The file's name for the log, where a boot token has no place.
    fn shown_name(&self) -> &str {
        let name = &self.request.name;
        let secret = name.trim_start_matches('/').starts_with(TOKEN_FILES);
        if secret { TOKEN_FILES } else { name }
    }

    fn refused(&self, socket: &UdpSocket, refusal: &Refusal) {
        let peer = self.place.pair.peer;
        tracing::info!(%peer, name = self.shown_name(), reason = %refusal, "TFTP request refused");
        // It is asked again when this is lost.
        let _ = socket.send(&refusal.packet());
    }

    fn tell(&self, end: End, transfer: &Transfer, socket: &UdpSocket, took: Duration) {
        let (peer, name) = (self.place.pair.peer, self.shown_name());
        let bytes = transfer.acked_bytes();
        match end {
            End::Outcome(Outcome::Complete) => tracing::info!(
                %peer,
                name,
                bytes = transfer.len_bytes(),
                block_bytes = transfer.block_bytes(),
                window_blocks = transfer.window_blocks(),
                blocks_resent = transfer.blocks_resent(),
                took_ms = took.as_millis() as u64,
                "boot file sent by TFTP"
            ),
            End::Outcome(Outcome::Declined) => {
                tracing::debug!(%peer, name, "TFTP client only wanted to know the size");
            }
            End::Outcome(Outcome::Aborted { code, message }) => {
                tracing::warn!(%peer, name, bytes, %code, message, "TFTP client gave up");
            }
            End::Outcome(Outcome::TimedOut) => {
                tracing::warn!(%peer, name, bytes, "TFTP client fell silent");
            }
            End::Outcome(Outcome::Left) => {
                tracing::warn!(%peer, name, bytes, "TFTP client went away");
            }
            End::Refused(refusal) => self.refused(socket, &refusal),
            End::Superseded => {
                tracing::debug!(%peer, name, "TFTP client asked for something else");
            }
            End::Slow => tracing::warn!(%peer, name, bytes, "TFTP client is too slow"),
        }
    }
}

fn millis(passed: Duration) -> Millis {
    // Hours at most.
    Millis(passed.as_millis() as u64)
}

enum SendError {
    /// Nobody listens at the client's port.
    Left,
    /// The file could not be read.
    Read(io::Error),
}

/// Whether the kernel cuts a window into packets: one way through the network stack
/// for dozens of them.
enum Bundling {
    /// A packet for each call.
    Off,
    /// Wanted, and not yet asked of the kernel.
    Wanted,
    /// The kernel does it.
    On,
}

impl Bundling {
    fn of(transfer: &Transfer) -> Self {
        let worthwhile =
            transfer.window_blocks() > 1 && transfer.block_bytes() >= BUNDLE_BLOCK_BYTES_MIN;
        if worthwhile { Self::Wanted } else { Self::Off }
    }
}

struct Packets {
    socket: UdpSocket,
    file: Ahead,
    bundle: Vec<u8>,
    bundling: Bundling,
}

impl Packets {
    fn send(&self, packet: &[u8]) -> Result<(), SendError> {
        match self.socket.send(packet) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(SendError::Left),
            // Full queues and missing routes are like losses on the way.
            _ => Ok(()),
        }
    }

    fn send_window(
        &mut self,
        transfer: &Transfer,
        first: u64,
        count: u64,
    ) -> Result<(), SendError> {
        let header_bytes = Transfer::data_header(first).len();
        let packet_bytes = header_bytes + usize::from(transfer.block_bytes());
        if matches!(self.bundling, Bundling::Wanted) {
            // It fits: the packet is not longer than an Ethernet frame.
            let size = packet_bytes as i32;
            let on = setsockopt(&self.socket, sockopt::UdpGsoSegment, &size).is_ok();
            self.bundling = if on { Bundling::On } else { Bundling::Off };
        }
        let most = match self.bundling {
            Bundling::On => (BUNDLE_BYTES_MAX / packet_bytes).min(BUNDLE_PACKETS_MAX),
            _ => 1,
        };
        let end = first + count;
        for start in (first..end).step_by(most) {
            self.bundle.clear();
            for block in start..end.min(start + most as u64) {
                self.bundle.extend(Transfer::data_header(block));
                let part = self.file.part(transfer.block_range(block));
                self.bundle.extend(part.map_err(SendError::Read)?);
            }
            self.send_bundle(packet_bytes)?;
        }
        Ok(())
    }

    fn send_bundle(&mut self, packet_bytes: usize) -> Result<(), SendError> {
        let sent = match self.socket.send(&self.bundle) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if sent.kind() == ErrorKind::ConnectionRefused {
            return Err(SendError::Left);
        }
        if matches!(self.bundling, Bundling::On) && !is_pause(&sent) {
            // A path whose MTU shrank, or a card that cannot: from now on one by one.
            tracing::debug!(error = %sent, "TFTP packets are not bundled");
            let _ = setsockopt(&self.socket, sockopt::UdpGsoSegment, &0);
            self.bundling = Bundling::Off;
            for packet in self.bundle.chunks(packet_bytes) {
                self.send(packet)?;
            }
        }
        Ok(())
    }
}
