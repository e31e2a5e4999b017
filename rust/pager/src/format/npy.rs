//! The header of an .npy file, versions 1.0 to 3.0: a magic string, a length, and a Python literal.
//!
//! The literal is read by a parser of exactly what NumPy writes there; nothing is evaluated.

use std::path::Path;

use super::{DType, MAX_DIMENSIONS, bytes_of, fault, quoted};
use crate::Result;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// The longest header that is read. NumPy itself stops at 10 000 bytes unless it is told to trust a file.
pub const MAX_HEADER: u64 = 1 << 20;

/// Bytes that tell how long the header is.
pub const PREFIX: usize = 12;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyInfo {
    /// Element type.
    pub dtype: DType,
    /// Sizes of the dimensions.
    pub shape: Vec<u64>,
    /// Whether the first index runs fastest.
    pub fortran: bool,
    /// First byte of the values, counted from the start of the file.
    pub begin: u64,
    /// One past their last byte.
    pub end: u64,
}

/// Bytes of the whole header, from the first [`PREFIX`] (or all there are) of a file of `file_size` bytes.
pub fn header_size(head: &[u8], file_size: u64, path: &Path) -> Result<u64> {
    if head.len() < 10 || !head.starts_with(MAGIC) {
        return fault(path, "expected an .npy file, which begins with \\x93NUMPY and a version");
    }
    let (start, length) = match (head[6], head[7]) {
        (1, 0) => (10, u64::from(u16::from_le_bytes([head[8], head[9]]))),
        (2 | 3, 0) => match head.get(8..12) {
            Some(&[a, b, c, d]) => (12, u64::from(u32::from_le_bytes([a, b, c, d]))),
            _ => return fault(path, format!("the file ends after {file_size} bytes, inside its header")),
        },
        (major, minor) => {
            return fault(path, format!("expected .npy version 1.0, 2.0 or 3.0, got {major}.{minor}"));
        }
    };
    if length > MAX_HEADER {
        return fault(path, format!("expected an .npy header of at most {MAX_HEADER} bytes, got {length}"));
    }
    if start + length > file_size {
        return fault(
            path,
            format!(
                "expected {} bytes of header, the file ends after {file_size}: it was cut",
                start + length
            ),
        );
    }
    Ok(start + length)
}

/// Reads a header: the first [`header_size`] bytes of a file of `file_size` bytes. More bytes than the array
/// needs are no error: NumPy appends arrays to one another.
///
/// # Errors
/// [`crate::Error::Format`] also for what is valid and not supported: structured types, strings, objects, dates,
/// and values in big-endian order.
pub fn parse(header: &[u8], file_size: u64, path: &Path) -> Result<NpyInfo> {
    let size = header_size(header, file_size, path)?;
    if size != header.len() as u64 {
        return fault(path, format!("expected the {size} bytes of the header, got {}", header.len()));
    }
    let start = if header[6] == 1 { 10 } else { 12 };
    let Ok(text) = std::str::from_utf8(&header[start..]) else {
        return fault(path, "expected an .npy header in UTF-8, got other bytes");
    };
    let fields = match Literal::new(text).header() {
        Ok(fields) => fields,
        Err(what) => return fault(path, format!("damaged .npy header: {what}")),
    };
    let dtype = match dtype_of(&fields.descr) {
        Ok(dtype) => dtype,
        Err(what) => return fault(path, what),
    };
    let Some(bytes) = bytes_of(dtype, &fields.shape) else {
        return fault(path, format!("{:?} of {dtype} is no size that an array can have", fields.shape));
    };
    let Some(end) = size.checked_add(bytes).filter(|&end| end <= file_size) else {
        return fault(
            path,
            format!(
                "{:?} of {dtype} ends at byte {}, the file has {file_size}: it was cut",
                fields.shape,
                u128::from(size) + u128::from(bytes)
            ),
        );
    };
    Ok(NpyInfo { dtype, shape: fields.shape, fortran: fields.fortran, begin: size, end })
}

/// The type that a `descr` names, or why there is none.
fn dtype_of(descr: &Descr) -> std::result::Result<DType, String> {
    let Descr::Simple(descr) = descr else {
        return Err("structured dtypes are not supported: save each field as an array of its own".into());
    };
    if let Some(dtype) = DType::all().find(|dtype| dtype.npy() == Some(descr.as_str())) {
        return Ok(dtype);
    }
    let (order, kind) = match descr.char_indices().nth(1) {
        Some((at, _)) => descr.split_at(at),
        None => ("", descr.as_str()),
    };
    // What NumPy makes of bfloat16 that was loaded and saved again without ml_dtypes.
    if descr == "|V2" {
        return Ok(DType::Bf16);
    }
    // Order means nothing for one byte, and "=" is this machine's.
    let same = |wanted: &&DType| wanted.npy().is_some_and(|npy| &npy[1..] == kind && *wanted != &DType::Bf16);
    let all: Vec<DType> = DType::all().collect();
    match (order, all.iter().find(same)) {
        ("<" | "|" | "=", Some(&dtype)) if order == "=" || dtype.bits() == 8 => Ok(dtype),
        (">", Some(&dtype)) if dtype.bits() == 8 => Ok(dtype),
        (">", Some(dtype)) => Err(format!(
            "the values are {dtype} in big-endian order ({}), expected little-endian; rewrite the file with \
             numpy.save(path, a.astype(a.dtype.newbyteorder('<')))",
            quoted(descr)
        )),
        _ => Err(format!("dtype {} is not supported: expected booleans, integers or floats", quoted(descr))),
    }
}

