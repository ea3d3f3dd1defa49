//! Text that is drawn over itself on a terminal, as often as it changes.

use std::{fmt::Write as _, io::Write as _};

/// The size of a terminal that does not tell, such as a serial line.
const SIZE_DEFAULT: Size = Size {
    rows: 24,
    columns: 80,
};

/// How much there is room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Lines.
    pub(crate) rows: usize,
    /// Characters in a line.
    pub(crate) columns: usize,
}

/// The terminal at standard output. What was on it before stays above the text.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    drawn: Option<Drawn>,
}

/// What stands on the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drawn {
    lines: usize,
    size: Size,
}

impl Screen {
    /// The room for a text: the last line is the cursor's.
    pub(crate) fn room() -> Size {
        let size = size();
        Size {
            rows: size.rows.saturating_sub(1).max(1),
            ..size
        }
    }

    /// Draws `lines` over those that were drawn before. What there is no room
    /// for is left out.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(crate) fn draw(&mut self, lines: &[String]) -> anyhow::Result<()> {
        let room = Self::room();
        let text = frame(self.drawn, room, lines);
        self.drawn = Some(Drawn {
            lines: lines.len().min(room.rows),
            size: room,
        });
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

fn size() -> Size {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => Size {
            rows: size.ws_row.into(),
            columns: size.ws_col.into(),
        },
        _ => SIZE_DEFAULT,
    }
}

/// Up to the first line, each line anew to its end, nothing below (ECMA-48: CUU,
/// EL, ED). A line that is longer than the terminal is cut: one that wraps could
/// not be drawn over. A terminal of another size has wrapped already, and is
/// cleared (CUP, ED).
fn frame(before: Option<Drawn>, room: Size, lines: &[String]) -> String {
    let mut text = match before {
        Some(drawn) if drawn.size != room => "\x1b[H\x1b[2J".to_owned(),
        Some(Drawn { lines: 0, .. }) | None => String::new(),
        Some(drawn) => format!("\x1b[{}A", drawn.lines),
    };
    for line in lines.iter().take(room.rows) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\r{}\x1b[K", cut(line, room.columns));
    }
    text.push_str("\x1b[J");
    text
}

fn cut(line: &str, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line.to_owned();
    }
    let mut cut: String = line.chars().take(columns.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Size = Size {
        rows: 3,
        columns: 8,
    };

    fn shown(before: Option<(usize, Size)>, lines: &[&str]) -> String {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let before = before.map(|(lines, size)| Drawn { lines, size });
        frame(before, ROOM, &lines).escape_debug().to_string()
    }

    #[test]
    fn frames_replace_one_another() {
        let narrow = Size { columns: 7, ..ROOM };
        let cases = [
            (None, vec!["one"], r"\rone\u{1b}[K\n\u{1b}[J"),
            (
                Some((1, ROOM)),
                vec!["two"],
                r"\u{1b}[1A\rtwo\u{1b}[K\n\u{1b}[J",
            ),
            (Some((0, ROOM)), vec![], r"\u{1b}[J"),
            (
                Some((2, narrow)),
                vec!["a"],
                r"\u{1b}[H\u{1b}[2J\ra\u{1b}[K\n\u{1b}[J",
            ),
            (None, vec!["12345678"], r"\r12345678\u{1b}[K\n\u{1b}[J"),
            (None, vec!["123456789"], r"\r1234567…\u{1b}[K\n\u{1b}[J"),
            (
                None,
                vec!["1", "2", "3", "4"],
                r"\r1\u{1b}[K\n\r2\u{1b}[K\n\r3\u{1b}[K\n\u{1b}[J",
            ),
        ];
        for (before, lines, expected) in cases {
            assert_eq!(shown(before, &lines), expected, "{before:?} {lines:?}");
        }
    }
}
