//! How the layers of a configuration become one, and where each value came from.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    path::{Path, PathBuf},
};

use rootstock_iscsi::name::is_name;
use toml::{Table, Value};

use super::{CONFIG_FILE, Config, ISCSI_SESSIONS_MAX, IscsiConfig, NBD_CONNECTIONS_MAX};

/// How a key is written in an environment variable or a flag.
#[derive(Clone, Copy)]
enum Kind {
    /// As it is.
    Text,
    /// A number.
    Number,
    /// `true` or `false`.
    Flag,
    /// Several, with commas between them.
    List,
    /// Tables, which only the file can hold.
    Tables,
}

const KEYS: &[(&str, Kind)] = &[
    ("data", Kind::Text),
    ("api.listen", Kind::List),
    ("api.tls_cert", Kind::Text),
    ("api.tls_key", Kind::Text),
    ("nbd.listen", Kind::List),
    ("nbd.tls", Kind::Text),
    ("nbd.connections_max", Kind::Number),
    ("iscsi.listen", Kind::List),
    ("iscsi.prefix", Kind::Text),
    ("iscsi.sessions_max", Kind::Number),
    ("iscsi.sessions_per_address_max", Kind::Number),
    ("store.cache_bytes", Kind::Text),
    ("store.pack_bytes", Kind::Text),
    ("store.scrub_rate_bytes", Kind::Text),
    ("store.recipe_load_percent", Kind::Number),
    ("store.gc_interval_minutes", Kind::Number),
    ("store.import_idle_days", Kind::Number),
    ("log.filter", Kind::Text),
    ("log.format", Kind::Text),
    ("boot.interfaces", Kind::List),
    ("boot.http_port", Kind::Number),
    ("boot.https_port", Kind::Number),
    ("boot.nbd_port", Kind::Number),
    ("boot.swarm_port", Kind::Number),
    ("boot.agent", Kind::Text),
    ("boot.files", Kind::List),
    ("boot.plugins", Kind::Text),
    ("boot.installers", Kind::Text),
    ("boot.plain_orders", Kind::Flag),
    ("boot.time_zone", Kind::Text),
    ("network", Kind::Tables),
];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was asked for cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not understood. The message has the line.
    #[error("the configuration {} is wrong: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which line.
        message: String,
    },
    /// A flag or an environment variable is not understood.
    #[error("{origin} is wrong: {message}")]
    Value {
        /// Which.
        origin: Origin,
        /// What is wrong.
        message: String,
    },
    /// Values that do not go together.
    #[error("{0}")]
    Together(String),
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// A value from a flag.
#[derive(Debug, Clone)]
pub struct Override {
    /// The flag: `--data`.
    pub flag: &'static str,
    /// The key it sets: `data`.
    pub key: &'static str,
    /// What was written; lists with commas.
    pub value: String,
}

/// What a configuration is made of.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The file that was asked for; without it [`CONFIG_FILE`], if there is one.
    pub file: Option<PathBuf>,
    /// The environment's variables; the relevant ones begin with `ROOTSTOCK_`.
    pub environment: BTreeMap<String, String>,
    /// Flags.
    pub flags: Vec<Override>,
}

/// A configuration, and where each of its values came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// By key.
    pub origins: BTreeMap<&'static str, Origin>,
}

impl Layers {
    /// Reads the file and lays the layers over each other.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file's line, the variable or the flag.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let mut table = Table::new();
        let mut origins: BTreeMap<_, _> = KEYS
            .iter()
            .map(|(key, _)| (*key, Origin::Default))
            .collect();
        if let Some((path, text)) = self.read_file()? {
            table = parse_file(&path, &text)?;
            for (key, _) in KEYS {
                if get(&table, key).is_some() {
                    origins.insert(key, Origin::File(path.clone()));
                }
            }
        }
        for (key, kind) in KEYS {
            let variable = variable_of(key);
            if let Some(text) = self.environment.get(&variable) {
                let origin = Origin::Environment(variable);
                lay(&mut table, key, *kind, text, &origin)?;
                origins.insert(key, origin);
            }
        }
        for flag in &self.flags {
            let known = KEYS.iter().find(|(key, _)| *key == flag.key);
            let origin = Origin::Flag(flag.flag);
            let Some((key, kind)) = known else {
                let message = format!("there is no setting '{}'", flag.key);
                return Err(ConfigError::Value { origin, message });
            };
            lay(&mut table, key, *kind, &flag.value, &origin)?;
            origins.insert(key, origin);
        }
        let config: Config = Value::Table(table)
            .try_into()
            .map_err(|error: toml::de::Error| ConfigError::Together(error.to_string()))?;
        check(&config)?;
        Ok(Loaded { config, origins })
    }

    fn read_file(&self) -> Result<Option<(PathBuf, String)>, ConfigError> {
        let path = self.file.as_deref().unwrap_or(Path::new(CONFIG_FILE));
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some((path.to_owned(), text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.file.is_none() => {
                Ok(None)
            }
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }
}

impl Loaded {
    /// Each value and where it came from, in the form of the file: what
    /// `--show-config` prints.
    #[must_use]
    pub fn show(&self) -> String {
        let table = Table::try_from(&self.config).unwrap_or_default();
        let mut text = String::new();
        for (key, _) in KEYS {
            let value = get(&table, key).map_or_else(|| "(none)".to_owned(), ToString::to_string);
            let origin = &self.origins[key];
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key} = {value}  # {origin}");
        }
        text
    }
}

