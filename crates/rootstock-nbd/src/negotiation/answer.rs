//! Replies to options ("Option reply types"), and the caller's answers in them.

use super::{
    Asked, ExportInfo, ExportRefusal, Negotiation, NegotiationError, PAYLOAD_BYTES_MAX,
    PREFERRED_BLOCK_BYTES, Phase, Progress, Wanted, allocation, info, magic, option, option_reply,
};
use crate::reply::truncated;

impl Negotiation {
    /// Answers [`super::Question::List`]; names longer than the protocol allows
    /// are left out.
    pub fn answer_list<I>(&mut self, names: I, out: &mut Vec<u8>)
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        debug_assert!(
            matches!(self.phase, Phase::Asked(Asked::List)),
            "nobody asked"
        );
        for name in names {
            let name = name.as_ref();
            if name.len() > super::STRING_BYTES_MAX {
                continue;
            }
            header(out, option::LIST, option_reply::SERVER, 4 + name.len());
            out.extend_from_slice(&(name.len() as u32).to_be_bytes());
            out.extend_from_slice(name.as_bytes());
        }
        ack(out, option::LIST);
        self.phase = Phase::Option;
    }

    /// Answers [`super::Question::Export`].
    ///
    /// # Errors
    /// [`NegotiationError::ExportName`] when the client asked in the way that
    /// cannot be refused but by closing.
    pub fn answer_export(
        &mut self,
        answer: &Result<ExportInfo, ExportRefusal>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, NegotiationError> {
        let asked = match std::mem::replace(&mut self.phase, Phase::Option) {
            Phase::Asked(asked) => asked,
            other => {
                debug_assert!(false, "nobody asked");
                self.phase = other;
                return Ok(Progress::NeedInput);
            }
        };
        match asked {
            Asked::List => {
                debug_assert!(false, "a list was asked for");
                self.phase = Phase::Asked(Asked::List);
                Ok(Progress::NeedInput)
            }
            Asked::ExportName { name } => self.answer_export_name(name, answer, out),
            Asked::Info {
                option,
                name,
                wanted,
            } => Ok(self.answer_info(option, &name, wanted, answer, out)),
            Asked::Context {
                option,
                name,
                matched,
            } => {
                self.answer_context(option, name, matched, answer, out);
                Ok(Progress::NeedInput)
            }
        }
    }

    /// "`NBD_OPT_EXPORT_NAME`": size, flags, and zeros for those who want them.
    fn answer_export_name(
        &mut self,
        name: String,
        answer: &Result<ExportInfo, ExportRefusal>,
        out: &mut Vec<u8>,
    ) -> Result<Progress, NegotiationError> {
        match answer {
            Ok(export) => {
                let agreement = self.agreement(&name, export);
                out.extend_from_slice(&export.size_bytes.to_be_bytes());
                out.extend_from_slice(&agreement.export_flags.to_be_bytes());
                if !self.no_zeroes {
                    out.extend_from_slice(&[0; 124]);
                }
                self.phase = Phase::Over;
                Ok(Progress::Ready(agreement))
            }
            Err(refusal) => Err(NegotiationError::ExportName {
                name,
                reason: refusal.text().to_owned(),
            }),
        }
    }

    /// "`NBD_OPT_INFO` and `NBD_OPT_GO`".
    fn answer_info(
        &mut self,
        option: u32,
        name: &str,
        wanted: Wanted,
        answer: &Result<ExportInfo, ExportRefusal>,
        out: &mut Vec<u8>,
    ) -> Progress {
        let export = match answer {
            Ok(export) => export,
            Err(refusal) => {
                error(out, option, refusal.reply(), refusal.text());
                return Progress::NeedInput;
            }
        };
        let agreement = self.agreement(name, export);
        info_header(out, option, info::EXPORT, 10);
        out.extend_from_slice(&export.size_bytes.to_be_bytes());
        out.extend_from_slice(&agreement.export_flags.to_be_bytes());
        info_header(out, option, info::BLOCK_SIZE, 12);
        for bytes in [1, PREFERRED_BLOCK_BYTES, PAYLOAD_BYTES_MAX] {
            out.extend_from_slice(&bytes.to_be_bytes());
        }
        if wanted.name {
            info_header(out, option, info::NAME, name.len());
            out.extend_from_slice(name.as_bytes());
        }
        if wanted.description && !export.description.is_empty() {
            let text = truncated(&export.description);
            info_header(out, option, info::DESCRIPTION, text.len());
            out.extend_from_slice(text.as_bytes());
        }
        ack(out, option);
        if option == option::GO {
            self.phase = Phase::Over;
            return Progress::Ready(agreement);
        }
        Progress::NeedInput
    }

    /// "`NBD_OPT_LIST_META_CONTEXT`" and "`NBD_OPT_SET_META_CONTEXT`".
    fn answer_context(
        &mut self,
        option: u32,
        name: String,
        matched: bool,
        answer: &Result<ExportInfo, ExportRefusal>,
        out: &mut Vec<u8>,
    ) {
        if let Err(refusal) = answer {
            return error(out, option, refusal.reply(), refusal.text());
        }
        let choose = option == option::SET_META_CONTEXT;
        if matched {
            let context = allocation::NAME.as_bytes();
            let id = if choose { allocation::CONTEXT_ID } else { 0 };
            header(out, option, option_reply::META_CONTEXT, 4 + context.len());
            out.extend_from_slice(&id.to_be_bytes());
            out.extend_from_slice(context);
        }
        ack(out, option);
        if choose {
            self.context = matched.then_some(name);
        }
    }
}

pub(super) fn ack(out: &mut Vec<u8>, option: u32) {
    header(out, option, option_reply::ACK, 0);
}

pub(super) fn invalid(out: &mut Vec<u8>, option: u32) {
    let text = "the option's data is malformed";
    error(out, option, option_reply::ERR_INVALID, text);
}

pub(super) fn error(out: &mut Vec<u8>, option: u32, code: u32, text: &str) {
    let text = truncated(text);
    header(out, option, code, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn header(out: &mut Vec<u8>, option: u32, kind: u32, len_bytes: usize) {
    out.extend_from_slice(&magic::OPTION_REPLY.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(len_bytes as u32).to_be_bytes());
}

fn info_header(out: &mut Vec<u8>, option: u32, kind: u16, len_bytes: usize) {
    header(out, option, option_reply::INFO, 2 + len_bytes);
    out.extend_from_slice(&kind.to_be_bytes());
}
