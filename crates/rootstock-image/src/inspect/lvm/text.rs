//! The text that describes a volume group: sections, numbers, strings and lists.

use std::collections::BTreeMap;

/// How many sections may lie in one another; LVM's own have five.
const DEPTH_MAX: usize = 8;

/// A section, or the whole text.
pub(super) type Section = BTreeMap<String, Item>;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Item {
    Number(u64),
    Text(String),
    List(Vec<Item>),
    Section(Section),
}

/// The text is not such a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads a text that ends with a NUL, or with nothing.
pub(super) fn parse(bytes: &[u8]) -> Result<Section, Malformed> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    let rest = str::from_utf8(bytes).map_err(|_| Malformed)?;
    let mut parser = Parser { rest };
    let section = parser.section(0)?;
    parser.rest.is_empty().then_some(section).ok_or(Malformed)
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    /// All up to the closing brace, or to the end.
    fn section(&mut self, depth: usize) -> Result<Section, Malformed> {
        let mut section = Section::new();
        loop {
            self.skip_blank();
            if self.rest.is_empty() || self.rest.starts_with('}') {
                return Ok(section);
            }
            let name = self.name()?;
            let item = if self.take('{') {
                if depth == DEPTH_MAX {
                    return Err(Malformed);
                }
                let inner = self.section(depth + 1)?;
                self.expect('}')?;
                Item::Section(inner)
            } else {
                self.expect('=')?;
                self.value()?
            };
            // Which of two is meant is not certain.
            if section.insert(name.to_owned(), item).is_some() {
                return Err(Malformed);
            }
        }
    }

    fn value(&mut self) -> Result<Item, Malformed> {
        if !self.take('[') {
            return self.scalar();
        }
        let mut list = Vec::new();
        while !self.take(']') {
            list.push(self.scalar()?);
            if !self.take(',') {
                self.expect(']')?;
                break;
            }
        }
        Ok(Item::List(list))
    }

    fn scalar(&mut self) -> Result<Item, Malformed> {
        if self.take('"') {
            return self.string().map(Item::Text);
        }
        let digits = self.while_is(|c| c.is_ascii_digit());
        // LVM would read others as octal.
        if digits.len() > 1 && digits.starts_with('0') {
            return Err(Malformed);
        }
        digits.parse().map(Item::Number).map_err(|_| Malformed)
    }

    /// What comes after an opening quotation mark.
    fn string(&mut self) -> Result<String, Malformed> {
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                '\\' => text.push(chars.next().ok_or(Malformed)?.1),
                _ => text.push(c),
            }
        }
        Err(Malformed)
    }

    fn name(&mut self) -> Result<&'a str, Malformed> {
        let name = self.while_is(|c| c.is_ascii_alphanumeric() || "_-.+".contains(c));
        (!name.is_empty()).then_some(name).ok_or(Malformed)
    }

    fn while_is(&mut self, is: impl Fn(char) -> bool) -> &'a str {
        self.skip_blank();
        let end = self.rest.find(|c| !is(c)).unwrap_or(self.rest.len());
        let (now, rest) = self.rest.split_at(end);
        self.rest = rest;
        now
    }

    fn expect(&mut self, c: char) -> Result<(), Malformed> {
        self.take(c).then_some(()).ok_or(Malformed)
    }

    fn take(&mut self, c: char) -> bool {
        self.skip_blank();
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Skips blanks and comments.
    fn skip_blank(&mut self) {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
            if !self.rest.starts_with('#') {
                return;
            }
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.rest = &self.rest[end..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_and_values() {
        let text =
            b"a { # it { is\n b = 7\n c=[\"x\", 2]\nd=[]\n e-f { g = \"q\\\"\\\\}\" } }\nh = 0\n\0";
        let text = parse(text).expect("a text");
        insta::assert_snapshot!(format!("{text:?}"), @r#"{"a": Section({"b": Number(7), "c": List([Text("x"), Number(2)]), "d": List([]), "e-f": Section({"g": Text("q\"\\}")})}), "h": Number(0)}"#);
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "a",
            "a =",
            "a = b",
            "a = -1",
            "a = 1.5",
            "a = 010",
            "a = 18446744073709551616",
            "a = \"b",
            "a = [1",
            "a = [1 2]",
            "a = [[1]]",
            "a { b = 1",
            "a { } }",
            "a = 1 a = 2",
            "= 1",
            "a = \"\\",
            "a = 1 \0 b = 2",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(Malformed), "{text}");
        }
        let deep = "a {".repeat(100_000);
        assert_eq!(parse(deep.as_bytes()), Err(Malformed));
        assert_eq!(parse(b"a = \"\xff\""), Err(Malformed));
    }
}
