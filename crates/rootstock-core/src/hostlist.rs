//! Host lists: `n[001-300],m5` names many nodes in a few characters.
//!
//! The syntax is the one that Slurm, pdsh and ClusterShell share: items with
//! commas between them, in each of them brackets with numbers and ranges. A
//! range's width is that of its first number: `[001-300]` has leading zeros.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{name::NameError, node::NodeName};

/// The most names in one list.
pub const HOSTS_MAX: usize = 10_000;

/// The longest list as written, in bytes.
const TEXT_BYTES_MAX: usize = 256 << 10;

/// The most digits of a number.
const DIGITS_MAX: usize = 9;

/// Why a text is not a host list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostListError {
    /// No name in it.
    #[error("the host list is empty: write NAME, n[001-300] or a,b[1,3-5]")]
    Empty,
    /// Too much text.
    #[error("the host list has {len_bytes} bytes, and the limit is {TEXT_BYTES_MAX}")]
    TooLong {
        /// Its length in bytes.
        len_bytes: usize,
    },
    /// Too many names.
    #[error("the host list names more than {HOSTS_MAX} nodes: split it")]
    TooMany,
    /// A bracket without its other half.
    #[error("a bracket of '{}' is not closed: write n[001-300]", item.escape_debug())]
    Bracket {
        /// The item.
        item: String,
    },
    /// What stands in brackets is no number and no range.
    #[error("'{}' is not a number or a range: write [1-9], [001-300] or [1,3,5-7]", range.escape_debug())]
    Range {
        /// What was written.
        range: String,
    },
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Names of nodes in the order they were written, each once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostList(Vec<NodeName>);

impl HostList {
    /// A list of these names, each once.
    ///
    /// # Errors
    /// [`HostListError::Empty`], [`HostListError::TooMany`].
    pub fn new(names: impl IntoIterator<Item = NodeName>) -> Result<Self, HostListError> {
        let mut seen = BTreeSet::new();
        let mut list = Vec::new();
        for name in names {
            if seen.insert(name.clone()) {
                list.push(name);
            }
            if list.len() > HOSTS_MAX {
                return Err(HostListError::TooMany);
            }
        }
        if list.is_empty() {
            return Err(HostListError::Empty);
        }
        Ok(Self(list))
    }

    /// The names: at least one, at most [`HOSTS_MAX`].
    #[must_use]
    pub fn names(&self) -> &[NodeName] {
        &self.0
    }

    /// How many names.
    #[expect(clippy::len_without_is_empty, reason = "a list is never empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl FromStr for HostList {
    type Err = HostListError;

    fn from_str(text: &str) -> Result<Self, HostListError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(HostListError::TooLong {
                len_bytes: text.len(),
            });
        }
        let mut names = Vec::new();
        for item in items(text)? {
            for name in expand(item)? {
                names.push(name.parse()?);
            }
            if names.len() > HOSTS_MAX {
                return Err(HostListError::TooMany);
            }
        }
        Self::new(names)
    }
}

impl fmt::Display for HostList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&fold(&self.0))
    }
}

impl Serialize for HostList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Writes names as a host list: numbers at the ends of names are folded, in
/// order. Reading it again gives the same names.
#[must_use]
pub fn fold(names: &[NodeName]) -> String {
    let mut parts: Vec<Part<'_>> = names.iter().map(Part::of).collect();
    let padded = parts.iter().filter(|part| part.has_leading_zero());
    let padded: BTreeSet<(&str, usize)> = padded.map(|part| (part.stem, part.width)).collect();
    for part in &mut parts {
        // 100 is of one series with 099, but not with 99.
        if !padded.contains(&(part.stem, part.width)) {
            part.width = 0;
        }
    }
    parts.sort_unstable();
    parts.dedup();
    let mut out = String::new();
    for group in parts.chunk_by(Part::is_of_series) {
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(group[0].stem);
        if let [one] = group {
            out.push_str(one.digits);
        } else {
            out.push('[');
            out.push_str(&ranges(group));
            out.push(']');
        }
    }
    out
}

/// A name, cut before the number at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Part<'a> {
    stem: &'a str,
    /// Digits of each number of a series with leading zeros; 0 in one without.
    width: usize,
    number: u64,
    digits: &'a str,
}

impl<'a> Part<'a> {
    fn of(name: &'a NodeName) -> Self {
        let text = name.as_str();
        let digits = text.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (stem, digits) = text.split_at(text.len() - digits.min(DIGITS_MAX));
        Self {
            stem,
            width: digits.len(),
            number: digits.parse().unwrap_or(0),
            digits,
        }
    }

    fn has_leading_zero(&self) -> bool {
        self.digits.len() > 1 && self.digits.starts_with('0')
    }

    fn is_of_series(&self, next: &Self) -> bool {
        let numbers = !self.digits.is_empty() && !next.digits.is_empty();
        numbers && self.stem == next.stem && self.width == next.width
    }
}

fn ranges(group: &[Part<'_>]) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < group.len() {
        let mut end = at;
        while end + 1 < group.len() && group[end + 1].number == group[end].number + 1 {
            end += 1;
        }
        if at > 0 {
            out.push(',');
        }
        out.push_str(group[at].digits);
        if end > at {
            out.push('-');
            out.push_str(group[end].digits);
        }
        at = end + 1;
    }
    out
}

