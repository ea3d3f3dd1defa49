//! The operational keys of a session and what both sides agree on (sections 6.2 and 13).

use thiserror::Error;

use crate::frame::{DATA_BYTES_MAX, Digests};
use crate::text::{TextWriter, number};

/// The least that a data segment or a burst may be limited to (sections 13.12 to 13.14).
pub const SEGMENT_BYTES_MIN: u32 = 512;
const SEGMENT_BYTES_MAX: u32 = DATA_BYTES_MAX as u32;

/// What a session works by; `default()` has the standard's own values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operational {
    /// Section 13.1.
    pub digests: Digests,
    /// Data comes only after an R2T, but for immediate data (section 13.10).
    pub initial_r2t: bool,
    /// Data may come with the command (section 13.11).
    pub immediate_data: bool,
    /// What the initiator takes in one PDU (section 13.12).
    pub initiator_segment_bytes_max: u32,
    /// One sequence of data PDUs (section 13.13).
    pub burst_bytes_max: u32,
    /// What may come without an R2T (section 13.14).
    pub first_burst_bytes_max: u32,
    /// Seconds from the end of a connection to the next (section 13.15).
    pub time_to_wait_seconds: u32,
    /// Seconds that tasks are kept after that (section 13.16).
    pub time_to_retain_seconds: u32,
    /// R2Ts of one task at a time (section 13.17).
    pub outstanding_r2t_max: u32,
    /// Section 13.18.
    pub data_pdu_in_order: bool,
    /// Section 13.19.
    pub data_sequence_in_order: bool,
}

impl Default for Operational {
    fn default() -> Self {
        Self {
            digests: Digests::default(),
            initial_r2t: true,
            immediate_data: true,
            initiator_segment_bytes_max: 8192,
            burst_bytes_max: 262_144,
            first_burst_bytes_max: 65_536,
            time_to_wait_seconds: 2,
            time_to_retain_seconds: 20,
            outstanding_r2t_max: 1,
            data_pdu_in_order: true,
            data_sequence_in_order: true,
        }
    }
}

/// Why a negotiation cannot go on: the login fails with "initiator error" (section 6.2).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OperationalError {
    /// A value outside what the standard allows for the key.
    #[error("{key} has a value that it cannot have")]
    Value {
        /// Whose value.
        key: &'static str,
    },
    /// A key may be negotiated once in a login (section 6.3).
    #[error("{key} is offered twice")]
    Twice {
        /// Which key.
        key: &'static str,
    },
}

/// How the two sides' values become one (section 6.2).
#[derive(Clone, Copy)]
enum Rule {
    Digest,
    Or,
    And,
    Least,
    Greatest,
    /// Each side says its own.
    Declared,
}

struct Key {
    name: &'static str,
    rule: Rule,
    range: (u32, u32),
}

const fn key(name: &'static str, rule: Rule, range: (u32, u32)) -> Key {
    Key { name, rule, range }
}

