//! The swarm: machines and heads that hold chunks and give them to one another.
//!
//! A [`Node`] is one member as a state machine. What happens (messages, connections,
//! reads of its own machine, the time) is told to it; what is to be done comes out as
//! [`Action`]s and as messages that wait for room on a connection. It opens no socket
//! and no file, reads no clock and draws no random number: the seed of its choices is
//! given. The simulator runs the very same type.
//!
//! The rejected alternative is a tracker that tells every machine what to fetch from
//! whom. It knows more, but each of its mistakes and absences stops everybody; here a
//! head is a member like others, and its list of members is one source of several.

mod bits;
mod bugs;
mod holdings;
mod node;
mod owners;
mod rng;
pub mod sim;
mod time;
pub mod wire;

pub use bits::Bits;
pub use holdings::Table;
pub use node::{Action, Config, Counters, Goal, Leaving, Member, Node, Payload, Whole};
pub use owners::owners;
pub use time::{Span, Time};
pub use wire::{Class, Message};