/// The environment variable of a key: `ROOTSTOCK_STORE_CACHE_BYTES`.
fn variable_of(key: &str) -> String {
    format!("ROOTSTOCK_{}", key.replace('.', "_").to_uppercase())
}

fn parse_file(path: &Path, text: &str) -> Result<Table, ConfigError> {
    let wrong = |error: toml::de::Error| ConfigError::File {
        path: path.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    };
    // Typed first: this is what finds unknown keys, with their line.
    toml::from_str::<Config>(text).map_err(wrong)?;
    toml::from_str(text).map_err(wrong)
}

fn lay(
    table: &mut Table,
    key: &'static str,
    kind: Kind,
    text: &str,
    origin: &Origin,
) -> Result<(), ConfigError> {
    let wrong = |message: String| ConfigError::Value {
        origin: origin.clone(),
        message,
    };
    let value = match kind {
        Kind::Text => Value::String(text.to_owned()),
        Kind::Number => {
            let number = text.trim().parse();
            Value::Integer(number.map_err(|_| wrong(format!("'{text}' is not a number")))?)
        }
        Kind::Flag => {
            let flag = text.trim().parse();
            Value::Boolean(flag.map_err(|_| wrong(format!("'{text}' is not true or false")))?)
        }
        Kind::Tables => {
            return Err(wrong(format!(
                "[[{key}]] can only be written in the configuration file"
            )));
        }
        Kind::List => {
            let parts = text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty());
            Value::Array(parts.map(|part| Value::String(part.to_owned())).collect())
        }
    };
    // Alone, so that the error is this value's and nobody else's.
    let mut alone = Table::new();
    set(&mut alone, key, value.clone());
    Value::Table(alone)
        .try_into::<Config>()
        .map_err(|error| wrong(error.message().to_owned()))?;
    set(table, key, value);
    Ok(())
}

fn get<'a>(table: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        Some((section, key)) => table.get(section)?.get(key),
        None => table.get(key),
    }
}

fn set(table: &mut Table, key: &str, value: Value) {
    let Some((section, key)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return;
    };
    let section = table
        .entry(section)
        .or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        section.insert(key.to_owned(), value);
    }
}

fn check_iscsi(config: &IscsiConfig) -> Result<(), ConfigError> {
    let together = |text: &str| Err(ConfigError::Together(text.to_owned()));
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    // The rest is for the volume's name.
    let prefix = &config.prefix;
    let good = prefix.starts_with("iqn.")
        && prefix.len() <= 128
        && prefix.chars().all(fits)
        && is_name(prefix);
    if !prefix.is_empty() && !good {
        return together(
            "iscsi.prefix is not the beginning of an iSCSI name: write iqn.YEAR-MONTH.DOMAIN, the domain's parts in reverse",
        );
    }
    for count in [config.sessions_max, config.sessions_per_address_max] {
        if count == 0 || count > ISCSI_SESSIONS_MAX {
            return together(
                "iscsi.sessions_max or iscsi.sessions_per_address_max is out of bounds: 1 to 16384",
            );
        }
    }
    Ok(())
}

