//! A TFTP client's packets, from its request to the end of a transfer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rootstock_netboot::{
    Millis,
    tftp::{Action, First, Transfer, WINDOW_BLOCKS_MAX},
};

/// The longest transfer that is played, in packets of the client.
const PACKETS_MAX: usize = 200;

// The file's length in three bytes and the path's MTU in two, the request's length
// in one and the request; then the client's packets: a length of one byte, whose
// highest bit lets time pass first, and the bytes.
fuzz_target!(|data: &[u8]| {
    let [l0, l1, l2, m0, m1, len, bytes @ ..] = data else {
        return;
    };
    let file_bytes = u64::from(u32::from_le_bytes([*l0, *l1, *l2, 0]));
    let mtu_bytes = u32::from(u16::from_le_bytes([*m0, *m1]));
    let (first, mut rest) = bytes.split_at(usize::from(*len).min(bytes.len()));
    let request = match First::of(first) {
        First::Read(request) => request,
        First::Refused(refusal) => {
            assert!(refusal.packet().len() <= 512, "a refusal is a small packet");
            return;
        }
        First::Ignored => return,
    };
    let name = &request.name;
    let parts_are_plain = name.split('/').all(|part| !part.is_empty());
    assert!(parts_are_plain, "{name:?} is not normalised");
    let mut now = Millis(0);
    let (mut transfer, action) = match Transfer::new(&request, file_bytes, mtu_bytes, now) {
        Ok(begun) => begun,
        Err(refusal) => {
            assert!(refusal.packet().len() <= 512, "a refusal is a small packet");
            return;
        }
    };
    let mut is_over = check(&transfer, &action);
    for _ in 0..PACKETS_MAX {
        let [head, bytes @ ..] = rest else {
            return;
        };
        if head & 0x80 != 0 {
            now = now.after(Millis::seconds(31));
            let action = transfer.poll(now);
            assert!(!is_over || action == Action::Nothing);
            is_over |= check(&transfer, &action);
        }
        let (packet, after) = bytes.split_at(usize::from(head & 0x7f).min(bytes.len()));
        rest = after;
        let before = transfer.acked_bytes();
        let action = transfer.handle(now, packet);
        assert!(!is_over || action == Action::Nothing);
        assert!(
            transfer.acked_bytes() >= before,
            "what is there stays there"
        );
        is_over |= check(&transfer, &action);
    }
});

/// What is sent lies in the file and in the window; answers whether it is the end.
fn check(transfer: &Transfer, action: &Action) -> bool {
    match action {
        Action::Nothing => false,
        Action::Send(packet) => {
            assert!(packet.len() <= 512);
            false
        }
        Action::SendWindow { first, count } => {
            assert!((1..=WINDOW_BLOCKS_MAX).contains(count));
            assert!(*count <= transfer.window_blocks());
            let last = first + u64::from(*count) - 1;
            let range = transfer.block_range(last);
            assert!(range.start <= range.end && range.end <= transfer.len_bytes());
            // Only the last block of a file is short.
            let full = u64::from(transfer.block_bytes());
            let before = transfer.block_range(*first);
            assert!(*first == last || before.end - before.start == full);
            false
        }
        Action::End(_) => true,
    }
}
