//! Dependencies between our crates only go down.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde_json::Value;

/// Each crate's rank. A crate may depend on those of lower rank only.
const RANKS: [(&str, u32); 20] = [
    ("rootstock-core", 0),
    ("rootstock-image", 1),
    ("rootstock-iscsi", 1),
    ("rootstock-nbd", 1),
    ("rootstock-netboot", 1),
    ("rootstock-scsi", 1),
    ("rootstock-swarm", 1),
    ("rootstock-api", 1),
    ("rootstock-store", 2),
    ("rootstock-catalog", 2),
    ("rootstock-client", 2),
    ("rootstock-peer", 2),
    ("rootstock-cache", 3),
    ("rootstock-mount", 3),
    ("rootstock-volume", 3),
    ("rootstock-server", 4),
    ("rootstock-agent", 4),
    ("rootstock-nfs", 4),
    ("rootstock", 5),
    // Beside the layers, above all: nothing may depend on these but each other.
    ("rootstock-tests", 6),
];

/// The task runner stands on the tests' harness.
const XTASK: (&str, u32) = ("xtask", 7);

/// What the rank-1 crates must not know: sockets, async, randomness.
const IMPURE: [&str; 6] = ["tokio", "hyper", "reqwest", "axum", "getrandom", "sqlx"];
const PURE_RANKS: std::ops::RangeInclusive<u32> = 0..=1;

/// Looks at every edge between crates of this workspace, also of tests and build scripts.
///
/// # Errors
/// When one climbs, or a crate has no rank; the message lists every such edge.
pub(crate) fn check(metadata: &Value) -> Result<Vec<String>> {
    let ranks: BTreeMap<&str, u32> = RANKS.into_iter().chain([XTASK]).collect();
    let mut faults = Vec::new();
    for package in own_packages(metadata) {
        let name = package["name"].as_str().unwrap_or("?");
        let Some(&rank) = ranks.get(name) else {
            faults.push(format!(
                "{name} has no rank: give it one in xtask/src/tidy/layers.rs"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or("?");
            if let Some(fault) = fault_of_edge(name, rank, on, dependency, &ranks) {
                faults.push(fault);
            }
        }
    }
    if !faults.is_empty() {
        bail!("dependencies only go down:\n{}", faults.join("\n"));
    }
    Ok(Vec::new())
}

fn fault_of_edge(
    name: &str,
    rank: u32,
    on: &str,
    dependency: &Value,
    ranks: &BTreeMap<&str, u32>,
) -> Option<String> {
    let for_tests = dependency["kind"] == "dev";
    if PURE_RANKS.contains(&rank) && IMPURE.contains(&on) && !for_tests {
        return Some(format!(
            "{name} (rank {rank}) does no I/O, but depends on {on}"
        ));
    }
    let &below = ranks.get(on)?;
    (below >= rank).then(|| format!("{name} (rank {rank}) depends on {on} (rank {below})"))
}

fn own_packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    let members = metadata["workspace_members"].as_array();
    let packages = metadata["packages"].as_array();
    packages
        .into_iter()
        .flatten()
        .filter(move |package| members.is_some_and(|members| members.contains(&package["id"])))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn workspace(name: &str, on: &str, kind: &Value) -> Value {
        json!({
            "workspace_members": ["own"],
            "packages": [
                { "id": "own", "name": name, "dependencies": [{ "name": on, "kind": kind }] },
                { "id": "foreign", "name": "foreign", "dependencies": [{ "name": "rootstock" }] },
            ],
        })
    }

    #[test]
    fn edges_go_down() {
        let normal = Value::Null;
        let dev = json!("dev");
        for (name, on, kind, allowed) in [
            ("rootstock-store", "rootstock-core", &normal, true),
            ("rootstock-store", "rootstock-catalog", &normal, false),
            ("rootstock-store", "rootstock-catalog", &dev, false),
            ("rootstock-image", "rootstock-store", &normal, false),
            ("rootstock-core", "rootstock-core", &normal, false),
            ("rootstock", "rootstock-server", &normal, true),
            ("rootstock-server", "rootstock", &normal, false),
            ("rootstock-image", "tokio", &normal, false),
            ("rootstock-image", "tokio", &dev, true),
            ("rootstock-server", "tokio", &normal, true),
            ("xtask", "rootstock-tests", &normal, true),
            ("rootstock-new", "rootstock-core", &normal, false),
        ] {
            let result = check(&workspace(name, on, kind));
            assert_eq!(result.is_ok(), allowed, "{name} -> {on}: {result:?}");
        }
    }
}
