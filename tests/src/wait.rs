//! Waiting for something to become true, within a limit.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::undo;

/// How often a condition outside this process is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Looks until `look` gives a value.
///
/// # Errors
/// When `look` fails, or when `limit` passes without a value; the message then
/// names `what` was waited for.
pub fn until<T>(what: &str, limit: Duration, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_at_intervals(POLL_INTERVAL, what, limit, look)
}

/// As [`until`], for what takes hours, or is costly to look at.
///
/// # Errors
/// As for [`until`].
pub fn until_at_intervals<T>(
    interval: Duration,
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        undo::stop_if_leaving();
        if let Some(value) = look()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what} did not happen within {} s", limit.as_secs());
        }
        thread::sleep(interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_or_names_what_did_not_come() {
        let mut looks = 0;
        let found = until("three looks", Duration::from_secs(60), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(found.unwrap(), 3);

        let error = until("the end of the world", Duration::ZERO, || Ok(None::<()>));
        let message = error.unwrap_err().to_string();
        assert_eq!(message, "the end of the world did not happen within 0 s");
    }
}
