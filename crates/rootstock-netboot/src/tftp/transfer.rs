//! One file on its way to one client.

use std::ops::Range;

use super::{
    packet::{self, ErrorCode, Packet},
    request::{ReadRequest, Refusal},
};
use crate::Millis;

/// The block size when nothing was agreed (RFC 1350), in bytes.
pub const BLOCK_BYTES_DEFAULT: u16 = 512;

/// The largest block that is agreed to, in bytes: what a frame of Ethernet holds.
/// Firmware asks for up to 65,464 and then loses the fragments (edk2#7632), and the
/// server's own jumbo frames say nothing of the client's.
pub const BLOCK_BYTES_MAX: u16 = 1500 - HEADERS_BYTES;

/// The largest window that is agreed to, in blocks; RFC 7440, section 4, allows a
/// smaller one than was asked. More than this would overrun receive buffers.
pub const WINDOW_BLOCKS_MAX: u16 = 64;

/// How long an acknowledgement is waited for when nothing was agreed.
pub const TIMEOUT: Millis = Millis::seconds(2);

/// The longest `timeout` that is agreed to, in seconds: with it, a client that is
/// gone holds its place for [`TRIES_MAX`] times as long.
pub const TIMEOUT_SECONDS_MAX: u8 = 30;

/// How often something is sent before the client counts as gone.
pub const TRIES_MAX: u32 = 5;

/// IPv4, UDP and TFTP before a block's bytes.
const HEADERS_BYTES: u16 = 20 + 8 + 4;

/// The smallest block (RFC 2348), in bytes.
const BLOCK_BYTES_MIN: u16 = 8;

/// The most blocks that a client without options can count.
const BLOCKS_MAX: u64 = 65_535;

/// What the driver does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing, until a packet comes or the deadline does.
    Nothing,
    /// Send this packet.
    Send(Vec<u8>),
    /// Send these blocks, each as [`Transfer::data_header`] and the file's bytes of
    /// [`Transfer::block_range`].
    SendWindow {
        /// The first block, from 1.
        first: u64,
        /// How many.
        count: u16,
    },
    /// The transfer is over.
    End(Outcome),
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The client has the whole file.
    Complete,
    /// The client did not go on after it had seen the options. UEFI does so to learn
    /// a file's size, and asks again (pin/tftp#125).
    Declined,
    /// The client gave up.
    Aborted {
        /// Its reason.
        code: ErrorCode,
        /// Its reason in words.
        message: String,
    },
    /// The client fell silent.
    TimedOut,
    /// The client closed its port.
    Left,
}

/// The state of a transfer. Times are of any clock that does not go back.
#[derive(Debug, Clone)]
pub struct Transfer {
    len_bytes: u64,
    block_bytes: u16,
    window_blocks: u16,
    timeout: Millis,
    /// The options that were agreed to, until the client says that it saw them.
    options_ack: Option<Vec<u8>>,
    /// The last block that the client has, and the last that was sent.
    acked: u64,
    sent: u64,
    /// How often the present packets were sent.
    tries: u32,
    deadline: Millis,
    is_over: bool,
    blocks_sent: u64,
}

impl Transfer {
    /// Begins to send a file of `len_bytes` over a path whose packets have at most
    /// `path_mtu_bytes`, and says what to send first.
    ///
    /// # Errors
    /// [`Refusal::TooManyBlocks`].
    pub fn new(
        request: &ReadRequest,
        len_bytes: u64,
        path_mtu_bytes: u32,
        now: Millis,
    ) -> Result<(Self, Action), Refusal> {
        let wanted = request.wanted;
        let path_bytes = path_mtu_bytes.saturating_sub(u32::from(HEADERS_BYTES));
        let path_bytes = u16::try_from(path_bytes).unwrap_or(u16::MAX);
        let most = path_bytes.clamp(BLOCK_BYTES_MIN, BLOCK_BYTES_MAX);
        let block_bytes = wanted.block_bytes.map(|asked| asked.min(most));
        let window_blocks = wanted
            .window_blocks
            .map(|asked| asked.min(WINDOW_BLOCKS_MAX));
        let timeout_seconds = wanted
            .timeout_seconds
            .filter(|seconds| *seconds <= TIMEOUT_SECONDS_MAX);
        // Only what was asked for (RFC 2347).
        let agreed = [
            ("blksize", block_bytes.map(u64::from)),
            ("tsize", wanted.asks_size.then_some(len_bytes)),
            ("timeout", timeout_seconds.map(u64::from)),
            ("windowsize", window_blocks.map(u64::from)),
        ];
        let mut transfer = Self {
            len_bytes,
            block_bytes: block_bytes.unwrap_or(BLOCK_BYTES_DEFAULT),
            window_blocks: window_blocks.unwrap_or(1),
            timeout: timeout_seconds.map_or(TIMEOUT, |s| Millis::seconds(u32::from(s))),
            options_ack: options_ack(&agreed),
            acked: 0,
            sent: 0,
            tries: 0,
            deadline: now,
            is_over: false,
            blocks_sent: 0,
        };
        // No standard says that numbers wrap. Clients that know options do wrap them,
        // others end or begin anew (rpi-eeprom#720).
        if !wanted.has_options && transfer.last() > BLOCKS_MAX {
            return Err(Refusal::TooManyBlocks {
                len_bytes,
                block_bytes: transfer.block_bytes,
            });
        }
        let action = transfer.send(now);
        Ok((transfer, action))
    }

