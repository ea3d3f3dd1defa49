//! A volume whose server crashes and forgets what was not flushed.

use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use rootstock_nbd::{InputBuffer, Message, RequestDecoder, reply};

use super::*;

const SIZE: usize = 64 << 10;

/// A server's disk: what is durable, and what it says it has.
struct Disk {
    durable: Vec<u8>,
    cached: Vec<u8>,
    /// Requests to the next crash; none comes when it is used up.
    crashes: Vec<u32>,
    left: u32,
    /// Which life of the server it is.
    life: u32,
}

impl Disk {
    fn new(crashes: &[u32]) -> Arc<Mutex<Self>> {
        let mut crashes = crashes.to_vec();
        Arc::new(Mutex::new(Self {
            durable: vec![0; SIZE],
            cached: vec![0; SIZE],
            left: crashes.pop().unwrap_or(u32::MAX),
            crashes,
            life: 0,
        }))
    }

    /// Whether the server dies now: all that is not durable is gone.
    fn dies(&mut self) -> bool {
        self.left -= 1;
        if self.left > 0 {
            return false;
        }
        self.left = self.crashes.pop().unwrap_or(u32::MAX);
        self.cached = self.durable.clone();
        self.life += 1;
        true
    }
}

/// Serves one connection from after the greeting.
fn serve(disk: &Mutex<Disk>, mut stream: UnixStream) -> io::Result<()> {
    let mut head = [0; 16];
    stream.read_exact(&mut head)?;
    let mut data = vec![0; u32::from_be_bytes([head[12], head[13], head[14], head[15]]) as usize];
    stream.read_exact(&mut data)?;
    let mut told = info::EXPORT.to_be_bytes().to_vec();
    told.extend((SIZE as u64).to_be_bytes());
    let flags = export_flag::HAS_FLAGS
        | export_flag::SEND_FLUSH
        | export_flag::SEND_TRIM
        | export_flag::SEND_WRITE_ZEROES
        | export_flag::CAN_MULTI_CONN;
    told.extend(flags.to_be_bytes());
    for (kind, data) in [(option_reply::INFO, &told[..]), (option_reply::ACK, &[])] {
        let mut answer = magic::OPTION_REPLY.to_be_bytes().to_vec();
        answer.extend(option::GO.to_be_bytes());
        answer.extend(kind.to_be_bytes());
        answer.extend((data.len() as u32).to_be_bytes());
        answer.extend(data);
        stream.write_all(&answer)?;
    }
    let life = lock(disk).life;
    let mut buffer = InputBuffer::new(InputBuffer::CAPACITY_BYTES_MIN);
    let mut decoder = RequestDecoder::new(ReplyStyle::Simple);
    loop {
        while let Some(message) = decoder.next(&mut buffer).map_err(io::Error::other)? {
            let mut disk = lock(disk);
            if disk.life != life {
                return Ok(());
            }
            let mut answer = Vec::new();
            match message {
                Message::Write {
                    request,
                    offset,
                    data,
                    last,
                } => {
                    disk.cached[offset as usize..][..data.len()].copy_from_slice(data);
                    if !last {
                        continue;
                    }
                    reply::done(&mut answer, ReplyStyle::Simple, request.tag());
                }
                Message::Request(request) => {
                    let range = request.offset as usize..(request.offset + request.len) as usize;
                    match request.command {
                        Command::Flush => disk.durable = disk.cached.clone(),
                        Command::Trim | Command::WriteZeroes => disk.cached[range.clone()].fill(0),
                        _ => {}
                    }
                    reply::done(&mut answer, ReplyStyle::Simple, request.tag());
                    if request.command == Command::Read {
                        answer.extend(&disk.cached[range]);
                    }
                }
                Message::Refused { .. } => return Err(broken("refused")),
            }
            if disk.dies() {
                return Ok(());
            }
            stream.write_all(&answer)?;
        }
        match stream.read(buffer.spare())? {
            0 => return Ok(()),
            len => buffer.filled(len),
        }
    }
}

fn volume(disk: &Arc<Mutex<Disk>>) -> RemoteVolume {
    let disk = Arc::clone(disk);
    let dial = move || -> io::Result<Box<dyn DialStream>> {
        let (ours, theirs) = UnixStream::pair()?;
        let disk = Arc::clone(&disk);
        thread::spawn(move || serve(&disk, theirs));
        Ok(Box::new(ours))
    };
    RemoteVolume::over(Box::new(dial), "session/x").expect("a volume")
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SIZE, 1..9000_usize).prop_map(|(at, len)| (at, len.min(SIZE - at)));
    prop_oneof![
        4 => (range(), any::<u8>()).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        1 => range().prop_map(|(at, len)| Step::Zero(at, len)),
        1 => Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn nothing_that_was_answered_is_lost(
        steps in prop::collection::vec(step(), 1..16),
        crashes in prop::collection::vec(1_u32..12, 0..3),
    ) {
        let disk = Disk::new(&crashes);
        let volume = volume(&disk);
        let mut model = vec![0; SIZE];
        for step in steps {
            match step {
                Step::Write(at, len, byte) => {
                    volume.write(at as u64, &vec![byte; len]).expect("written");
                    model[at..at + len].fill(byte);
                }
                Step::Zero(at, len) => {
                    volume.write_zeroes(at as u64, len as u64, Zero::MayPunch).expect("zeroed");
                    model[at..at + len].fill(0);
                }
                Step::Flush => {
                    volume.flush().expect("flushed");
                    prop_assert_eq!(&lock(&disk).durable, &model);
                }
            }
            let mut out = Segments::new();
            volume.read(0, SIZE as u32, &mut out).expect("readable");
            prop_assert_eq!(&out.to_vec(), &model);
        }
    }
}
