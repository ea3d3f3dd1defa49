//! Every error's exit code, words and next step: the one place that decides.

use std::{fmt::Write as _, process::ExitCode};

use rootstock_api::ProblemCode;
use rootstock_client::{
    ClientError, Endpoint,
    pull::{FetchError, PullError},
    push::PushError,
};
use rootstock_image::manifest::LookupError;
use serde_json::json;

use crate::{
    cli::Global,
    source::{SourceError, refs::HeaderError},
};

/// The exit code of what was tried and failed.
pub(crate) const FAILED: u8 = 1;
/// The exit code of what cannot be tried as it was written.
pub(crate) const WRONG_USE: u8 = 2;

/// A mistake in what the user wrote that the parser cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct WrongUse {
    /// What is wrong.
    pub(crate) message: String,
    /// What to write instead.
    pub(crate) hint: String,
}

/// What to do when an export has no room.
const ROOM: &str = "make room, or write to another file system; nothing was left behind";

/// A failure of this program with its next step.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// What failed, and why.
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: String,
}

/// Prints an error and gives its exit code.
pub(crate) fn report(error: &anyhow::Error, global: &Global) -> ExitCode {
    let code = exit_code(error);
    if global.json {
        eprintln!("{}", as_json(error));
    } else {
        eprint!("{}", as_text(error));
    }
    ExitCode::from(code)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let wrong_use = error.chain().any(|cause| {
        cause.is::<WrongUse>()
            || cause.is::<rootstock_server::ConfigError>()
            || client_error(cause)
                .and_then(ClientError::code)
                .is_some_and(|code| matches!(code, ProblemCode::BadName | ProblemCode::BadValue))
    });
    if wrong_use { WRONG_USE } else { FAILED }
}

fn as_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "error: {error}");
    let mut said = error.to_string();
    for cause in causes(error) {
        // A library's error may repeat its own cause.
        if !said.contains(&cause) {
            let _ = writeln!(text, "cause: {cause}");
        }
        said = cause;
    }
    if let Some(hint) = hint(error) {
        let _ = writeln!(text, "hint:  {hint}");
    }
    text
}

fn as_json(error: &anyhow::Error) -> serde_json::Value {
    let code = error.chain().find_map(|cause| client_error(cause)?.code());
    json!({
        "error": error.to_string(),
        "causes": causes(error),
        "hint": hint(error),
        "code": code,
        "exit": exit_code(error),
    })
}

fn causes(error: &anyhow::Error) -> Vec<String> {
    error.chain().skip(1).map(ToString::to_string).collect()
}

/// The next step, by the innermost error that knows one.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(hint_of)
}

fn hint_of(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<WrongUse>() {
        return Some(error.hint.clone());
    }
    if let Some(error) = cause.downcast_ref::<Failure>() {
        return Some(error.hint.clone());
    }
    if let Some(error) = client_error(cause) {
        return client_hint(error);
    }
    if let Some(error) = cause.downcast_ref::<SourceError>() {
        return source_hint(error);
    }
    if let Some(error) = cause.downcast_ref::<PushError>() {
        return push_hint(error);
    }
    match cause.downcast_ref::<PullError>()? {
        PullError::Write { .. } => Some(ROOM.to_owned()),
        PullError::Seal { .. } => Some(
            "do not use it: ask who runs the daemon whether its key or its store was changed"
                .to_owned(),
        ),
        _ => None,
    }
}

/// The call of the API that failed, also within the errors that only pass it on.
fn client_error<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a ClientError> {
    if let Some(error) = cause.downcast_ref::<ClientError>() {
        return Some(error);
    }
    let fetched = match cause.downcast_ref::<PullError>() {
        Some(PullError::Client(error)) => return Some(error),
        Some(
            PullError::Chunk { cause, .. }
            | PullError::Page(LookupError::Source { source: cause, .. }),
        ) => Some(cause),
        _ => None,
    };
    match (cause.downcast_ref::<PushError>(), fetched) {
        (Some(PushError::Client(error)), _) | (_, Some(FetchError::Client(error))) => Some(error),
        _ => None,
    }
}

