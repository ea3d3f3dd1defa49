//! Starting the machine anew because its site said so: by the image's own init, in
//! order, and by the kernel only where that was allowed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rootstock_api::boot::RebootOrder;
use rustix::system::{RebootCommand, reboot};

use crate::console;
use crate::report::Switched;
use crate::report::up;
use crate::sys;

/// systemd's order to start anew in an orderly way: `SIGRTMIN+5` (systemd(1)). The
/// number is that of the GNU C library, which systemd is built with; other
/// libraries count from another one.
const SYSTEMD_REBOOT: i32 = 34 + 5;
/// What other inits take for it: what the kernel sends on Ctrl-Alt-Delete.
const CTRL_ALT_DELETE: i32 = 2;
/// How long the image's init may take before the kernel does it, where it may.
const INIT_LIMIT: Duration = Duration::from_secs(120);
/// How often it is looked whether the image's init runs.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Obeys the first order of this boot; there is no second one.
pub(crate) struct Restart {
    was_ordered: AtomicBool,
    switched: Switched,
}

impl Restart {
    /// For a machine whose own init runs once this says so.
    pub(crate) fn new(switched: Switched) -> Self {
        Self {
            was_ordered: AtomicBool::new(false),
            switched,
        }
    }

    /// Obeys an order, in the background.
    pub(crate) fn order(&self, order: RebootOrder) {
        if !self.is_first() {
            return;
        }
        let switched = self.switched.clone();
        let thread = thread::Builder::new().name("restart".to_owned());
        let started = thread.spawn(move || obey(order, &switched));
        if let Err(error) = started {
            console::warn(format_args!("the machine cannot be started anew: {error}"));
        }
    }

    fn is_first(&self) -> bool {
        !self.was_ordered.swap(true, Ordering::Relaxed)
    }
}

fn obey(order: RebootOrder, switched: &Switched) {
    // Before, the first process is ours, and knows nothing of signals.
    while !switched.is_set() {
        thread::sleep(LOOK_EVERY);
    }
    console::error("this machine starts anew: an administrator said so");
    let signal = match up::is_systemd() {
        true => SYSTEMD_REBOOT,
        false => CTRL_ALT_DELETE,
    };
    if let Err(error) = sys::signal_init(signal) {
        console::warn(format_args!("init cannot be told: {error}"));
    }
    match order {
        RebootOrder::Orderly => {}
        RebootOrder::Forced => {
            thread::sleep(INIT_LIMIT);
            console::error("init took too long: the kernel starts the machine anew");
            if let Err(error) = reboot(RebootCommand::Restart) {
                console::warn(format_args!("the kernel refuses: {error}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_boot_obeys_one_order() {
        let restart = Restart::new(Switched::default());
        assert!(restart.is_first());
        assert!(!restart.is_first());
    }
}
