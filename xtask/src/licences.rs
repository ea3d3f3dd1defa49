//! Licences, bans and sources of all dependencies, as `deny.toml` says.
//!
//! The file is cargo-deny's, but the check is ours: cargo-deny is two hundred more
//! crates to compile on every fresh machine, for what is here in a page and takes a
//! second. Keys that are not understood are refused, never passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::command;

/// The part of cargo-deny's configuration that is checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Licences {
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    multiple_versions: Level,
    wildcards: Level,
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: Level,
    unknown_git: Level,
    allow_registry: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Level {
    Allow,
    Warn,
    Deny,
}

/// The part of `Cargo.lock` that says where packages of every platform come from.
#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
}

/// Checks all of it. Gives what is only reported, such as crates in two versions.
///
/// # Errors
/// When a rule is broken; the message lists every breach.
pub(crate) fn check(metadata: &Value) -> Result<Vec<String>> {
    let rules = read_toml::<Rules>("deny.toml")?;
    let lock = read_toml::<Lock>("Cargo.lock")?;
    let mut faults = licence_faults(&rules.licenses, metadata);
    faults.extend(ban_faults(&rules.bans, &lock));
    faults.extend(source_faults(&rules.sources, &lock));
    if rules.bans.wildcards == Level::Deny {
        faults.extend(wildcard_faults(metadata));
    }
    let twice = twice(&lock);
    match rules.bans.multiple_versions {
        Level::Deny => faults.extend(twice),
        Level::Warn if faults.is_empty() => return Ok(twice),
        Level::Warn | Level::Allow => {}
    }
    if !faults.is_empty() {
        bail!("deny.toml forbids:\n{}", faults.join("\n"));
    }
    Ok(Vec::new())
}

fn read_toml<T: for<'a> Deserialize<'a>>(name: &str) -> Result<T> {
    let path = command::root().join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("read {name}"))
}

fn licence_faults(rules: &Licences, metadata: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    // Only what this platform builds is in the graph; the rest is never shipped.
    let built: BTreeSet<&str> = items(&metadata["resolve"]["nodes"])
        .filter_map(|node| node["id"].as_str())
        .collect();
    for package in items(&metadata["packages"]) {
        let name = package["name"].as_str().unwrap_or("?");
        if !package["id"].as_str().is_some_and(|id| built.contains(id)) {
            continue;
        }
        match package["license"].as_str() {
            None => faults.push(format!("{name} names no licence")),
            Some(licence) => match allowed(licence, &rules.allow) {
                Ok(true) => {}
                Ok(false) => faults.push(format!("{name} is under {licence}")),
                Err(error) => faults.push(format!("{name}: {licence:?}: {error}")),
            },
        }
    }
    faults
}

fn ban_faults(rules: &Bans, lock: &Lock) -> Vec<String> {
    let mut faults = Vec::new();
    for banned in &rules.deny {
        for package in lock
            .package
            .iter()
            .filter(|package| package.name == banned.name)
        {
            faults.push(format!(
                "{} {}: {}",
                package.name, package.version, banned.reason
            ));
        }
    }
    faults
}

fn source_faults(rules: &Sources, lock: &Lock) -> Vec<String> {
    let mut faults = Vec::new();
    for package in &lock.package {
        let Some(source) = &package.source else {
            continue; // a crate of this workspace
        };
        let known = source.strip_prefix("registry+").is_some_and(|registry| {
            rules
                .allow_registry
                .iter()
                .any(|allowed| allowed == registry)
        });
        let level = if source.starts_with("git+") {
            rules.unknown_git
        } else {
            rules.unknown_registry
        };
        if !known && level == Level::Deny {
            faults.push(format!("{} comes from {source}", package.name));
        }
    }
    faults
}

/// Dependencies of this workspace that take any version.
fn wildcard_faults(metadata: &Value) -> Vec<String> {
    let own: BTreeSet<&str> = items(&metadata["workspace_members"])
        .filter_map(Value::as_str)
        .collect();
    let mut faults = Vec::new();
    for package in items(&metadata["packages"]) {
        if !package["id"].as_str().is_some_and(|id| own.contains(id)) {
            continue;
        }
        for dependency in items(&package["dependencies"]) {
            if dependency["req"] == "*" && dependency["path"].is_null() {
                faults.push(format!(
                    "{} takes any {}",
                    package["name"], dependency["name"]
                ));
            }
        }
    }
    faults
}

