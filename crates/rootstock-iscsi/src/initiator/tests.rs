//! The initiator's login against the target's.

use proptest::prelude::*;

use super::*;
use crate::frame::decode;
use crate::login::{Account, Admission, Credentials, Login, Progress, Status};

const SECRET: &[u8] = b"abcdefgh23456789";

fn wish(secret: Option<&[u8]>) -> Wish {
    Wish {
        initiator: "iqn.2026-11.example:node.n7".to_owned(),
        target: "iqn.2026-11.example:volume.n7".to_owned(),
        isid: [0x80, 1, 2, 3, 0, 0],
        tsih: 0,
        secret: secret.map(|secret| ("n7".to_owned(), secret.to_vec())),
    }
}

fn credentials() -> Credentials {
    Credentials {
        accounts: vec![Account {
            secret: SECRET.to_vec(),
            mutual: None,
        }],
        identifier: 200,
        challenge: vec![7; 16],
    }
}

/// Plays both sides.
fn log_in(
    wish: Wish,
    credentials: Option<&Credentials>,
    refuse: Option<(Status, &str)>,
) -> Result<Agreed, InitiatorError> {
    let mut target = Login::new(131_072);
    let (mut login, mut request) = Initiator::begin(wish);
    for _ in 0..10 {
        let bytes = request.to_bytes(5, 9);
        let (frame, _) = decode(&bytes, Digests::default(), 8192).unwrap().unwrap();
        let mut out = Vec::new();
        if let Progress::Ask(_) = target.receive(&frame, &mut out).unwrap() {
            let credentials = credentials.cloned();
            match refuse {
                Some((status, address)) => target.refuse(status, address, &mut out),
                None => target.admit(
                    Admission {
                        tsih: 3,
                        credentials,
                    },
                    &mut out,
                ),
            };
        }
        let (frame, _) = decode(&out, Digests::default(), 8192).unwrap().unwrap();
        match login.receive(&frame)? {
            Step::Send(next) => request = next,
            Step::Done(agreed) => return Ok(*agreed),
        }
    }
    panic!("no end");
}

#[test]
fn both_sides_agree() {
    for (secret, credentials) in [
        (None, None),
        (Some(SECRET), None),
        (Some(SECRET), Some(credentials())),
    ] {
        let agreed = log_in(wish(secret), credentials.as_ref(), None).expect("a session");
        assert_eq!(agreed.tsih, 3);
        assert_eq!(agreed.portal_group, 1);
        assert_eq!(agreed.target_segment_bytes_max, 131_072);
        assert_eq!(agreed.operational.burst_bytes_max, 262_144);
        assert_eq!(agreed.operational.first_burst_bytes_max, 65_536);
        assert!(!agreed.operational.initial_r2t && agreed.operational.immediate_data);
        // One answer to each request, from the number on that the first one named.
        assert!(agreed.status_number > 10, "{}", agreed.status_number);
    }
}

#[test]
fn what_goes_wrong_is_named() {
    for (secret, credentials, refuse, expected) in [
        (None, Some(credentials()), None, (2, 1)),
        (
            Some(&b"another of sixteen"[..]),
            Some(credentials()),
            None,
            (2, 1),
        ),
        (None, None, Some((Status::NotFound, "")), (2, 3)),
        (None, None, Some((Status::Unavailable, "")), (3, 1)),
    ] {
        let error = log_in(wish(secret), credentials.as_ref(), refuse).expect_err("refused");
        let (class, detail) = expected;
        assert_eq!(error, InitiatorError::Refused { class, detail });
        assert_eq!(error.may_pass(), class == 3);
    }
    let moved = Some((Status::Moved, "10.0.0.2:3260,1"));
    assert_eq!(
        log_in(wish(None), None, moved),
        Err(InitiatorError::Moved {
            address: "10.0.0.2:3260".to_owned()
        })
    );
}

/// An answer as a target might write it.
fn answer(flags: u8, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = Header::new(opcode::LOGIN_RESPONSE, flags).half(14, 4);
    let text = text.replace(' ', "\0");
    header.write(text.as_bytes(), Digests::default(), &mut bytes);
    bytes
}

fn receive(login: &mut Initiator, flags: u8, text: &str) -> Result<Step, InitiatorError> {
    let bytes = answer(flags, text);
    let (frame, _) = decode(&bytes, Digests::default(), 65_536).unwrap().unwrap();
    login.receive(&frame)
}

#[test]
fn a_text_may_come_in_parts_and_a_stage_in_steps() {
    let (mut login, _) = Initiator::begin(wish(None));
    let Ok(Step::Send(more)) = receive(&mut login, CONTINUE, "Auth") else {
        panic!("more is asked for");
    };
    assert!(more.text.is_empty());
    let Ok(Step::Send(offer)) = receive(&mut login, FINAL | 1, "Method=None ") else {
        panic!("the offer");
    };
    assert!(!offer.text.is_empty());
    assert!(matches!(
        receive(&mut login, 4, "ImmediateData=No "),
        Ok(Step::Send(_))
    ));
    let Ok(Step::Done(agreed)) = receive(&mut login, FINAL | 4 | 3, "InitialR2T=Yes ") else {
        panic!("the end");
    };
    assert!(agreed.operational.initial_r2t && !agreed.operational.immediate_data);
}

#[test]
fn what_was_not_offered_is_not_taken() {
    for text in [
        "HeaderDigest=CRC32C ",
        "MaxBurstLength=16777215 ",
        "MaxRecvDataSegmentLength=1 ",
        "ErrorRecoveryLevel=1 ",
        "InitialR2T=Maybe ",
    ] {
        let (mut login, _) = Initiator::begin(wish(None));
        receive(&mut login, FINAL | 1, "AuthMethod=None ").expect("goes on");
        let outcome = receive(&mut login, FINAL | 4 | 3, text);
        assert!(matches!(outcome, Err(InitiatorError::Broken(_))), "{text}");
    }
    let (mut login, _) = Initiator::begin(wish(None));
    let outcome = receive(&mut login, 0, "AuthMethod=CHAP ");
    assert_eq!(outcome, Err(InitiatorError::NoSecret));
}

proptest! {
    #[test]
    fn whatever_comes_the_login_ends_without_a_panic(
        answers in prop::collection::vec(
            (any::<u8>(), "(AuthMethod|CHAP_[AICNR]|InitialR2T|MaxBurstLength|TargetAddress)?=?(CHAP|None|5|7|0x[0-9a-f]{0,40}|Yes|[0-9]{0,9}) ?"),
            0..40,
        ),
        is_secret: bool,
    ) {
        let (mut login, _) = Initiator::begin(wish(is_secret.then_some(SECRET)));
        for (flags, text) in answers {
            if !matches!(receive(&mut login, flags, &text), Ok(Step::Send(_))) {
                break;
            }
        }
    }
}
