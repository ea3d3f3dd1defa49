//! The manifest of an OVF package: a digest for each of its files.
//!
//! DMTF DSP0243 (OVF 2.1), section 5.3: lines of `SHA256(name)= hex digits`, the
//! name relative to the manifest. Version 1 has SHA-1 there; some tools write
//! SHA-512. Whatever else a line says is not for us.

use std::{
    io::{self, Read},
    path::Path,
};

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

use crate::source::SourceError;

/// The longest manifest that is read, in bytes.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Bytes hashed at a time.
const STEP_BYTES: usize = 256 << 10;

/// Whether a member of an archive is a manifest, by its name.
pub(super) fn is_one(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, extension)| extension.eq_ignore_ascii_case("mf"))
}

/// What all manifests of an archive say.
#[derive(Debug, Default)]
pub(super) struct Manifests {
    lines: Vec<Line>,
}

/// What a manifest says of one file.
#[derive(Debug)]
struct Line {
    /// The manifest's own name in the archive.
    manifest: String,
    /// The file's name in the archive.
    member: String,
    algorithm: Algorithm,
    digest: String,
}

/// How a digest is made.
#[derive(Debug, Clone, Copy)]
enum Algorithm {
    Sha1,
    Sha256,
    Sha512,
}

impl Manifests {
    /// Takes in a manifest, of which `head` has been read.
    ///
    /// # Errors
    /// The archive's own.
    pub(super) fn read(&mut self, name: &str, head: &[u8], rest: &mut dyn Read) -> io::Result<()> {
        let mut bytes = head.to_vec();
        rest.take(MANIFEST_BYTES_MAX).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let parsed = text.lines().filter_map(|line| Line::parse(line, name));
        self.lines.extend(parsed);
        Ok(())
    }

    /// Compares a member with all that is said of it.
    ///
    /// # Errors
    /// [`SourceError::Checksum`] when it has another digest, and
    /// [`SourceError::Archive`] when it cannot be read.
    pub(super) fn check<R: Read>(
        &self,
        member: &str,
        path: &Path,
        mut open: impl FnMut() -> io::Result<R>,
    ) -> Result<(), SourceError> {
        let member = plain(member);
        for line in self.lines.iter().filter(|line| line.member == member) {
            let found = open().and_then(|mut reader| line.algorithm.of(&mut reader));
            let found = found.map_err(|cause| SourceError::Archive {
                path: path.to_owned(),
                cause,
            })?;
            if !found.eq_ignore_ascii_case(&line.digest) {
                return Err(SourceError::Checksum {
                    path: path.to_owned(),
                    member: member.to_owned(),
                    manifest: line.manifest.clone(),
                    algorithm: line.algorithm.name(),
                    found,
                });
            }
        }
        Ok(())
    }
}

impl Line {
    fn parse(line: &str, manifest: &str) -> Option<Self> {
        let (algorithm, rest) = line.split_once('(')?;
        let (name, digest) = rest.rsplit_once(')')?;
        let digest = digest.trim_start().strip_prefix('=')?.trim();
        let manifest = plain(manifest);
        let member = match manifest.rsplit_once('/') {
            Some((directory, _)) => format!("{directory}/{}", plain(name)),
            None => plain(name).to_owned(),
        };
        Some(Self {
            manifest: manifest.to_owned(),
            member,
            algorithm: Algorithm::named(algorithm.trim())?,
            digest: digest.to_owned(),
        })
    }
}

impl Algorithm {
    fn named(name: &str) -> Option<Self> {
        let name = name.to_ascii_uppercase().replace('-', "");
        Some(match name.as_str() {
            "SHA1" => Self::Sha1,
            "SHA256" => Self::Sha256,
            "SHA512" => Self::Sha512,
            _ => return None,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha512 => "SHA-512",
        }
    }

    /// The digest of all that comes, in hexadecimal.
    fn of(self, reader: &mut dyn Read) -> io::Result<String> {
        match self {
            Self::Sha1 => hash::<Sha1>(reader),
            Self::Sha256 => hash::<Sha256>(reader),
            Self::Sha512 => hash::<Sha512>(reader),
        }
    }
}

fn hash<D: Digest>(reader: &mut dyn Read) -> io::Result<String> {
    let mut digest = D::new();
    let mut buffer = vec![0; STEP_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => digest.update(&buffer[..got]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let digest = digest.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A member's name without what archives put before it.
fn plain(name: &str) -> &str {
    name.strip_prefix("./").unwrap_or(name)
}
