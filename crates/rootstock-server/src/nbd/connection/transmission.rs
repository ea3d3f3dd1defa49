//! The transmission phase: requests in, replies out, until either side leaves.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use rootstock_core::ByteRange;
use rootstock_nbd::{
    Command, ErrorCode, InputBuffer, Message, Request, RequestDecoder, proto::command_flag,
    request::Terms,
};
use rootstock_volume::Segments;
use rustix::event::{EventfdFlags, eventfd};

use super::{
    Agreed, ConnectionError, io_error,
    read_ahead::{self, Found, PIECE_BYTES, ReadAhead},
};
use crate::{
    nbd::{
        batch::Batch,
        serve::{self, Answer, Failure},
        shared::{Admission, ring},
    },
    serving::{
        patience::Patience,
        transport::{Transport, Wait, wait_readable},
    },
};

/// Serves requests to the end of the connection.
pub(super) fn serve(
    transport: &mut Transport,
    input: &mut InputBuffer,
    admission: &Admission,
    agreed: &Agreed,
) -> Result<(), ConnectionError> {
    let completions = Completions::new().map_err(io_error("making an event"))?;
    let mut session = Session {
        transport,
        admission,
        agreed,
        name: Arc::from(agreed.name.as_str()),
        batch: Batch::new(agreed.agreement.style),
        segments: Segments::new(),
        completions: Arc::new(completions),
        patience: Patience::default(),
        in_flight: 0,
        in_flight_bytes: 0,
        fetching: 0,
        read_ahead: ReadAhead::default(),
        write_failure: None,
        tally: Tally::default(),
    };
    let served = session.run(input);
    session.count();
    served
}

struct Session<'a> {
    transport: &'a mut Transport,
    admission: &'a Admission,
    agreed: &'a Agreed,
    name: Arc<str>,
    batch: Batch,
    /// Reused by every read that is served at once.
    segments: Segments,
    completions: Arc<Completions>,
    patience: Patience,
    /// Requests handed to workers and not yet in the batch, and their bytes.
    in_flight: usize,
    in_flight_bytes: u64,
    /// How many of them are fetches of our own, which nobody gets a reply to.
    fetching: usize,
    read_ahead: ReadAhead,
    /// Why the write whose pieces are arriving has failed.
    write_failure: Option<Failure>,
    tally: Tally,
}

/// Counted here and added to the server's counters batch by batch, so that
/// connections do not pull a cache line to and fro for each request.
#[derive(Default)]
struct Tally {
    requests: u64,
    read_bytes: u64,
    written_bytes: u64,
    errors: u64,
}

/// Results of workers, and the bell that says there are some.
struct Completions {
    done: Mutex<Vec<(Request, Answer)>>,
    /// Fetches that are over.
    fetched: AtomicUsize,
    rung: AtomicBool,
    bell: OwnedFd,
}

