//! iSCSI names (section 4.2.7): their forms, how they are compared, and texts within them.
//!
//! Names are prepared by a profile of stringprep (RFC 3722), which whoever sends one
//! has done. Of ASCII it leaves lower-case letters, digits, `-`, `.` and `:`; names
//! outside of ASCII are not known here.

/// The longest name (section 4.2.7.2).
pub const NAME_BYTES_MAX: usize = 223;

/// A name as it is compared: in lower case, which is all that RFC 3722 does to ASCII.
#[must_use]
pub fn normalized(name: &str) -> String {
    name.to_ascii_lowercase()
}

/// Whether a normalized name has one of the three forms (sections 4.2.7.4 to
/// 4.2.7.6). `_` is let through: some hosts make their name of a host name with it.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let hexadecimal = |digits: &str| digits.chars().all(|c| c.is_ascii_hexdigit());
    let fits = |c: char| is_plain(c) || matches!(c, ':' | '_');
    if name.len() > NAME_BYTES_MAX || !name.chars().all(fits) {
        return false;
    }
    match name.split_at_checked(4) {
        Some(("iqn.", rest)) => is_authority(rest),
        Some(("eui.", digits)) => digits.len() == 16 && hexadecimal(digits),
        Some(("naa.", digits)) => matches!(digits.len(), 16 | 32) && hexadecimal(digits),
        _ => false,
    }
}

/// A year, a month and the domain that the authority had then, in reverse
/// (section 4.2.7.4).
fn is_authority(text: &str) -> bool {
    let number = |at: std::ops::Range<usize>| {
        let digits = text.get(at)?;
        let all = digits.bytes().all(|digit| digit.is_ascii_digit());
        all.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let dated = number(0..4).is_some()
        && text.get(4..5) == Some("-")
        && number(5..7).is_some_and(|month| (1..=12).contains(&month));
    let domain = text.get(7..).and_then(|rest| rest.strip_prefix('.'));
    dated && domain.is_some_and(|domain| domain.starts_with(|c: char| c.is_ascii_alphanumeric()))
}

/// Writes text of ASCII with the characters that names have: any other becomes
/// `:` and its two hexadecimal digits, `Seat_7` for instance `:53eat:5f7`.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for byte in text.bytes() {
        let character = char::from(byte);
        if is_plain(character) {
            name.push(character);
        } else {
            name.push_str(&format!(":{byte:02x}"));
        }
    }
    name
}

/// Reads what [`escaped`] wrote, and nothing else.
#[must_use]
pub fn unescaped(name: &str) -> Option<String> {
    let mut parts = name.split(':');
    let mut text = parts.next()?.to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        let byte = u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii)?;
        text.push(char::from(byte));
        text.push_str(rest);
    }
    (escaped(&text) == name).then_some(text)
}

fn is_plain(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_have_three_forms() {
        let long = format!("iqn.2026-11.example:{}", "a".repeat(NAME_BYTES_MAX));
        for (name, expected) in [
            ("iqn.1993-08.org.debian:01:abc", true),
            ("iqn.1991-05.com.microsoft:a_host", true),
            ("iqn.2026-11.internal", true),
            ("eui.02004567a425678d", true),
            ("naa.52004567ba64678d", true),
            ("naa.62004567ba64678d0123456789abcdef", true),
            ("", false),
            ("iqn.", false),
            ("host", false),
            ("iqn.a", false),
            ("iqn.2026-13.example", false),
            ("iqn.2026-11.", false),
            ("iqn.2026-11.:a", false),
            ("iqn.+026-11.a", false),
            ("iqn.2026-11.a b", false),
            ("iqn.2026-11.a/b", false),
            ("iqn.2026-11.A", false),
            ("iqn.2026-11.ä", false),
            ("éui.02004567a425678d", false),
            ("eui.02004567a425678", false),
            ("naa.52004567ba64678g", false),
            (&long, false),
        ] {
            assert_eq!(is_name(name), expected, "{name}");
        }
        assert!(is_name(&normalized("IQN.1993-08.Org.Debian:01:ABC")));
    }

    #[test]
    fn texts_are_escaped() {
        for (text, name) in [
            ("seat-7.a", "seat-7.a"),
            ("Seat_7", ":53eat:5f7"),
            ("a:b", "a:3ab"),
        ] {
            assert_eq!(escaped(text), name);
            assert_eq!(unescaped(name).as_deref(), Some(text));
        }
        // One text has one name only.
        for wrong in [":61", ":5F7", ":5", ":", "A", "_", ":+5", ":é", ":ff"] {
            assert_eq!(unescaped(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn texts_come_back(text in "[ -~]{0,40}") {
            let name = escaped(&text);
            prop_assert!(name.chars().all(|c| is_plain(c) || c == ':'));
            prop_assert_eq!(unescaped(&name), Some(text));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,40}") {
            let _ = (unescaped(&text), is_name(&text));
        }
    }
}
