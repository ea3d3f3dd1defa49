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
    assert_snapshot!(told.join("\n\n"), @r"
    error: 'evil.qcow2' (qcow2) is refused: it takes data from a backing file, '/etc/shadow'
    hint:  if you trust it, make it one file where its other files are: qemu-img convert -O qcow2 'evil.qcow2' whole.qcow2
    exit 1

    error: lab:1 is in use by volume seat
    hint:  delete the volume first
    exit 1

    error: the size is too small
    exit 2

    error: 'disk.img' changed while it was read: it was written to meanwhile
    hint:  stop what writes to it (shut the VM down, unmount it) and import it again; --allow-changes takes it as it comes
    exit 1

    error: 'disk.img' cannot be read
    cause: No such file or directory (os error 2)
    exit 1

    error: 'qemu-nbd' is not installed, and this format is read with it
    hint:  install it: 'apt install qemu-utils' (Debian, Ubuntu) or 'dnf install qemu-img' (Fedora, RHEL)
    exit 1
    ");
}

#[test]
fn programs_get_the_same() {
    let problem = Problem::new(ProblemCode::ImageNotFound, "there is no image lab");
    let error = anyhow::Error::from(ClientError::Problem(Box::new(problem)));
    assert_snapshot!(as_json(&error), @r#"{"causes":[],"code":"image-not-found","error":"there is no image lab","exit":1,"hint":"'rootstock image list' shows what there is"}"#);
}
