//! Ctrl-C and SIGTERM end what xtask started and take back what it mounted.

use std::process;
use std::thread;

use anyhow::Result;
use rootstock_tests::undo;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What a shell reports for a program that a signal ended, less the signal's number.
const EXIT_BY_SIGNAL: i32 = 128;

/// Waits for a signal in the background, cleans up and leaves.
///
/// # Errors
/// When the system refuses the handler.
pub(crate) fn clean_up_on_signals() -> Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                eprintln!("\ninterrupted: ending what was started");
                undo::run_all();
                process::exit(EXIT_BY_SIGNAL + signal);
            }
        })?;
    Ok(())
}
