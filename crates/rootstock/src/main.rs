//! The administrator's binary.
fn main() {}
