//! Shell patterns as `modules.alias` has them: `*`, `?`, `[a-f]`, `[!0]`.

/// Whether the whole of `text` fits `pattern` (POSIX.1-2017, XCU 2.13, without
/// locales and without a leading dot's special part, as `fnmatch(3)` with no flags).
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, t));
            p += 1;
            continue;
        }
        if let Some(used) = one(&pattern[p..], text[t]) {
            p += used;
            t += 1;
            continue;
        }
        let Some((after, at)) = star else {
            return false;
        };
        star = Some((after, at + 1));
        p = after;
        t = at + 1;
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// How much of the pattern fits this one byte; `None` when it does not fit.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => Some(1),
        b'[' => match set(pattern, byte) {
            Some((true, used)) => Some(used),
            Some((false, _)) => None,
            // Without an end it is an ordinary character.
            None => (byte == b'[').then_some(1),
        },
        b'\\' if pattern.len() > 1 => (pattern[1] == byte).then_some(2),
        own => (*own == byte).then_some(1),
    }
}

/// Whether a bracket expression holds the byte, and its length.
fn set(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let mut at = 1;
    let negated = matches!(pattern.get(at)?, b'!' | b'^');
    at += usize::from(negated);
    let first = at;
    let mut inside = false;
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && at > first {
            return Some((inside != negated, at + 1));
        }
        if pattern.get(at + 1) == Some(&b'-') && *pattern.get(at + 2)? != b']' {
            inside |= (low..=pattern[at + 2]).contains(&byte);
            at += 3;
        } else {
            inside |= low == byte;
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_fit_as_fnmatch_says() {
        for (pattern, text, fits) in [
            ("", "", true),
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbcd", false),
            ("*b*b*", "abab", true),
            ("v0000808[0-7]d*", "v00008086d1", true),
            ("v0000808[0-5]d*", "v00008086d1", false),
            ("[!a]x", "bx", true),
            ("[!a]x", "ax", false),
            ("[]a]", "]", true),
            ("[a-", "[a-", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    /// The definition, without the wit: exponential, for short texts.
    fn model(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(b'*'), _) => {
                model(&pattern[1..], text) || (!text.is_empty() && model(pattern, &text[1..]))
            }
            (Some(b'?'), Some(_)) => model(&pattern[1..], &text[1..]),
            (Some(p), Some(t)) if p == t => model(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab?*]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(matches(&pattern, &text), model(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn garbage_never_panics(pattern in ".{0,20}", text in ".{0,20}") {
            let _ = matches(&pattern, &text);
        }
    }
}
