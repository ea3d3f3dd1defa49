//! Documents: links that lead somewhere, a table of contents that is complete, a reason for every dependency.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use toml::Table;

use crate::command;
use crate::tidy::files::collect;

/// The book's pages are below this directory, their list in its `SUMMARY.md`.
const BOOK: &str = "docs";

/// Every link within the repository leads to a file, and the book lists all its pages.
///
/// # Errors
/// With every link and page that does not.
pub(crate) fn check_links() -> Result<Vec<String>> {
    let root = command::root();
    let mut paths = Vec::new();
    collect(&root, &root, "md", &mut paths)?;
    let mut faults = Vec::new();
    for path in &paths {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let directory = path.parent().unwrap_or(&root);
        for link in links(&text) {
            if !leads_somewhere(&link, directory) {
                let name = path.strip_prefix(&root)?.display();
                faults.push(format!("{name} links to {link}, which is not there"));
            }
        }
    }
    faults.extend(unlisted_pages(&root)?);
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(Vec::new())
}

/// Every dependency of the workspace has its line in `docs/dependencies.md`.
///
/// # Errors
/// With those that have none, and with lines of crates that are gone.
pub(crate) fn check_reasons() -> Result<Vec<String>> {
    let root = command::root();
    let mut names = foreign(&root.join("Cargo.toml"), &["workspace", "dependencies"])?;
    names.extend(foreign(&root.join("fuzz/Cargo.toml"), &["dependencies"])?);
    let reasons = fs::read_to_string(root.join(BOOK).join("dependencies.md"))?;
    let reasoned: BTreeSet<String> = reasons.lines().flat_map(reasoned_names).collect();
    let mut faults: Vec<String> = names
        .difference(&reasoned)
        .map(|name| format!("{name} has no line in docs/dependencies.md"))
        .collect();
    let gone = reasoned.difference(&names);
    faults.extend(gone.map(|name| format!("docs/dependencies.md still has {name}")));
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(Vec::new())
}

/// The crates that a manifest names in `section` and that are not ours.
fn foreign(manifest: &Path, section: &[&str]) -> Result<BTreeSet<String>> {
    let text =
        fs::read_to_string(manifest).with_context(|| format!("read {}", manifest.display()))?;
    let mut table: Table = toml::from_str(&text)?;
    for key in section {
        let next = table.remove(*key).and_then(|value| value.try_into().ok());
        table = next.with_context(|| format!("{} has no {key}", manifest.display()))?;
    }
    let foreign = table
        .into_iter()
        .filter(|(_, value)| value.get("path").is_none());
    Ok(foreign.map(|(name, _)| name).collect())
}

/// The crates of a line such as `- serde, serde_json: JSON.`
fn reasoned_names(line: &str) -> Vec<String> {
    let Some((names, reason)) = line
        .strip_prefix("- ")
        .and_then(|rest| rest.split_once(": "))
    else {
        return Vec::new();
    };
    if reason.is_empty() {
        return Vec::new();
    }
    names.split(", ").filter_map(crate_name).collect()
}

/// The name, without a remark such as `(in fuzz/ only)`.
fn crate_name(text: &str) -> Option<String> {
    let name = text.split_whitespace().next()?;
    Some(name.trim_matches('`').to_owned())
}

/// The targets of the inline links of a Markdown text, code blocks left out.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let rest = &line[at + 2..];
            if let Some(end) = rest.find(')') {
                found.push(rest[..end].to_owned());
            }
        }
    }
    found
}

/// Links into the net are not followed: a test must not fail because a site is down.
fn leads_somewhere(link: &str, directory: &Path) -> bool {
    let path = link.split('#').next().unwrap_or(link);
    path.is_empty()
        || link.contains("://")
        || link.starts_with("mailto:")
        || directory.join(path).exists()
}

fn unlisted_pages(root: &Path) -> Result<Vec<String>> {
    let book = root.join(BOOK);
    let summary = fs::read_to_string(book.join("SUMMARY.md")).context("read docs/SUMMARY.md")?;
    let listed: BTreeSet<String> = links(&summary).into_iter().collect();
    let mut pages = Vec::new();
    collect(root, &book, "md", &mut pages)?;
    let mut faults = Vec::new();
    for page in pages {
        let name = page.strip_prefix(&book)?.to_string_lossy().into_owned();
        if name != "SUMMARY.md" && !listed.contains(&name) {
            faults.push(format!("docs/{name} is not in docs/SUMMARY.md"));
        }
    }
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_code() {
        let text = "See [a](a.md#part) and [b](https://b).\n```\n[c](c.md)\n```\n";
        assert_eq!(links(text), ["a.md#part", "https://b"]);
    }

    #[test]
    fn a_reason_names_its_crates() {
        assert_eq!(
            reasoned_names("- hyper, hyper-util: HTTP."),
            ["hyper", "hyper-util"]
        );
        assert_eq!(reasoned_names("- a (in fuzz/ only): b."), ["a"]);
        assert!(reasoned_names("- hyper:").is_empty());
        assert!(reasoned_names("Text: more").is_empty());
    }
}
