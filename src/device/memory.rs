//! Device memory as the engine sees it: flat arenas of bytes, and spans of them.

use bytemuck::Pod;

use super::Device;

/// Every region of an arena starts at a multiple of this many bytes.
pub const ALIGN: usize = 256;

/// A number as it is stored in device memory.
pub trait Element: Pod + Send + Sync + PartialOrd + std::fmt::Debug + 'static {
    /// Exact.
    fn to_f64(self) -> f64;
    /// Rounds to nearest.
    fn from_f64(value: f64) -> Self;
}

impl Element for f32 {
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Element for f64 {
    fn to_f64(self) -> f64 {
        self
    }
    fn from_f64(value: f64) -> Self {
        value
    }
}

impl Element for half::bf16 {
    fn to_f64(self) -> f64 {
        half::bf16::to_f64(self)
    }
    fn from_f64(value: f64) -> Self {
        half::bf16::from_f64(value)
    }
}

/// A place in some arena: what a plan holds before (and after) the arena exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Region {
    /// Bytes from the start of the arena, a multiple of [`ALIGN`].
    pub offset: usize,
    /// Length in bytes; the space up to the next multiple of [`ALIGN`] is padding.
    pub bytes: usize,
}

impl Region {
    /// The region's place in `arena`.
    pub fn of<A>(self, arena: &A) -> Span<'_, A> {
        Span {
            arena,
            offset: self.offset,
            bytes: self.bytes,
        }
    }

    /// First byte behind the region.
    pub fn end(self) -> usize {
        self.offset + self.bytes
    }
}

/// Lays regions one behind the other.
#[derive(Debug, Default)]
pub struct Layout {
    bytes: usize,
}

impl Layout {
    /// The next region of `bytes` bytes.
    pub fn push(&mut self, bytes: usize) -> Region {
        let region = Region {
            offset: self.bytes,
            bytes,
        };
        self.bytes += bytes.next_multiple_of(ALIGN);
        region
    }

    /// Bytes laid out so far: the arena's size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// An operand: a run of bytes in an arena. Spans are `Copy` and carry no mutability, since planned operands of one
/// call may share an arena. Two operands of a call, one of them written, never overlap: the planner checks that once,
/// and the device lends slices under that promise.
pub struct Span<'a, A> {
    pub arena: &'a A,
    /// Bytes from the start of the arena.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

impl<A> Clone for Span<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A> Copy for Span<'_, A> {}

impl<'a, A> Span<'a, A> {
    /// `bytes` bytes from `offset` on. Panics when that leaves the span: a planning error.
    pub fn slice(self, offset: usize, bytes: usize) -> Span<'a, A> {
        assert!(
            offset + bytes <= self.bytes,
            "bytes {offset}..{} of a span of {}",
            offset + bytes,
            self.bytes
        );
        Span {
            arena: self.arena,
            offset: self.offset + offset,
            bytes,
        }
    }
}

/// An operand of device `D`.
pub type Mem<'a, D> = Span<'a, <D as Device>::Arena>;
