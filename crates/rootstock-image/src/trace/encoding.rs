//! A trace as bytes: each has one encoding, and no other bytes are a trace.

use rootstock_core::{BLOCK_BYTES, ByteRange, units::DISK_BYTES_MAX};

use super::{BLOCKS_MAX, RUNS_MAX, Run, Trace, TraceBuilder};
use crate::fields::Fields;

const MAGIC: &[u8; 8] = b"RSTKTRCE";
const FORMAT: u32 = 1;

/// Magic, format, disk size and count of runs.
const HEADER_BYTES: usize = 24;

/// The longest numbers of a run: a distance of up to 2^35, a count of up to 2^18.
const RUN_BYTES_MAX: usize = 5 + 3;

/// The longest encoding.
pub const TRACE_BYTES_MAX: usize = HEADER_BYTES + RUNS_MAX * RUN_BYTES_MAX;

/// Why bytes are not a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It ends too early, or is longer than any trace.
    #[error("a trace of {len_bytes} bytes is cut short or too long")]
    Length {
        /// How many bytes there are.
        len_bytes: usize,
    },
    /// It begins with something else.
    #[error("these bytes are not a trace: they do not begin with its magic")]
    Magic,
    /// A version of the format that this release does not know.
    #[error("trace format {version} is not known here: a newer release wrote it")]
    Version {
        /// The version it claims.
        version: u32,
    },
    /// A field has a value that it cannot have.
    #[error("the trace's {field} cannot be {value}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Its runs pass the disk's end, repeat blocks or could be fewer.
    #[error("the trace's runs pass its disk, repeat blocks, or are not joined")]
    Runs,
    /// Bytes follow its last run.
    #[error("{len_bytes} bytes follow the trace")]
    Trailing {
        /// How many.
        len_bytes: usize,
    },
}

impl Trace {
    /// The trace as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.runs.len() * RUN_BYTES_MAX);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&self.disk_bytes.to_le_bytes());
        bytes.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        let mut end = 0_u64;
        for run in &self.runs {
            // Blocks of the largest disk are far from an i64's end.
            let distance = run.first.cast_signed() - end.cast_signed();
            write_number(&mut bytes, zigzag(distance));
            write_number(&mut bytes, run.count);
            end = run.end();
        }
        bytes
    }

    /// Reads a trace.
    ///
    /// # Errors
    /// [`TraceError`] for anything that [`Trace::encode`] does not make.
    pub fn decode(bytes: &[u8]) -> Result<Self, TraceError> {
        let len_bytes = bytes.len();
        let Some((header, mut rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(TraceError::Length { len_bytes });
        };
        if len_bytes > TRACE_BYTES_MAX {
            return Err(TraceError::Length { len_bytes });
        }
        let (disk_bytes, run_count) = decode_header(header)?;
        let cut = TraceError::Length { len_bytes };
        let blocks = disk_bytes.div_ceil(BLOCK_BYTES);
        let mut builder = TraceBuilder::new(disk_bytes);
        let mut runs = Vec::new();
        let mut end = 0_u64;
        for _ in 0..run_count {
            let distance = unzigzag(read_number(&mut rest).ok_or(cut)?);
            let count = read_number(&mut rest).ok_or(cut)?;
            let first = end.checked_add_signed(distance).ok_or(TraceError::Runs)?;
            if count == 0 || count > BLOCKS_MAX || first >= blocks || count > blocks - first {
                return Err(TraceError::Runs);
            }
            let run = Run { first, count };
            builder.read(ByteRange::new(first * BLOCK_BYTES, count * BLOCK_BYTES));
            // What is joined, cut or left out by the builder was no trace.
            if builder.runs.len() != runs.len() + 1 || builder.runs.last() != Some(&run) {
                return Err(TraceError::Runs);
            }
            runs.push(run);
            end = run.end();
        }
        match rest.len() {
            0 => Ok(builder.finish()),
            len_bytes => Err(TraceError::Trailing { len_bytes }),
        }
    }
}

/// The disk's size and the count of runs.
fn decode_header(header: &[u8; HEADER_BYTES]) -> Result<(u64, u32), TraceError> {
    let mut fields = Fields::new(header);
    if fields.array::<8>() != *MAGIC {
        return Err(TraceError::Magic);
    }
    let version = fields.u32();
    if version != FORMAT {
        return Err(TraceError::Version { version });
    }
    let disk_bytes = fields.u64();
    if !(1..=DISK_BYTES_MAX).contains(&disk_bytes) {
        return Err(TraceError::Field {
            field: "disk size",
            value: disk_bytes,
        });
    }
    let run_count = fields.u32();
    if run_count as usize > RUNS_MAX {
        return Err(TraceError::Field {
            field: "count of runs",
            value: run_count.into(),
        });
    }
    Ok((disk_bytes, run_count))
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn write_number(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// A number in its shortest form; nothing when it is cut, too long or not shortest.
fn read_number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..56).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return (*byte != 0 || shift == 0).then_some(value);
        }
    }
    None
}
