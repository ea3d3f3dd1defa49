//! Results as people and programs read them: plain tables, lines and JSON.

use comfy_table::{CellAlignment, Table, presets};
use jiff::{Timestamp, tz::TimeZone};
use rootstock_core::units::HumanBytes;
use serde::Serialize;

/// Prints a document as JSON.
///
/// # Errors
/// When it cannot be written, such as to a closed pipe.
pub(crate) fn json(document: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(document)?)
}

/// Prints a document as one line of JSON.
///
/// # Errors
/// As [`json`].
pub(crate) fn json_line(document: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(document)?)
}

/// Prints a line. A reader that went away, such as `head`, is no error.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// A column: its title, and whether it holds numbers.
pub(crate) enum Column {
    /// Text, from the left.
    Text(&'static str),
    /// Numbers, from the right.
    Number(&'static str),
}

/// Rows below titles, with nothing drawn around them.
pub(crate) fn table(columns: &[Column], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| match column {
        Column::Text(title) | Column::Number(title) => *title,
    }));
    table.add_rows(rows);
    for (place, column) in columns.iter().enumerate() {
        if let Some(shape) = table.column_mut(place) {
            shape.set_padding((0, 2));
            if matches!(column, Column::Number(_)) {
                shape.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    trimmed(&table.to_string())
}

/// Names and values below one another.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name:width$}  {value}"))
        .collect();
    lines.join("\n")
}

/// Bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

/// A count and its noun: `1 chunk`, `3 chunks`.
pub(crate) fn count(count: u64, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}

/// A time of the API in the reader's time zone, to the minute.
pub(crate) fn time(text: &str) -> String {
    local(text, &TimeZone::system())
}

fn local(text: &str, zone: &TimeZone) -> String {
    match text.parse::<Timestamp>() {
        Ok(time) => time
            .to_zoned(zone.clone())
            .strftime("%Y-%m-%d %H:%M")
            .to_string(),
        Err(_) => text.to_owned(),
    }
}

/// A value, or a dash where there is none.
pub(crate) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn trimmed(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    #[test]
    fn tables_are_plain() {
        let columns = [Column::Text("NAME"), Column::Number("SIZE")];
        let rows = vec![
            vec!["lab".to_owned(), bytes(8 << 30)],
            vec!["a-longer-name".to_owned(), bytes(512)],
        ];
        assert_snapshot!(table(&columns, rows), @r"
        NAME              SIZE
        lab            8.59 GB
        a-longer-name    512 B
        ");
        assert_snapshot!(fields(&[("size", bytes(1 << 20)), ("by", "me".to_owned())]), @r"
        size  1.05 MB
        by    me
        ");
    }

    #[test]
    fn times_are_local() {
        assert_eq!(
            local("2026-03-01T10:20:30.5Z", &TimeZone::UTC),
            "2026-03-01 10:20"
        );
        assert_eq!(local("whenever", &TimeZone::UTC), "whenever");
    }
}