/// What single values cannot show.
fn check(config: &Config) -> Result<(), ConfigError> {
    let together = |text: &str| Err(ConfigError::Together(text.to_owned()));
    if config.api.listen.is_empty() {
        return together("api.listen is empty: nobody could reach the daemon");
    }
    if config.api.tls_cert.is_some() != config.api.tls_key.is_some() {
        return together("api.tls_cert and api.tls_key go together: set both, or none");
    }
    if config.nbd.connections_max == 0 || config.nbd.connections_max > NBD_CONNECTIONS_MAX {
        return together("nbd.connections_max is out of bounds: 1 to 65536");
    }
    check_iscsi(&config.iscsi)?;
    if !(1 << 20..=1 << 30).contains(&config.store.pack_bytes) {
        return together("store.pack_bytes is out of bounds: 1M to 1G");
    }
    if config.store.cache_bytes < 8 << 20 {
        return together("store.cache_bytes is too small: at least 8M");
    }
    if config.store.recipe_load_percent > 100 {
        return together("store.recipe_load_percent is above 100: it is a part of one processor");
    }
    if config.store.import_idle_days == 0 {
        return together("store.import_idle_days is 0: imports would expire at once");
    }
    super::boot::check(&config.boot, &config.network)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(file: Option<&str>, environment: &[(&str, &str)], flags: Vec<Override>) -> Layers {
        let dir = tempfile::tempdir().expect("a directory").keep();
        let path = dir.join("rootstock.toml");
        std::fs::write(&path, file.unwrap_or_default()).expect("writes");
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Layers {
            file: Some(path),
            environment: environment.iter().map(pair).collect(),
            flags,
        }
    }

    fn error(layers: &Layers) -> String {
        let text = layers.load().expect_err("is wrong").to_string();
        let path = layers.file.as_ref().expect("a file").display().to_string();
        text.replace(&path, "FILE")
    }

    #[test]
    fn a_layer_covers_those_below_it() {
        let file = "data = '/srv'\n[store]\ncache_bytes = '1G'\n[log]\nfilter = 'debug'\n";
        let environment = [
            ("ROOTSTOCK_LOG_FILTER", "warn"),
            ("ROOTSTOCK_NBD_LISTEN", "[::]:10809, unix:/n.sock"),
            ("ROOTSTOCK_API", "of the client"),
        ];
        let flag = Override {
            flag: "--data",
            key: "data",
            value: "/tmp/x".to_owned(),
        };
        let layers = layers(Some(file), &environment, vec![flag]);
        let loaded = layers.load().expect("loads");
        let path = layers.file.as_ref().expect("a file").display().to_string();
        insta::assert_snapshot!(loaded.show().replace(&path, "FILE"), @r#"
        data = "/tmp/x"  # flag --data
        api.listen = ["unix:/run/rootstock/api.sock"]  # default
        api.tls_cert = (none)  # default
        api.tls_key = (none)  # default
        nbd.listen = ["[::]:10809", "unix:/n.sock"]  # environment ROOTSTOCK_NBD_LISTEN
        nbd.tls = "off"  # default
        nbd.connections_max = 4096  # default
        iscsi.listen = []  # default
        iscsi.prefix = ""  # default
        iscsi.sessions_max = 1024  # default
        iscsi.sessions_per_address_max = 256  # default
        store.cache_bytes = 1073741824  # file FILE
        store.pack_bytes = 16777216  # default
        store.scrub_rate_bytes = 8388608  # default
        store.recipe_load_percent = 50  # default
        store.gc_interval_minutes = 60  # default
        store.import_idle_days = 7  # default
        log.filter = "warn"  # environment ROOTSTOCK_LOG_FILTER
        log.format = "text"  # default
        boot.interfaces = ["auto"]  # default
        boot.http_port = 8480  # default
        boot.https_port = 8481  # default
        boot.nbd_port = 8482  # default
        boot.swarm_port = 8486  # default
        boot.agent = (none)  # default
        boot.files = []  # default
        boot.plugins = "/etc/rootstock/plugins.d"  # default
        boot.installers = "/etc/rootstock/installers"  # default
        boot.plain_orders = false  # default
        boot.time_zone = (none)  # default
        network = []  # default
        "#);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let unknown = error(&layers(
            Some("data = '/srv'\n[api]\nlisen = []\n"),
            &[],
            vec![],
        ));
        insta::assert_snapshot!(unknown, @r"
        the configuration FILE is wrong: TOML parse error at line 3, column 1
          |
        3 | lisen = []
          | ^^^^^
        unknown field `lisen`, expected one of `listen`, `tls_cert`, `tls_key`
        ");
        let variable = error(&layers(
            None,
            &[("ROOTSTOCK_STORE_CACHE_BYTES", "lots")],
            vec![],
        ));
        insta::assert_snapshot!(variable, @"environment ROOTSTOCK_STORE_CACHE_BYTES is wrong: 'lots' is not a size: write bytes or a number with K, M, G, T (powers of 1024), such as 20G");
        let flag = Override {
            flag: "--api",
            key: "api.listen",
            value: "http://x:1".to_owned(),
        };
        insta::assert_snapshot!(error(&layers(None, &[], vec![flag])), @"flag --api is wrong: 'http://x:1' is not an address: write unix:PATH or https://HOST:PORT");
        let half = error(&layers(Some("[api]\ntls_cert = 'x'\n"), &[], vec![]));
        insta::assert_snapshot!(half, @"api.tls_cert and api.tls_key go together: set both, or none");
    }

    #[test]
    fn a_file_that_was_asked_for_must_exist() {
        let layers = Layers {
            file: Some("/nonexistent/rootstock.toml".into()),
            ..Layers::default()
        };
        assert!(matches!(layers.load(), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn every_key_is_shown_and_no_other_exists() {
        let mut shown: Vec<String> = KEYS.iter().map(|(key, _)| (*key).to_owned()).collect();
        let mut config = Config::default();
        config.api.tls_cert = Some("c".into());
        config.api.tls_key = Some("k".into());
        config.boot.agent = Some("a".into());
        config.boot.time_zone = Some("UTC".into());
        let table = Table::try_from(&config).expect("serializes");
        let mut keys = Vec::new();
        for (name, value) in table {
            match value {
                Value::Table(section) => {
                    keys.extend(section.keys().map(|key| format!("{name}.{key}")));
                }
                _ => keys.push(name),
            }
        }
        shown.sort();
        keys.sort();
        assert_eq!(shown, keys);
    }
}
