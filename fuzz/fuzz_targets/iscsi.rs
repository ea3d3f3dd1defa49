//! Arbitrary bytes of an iSCSI initiator, from the login on: what goes out is whole
//! PDUs, tasks stay within their bounds, and nobody is let in without the secret. The
//! same bytes as a target's answers: our initiator's login ends.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rootstock_iscsi::{
    Account, Admission, Credentials, Digests, Event, Filled, Login, Progress, Session, decode,
    initiator::{Initiator, Step, Wish},
    session::WINDOW_COMMANDS,
};

const SEGMENT_BYTES_MAX: usize = 8192;
const STREAMED_BYTES: usize = 100_000;
const TASKS_MAX: usize = WINDOW_COMMANDS as usize + 16;

// The first byte says whether a secret has to be proved; the rest is what the
// initiator sends.
fuzz_target!(|data: &[u8]| {
    let Some((&flags, mut input)) = data.split_first() else {
        return;
    };
    let secret = flags & 1 != 0;
    log_in(input, secret);
    let Some(mut session) = login(&mut input, secret) else {
        return;
    };
    assert!(!secret, "let in without the secret");
    let mut out = Vec::new();
    while let Ok(Some((frame, used))) = decode(input, session.digests(), SEGMENT_BYTES_MAX) {
        input = &input[used..];
        let Ok(event) = session.receive(&frame, &mut out) else {
            return;
        };
        answer(&mut session, event, &mut out);
        assert!(session.tasks() <= TASKS_MAX);
        whole(&mut out, session.digests());
    }
});

/// The bytes as what a target says.
fn log_in(mut input: &[u8], secret: bool) {
    let secret = secret.then(|| ("n7".to_owned(), b"sixteen bytes of it".to_vec()));
    let (mut login, _) = Initiator::begin(Wish {
        initiator: "iqn.2026-11.example:node".to_owned(),
        target: "iqn.2026-11.example:volume".to_owned(),
        isid: [0x80, 1, 2, 3, 0, 0],
        tsih: 0,
        secret,
    });
    while let Ok(Some((frame, used))) = decode(input, Digests::default(), SEGMENT_BYTES_MAX) {
        input = &input[used..];
        match login.receive(&frame) {
            Ok(Step::Send(request)) => assert!(request.text.len() <= SEGMENT_BYTES_MAX),
            Ok(Step::Done(agreed)) => {
                let operational = agreed.operational;
                assert!(operational.first_burst_bytes_max <= operational.burst_bytes_max);
                return;
            }
            Err(_) => return,
        }
    }
}

fn login(input: &mut &[u8], secret: bool) -> Option<Session> {
    let mut login = Login::new(SEGMENT_BYTES_MAX as u32);
    let mut out = Vec::new();
    loop {
        let (frame, used) = decode(input, Digests::default(), SEGMENT_BYTES_MAX).ok()??;
        let mut progress = login.receive(&frame, &mut out).ok()?;
        *input = &input[used..];
        if let Progress::Ask(_) = progress {
            let credentials = secret.then(|| Credentials {
                accounts: vec![Account {
                    secret: b"sixteen bytes of it".to_vec(),
                    mutual: None,
                }],
                identifier: 1,
                challenge: vec![7; 16],
            });
            progress = login.admit(
                Admission {
                    tsih: 1,
                    credentials,
                },
                &mut out,
            );
        }
        whole(&mut out, Digests::default());
        match progress {
            Progress::Done(established) => return Some(Session::new(&established)),
            Progress::Failed(_) => return None,
            Progress::More | Progress::Ask(_) => {}
        }
    }
}

/// Commands are answered by what their first byte says, or not at all.
fn answer(session: &mut Session, event: Option<Event<'_>>, out: &mut Vec<u8>) {
    match event {
        Some(Event::Command(command)) => match command.cdb[0] % 5 {
            0 => {
                let fill = |out: &mut Vec<u8>, _: usize, len: usize| {
                    out.resize(out.len() + len, 5);
                    Filled::Here
                };
                session.data_in(command.tag, 3000, fill, out);
            }
            1 => {}
            2 => {
                if let Some((data, _)) = session.stream(command.tag, STREAMED_BYTES, out) {
                    assert!(data.len() <= STREAMED_BYTES);
                }
            }
            _ => {
                if let Some(data) = session.gather(command.tag, 4096, out) {
                    assert!(data.len() <= 4096);
                }
            }
        },
        Some(Event::Data { data, .. }) => assert!(data.len() <= 4096),
        Some(Event::Part {
            offset, data, last, ..
        }) => {
            let end = offset as usize + data.len();
            assert!(end <= STREAMED_BYTES && (last || data.len() >= 64 << 10));
        }
        Some(Event::SendTargets { tag, .. }) => {
            let target = ("iqn.t".to_owned(), "10.0.0.1:3260".to_owned());
            session.targets(tag, &vec![target; 300], out);
        }
        Some(Event::TaskManagement { tag, .. }) => session.task_management_done(tag, 0, out),
        Some(Event::Dropped(_) | Event::Logout) | None => {}
    }
}

/// Takes what was written, which is whole PDUs.
fn whole(out: &mut Vec<u8>, digests: Digests) {
    let mut rest = out.as_slice();
    while !rest.is_empty() {
        match decode(rest, digests, 1 << 24) {
            Ok(Some((frame, used))) => {
                assert!(frame.data_intact);
                rest = &rest[used..];
            }
            other => panic!("{other:?}"),
        }
    }
    out.clear();
}