// The literal ------------------------------------------------------------------------------------------------

enum Descr {
    Simple(String),
    Structured,
}

struct Fields {
    descr: Descr,
    fortran: bool,
    shape: Vec<u64>,
}

type Parsed<T> = std::result::Result<T, String>;

/// A reader of `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }` with any spaces and order of keys.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text }
    }

    fn header(mut self) -> Parsed<Fields> {
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        self.expect('{')?;
        while !self.take('}') {
            let key = self.string()?;
            self.expect(':')?;
            let twice = match key {
                "descr" if self.peek() == Some('[') => {
                    // The rest of the header is of no interest: such a file is refused, and that is why.
                    return Ok(Fields { descr: Descr::Structured, fortran: false, shape: Vec::new() });
                }
                "descr" => descr.replace(self.string()?.to_owned()).is_some(),
                "fortran_order" => fortran.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.shape()?).is_some(),
                other => return Err(format!("unknown key {}", quoted(other))),
            };
            if twice {
                return Err(format!("key {key:?} occurs twice"));
            }
            if !self.take(',') {
                self.expect('}')?;
                break;
            }
        }
        if !self.rest.trim().is_empty() {
            return Err(format!("expected nothing after the dictionary, got {}", quoted(self.rest.trim())));
        }
        let missing = |key| format!("key '{key}' is missing");
        Ok(Fields {
            descr: Descr::Simple(descr.ok_or_else(|| missing("descr"))?),
            fortran: fortran.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }

    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
        self.rest.chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let there = self.peek() == Some(wanted);
        if there {
            self.rest = &self.rest[wanted.len_utf8()..];
        }
        there
    }

    fn expect(&mut self, wanted: char) -> Parsed<()> {
        if self.take(wanted) {
            return Ok(());
        }
        Err(format!("expected '{wanted}', got {}", quoted(self.rest)))
    }

    /// A string without escapes: NumPy's descriptions need none.
    fn string(&mut self) -> Parsed<&'a str> {
        let quote = match self.peek() {
            Some(quote @ ('\'' | '"')) => quote,
            _ => return Err(format!("expected a string, got {}", quoted(self.rest))),
        };
        let body = &self.rest[1..];
        let Some(end) = body.find(quote) else {
            return Err("a string does not end".into());
        };
        if body[..end].contains(['\\', '\n']) {
            return Err(format!("expected a string without escapes, got {}", quoted(&body[..end])));
        }
        self.rest = &body[end + 1..];
        Ok(&body[..end])
    }

    fn boolean(&mut self) -> Parsed<bool> {
        self.peek();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(format!("expected True or False, got {}", quoted(self.rest)))
    }

    fn shape(&mut self) -> Parsed<Vec<u64>> {
        self.expect('(')?;
        let mut shape = Vec::new();
        while !self.take(')') {
            if shape.len() == MAX_DIMENSIONS {
                return Err(format!("a shape has more than {MAX_DIMENSIONS} dimensions"));
            }
            shape.push(self.number()?);
            // "(3)" is a number in brackets, no tuple.
            if !self.take(',') {
                if shape.len() == 1 {
                    return Err("expected a comma after the only size of a shape".into());
                }
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }

    fn number(&mut self) -> Parsed<u64> {
        self.peek();
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        let Ok(value) = digits.parse::<u64>() else {
            return Err(format!("expected a size below 2^64, got {}", quoted(self.rest)));
        };
        // Python 2 wrote long numbers as 3L.
        self.rest = rest.strip_prefix('L').unwrap_or(rest);
        Ok(value)
    }
}

// Writing --------------------------------------------------------------------------------------------------

/// The header of an array, of which the values begin at a multiple of `align` bytes (a power of two of at least
/// 64, as NumPy aligns them).
///
/// Equal alignment gives headers of equal size for shapes of usual length, so that one can be written over
/// another when an array grows.
///
/// # Errors
/// [`crate::Error::Format`] for a type that .npy has not, or a shape that no array can have;
/// [`crate::Error::Argument`] for another alignment.
pub fn header(dtype: DType, shape: &[u64], fortran: bool, align: u64, path: &Path) -> Result<Vec<u8>> {
    if !align.is_power_of_two() || !(64..=1 << 15).contains(&align) {
        return Err(crate::Error::Argument {
            what: "align",
            expected: "a power of two from 64 to 32768 bytes".into(),
            got: align.to_string(),
        });
    }
    let Some(descr) = dtype.npy() else {
        return fault(path, format!(".npy has no {dtype}; safetensors has"));
    };
    if shape.len() > MAX_DIMENSIONS || bytes_of(dtype, shape).is_none() {
        return fault(path, format!("{shape:?} of {dtype} is no size that an array can have"));
    }
    let sizes: Vec<String> = shape.iter().map(u64::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    let order = if fortran { "True" } else { "False" };
    let dict =
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({}{comma}), }}", sizes.join(", "));
    // At most 64 sizes of 20 digits: always far below the 65 535 bytes of version 1.0.
    let size = (10 + dict.len() + 1).next_multiple_of(align as usize);
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[1, 0]);
    out.extend_from_slice(&((size - 10) as u16).to_le_bytes());
    out.extend_from_slice(dict.as_bytes());
    out.resize(size - 1, b' ');
    out.push(b'\n');
    Ok(out)
}

#[cfg(test)]
mod tests;
