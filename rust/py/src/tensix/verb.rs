//! Verbs as Python objects, and what they are made of.

use std::sync::atomic::AtomicBool;

use prunus_tensix::verbs::{CoreId, Verb as Asked};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::errors::misused;

/// A whole number from 0 to `MAX`.
pub(super) struct Whole<const MAX: u32>(pub(super) u32);

impl<'a, 'py, const MAX: u32> FromPyObject<'a, 'py> for Whole<MAX> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        // `__index__` of whatever has it; the error is made only where it is needed.
        match object.extract::<u32>() {
            Ok(value) if value <= MAX => Ok(Self(value)),
            Err(raised) if raised.is_instance_of::<PyTypeError>(object.py()) => Err(raised),
            _ => {
                let got = object.repr()?;
                Err(misused(object.py(), &format!("misused: expected 0 to {MAX}, got {got}")))
            }
        }
    }
}

pub(super) type Word = Whole<{ u32::MAX }>;
pub(super) type Byte = Whole<255>;
/// The number of a tile, and tiles of a block: products of them stay words.
pub(super) type Tile = Whole<65535>;
pub(super) type Dim = Whole<4095>;
/// Logical coordinates of a core.
pub(super) type At = (Whole<65535>, Whole<65535>);

impl<const MAX: u32> Whole<MAX> {
    pub(super) fn byte(&self) -> u8 {
        self.0 as u8
    }
}

/// The first and the last core of a rectangle: a `CoreRange`, or a pair.
pub(super) struct Rectangle(pub(super) At, pub(super) At);

impl<'a, 'py> FromPyObject<'a, 'py> for Rectangle {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let pair = match object.getattr_opt("first")? {
            Some(first) => (first.extract()?, object.getattr("last")?.extract()?),
            None => object.extract::<(At, At)>()?,
        };
        Ok(Self(pair.0, pair.1))
    }
}

/// Where the cores of a chip are.
pub(super) struct Cores {
    pub(super) chip: String,
    pub(super) x: Vec<u16>,
    pub(super) y: Vec<u16>,
}

impl Cores {
    /// The number of the core at logical coordinates.
    pub(super) fn number(&self, py: Python<'_>, x: u32, y: u32) -> PyResult<CoreId> {
        if x as usize >= self.x.len() || y as usize >= self.y.len() {
            return Err(misused(
                py,
                &format!("misused: core ({x}, {y}): {} has {} x {}", self.chip, self.x.len(), self.y.len()),
            ));
        }
        Ok((y as usize * self.x.len() + x as usize) as CoreId)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    L1 { x: u32, y: u32, address: u32 },
    Dram { buffer: u16, page: u32, offset: u32 },
}

/// A place that transfers read from or write to: in a core's L1, or in a page of a buffer in DRAM.
#[pyclass(frozen, eq, module = "prunus._core")]
#[derive(PartialEq, Eq)]
pub(crate) struct Place(pub(super) Where);

#[pymethods]
impl Place {
    /// The byte ``address`` of the L1 of the core at logical coordinates ``core``.
    #[staticmethod]
    pub(super) fn l1(core: At, address: Word) -> Self {
        Self(Where::L1 { x: core.0.0, y: core.1.0, address: address.0 })
    }

    /// The byte ``offset`` of a page of a buffer in DRAM.
    #[staticmethod]
    fn dram(buffer: Whole<65535>, page: Word, offset: Word) -> Self {
        Self(Where::Dram { buffer: buffer.0 as u16, page: page.0, offset: offset.0 })
    }

    fn __repr__(&self) -> String {
        match self.0 {
            Where::L1 { x, y, address } => format!("<{address} of the L1 of core ({x}, {y})>"),
            Where::Dram { buffer, page, offset } => {
                format!("<{offset} of page {page} of buffer {buffer} in DRAM>")
            }
        }
    }
}

/// A call of the kernel API that a kernel has yet to yield.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct Verb {
    pub(super) name: &'static str,
    pub(super) asked: Asked,
    pub(super) yielded: AtomicBool,
}

impl Verb {
    /// Whether what it returns means something.
    pub(super) fn answers(&self) -> bool {
        matches!(self.asked, Asked::GetReadPtr { .. } | Asked::GetWritePtr { .. } | Asked::L1Load { .. })
    }
}

#[pymethods]
impl Verb {
    fn __repr__(&self) -> String {
        format!("<verb {}>", self.name)
    }
}
