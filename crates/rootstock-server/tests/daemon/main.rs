//! A daemon in this process, on a temporary directory, over its real socket.

mod errors;
mod images;
mod imports;
mod life;
mod nbd;
mod recipes;
mod remote;
mod support;
mod volumes;
