//! The engine against a kernel that is played by the NBD client's codec.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use proptest::prelude::*;
use rootstock_nbd::client::codec;
use rootstock_nbd::request::encode;

use super::*;
use crate::cow::CowDisk;
use crate::overlay::{Overlay, memory::MemorySlots};
use crate::testing::PlainDisk;

const SIZE: usize = 3 << 20;

/// The kernel's side of the connection.
struct Kernel {
    stream: UnixStream,
    cookie: u64,
    stats: Arc<Stats>,
    engine: JoinHandle<io::Result<()>>,
}

impl Kernel {
    fn attach(base: PlainDisk, slots_max: u32, writes: Writes) -> Self {
        let overlay = Overlay::new(Box::new(MemorySlots::new()), slots_max, 1 << 30);
        let device = Arc::new(CowDisk::new(base, overlay));
        let (stream, other) = UnixStream::pair().expect("a socket pair");
        let stats = Arc::new(Stats::default());
        let output = other.try_clone().expect("another handle");
        let engine = Engine::new(device, Arc::clone(&stats), writes, output).expect("threads");
        let engine = thread::spawn(move || engine.run(other));
        Self {
            stream,
            cookie: 0,
            stats,
            engine,
        }
    }

    fn send(&mut self, command: Command, offset: u64, len: u64, data: &[u8]) -> u64 {
        self.cookie += 1;
        let mut bytes = Vec::new();
        let request = Request {
            command,
            flags: 0,
            cookie: self.cookie,
            offset,
            len,
        };
        encode(&mut bytes, ReplyStyle::Simple, &request);
        bytes.extend_from_slice(data);
        self.stream.write_all(&bytes).expect("sent");
        self.cookie
    }

    /// The next reply's cookie and error.
    fn reply(&mut self) -> (u64, Option<ErrorCode>) {
        let mut header = [0; 20];
        self.stream.read_exact(&mut header[..16]).expect("a reply");
        let (chunk, cookie) = codec::chunk(&header).expect("a simple reply");
        (cookie, chunk.simple_error)
    }

    fn ask(
        &mut self,
        command: Command,
        offset: u64,
        len: u64,
        data: &[u8],
    ) -> Result<(), ErrorCode> {
        let cookie = self.send(command, offset, len, data);
        let (answered, error) = self.reply();
        assert_eq!(answered, cookie);
        error.map_or(Ok(()), Err)
    }

    fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        self.ask(Command::Read, offset, len as u64, &[])
            .expect("read");
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).expect("the bytes");
        bytes
    }

    fn detach(mut self) {
        self.send(Command::Disconnect, 0, 0, &[]);
        self.engine.join().expect("no panic").expect("a clean end");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    // The kernel's unit is the sector.
    let range = || {
        (0..SIZE / 512, 1..700_usize)
            .prop_map(|(at, len)| (at * 512, (len * 512).min(SIZE - at * 512)))
    };
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        1 => range().prop_map(|(at, len)| Step::Zero(at, len)),
        1 => Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_kernel_reads_what_it_wrote(steps in prop::collection::vec(step(), 1..20), pooled: bool, cold: bool) {
        let base = PlainDisk::noise(SIZE);
        base.cold.store(cold, Ordering::Relaxed);
        let writes = if pooled { Writes::Pooled } else { Writes::AtOnce };
        let mut kernel = Kernel::attach(base, 4096, writes);
        let mut model = kernel.read(0, SIZE);
        for step in steps {
            match step {
                Step::Write(at, len, byte) => {
                    kernel.ask(Command::Write, at as u64, len as u64, &vec![byte; len]).expect("written");
                    model[at..at + len].fill(byte);
                }
                Step::Zero(at, len) => {
                    kernel.ask(Command::WriteZeroes, at as u64, len as u64, &[]).expect("zeroed");
                    model[at..at + len].fill(0);
                }
                Step::Flush => kernel.ask(Command::Flush, 0, 0, &[]).expect("flushed"),
            }
        }
        prop_assert_eq!(kernel.read(0, SIZE), model);
        kernel.detach();
    }
}

#[test]
fn a_reply_that_waits_is_overtaken() {
    let base = PlainDisk::noise(SIZE);
    base.cold.store(true, Ordering::Relaxed);
    let mut kernel = Kernel::attach(base, 64, Writes::AtOnce);
    kernel
        .ask(Command::Write, 0, 4096, &[9; 4096])
        .expect("written");
    let mut expected = Vec::new();
    for number in 0..100_u64 {
        let warm = kernel.send(Command::Read, 0, 512, &[]);
        let cold = kernel.send(Command::Read, 4096 + number * 512, 512, &[]);
        expected.extend([warm, cold]);
    }
    let mut answered = Vec::new();
    for _ in 0..200 {
        let (cookie, error) = kernel.reply();
        assert_eq!(error, None);
        let mut bytes = [0; 512];
        kernel.stream.read_exact(&mut bytes).expect("the bytes");
        answered.push(cookie);
    }
    answered.sort_unstable();
    assert_eq!(answered, expected);
    let mut report = rootstock_api::boot::NodeReport::default();
    kernel.stats.report(&mut report);
    assert_eq!(report.cache_hits, 100);
    assert_eq!(report.read_bytes, 200 * 512);
    kernel.detach();
}

#[test]
fn what_cannot_be_done_is_refused_and_the_stream_goes_on() {
    let mut kernel = Kernel::attach(PlainDisk::noise(SIZE), 1, Writes::AtOnce);
    let block = [7; 4096];
    for (command, offset, len, data, expected) in [
        (Command::Write, 0, 4096, &block[..], Ok(())),
        (Command::Write, 4096, 4096, &block, Err(ErrorCode::NoSpace)),
        (
            Command::Write,
            8192,
            512,
            &block[..512],
            Err(ErrorCode::NoSpace),
        ),
        (
            Command::Write,
            SIZE as u64,
            512,
            &block[..512],
            Err(ErrorCode::NoSpace),
        ),
        (Command::Read, SIZE as u64, 512, &[], Err(ErrorCode::Inval)),
        (Command::Other(99), 0, 0, &[], Err(ErrorCode::Inval)),
        (Command::Trim, 0, 4096, &[], Ok(())),
        (Command::Write, 4096, 4096, &block, Ok(())),
    ] {
        let answer = kernel.ask(command, offset, len, data);
        assert_eq!(answer, expected, "{command:?} at {offset}");
    }
    assert_eq!(kernel.read(0, 8192), [[0; 4096], block].concat());
    kernel.detach();
}
