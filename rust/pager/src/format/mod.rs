//! File formats: pure functions from the bytes of a header to a description and back. No file is touched here.

pub mod checksums;
mod dtype;
pub mod npy;
pub mod safetensors;

use std::path::Path;

pub use dtype::DType;

use crate::{Error, Result};

/// NumPy's largest number of dimensions, and ours.
pub const MAX_DIMENSIONS: usize = 64;

/// An error about a file's content.
fn fault<T>(path: &Path, what: impl Into<String>) -> Result<T> {
    Err(Error::Format { path: path.to_owned(), fault: what.into() })
}

/// Bytes of an array, or `None` where that is no number of bytes that an array can have (NumPy counts in
/// signed 64-bit numbers and ignores zeros), or no whole number of them.
pub(crate) fn bytes_of(dtype: DType, shape: &[u64]) -> Option<u64> {
    let mut bits = u128::from(dtype.bits());
    for &size in shape {
        bits = bits.checked_mul(u128::from(size.max(1)))?;
        if bits > 8 * i64::MAX as u128 {
            return None;
        }
    }
    if shape.contains(&0) {
        return Some(0);
    }
    (bits % 8 == 0).then_some((bits / 8) as u64)
}

/// Text from a file as an error message shows it: escaped, and not longer than a line.
fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}