/// The parts between commas that are not inside brackets.
fn items(text: &str) -> Result<Vec<&str>, HostListError> {
    let mut items = Vec::new();
    let (mut start, mut inside) = (0, false);
    for (at, character) in text.char_indices() {
        match character {
            '[' if !inside => inside = true,
            ']' if inside => inside = false,
            '[' | ']' => return Err(bracket(text)),
            ',' if !inside => {
                items.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(bracket(&text[start..]));
    }
    items.push(text[start..].trim());
    items.retain(|item| !item.is_empty());
    Ok(items)
}

fn bracket(item: &str) -> HostListError {
    HostListError::Bracket {
        item: item.chars().take(64).collect(),
    }
}

/// Every name of an item, the last brackets counting fastest.
fn expand(item: &str) -> Result<Vec<String>, HostListError> {
    let mut names = vec![String::new()];
    let mut rest = item;
    while let Some((before, after)) = rest.split_once('[') {
        let (inside, after) = after.split_once(']').ok_or_else(|| bracket(item))?;
        let numbers = numbers(inside)?;
        if names.len().saturating_mul(numbers.len()) > HOSTS_MAX {
            return Err(HostListError::TooMany);
        }
        let each = |name: &String| -> Vec<String> {
            numbers
                .iter()
                .map(|number| format!("{name}{before}{number}"))
                .collect()
        };
        names = names.iter().flat_map(each).collect();
        rest = after;
    }
    for name in &mut names {
        name.push_str(rest);
    }
    Ok(names)
}

fn numbers(inside: &str) -> Result<Vec<String>, HostListError> {
    let mut numbers = Vec::new();
    for range in inside.split(',') {
        let wrong = || HostListError::Range {
            range: range.chars().take(32).collect(),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.trim(), last.trim());
        let (from, to) = (number(first), number(last));
        let (from, to) = from.zip(to).ok_or_else(wrong)?;
        if from > to {
            return Err(wrong());
        }
        if to - from >= HOSTS_MAX as u64 || numbers.len() > HOSTS_MAX {
            return Err(HostListError::TooMany);
        }
        let width = first.len();
        numbers.extend((from..=to).map(|number| format!("{number:0width$}")));
    }
    Ok(numbers)
}

fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    (digits && (1..=DIGITS_MAX).contains(&text.len()))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expanded(text: &str) -> Vec<String> {
        let list: HostList = text.parse().expect(text);
        list.names().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn lists() {
        for (text, names) in [
            ("pc", vec!["pc"]),
            ("n[1-3]", vec!["n1", "n2", "n3"]),
            ("n[008-010]", vec!["n008", "n009", "n010"]),
            ("n[8-10]", vec!["n8", "n9", "n10"]),
            ("n[1,3,5-6]", vec!["n1", "n3", "n5", "n6"]),
            ("b, a ,b", vec!["b", "a"]),
            ("r[1-2]n[1-2]", vec!["r1n1", "r1n2", "r2n1", "r2n2"]),
            ("n[1-2]-x", vec!["n1-x", "n2-x"]),
        ] {
            assert_eq!(expanded(text), names, "{text}");
        }
        assert_eq!(expanded("n[001-300]").len(), 300);
        assert_eq!(expanded("n[0001-9999]").len(), 9999);
    }

    #[test]
    fn mistakes_are_said() {
        for (text, said) in [
            ("", "is empty"),
            (",,", "is empty"),
            ("n[1-", "not closed"),
            ("n1]", "not closed"),
            ("n[[1]]", "not closed"),
            ("n[]", "not a number or a range"),
            ("n[3-1]", "not a number or a range"),
            ("n[a-b]", "not a number or a range"),
            ("n[1-2-3]", "not a number or a range"),
            ("n[1-10001]", "more than 10000"),
            ("n[1-999999999]", "more than 10000"),
            ("a[1-101]b[1-101]", "more than 10000"),
            ("a[1-9999],b[1-2]", "more than 10000"),
            ("N[1-2]", "cannot be a host name"),
            ("a/b", "has '/' in it"),
        ] {
            let error = text.parse::<HostList>().expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn names_fold() {
        for (text, folded) in [
            ("n3,n1,n2", "n[1-3]"),
            ("n[001-300]", "n[001-300]"),
            ("n1,n01", "n1,n01"),
            ("a,b,c", "a,b,c"),
            ("n8,n9,n10,n12", "n[8-10,12]"),
            ("n,n1", "n,n1"),
            ("n08,n09,n10", "n[08-10]"),
            ("n99,n100,n098", "n99,n[098,100]"),
        ] {
            let list: HostList = text.parse().expect(text);
            assert_eq!(list.to_string(), folded, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_folded_list_names_the_same(names in prop::collection::vec("[a-c]{0,2}[0-2]{1,3}", 1..40)) {
            let list: HostList = names.join(",").parse().expect("is a list");
            let again: HostList = list.to_string().parse().expect("is a list again");
            let set = |list: &HostList| list.names().iter().cloned().collect::<BTreeSet<_>>();
            prop_assert_eq!(set(&list), set(&again));
        }

        #[test]
        fn no_text_panics(text in "[\\[\\],0-9n-]{0,24}") {
            let _ = text.parse::<HostList>();
        }
    }
}
