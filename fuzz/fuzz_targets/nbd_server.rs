//! Arbitrary bytes in arbitrary splits, through the server's whole NBD protocol.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rootstock_nbd::{
    Agreement, Command, ExportInfo, ExportRefusal, InputBuffer, Message, Negotiation, Progress,
    Question, RequestDecoder, TlsOffer, reply, request::Terms,
};

/// The one export, named in the corpus by a short name so that it is found.
const NAME: &str = "d";
const SIZE_BYTES: u64 = 1 << 20;

// The first byte chooses the TLS mode, the second the size of the pieces that
// the rest arrives in.
fuzz_target!(|data: &[u8]| {
    let [mode, piece, bytes @ ..] = data else {
        return;
    };
    let tls = [TlsOffer::Off, TlsOffer::Optional, TlsOffer::Required][usize::from(mode % 3)];
    let mut server = Server {
        phase: Phase::Negotiation(Negotiation::new(tls)),
        input: InputBuffer::new(InputBuffer::CAPACITY_BYTES_MIN),
        out: Vec::new(),
    };
    for mut rest in bytes.chunks(usize::from(*piece) + 1) {
        while !rest.is_empty() {
            let taken = server.input.push(rest);
            assert!(taken > 0, "a full buffer that nobody understands is stuck");
            rest = &rest[taken..];
            while server.step() {}
            if matches!(server.phase, Phase::Closed) {
                return;
            }
        }
    }
});

struct Server {
    phase: Phase,
    input: InputBuffer,
    out: Vec<u8>,
}

enum Phase {
    Negotiation(Negotiation),
    Transmission(Agreement, RequestDecoder),
    Closed,
}

impl Server {
    /// Does one thing; `false` when bytes are needed or the connection is over.
    fn step(&mut self) -> bool {
        self.out.clear();
        let (phase, goes_on) = match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Negotiation(negotiation) => self.negotiate(negotiation),
            Phase::Transmission(agreement, decoder) => self.transmit(agreement, decoder),
            Phase::Closed => (Phase::Closed, false),
        };
        self.phase = phase;
        goes_on
    }

    fn negotiate(&mut self, mut negotiation: Negotiation) -> (Phase, bool) {
        let Ok(progress) = negotiation.advance(&mut self.input, &mut self.out) else {
            return (Phase::Closed, false);
        };
        match progress {
            Progress::NeedInput => (Phase::Negotiation(negotiation), false),
            Progress::Ask(Question::List) => {
                negotiation.answer_list([NAME], &mut self.out);
                (Phase::Negotiation(negotiation), true)
            }
            Progress::Ask(Question::Export { name, .. }) => {
                match negotiation.answer_export(&export(&name), &mut self.out) {
                    Ok(Progress::Ready(agreement)) => {
                        let decoder = RequestDecoder::new(agreement.style);
                        (Phase::Transmission(agreement, decoder), true)
                    }
                    Ok(_) => (Phase::Negotiation(negotiation), true),
                    Err(_) => (Phase::Closed, false),
                }
            }
            Progress::StartTls => {
                negotiation.secured();
                (Phase::Negotiation(negotiation), true)
            }
            Progress::Finished | Progress::Ready(_) => (Phase::Closed, false),
        }
    }

    fn transmit(&mut self, agreement: Agreement, mut decoder: RequestDecoder) -> (Phase, bool) {
        let terms = Terms {
            size_bytes: SIZE_BYTES,
            read_only: false,
            block_status: agreement.block_status,
            style: agreement.style,
        };
        let goes_on = match decoder.next(&mut self.input) {
            Err(_) => return (Phase::Closed, false),
            Ok(None) => false,
            Ok(Some(Message::Request(request))) if request.command == Command::Disconnect => {
                return (Phase::Closed, false);
            }
            Ok(Some(Message::Request(request))) => {
                match request.check(&terms) {
                    Ok(()) => assert!(
                        request.command == Command::Flush
                            || request.offset + request.len <= SIZE_BYTES
                    ),
                    Err(code) => reply::error(
                        &mut self.out,
                        agreement.style,
                        request.tag(),
                        request.command,
                        code,
                        "refused",
                    ),
                }
                true
            }
            Ok(Some(Message::Write {
                request,
                offset,
                data,
                ..
            })) => {
                if request.check(&terms).is_ok() {
                    assert!(offset >= request.offset);
                    assert!(offset + data.len() as u64 <= request.offset + request.len);
                }
                true
            }
            Ok(Some(Message::Refused { .. })) => true,
        };
        (Phase::Transmission(agreement, decoder), goes_on)
    }
}

fn export(name: &str) -> Result<ExportInfo, ExportRefusal> {
    if name == NAME {
        Ok(ExportInfo {
            size_bytes: SIZE_BYTES,
            read_only: false,
            multi_conn: true,
            description: String::new(),
        })
    } else {
        Err(ExportRefusal::Unknown {
            text: String::new(),
        })
    }
}
