//! The file that keeps what the last whole scrub found.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use rootstock_api::{Damage, ScrubStatus};
use serde::{Deserialize, Serialize};

use crate::data_dir::write_secret;

/// The file's name in the data directory.
pub(super) const FILE: &str = "scrub.json";

/// The format of the file.
const FORMAT: u32 = 1;

/// The longest file that is read, in bytes.
const RECORD_BYTES_MAX: u64 = 4 << 20;

/// What the file holds.
#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    last_pass: Option<String>,
    damage: Vec<Damage>,
    unused_damage_count: u64,
}

/// The status as the last whole pass left it; an empty one when there was none.
///
/// # Errors
/// When the file cannot be read, or is of another format.
pub(super) fn read(path: &Path) -> io::Result<ScrubStatus> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ScrubStatus::default()),
        file => file?.take(RECORD_BYTES_MAX).read_to_end(&mut bytes)?,
    };
    let record: Record = serde_json::from_slice(&bytes)?;
    if record.format != FORMAT {
        let what = format!(
            "{} has format {}, not {FORMAT}",
            path.display(),
            record.format
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(ScrubStatus {
        last_pass: record.last_pass,
        damage: record.damage,
        unused_damage_count: record.unused_damage_count,
        ..ScrubStatus::default()
    })
}

/// Writes the file, so that after a crash it is this one or the one before.
///
/// # Errors
/// The file system's.
pub(super) fn write(path: &Path, status: &ScrubStatus) -> io::Result<()> {
    let record = Record {
        format: FORMAT,
        last_pass: status.last_pass.clone(),
        damage: status.damage.clone(),
        unused_damage_count: status.unused_damage_count,
    };
    let bytes = serde_json::to_vec(&record)?;
    write_secret(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_goes_and_comes_back_and_another_format_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(FILE);
        assert_eq!(read(&path).expect("none yet"), ScrubStatus::default());
        let status = ScrubStatus {
            last_pass: Some("2026-01-02T03:04:05Z".to_owned()),
            unused_damage_count: 3,
            ..ScrubStatus::default()
        };
        write(&path, &status).expect("writes");
        assert_eq!(read(&path).expect("reads"), status);
        let newer = r#"{"format":2,"last_pass":null,"damage":[],"unused_damage_count":0}"#;
        for text in [newer, "{", ""] {
            std::fs::write(&path, text).expect("writes");
            let error = read(&path).expect_err(text);
            assert_ne!(error.kind(), io::ErrorKind::NotFound);
        }
    }
}
