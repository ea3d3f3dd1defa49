//! A whole server over a vector, for the tests: what is written is answered.

use std::io::{self, Read, Write};

use crate::{
    Agreement, Command, ErrorCode, ExportInfo, ExportRefusal, InputBuffer, Message, Negotiation,
    Progress, Question, ReplyStyle, Request, RequestDecoder, TlsOffer,
    negotiation::greeting,
    reply::{self, Extent, Last},
    request::Terms,
};

pub(crate) const NAME: &str = "image/debian:3";

/// A server and the connection to it, as one stream of the client's side.
#[derive(Debug)]
pub(crate) struct Loopback {
    pub(crate) disk: Vec<u8>,
    pub(crate) phase: Phase,
    pub(crate) requests: usize,
    input: InputBuffer,
    out: Vec<u8>,
    sent: usize,
}

#[derive(Debug)]
pub(crate) enum Phase {
    Negotiation(Negotiation),
    Transmission(Agreement, RequestDecoder),
    Closed,
}

impl Loopback {
    pub(crate) fn new(disk: Vec<u8>, tls: TlsOffer) -> Self {
        Self {
            disk,
            phase: Phase::Negotiation(Negotiation::new(tls)),
            requests: 0,
            input: InputBuffer::new(InputBuffer::CAPACITY_BYTES_MIN),
            out: greeting().to_vec(),
            sent: 0,
        }
    }

    /// What the server has said since the last call.
    pub(crate) fn take_output(&mut self) -> Vec<u8> {
        let output = self.out.split_off(self.sent);
        self.out.clear();
        self.sent = 0;
        output
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Takes bytes in and answers all that can be answered.
    pub(crate) fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.is_closed() {
            let taken = self.input.push(bytes);
            bytes = &bytes[taken..];
            while self.step() {}
            assert!(
                self.is_closed() || self.input.len() < self.input.capacity_bytes(),
                "a full buffer that nobody understands would be stuck"
            );
        }
    }

    fn step(&mut self) -> bool {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Negotiation(mut negotiation) => {
                match negotiation.advance(&mut self.input, &mut self.out) {
                    Ok(progress) => self.progress(negotiation, progress),
                    Err(_) => false,
                }
            }
            Phase::Transmission(agreement, mut decoder) => {
                let Ok(message) = decoder.next(&mut self.input) else {
                    return false;
                };
                let goes_on = match message {
                    None => false,
                    Some(message) => {
                        let (disk, out) = (&mut self.disk, &mut self.out);
                        self.requests += 1;
                        if !serve(disk, out, &agreement, message) {
                            return false;
                        }
                        true
                    }
                };
                self.phase = Phase::Transmission(agreement, decoder);
                goes_on
            }
            Phase::Closed => false,
        }
    }

    fn progress(&mut self, mut negotiation: Negotiation, progress: Progress) -> bool {
        let progress = match progress {
            Progress::Ask(Question::List) => {
                negotiation.answer_list([NAME], &mut self.out);
                self.phase = Phase::Negotiation(negotiation);
                return true;
            }
            Progress::Ask(Question::Export { name, .. }) => {
                let answer = self.export(&name);
                match negotiation.answer_export(&answer, &mut self.out) {
                    Ok(progress @ Progress::Ready(_)) => progress,
                    Ok(_) => {
                        self.phase = Phase::Negotiation(negotiation);
                        return true;
                    }
                    Err(_) => return false,
                }
            }
            progress => progress,
        };
        match progress {
            Progress::NeedInput => self.phase = Phase::Negotiation(negotiation),
            Progress::StartTls => {
                negotiation.secured();
                self.phase = Phase::Negotiation(negotiation);
                return true;
            }
            Progress::Ready(agreement) => {
                self.phase = Phase::Transmission(agreement, RequestDecoder::new(agreement.style));
                return true;
            }
            Progress::Finished | Progress::Ask(_) => {}
        }
        false
    }

    fn export(&self, name: &str) -> Result<ExportInfo, ExportRefusal> {
        if name != NAME {
            let text = format!("no export {name}");
            return Err(ExportRefusal::Unknown { text });
        }
        Ok(ExportInfo {
            size_bytes: self.disk.len() as u64,
            read_only: false,
            multi_conn: true,
            description: "a disk for tests".to_owned(),
        })
    }
}

/// Serves one message; `false` ends the connection.
fn serve(disk: &mut [u8], out: &mut Vec<u8>, agreement: &Agreement, message: Message<'_>) -> bool {
    let style = agreement.style;
    let terms = Terms {
        size_bytes: disk.len() as u64,
        read_only: false,
        block_status: agreement.block_status,
        style,
    };
    let (request, code) = match message {
        Message::Refused { request, code } => (request, Some(code)),
        Message::Request(request) => (request, request.check(&terms).err()),
        Message::Write {
            request,
            offset,
            data,
            last,
        } => {
            let code = request.check(&terms).err();
            if code.is_none() {
                disk[offset as usize..offset as usize + data.len()].copy_from_slice(data);
            }
            if !last {
                return true;
            }
            (request, code)
        }
    };
    if let Some(code) = code {
        reply::error(out, style, request.tag(), request.command, code, "refused");
        return true;
    }
    answer(disk, out, style, &request)
}

fn answer(disk: &mut [u8], out: &mut Vec<u8>, style: ReplyStyle, request: &Request) -> bool {
    let tag = request.tag();
    let range = request.offset as usize..(request.offset + request.len) as usize;
    match request.command {
        Command::Disconnect => return false,
        Command::Read if request.len == 0 => reply::read_done(out, style, tag),
        Command::Read if style == ReplyStyle::Simple => {
            reply::read_simple(out, tag);
            out.extend_from_slice(&disk[range]);
        }
        Command::Read => {
            // Halves, the second first: chunks may come in any order.
            let middle = request.len / 2;
            if middle > 0 {
                let (at, len) = (request.offset + middle, request.len - middle);
                let part = &disk[at as usize..][..len as usize];
                if part.iter().all(|byte| *byte == 0) {
                    reply::hole(out, style, tag, Last::More, at, len as u32);
                } else {
                    reply::data(out, style, tag, Last::More, at, len as u32);
                    out.extend_from_slice(part);
                }
            }
            let len = if middle > 0 { middle } else { request.len };
            reply::data(out, style, tag, Last::Done, request.offset, len as u32);
            out.extend_from_slice(&disk[request.offset as usize..][..len as usize]);
        }
        Command::WriteZeroes => {
            disk[range].fill(0);
            reply::done(out, style, tag);
        }
        Command::BlockStatus => {
            let extents = [Extent {
                len: request.len,
                hole: false,
                zero: disk[range].iter().all(|byte| *byte == 0),
            }];
            reply::block_status(out, style, tag, &extents);
        }
        Command::Other(_) => {
            reply::error(out, style, tag, request.command, ErrorCode::Inval, "");
        }
        _ => reply::done(out, style, tag),
    }
    true
}

impl Read for Loopback {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.out[self.sent..];
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        self.sent += len;
        Ok(len)
    }
}

impl Write for Loopback {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.receive(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
