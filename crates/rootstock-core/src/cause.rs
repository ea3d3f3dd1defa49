//! Errors as one line of text.

use std::error::Error;

/// An error and its causes, for a log line or a message.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outside")]
    struct Outer(#[source] std::fmt::Error);

    #[test]
    fn causes_follow_in_order() {
        let text = chain(&Outer(std::fmt::Error));
        assert_eq!(text, format!("outside: {}", std::fmt::Error));
    }
}
