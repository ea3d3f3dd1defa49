//! Writing what is started: new files beside the old ones, then one sector that names them.

use std::io::{self, Read};

use rootstock_api::local::LocalFile;
use rootstock_core::Digest;

use super::file_name;
use super::files::{FIRST, KEPT, SECTOR_BYTES, StartFiles};
use super::is_file_name;
use super::member;

#[cfg(test)]
mod tests;

/// The longest configuration of one start, in bytes.
const ENTRY_BYTES_MAX: u64 = 16 << 10;

/// What GRUB does on this disk. It finds the newest start as the first of its menu,
/// and goes on with the one before when that cannot be read.
pub(crate) const GRUB_CFG: &str = "\
set timeout=3
set default=0
set fallback=1
if [ -f /BOOT/FIRST.CFG ]; then source /BOOT/FIRST.CFG; fi
for name in $first $second; do
  if [ -f /BOOT/$name ]; then source /BOOT/$name; fi
done
menuentry 'Start this machine anew' { reboot }
";

/// A start that is to be written.
pub(crate) struct NewStart {
    /// Who starts what, for the menu: `n07: lab:3`.
    pub(crate) title: String,
    /// The kernel's arguments, but for the document's name.
    pub(crate) words: Vec<String>,
    /// The kernel.
    pub(crate) kernel: LocalFile,
    /// The first stage.
    pub(crate) first_stage: LocalFile,
    /// The document.
    pub(crate) document: Vec<u8>,
}

/// Why a start was not written. What was there is started as before.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The disk's.
    #[error("what starts this machine cannot be written to its disk")]
    Disk(#[from] io::Error),
    /// A word that GRUB would not pass on as it is.
    #[error("the word {word:?} cannot be given to GRUB: take it out of the kernel's arguments")]
    Word {
        /// The word.
        word: String,
    },
    /// A file of the server did not come.
    #[error("{name} does not come")]
    Fetch {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: crate::service::CallError,
    },
    /// It did not come as the site signed it, or the disk does not keep it.
    #[error("{name} is not on the disk as the site signed it")]
    File {
        /// Its name.
        name: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

/// Gives a file's bytes.
pub(crate) type Fetch<'a> =
    &'a mut dyn FnMut(&LocalFile) -> Result<Box<dyn Read>, crate::service::CallError>;

/// One of the starts on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// The file that tells GRUB of it.
    name: String,
    /// What it is for.
    title: String,
    /// The files that it needs, itself among them.
    files: Vec<String>,
}

/// What is done with a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is the first now.
    Now,
    /// It was before.
    Already,
}

/// Makes a start the first, and the newest of another version the second.
///
/// # Errors
/// [`WriteError`]; the disk then starts what it started before.
pub(crate) fn write(
    files: &StartFiles<'_>,
    start: &NewStart,
    fetch: Fetch<'_>,
) -> Result<Written, WriteError> {
    let entries = entries(files)?;
    sweep(files, &entries)?;
    let text = entry(start)?;
    let digest = Digest::of(text.as_bytes());
    let name = file_name(digest);
    if entries.first().is_some_and(|first| first.name == name) {
        return Ok(Written::Already);
    }
    for file in [&start.kernel, &start.first_stage] {
        let path = path(&file_name(file.digest));
        if files.holds(&path, file.len_bytes, file.digest)? {
            continue;
        }
        let fetched = fetch(file).map_err(|source| WriteError::Fetch {
            name: file.name.clone(),
            source,
        });
        let put = files.put(&path, file.len_bytes, file.digest, &mut *fetched?);
        put.map_err(|source| WriteError::File {
            name: file.name.clone(),
            source,
        })?;
    }
    for bytes in [&start.document[..], text.as_bytes()] {
        let (len_bytes, digest) = (bytes.len() as u64, Digest::of(bytes));
        let path = path(&file_name(digest));
        if !files.holds(&path, len_bytes, digest)? {
            files.put(&path, len_bytes, digest, &mut &bytes[..])?;
        }
    }
    let second = entries.iter().find(|entry| entry.title != start.title);
    let mut pointer = format!("set first={name}\n");
    if let Some(second) = second {
        pointer.push_str(&format!("set second={}\n", second.name));
    }
    files.point(&pointer)?;
    sweep(files, &self::entries(files)?)?;
    Ok(Written::Now)
}

/// What GRUB is told of a start. Its first line is for us: the files it needs.
fn entry(start: &NewStart) -> Result<String, WriteError> {
    let document = file_name(Digest::of(&start.document));
    let kernel = file_name(start.kernel.digest);
    let first_stage = file_name(start.first_stage.digest);
    let mut words = vec![format!("rootstock.local={document}")];
    words.extend(start.words.iter().cloned());
    let mut line = String::new();
    for word in &words {
        line.push_str(&format!(" '{}'", quotable(word)?));
    }
    let title = quotable(&start.title)?;
    Ok(format!(
        "# {kernel} {first_stage} {document}\n\
         menuentry '{title}' {{\n  \
         linux /{KEPT}/{kernel}{line}\n  \
         initrd /{KEPT}/{first_stage}\n\
         }}\n"
    ))
}

/// A text as it can stand between single quotes.
fn quotable(text: &str) -> Result<&str, WriteError> {
    let is_fit = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'\'';
    if text.bytes().all(is_fit) {
        return Ok(text);
    }
    Err(WriteError::Word {
        word: text.to_owned(),
    })
}

/// The starts that the pointer names, the newest first.
fn entries(files: &StartFiles<'_>) -> io::Result<Vec<Entry>> {
    let pointer = files.read(&path(FIRST), SECTOR_BYTES as u64)?;
    let pointer = String::from_utf8(pointer.unwrap_or_default()).unwrap_or_default();
    let mut entries = Vec::new();
    for set in ["set first=", "set second="] {
        let named = pointer.lines().find_map(|line| line.strip_prefix(set));
        let Some(name) = named.filter(|name| is_file_name(name)) else {
            continue;
        };
        let text = files.read(&path(name), ENTRY_BYTES_MAX)?;
        let text = String::from_utf8(text.unwrap_or_default()).unwrap_or_default();
        entries.extend(parse(name, &text));
    }
    Ok(entries)
}

fn parse(name: &str, text: &str) -> Option<Entry> {
    let mut lines = text.lines();
    let named = lines.next()?.strip_prefix("# ")?;
    let title = lines.next()?.strip_prefix("menuentry '")?;
    let mut files = vec![name.to_owned()];
    files.extend(named.split(' ').map(str::to_owned));
    Some(Entry {
        name: name.to_owned(),
        title: title.strip_suffix("' {")?.to_owned(),
        files,
    })
}

/// Takes away what no start needs.
fn sweep(files: &StartFiles<'_>, entries: &[Entry]) -> io::Result<()> {
    for name in files.names(KEPT)? {
        let is_needed = name.eq_ignore_ascii_case(FIRST)
            || member::NAMES
                .iter()
                .any(|other| name.eq_ignore_ascii_case(other))
            || entries.iter().any(|entry| {
                entry
                    .files
                    .iter()
                    .any(|file| file.eq_ignore_ascii_case(&name))
            });
        if !is_needed {
            files.remove(&path(&name))?;
        }
    }
    Ok(())
}

fn path(name: &str) -> String {
    format!("{KEPT}/{name}")
}
