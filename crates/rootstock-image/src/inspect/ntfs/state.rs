//! Whether an NTFS volume is at rest: shut down, not asleep, its log empty.

use super::{
    super::{Refusal, kept},
    files, index, le16_at, le32_at, le64_at,
    record::{DATA, VOLUME_INFORMATION, VOLUME_NAME, undo_fixups},
    table::{Contents, Data, Table},
};

/// `$VOLUME_INFORMATION`: dirty, log to be resized, upgraded on mount, its
/// change journal half deleted, object ids to be repaired, chkdsk at work or
/// done.
const UNCLEAN: u16 = 0xc037;

/// The page of the log's restart areas, in bytes; others are refused.
const PAGE_BYTES: usize = 4096;

/// The longest log that is looked through for whether it is empty, and how much of it at a
/// time, in bytes. Windows makes them of 64 MiB at most.
const EMPTY_LOG_BYTES_MAX: u64 = 128 << 20;
const EMPTY_LOG_STEP: u64 = 64 << 10;

/// `RESTART_VOLUME_IS_CLEAN` of a restart area.
const LOG_CLEAN: u16 = 2;

/// No client, where a restart area names the first that uses the log.
const NO_CLIENT: u16 = u16::MAX;

pub(super) fn label(table: &Table<'_>) -> Result<Option<String>, Refusal> {
    let Some(Contents::Resident(name)) = table.contents(files::VOLUME, VOLUME_NAME, &[])? else {
        return Ok(None);
    };
    let (pairs, _) = name.as_chunks::<2>();
    let units: Vec<u16> = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    Ok(super::super::label_text(
        String::from_utf16_lossy(&units).as_bytes(),
    ))
}

pub(super) fn check(table: &Table<'_>) -> Result<(), Refusal> {
    check_flags(table)?;
    check_log(table)?;
    check_awake(table)
}

/// Section "$VOLUME_INFORMATION".
fn check_flags(table: &Table<'_>) -> Result<(), Refusal> {
    let information = table.contents(files::VOLUME, VOLUME_INFORMATION, &[])?;
    let Some(Contents::Resident(information)) =
        information.filter(|found| matches!(found, Contents::Resident(bytes) if bytes.len() >= 12))
    else {
        return kept("its $Volume is damaged: run chkdsk on it");
    };
    let version = (information[8], information[9]);
    if !matches!(version, (3, 0 | 1)) {
        let (major, minor) = version;
        return kept(format!("its version {major}.{minor} is unknown here"));
    }
    if le16_at(&information, 10) & UNCLEAN != 0 {
        return kept("it is marked as dirty: shut Windows down, or run chkdsk on it");
    }
    Ok(())
}

/// Section "$LogFile": filled with ones it is empty; else the newer of the two
/// restart areas at its beginning says whether anything is to be done.
fn check_log(table: &Table<'_>) -> Result<(), Refusal> {
    let log = table.contents(files::LOG, DATA, &[])?;
    let Some(Contents::Runs(log)) = log else {
        return kept("its $LogFile is damaged: run chkdsk on it");
    };
    let len = log.written_bytes();
    if (2 * PAGE_BYTES as u64..=EMPTY_LOG_BYTES_MAX).contains(&len) && is_empty(table, &log)? {
        return Ok(());
    }
    let mut head = [0; 2 * PAGE_BYTES];
    let len = len.min(head.len() as u64) as usize;
    log.read(table, 0, &mut head[..len])?;
    let mut areas = Vec::new();
    for page in head[..len].chunks_exact_mut(PAGE_BYTES) {
        let Some(area) = RestartArea::parse(page) else {
            return kept("its log cannot be understood: run chkdsk on it");
        };
        if area.version != 1 {
            return kept(
                "Windows may have kept changes of it in memory, as for a fast start: \
                 shut it down without that",
            );
        }
        areas.push(area);
    }
    let newest = areas.iter().map(|area| area.number).max();
    let mut newest = areas.iter().filter(|area| Some(area.number) == newest);
    if !areas.is_empty() && newest.all(|area| area.clean) {
        return Ok(());
    }
    kept("its log has changes to be made: shut Windows down, or run chkdsk on it")
}

/// Whether nothing but ones is in the log.
fn is_empty(table: &Table<'_>, log: &Data) -> Result<bool, Refusal> {
    let mut piece = vec![0; EMPTY_LOG_STEP as usize];
    for at in (0..log.written_bytes()).step_by(EMPTY_LOG_STEP as usize) {
        let len = (log.written_bytes() - at).min(EMPTY_LOG_STEP) as usize;
        log.read(table, at, &mut piece[..len])?;
        if piece[..len].iter().any(|byte| *byte != 0xff) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A restart area. Version 2 of the log is that of a volume that is mounted by Windows 8 or
/// later; when it is let go it becomes 1.1 again.
#[derive(Debug, Clone, Copy)]
struct RestartArea {
    version: u16,
    number: u64,
    clean: bool,
}

impl RestartArea {
    fn parse(page: &mut [u8]) -> Option<Self> {
        if !page.starts_with(b"RSTR") || !undo_fixups(page) {
            return None;
        }
        let version = le16_at(page, 28);
        if le32_at(page, 16) as usize != PAGE_BYTES || !matches!(version, 1 | 2) {
            return None;
        }
        let area = page.get(usize::from(le16_at(page, 24))..)?;
        if area.len() < 48 {
            return None;
        }
        Some(Self {
            version,
            number: le64_at(area, 0),
            clean: le16_at(area, 12) == NO_CLIENT || le16_at(area, 14) & LOG_CLEAN != 0,
        })
    }
}

/// A system that sleeps, or that was shut down to start fast, has its memory in
/// a file whose head says so; once it is awake that is zero, or says "wake".
fn check_awake(table: &Table<'_>) -> Result<(), Refusal> {
    let Some(file) = index::find_in_root(table, "hiberfil.sys")? else {
        return Ok(());
    };
    let mut head = [0; PAGE_BYTES];
    match table.contents(file, DATA, &[])? {
        Some(Contents::Runs(data)) if data.written_bytes() >= PAGE_BYTES as u64 => {
            data.read(table, 0, &mut head)?;
        }
        _ => return kept("whether a system sleeps on it cannot be told from its hiberfil.sys"),
    }
    let awake = head[..4].eq_ignore_ascii_case(b"wake") || head.iter().all(|byte| *byte == 0);
    if awake {
        return Ok(());
    }
    kept("a hibernated system is in it: shut Windows down without fast startup")
}
