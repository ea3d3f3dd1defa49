//! Who reads in sips: the sender's writes are taken in parts, again and again.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use bytes::BytesMut;
use rootstock_swarm::wire::{self, Hello};
use socket2::{Domain, Socket, Type};

use super::*;

/// Room for what was received and not read: less than an answer.
const RECEIVE_BYTES: usize = 32 << 10;

/// What is read at once.
const SIP_BYTES: usize = 3000;

/// A connection that takes little at once, and has said who it is.
fn connect(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket
        .set_recv_buffer_size(RECEIVE_BYTES)
        .expect("a small one");
    socket.connect(&address.into()).expect("is welcome");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    let mut out = wire::preface().to_vec();
    let hello: Message = Message::Hello(Hello {
        id: id("sips"),
        rack: "r".to_owned(),
        port: 0,
        is_head: false,
    });
    assert_eq!(hello.encode(&mut out), None, "it has no bytes of chunks");
    stream.write_all(&out).expect("says hello");
    stream
}

/// The bytes of these chunks, in the order of the questions.
fn drink(stream: &mut TcpStream, chunks: &[ChunkId]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (request, chunk) in chunks.iter().enumerate() {
        let ask: Message = Message::Ask {
            request: request as u32,
            chunk: *chunk,
            class: Class::User,
            insists: false,
        };
        assert_eq!(ask.encode(&mut out), None, "it has no bytes of chunks");
    }
    stream.write_all(&out).expect("asks");
    let mut came = vec![Vec::new(); chunks.len()];
    let mut lacking: HashSet<u32> = (0..chunks.len() as u32).collect();
    let mut lens = vec![0; chunks.len()];
    let (mut input, mut has_preface) = (BytesMut::new(), false);
    let mut sip = [0; SIP_BYTES];
    while !lacking.is_empty() {
        let len = stream.read(&mut sip).expect("more of it");
        assert!(len > 0, "it ended with {} answers to come", lacking.len());
        input.extend_from_slice(&sip[..len]);
        has_preface = has_preface || wire::take_preface(&mut input).expect("is one");
        while has_preface && let Some(message) = Message::take(&mut input).expect("is one") {
            match message {
                Message::Begin {
                    request,
                    wire_bytes,
                    ..
                } => lens[request as usize] = wire_bytes as usize,
                Message::Piece { request, data } => {
                    let at = request as usize;
                    came[at].extend_from_slice(&data);
                    if came[at].len() == lens[at] {
                        lacking.remove(&request);
                    }
                }
                _ => {}
            }
        }
    }
    came
}

#[test]
fn what_a_socket_took_in_part_goes_on_when_there_is_room() {
    let raws = raws(40);
    let head = member("head", true, None, &Memory::of(&raws, false));
    let chunks: Vec<ChunkId> = raws.iter().map(|raw| ChunkId::of(raw)).collect();
    let mut stream = connect(place(&head));
    assert!(drink(&mut stream, &chunks) == raws, "every byte, in order");
}

#[test]
fn what_had_no_room_goes_out_with_what_took_it() {
    // What waits fills the room for more, and the socket takes all of it: nothing will say
    // that there is room, since there always was.
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("has one");
    let stream = TcpStream::connect(address).expect("is welcome");
    stream.set_nonblocking(true).expect("as the loop has it");
    let room = socket2::SockRef::from(&stream).set_send_buffer_size(200 << 10);
    room.expect("a large one");
    let stream = mio::net::TcpStream::from_std(stream);
    let mut conn = Conn::new(Io::new(stream, None), address.ip(), None);
    conn.io.push(Bytes::from(vec![7; 64 << 10]));
    assert!(!conn.io.has_room());
    let mut left = 100;
    let pumped = conn.pump(|_| {
        left = u32::checked_sub(left, 1)?;
        Some(Message::Load { delay_ms: left })
    });
    pumped.expect("it is there");
    assert_eq!(left, 0, "messages stayed, and the socket had room");
}
