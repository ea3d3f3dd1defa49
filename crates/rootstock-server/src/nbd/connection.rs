//! The life of one connection.

use std::{
    io::{self, IoSlice},
    sync::Arc,
    time::{Duration, Instant},
};

use rootstock_nbd::{
    Agreement, ExportInfo, ExportRefusal, InputBuffer, Negotiation, NegotiationError, Progress,
    Purpose, Question, RequestError, TlsOffer, negotiation,
};

use super::{
    ExportError, NbdTls, OpenExport,
    shared::{Admission, Shared},
};
use crate::serving::transport::{More, Socket, Transport, Wait};

mod read_ahead;
mod transmission;

/// What is received at once, in bytes: requests, or a piece of a long write.
const INPUT_BYTES: usize = 256 << 10;

/// Longest wait for a departing client to close its side.
const LINGER: Duration = Duration::from_millis(200);

/// Why a connection ended otherwise than by a goodbye.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the client broke the handshake")]
    Negotiation(#[source] NegotiationError),
    #[error("the client broke the protocol")]
    Request(#[source] RequestError),
    #[error("the connection failed while {doing}")]
    Io {
        doing: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the client left in the middle of a message")]
    CutOff,
}

fn io_error(doing: &'static str) -> impl Fn(io::Error) -> ConnectionError {
    move |source| ConnectionError::Io { doing, source }
}

/// Serves a client to the end.
pub(super) fn run(socket: Arc<Socket>, admission: &Admission) {
    if let Err(error) = converse(socket, admission) {
        let cause = std::error::Error::source(&error).map(tracing::field::display);
        tracing::info!(connection = admission.id, %error, cause, "an NBD connection ended");
    }
}

fn converse(socket: Arc<Socket>, admission: &Admission) -> Result<(), ConnectionError> {
    let shared = &admission.shared;
    let limits = &shared.limits;
    socket
        .prepare(limits.negotiation_timeout.min(limits.write_timeout))
        .map_err(io_error("preparing the socket"))?;
    let mut input = InputBuffer::new(INPUT_BYTES);
    let mut transport = Transport::new(socket);
    let agreed = negotiate(&mut transport, &mut input, admission)?;
    let Some(agreed) = agreed else {
        transport.close();
        return Ok(());
    };
    transport
        .socket
        .prepare(limits.write_timeout)
        .map_err(io_error("preparing the socket"))?;
    let served = transmission::serve(&mut transport, &mut input, admission, &agreed);
    // Who sees the connection's end may delete the export at once.
    drop(agreed);
    transport.close();
    linger(&mut transport);
    served
}

/// A socket closed with bytes unread takes the last replies with it, so what a
/// client still sends is read for a moment.
fn linger(transport: &mut Transport) {
    transport.socket.close_write();
    let deadline = Instant::now() + LINGER;
    let mut scratch = [0; 4096];
    while let Ok(1..) = transport.recv(&mut scratch, Wait::Until(deadline)) {
        if Instant::now() >= deadline {
            break;
        }
    }
}

/// What was agreed, and on which export.
struct Agreed {
    name: String,
    export: OpenExport,
    agreement: Agreement,
}

/// Where a handshake goes on.
enum Step {
    Receive,
    Again,
    StartTls,
    Over(Option<Agreed>),
}

/// The handshake; `None` when the client left in good order, or when its place
/// was given to a newcomer.
fn negotiate(
    transport: &mut Transport,
    input: &mut InputBuffer,
    admission: &Admission,
) -> Result<Option<Agreed>, ConnectionError> {
    let shared = &admission.shared;
    let deadline = Instant::now() + shared.limits.negotiation_timeout;
    let (offer, tls) = tls_offer(&shared.tls, &transport.socket);
    let client = transport.socket.client();
    let mut negotiation = Negotiation::new(offer);
    let mut out = negotiation::greeting().to_vec();
    loop {
        let step = step(&mut negotiation, input, shared, &client, &mut out);
        // Before the client hears of it: who was let in is not put out again.
        if matches!(step, Ok(Step::Over(Some(_)))) && !admission.settle() {
            return Ok(None);
        }
        if !matches!(step, Ok(Step::Again)) {
            transport
                .send(&mut [IoSlice::new(&out)], More::Nothing)
                .map_err(io_error("negotiating"))?;
            out.clear();
        }
        match step.map_err(ConnectionError::Negotiation)? {
            Step::Again => {}
            Step::Receive => {
                let len = transport
                    .recv(input.spare(), Wait::Until(deadline))
                    .map_err(io_error("negotiating"))?;
                if len == 0 {
                    return Ok(None);
                }
                input.filled(len);
            }
            Step::StartTls => {
                if let Some(config) = tls {
                    transport
                        .start_tls(config, deadline)
                        .map_err(io_error("starting TLS"))?;
                }
                negotiation.secured();
            }
            Step::Over(agreed) => return Ok(agreed),
        }
    }
}

fn step(
    negotiation: &mut Negotiation,
    input: &mut InputBuffer,
    shared: &Shared,
    client: &str,
    out: &mut Vec<u8>,
) -> Result<Step, NegotiationError> {
    Ok(match negotiation.advance(input, out)? {
        Progress::NeedInput => Step::Receive,
        Progress::StartTls => Step::StartTls,
        Progress::Finished => Step::Over(None),
        Progress::Ask(Question::List) => {
            negotiation.answer_list(shared.exports.list(), out);
            Step::Again
        }
        Progress::Ask(Question::Export { name, purpose }) => {
            let open = open(shared, &name, client);
            let answer = open.as_ref().map(describe).map_err(Clone::clone);
            match (negotiation.answer_export(&answer, out)?, open, purpose) {
                (Progress::Ready(agreement), Ok(export), Purpose::Use) => {
                    Step::Over(Some(Agreed {
                        name,
                        export,
                        agreement,
                    }))
                }
                _ => Step::Again,
            }
        }
        // Only an answer leads here, and it is handled above.
        Progress::Ready(_) => Step::Over(None),
    })
}

fn open(shared: &Shared, name: &str, client: &str) -> Result<OpenExport, ExportRefusal> {
    if shared.is_stopping() {
        return Err(ExportRefusal::Shutdown);
    }
    shared.exports.open(name, client).map_err(|error| {
        let text = error.to_string();
        match error {
            ExportError::Unknown { .. } => ExportRefusal::Unknown { text },
            ExportError::Refused { .. } => ExportRefusal::Policy { text },
        }
    })
}

fn describe(export: &OpenExport) -> ExportInfo {
    ExportInfo {
        size_bytes: export.device.size_bytes(),
        read_only: export.device.read_only(),
        // All connections to an export share its device: see `OpenExport`.
        multi_conn: true,
        description: export.description.clone(),
    }
}

fn tls_offer<'a>(
    tls: &'a NbdTls,
    socket: &Socket,
) -> (TlsOffer, Option<&'a Arc<rustls::ServerConfig>>) {
    match (tls, socket) {
        (NbdTls::Off, _) => (TlsOffer::Off, None),
        (NbdTls::Optional(config), _) | (NbdTls::Required(config), Socket::Unix(_)) => {
            (TlsOffer::Optional, Some(config))
        }
        (NbdTls::Required(config), Socket::Tcp(_)) => (TlsOffer::Required, Some(config)),
    }
}
