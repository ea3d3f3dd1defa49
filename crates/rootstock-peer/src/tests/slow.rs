//! Members that promise all and give little, on real sockets.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;

use bytes::BytesMut;
use rootstock_swarm::wire::{self, Hello};

use super::*;

/// How it gives little. All else it says is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Miser {
    /// Says that an answer begins, and gives half of it.
    HalfAChunk,
    /// Gives half of a message, and stays.
    HalfAMessage,
    /// Gives one byte of each answer; the next ones would follow one a minute.
    AByte,
    /// Says nothing to any question.
    Nothing,
}

/// A member that says it holds all chunks of these; where it listens.
fn miser(kind: Miser, raws: &[Vec<u8>]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("has one");
    let chunks: BTreeMap<ChunkId, Bytes> = raws
        .iter()
        .map(|raw| (ChunkId::of(raw), raw.clone().into()))
        .collect();
    // They end with the connections, or with the test.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let chunks = chunks.clone();
            thread::spawn(move || serve(kind, stream, address.port(), &chunks));
        }
    });
    address
}

/// Until the other end has enough.
fn serve(
    kind: Miser,
    mut stream: TcpStream,
    port: u16,
    chunks: &BTreeMap<ChunkId, Bytes>,
) -> Option<()> {
    let mut out = wire::preface().to_vec();
    let all: Message = Message::Hello(Hello {
        id: id("miser"),
        rack: "r".to_owned(),
        port,
        is_head: false,
    });
    let version: Message = Message::Version {
        slot: 0,
        version: Digest::of(b"v"),
        chunks: chunks.len() as u32,
    };
    let held: Message = Message::Held {
        slot: 0,
        first: 0,
        bits: Bits::full(chunks.len()).to_bytes(),
    };
    for message in [all, version, held] {
        assert_eq!(message.encode(&mut out), None, "it has no bytes of chunks");
    }
    stream.write_all(&out).ok()?;
    let mut input = BytesMut::new();
    let mut has_preface = false;
    let mut buffer = [0; 4096];
    loop {
        let len = stream.read(&mut buffer).ok().filter(|len| *len > 0)?;
        input.extend_from_slice(&buffer[..len]);
        has_preface = has_preface || wire::take_preface(&mut input).ok()?;
        while has_preface && let Some(message) = Message::take(&mut input).ok()? {
            if let Message::Ask { request, chunk, .. } = message {
                let data = chunks.get(&chunk)?;
                stream.write_all(&answer(kind, request, data)).ok()?;
                // Whatever followed a half would be taken for the other one.
                if kind == Miser::HalfAMessage {
                    let _ = std::io::copy(&mut stream, &mut std::io::sink());
                    return None;
                }
            }
        }
    }
}

fn answer(kind: Miser, request: u32, data: &Bytes) -> Vec<u8> {
    let mut out = Vec::new();
    let begin: Message = Message::Begin {
        request,
        codec: 0,
        raw_bytes: data.len() as u32,
        wire_bytes: data.len() as u32,
    };
    assert_eq!(begin.encode(&mut out), None, "it has no bytes of chunks");
    let given = match kind {
        Miser::HalfAChunk => data.len() / 2,
        Miser::HalfAMessage => data.len(),
        Miser::AByte => 1,
        Miser::Nothing => return Vec::new(),
    };
    let data = data.slice(..given.min(wire::PIECE_BYTES_MAX));
    let piece = Message::Piece { request, data };
    let begun = out.len();
    let data = piece.encode(&mut out);
    out.extend_from_slice(&data.unwrap_or_default());
    if kind == Miser::HalfAMessage {
        out.truncate((begun + out.len()) / 2);
    }
    out
}

/// Three machines fill from a head, and one beside them gives little. All others have all
/// in the end, and every byte is right.
fn fills_beside(kind: Miser) {
    let raws = raws(60);
    let table = table(&raws);
    let head = member("head", true, None, &Memory::of(&raws, false));
    let place_of_miser = miser(kind, &raws);
    let names = ["a", "b", "c"];
    let memories = names.map(|_| Memory::of(&[], false));
    let members: Vec<Member> = names
        .iter()
        .zip(&memories)
        .map(|(name, memory)| member(name, false, None, memory))
        .collect();
    for member in &members {
        let others = names.iter().zip(&members);
        let others = others.map(|(name, other)| (id(name), place(other), "r".to_owned(), false));
        let more = [
            (id("miser"), place_of_miser, "r".to_owned(), false),
            (id("head"), place(&head), String::new(), true),
        ];
        member.know(others.chain(more).collect());
        member.join(Arc::clone(&table), Bits::new(table.len()), Goal::All);
    }
    memories.iter().for_each(|memory| memory.wait(60));
    for memory in &memories {
        let chunks = memory.chunks.lock().expect("no panic");
        assert!(raws.iter().all(|raw| chunks[&ChunkId::of(raw)] == raw[..]));
        // To give little is not to lie.
        let liars = memory.liars.lock().expect("no panic");
        assert!(liars.is_empty(), "{kind:?}");
    }
}

#[test]
fn who_gives_little_harms_nobody_for_long() {
    thread::scope(|scope| {
        for kind in [
            Miser::HalfAChunk,
            Miser::HalfAMessage,
            Miser::AByte,
            Miser::Nothing,
        ] {
            scope.spawn(move || fills_beside(kind));
        }
    });
}
