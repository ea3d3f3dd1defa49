//! Errors as users see them.

use std::io;

use insta::assert_snapshot;
use rootstock_api::Problem;
use rootstock_client::push::Changed;

use super::*;
use crate::source::detect::Foreign;

fn text(error: impl Into<anyhow::Error>) -> String {
    let error = error.into();
    format!("{}exit {}", as_text(&error), exit_code(&error))
}

#[test]
fn every_kind_says_what_to_do() {
    let refused = SourceError::Header {
        path: "evil.qcow2".into(),
        format: Foreign::Qcow2,
        cause: HeaderError::OtherFile {
            what: "a backing file",
            name: Some("/etc/shadow".to_owned()),
        },
    };
    let problem = Problem::new(ProblemCode::InUse, "lab:1 is in use by volume seat")
        .with_hint("delete the volume first");
    let changed = PushError::Changed(Changed {
        source_name: "disk.img".to_owned(),
        how: "it was written to meanwhile".to_owned(),
    });
    let open = SourceError::Open {
        path: "disk.img".into(),
        cause: io::Error::from_raw_os_error(2),
    };
    let told = [
        text(refused),
        text(ClientError::Problem(Box::new(problem))),
        text(ClientError::Problem(Box::new(Problem::new(
            ProblemCode::BadValue,
            "the size is too small",
        )))),
        text(changed),
        text(open),
        text(SourceError::NoTool {
            tool: "qemu-nbd".to_owned(),
        }),
    ];
    assert_snapshot!(told.join("\n\n"), @"");
}

#[test]
fn programs_get_the_same() {
    let problem = Problem::new(ProblemCode::ImageNotFound, "there is no image lab");
    let error = anyhow::Error::from(ClientError::Problem(Box::new(problem)));
    assert_snapshot!(as_json(&error), @"");
}
