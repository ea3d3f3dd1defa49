//! A machine that started from its own disk finds its server again.
//!
//! It asks now and then for a boot token, as its firmware would have. With a session
//! everything goes on that waited for one: reads of what is not on the disk, reports,
//! and what changes while the machine runs.

use std::io;
use std::thread;
use std::time::Duration;

use rootstock_api::boot::{NextVersion, SessionCreate, SessionState};

use crate::console;
use crate::control::Join;
use crate::service::{CallError, Service};

/// Between two tries. A hall full of machines asks some dozen times a second.
const PAUSE: Duration = Duration::from_secs(10);

/// Asks until there is a session.
///
/// # Errors
/// When the system has no thread to give.
pub(crate) fn start(
    service: Service,
    urls: Vec<String>,
    join: Join,
    runs: NextVersion,
) -> io::Result<()> {
    let follow = move || {
        let mut told = String::new();
        loop {
            thread::sleep(PAUSE);
            for url in &urls {
                match open(&service, url, &join, &runs) {
                    Ok(SessionState::Open { session, node }) => {
                        service.join(&session);
                        console::info(format_args!(
                            "its server knows this machine again as {node}"
                        ));
                        return;
                    }
                    Ok(SessionState::Held { message, .. }) => tell(&mut told, message),
                    Err(error) if error.may_pass() => {}
                    Err(error) => tell(&mut told, console::chain(&error)),
                }
            }
        }
    };
    let thread = thread::Builder::new().name("rejoin".to_owned());
    thread.spawn(follow).map(|_| ())
}

/// Says why there is no session, once.
fn tell(told: &mut String, why: String) {
    if *told != why {
        console::warn(format_args!("this machine goes on by itself: {why}"));
        *told = why;
    }
}

/// Gets a token and gives it in.
pub(crate) fn open(
    service: &Service,
    url: &str,
    join: &Join,
    runs: &NextVersion,
) -> Result<SessionState, CallError> {
    let ask = SessionCreate {
        token: service.local_token(url, join.mac, runs)?,
        ..join.ask.clone()
    };
    service.open(url, &ask)
}
