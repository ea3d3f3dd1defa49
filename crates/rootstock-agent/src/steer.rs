//! What may change while the machine runs: asked for again and again, and held by
//! the server until it does.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use rootstock_api::boot::NodeControl;

use crate::service::{CallError, Service};

/// After a failure, and after an answer that came at once.
const PAUSE: Duration = Duration::from_secs(5);
/// An answer that came sooner was not held: the next one is not asked for at once.
const HELD_MIN: Duration = Duration::from_secs(1);

/// Calls `each` with what holds, whenever it changes, for as long as the machine runs.
///
/// # Errors
/// When the system has no thread to give.
pub(crate) fn start(
    service: Service,
    mut urls: Vec<String>,
    each: impl Fn(NodeControl) + Send + 'static,
) -> io::Result<()> {
    let follow = move || {
        let mut number = 0;
        loop {
            let asked = Instant::now();
            match service.control(&urls[0], number) {
                Ok(control) => {
                    if control.number != number {
                        number = control.number;
                        each(control);
                    }
                    if asked.elapsed() >= HELD_MIN {
                        continue;
                    }
                }
                // A server of an older release has no such thing.
                Err(CallError::Refused { status: 404, .. }) => return,
                Err(_) => urls.rotate_left(1),
            }
            thread::sleep(PAUSE);
        }
    };
    let thread = thread::Builder::new().name("steer".to_owned());
    thread.spawn(follow).map(|_| ())
}
