//! What each option's data means ("Option types").

use super::{
    Asked, Negotiation, NegotiationError, Phase, STRING_BYTES_MAX, TlsOffer, Wanted, allocation,
    answer, info, option, option_reply,
};
use crate::proto::ReplyStyle;

impl Negotiation {
    pub(super) fn handle(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), NegotiationError> {
        if self.tls == TlsOffer::Required
            && !self.secured
            && !matches!(option, option::STARTTLS | option::ABORT)
        {
            return self.insist_on_tls(option, data, out);
        }
        match option {
            option::EXPORT_NAME => return self.export_name(data),
            option::ABORT => {
                answer::ack(out, option);
                self.phase = Phase::Over;
            }
            option::LIST if data.is_empty() => self.phase = Phase::Asked(Asked::List),
            option::STARTTLS => self.start_tls(data, out),
            option::INFO | option::GO => match parse_info(data) {
                Some((name, wanted)) => {
                    self.phase = Phase::Asked(Asked::Info {
                        option,
                        name,
                        wanted,
                    });
                }
                None => answer::invalid(out, option),
            },
            option::STRUCTURED_REPLY if data.is_empty() => self.structured_reply(out),
            option::EXTENDED_HEADERS if data.is_empty() => {
                self.style = ReplyStyle::Extended;
                answer::ack(out, option);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, data, out);
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                answer::invalid(out, option);
            }
            _ => {
                let text = "this server does not know the option";
                answer::error(out, option, option_reply::ERR_UNSUP, text);
            }
        }
        Ok(())
    }

    /// "FORCEDTLS mode": an export chosen without a way to answer ends it.
    fn insist_on_tls(
        &self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), NegotiationError> {
        if option == option::EXPORT_NAME {
            return Err(NegotiationError::ExportName {
                name: String::from_utf8_lossy(data).into_owned(),
                reason: "this server insists on TLS".to_owned(),
            });
        }
        let text = "this server insists on TLS";
        answer::error(out, option, option_reply::ERR_TLS_REQD, text);
        Ok(())
    }

    fn export_name(&mut self, data: &[u8]) -> Result<(), NegotiationError> {
        let refuse = |reason: &str| NegotiationError::ExportName {
            name: String::from_utf8_lossy(&data[..data.len().min(64)]).into_owned(),
            reason: reason.to_owned(),
        };
        if self.style == ReplyStyle::Extended {
            return Err(refuse("extended headers need NBD_OPT_GO"));
        }
        let name = string(data).ok_or_else(|| refuse("it is not a name"))?;
        self.phase = Phase::Asked(Asked::ExportName { name });
        Ok(())
    }

    fn start_tls(&mut self, data: &[u8], out: &mut Vec<u8>) {
        if self.secured || !data.is_empty() {
            return answer::invalid(out, option::STARTTLS);
        }
        if self.tls == TlsOffer::Off {
            let text = "TLS is not configured on this server";
            return answer::error(out, option::STARTTLS, option_reply::ERR_POLICY, text);
        }
        answer::ack(out, option::STARTTLS);
        self.phase = Phase::TlsPending;
    }

    fn structured_reply(&mut self, out: &mut Vec<u8>) {
        if self.style == ReplyStyle::Extended {
            let text = "extended headers are agreed already";
            let code = option_reply::ERR_EXT_HEADER_REQD;
            return answer::error(out, option::STRUCTURED_REPLY, code, text);
        }
        self.style = ReplyStyle::Structured;
        answer::ack(out, option::STRUCTURED_REPLY);
    }

    fn meta_context(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        if option == option::SET_META_CONTEXT {
            // The former choice is gone even when this one fails.
            self.context = None;
            if self.style == ReplyStyle::Simple {
                let text = "negotiate structured replies or extended headers first";
                return answer::error(out, option, option_reply::ERR_INVALID, text);
            }
        }
        match parse_queries(option, data) {
            Some((name, matched)) => {
                self.phase = Phase::Asked(Asked::Context {
                    option,
                    name,
                    matched,
                });
            }
            None => answer::invalid(out, option),
        }
    }
}

/// Takes fields off the front of an option's data.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u16::from_be_bytes(*head))
    }

    fn u32(&mut self) -> Option<u32> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(u32::from_be_bytes(*head))
    }

    fn sized_string(&mut self) -> Option<String> {
        let len = self.u32()? as usize;
        string(self.bytes(len)?)
    }
}

/// A string as "Conventions" has it.
fn string(bytes: &[u8]) -> Option<String> {
    if bytes.len() > STRING_BYTES_MAX || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

fn parse_info(data: &[u8]) -> Option<(String, Wanted)> {
    let mut fields = Fields(data);
    let name = fields.sized_string()?;
    let mut wanted = Wanted::default();
    for _ in 0..fields.u16()? {
        match fields.u16()? {
            info::NAME => wanted.name = true,
            info::DESCRIPTION => wanted.description = true,
            // Size, flags and block sizes are always told; others are unknown.
            _ => {}
        }
    }
    fields.0.is_empty().then_some((name, wanted))
}

/// The export's name and whether a query matches `base:allocation` ("The
/// `base:` metadata namespace"); `None` when the data is malformed.
fn parse_queries(option: u32, data: &[u8]) -> Option<(String, bool)> {
    let mut fields = Fields(data);
    let name = fields.sized_string()?;
    let count = fields.u32()?;
    // A list without queries is of everything; a choice of nothing is nothing.
    let mut matched = count == 0 && option == option::LIST_META_CONTEXT;
    for _ in 0..count {
        let query = fields.sized_string()?;
        if !query.contains(':') {
            return None;
        }
        let wildcard = query == "base:" && option == option::LIST_META_CONTEXT;
        matched |= wildcard || query == allocation::NAME;
    }
    fields.0.is_empty().then_some((name, matched))
}
