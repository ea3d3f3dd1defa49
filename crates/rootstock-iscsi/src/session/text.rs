//! Text in the full-feature phase: which targets there are (section 11.10, appendix C).

use super::{Event, RejectReason, Session};
use crate::frame::Frame;
use crate::pdu::{CONTINUE, FINAL, Header, NO_TAG, opcode};
use crate::text::{TextWriter, pairs};

/// A request's text, which may come in several PDUs.
const REQUEST_BYTES_MAX: usize = 16 << 10;
/// All targets that one initiator is told of.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Text on its way in or out.
#[derive(Debug, Default)]
pub(super) struct Answer {
    gathered: Vec<u8>,
    /// The rest of an answer, and the tag by which it is asked for.
    rest: Vec<u8>,
    transfer_tag: u32,
    /// What was answered already, before the targets.
    begun: TextWriter,
}

impl Session {
    pub(super) fn text_request(
        &mut self,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Event<'static>> {
        let tag = frame.initiator_task_tag();
        let transfer_tag = frame.word(20);
        if transfer_tag == NO_TAG {
            self.text = Answer::default();
        } else if transfer_tag != self.text.transfer_tag {
            self.reject(frame, RejectReason::InvalidField, out);
            return None;
        }
        if !self.text.rest.is_empty() {
            self.send_text(tag, out);
            return None;
        }
        if self.text.gathered.len() + frame.data.len() > REQUEST_BYTES_MAX {
            self.text = Answer::default();
            self.reject(frame, RejectReason::InvalidField, out);
            return None;
        }
        self.text.gathered.extend_from_slice(frame.data);
        if frame.flags() & CONTINUE != 0 {
            self.text_goes_on(tag, out);
            return None;
        }
        let text = std::mem::take(&mut self.text.gathered);
        let Ok(pairs) = pairs(&text) else {
            self.reject(frame, RejectReason::Protocol, out);
            return None;
        };
        let mut which = None;
        for (key, value) in pairs {
            match key {
                "SendTargets" => which = Some(value.to_owned()),
                _ => self.text.begun.push(key, "NotUnderstood"),
            }
        }
        match which {
            Some(which) => Some(Event::SendTargets {
                tag,
                target: (which != "All").then_some(which),
            }),
            None => {
                self.text.rest = std::mem::take(&mut self.text.begun).into_bytes();
                self.send_text(tag, out);
                None
            }
        }
    }

    /// Answers with targets and the addresses at which each is found, with a port
    /// and without a portal group.
    pub fn targets(&mut self, tag: u32, targets: &[(String, String)], out: &mut Vec<u8>) {
        let mut writer = std::mem::take(&mut self.text.begun);
        for (name, address) in targets {
            if writer.len() > ANSWER_BYTES_MAX {
                break;
            }
            writer.push("TargetName", name);
            writer.push("TargetAddress", &format!("{address},1"));
        }
        self.text.rest = writer.into_bytes();
        self.send_text(tag, out);
    }

    /// An empty answer that asks for the rest of a request (section 11.11.4).
    fn text_goes_on(&mut self, tag: u32, out: &mut Vec<u8>) {
        let transfer_tag = self.transfer_tag();
        self.text.transfer_tag = transfer_tag;
        let header = Header::new(opcode::TEXT_RESPONSE, 0)
            .word(16, tag)
            .word(20, transfer_tag);
        self.write_numbered(header, &[], out);
    }

    fn send_text(&mut self, tag: u32, out: &mut Vec<u8>) {
        let most = self.operational.initiator_segment_bytes_max as usize;
        let rest = std::mem::take(&mut self.text.rest);
        let (part, rest) = rest.split_at(rest.len().min(most));
        let (flags, transfer_tag) = if rest.is_empty() {
            (FINAL, NO_TAG)
        } else {
            (CONTINUE, self.transfer_tag())
        };
        self.text.transfer_tag = transfer_tag;
        let header = Header::new(opcode::TEXT_RESPONSE, flags)
            .word(16, tag)
            .word(20, transfer_tag);
        self.write_numbered(header, part, out);
        self.text.rest = rest.to_vec();
    }
}
