//! Whether the machine runs on its battery.
//!
//! The kernel's `Documentation/ABI/testing/sysfs-class-power` has what is read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where the kernel lists what gives power.
const SUPPLIES: &str = "/sys/class/power_supply";

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Looks now and then.
pub(crate) struct Power {
    supplies: PathBuf,
    look_at: Instant,
    is_battery: bool,
}

impl Power {
    pub(crate) fn new() -> Self {
        Self {
            supplies: SUPPLIES.into(),
            look_at: Instant::now(),
            is_battery: false,
        }
    }

    /// Whether it does, as of some seconds ago.
    pub(crate) fn is_battery(&mut self) -> bool {
        if Instant::now() >= self.look_at {
            self.look_at = Instant::now() + LOOK_EVERY;
            self.is_battery = runs_on_battery(&self.supplies);
        }
        self.is_battery
    }
}

/// Whether a battery of the machine itself is being emptied, and nothing else gives power.
fn runs_on_battery(supplies: &Path) -> bool {
    let Ok(all) = fs::read_dir(supplies) else {
        return false;
    };
    let mut empties = false;
    for supply in all.flatten() {
        let says = |name: &str| {
            let text = fs::read_to_string(supply.path().join(name)).unwrap_or_default();
            text.trim().to_owned()
        };
        match says("type").as_str() {
            // That of a mouse has the scope of a device.
            "Battery" => empties |= says("scope") != "Device" && says("status") == "Discharging",
            "Mains" | "USB" | "Wireless" if says("online") == "1" => return false,
            _ => {}
        }
    }
    empties
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_battery_counts_when_nothing_else_gives_power() {
        let battery = |status| vec![("type", "Battery"), ("status", status)];
        let mains = |online| vec![("type", "Mains"), ("online", online)];
        let mouse = vec![
            ("type", "Battery"),
            ("scope", "Device"),
            ("status", "Discharging"),
        ];
        for (supplies, expected) in [
            (vec![], false),
            (vec![battery("Discharging")], true),
            (vec![battery("Full")], false),
            (vec![battery("Discharging"), mains("0")], true),
            (vec![battery("Discharging"), mains("1")], false),
            (vec![mouse], false),
            (vec![vec![("type", "UPS")], mains("0")], false),
        ] {
            let root = tempfile::tempdir().expect("a directory");
            for (number, files) in supplies.iter().enumerate() {
                let supply = root.path().join(number.to_string());
                fs::create_dir(&supply).expect("is made");
                for (name, text) in files {
                    fs::write(supply.join(name), format!("{text}\n")).expect("is written");
                }
            }
            assert_eq!(runs_on_battery(root.path()), expected, "{supplies:?}");
        }
        assert!(!runs_on_battery(Path::new("/nonexistent")));
    }
}
