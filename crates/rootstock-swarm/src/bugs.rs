//! Mistakes that a test makes on purpose: the simulator's checks have to find them.

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// What is passed on is sent whole before it is checked.
    SendsUnchecked,
    /// Whoever does not answer is waited for.
    WaitsForEver,
    /// Every member asks heads by itself, and heads send it.
    OwnsAll,
    /// Heads send whatever they are asked for.
    SendsAll,
}

#[cfg(test)]
thread_local! {
    static MADE: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Runs `work` with a mistake.
#[cfg(test)]
pub(crate) fn with<T>(bug: Bug, work: impl FnOnce() -> T) -> T {
    MADE.set(Some(bug));
    let done = work();
    MADE.set(None);
    done
}

/// Whether this mistake is made.
#[cfg(test)]
pub(crate) fn made(bug: Bug) -> bool {
    MADE.get() == Some(bug)
}

/// No mistake is made outside tests.
#[cfg(not(test))]
pub(crate) const fn made(_: Bug) -> bool {
    false
}
