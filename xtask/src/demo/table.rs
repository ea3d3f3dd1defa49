//! A table that changes in its place on a terminal, and lines where there is none.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;

/// Where tables begin, below the headings of steps.
const INDENT: &str = "        ";
/// Between two columns.
const GAP: &str = "  ";

/// A column: its title, its width, and the side its text stands at.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    title: &'static str,
    width: usize,
    side: Side,
}

impl Column {
    /// Text, from the left.
    pub(crate) const fn left(title: &'static str, width: usize) -> Self {
        Self {
            title,
            width,
            side: Side::Left,
        }
    }

    /// Numbers, from the right.
    pub(crate) const fn right(title: &'static str, width: usize) -> Self {
        Self {
            title,
            width,
            side: Side::Right,
        }
    }
}

/// Where the text of a column stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

/// A row: its cells, and what is worth a line of its own when it changes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) cells: Vec<String>,
    pub(crate) news: String,
}

/// A table that is shown again and again.
pub(crate) struct LiveTable {
    columns: &'static [Column],
    place: Place,
    shown: Vec<Row>,
}

/// What the table is shown on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is drawn over what was drawn before.
    Terminal,
    /// A row is a line when it has news.
    Lines,
}

impl LiveTable {
    /// A table of these columns on standard output.
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        let place = if io::stdout().is_terminal() {
            Place::Terminal
        } else {
            Place::Lines
        };
        Self {
            columns,
            place,
            shown: Vec::new(),
        }
    }

    /// Shows these rows, which are as many each time.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn show(&mut self, rows: Vec<Row>) -> Result<()> {
        let text = match self.place {
            Place::Terminal => self.redrawn(&rows),
            Place::Lines => self.news(&rows),
        };
        self.shown = rows;
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Up to the title, then each line anew to its end (ECMA-48: CUU, EL).
    fn redrawn(&self, rows: &[Row]) -> String {
        let mut text = String::new();
        if !self.shown.is_empty() {
            text.push_str(&format!("\x1b[{}A", self.shown.len() + 1));
        }
        let lines = rows.iter().map(|row| line(self.columns, &row.cells));
        for line in std::iter::once(title(self.columns)).chain(lines) {
            text.push_str(&format!("\r{line}\x1b[K\n"));
        }
        text
    }

    fn news(&self, rows: &[Row]) -> String {
        let mut text = String::new();
        if self.shown.is_empty() {
            text.push_str(&format!("{}\n", title(self.columns)));
        }
        for (place, row) in rows.iter().enumerate() {
            let before = self.shown.get(place);
            if before.is_none_or(|before| before.news != row.news) {
                text.push_str(&format!("{}\n", line(self.columns, &row.cells)));
            }
        }
        text
    }
}

/// Prints a table that does not change.
pub(crate) fn print(columns: &[Column], rows: &[Vec<String>]) {
    println!("{}", title(columns));
    for row in rows {
        println!("{}", line(columns, row));
    }
}

fn title(columns: &[Column]) -> String {
    let titles: Vec<String> = columns.iter().map(|column| column.title.into()).collect();
    line(columns, &titles)
}

/// A longer cell is cut: a line that wraps could not be drawn over.
fn line(columns: &[Column], cells: &[String]) -> String {
    let cell = |(column, cell): (&Column, &String)| {
        let width = column.width;
        let cut: String = cell.chars().take(width).collect();
        match column.side {
            Side::Left => format!("{cut:<width$}"),
            Side::Right => format!("{cut:>width$}"),
        }
    };
    let cells: Vec<String> = columns.iter().zip(cells).map(cell).collect();
    format!("{INDENT}{}", cells.join(GAP)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 2] = [Column::left("name", 6), Column::right("size", 5)];

    fn row(name: &str, size: &str, news: &str) -> Row {
        Row {
            cells: vec![name.to_owned(), size.to_owned()],
            news: news.to_owned(),
        }
    }

    fn table(place: Place, shown: Vec<Row>) -> LiveTable {
        LiveTable {
            columns: &COLUMNS,
            place,
            shown,
        }
    }

    #[test]
    fn a_terminal_is_drawn_over() {
        let rows = [row("a", "1", ""), row("too-long-a-name", "12", "")];
        let first = table(Place::Terminal, Vec::new()).redrawn(&rows);
        assert_eq!(
            first,
            "\r        name     size\x1b[K\n\
             \r        a           1\x1b[K\n\
             \r        too-lo     12\x1b[K\n"
        );
        let again = table(Place::Terminal, rows.to_vec()).redrawn(&rows);
        assert_eq!(again, format!("\x1b[3A{first}"));
    }

    #[test]
    fn lines_are_news() {
        let before = [row("a", "1", "on"), row("b", "1", "on")];
        let first = table(Place::Lines, Vec::new()).news(&before);
        assert_eq!(
            first,
            "        name     size\n        a           1\n        b           1\n"
        );
        let after = [row("a", "2", "on"), row("b", "2", "off")];
        let news = table(Place::Lines, before.to_vec()).news(&after);
        assert_eq!(news, "        b           2\n");
    }
}
