//! The daemon's configuration: flag over environment over file over default.

use std::{fmt, path::PathBuf, str::FromStr};

use rootstock_core::units::parse_size_bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

mod boot;
mod layers;

pub(crate) use boot::is_domain;
pub use boot::{
    BootConfig, BootInterface, BootMode, NetworkConfig, POOL_ADDRESSES_MAX, Pool, Subnet,
    UnknownPolicy,
};
pub use layers::{ConfigError, Layers, Loaded, Origin, Override};

/// Where the configuration is looked for when nobody says.
pub const CONFIG_FILE: &str = "/etc/rootstock/rootstock.toml";

/// The most NBD connections at once that may be configured.
pub const NBD_CONNECTIONS_MAX: u32 = 65_536;

/// The most iSCSI sessions at once that may be configured.
pub const ISCSI_SESSIONS_MAX: u32 = 16_384;

/// The configuration of a daemon. Every key of the file is one of these fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The directory of all state.
    pub data: PathBuf,
    /// The HTTP API.
    pub api: ApiConfig,
    /// The NBD server.
    pub nbd: NbdConfig,
    /// The iSCSI target.
    pub iscsi: IscsiConfig,
    /// The chunk store.
    pub store: StoreConfig,
    /// The log.
    pub log: LogConfig,
    /// Booting machines.
    pub boot: BootConfig,
    /// The networks that they are in.
    pub network: Vec<NetworkConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: "/var/lib/rootstock".into(),
            api: ApiConfig::default(),
            nbd: NbdConfig::default(),
            iscsi: IscsiConfig::default(),
            store: StoreConfig::default(),
            log: LogConfig::default(),
            boot: BootConfig::default(),
            network: Vec::new(),
        }
    }
}

/// `[api]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// Where the API listens: `unix:PATH` and `https://HOST:PORT`.
    pub listen: Vec<ApiAddress>,
    /// Certificate chain (PEM) for `https`; made when empty.
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    pub tls_key: Option<PathBuf>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: vec![ApiAddress::Unix("/run/rootstock/api.sock".into())],
            tls_cert: None,
            tls_key: None,
        }
    }
}

/// `[nbd]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NbdConfig {
    /// Where it listens: `HOST:PORT` and `unix:PATH`; nowhere when empty.
    pub listen: Vec<NbdAddress>,
    /// Whether clients may or must use TLS, with the API's certificate.
    pub tls: NbdTls,
    /// The most connections at once.
    pub connections_max: u32,
}

impl Default for NbdConfig {
    fn default() -> Self {
        Self {
            listen: vec![NbdAddress::Tcp("127.0.0.1:10809".to_owned())],
            tls: NbdTls::Off,
            connections_max: 4096,
        }
    }
}

/// `[iscsi]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IscsiConfig {
    /// Where it listens: `HOST:PORT`; nowhere when empty.
    pub listen: Vec<TcpAddress>,
    /// What the names of targets begin with: `PREFIX:volume.NAME`; when empty, what
    /// is made of the site's key.
    pub prefix: String,
    /// The most sessions at once.
    pub sessions_max: u32,
    /// The most sessions at once from one address.
    pub sessions_per_address_max: u32,
}

impl Default for IscsiConfig {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            prefix: String::new(),
            sessions_max: 1024,
            sessions_per_address_max: 256,
        }
    }
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Memory for decompressed chunks.
    #[serde(with = "size")]
    pub cache_bytes: u64,
    /// Size at which a pack is sealed.
    #[serde(with = "size")]
    pub pack_bytes: u64,
    /// How fast the scrub reads, bytes per second; with 0 it runs only when it is
    /// started, as fast as the disk.
    #[serde(with = "size")]
    pub scrub_rate_bytes: u64,
    /// How much of one processor the making of recipes may take, in percent; 0
    /// makes none.
    pub recipe_load_percent: u32,
    /// Minutes between background collections; 0 turns them off.
    pub gc_interval_minutes: u32,
    /// Days after which an import that nobody continues is dropped.
    pub import_idle_days: u32,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 512 << 20,
            pack_bytes: 16 << 20,
            scrub_rate_bytes: 8 << 20,
            recipe_load_percent: 50,
            gc_interval_minutes: 60,
            import_idle_days: 7,
        }
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// What is logged: `info`, `debug`, `rootstock_server=debug,info`…
    pub filter: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// TLS on NBD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NbdTls {
    /// Not offered.
    Off,
    /// Offered (NBD_OPT_STARTTLS).
    Optional,
    /// Nothing is served without it.
    Required,
}

/// Where the API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiAddress {
    /// A Unix socket; whoever may open it is an administrator.
    Unix(PathBuf),
    /// HTTPS on `HOST:PORT`, with tokens.
    Https(String),
}

/// Where the NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

/// `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpAddress(pub String);

impl FromStr for TcpAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if is_host_port(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(AddressError {
            text: text.chars().take(200).collect(),
            what: "an address",
            expected: "HOST:PORT",
        })
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {what}: write {expected}")]
pub struct AddressError {
    text: String,
    what: &'static str,
    expected: &'static str,
}

impl FromStr for ApiAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let host = text
            .strip_prefix("https://")
            .map(|h| h.trim_end_matches('/'));
        match host.filter(|host| is_host_port(host)) {
            Some(host) => Ok(Self::Https(host.to_owned())),
            None => Err(AddressError {
                text: text.chars().take(200).collect(),
                what: "an address",
                expected: "unix:PATH or https://HOST:PORT",
            }),
        }
    }
}

impl FromStr for NbdAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        if is_host_port(text) {
            return Ok(Self::Tcp(text.to_owned()));
        }
        Err(AddressError {
            text: text.chars().take(200).collect(),
            what: "an address",
            expected: "HOST:PORT or unix:PATH",
        })
    }
}

/// Whether a text is `HOST:PORT`, with brackets around an IPv6 address.
fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    !host.is_empty()
        && (bracketed || !host.contains(':'))
        && !host.contains('/')
        && port.parse::<u16>().is_ok()
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Https(host) => write!(f, "https://{host}"),
        }
    }
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host) => f.write_str(host),
        }
    }
}

macro_rules! as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use as_text;

as_text!(ApiAddress);
as_text!(NbdAddress);
as_text!(TcpAddress);

/// Sizes are numbers of bytes, or texts such as `512M`.
mod size {
    use super::{Deserialize, Deserializer, Serializer, parse_size_bytes};

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a size: bytes, or a text such as \"512M\"")]
    enum Size {
        Bytes(u64),
        Text(String),
    }

    pub(super) fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(*bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        match Size::deserialize(deserializer)? {
            Size::Bytes(bytes) => Ok(bytes),
            Size::Text(text) => parse_size_bytes(&text).map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in [
            "unix:/run/a.sock",
            "https://0.0.0.0:7443",
            "https://[::1]:7443",
            "https://lab:0",
        ] {
            assert_eq!(text.parse::<ApiAddress>().expect(text).to_string(), text);
        }
        for bad in [
            "",
            "unix:",
            "http://a:1",
            "https://a",
            "https://a:x",
            "a:1",
            "https://::1:1",
        ] {
            assert!(bad.parse::<ApiAddress>().is_err(), "{bad}");
        }
        for text in ["unix:/run/a.sock", "0.0.0.0:10809", "[::]:10809"] {
            assert_eq!(text.parse::<NbdAddress>().expect(text).to_string(), text);
        }
        for bad in ["", "10809", ":10809", "a:99999", "nbd://a:1"] {
            assert!(bad.parse::<NbdAddress>().is_err(), "{bad}");
        }
    }
}
