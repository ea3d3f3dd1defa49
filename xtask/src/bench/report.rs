//! Figures, their medians, and the table and JSON file made of them.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use serde::Serialize;

/// One figure of one candidate in one row, over all rounds.
#[derive(Debug, Clone, Serialize)]
struct Figure {
    row: String,
    candidate: String,
    unit: &'static str,
    rounds: Vec<f64>,
    median: f64,
    /// Rootstock's median over this one's, or the inverse where less is better:
    /// above 1 means that Rootstock is ahead.
    rootstock_ahead: Option<f64>,
}

/// Whether a larger or a smaller figure is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// All figures of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    figures: Vec<Figure>,
}

#[derive(Debug, Serialize)]
struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
}

/// The name under which Rootstock's own figures are added.
pub(crate) const ROOTSTOCK: &str = "rootstock";

impl Report {
    pub(crate) fn new() -> Result<Self> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned();
        let cores = std::thread::available_parallelism()?.get();
        Ok(Self {
            machine: Machine { cpu, cores, kernel },
            figures: Vec::new(),
        })
    }

    /// Adds a row: each candidate's figures over the rounds.
    pub(crate) fn add(
        &mut self,
        row: &str,
        unit: &'static str,
        better: Better,
        candidates: BTreeMap<String, Vec<f64>>,
    ) {
        let medians: BTreeMap<_, _> = candidates
            .iter()
            .map(|(name, rounds)| (name.clone(), median(rounds)))
            .collect();
        let ours = medians.get(ROOTSTOCK).copied();
        for (candidate, rounds) in candidates {
            let median = medians[&candidate];
            let rootstock_ahead =
                ours.filter(|_| candidate != ROOTSTOCK)
                    .map(|ours| match better {
                        Better::More => ours / median,
                        Better::Less => median / ours,
                    });
            let row = row.to_owned();
            self.figures.push(Figure {
                row,
                candidate,
                unit,
                rounds,
                median,
                rootstock_ahead,
            });
        }
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        let Machine { cpu, cores, kernel } = &self.machine;
        println!("\n{cpu}, {cores} cores, Linux {kernel}");
        let mut last = "";
        for figure in &self.figures {
            if figure.row != last {
                println!("\n{} ({})", figure.row, figure.unit);
                last = &figure.row;
            }
            let ahead = figure
                .rootstock_ahead
                .map_or_else(String::new, |r| format!("  {r:>6.2} x"));
            println!(
                "  {:<24} {:>12}{ahead}",
                figure.candidate,
                number(figure.median)
            );
        }
        println!("\nx: how many times rootstock is ahead of this one");
    }

    /// Writes everything, the single rounds too.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        std::fs::write(path, serde_json::to_vec_pretty(self)?)?;
        Ok(())
    }
}

fn number(value: f64) -> String {
    if value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// The middle one of the figures, or the mean of the middle two.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert!(median(&[]).is_nan());
        for (figures, expected) in [(vec![3.0, 1.0, 2.0], 2.0), (vec![4.0, 1.0], 2.5)] {
            assert!((median(&figures) - expected).abs() < 1e-9, "{figures:?}");
        }
    }
}
