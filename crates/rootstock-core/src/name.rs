//! Names of images, volumes and tags, and how a version is asked for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was written.
    #[error("the {what} is empty: {RULE}")]
    Empty {
        /// What was to be named.
        what: &'static str,
    },
    /// More than [`NAME_BYTES_MAX`] bytes.
    #[error("the {what} '{start}…' has {len_bytes} bytes, and the limit is {NAME_BYTES_MAX}")]
    TooLong {
        /// What was to be named.
        what: &'static str,
        /// How it begins.
        start: String,
        /// Its length in bytes.
        len_bytes: usize,
    },
    /// A character that names cannot have.
    #[error("the {what} '{}' has {character:?} in it: {RULE}", text.escape_debug())]
    Character {
        /// What was to be named.
        what: &'static str,
        /// What was written.
        text: String,
        /// The first offender.
        character: char,
    },
    /// What cannot be a host name (RFC 1123, section 2.1).
    #[error("the {what} '{}' cannot be a host name: {HOST_RULE}", text.escape_debug())]
    Host {
        /// What was to be named.
        what: &'static str,
        /// What was written.
        text: String,
    },
    /// Not a version number.
    #[error("'{}' is not a version: write NAME, NAME:3 or NAME@tag", text.escape_debug())]
    Version {
        /// What was written.
        text: String,
    },
}

const RULE: &str = "names are letters, digits, '.', '_' and '-', and begin with a letter or digit";

const HOST_RULE: &str =
    "write up to 63 lower-case letters, digits and '-', with a letter or digit at both ends";

/// The longest host name, in bytes (RFC 1035, section 2.3.4: a label).
const HOST_BYTES_MAX: usize = 63;

pub(crate) fn check(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong {
            what,
            start: text.chars().take(16).collect(),
            len_bytes: text.len(),
        });
    }
    let first_ok = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let bad = text
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'))
        .or_else(|| if first_ok { None } else { text.chars().next() });
    match bad {
        None => Ok(()),
        Some(character) => Err(NameError::Character {
            what,
            text: text.to_owned(),
            character,
        }),
    }
}

/// The rules of one label of a host name: what case would tell apart in names and
/// not in DNS is refused.
pub(crate) fn check_host(what: &'static str, text: &str) -> Result<(), NameError> {
    check(what, text)?;
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.len() > HOST_BYTES_MAX || text.ends_with('-') || !text.chars().all(known) {
        return Err(NameError::Host {
            what,
            text: text.to_owned(),
        });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $crate::name::name! { $(#[$doc])* $name, $what, $crate::name::check }
    };
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::name::NameError;

            fn from_str(text: &str) -> Result<Self, $crate::name::NameError> {
                $check($what, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow::<'de, str> as serde::Deserialize<'de>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use name;

name! {
    /// The name of an image.
    ImageName, "image name"
}
name! {
    /// The name of a volume.
    VolumeName, "volume name"
}
name! {
    /// The name of a distribution's installer, such as `debian-12`.
    InstallerName, "installer name"
}
name! {
    /// The name of a tag, such as `production`.
    TagName, "tag"
}

/// The number of a version within its image: 1, 2, 3…, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VersionNumber(pub u32);

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which version of an image is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum VersionSelector {
    /// The newest.
    Latest,
    /// The one with this number.
    Number(VersionNumber),
    /// The one this tag points at.
    Tag(TagName),
}

/// An image and a selector: `lab`, `lab:3` or `lab@production`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VersionSpec {
    /// The image.
    pub image: ImageName,
    /// Which of its versions.
    pub selector: VersionSelector,
}

impl FromStr for VersionSpec {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // `lab:@production` is what "IMAGE[:VERSION|@TAG]" may lead somebody to write.
        let (image, selector) = if let Some((image, tag)) = text.split_once('@') {
            let image = image.strip_suffix(':').unwrap_or(image);
            (image, VersionSelector::Tag(tag.parse()?))
        } else if let Some((image, number)) = text.split_once(':') {
            let parsed = number.parse().ok().filter(|n| *n > 0);
            let number = parsed.ok_or_else(|| NameError::Version {
                text: text.chars().take(2 * NAME_BYTES_MAX).collect(),
            })?;
            (image, VersionSelector::Number(VersionNumber(number)))
        } else {
            (text, VersionSelector::Latest)
        };
        Ok(Self {
            image: image.parse()?,
            selector,
        })
    }
}

impl fmt::Display for VersionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            VersionSelector::Latest => write!(f, "{}", self.image),
            VersionSelector::Number(number) => write!(f, "{}:{number}", self.image),
            VersionSelector::Tag(tag) => write!(f, "{}@{tag}", self.image),
        }
    }
}

impl Serialize for VersionSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VersionSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["lab", "Debian-12.5_x", "1", &"a".repeat(64)] {
            assert!(good.parse::<ImageName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "a/b",
            "a b",
            "🌱",
            "..",
            "-x",
            "a:b",
            "a@b",
            "a\n",
            &"a".repeat(10_000),
        ] {
            let error = bad.parse::<ImageName>().expect_err(bad).to_string();
            assert!(error.len() < 300, "{error}");
        }
    }

    #[test]
    fn specs() {
        for text in ["lab", "lab:3", "lab@production"] {
            assert_eq!(text.parse::<VersionSpec>().expect(text).to_string(), text);
        }
        assert_eq!(
            "lab:@test".parse::<VersionSpec>().expect("tag").to_string(),
            "lab@test"
        );
        for bad in [
            "lab:",
            "lab:0",
            "lab:x",
            "lab:-1",
            "lab@",
            ":3",
            "@x",
            "lab:4294967296",
            "a:1:2",
        ] {
            assert!(bad.parse::<VersionSpec>().is_err(), "{bad}");
        }
    }
}
