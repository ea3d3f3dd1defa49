//! As much of an NBD client as these tests need: fixed newstyle, simple replies.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// A connection in the transmission phase.
pub(crate) struct Nbd {
    stream: TcpStream,
    pub(crate) size_bytes: u64,
    pub(crate) read_only: bool,
}

impl Nbd {
    /// Opens an export, or gives the server's reason.
    pub(crate) fn open(address: SocketAddr, export: &str) -> Result<Self, String> {
        let mut stream = TcpStream::connect(address).expect("connects");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("is greeted");
        // Fixed newstyle, no zeroes.
        stream.write_all(&3_u32.to_be_bytes()).expect("sends");
        let mut option = Vec::new();
        option.extend(OPTION_MAGIC.to_be_bytes());
        option.extend(OPTION_GO.to_be_bytes());
        option.extend((export.len() as u32 + 6).to_be_bytes());
        option.extend((export.len() as u32).to_be_bytes());
        option.extend(export.as_bytes());
        option.extend([0, 0]);
        stream.write_all(&option).expect("sends");
        let (mut size_bytes, mut flags) = (0, 0);
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head).expect("is answered");
            let kind = u32::from_be_bytes(head[12..16].try_into().expect("4 bytes"));
            let len = u32::from_be_bytes(head[16..20].try_into().expect("4 bytes"));
            let mut data = vec![0; len as usize];
            stream.read_exact(&mut data).expect("is answered");
            match kind {
                REPLY_ACK => break,
                REPLY_INFO if data[..2] == [0, 0] => {
                    size_bytes = u64::from_be_bytes(data[2..10].try_into().expect("8 bytes"));
                    flags = u16::from_be_bytes(data[10..12].try_into().expect("2 bytes"));
                }
                REPLY_INFO => {}
                _ => return Err(String::from_utf8_lossy(&data).into_owned()),
            }
        }
        Ok(Self {
            stream,
            size_bytes,
            read_only: flags & 2 != 0,
        })
    }

    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.request(0, offset, len, &[]);
        let mut data = vec![0; len as usize];
        self.stream.read_exact(&mut data).expect("is answered");
        data
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.request(1, offset, data.len() as u32, data);
    }

    pub(crate) fn flush(&mut self) {
        self.request(3, 0, 0, &[]);
    }

    /// Says goodbye and waits until the server has closed.
    pub(crate) fn close(mut self) {
        self.send(2, 0, 0, &[]);
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).expect("is closed");
    }

    fn send(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) {
        let mut request = Vec::new();
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(0_u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(7_u64.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request).expect("sends");
    }

    fn request(&mut self, command: u16, offset: u64, len: u32, data: &[u8]) {
        self.send(command, offset, len, data);
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).expect("is answered");
        assert_eq!(head[..4], REPLY_MAGIC.to_be_bytes());
        assert_eq!(head[4..8], [0; 4], "no error");
    }
}
