//! A member of the swarm on real sockets: one thread that moves bytes between
//! connections and the state machine of `rootstock-swarm`, and a few that read and check
//! chunks.
//!
//! It does not know where chunks are kept or who waits for them: that is a [`Holder`].
//! The rejected alternative is a task for each connection. A member talks to a hundred
//! others and decides on what all of them say; one loop that owns the state needs no
//! lock, and one core moves more than a link of 10 Gbit/s carries.

mod conn;
mod io;
mod member;
mod tls;
mod work;

#[cfg(test)]
mod tests;

pub use member::{Member, MemberError, Options, Peers};
pub use tls::{Tls, TlsError, certifies};
pub use work::{Holder, Proof, Verdict};