impl Session<'_> {
    fn run(&mut self, input: &mut InputBuffer) -> Result<(), ConnectionError> {
        let mut decoder = RequestDecoder::new(self.agreed.agreement.style);
        loop {
            while let Some(message) = decoder.next(input).map_err(ConnectionError::Request)? {
                if let Message::Request(request) = &message
                    && request.command == Command::Disconnect
                {
                    return self.finish();
                }
                self.handle(message);
                if self.batch.is_full() {
                    self.send()?;
                }
                while self.is_crowded() {
                    self.send()?;
                    self.wait_for_completion()?;
                }
            }
            self.collect();
            self.send()?;
            if self.admission.shared.is_stopping() {
                return self.finish();
            }
            match self.receive(input)? {
                Received::Bytes => {}
                Received::Completions => self.completions.hush(),
                Received::End => {
                    self.finish()?;
                    if decoder.at_boundary() && input.is_empty() {
                        return Ok(());
                    }
                    return Err(ConnectionError::CutOff);
                }
            }
        }
    }

    /// Waits for more requests, or for workers. The fast path, with nothing in
    /// flight, is one blocking receive.
    fn receive(&mut self, input: &mut InputBuffer) -> Result<Received, ConnectionError> {
        let doing = "receiving";
        if self.in_flight == 0 {
            let len = self.receive_alone(input).map_err(io_error(doing))?;
            input.filled(len);
            return Ok(if len == 0 {
                Received::End
            } else {
                Received::Bytes
            });
        }
        match self.transport.recv(input.spare(), Wait::Never) {
            Ok(0) => Ok(Received::End),
            Ok(len) => {
                input.filled(len);
                Ok(Received::Bytes)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let bell = Some(&self.completions.bell);
                wait_readable(&self.transport.socket, bell, None).map_err(io_error(doing))?;
                Ok(Received::Completions)
            }
            Err(error) => Err(io_error(doing)(error)),
        }
    }

    /// Receives when nothing else can happen.
    fn receive_alone(&mut self, input: &mut InputBuffer) -> io::Result<usize> {
        let began = Instant::now();
        while self.patience.looks(began.elapsed()) {
            match self.transport.recv(input.spare(), Wait::Never) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
                received => {
                    self.patience.followed(began.elapsed());
                    return received;
                }
            }
        }
        let received = self.transport.recv(input.spare(), Wait::Forever);
        self.patience.followed(began.elapsed());
        received
    }

    fn handle(&mut self, message: Message<'_>) {
        match message {
            Message::Request(request) => {
                self.tally.requests += 1;
                match request.check(&self.terms()) {
                    Ok(()) => self.request(request),
                    Err(code) => self.fail(&request, &code.into()),
                }
            }
            Message::Write {
                request,
                offset,
                data,
                last,
            } => self.write(&request, offset, data, last),
            Message::Refused { request, code } => {
                self.tally.requests += 1;
                self.fail(&request, &code.into());
            }
        }
    }

    fn request(&mut self, request: Request) {
        if self.admission.shared.is_stopping() {
            return self.fail(&request, &ErrorCode::Shutdown.into());
        }
        if request.command != Command::Read {
            return self.hand_over(request);
        }
        let device = &self.agreed.export.device;
        self.segments.clear();
        match device.try_read(request.offset, request.len as u32, &mut self.segments) {
            Ok(true) => {
                self.tally.read_bytes += request.len;
                self.batch.read(&request, &self.segments);
                self.fetch_after(&request, Found::InMemory);
            }
            Ok(false) => {
                self.hand_over(request);
                self.fetch_after(&request, Found::Missing);
            }
            Err(error) => {
                let failure = serve::failure(&error, &self.name, &request);
                self.fail(&request, &failure);
            }
        }
    }

    /// Has workers fetch what a read will need: the rest of a long one, while one
    /// of them is at its beginning, and what its stream reads next.
    fn fetch_after(&mut self, request: &Request, found: Found) {
        let read = ByteRange::new(request.offset, request.len);
        let disk_bytes = self.agreed.export.device.size_bytes();
        // A client with much in flight keeps the workers busy by itself.
        let limits = &self.admission.shared.limits;
        let most = limits.workers.min(limits.requests_in_flight_max);
        let mut room = most.saturating_sub(self.in_flight);
        if found == Found::Missing && read.len > PIECE_BYTES {
            for piece in read_ahead::pieces(read).skip(1).take(room) {
                self.fetch(piece);
                room -= 1;
            }
        }
        let next = self.read_ahead.after_read(read, found, disk_bytes, room);
        for piece in next.into_iter().flat_map(read_ahead::pieces) {
            self.segments.clear();
            let device = &self.agreed.export.device;
            // Its last byte, since a chunk before it may reach into a piece. What
            // cannot be read is told to who reads it.
            let there = device.try_read(piece.end() - 1, 1, &mut self.segments);
            if matches!(there, Ok(false)) {
                self.fetch(piece);
            }
        }
    }

    fn fetch(&mut self, piece: ByteRange) {
        self.fetching += 1;
        self.in_flight += 1;
        let device = Arc::clone(&self.agreed.export.device);
        let completions = Arc::clone(&self.completions);
        let job = Box::new(move || {
            let _fetched = Fetched(&completions);
            device.prefetch(piece.start, piece.len);
        });
        self.admission.shared.pool.submit(self.admission.id, job);
    }

    /// A write, or a piece of one. It reaches the device at once: an overlay's
    /// write is a copy into the page cache.
    fn write(&mut self, request: &Request, offset: u64, data: &[u8], last: bool) {
        if self.write_failure.is_none() {
            let outcome = match request.check(&self.terms()) {
                Ok(()) => self
                    .agreed
                    .export
                    .device
                    .write(offset, data)
                    .map_err(|error| serve::failure(&error, &self.name, request)),
                Err(code) => Err(code.into()),
            };
            self.write_failure = outcome.err();
        }
        if !last {
            return;
        }
        self.tally.requests += 1;
        match self.write_failure.take() {
            Some(failure) => self.fail(request, &failure),
            None => {
                self.tally.written_bytes += request.len;
                if request.has(command_flag::FUA) {
                    self.hand_over(*request);
                } else {
                    self.batch.done(request);
                }
            }
        }
    }

    fn fail(&mut self, request: &Request, failure: &Failure) {
        self.tally.errors += 1;
        self.batch.error(request, failure.code, &failure.text);
    }

    fn terms(&self) -> Terms {
        let device = &self.agreed.export.device;
        Terms {
            size_bytes: device.size_bytes(),
            read_only: device.read_only(),
            block_status: self.agreed.agreement.block_status,
            style: self.agreed.agreement.style,
        }
    }

    /// Gives a request to the workers.
    fn hand_over(&mut self, request: Request) {
        self.in_flight += 1;
        self.in_flight_bytes += carried_bytes(&request);
        let device = Arc::clone(&self.agreed.export.device);
        let name = Arc::clone(&self.name);
        let completions = Arc::clone(&self.completions);
        let job = Box::new(move || {
            // A job that panics still answers, or its connection would wait for
            // it for ever.
            let mut answer = Unanswered(&completions, request, None);
            answer.2 = Some(serve::perform(&device, &name, &request));
        });
        self.admission.shared.pool.submit(self.admission.id, job);
    }

    fn is_crowded(&self) -> bool {
        let limits = &self.admission.shared.limits;
        self.in_flight >= limits.requests_in_flight_max.max(1)
            || (self.in_flight > 1 && self.in_flight_bytes >= limits.in_flight_bytes_max)
    }

    /// Waits for workers, without looking at the socket.
    fn wait_for_completion(&mut self) -> Result<(), ConnectionError> {
        self.completions
            .wait()
            .map_err(io_error("waiting for the device"))?;
        self.collect();
        Ok(())
    }

    /// Moves what the workers have done into the batch.
    fn collect(&mut self) {
        if self.in_flight == 0 {
            return;
        }
        let fetched = self.completions.fetched.swap(0, Ordering::AcqRel);
        self.fetching -= fetched;
        self.in_flight -= fetched;
        for (request, answer) in self.completions.take() {
            self.in_flight -= 1;
            self.in_flight_bytes -= carried_bytes(&request);
            match answer {
                Answer::Done => self.batch.done(&request),
                Answer::Read(segments) => {
                    self.tally.read_bytes += request.len;
                    self.batch.read(&request, &segments);
                }
                Answer::Status(extents) => self.batch.block_status(&request, &extents),
                Answer::Failed(failure) => self.fail(&request, &failure),
            }
        }
    }

    /// Waits for all requests in flight and sends the last replies.
    fn finish(&mut self) -> Result<(), ConnectionError> {
        while self.in_flight > 0 {
            self.send()?;
            self.wait_for_completion()?;
        }
        self.send()
    }

    fn send(&mut self) -> Result<(), ConnectionError> {
        let sent = self.batch.send(self.transport);
        self.count();
        sent.map_err(io_error("sending replies"))
    }

    fn count(&mut self) {
        let tally = std::mem::take(&mut self.tally);
        let counters = &self.admission.shared.counters;
        let add = |counter: &std::sync::atomic::AtomicU64, count: u64| {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        };
        add(&counters.requests, tally.requests);
        add(&counters.read_bytes, tally.read_bytes);
        add(&counters.written_bytes, tally.written_bytes);
        add(&counters.errors, tally.errors);
    }
}

