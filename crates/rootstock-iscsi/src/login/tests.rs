//! A login from both sides.

use proptest::prelude::*;

use super::*;
use crate::frame::decode;
use crate::pdu::FINAL;

const IQN: &str = "iqn.1993-08.org.debian:01:abc";
const TARGET: &str = "iqn.2026-11.example.site:volume.a";
const SECRET: &[u8] = b"a secret of sixteen";
const TARGETS: &[u8] = b"another of sixteen!";

/// An initiator that says what it is told, and remembers what it hears.
struct Initiator {
    login: Login,
    isid: [u8; 6],
    tsih: u16,
}

struct Heard {
    flags: u8,
    tsih: u16,
    status: [u8; 2],
    text: String,
}

impl Initiator {
    fn new() -> Self {
        Self {
            login: Login::new(65_536),
            isid: [0x80, 1, 2, 3, 4, 5],
            tsih: 0,
        }
    }

    fn say(&mut self, flags: u8, text: &str) -> (Progress, Option<Heard>) {
        self.say_with(flags, text, None)
    }

    /// One request; when the target asks, the answer is to admit with these.
    fn say_with(
        &mut self,
        flags: u8,
        text: &str,
        credentials: Option<Credentials>,
    ) -> (Progress, Option<Heard>) {
        let mut bytes = Vec::new();
        let header = Header::new(opcode::LOGIN | 0x40, flags)
            .bytes(8, &self.isid)
            .half(14, self.tsih)
            .word(16, 7)
            .half(20, 1)
            .word(24, 100)
            .word(28, 5);
        let text = text.replace(' ', "\0");
        header.write(text.as_bytes(), Digests::default(), &mut bytes);
        let (frame, _) = decode(&bytes, Digests::default(), 8192).unwrap().unwrap();
        let mut out = Vec::new();
        let progress = match self.login.receive(&frame, &mut out).unwrap() {
            Progress::Ask(_) => self.login.admit(
                Admission {
                    tsih: 3,
                    credentials,
                },
                &mut out,
            ),
            progress => progress,
        };
        let heard = decode(&out, Digests::default(), 8192).unwrap();
        let heard = heard.map(|(frame, _)| Heard {
            flags: frame.flags(),
            tsih: frame.half(14),
            status: [frame.header[36], frame.header[37]],
            text: String::from_utf8(frame.data.to_vec()).unwrap(),
        });
        (progress, heard)
    }
}

fn first(more: &str) -> String {
    format!("InitiatorName={IQN} TargetName={TARGET} SessionType=Normal {more} ")
}

fn credentials() -> Credentials {
    let account = |secret: &[u8]| Account {
        secret: secret.to_vec(),
        mutual: Some((TARGET.to_owned(), TARGETS.to_vec())),
    };
    Credentials {
        accounts: vec![account(b"somebody else's one"), account(SECRET)],
        identifier: 9,
        challenge: vec![1; 16],
    }
}

/// As iPXE logs in: two PDUs, with its own small limits.
#[test]
fn a_login_without_a_secret_takes_two_steps() {
    let mut initiator = Initiator::new();
    let (progress, heard) = initiator.say(FINAL | 1, &first("AuthMethod=None"));
    assert_eq!(progress, Progress::More);
    let heard = heard.unwrap();
    assert_eq!((heard.flags, heard.tsih), (0x81, 0));
    assert_eq!(heard.text, "TargetPortalGroupTag=1\0AuthMethod=None\0");
    let (progress, heard) = initiator.say(
        FINAL | 4 | 3,
        "HeaderDigest=None ImmediateData=No MaxRecvDataSegmentLength=8192 X-odd=1 OFMarker=No ",
    );
    let Progress::Done(established) = progress else {
        panic!("{progress:?}")
    };
    let heard = heard.unwrap();
    assert_eq!((heard.flags, heard.tsih, heard.status), (0x87, 3, [0, 0]));
    assert_eq!(
        heard.text,
        "HeaderDigest=None\0ImmediateData=No\0MaxRecvDataSegmentLength=65536\0X-odd=NotUnderstood\0OFMarker=No\0"
    );
    assert_eq!(established.question.initiator, IQN);
    assert_eq!(established.question.target.as_deref(), Some(TARGET));
    assert_eq!(established.command_number, 100);
    assert_eq!(established.status_number, 7);
    assert!(!established.operational.immediate_data);
}

#[test]
fn a_discovery_may_go_to_the_end_in_one_step() {
    let mut initiator = Initiator::new();
    let text = format!("InitiatorName={IQN} SessionType=Discovery ");
    let (progress, _) = initiator.say(FINAL | 4 | 3, &text);
    let Progress::Done(established) = progress else {
        panic!("{progress:?}")
    };
    assert_eq!(established.question.target, None);
}

