//! One command for everything in this repository.
fn main() {}
