//! Host memory as arenas, and the one place that turns spans into slices.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr::NonNull;

use bytemuck::Pod;

use super::super::{ALIGN, Span};
use crate::{Error, Result};

/// A block of host memory, zeroed, its start aligned to [`ALIGN`].
pub struct Arena {
    /// What the allocator gave; `start` is the first aligned byte in it.
    block: NonNull<u8>,
    layout: Layout,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the block belongs to the arena alone; who may touch which bytes when is the promise of `Lend`.
unsafe impl Send for Arena {}
unsafe impl Sync for Arena {}

impl Arena {
    /// `bytes` zero bytes. Error::Device when the machine cannot give them.
    pub(super) fn new(bytes: usize) -> Result<Self> {
        // A large request is granted by the system long before there is memory behind it, and the process would be
        // killed at some later touch: ask first.
        let free = super::available::available();
        if free.is_some_and(|free| bytes > free) {
            return Err(out_of_memory(bytes, free));
        }
        // ALIGN spare bytes at the allocator's own alignment: only then do zeroed pages come untouched from the system.
        let layout = bytes
            .checked_add(ALIGN)
            .and_then(|bytes| Layout::from_size_align(bytes, 16).ok())
            .ok_or_else(|| out_of_memory(bytes, free))?;
        // SAFETY: the layout is not empty.
        let block =
            NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| out_of_memory(bytes, free))?;
        let skip = block.as_ptr().align_offset(ALIGN);
        // SAFETY: skip < ALIGN, and the block holds ALIGN bytes more than asked for.
        let start = unsafe { block.add(skip) };
        Ok(Arena {
            block,
            layout,
            start,
            bytes,
        })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; spans borrow the arena, so none is left.
        unsafe { dealloc(self.block.as_ptr(), self.layout) }
    }
}

fn out_of_memory(need: usize, free: Option<usize>) -> Error {
    let free = match free {
        Some(free) => format!("{free} free"),
        None => "free memory unknown".to_owned(),
    };
    Error::device(
        "cpu memory",
        format!("{need} bytes needed, {free}"),
        "use a smaller batch or network",
    )
}

/// The pieces, one behind the other, ← what `fill` writes into a room that holds them all.
pub(super) fn send(
    room: &mut [u8],
    pieces: &[Span<Arena>],
    fill: impl FnOnce(&mut [u8]) -> Result<()>,
) -> Result<()> {
    let (bytes, room_bytes) = (pieces.iter().map(|piece| piece.bytes).sum(), room.len());
    let room = room
        .get_mut(..bytes)
        .ok_or_else(|| Error::Internal(format!("{bytes} bytes through a room of {room_bytes}")))?;
    fill(room)?;
    let (mut lend, mut rest) = (Lend::new("send"), &*room);
    for &piece in pieces {
        let (head, tail) = rest.split_at(piece.bytes);
        lend.write::<u8>("piece", piece, piece.bytes)?
            .copy_from_slice(head);
        rest = tail;
    }
    Ok(())
}

/// What was fetched last: the first `used` bytes of the room.
pub struct Incoming {
    room: Vec<u8>,
    used: usize,
}

impl Incoming {
    pub(super) fn new(bytes: usize) -> Self {
        Incoming {
            room: vec![0; bytes],
            used: 0,
        }
    }

    /// The room ← the pieces, one behind the other.
    pub(super) fn fetch(&mut self, pieces: &[Span<Arena>]) -> Result<()> {
        let (bytes, room_bytes) = (pieces.iter().map(|piece| piece.bytes).sum(), self.room.len());
        if bytes > room_bytes {
            return Err(Error::Internal(format!(
                "{bytes} bytes through a room of {room_bytes}"
            )));
        }
        let (mut lend, mut rest) = (Lend::new("fetch"), &mut self.room[..]);
        for &piece in pieces {
            let (head, tail) = rest.split_at_mut(piece.bytes);
            head.copy_from_slice(lend.read::<u8>("piece", piece, piece.bytes)?);
            rest = tail;
        }
        self.used = bytes;
        Ok(())
    }