#[test]
fn chap_is_proved_in_both_directions() {
    let mut initiator = Initiator::new();
    let (progress, heard) = initiator.say_with(
        FINAL | 1,
        &first("AuthMethod=CHAP,None"),
        Some(credentials()),
    );
    assert_eq!(progress, Progress::More);
    // Not yet: it has to prove something first.
    assert_eq!(heard.unwrap().flags, 0);
    let (_, heard) = initiator.say(0, "CHAP_A=6,5 ");
    let challenge = to_text(&[1; 16]);
    assert_eq!(
        heard.unwrap().text,
        format!("CHAP_A=5\0CHAP_I=9\0CHAP_C={challenge}\0")
    );
    let theirs = Exchange {
        algorithm: Algorithm::Md5,
        identifier: 77,
        challenge: vec![2; 16],
    };
    let ours = Exchange {
        identifier: 9,
        challenge: vec![1; 16],
        ..theirs.clone()
    };
    let response = to_text(&theirs.answer(SECRET, 9, &[1; 16]).unwrap());
    let text = format!(
        "CHAP_N=me CHAP_R={response} CHAP_I=77 CHAP_C={} ",
        to_text(&theirs.challenge)
    );
    let (progress, heard) = initiator.say(FINAL | 1, &text);
    assert_eq!(progress, Progress::More);
    let heard = heard.unwrap();
    assert_eq!(heard.flags, 0x81);
    let answer = to_text(&ours.answer(TARGETS, 77, &theirs.challenge).unwrap());
    assert_eq!(heard.text, format!("CHAP_N={TARGET}\0CHAP_R={answer}\0"));
    let (progress, _) = initiator.say(FINAL | 4 | 3, "");
    let Progress::Done(established) = progress else {
        panic!("{progress:?}")
    };
    assert_eq!(established.account, Some(1));
}

#[test]
fn nobody_gets_around_the_proof() {
    let refused = Progress::Failed(Status::AuthenticationFailure);
    for steps in [
        vec![(FINAL | 1, "AuthMethod=None")],
        vec![(FINAL | 1, "")],
        vec![(FINAL | 3, "")],
        vec![(FINAL | 4 | 3, "HeaderDigest=None")],
        vec![(1, "AuthMethod=CHAP"), (0, "CHAP_A=6")],
        vec![
            (1, "AuthMethod=CHAP"),
            (0, "CHAP_A=5"),
            (FINAL | 1, "CHAP_N=me CHAP_R=0x00"),
        ],
    ] {
        let mut initiator = Initiator::new();
        let mut last = None;
        for (at, (flags, text)) in steps.iter().enumerate() {
            let text = if at == 0 {
                first(text)
            } else {
                format!("{text} ")
            };
            last = Some(initiator.say_with(*flags, &text, Some(credentials())).0);
        }
        assert_eq!(last, Some(refused.clone()), "{steps:?}");
    }
    // With its own challenge sent back, it is to learn nothing.
    let mut initiator = Initiator::new();
    initiator.say_with(1, &first("AuthMethod=CHAP"), Some(credentials()));
    initiator.say(0, "CHAP_A=5 ");
    let (progress, _) = initiator.say(FINAL | 1, "CHAP_I=9 CHAP_C=0x01 ");
    assert_eq!(progress, Progress::More);
    let (progress, _) = initiator.say(FINAL | 4 | 3, "");
    assert_eq!(progress, Progress::Failed(Status::InitiatorError));
}

#[test]
fn what_is_missing_or_wrong_is_told_by_its_status() {
    let long = "x".repeat(300);
    for (flags, text, expected) in [
        (
            FINAL | 1,
            "TargetName=iqn.a ".to_owned(),
            Status::MissingParameter,
        ),
        (
            FINAL | 1,
            format!("InitiatorName={IQN} "),
            Status::MissingParameter,
        ),
        (
            FINAL | 1,
            format!("InitiatorName={long} TargetName=a "),
            Status::InitiatorError,
        ),
        (
            FINAL | 1,
            format!("InitiatorName={IQN} SessionType=Odd "),
            Status::SessionType,
        ),
        (FINAL | 1, "no pairs ".to_owned(), Status::InitiatorError),
        (FINAL | 0x40 | 1, first(""), Status::InitiatorError),
        (FINAL | 8 | 3, first(""), Status::InitiatorError),
        (FINAL, first(""), Status::InitiatorError),
        (
            FINAL | 4 | 3,
            first("MaxConnections=0"),
            Status::InitiatorError,
        ),
    ] {
        let (progress, heard) = Initiator::new().say(flags, &text);
        assert_eq!(progress, Progress::Failed(expected), "{text}");
        assert_eq!(heard.unwrap().status, expected.code(), "{text}");
    }
}

#[test]
fn text_may_come_in_pieces() {
    let mut initiator = Initiator::new();
    let (progress, heard) = initiator.say(0x40, &format!("InitiatorName={IQN} Target"));
    assert_eq!(progress, Progress::More);
    assert_eq!(heard.unwrap().text, "");
    let (progress, heard) = initiator.say(FINAL | 1, &format!("Name={TARGET} "));
    assert_eq!(progress, Progress::More);
    assert_eq!(heard.unwrap().flags, 0x81);
    // Without an end it goes on only so long.
    let mut initiator = Initiator::new();
    let piece = "x".repeat(8000);
    let last = (0..4).map(|_| initiator.say(0x40, &piece).0).last();
    assert_eq!(last, Some(Progress::Failed(Status::InitiatorError)));
}

proptest! {
    #[test]
    fn any_login_ends_without_a_panic(
        steps in prop::collection::vec((any::<u8>(), "([A-Za-z_]{1,12}=[ -~]{0,20}\0){0,4}"), 1..40),
        secret in any::<bool>(),
    ) {
        let mut initiator = Initiator::new();
        let mut admitted = false;
        for (flags, text) in steps {
            let text = if admitted { text } else { format!("{}{text}", first("")) };
            admitted = true;
            let given = secret.then(credentials);
            let (progress, _) = initiator.say_with(flags, &text, given);
            if let Progress::Done(_) = progress {
                prop_assert!(!secret);
            }
            if !matches!(progress, Progress::More) {
                break;
            }
        }
    }
}
