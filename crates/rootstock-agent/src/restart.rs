//! Starting the machine anew because its site said so: by the image's own init, in
//! order, and by the kernel only where that was allowed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rootstock_api::boot::RebootOrder;
use rustix::system::{RebootCommand, reboot};

use crate::console;
use crate::report::Switched;
use crate::report::{up, users};
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
    was_ordered: Arc<AtomicBool>,
    /// Whether it is to start anew once nobody is logged in.
    when_idle: Arc<AtomicBool>,
    switched: Switched,
}

impl Restart {
    /// For a machine whose own init runs once this says so.
    pub(crate) fn new(switched: Switched) -> Self {
        Self {
            was_ordered: Arc::default(),
            when_idle: Arc::default(),
            switched,
        }
    }

    /// Obeys what holds now, in the background. An order that was taken back is not
    /// obeyed any more if it waits.
    pub(crate) fn order(&self, order: Option<RebootOrder>) {
        match order {
            None => self.when_idle.store(false, Ordering::Relaxed),
            Some(RebootOrder::Idle) => {
                if !self.when_idle.swap(true, Ordering::Relaxed) {
                    let (when_idle, was_ordered) = (&self.when_idle, &self.was_ordered);
                    let (when_idle, was_ordered) = (Arc::clone(when_idle), Arc::clone(was_ordered));
                    self.spawn(move |switched| {
                        if wait_until_idle(&when_idle, users::count) && is_first(&was_ordered) {
                            obey(RebootOrder::Idle, switched);
                        }
                    });
                }
            }
            Some(order) => {
                if is_first(&self.was_ordered) {
                    self.spawn(move |switched| obey(order, switched));
                }
            }
        }
    }

    fn spawn(&self, work: impl FnOnce(&Switched) + Send + 'static) {
        let switched = self.switched.clone();
        let thread = thread::Builder::new().name("restart".to_owned());
        if let Err(error) = thread.spawn(move || work(&switched)) {
            console::warn(format_args!("the machine cannot be started anew: {error}"));
        }
    }
}

fn is_first(was_ordered: &AtomicBool) -> bool {
    !was_ordered.swap(true, Ordering::Relaxed)
}

/// Whether nobody is logged in before the order is taken back.
fn wait_until_idle(when_idle: &AtomicBool, users: impl Fn() -> u32) -> bool {
    while when_idle.load(Ordering::Relaxed) {
        if users() == 0 {
            return true;
        }
        thread::sleep(LOOK_EVERY);
    }
    false
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
        RebootOrder::Orderly | RebootOrder::Idle => {}
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
    use std::cell::Cell;

    use super::*;

    #[test]
    fn one_boot_obeys_one_order() {
        let was_ordered = AtomicBool::default();
        assert!(is_first(&was_ordered));
        assert!(!is_first(&was_ordered));
    }

    #[test]
    fn an_order_that_waits_can_be_taken_back() {
        let when_idle = AtomicBool::new(true);
        assert!(wait_until_idle(&when_idle, || 0));
        let left = Cell::new(2);
        let leaving = || {
            left.set(left.get() - 1);
            left.get()
        };
        assert!(wait_until_idle(&when_idle, leaving));
        let taken_back = || {
            when_idle.store(false, Ordering::Relaxed);
            1
        };
        assert!(!wait_until_idle(&when_idle, taken_back));
    }
}
