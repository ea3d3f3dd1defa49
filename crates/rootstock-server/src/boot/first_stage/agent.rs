//! The agent's program, as the first stages take it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use rootstock_core::Digest;

use super::FirstStageError;

/// The largest agent, in bytes.
const AGENT_BYTES_MAX: u64 = 64 << 20;

/// A program header's type: the path of a dynamic loader (System V ABI).
const PT_INTERP: u32 = 3;

/// The agent's file. It may be replaced while the daemon runs.
pub(super) struct Agent {
    path: PathBuf,
    known: Mutex<Option<(Mark, Digest)>>,
}

/// What changes when a file is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    inode: u64,
    len_bytes: u64,
    modified: (i64, i64),
}

impl Agent {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            known: Mutex::default(),
        }
    }

    /// The digest of its bytes; they are read only when the file has changed.
    pub(super) fn digest(&self) -> Result<Digest, FirstStageError> {
        let mark = self.mark()?;
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, digest)) = known
            && of == mark
        {
            return Ok(digest);
        }
        let digest = Digest::of(&self.read()?);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((mark, digest));
        Ok(digest)
    }

    /// The program, which the kernel can start without anything else.
    pub(super) fn read(&self) -> Result<Vec<u8>, FirstStageError> {
        self.mark()?;
        let bytes = fs::read(&self.path).map_err(|error| self.unfit(said(&error)))?;
        match is_dynamic(&bytes) {
            None => Err(self.unfit("it is no program for Linux".to_owned())),
            Some(true) => Err(self.unfit("it is not linked statically".to_owned())),
            Some(false) => Ok(bytes),
        }
    }

    fn mark(&self) -> Result<Mark, FirstStageError> {
        let metadata = fs::metadata(&self.path).map_err(|error| self.unfit(said(&error)))?;
        if !metadata.is_file() || metadata.len() > AGENT_BYTES_MAX {
            return Err(self.unfit("it is no program of a sensible size".to_owned()));
        }
        Ok(Mark {
            inode: metadata.ino(),
            len_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    fn unfit(&self, why: String) -> FirstStageError {
        FirstStageError::Agent {
            path: self.path.clone(),
            why,
        }
    }
}

fn said(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound {
        return "it is not there".to_owned();
    }
    error.to_string()
}

/// Whether a program needs a dynamic loader; nothing when it is no 64-bit
/// little-endian ELF file.
fn is_dynamic(elf: &[u8]) -> Option<bool> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?);
    let size = u16::from_le_bytes(elf.get(54..56)?.try_into().ok()?);
    let count = u16::from_le_bytes(elf.get(56..58)?.try_into().ok()?);
    let headers = elf.get(usize::try_from(table).ok()?..)?;
    let mut types = headers
        .chunks_exact(usize::from(size).max(4))
        .take(usize::from(count));
    let interpreted = |header: &[u8]| header[..4] == PT_INTERP.to_le_bytes();
    Some(types.any(interpreted))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The head of a program with one program header of this type.
    pub(in crate::boot::first_stage) fn program(kind: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
        elf[56..58].copy_from_slice(&1_u16.to_le_bytes());
        elf[64..68].copy_from_slice(&kind.to_le_bytes());
        elf
    }

    #[test]
    fn only_a_static_program_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let agent = Agent::new(path.clone());
        let error = agent.digest().unwrap_err().to_string();
        assert!(error.contains("it is not there"), "{error}");
        for (bytes, expected) in [
            (b"#!/bin/sh\n".to_vec(), "no program for Linux"),
            (program(PT_INTERP), "not linked statically"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = agent.digest().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        fs::write(&path, program(1)).unwrap();
        let first = agent.digest().unwrap();
        assert_eq!(agent.digest().unwrap(), first);
        let mut other = program(1);
        other.push(0);
        fs::write(&path, other).unwrap();
        assert_ne!(agent.digest().unwrap(), first);
    }
}