    /// Takes a packet that the client sent to this transfer's port.
    pub fn handle(&mut self, now: Millis, packet: &[u8]) -> Action {
        if self.is_over {
            return Action::Nothing;
        }
        match Packet::parse(packet) {
            Ok(Packet::Ack { block }) => self.acknowledged(now, block),
            Ok(Packet::Error { .. }) if self.options_ack.is_some() => self.end(Outcome::Declined),
            Ok(Packet::Error { code, message }) => {
                let message = String::from_utf8_lossy(message);
                let message = message.chars().take(200).collect();
                self.end(Outcome::Aborted { code, message })
            }
            _ => Action::Nothing,
        }
    }

    /// Looks at the clock. Only this sends anything again: were it done for an
    /// acknowledgement that comes twice, each of them would go on to travel twice
    /// (the Sorcerer's Apprentice, RFC 1123, section 4.2.3.1).
    pub fn poll(&mut self, now: Millis) -> Action {
        if self.is_over || now < self.deadline {
            Action::Nothing
        } else if self.tries >= TRIES_MAX {
            self.end(Outcome::TimedOut)
        } else {
            self.send(now)
        }
    }

    /// The network says that nobody listens at the client's port.
    pub fn left(&mut self) -> Action {
        if self.is_over {
            return Action::Nothing;
        }
        let outcome = if self.options_ack.is_some() {
            Outcome::Declined
        } else if self.sent == self.last() {
            // A client need not wait for its last acknowledgement to arrive (RFC
            // 1350, section 6).
            Outcome::Complete
        } else {
            Outcome::Left
        };
        self.end(outcome)
    }

    /// When to [`Transfer::poll`] if nothing comes.
    #[must_use]
    pub fn deadline(&self) -> Millis {
        self.deadline
    }

    /// The bytes that stand before a block's own.
    #[must_use]
    pub fn data_header(block: u64) -> [u8; 4] {
        packet::data_header(wire_number(block))
    }

    /// Where a block's bytes are in the file. The last one's may be none.
    #[must_use]
    pub fn block_range(&self, block: u64) -> Range<u64> {
        let size = u64::from(self.block_bytes);
        let start = block.saturating_sub(1).saturating_mul(size);
        start.min(self.len_bytes)..start.saturating_add(size).min(self.len_bytes)
    }

    /// The file's length.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The block size that was agreed.
    #[must_use]
    pub fn block_bytes(&self) -> u16 {
        self.block_bytes
    }

    /// The window that was agreed.
    #[must_use]
    pub fn window_blocks(&self) -> u16 {
        self.window_blocks
    }

    /// How many bytes of the file the client has said to have.
    #[must_use]
    pub fn acked_bytes(&self) -> u64 {
        self.block_range(self.acked).end * u64::from(self.acked > 0)
    }

    /// How many blocks were sent more than once.
    #[must_use]
    pub fn blocks_resent(&self) -> u64 {
        self.blocks_sent - self.sent
    }

    /// The last block: the one that is not full.
    fn last(&self) -> u64 {
        self.len_bytes / u64::from(self.block_bytes) + 1
    }

    fn acknowledged(&mut self, now: Millis, block: u16) -> Action {
        if self.options_ack.is_some() {
            if block != 0 {
                return Action::Nothing;
            }
            self.options_ack = None;
            return self.progress(now);
        }
        let ahead = u64::from(block.wrapping_sub(wire_number(self.acked)));
        // What was acknowledged before comes again when it was delayed or doubled.
        if ahead == 0 || ahead > self.sent - self.acked {
            return Action::Nothing;
        }
        // In the middle of a window it means that what follows was lost: the next
        // window begins there (RFC 7440, section 4).
        self.acked += ahead;
        if self.acked == self.last() {
            return self.end(Outcome::Complete);
        }
        self.progress(now)
    }

    fn progress(&mut self, now: Millis) -> Action {
        self.tries = 0;
        self.send(now)
    }

    fn send(&mut self, now: Millis) -> Action {
        self.tries += 1;
        self.deadline = now.after(self.timeout);
        if let Some(packet) = &self.options_ack {
            return Action::Send(packet.clone());
        }
        let window = u64::from(self.window_blocks);
        let count = window.min(self.last() - self.acked);
        self.sent = self.acked + count;
        self.blocks_sent += count;
        Action::SendWindow {
            first: self.acked + 1,
            // At most the window.
            count: count as u16,
        }
    }

    fn end(&mut self, outcome: Outcome) -> Action {
        self.is_over = true;
        Action::End(outcome)
    }
}

/// After 65,535 comes 0.
fn wire_number(block: u64) -> u16 {
    block as u16
}

fn options_ack(agreed: &[(&str, Option<u64>)]) -> Option<Vec<u8>> {
    let values: Vec<(&str, String)> = agreed
        .iter()
        .filter_map(|(name, value)| Some((*name, value.as_ref()?.to_string())))
        .collect();
    let pairs = values
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let pairs: Vec<_> = pairs.collect();
    (!pairs.is_empty()).then(|| Packet::OptionsAck(pairs).encode())
}