/// The crates that are there in more than one version.
fn twice(lock: &Lock) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in &lock.package {
        versions
            .entry(&package.name)
            .or_default()
            .push(&package.version);
    }
    let several = versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1);
    several
        .map(|(name, versions)| format!("{name} is there as {}", versions.join(" and ")))
        .collect()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Whether an SPDX expression can be satisfied with the licences in `allow`.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> Result<bool> {
    // Crates from before SPDX write `MIT/Apache-2.0` for a choice.
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Expression {
        words: &words,
        allow,
    };
    let result = parser.any_of()?;
    if let [word, ..] = parser.words {
        bail!("{word} is not expected there");
    }
    Ok(result)
}

/// What is left to read of an SPDX expression.
struct Expression<'a> {
    words: &'a [&'a str],
    allow: &'a BTreeSet<String>,
}

impl<'a> Expression<'a> {
    fn any_of(&mut self) -> Result<bool> {
        let mut result = self.all_of()?;
        while self.take("OR") {
            result |= self.all_of()?;
        }
        Ok(result)
    }

    fn all_of(&mut self) -> Result<bool> {
        let mut result = self.one()?;
        while self.take("AND") {
            result &= self.one()?;
        }
        Ok(result)
    }

    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let result = self.any_of()?;
            if !self.take(")") {
                bail!("a bracket is not closed");
            }
            return Ok(result);
        }
        let name = self.word().context("it ends where a licence should be")?;
        if self.take("WITH") {
            let exception = self
                .word()
                .context("it ends where an exception should be")?;
            return Ok(self.allow.contains(&format!("{name} WITH {exception}")));
        }
        Ok(self.allow.contains(name))
    }

    fn word(&mut self) -> Option<&'a str> {
        let (word, rest) = self.words.split_first()?;
        self.words = rest;
        Some(word)
    }

    fn take(&mut self, wanted: &str) -> bool {
        let there = self.words.first() == Some(&wanted);
        if there {
            self.words = &self.words[1..];
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_satisfied_or_not() {
        let allow = [
            "MIT",
            "Apache-2.0",
            "Zlib",
            "Apache-2.0 WITH LLVM-exception",
        ]
        .map(String::from)
        .into();
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("MIT/GPL-3.0", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND Zlib", true),
            ("(MIT OR GPL-3.0) AND (GPL-2.0 OR LGPL-2.1)", false),
            ("GPL-3.0 AND MIT OR Zlib", true),
            ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
            ("Apache-2.0 WITH other-exception", false),
        ] {
            assert_eq!(
                allowed(expression, &allow).unwrap(),
                expected,
                "{expression}"
            );
        }
    }

    #[test]
    fn broken_expressions_are_errors() {
        for expression in ["", "MIT OR", "(MIT", "MIT MIT", "MIT WITH"] {
            assert!(
                allowed(expression, &BTreeSet::new()).is_err(),
                "{expression}"
            );
        }
    }

    #[test]
    fn foreign_sources_and_banned_crates_are_found() {
        let lock: Lock = toml::from_str(
            r#"
            package = [
                { name = "own", version = "1.0.0" },
                { name = "good", version = "1.0.0", source = "registry+https://r" },
                { name = "good", version = "2.0.0", source = "registry+https://r" },
                { name = "far", version = "1.0.0", source = "git+https://elsewhere" },
            ]"#,
        )
        .unwrap();
        let sources = Sources {
            unknown_registry: Level::Deny,
            unknown_git: Level::Deny,
            allow_registry: vec!["https://r".to_owned()],
        };
        assert_eq!(
            source_faults(&sources, &lock),
            ["far comes from git+https://elsewhere"]
        );
        let bans = Bans {
            multiple_versions: Level::Warn,
            wildcards: Level::Deny,
            deny: vec![Banned {
                name: "far".to_owned(),
                reason: "too far".to_owned(),
            }],
        };
        assert_eq!(ban_faults(&bans, &lock), ["far 1.0.0: too far"]);
        assert_eq!(twice(&lock), ["good is there as 1.0.0 and 2.0.0"]);
    }
}
