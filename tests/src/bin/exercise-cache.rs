//! Writes a cache without end inside a guest, until its plug is pulled.

use std::env;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use rootstock_tests::exercise;

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [device, what, number] = &words[..] else {
        bail!("usage: exercise-cache DEVICE format|verify|run NUMBER");
    };
    let (path, number) = (Path::new(device), number.parse().context("a number")?);
    let say = |text: String| {
        let mut out = io::stdout();
        writeln!(out, "{text}").and_then(|()| out.flush())
    };
    match what.as_str() {
        "format" => {
            exercise::format(path)?;
            say("formatted.".to_owned())?;
        }
        "verify" => {
            let found = exercise::verify(path, 1, 0)?;
            say(format!("verified {found}."))?;
        }
        "run" => exercise::run(path, number, |kept| say(format!("kept {kept}.")))?,
        _ => bail!("format, verify or run"),
    }
    Ok(())
}
