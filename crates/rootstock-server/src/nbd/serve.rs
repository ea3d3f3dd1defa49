//! What a device is asked for each request, and how its errors are told.

use std::{error::Error, sync::Arc};

use rootstock_nbd::{Command, ErrorCode, Request, proto::command_flag, reply::Extent};
use rootstock_volume::{BlockDevice, BlockError, Segments, Zero};

/// Extents in one block status reply.
const STATUS_EXTENTS_MAX: usize = 8192;

/// How much of a cache request is fetched, in bytes: the rest is read when it
/// is read.
const CACHE_BYTES_MAX: u64 = 64 << 20;

/// What a worker brings back.
pub(super) enum Answer {
    Done,
    Read(Segments),
    Status(Vec<Extent>),
    Failed(Failure),
}

/// An error as the client is told.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: ErrorCode,
    pub(super) text: String,
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        let text = match code {
            ErrorCode::Perm => "the export is read-only",
            ErrorCode::NoSpace => "the range passes the end of the device",
            ErrorCode::Overflow => "too long for one chunk: the limit is 32 MiB",
            ErrorCode::NotSup => "zeros with their space allocated are no faster than a write",
            ErrorCode::Shutdown => "the server is shutting down",
            _ => "the request's command, flags, range or length cannot be served here",
        };
        Self {
            code,
            text: text.to_owned(),
        }
    }
}

/// Does what may wait.
pub(super) fn perform(device: &Arc<dyn BlockDevice>, export: &str, request: &Request) -> Answer {
    let (offset, len) = (request.offset, request.len);
    let outcome = match request.command {
        Command::Read => {
            let mut segments = Segments::new();
            match device.read(offset, len as u32, &mut segments) {
                Ok(()) => return Answer::Read(segments),
                Err(error) => Err(error),
            }
        }
        Command::BlockStatus => match status(device, request) {
            Ok(extents) => return Answer::Status(extents),
            Err(error) => Err(error),
        },
        // The write itself was done when its bytes arrived.
        Command::Write => Ok(()),
        Command::Flush => device.flush(),
        Command::Trim => device.discard(offset, len),
        Command::WriteZeroes => match zero_mode(request) {
            Ok(zero) => device.write_zeroes(offset, len, zero),
            Err(code) => return Answer::Failed(code.into()),
        },
        Command::Cache => {
            device.prefetch(offset, len.min(CACHE_BYTES_MAX));
            Ok(())
        }
        Command::Disconnect | Command::Other(_) => {
            return Answer::Failed(ErrorCode::Inval.into());
        }
    };
    // "`NBD_CMD_FLAG_FUA`": on stable storage before the reply. A flush covers
    // more than was asked, never less.
    let writes = matches!(
        request.command,
        Command::Write | Command::Trim | Command::WriteZeroes
    );
    let outcome = match outcome {
        Ok(()) if writes && request.has(command_flag::FUA) => device.flush(),
        outcome => outcome,
    };
    match outcome {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Failed(failure(&error, export, request)),
    }
}

/// An error of the device, told to the log and to the client.
pub(super) fn failure(error: &BlockError, export: &str, request: &Request) -> Failure {
    let code = match error {
        BlockError::OutOfRange { .. } => match request.command {
            Command::Write | Command::WriteZeroes => ErrorCode::NoSpace,
            _ => ErrorCode::Inval,
        },
        BlockError::ReadOnly => ErrorCode::Perm,
        BlockError::NoSpace { .. } => ErrorCode::NoSpace,
        BlockError::Damaged { .. } | BlockError::Io { .. } => ErrorCode::Io,
    };
    if matches!(code, ErrorCode::Io | ErrorCode::NoSpace) {
        tracing::warn!(
            export,
            command = ?request.command,
            offset_bytes = request.offset,
            len_bytes = request.len,
            error = %error,
            cause = error.source().map(tracing::field::display),
            "an NBD request failed"
        );
    }
    Failure {
        code,
        text: error.to_string(),
    }
}

/// "`NBD_CMD_WRITE_ZEROES`": zeros without their space are made by forgetting
/// blocks, which is always faster than a write; with their space they are not.
fn zero_mode(request: &Request) -> Result<Zero, ErrorCode> {
    if !request.has(command_flag::NO_HOLE) {
        Ok(Zero::MayPunch)
    } else if request.has(command_flag::FAST_ZERO) {
        Err(ErrorCode::NotSup)
    } else {
        Ok(Zero::Allocate)
    }
}

fn status(device: &Arc<dyn BlockDevice>, request: &Request) -> Result<Vec<Extent>, BlockError> {
    let extents_max = if request.has(command_flag::REQ_ONE) {
        1
    } else {
        STATUS_EXTENTS_MAX
    };
    let extents = device.status(request.offset, request.len, extents_max)?;
    let extent = |extent: rootstock_volume::StatusExtent| Extent {
        len: extent.len_bytes,
        hole: extent.hole,
        zero: extent.zero,
    };
    Ok(extents.into_iter().map(extent).collect())
}
