//! Nodes as text: JSON, TOML, and CSV with a line for each network card.

use std::collections::BTreeMap;

use rootstock_api::{NodeCreate, NodeFormat, NodeSpec, ProblemCode, Setting, Settings};
use rootstock_core::{HostList, MacAddress};

use crate::http::ApiError;

/// Titles of a CSV file before those of the settings.
const TITLES: [&str; 5] = ["mac", "name", "profile", "uuid", "address"];

/// Writes nodes.
pub(crate) fn export(nodes: Vec<NodeSpec>, format: NodeFormat) -> Result<String, ApiError> {
    let failed =
        |error: &(dyn std::error::Error + 'static)| ApiError::internal("write nodes", error);
    match format {
        NodeFormat::Json => {
            let text = serde_json::to_string_pretty(&NodeCreate { nodes });
            text.map(|text| text + "\n").map_err(|error| failed(&error))
        }
        NodeFormat::Toml => toml::to_string(&NodeCreate { nodes }).map_err(|error| failed(&error)),
        NodeFormat::Csv => to_csv(&nodes).map_err(|error| failed(&error)),
    }
}

/// Reads nodes.
pub(crate) fn parse(text: &str, format: NodeFormat) -> Result<Vec<NodeSpec>, ApiError> {
    let refused = |error: &dyn std::fmt::Display| {
        let detail = format!("the list of nodes cannot be read: {error}");
        ApiError::new(ProblemCode::BadValue, detail)
            .with_hint("`rootstock node export` shows how it is written")
    };
    let nodes = match format {
        NodeFormat::Json => {
            serde_json::from_str::<NodeCreate>(text)
                .map_err(|error| refused(&error))?
                .nodes
        }
        NodeFormat::Toml => {
            toml::from_str::<NodeCreate>(text)
                .map_err(|error| refused(&error))?
                .nodes
        }
        NodeFormat::Csv => of_csv(text).map_err(|error| refused(&error))?,
    };
    let names = HostList::new(nodes.iter().map(|node| node.name.clone()));
    let names = names.map_err(|error| refused(&error))?;
    if names.len() != nodes.len() {
        return Err(refused(&"a name is there twice"));
    }
    Ok(nodes)
}

fn to_csv(nodes: &[NodeSpec]) -> Result<String, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let is_used = |setting: &&Setting| {
        nodes
            .iter()
            .any(|node| node.settings.text(**setting).is_some())
    };
    let settings: Vec<Setting> = Setting::ALL.iter().filter(is_used).copied().collect();
    let titles = settings.iter().map(|setting| setting.as_str());
    writer.write_record(TITLES.into_iter().chain(titles))?;
    for node in nodes {
        let shared = [
            node.name.to_string(),
            node.profile
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            node.uuid.clone().unwrap_or_default(),
            node.address
                .map(|address| address.to_string())
                .unwrap_or_default(),
        ];
        let values = settings.iter();
        let values = values.map(|setting| node.settings.text(*setting).unwrap_or_default());
        let rest: Vec<String> = shared.into_iter().chain(values).collect();
        let macs: Vec<String> = node.macs.iter().map(ToString::to_string).collect();
        let none = [String::new()];
        for mac in if macs.is_empty() {
            none.iter()
        } else {
            macs.iter()
        } {
            writer.write_record(std::iter::once(mac).chain(&rest))?;
        }
    }
    let bytes = writer
        .into_inner()
        .map_err(csv::IntoInnerError::into_error)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A line that is wrong.
#[derive(Debug, thiserror::Error)]
enum CsvError {
    #[error(transparent)]
    Csv(#[from] csv::Error),
    #[error("line {line}: {reason}")]
    Line { line: u64, reason: String },
    #[error("there is no column '{title}'")]
    Missing { title: &'static str },
    #[error("there is no column '{title}': there are {}, and the settings {}", TITLES.join(", "), settings())]
    Title { title: String },
}

fn settings() -> String {
    let names: Vec<_> = Setting::ALL
        .iter()
        .map(|setting| setting.as_str())
        .collect();
    names.join(", ")
}

/// What a column holds.
enum Column {
    Fixed(&'static str),
    Setting(Setting),
}

fn of_csv(text: &str) -> Result<Vec<NodeSpec>, CsvError> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(text.as_bytes());
    let columns = columns(reader.headers()?)?;
    let mut nodes: Vec<NodeSpec> = Vec::new();
    let mut places = BTreeMap::new();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let node =
            of_record(&columns, &record).map_err(|reason| CsvError::Line { line, reason })?;
        match places.get(&node.name) {
            None => {
                places.insert(node.name.clone(), nodes.len());
                nodes.push(node);
            }
            Some(place) => {
                let first: &mut NodeSpec = &mut nodes[*place];
                let macs = node.macs.clone();
                let same = NodeSpec {
                    macs: first.macs.clone(),
                    ..node
                };
                if same != *first {
                    let reason = format!("'{}' differs from its first line", same.name);
                    return Err(CsvError::Line { line, reason });
                }
                first.macs.extend(macs);
            }
        }
    }
    Ok(nodes)
}

fn columns(titles: &csv::StringRecord) -> Result<Vec<Column>, CsvError> {
    let column = |title: &str| {
        if let Some(fixed) = TITLES.into_iter().find(|fixed| *fixed == title) {
            return Ok(Column::Fixed(fixed));
        }
        title
            .parse()
            .map(Column::Setting)
            .map_err(|_| CsvError::Title {
                title: title.chars().take(80).collect(),
            })
    };
    let columns: Vec<Column> = titles.iter().map(column).collect::<Result<_, _>>()?;
    for title in ["mac", "name"] {
        let is_there = |column: &Column| matches!(column, Column::Fixed(fixed) if *fixed == title);
        if !columns.iter().any(is_there) {
            return Err(CsvError::Missing { title });
        }
    }
    Ok(columns)
}

fn of_record(columns: &[Column], record: &csv::StringRecord) -> Result<NodeSpec, String> {
    let mut macs: Vec<MacAddress> = Vec::new();
    let (mut name, mut profile, mut uuid, mut address) = (None, None, None, None);
    let mut settings = Settings::default();
    for (column, value) in columns.iter().zip(record) {
        if value.is_empty() {
            continue;
        }
        match column {
            Column::Fixed("mac") => macs.push(read(value)?),
            Column::Fixed("name") => name = Some(read(value)?),
            Column::Fixed("profile") => profile = Some(read(value)?),
            Column::Fixed("address") => address = Some(read(value)?),
            Column::Fixed(_) => uuid = Some(value.to_owned()),
            Column::Setting(setting) => {
                let set = settings.set_text(*setting, value);
                set.map_err(|error| error.to_string())?;
            }
        }
    }
    Ok(NodeSpec {
        name: name.ok_or("there is no name")?,
        macs,
        uuid,
        address,
        profile,
        settings,
    })
}

fn read<T: std::str::FromStr<Err: std::fmt::Display>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: T::Err| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Vec<NodeSpec> {
        let mut first = NodeSpec {
            name: "n1".parse().expect("a name"),
            macs: vec![
                MacAddress([2, 0, 0, 0, 0, 1]),
                MacAddress([2, 0, 0, 0, 0, 2]),
            ],
            uuid: None,
            address: Some("10.0.0.1".parse().expect("an address")),
            profile: Some("lab".parse().expect("a name")),
            settings: Settings::default(),
        };
        let set = first
            .settings
            .set_text(Setting::KernelArguments, "a=\"b,c\" quiet");
        set.expect("reads");
        let second = NodeSpec {
            name: "n2".parse().expect("a name"),
            macs: Vec::new(),
            uuid: None,
            address: None,
            profile: None,
            settings: Settings::default(),
        };
        vec![first, second]
    }

    #[test]
    fn texts_go_and_come_back() {
        for format in [NodeFormat::Json, NodeFormat::Toml, NodeFormat::Csv] {
            let text = export(nodes(), format).expect("writes");
            assert_eq!(parse(&text, format).expect("reads"), nodes(), "{text}");
        }
        let csv = export(nodes(), NodeFormat::Csv).expect("writes");
        insta::assert_snapshot!(csv, @r#"
        mac,name,profile,uuid,address,kernel_arguments
        02:00:00:00:00:01,n1,lab,,10.0.0.1,"a=""b,c"" quiet"
        02:00:00:00:00:02,n1,lab,,10.0.0.1,"a=""b,c"" quiet"
        ,n2,,,,
        "#);
    }

    #[test]
    fn mistakes_are_said_with_their_line() {
        for (text, said) in [
            ("mac\n", "no column 'name'"),
            ("mac,name,imge\n", "no column 'imge'"),
            (
                "mac,name\n02:00:00:00:00:01,n1\nx,n2\n",
                "line 3: 'x' is not a MAC",
            ),
            ("mac,name\n02:00:00:00:00:01,\n", "line 2: there is no name"),
            ("mac,name,mode\n,n1,ram\n,n1,\n", "line 3: 'n1' differs"),
            ("mac,name,mode\n,n1,thawed\n", "the modes are"),
            ("mac,name\n", "is empty"),
        ] {
            let error = parse(text, NodeFormat::Csv).expect_err(text).0.detail;
            assert!(error.contains(said), "{error}");
        }
        let twice = r#"{"nodes":[{"name":"n1"},{"name":"n1"}]}"#;
        let error = parse(twice, NodeFormat::Json).expect_err("twice").0.detail;
        assert!(error.contains("twice"), "{error}");
        assert!(parse("[[nodes]]\nname='n1'\nmac='x'\n", NodeFormat::Toml).is_err());
    }
}