fn client_hint(error: &ClientError) -> Option<String> {
    let text = match error {
        ClientError::Connect {
            endpoint: Endpoint::Unix(_),
            ..
        } => {
            "start it with 'rootstock serve', or say where it is with --api or ROOTSTOCK_API \
             (a socket of another user needs sudo)"
        }
        ClientError::Connect { .. } => {
            "check the address and the port, and whether the daemon has --api https://… too"
        }
        ClientError::Lost { .. } => {
            "look at the daemon's log; then run the same command again: what was done is kept"
        }
        ClientError::Problem(problem) => match (&problem.hint, problem.code) {
            (Some(hint), _) => hint,
            (None, ProblemCode::Unauthorized) => {
                "make a token with 'rootstock token create' on the daemon's machine, and give it \
                 in ROOTSTOCK_TOKEN or --token-file"
            }
            (None, ProblemCode::Forbidden) => "ask for a token with the role admin",
            (None, ProblemCode::ImageNotFound) => "'rootstock image list' shows what there is",
            (None, ProblemCode::VersionNotFound | ProblemCode::TagNotFound) => {
                "'rootstock image show NAME' shows its versions and tags"
            }
            (None, ProblemCode::VolumeNotFound) => "'rootstock volume list' shows what there is",
            (None, ProblemCode::NoSpace) => {
                "free space on the daemon's disk, or delete versions and run 'rootstock gc'"
            }
            _ => return None,
        },
        ClientError::NotTheApi { .. } => "check --api, and that both are of a like release",
        ClientError::Tls { .. } => "give the site's certificate with --ca FILE",
        ClientError::Start(_) => return None,
    };
    Some(text.to_owned())
}

fn source_hint(error: &SourceError) -> Option<String> {
    let text = match error {
        SourceError::Header {
            path,
            cause: HeaderError::OtherFile { .. },
            ..
        } => {
            return Some(format!(
                "if you trust it, make it one file where its other files are: \
                 qemu-img convert -O qcow2 '{}' whole.qcow2",
                path.display()
            ));
        }
        SourceError::Header {
            cause: HeaderError::Encrypted,
            ..
        } => "decrypt it with 'qemu-img convert' and import the result",
        SourceError::Header { .. } | SourceError::Tool { .. } => {
            "fetch it again and compare its checksum; if it is a raw disk, say --format raw"
        }
        SourceError::NoTool { .. } => {
            "install it: 'apt install qemu-utils' (Debian, Ubuntu) or 'dnf install qemu-img' \
             (Fedora, RHEL)"
        }
        SourceError::Convert { reason, .. } if reason.contains("No space left") => ROOM,
        SourceError::Convert { .. } => "export it raw, which needs no other tool",
        SourceError::TooLarge { .. } => "if it is right, allow it with --max-size",
        SourceError::NotADisk { what, .. } if what.ends_with("pipe") => {
            "give it as standard input: '… image import NAME - < PIPE'"
        }
        SourceError::NotADisk { .. } => {
            "name a disk image, a block device, or - for standard input"
        }
        SourceError::Stream { .. } | SourceError::Archive { .. } | SourceError::Checksum { .. } => {
            "fetch it again and compare its checksum"
        }
        SourceError::ManyDisks { .. } => "choose one with --member NAME",
        SourceError::Spool { .. } | SourceError::SpoolFull { .. } => {
            "name a directory with room with --spool DIR, or unpack it yourself"
        }
        SourceError::NoDisk { .. } | SourceError::Nested { .. } => {
            "unpack it yourself and import the disk in it"
        }
        SourceError::Open { .. } | SourceError::Empty { .. } => return None,
    };
    Some(text.to_owned())
}

fn push_hint(error: &PushError) -> Option<String> {
    let text = match error {
        PushError::Changed(_) => {
            "stop what writes to it (shut the VM down, unmount it) and import it again; \
             --allow-changes takes it as it comes"
        }
        PushError::Short { .. } => {
            "was it cut or replaced meanwhile? import it again when it is whole"
        }
        PushError::Source { .. } => "check the disk or the file; nothing of it became a version",
        PushError::Cancelled => "run the same command again to go on where it was",
        PushError::Client(_) | PushError::Grid { .. } => return None,
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests;
