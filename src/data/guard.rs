//! Copies out of a file map that survive the file being cut.
//!
//! Touching a mapped page that the file no longer has raises SIGBUS, which ends the process. [`copy`] says in
//! thread-local memory which bytes it is about to read; the handler puts an empty page where the fault is, if it is
//! one of these bytes, and notes it, and `copy` reports it. Any other SIGBUS goes where it would have gone before.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence};

/// What the thread is copying at the moment.
#[derive(Clone, Copy)]
struct Copying {
    /// Addresses.
    start: usize,
    end: usize,
    /// A page was missing.
    faulted: bool,
}

const IDLE: Copying = Copying {
    start: 0,
    end: 0,
    faulted: false,
};

thread_local! {
    // Constant and without a destructor: plain memory of the thread, which a signal handler may touch.
    static COPYING: Cell<Copying> = const { Cell::new(IDLE) };
}

/// The handler before ours, and the size of a page.
static BEFORE: OnceLock<(libc::sigaction, usize)> = OnceLock::new();

/// Some of the bytes are no longer in the file; the map now holds zeros in their place and must not be used again.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing;

/// Copies mapped bytes.
///
/// # Errors
/// [`Missing`]; `out` then holds anything.
pub fn copy(mapped: &[u8], out: &mut [u8]) -> Result<(), Missing> {
    assert_eq!(mapped.len(), out.len());
    install();
    let start = mapped.as_ptr() as usize;
    COPYING.set(Copying {
        start,
        end: start + mapped.len(),
        faulted: false,
    });
    // The compiler must see the copy between the two accesses: the handler reads and writes what they do.
    compiler_fence(Ordering::SeqCst);
    // SAFETY: both are valid for their equal length, and an exclusive borrow overlaps nothing.
    unsafe { std::ptr::copy_nonoverlapping(mapped.as_ptr(), out.as_mut_ptr(), out.len()) };
    compiler_fence(Ordering::SeqCst);
    if COPYING.replace(IDLE).faulted {
        Err(Missing)
    } else {
        Ok(())
    }
}

fn install() {
    BEFORE.get_or_init(|| {
        // SAFETY: a zeroed sigaction is a valid value, both pointers are valid, and the handler has the signature
        // that SA_SIGINFO asks for. The old action is read first, so that the handler finds it from its first call.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut before);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_bus_error as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
            (before, libc::sysconf(libc::_SC_PAGESIZE).max(1) as usize)
        }
    });
}

/// Only calls functions that are safe in a signal handler: mmap, sigaction, atomic loads.
extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let address = unsafe { (*info).si_addr() } as usize;
    let copying = COPYING.get();
    let before = BEFORE.get();
    if let Some((_, page)) = before
        && (copying.start..copying.end).contains(&address)
    {
        let start = (address / page * page) as *mut libc::c_void;
        let (protection, flags) = (
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
        );
        // SAFETY: the page belongs to the map that this thread is copying from, whose owner is borrowed meanwhile; the
        // page had no content any more.
        if unsafe { libc::mmap(start, *page, protection, flags, -1, 0) } != libc::MAP_FAILED {
            COPYING.set(Copying {
                faulted: true,
                ..copying
            });
            return;
        }
    }
    // SAFETY: the old action is called as its flags say, or put back so that the fault happens again under it.
    unsafe {
        match before {
            Some((old, _)) if old.sa_flags & libc::SA_SIGINFO != 0 && old.sa_sigaction > libc::SIG_IGN => {
                type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
                let handler: Handler = std::mem::transmute(old.sa_sigaction as *const ());
                handler(signal, info, context);
            }
            Some((old, _)) => {
                libc::sigaction(signal, old, std::ptr::null_mut());
            }
            None => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_file_is_an_error_and_not_a_signal() {
        let file = tempfile::tempfile().unwrap();
        // Larger than any page size in use.
        let (page, pages) = (64 << 10, 4);
        std::io::Write::write_all(&mut &file, &vec![7; page * pages]).unwrap();
        // SAFETY: the file is private to this test, and what is read after the cut goes through `copy`.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        let mut out = vec![0; page + 2];
        assert_eq!(copy(&map[page - 1..2 * page + 1], &mut out), Ok(()));
        assert!(out.iter().all(|&b| b == 7));
        file.set_len(1).unwrap();
        assert_eq!(copy(&map[page - 1..2 * page + 1], &mut out), Err(Missing));
        // Threads are told apart.
        let other =
            std::thread::scope(|scope| scope.spawn(|| copy(&map[3 * page..], &mut vec![0; page])).join());
        assert_eq!(other.unwrap(), Err(Missing));
        assert_eq!(copy(&[1, 2], &mut out[..2]), Ok(()));
        assert_eq!(out[..2], [1, 2]);
    }
}
