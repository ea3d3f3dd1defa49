//! Where a daemon is: `unix:PATH` or `https://HOST:PORT`.

use std::{fmt, path::PathBuf, str::FromStr};

/// The address of a daemon's API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket on this machine.
    Unix(PathBuf),
    /// TLS over TCP: `HOST:PORT`.
    Https(String),
}

/// A text that is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not the address of a daemon: write unix:PATH or https://HOST:PORT")]
pub struct EndpointError {
    /// What was written.
    pub text: String,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let error = || EndpointError {
            text: text.chars().take(256).collect(),
        };
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty())
                .then(|| Self::Unix(path.into()))
                .ok_or_else(error);
        }
        let host = text.strip_prefix("https://").ok_or_else(error)?;
        let host = host.strip_suffix('/').unwrap_or(host);
        let plain = host
            .chars()
            .all(|c| !c.is_whitespace() && c != '/' && c != '@');
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(name, port)| !name.is_empty() && port.parse::<u16>().is_ok());
        (plain && has_port)
            .then(|| Self::Https(host.to_owned()))
            .ok_or_else(error)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Https(host) => write!(f, "https://{host}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_written() {
        for text in [
            "unix:/run/rootstock/api.sock",
            "unix:api.sock",
            "https://lab.example:8443",
            "https://[::1]:8443",
        ] {
            assert_eq!(text.parse::<Endpoint>().expect(text).to_string(), text);
        }
        for bad in [
            "",
            "unix:",
            "/run/api.sock",
            "http://x:1",
            "https://x",
            "https://x:99999",
            "https://u@x:1",
            "https://x:1/y",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