enum Received {
    Bytes,
    Completions,
    End,
}

/// The memory a request in flight may take.
fn carried_bytes(request: &Request) -> u64 {
    match request.command {
        Command::Read => request.len,
        _ => 0,
    }
}

impl Completions {
    fn new() -> io::Result<Self> {
        Ok(Self {
            done: Mutex::default(),
            fetched: AtomicUsize::new(0),
            rung: AtomicBool::new(false),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn push(&self, request: Request, answer: Answer) {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((request, answer));
        self.ring();
    }

    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            ring(&self.bell);
        }
    }

    fn take(&self) -> Vec<(Request, Answer)> {
        std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Silences the bell; call before [`Completions::take`], so that nothing
    /// rung for is missed.
    fn hush(&self) {
        let mut count = [0; 8];
        // Nothing to read when the ringer is still on its way: then it rings
        // once too often, which costs one look at an empty list.
        let _ = rustix::io::read(&self.bell, &mut count);
        self.rung.store(false, Ordering::Release);
    }

    fn wait(&self) -> io::Result<()> {
        let mut fds = [rustix::event::PollFd::new(
            &self.bell,
            rustix::event::PollFlags::IN,
        )];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.hush();
        Ok(())
    }
}

/// Says that a fetch is over, even when it panicked.
struct Fetched<'a>(&'a Completions);

impl Drop for Fetched<'_> {
    fn drop(&mut self) {
        self.0.fetched.fetch_add(1, Ordering::AcqRel);
        self.0.ring();
    }
}

/// Brings a job's answer back even when the job panics.
struct Unanswered<'a>(&'a Completions, Request, Option<Answer>);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        let answer = self.2.take().unwrap_or_else(|| {
            let text = "the server failed at this request; its log says more".to_owned();
            let code = ErrorCode::Io;
            Answer::Failed(Failure { code, text })
        });
        self.0.push(self.1, answer);
    }
}
