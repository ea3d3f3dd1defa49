//! Problem documents (RFC 9457): what went wrong, for programs and for people.

use std::fmt;

use rootstock_core::ChunkId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How many missing chunks a problem names at most.
pub const MISSING_MAX: usize = 64;

/// A problem document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URI for the kind of problem (RFC 9457, section 3.1.1): the code as a URN.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in a few words, always the same for a code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time: the thing and the reason.
    pub detail: String,
    /// The kind of problem for programs. Codes are never renamed.
    pub code: ProblemCode,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Who holds the thing, when it is in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holders: Vec<Holder>,
    /// Chunks that are missing, the first 64 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub missing: Vec<ChunkId>,
}

impl Problem {
    /// A problem with the code's title and status.
    #[must_use]
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:rootstock:problem:{}", code.as_str()),
            title: code.title().to_owned(),
            status: code.status(),
            detail: detail.into(),
            code,
            hint: None,
            holders: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// The same problem with the next step.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same problem, naming those who hold the thing.
    #[must_use]
    pub fn with_holders(mut self, holders: Vec<Holder>) -> Self {
        self.holders = holders;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        if let Some(hint) = &self.hint {
            write!(f, ": {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// Something that needs a version or a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// What sort of thing holds it.
    pub kind: HolderKind,
    /// Which: a volume's or tag's name, a client's address.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            HolderKind::Volume => "volume",
            HolderKind::Tag => "tag",
            HolderKind::Client => "client",
            HolderKind::Operation => "operation",
            HolderKind::Node => "node",
            HolderKind::Profile => "profile",
            HolderKind::Rollout => "rollout",
            HolderKind::Initiator => "initiator",
            HolderKind::Unknown => "holder",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// A sort of holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HolderKind {
    /// A volume made from the version.
    Volume,
    /// A tag that points at the version.
    Tag,
    /// A client that has it open over NBD.
    Client,
    /// Something the daemon is doing with it.
    Operation,
    /// A node that is to run it, or runs it.
    Node,
    /// A profile that names it.
    Profile,
    /// A rollout that brings it to nodes.
    Rollout,
    /// An iSCSI initiator that may read it.
    Initiator,
    /// One that a newer release knows.
    #[serde(other)]
    Unknown,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $title:literal;)*) => {
        /// A kind of problem. Codes are never renamed or given another meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum ProblemCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
            /// A code that a newer release knows.
            #[serde(other)]
            Unknown,
        }

        impl ProblemCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The code as it stands in documents.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* Self::Unknown => "unknown" }
            }

            /// The HTTP status that goes with it.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* Self::Unknown => 500 }
            }

            /// Its title.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* Self::Unknown => "Unknown problem" }
            }
        }
    };
}

codes! {
    /// The request cannot be understood.
    BadRequest = "bad-request", 400, "The request cannot be understood";
    /// A name breaks the rules for names.
    BadName = "bad-name", 400, "Not a name";
    /// A value in the request is out of bounds.
    BadValue = "bad-value", 422, "A value is out of bounds";
    /// A chunk in the request is damaged or is not what it says.
    BadChunk = "bad-chunk", 422, "A chunk is not what it says";
    /// The manifest is damaged, or disagrees with the request.
    BadManifest = "bad-manifest", 422, "The manifest cannot be used";
    /// No token, or one that is not known.
    Unauthorized = "unauthorized", 401, "A token is needed";
    /// The token's role does not allow this.
    Forbidden = "forbidden", 403, "The token's role does not allow this";
    /// No such path.
    NoSuchPath = "no-such-path", 404, "No such path";
    /// The path does not have this method.
    MethodNotAllowed = "method-not-allowed", 405, "The path does not have this method";
    /// No such image.
    ImageNotFound = "image-not-found", 404, "No such image";
    /// No such version.
    VersionNotFound = "version-not-found", 404, "No such version";
    /// No such tag.
    TagNotFound = "tag-not-found", 404, "No such tag";
    /// No such volume.
    VolumeNotFound = "volume-not-found", 404, "No such volume";
    /// No such node.
    NodeNotFound = "node-not-found", 404, "No such node";
    /// No such profile.
    ProfileNotFound = "profile-not-found", 404, "No such profile";
    /// No such installer.
    InstallerNotFound = "installer-not-found", 404, "No such installer";
    /// No such rollout.
    RolloutNotFound = "rollout-not-found", 404, "No such rollout";
    /// No such boot.
    BootNotFound = "boot-not-found", 404, "No such boot";
    /// No such import: committed, aborted or expired.
    ImportNotFound = "import-not-found", 404, "No such import";
    /// No such token.
    TokenNotFound = "token-not-found", 404, "No such token";
    /// The store lacks a chunk.
    ChunkNotFound = "chunk-not-found", 404, "No such chunk";
    /// The name is taken.
    Exists = "exists", 409, "The name is taken";
    /// The thing is in use.
    InUse = "in-use", 409, "In use";
    /// The manifest names chunks that were not sent.
    ChunksMissing = "chunks-missing", 409, "Chunks are missing";
    /// Another operation changes the same thing.
    Busy = "busy", 409, "Another operation is at work on it";
    /// The body is larger than the limit.
    TooLarge = "too-large", 413, "The body is too large";
    /// The body has another media type than the path takes.
    UnsupportedMediaType = "unsupported-media-type", 415, "The media type is not supported";
    /// What was stored came back damaged; it was not served.
    Damaged = "damaged", 500, "Stored data is damaged";
    /// The daemon failed; its log says more.
    Internal = "internal", 500, "The daemon failed";
    /// The disk under the store is full.
    NoSpace = "no-space", 507, "No space left";
    /// The daemon is stopping, or has too much to do.
    Unavailable = "unavailable", 503, "Not available now";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_go_and_come_back() {
        let mut texts: Vec<_> = ProblemCode::ALL.iter().map(|code| code.as_str()).collect();
        for code in ProblemCode::ALL {
            let json = serde_json::to_string(code).expect("serializes");
            assert_eq!(json, format!("\"{}\"", code.as_str()));
            assert_eq!(serde_json::from_str::<ProblemCode>(&json).ok(), Some(*code));
        }
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), ProblemCode::ALL.len());
        let newer = serde_json::from_str::<ProblemCode>("\"on-fire\"").expect("tolerates");
        assert_eq!(newer, ProblemCode::Unknown);
    }

    #[test]
    fn a_problem_reads_well() {
        let problem = Problem::new(ProblemCode::InUse, "version lab:1 is in use by volume seat")
            .with_hint("delete the volume first")
            .with_holders(vec![Holder {
                kind: HolderKind::Volume,
                name: "seat".to_owned(),
            }]);
        insta::assert_snapshot!(serde_json::to_string_pretty(&problem).expect("serializes"), @r#"
        {
          "type": "urn:rootstock:problem:in-use",
          "title": "In use",
          "status": 409,
          "detail": "version lab:1 is in use by volume seat",
          "code": "in-use",
          "hint": "delete the volume first",
          "holders": [
            {
              "kind": "volume",
              "name": "seat"
            }
          ]
        }
        "#);
        assert_eq!(
            problem.to_string(),
            "version lab:1 is in use by volume seat: delete the volume first"
        );
    }
}