    pub(super) fn fetched(&self) -> &[u8] {
        &self.room[..self.used]
    }
}

/// Most operands that one call lends.
const OPERANDS: usize = 24;

/// Lends the operands of one call as slices, and refuses spans that leave their arena, have another length than the
/// call needs, or overlap where one of them is written.
///
/// Every call of the device makes exactly one `Lend`, and two calls that share written memory never run at once: the
/// engine's plan promises that (see `Span`). Both together make the slices sound.
pub(super) struct Lend {
    call: &'static str,
    lent: [(Range<usize>, bool); OPERANDS],
    count: usize,
}

impl Lend {
    pub(super) fn new(call: &'static str) -> Self {
        Lend {
            call,
            lent: [const { (0..0, false) }; OPERANDS],
            count: 0,
        }
    }

    /// `len` values to read; the span holds exactly these.
    pub(super) fn read<'a, P: Pod>(
        &mut self,
        what: &str,
        span: Span<'a, Arena>,
        len: usize,
    ) -> Result<&'a [P]> {
        let start = self.lend::<P>(what, span, len, false)?;
        // SAFETY: `lend` checked bounds, alignment and that no operand of this call writes here; the arena outlives
        // 'a, its bytes are initialised, and any bytes are a `Pod`.
        Ok(unsafe { std::slice::from_raw_parts(start.as_ptr(), len) })
    }

    /// `len` values to write; the span holds exactly these.
    pub(super) fn write<'a, P: Pod>(
        &mut self,
        what: &str,
        span: Span<'a, Arena>,
        len: usize,
    ) -> Result<&'a mut [P]> {
        let mut start = self.lend::<P>(what, span, len, true)?;
        // SAFETY: as in `read`; besides, no other operand of this call touches these bytes.
        Ok(unsafe { std::slice::from_raw_parts_mut(start.as_mut(), len) })
    }

    /// The first `len` values of a span that may be larger, to write.
    pub(super) fn scratch<'a, P: Pod>(&mut self, span: Span<'a, Arena>, len: usize) -> Result<&'a mut [P]> {
        let bytes = len * size_of::<P>();
        if bytes > span.bytes {
            return Err(self.refuse("scratch", format!("{} bytes, the call needs {bytes}", span.bytes)));
        }
        self.write("scratch", span.slice(0, bytes), len)
    }

    fn lend<P: Pod>(
        &mut self,
        what: &str,
        span: Span<Arena>,
        len: usize,
        written: bool,
    ) -> Result<NonNull<P>> {
        let end = span.offset.checked_add(span.bytes);
        if len.checked_mul(size_of::<P>()) != Some(span.bytes) {
            let size = size_of::<P>();
            return Err(self.refuse(
                what,
                format!("{} bytes, the call needs {len} values of {size}", span.bytes),
            ));
        }
        if end.is_none_or(|end| end > span.arena.bytes) || !span.offset.is_multiple_of(align_of::<P>()) {
            return Err(self.refuse(
                what,
                format!(
                    "{} bytes at {} do not fit an arena of {}",
                    span.bytes, span.offset, span.arena.bytes
                ),
            ));
        }
        // SAFETY: the offset lies in the arena.
        let start = unsafe { span.arena.start.add(span.offset) };
        let address = start.as_ptr() as usize;
        let range = address..address + span.bytes;
        for (other, other_written) in &self.lent[..self.count] {
            if (written || *other_written) && range.start < other.end && other.start < range.end {
                return Err(self.refuse(what, "it overlaps another operand of the call".to_owned()));
            }
        }
        self.lent[self.count] = (range, written);
        self.count += 1;
        Ok(start.cast())
    }

    fn refuse(&self, what: &str, detail: String) -> Error {
        Error::Internal(format!("{}: operand {what}: {detail}", self.call))
    }
}
