//! The header of a safetensors file: eight bytes of length, then JSON, then the tensors without a gap.
//!
//! What is read is what the reference implementation reads, except that it may take one of two equal names;
//! that is an error here. What is written pads the JSON with trailing spaces, so that the tensors begin at a
//! multiple of a page, and puts `__pad` tensors where a gap would be: readers refuse gaps.

mod json;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::{DType, MAX_DIMENSIONS, bytes_of, fault, quoted};
use crate::{Error, Result};

/// The longest header that readers take, in bytes of JSON.
pub const MAX_HEADER: u64 = 100_000_000;

/// How the names of tensors begin that only fill a gap.
pub const PAD: &str = "__pad_";

const METADATA: &str = "__metadata__";
const LENGTH: u64 = 8;

/// One tensor: what it is, and which bytes of the file it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Sizes of the dimensions, in C order.
    pub shape: Vec<u64>,
    /// First byte, counted from the start of the file.
    pub begin: u64,
    /// One past the last byte.
    pub end: u64,
}

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Tensors in the file's order.
    pub tensors: Vec<TensorInfo>,
    /// `__metadata__`: text by name.
    pub metadata: BTreeMap<String, String>,
}

/// Bytes of the whole header, from the first eight (or all there are) of a file of `file_size` bytes.
pub fn header_size(head: &[u8], file_size: u64, path: &Path) -> Result<u64> {
    let Some(length) = head.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return fault(
            path,
            format!("expected a safetensors file, which has at least 10 bytes, got {file_size}"),
        );
    };
    if length > MAX_HEADER {
        return fault(
            path,
            format!(
                "expected a safetensors header of at most {MAX_HEADER} bytes, its length field says {length}"
            ),
        );
    }
    if length < 2 {
        return fault(path, format!("expected a header of at least 2 bytes (\"{{}}\"), got {length}"));
    }
    if LENGTH + length > file_size {
        return fault(
            path,
            format!(
                "expected {} bytes of header, the file ends after {file_size}: it was cut",
                LENGTH + length
            ),
        );
    }
    Ok(LENGTH + length)
}

/// Reads a header: the first [`header_size`] bytes of a file of `file_size` bytes.
pub fn parse(header: &[u8], file_size: u64, path: &Path) -> Result<Header> {
    let size = header_size(header, file_size, path)?;
    let json = match header.get(LENGTH as usize..size as usize) {
        Some(json) if size == header.len() as u64 => json,
        _ => return fault(path, format!("expected the {size} bytes of the header, got {}", header.len())),
    };
    if json.first() != Some(&b'{') {
        return fault(path, format!("expected a header that begins with '{{', got byte {:#04x}", json[0]));
    }
    let text = std::str::from_utf8(json).map_err(|error| Error::Format {
        path: path.to_owned(),
        fault: format!("expected a header in UTF-8, byte {} is not", LENGTH as usize + error.valid_up_to()),
    })?;
    let raw = json::read(text).map_err(|error| Error::Format {
        path: path.to_owned(),
        fault: format!("expected a header in JSON that describes tensors, but {error}"),
    })?;
    check(raw, size, file_size, path)
}

/// Turns offsets into bytes of the file and checks that they are in order, without gap or overlap.
fn check(mut raw: json::RawHeader, size: u64, file_size: u64, path: &Path) -> Result<Header> {
    raw.tensors.sort_by_key(|(_, tensor)| tensor.offsets);
    let mut tensors = Vec::with_capacity(raw.tensors.len());
    let mut at = 0;
    for (name, tensor) in raw.tensors {
        let called = quoted(&name);
        let Some(dtype) = DType::from_safetensors(&tensor.dtype) else {
            return fault(path, format!("tensor {called}: unknown dtype {}", quoted(&tensor.dtype)));
        };
        let (begin, end) = tensor.offsets;
        if end < begin {
            return fault(
                path,
                format!("tensor {called}: data_offsets end at {end}, before they begin at {begin}"),
            );
        }
        if begin != at {
            let what = if begin < at { "overlap the tensor before" } else { "leave a gap" };
            return fault(
                path,
                format!(
                    "tensor {called}: expected data_offsets that begin at {at}, got {begin}: they {what}"
                ),
            );
        }
        let Some(expected) = bytes_of(dtype, &tensor.shape) else {
            return fault(
                path,
                format!("tensor {called}: {:?} of {dtype} is no size that an array can have", tensor.shape),
            );
        };
        if expected != end - begin {
            return fault(
                path,
                format!(
                    "tensor {called}: {:?} of {dtype} has {expected} bytes, data_offsets say {}",
                    tensor.shape,
                    end - begin
                ),
            );
        }
        at = end;
        let Some(last) = end.checked_add(size).filter(|&last| last <= file_size) else {
            return fault(
                path,
                format!(
                    "tensor {called} ends at byte {}, the file has {file_size}: it was cut",
                    u128::from(end) + u128::from(size)
                ),
            );
        };
        tensors.push(TensorInfo { name, dtype, shape: tensor.shape, begin: size + begin, end: last });
    }
    if size + at != file_size {
        return fault(path, format!("expected a file of {} bytes by its header, got {file_size}", size + at));
    }
    Ok(Header { tensors, metadata: raw.metadata })
}

// Writing --------------------------------------------------------------------------------------------------

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Sizes of the dimensions.
    pub shape: Vec<u64>,
}

/// A header, and where it puts the tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The header's bytes, with which the file begins.
    pub header: Vec<u8>,
    /// All tensors in the file's order, those that fill gaps included.
    pub tensors: Vec<TensorInfo>,
    /// Bytes of the whole file.
    pub file_size: u64,
}

