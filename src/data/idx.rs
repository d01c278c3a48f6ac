//! IDX files, the form of MNIST and its successors: two zero bytes, element type, number of dimensions, each dimension
//! as a big-endian u32, then the values. Plain or gzip, told apart by content. Only unsigned bytes are read.

use crate::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek};
use std::path::Path;

/// Deflate cannot expand a byte to more than this: a longer content is a lie in the header.
const MOST_EXPANSION: u64 = 1032;

/// Content of an IDX file.
#[derive(Clone, Debug, PartialEq)]
pub struct Idx {
    pub shape: Vec<usize>,
    /// Row-major; as many as the shape says.
    pub values: Vec<u8>,
}

/// Reads a file of unsigned bytes with `dimensions` dimensions, all above 0.
///
/// Memory stays below what the file really holds, whatever its header says.
///
/// # Errors
/// `Io`, or `Data` naming the field that is wrong.
pub fn read(path: &Path, dimensions: usize) -> Result<Idx> {
    let io = |e| Error::io(path, e);
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut start = Vec::new();
    Read::by_ref(&mut file)
        .take(2)
        .read_to_end(&mut start)
        .map_err(io)?;
    file.rewind().map_err(io)?;
    if start == [0x1f, 0x8b] {
        let most = size.saturating_mul(MOST_EXPANSION);
        parse(path, MultiGzDecoder::new(BufReader::new(file)), dimensions, most)
    } else {
        parse(path, BufReader::new(file), dimensions, size)
    }
}

fn parse(path: &Path, mut content: impl Read, dimensions: usize, most: u64) -> Result<Idx> {
    let refuse = |what: &str, expected: String, found: String| {
        let hint = "an IDX file of unsigned bytes is expected, plain or gzip, as MNIST comes in";
        Err(Error::data(path, what, expected, found, hint))
    };
    // A stream that ends early or does not decode is a fault of the data; the rest is the system's.
    let read_error = |e: std::io::Error| match e.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::InvalidInput | ErrorKind::InvalidData => Error::data(
            path,
            "content",
            "a whole file",
            e.to_string(),
            "the file is damaged or cut short",
        ),
        _ => Error::io(path, e),
    };
    let mut magic = [0; 4];
    content.read_exact(&mut magic).map_err(read_error)?;
    let expected = [0, 0, 8, dimensions as u8];
    if magic != expected {
        return refuse(
            "magic number",
            format!("{expected:02x?}"),
            format!("{magic:02x?}"),
        );
    }
    let (mut shape, mut total) = (Vec::new(), 1u64);
    for dimension in 0..dimensions {
        let mut word = [0; 4];
        content.read_exact(&mut word).map_err(read_error)?;
        let length = u32::from_be_bytes(word);
        total = total.saturating_mul(length.into());
        if length == 0 {
            return refuse(&format!("dimension {dimension}"), "at least 1".into(), "0".into());
        }
        shape.push(length as usize);
    }
    if total > most {
        return refuse(
            "values",
            format!("at most {most} in this file"),
            format!("{shape:?} = {total}"),
        );
    }
    // One byte more than announced tells a longer file; reading to its end also checks gzip's own checksum.
    let mut values = Vec::new();
    content
        .take(total + 1)
        .read_to_end(&mut values)
        .map_err(read_error)?;
    match values.len() as u64 {
        found if found == total => Ok(Idx { shape, values }),
        found if found > total => refuse("values", format!("{total} for shape {shape:?}"), "more".into()),
        found => refuse(
            "values",
            format!("{total} for shape {shape:?}"),
            found.to_string(),
        ),
    }
}
