//! Doing several things at once, a bounded number of them at any time.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// Does `work` for every one of `items`, at most `at_once` of them at any time.
///
/// They begin in their order. What comes out is given to `take` as it comes, on the
/// caller's thread: one at a time, so that what it shows stays in one piece.
pub(crate) fn run<T: Sync, R: Send>(
    items: &[T],
    at_once: NonZeroUsize,
    work: impl Fn(&T) -> R + Sync,
    take: impl FnMut(R),
) {
    let next = AtomicUsize::new(0);
    let (results, taken) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..at_once.get().min(items.len()) {
            let (results, next, work) = (results.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if results.send(work(item)).is_err() {
                        return;
                    }
                }
            });
        }
        // The workers have their own: when they end, nothing comes any more.
        drop(results);
        taken.into_iter().for_each(take);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use rootstock_tests::wait;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn count(number: usize) -> NonZeroUsize {
        NonZeroUsize::new(number).unwrap()
    }

    #[test]
    fn every_item_is_done_once_and_no_more_than_allowed_at_any_time() {
        for (items, at_once) in [(0, 2), (1, 2), (2, 2), (50, 1), (50, 2), (50, 4), (3, 8)] {
            let items: Vec<usize> = (0..items).collect();
            let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let work = |item: &usize| {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                *item
            };
            let mut done = Vec::new();
            run(&items, count(at_once), work, |item| done.push(item));
            assert!(most.into_inner() <= at_once, "{items:?} {at_once}");
            done.sort_unstable();
            assert_eq!(done, items, "{at_once}");
        }
    }

    #[test]
    fn they_begin_in_their_order() {
        let items: Vec<usize> = (0..20).collect();
        let begun = Mutex::new(Vec::new());
        let work = |item: &usize| begun.lock().unwrap().push(*item);
        run(&items, count(1), work, |()| {});
        assert_eq!(begun.into_inner().unwrap(), items);
    }

    #[test]
    fn those_that_wait_for_one_another_meet() {
        let met = AtomicUsize::new(0);
        let work = |_: &()| {
            met.fetch_add(1, Ordering::SeqCst);
            wait::until("the other", LIMIT, || {
                Ok((met.load(Ordering::SeqCst) == 2).then_some(()))
            })
        };
        run(&[(), ()], count(2), work, |waited| waited.unwrap());
    }

    #[test]
    fn a_result_is_taken_while_others_are_worked_on() {
        let taken = AtomicUsize::new(0);
        let work = |is_first: &bool| {
            if *is_first {
                return Ok(());
            }
            wait::until("the first result", LIMIT, || {
                Ok((taken.load(Ordering::SeqCst) == 1).then_some(()))
            })
        };
        run(&[true, false], count(2), work, |result| {
            result.unwrap();
            taken.fetch_add(1, Ordering::SeqCst);
        });
    }
}