/// Lays out a file whose data begins at a multiple of `align` bytes, and so does every large tensor.
///
/// Tensors of at least `align` bytes come first, those that are multiples of `align` (which need no gap after
/// them) before the others; then the small ones, packed, larger elements first. Among equals the given order
/// stays, and `last` names a tensor that comes after all others. Elements are always aligned to their own size.
///
/// # Errors
/// [`Error::Format`] for names that cannot be told apart or are reserved, types that safetensors has not, a
/// header that would be too long; [`Error::Argument`] for an alignment that is no power of two.
pub fn layout(
    specs: &[Spec],
    metadata: &BTreeMap<String, String>,
    align: u64,
    last: Option<&str>,
    path: &Path,
) -> Result<Layout> {
    if !align.is_power_of_two() || !(1..=1 << 30).contains(&align) {
        return Err(Error::Argument {
            what: "align",
            expected: "a power of two from 1 to 1073741824 bytes".into(),
            got: align.to_string(),
        });
    }
    // Data that begins at a multiple of 8 is what the reference implementation writes.
    let align = align.max(8);
    let placed = place(specs, align, last, path)?;
    let json = to_json(&placed, metadata);
    let used = LENGTH + json.len() as u64;
    let size = used.next_multiple_of(align);
    if size - LENGTH > MAX_HEADER {
        return fault(
            path,
            format!("a header has at most {MAX_HEADER} bytes, these tensors need {}", size - LENGTH),
        );
    }
    let mut header = Vec::with_capacity(size as usize);
    header.extend_from_slice(&(size - LENGTH).to_le_bytes());
    header.extend_from_slice(json.as_bytes());
    header.resize(size as usize, b' ');
    let tensors: Vec<_> = (placed.into_iter())
        .map(|tensor| TensorInfo { begin: size + tensor.begin, end: size + tensor.end, ..tensor })
        .collect();
    let file_size = tensors.last().map_or(size, |tensor| tensor.end);
    Ok(Layout { header, tensors, file_size })
}

/// Gives every tensor its bytes, counted from the first byte of data.
fn place(specs: &[Spec], align: u64, last: Option<&str>, path: &Path) -> Result<Vec<TensorInfo>> {
    let mut seen = HashSet::new();
    let mut order = Vec::with_capacity(specs.len());
    for spec in specs {
        let called = quoted(&spec.name);
        if spec.name == METADATA || is_pad(&spec.name) {
            return fault(path, format!("a tensor cannot be called {called}: the format keeps that name"));
        }
        if !seen.insert(spec.name.as_str()) {
            return fault(path, format!("two tensors are called {called}"));
        }
        if spec.dtype.safetensors().is_none() {
            return fault(path, format!("tensor {called}: safetensors has no {}", spec.dtype));
        }
        if spec.shape.len() > MAX_DIMENSIONS {
            return fault(
                path,
                format!("tensor {called}: {} dimensions, at most {MAX_DIMENSIONS}", spec.shape.len()),
            );
        }
        let Some(bytes) = bytes_of(spec.dtype, &spec.shape) else {
            return fault(
                path,
                format!(
                    "tensor {called}: {:?} of {} is no size that an array can have",
                    spec.shape, spec.dtype
                ),
            );
        };
        let own = u64::from(spec.dtype.bits().div_ceil(8));
        let class = match bytes {
            _ if last == Some(spec.name.as_str()) => (3, 0),
            n if n >= align && n % align == 0 => (0, 0),
            n if n >= align => (1, 0),
            _ => (2, u64::MAX - own),
        };
        order.push((class, own, bytes, spec));
    }
    order.sort_by_key(|(class, ..)| *class);
    let mut placed = Vec::with_capacity(order.len());
    let (mut at, mut pads) = (0u64, 0);
    for (_, own, bytes, spec) in order {
        let step = if bytes >= align { align } else { own };
        // Sizes are below 2^63 each; what all of them need is checked as it grows.
        let begin = at.checked_next_multiple_of(step);
        let Some((begin, end)) = begin.and_then(|begin| Some((begin, begin.checked_add(bytes)?))) else {
            return fault(path, "the tensors have more than 2^64 bytes together");
        };
        if begin > at {
            let shape = vec![begin - at];
            placed.push(TensorInfo {
                name: format!("{PAD}{pads}"),
                dtype: DType::U8,
                shape,
                begin: at,
                end: begin,
            });
            pads += 1;
        }
        placed.push(TensorInfo {
            name: spec.name.clone(),
            dtype: spec.dtype,
            shape: spec.shape.clone(),
            begin,
            end,
        });
        at = end;
    }
    if at > i64::MAX as u64 - 2 * MAX_HEADER {
        return fault(path, format!("a file has at most 2^63 bytes, these tensors need {at}"));
    }
    Ok(placed)
}

/// Says whether a name is that of a tensor which only fills a gap.
pub fn is_pad(name: &str) -> bool {
    name.strip_prefix(PAD).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

fn to_json(tensors: &[TensorInfo], metadata: &BTreeMap<String, String>) -> String {
    use std::fmt::Write as _;
    // A string always has a JSON form: serde_json escapes what must be.
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let mut out = String::from("{");
    if !metadata.is_empty() {
        let all = serde_json::Value::from_iter(metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        let _ = write!(out, "\"{METADATA}\":{all}");
    }
    for tensor in tensors {
        let comma = if out.len() > 1 { "," } else { "" };
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let _ = write!(
            out,
            "{comma}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
            text(&tensor.name),
            tensor.dtype.safetensors().unwrap_or_default(),
            shape.join(","),
            tensor.begin,
            tensor.end
        );
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests;
