//! Verbs as Python objects, and what they are made of.

use std::sync::atomic::AtomicBool;

use prunus_tensix::mesh::{ChipId, Mesh};
use prunus_tensix::verbs::{CoreId, Verb as Asked};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::errors::{misused, to_python};

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

/// Row and column of a chip in its mesh.
pub(super) type OnMesh = (Whole<65535>, Whole<65535>);

/// Where the cores of a chip are, and the chips.
pub(super) struct Cores {
    pub(super) chip: String,
    pub(super) mesh: Mesh,
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

    /// The number of the chip in a row and column.
    pub(super) fn chip(&self, py: Python<'_>, (row, column): (u32, u32)) -> PyResult<ChipId> {
        self.mesh.chip(row, column).map_err(|error| to_python(py, &error))
    }

    /// The number of a core, counted over all chips.
    pub(super) fn everywhere(&self, py: Python<'_>, chip: ChipId, core: (u32, u32)) -> PyResult<CoreId> {
        let each = (self.x.len() * self.y.len()) as CoreId;
        Ok(chip * each + self.number(py, core.0, core.1)?)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Where {
    L1 { x: u32, y: u32, address: u32 },
    Dram { buffer: u16, page: u32, offset: u32 },
}

/// The chip of a place: none said is the kernel's own.
pub(super) type OnChip = Option<(u32, u32)>;

/// A place that transfers read from or write to: in a core's L1, or in a page of a buffer in DRAM.
///
/// In a mesh it may be on another chip: ``chip`` is its row and column, and by default the kernel's own.
#[pyclass(frozen, eq, module = "prunus._core")]
#[derive(PartialEq, Eq)]
pub(crate) struct Place(pub(super) Where, pub(super) OnChip);

#[pymethods]
impl Place {
    /// The byte ``address`` of the L1 of the core at logical coordinates ``core``.
    #[staticmethod]
    #[pyo3(signature = (core, address, chip=None))]
    pub(super) fn l1(core: At, address: Word, chip: Option<OnMesh>) -> Self {
        Self(Where::L1 { x: core.0.0, y: core.1.0, address: address.0 }, chip.map(|(r, c)| (r.0, c.0)))
    }

    /// The byte ``offset`` of a page of a buffer in DRAM.
    #[staticmethod]
    #[pyo3(signature = (buffer, page, offset, chip=None))]
    fn dram(buffer: Whole<65535>, page: Word, offset: Word, chip: Option<OnMesh>) -> Self {
        let place = Where::Dram { buffer: buffer.0 as u16, page: page.0, offset: offset.0 };
        Self(place, chip.map(|(r, c)| (r.0, c.0)))
    }

    fn __repr__(&self) -> String {
        let chip = self.1.map_or(String::new(), |(row, column)| format!(" of chip ({row}, {column})"));
        match self.0 {
            Where::L1 { x, y, address } => format!("<{address} of the L1 of core ({x}, {y}){chip}>"),
            Where::Dram { buffer, page, offset } => {
                format!("<{offset} of page {page} of buffer {buffer} in DRAM{chip}>")
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
