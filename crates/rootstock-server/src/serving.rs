//! What both servers of block devices stand on: sockets, what is sent through them, and the
//! threads that may wait for a disk.

pub(crate) mod outgoing;
pub(crate) mod patience;
pub(crate) mod pool;
pub(crate) mod transport;
