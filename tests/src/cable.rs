//! A cable between two hosts: a TCP proxy that can be cut, and that can fall silent.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Result;

/// What passes at once, in bytes.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Whole,
    /// Connections end, and new ones as soon as they are made.
    Cut,
    /// Nothing passes, and nobody is told.
    Silent,
    /// It is not needed any more.
    Gone,
}

/// A cable to one server, gone when dropped.
pub struct Cable {
    address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    server: SocketAddr,
    state: Mutex<Inside>,
    changed: Condvar,
}

struct Inside {
    state: State,
    sockets: Vec<TcpStream>,
}

impl Cable {
    /// A whole cable that leads to `server`.
    ///
    /// # Errors
    /// When there is no port for its own end.
    pub fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let inner = Arc::new(Inner {
            server,
            state: Mutex::new(Inside {
                state: State::Whole,
                sockets: Vec::new(),
            }),
            changed: Condvar::new(),
        });
        let own = Arc::clone(&inner);
        thread::Builder::new()
            .name("cable".to_owned())
            .spawn(move || own.accept(&listener))?;
        Ok(Self { address, inner })
    }

    /// Its own end.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections, and takes no new ones.
    pub fn cut(&self) {
        self.inner.become_(State::Cut);
    }

    /// Lets nothing pass; connections stay, and nobody is told.
    pub fn silence(&self) {
        self.inner.become_(State::Silent);
    }

    /// Makes it whole again.
    pub fn mend(&self) {
        self.inner.become_(State::Whole);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.inner.become_(State::Gone);
        // Its thread looks up.
        let _ = TcpStream::connect(self.address);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn become_(&self, state: State) {
        let mut inside = self.lock();
        inside.state = state;
        if matches!(state, State::Cut | State::Gone) {
            for socket in inside.sockets.drain(..) {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        drop(inside);
        self.changed.notify_all();
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().flatten() {
            match self.lock().state {
                State::Gone => return,
                State::Cut => continue,
                State::Whole | State::Silent => {}
            }
            // A server that is not there is one that closes.
            let _ = self.plug(client);
        }
    }

    fn plug(self: &Arc<Self>, client: TcpStream) -> Result<()> {
        let server = TcpStream::connect(self.server)?;
        for socket in [&client, &server] {
            socket.set_nodelay(true)?;
        }
        let mut inside = self.lock();
        inside.sockets.push(client.try_clone()?);
        inside.sockets.push(server.try_clone()?);
        drop(inside);
        let ways = [(client.try_clone()?, server.try_clone()?), (server, client)];
        for (from, to) in ways {
            let own = Arc::clone(self);
            thread::Builder::new()
                .name("cable-way".to_owned())
                .spawn(move || own.pass(from, to))?;
        }
        Ok(())
    }

    /// Passes on what comes, until either end closes.
    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut piece = vec![0; PIECE_BYTES];
        while let Ok(len @ 1..) = from.read(&mut piece) {
            let silent = |inside: &mut Inside| inside.state == State::Silent;
            drop(
                self.changed
                    .wait_while(self.lock(), silent)
                    .unwrap_or_else(PoisonError::into_inner),
            );
            if to.write_all(&piece[..len]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
