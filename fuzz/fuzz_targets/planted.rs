//! A reader with a planted mistake: fuzzing that does not find it finds nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;

// Length, then as many bytes, then their sum. The mistake: the length is
// believed when the magic before it is right.
fuzz_target!(|data: &[u8]| {
    if let Some(body) = data.strip_prefix(b"RSTK")
        && let [len, bytes @ ..] = body
    {
        let sum = bytes[..usize::from(*len)]
            .iter()
            .fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        std::hint::black_box(sum);
    }
});