const SEGMENT: (u32, u32) = (SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
const NONE: (u32, u32) = (0, 0);

const KEYS: [Key; 14] = [
    key("HeaderDigest", Rule::Digest, NONE),
    key("DataDigest", Rule::Digest, NONE),
    key("MaxConnections", Rule::Least, (1, 65_535)),
    key("InitialR2T", Rule::Or, NONE),
    key("ImmediateData", Rule::And, NONE),
    key("MaxRecvDataSegmentLength", Rule::Declared, SEGMENT),
    key("MaxBurstLength", Rule::Least, SEGMENT),
    key("FirstBurstLength", Rule::Least, SEGMENT),
    key("DefaultTime2Wait", Rule::Greatest, (0, 3600)),
    key("DefaultTime2Retain", Rule::Least, (0, 3600)),
    key("MaxOutstandingR2T", Rule::Least, (1, 65_535)),
    key("DataPDUInOrder", Rule::Or, NONE),
    key("DataSequenceInOrder", Rule::Or, NONE),
    key("ErrorRecoveryLevel", Rule::Least, (0, 2)),
];

/// The negotiation of one login, from the target's side: it answers, and offers nothing.
#[derive(Debug)]
pub struct Negotiation {
    target_segment_bytes_max: u32,
    agreed: Operational,
    /// A bit for each of `KEYS`.
    seen: u16,
}

impl Negotiation {
    /// Begins; the target takes `segment_bytes_max` of data in one PDU, which
    /// is brought into the standard's range.
    #[must_use]
    pub fn new(segment_bytes_max: u32) -> Self {
        Self {
            target_segment_bytes_max: segment_bytes_max.clamp(SEGMENT.0, SEGMENT.1),
            agreed: Operational::default(),
            seen: 0,
        }
    }

    /// Takes one offer and writes the answer; false when the key is no operational one.
    ///
    /// # Errors
    /// When the offer is against the standard: the login is to fail.
    pub fn offer(
        &mut self,
        name: &str,
        value: &str,
        answer: &mut TextWriter,
    ) -> Result<bool, OperationalError> {
        let Some(index) = KEYS.iter().position(|key| key.name == name) else {
            return Ok(false);
        };
        let key = &KEYS[index];
        if self.seen & (1 << index) != 0 {
            return Err(OperationalError::Twice { key: key.name });
        }
        self.seen |= 1 << index;
        let text = self
            .settle(key, value)
            .ok_or(OperationalError::Value { key: key.name })?;
        answer.push(key.name, &text);
        Ok(true)
    }

    /// What was agreed on; the first burst is never longer than a burst (section 13.14).
    #[must_use]
    pub fn finish(self) -> Operational {
        let mut agreed = self.agreed;
        agreed.first_burst_bytes_max = agreed.first_burst_bytes_max.min(agreed.burst_bytes_max);
        agreed
    }

    fn settle(&mut self, key: &Key, value: &str) -> Option<String> {
        match key.rule {
            Rule::Digest => Some(self.settle_digest(key.name, value)),
            Rule::Or | Rule::And => self.settle_flag(key, value),
            Rule::Least | Rule::Greatest | Rule::Declared => self.settle_number(key, value),
        }
    }

    /// The first of the initiator's list that is known here (section 6.2.1).
    fn settle_digest(&mut self, name: &str, list: &str) -> String {
        let chosen = list
            .split(',')
            .find(|word| matches!(*word, "CRC32C" | "None"));
        let on = chosen == Some("CRC32C");
        match name {
            "HeaderDigest" => self.agreed.digests.header = on,
            _ => self.agreed.digests.data = on,
        }
        chosen.unwrap_or("Reject").to_owned()
    }

    /// Ours are chosen so that the initiator's wish holds: No for OR, Yes for AND.
    fn settle_flag(&mut self, key: &Key, value: &str) -> Option<String> {
        let on = match value {
            "Yes" => true,
            "No" => false,
            _ => return None,
        };
        match key.name {
            "InitialR2T" => self.agreed.initial_r2t = on,
            "ImmediateData" => self.agreed.immediate_data = on,
            // The data of a volume is placed in order, whatever is offered.
            "DataPDUInOrder" | "DataSequenceInOrder" => return Some("Yes".to_owned()),
            _ => return None,
        }
        Some(value.to_owned())
    }

    fn settle_number(&mut self, key: &Key, value: &str) -> Option<String> {
        let offered = number(value).filter(|it| (key.range.0..=key.range.1).contains(it))?;
        let ours = self.ours(key.name);
        let settled = match key.rule {
            Rule::Greatest => offered.max(ours),
            Rule::Declared => offered,
            _ => offered.min(ours),
        };
        match key.name {
            "MaxRecvDataSegmentLength" => {
                self.agreed.initiator_segment_bytes_max = offered;
                return Some(ours.to_string());
            }
            "MaxBurstLength" => self.agreed.burst_bytes_max = settled,
            "FirstBurstLength" => {
                let settled = settled.min(self.agreed.burst_bytes_max);
                self.agreed.first_burst_bytes_max = settled;
                return Some(settled.to_string());
            }
            "DefaultTime2Wait" => self.agreed.time_to_wait_seconds = settled,
            "DefaultTime2Retain" => self.agreed.time_to_retain_seconds = settled,
            "MaxOutstandingR2T" => self.agreed.outstanding_r2t_max = settled,
            _ => {}
        }
        Some(settled.to_string())
    }

    /// One connection, no recovery of tasks, one R2T at a time; bursts that a
    /// session's buffer can hold.
    fn ours(&self, name: &str) -> u32 {
        match name {
            "MaxRecvDataSegmentLength" => self.target_segment_bytes_max,
            "MaxBurstLength" => 262_144,
            "FirstBurstLength" => 65_536,
            "MaxConnections" | "MaxOutstandingR2T" => 1,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::pairs;

    fn check(name: &str, value: &str, expected: Option<&str>) {
        let mut answer = TextWriter::default();
        let outcome = Negotiation::new(65_536).offer(name, value, &mut answer);
        let bytes = answer.into_bytes();
        let found = outcome.ok().map(|_| pairs(&bytes).unwrap()[0].1.to_owned());
        assert_eq!(found.as_deref(), expected, "{name}={value}");
    }

    #[test]
    fn every_key_is_answered_by_its_rule() {
        for (name, value, expected) in [
            ("HeaderDigest", "CRC32C,None", Some("CRC32C")),
            ("DataDigest", "None,CRC32C", Some("None")),
            ("DataDigest", "X-other", Some("Reject")),
            ("MaxConnections", "8", Some("1")),
            ("MaxConnections", "0", None),
            ("InitialR2T", "No", Some("No")),
            ("InitialR2T", "yes", None),
            ("ImmediateData", "No", Some("No")),
            ("MaxRecvDataSegmentLength", "512", Some("65536")),
            ("MaxRecvDataSegmentLength", "511", None),
            ("MaxRecvDataSegmentLength", "16777216", None),
            ("MaxBurstLength", "0x200", Some("512")),
            ("MaxBurstLength", "16776192", Some("262144")),
            ("FirstBurstLength", "262144", Some("65536")),
            ("DefaultTime2Wait", "5", Some("5")),
            ("DefaultTime2Retain", "20", Some("0")),
            ("MaxOutstandingR2T", "16", Some("1")),
            ("DataPDUInOrder", "No", Some("Yes")),
            ("DataSequenceInOrder", "Yes", Some("Yes")),
            ("ErrorRecoveryLevel", "2", Some("0")),
            ("ErrorRecoveryLevel", "3", None),
        ] {
            check(name, value, expected);
        }
    }

    #[test]
    fn a_key_is_taken_once_and_a_strange_one_is_left_to_the_caller() {
        let mut answer = TextWriter::default();
        let mut negotiation = Negotiation::new(65_536);
        assert_eq!(negotiation.offer("X-a", "b", &mut answer), Ok(false));
        assert_eq!(negotiation.offer("InitialR2T", "No", &mut answer), Ok(true));
        assert_eq!(
            negotiation.offer("InitialR2T", "No", &mut answer),
            Err(OperationalError::Twice { key: "InitialR2T" })
        );
        assert!(!negotiation.finish().initial_r2t);
    }

    #[test]
    fn a_first_burst_is_no_longer_than_a_burst() {
        let mut negotiation = Negotiation::new(65_536);
        let mut answer = TextWriter::default();
        assert_eq!(
            negotiation.offer("MaxBurstLength", "512", &mut answer),
            Ok(true)
        );
        assert_eq!(negotiation.finish().first_burst_bytes_max, 512);
    }

    proptest! {
        #[test]
        fn whatever_is_offered_the_limits_stay_in_the_standards_ranges(
            index in 0..KEYS.len(), value in "(0x)?[0-9]{0,9}|Yes|No|[ -~]{0,20}",
        ) {
            let mut negotiation = Negotiation::new(0);
            let _ = negotiation.offer(KEYS[index].name, &value, &mut TextWriter::default());
            let agreed = negotiation.finish();
            for bytes in [agreed.initiator_segment_bytes_max, agreed.burst_bytes_max] {
                prop_assert!((SEGMENT.0..=SEGMENT.1).contains(&bytes));
            }
            prop_assert!(agreed.first_burst_bytes_max <= agreed.burst_bytes_max);
            prop_assert_eq!(agreed.outstanding_r2t_max, 1);
        }
    }
}
