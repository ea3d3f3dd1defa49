//! The disk in a tar archive: an OVA or a Vagrant box.
//!
//! Where the archive has an OVF manifest, the disk has to have the digest that
//! stands there.

mod manifest;

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
};

use rootstock_core::ByteRange;

use super::{
    SourceError,
    detect::{Format, HEAD_BYTES, detect},
    stream::Spool,
};

use manifest::Manifests;

/// The most members that are looked at.
const MEMBERS_MAX: usize = 4096;
/// Extensions of disks that have no magic bytes of their own.
const RAW_EXTENSIONS: [&str; 3] = ["img", "raw", "dd"];

/// Where an archive's disk is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// As it is, in this part of the archive's file.
    InFile(ByteRange),
    /// Stored with its holes left out: it has to be unpacked.
    Sparse,
}

/// A part of a file, to be read from its beginning.
pub(crate) struct RangeReader<'a> {
    file: &'a File,
    range: ByteRange,
    at: u64,
}

impl<'a> RangeReader<'a> {
    /// The given part of `file`.
    pub(crate) fn new(file: &'a File, range: ByteRange) -> Self {
        Self { file, range, at: 0 }
    }
}

impl Read for RangeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.range.len.saturating_sub(self.at);
        let len = buffer
            .len()
            .min(usize::try_from(rest).unwrap_or(usize::MAX));
        let got = self
            .file
            .read_at(&mut buffer[..len], self.range.start + self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl Seek for RangeReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.range.len.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Finds the one disk in an archive that is a file, or the named member.
///
/// # Errors
/// When there is none or more than one, or the archive is damaged.
pub(crate) fn find(
    file: &File,
    range: ByteRange,
    path: &Path,
    wanted: Option<&str>,
) -> Result<Place, SourceError> {
    let damaged = |cause| SourceError::Archive {
        path: path.to_owned(),
        cause,
    };
    let mut archive = tar::Archive::new(RangeReader::new(file, range));
    let mut disks = Vec::new();
    let mut manifests = Manifests::default();
    let entries = archive.entries_with_seek().map_err(damaged)?;
    for entry in entries.take(MEMBERS_MAX) {
        let mut entry = entry.map_err(damaged)?;
        let kind = entry.header().entry_type();
        let name = entry.path().map_err(damaged)?.display().to_string();
        let at = range.start + entry.raw_file_position();
        let member = ByteRange::new(at, entry.size());
        let mut head = Vec::new();
        if !kind.is_file() && !kind.is_gnu_sparse() {
            continue;
        }
        entry
            .by_ref()
            .take(HEAD_BYTES as u64)
            .read_to_end(&mut head)
            .map_err(damaged)?;
        if manifest::is_one(&name) {
            manifests.read(&name, &head, &mut entry).map_err(damaged)?;
        }
        if !is_disk(&name, &head, wanted) {
            continue;
        }
        let place = if kind.is_gnu_sparse() {
            Place::Sparse
        } else if member.end() > range.end() {
            return Err(damaged(io::ErrorKind::UnexpectedEof.into()));
        } else {
            Place::InFile(member)
        };
        disks.push((name, place));
    }
    let (name, place) = one(disks, path, wanted)?;
    // What is unpacked later is compared then.
    if let Place::InFile(member) = &place {
        manifests.check(&name, path, || Ok(RangeReader::new(file, *member)))?;
    }
    Ok(place)
}

/// Unpacks the one disk of an archive that can only be read once.
///
/// # Errors
/// As [`find`], and when the spool has no room.
pub(crate) fn unpack(
    stream: &mut dyn Read,
    path: &Path,
    wanted: Option<&str>,
    spool: &Spool,
    mut progress: impl FnMut(u64),
) -> Result<File, SourceError> {
    let damaged = |cause| SourceError::Archive {
        path: path.to_owned(),
        cause,
    };
    let mut archive = tar::Archive::new(stream);
    let mut disks: Vec<(String, Option<File>)> = Vec::new();
    let mut manifests = Manifests::default();
    for entry in archive.entries().map_err(damaged)?.take(MEMBERS_MAX) {
        let mut entry = entry.map_err(damaged)?;
        let kind = entry.header().entry_type();
        if !kind.is_file() && !kind.is_gnu_sparse() {
            continue;
        }
        let name = entry.path().map_err(damaged)?.display().to_string();
        let mut head = Vec::new();
        entry
            .by_ref()
            .take(HEAD_BYTES as u64)
            .read_to_end(&mut head)
            .map_err(damaged)?;
        if manifest::is_one(&name) {
            manifests.read(&name, &head, &mut entry).map_err(damaged)?;
        }
        if !is_disk(&name, &head, wanted) {
            continue;
        }
        // A second disk is only named in the complaint.
        let file = if disks.is_empty() {
            let mut whole = io::Cursor::new(head).chain(entry);
            Some(spool.fill(&mut whole, path, &mut progress)?)
        } else {
            None
        };
        disks.push((name, file));
    }
    let (name, file) = one(disks, path, wanted)?;
    let file = file.ok_or_else(|| damaged(io::ErrorKind::InvalidData.into()))?;
    manifests.check(&name, path, || {
        let whole = ByteRange::new(0, file.metadata()?.len());
        Ok(RangeReader::new(&file, whole))
    })?;
    Ok(file)
}

fn is_disk(name: &str, head: &[u8], wanted: Option<&str>) -> bool {
    if let Some(wanted) = wanted {
        return name == wanted || name.strip_prefix("./") == Some(wanted);
    }
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    let raw = extension.is_some_and(|extension| {
        RAW_EXTENSIONS
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    });
    match detect(head, &[]) {
        Format::Foreign(_) => true,
        Format::Compressed(_) | Format::Raw => raw || is_packed_disk(name),
        Format::Tar => false,
    }
}

/// OVF allows its disks to be packed: `disk.vmdk.gz`.
fn is_packed_disk(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["gz", "xz", "zst"].iter().any(|packed| {
        name.strip_suffix(packed)
            .and_then(|name| name.strip_suffix('.'))
            .is_some_and(|name| {
                ["vmdk", "img", "raw", "vhd", "qcow2"]
                    .iter()
                    .any(|disk| name.ends_with(disk))
            })
    })
}

fn one<T>(
    disks: Vec<(String, T)>,
    path: &Path,
    wanted: Option<&str>,
) -> Result<(String, T), SourceError> {
    let path = path.to_owned();
    if disks.len() > 1 {
        return Err(SourceError::ManyDisks {
            path,
            names: disks.into_iter().map(|(name, _)| name).collect(),
        });
    }
    let wanted = wanted.map(str::to_owned);
    let disk = disks.into_iter().next();
    disk.ok_or(SourceError::NoDisk { path, wanted })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::stream::peek;
    use std::io::Write as _;

    fn archive(members: &[(&str, &[u8])]) -> (File, ByteRange) {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            let appended = builder.append_data(&mut header.clone(), name, *bytes);
            appended.expect("appends");
        }
        let bytes = builder.into_inner().expect("ends");
        let mut file = tempfile::tempfile().expect("temp file");
        file.write_all(&bytes).expect("writes");
        (file, ByteRange::new(0, bytes.len() as u64))
    }

    fn spool(dir: &Path) -> Spool {
        Spool {
            dir: dir.to_owned(),
            stream_bytes_max: 1 << 20,
        }
    }

    #[test]
    fn the_disk_is_found_in_place_and_in_a_stream() {
        let disk = [b"KDMV".as_slice(), &[5; 2000]].concat();
        let members = [("box.ovf", b"<xml/>".as_slice()), ("a-disk001.vmdk", &disk)];
        let (file, range) = archive(&members);
        let path = Path::new("x.ova");
        let place = find(&file, range, path, None).expect("found");
        assert_eq!(place, Place::InFile(ByteRange::new(1536, 2004)));
        let dir = tempfile::tempdir().expect("temp dir");
        let mut stream = RangeReader::new(&file, range);
        let (_, mut stream) = peek(&mut stream).expect("peeks");
        let unpacked = unpack(&mut stream, path, None, &spool(dir.path()), |_| ());
        let mut back = vec![0; disk.len()];
        let unpacked = unpacked.expect("unpacks");
        unpacked.read_exact_at(&mut back, 0).expect("reads");
        assert_eq!(back, disk);
    }

    /// What becomes of an archive of a disk and this manifest, read in place and
    /// as a stream.
    fn with_manifest(name: &str, text: &str, before: bool) -> [Result<(), SourceError>; 2] {
        let disk = [b"KDMV".as_slice(), &[5; 2000]].concat();
        let mut members = [
            ("vm.ovf", b"<xml/>".as_slice()),
            ("disk1.vmdk", &disk),
            (name, text.as_bytes()),
        ];
        if before {
            members.swap(1, 2);
        }
        let (file, range) = archive(&members);
        let path = Path::new("x.ova");
        let dir = tempfile::tempdir().expect("temp dir");
        let mut stream = RangeReader::new(&file, range);
        let streamed = unpack(&mut stream, path, None, &spool(dir.path()), |_| ());
        [
            find(&file, range, path, None).map(|_| ()),
            streamed.map(|_| ()),
        ]
    }

    #[test]
    fn the_disk_is_what_the_manifest_says() {
        // Of `KDMV` and 2,000 bytes of 5, by sha1sum and sha256sum.
        let sha1 = "a2351635605f64a5a2c8304c96537e652a4923c9";
        let sha256 = "0ae9fc5f519e36bf37ada42d51326698ab31607c9bdcf1fafb710ed3fb1f6cc0";
        let wrong = "0".repeat(64);
        let good = [
            format!("SHA256(disk1.vmdk)= {sha256}\n"),
            format!(
                "SHA1(vm.ovf)= {}\r\nSHA1 (disk1.vmdk) = {}\r\n",
                "1".repeat(40),
                sha1.to_uppercase()
            ),
            format!("SHA256(disk2.vmdk)= {wrong}\n"),
            "WHIRLPOOL(disk1.vmdk)= 00\n\nnonsense\n".to_owned(),
            String::new(),
        ];
        let bad = [
            format!("SHA256(disk1.vmdk)= {wrong}\n"),
            format!("SHA1(disk1.vmdk)= {}\n", "0".repeat(40)),
            format!("SHA256(disk1.vmdk)= {}\n", &sha256[1..]),
            "SHA256(disk1.vmdk)=\n".to_owned(),
        ];
        for before in [true, false] {
            for text in &good {
                let outcome = with_manifest("vm.mf", text, before);
                assert!(outcome.iter().all(Result::is_ok), "{text}: {outcome:?}");
            }
            for text in &bad {
                for outcome in with_manifest("vm.mf", text, before) {
                    let error = outcome.expect_err(text);
                    assert!(matches!(error, SourceError::Checksum { .. }), "{error:?}");
                    let said = error.to_string();
                    assert!(
                        said.contains("disk1.vmdk") && said.contains("vm.mf"),
                        "{said}"
                    );
                }
            }
            // The manifest of another directory speaks of another file.
            let outcome = with_manifest("other/vm.mf", &bad[0], before);
            assert!(outcome.iter().all(Result::is_ok), "{outcome:?}");
        }
    }

    #[test]
    fn no_disk_or_several_is_said() {
        let path = Path::new("x.ova");
        let (file, range) = archive(&[("Vagrantfile", b"x")]);
        let error = find(&file, range, path, None);
        assert!(matches!(error, Err(SourceError::NoDisk { .. })));
        let (file, range) = archive(&[("box_0.img", &[0; 600]), ("box_1.img", &[1; 600])]);
        let error = find(&file, range, path, None);
        assert!(matches!(error, Err(SourceError::ManyDisks { names, .. }) if names.len() == 2));
        let place = find(&file, range, path, Some("box_1.img")).expect("found");
        assert_eq!(place, Place::InFile(ByteRange::new(2048, 600)));
    }

    #[test]
    fn a_cut_archive_is_refused() {
        let (file, range) = archive(&[("box.img", &[7; 9000])]);
        file.set_len(4000).expect("cuts");
        let cut = ByteRange::new(range.start, 4000);
        assert!(find(&file, cut, Path::new("x.box"), None).is_err());
    }
}
