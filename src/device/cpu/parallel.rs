//! Sharing work among threads. Who does which piece varies from run to run; what a piece is never does.

use std::sync::Mutex;

use pulp::Arch;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// Below this many elementary operations (about 20 µs) waking a thread costs more than it saves.
const WORTH_WAKING: usize = 1 << 16;

/// Elementary operations that m·n·depth multiply-adds of a GEMM take the time of.
pub(super) fn gemm_work(products: usize) -> usize {
    products / 16
}

/// The calling thread and a pool of helpers.
pub(super) struct Threads {
    count: usize,
    arch: Arch,
    /// `count − 1` threads; None for one thread.
    helpers: Option<ThreadPool>,
}

impl Threads {
    pub(super) fn new(count: Option<usize>, arch: Arch) -> Result<Self> {
        let count = count
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get));
        if count == 0 {
            return Err(Error::config(
                "threads",
                "at least 1",
                "0",
                "leave the option out to use every core",
            ));
        }
        let helpers = match count {
            1 => None,
            _ => Some(
                ThreadPoolBuilder::new()
                    .num_threads(count - 1)
                    .thread_name(|i| format!("l2b-cpu-{i}"))
                    .build()
                    .map_err(|error| {
                        Error::device("cpu threads", error.to_string(), "ask for fewer threads")
                    })?,
            ),
        };
        Ok(Threads { count, arch, helpers })
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// `f` of every item, compiled for the device's instruction set as far as it is inlined; `work` is the elementary operations of them all.
    pub(super) fn each<I: Send>(
        &self,
        work: usize,
        items: impl Iterator<Item = I> + Send,
        f: impl Fn(I) + Sync,
    ) {
        let workspaces = std::iter::repeat_n((), self.count);
        self.each_with(
            work,
            workspaces,
            items,
            #[inline(always)]
            |(), item| f(item),
        );
    }

    /// The same with workspaces, each held by one thread at a time. There is at least one, and no more threads work than
    /// there are workspaces.
    pub(super) fn each_with<W: Send, I: Send>(
        &self,
        work: usize,
        workspaces: impl Iterator<Item = W>,
        items: impl Iterator<Item = I> + Send,
        f: impl Fn(&mut W, I) + Sync,
    ) {
        let mut workspaces = workspaces.take(self.count);
        let mut own = workspaces.next().expect("a workspace for the calling thread");
        let Some(helpers) = self.helpers.as_ref().filter(|_| work >= WORTH_WAKING) else {
            return items.for_each(|item| self.arch.dispatch(|| f(&mut own, item)));
        };
        let queue = Mutex::new(items);
        // A closure, so that the lock is let go before the item is worked on.
        let next = || queue.lock().expect("no piece of work panicked").next();
        helpers.in_place_scope(|scope| {
            for mut workspace in workspaces {
                let (f, next) = (&f, &next);
                scope.spawn(move |_| {
                    while let Some(item) = next() {
                        self.arch.dispatch(|| f(&mut workspace, item));
                    }
                });
            }
            while let Some(item) = next() {
                self.arch.dispatch(|| f(&mut own, item));
            }
        });
    }
}
