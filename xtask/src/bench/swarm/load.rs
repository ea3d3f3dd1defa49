//! How busy the machine's processors are, by `/proc/stat`.

use anyhow::{Context, Result};

/// The clock ticks of all processors since the machine's start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    idle: u64,
    all: u64,
}

impl Load {
    pub(super) fn now() -> Result<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat")?)
    }

    /// `proc(5)`: user, nice, system, idle, iowait, irq, softirq and steal; guests are in
    /// user already.
    fn parse(stat: &str) -> Result<Self> {
        let line = stat
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("cpu "));
        let line = line.context("/proc/stat begins with all processors")?;
        let ticks: Result<Vec<u64>, _> = line.split_whitespace().take(8).map(str::parse).collect();
        let ticks = ticks?;
        let idle = ticks.iter().skip(3).take(2).sum();
        let all = ticks.iter().sum();
        Ok(Self { idle, all })
    }

    pub(super) fn busy_percent_since(&self, before: &Self) -> f64 {
        let all = self.all - before.all;
        let busy = all - (self.idle - before.idle).min(all);
        100.0 * busy as f64 / (all.max(1)) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_disk_is_not_busy() {
        let before = Load::parse("cpu  10 0 10 100 0 0 0 0 5 0\ncpu0 1\n").unwrap();
        let after = Load::parse("cpu  30 0 20 150 10 0 5 5 9 0\n").unwrap();
        assert_eq!(
            before,
            Load {
                idle: 100,
                all: 120
            }
        );
        assert!((after.busy_percent_since(&before) - 40.0).abs() < 1e-9);
        assert!(before.busy_percent_since(&before).abs() < 1e-9);
        assert!(Load::parse("nothing").is_err());
    }
}
