//! The one way out of a namespace: to a server that is named.

use std::fs::File;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::namespace::Namespace;

/// Carries whoever connects to `listen` in the namespace to `to`, such as
/// `deb.debian.org:80`, until the program ends.
///
/// # Errors
/// When nothing can listen there.
pub fn open(namespace: &Namespace, listen: SocketAddr, to: &str) -> Result<()> {
    let listener = listen_in(namespace, listen)?;
    let to = to.to_owned();
    thread::spawn(move || {
        for inside in listener.incoming().flatten() {
            let to = to.clone();
            thread::spawn(move || carry(&inside, &to));
        }
    });
    Ok(())
}

/// A socket stays in the namespace that it was made in, and a thread where it went.
fn listen_in(namespace: &Namespace, address: SocketAddr) -> Result<TcpListener> {
    let path = format!("/run/netns/{}", namespace.name());
    let bind = move || -> io::Result<TcpListener> {
        let there = File::open(path)?;
        move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network))?;
        TcpListener::bind(address)
    };
    let bound = thread::spawn(bind).join();
    let bound = bound.map_err(|_| anyhow!("the thread of a relay died"))?;
    bound.with_context(|| format!("listen at {address} in {}", namespace.name()))
}

fn carry(inside: &TcpStream, to: &str) {
    let Ok(outside) = TcpStream::connect(to) else {
        return;
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(inside, &outside));
        copy(&outside, inside);
    });
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
