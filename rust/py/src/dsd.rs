//! Block-sparse times dense.

use numpy::{PyArrayDescr, PyUntypedArray};
use prunus_core::{Activation, BsrRef, Epilogue, MatMut, MatRef, VecRef};
use prunus_cpu::Dsd;
use prunus_cpu::dsd::PackedX;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{Nd, dtype_of_descr};
use crate::door::{enter, enter_each, to_python};
use crate::operand::Operand;

/// Shape and stride checks that every product shares; then one product a batch member.
pub(crate) struct Batched<'a> {
    batch: Vec<usize>,
    x: Nd,
    out: Nd,
    bias: Option<VecRef<'a>>,
    activation: Activation,
}

impl<'a> Batched<'a> {
    pub(crate) fn new(
        x: &'a Bound<'_, PyUntypedArray>,
        out: &'a Bound<'_, PyUntypedArray>,
        bias: Option<&'a Bound<'_, PyUntypedArray>>,
        activation: Option<&str>,
    ) -> PyResult<Self> {
        let (x, out) = (Nd::read(x)?, Nd::write(out)?);
        let batch = out.batch(2)?.to_vec();
        if x.batch(2)? != batch {
            return Err(PyValueError::new_err(format!(
                "batch dimensions of x and out must agree, got {:?} and {:?}",
                x.batch(2)?,
                batch
            )));
        }
        let bias = match bias {
            None => None,
            Some(bias) => {
                let nd = Nd::read(bias)?;
                if nd.shape.len() != 1 {
                    return Err(PyValueError::new_err(format!(
                        "bias: expected one dimension, got {}",
                        nd.shape.len()
                    )));
                }
                // SAFETY: the array lives as long as the call.
                Some(unsafe { VecRef::new(nd.ptr, nd.dtype, nd.shape[0], nd.strides[0]) })
            }
        };
        let activation = match activation {
            None => Activation::Identity,
            Some(name) => Activation::parse(name).map_err(to_python)?,
        };
        Ok(Self { batch, x, out, bias, activation })
    }

    /// Batch dimensions.
    pub(crate) fn batch(&self) -> &[usize] {
        &self.batch
    }

    /// Number of products.
    pub(crate) fn members(&self) -> usize {
        self.batch.iter().product()
    }

    /// True where the result has no value.
    pub(crate) fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// The product of batch member `i`, whose block-sparse operand is `w`.
    pub(crate) fn member<'b>(&'b self, i: usize, w: BsrRef<'b>) -> Dsd<'b> {
        let n = self.batch.len();
        let shape = |nd: &Nd| (nd.shape[n], nd.shape[n + 1]);
        let strides = |nd: &Nd| (nd.strides[n], nd.strides[n + 1]);
        let (x, out) = (&self.x, &self.out);
        // SAFETY: members of arrays that live as long as the call; `out` is writeable, and Python's
        // caller is told not to read or write it meanwhile.
        unsafe {
            Dsd {
                w,
                x: MatRef::new(x.member(&self.batch, i), x.dtype, shape(x), strides(x)),
                out: MatMut::new(out.member(&self.batch, i), out.dtype, shape(out), strides(out)),
                epilogue: Epilogue { bias: self.bias, activation: self.activation },
                packed: None,
                add: false,
            }
        }
    }
}

/// A dense operand, packed once for products with many operands.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct PackedColumns(PackedX);

/// Packs `x` for products with operands of dtype `w` in blocks of `blocksize` (after transposition) whose
/// result is of dtype `out`; None where that gains nothing.
#[pyfunction]
pub(crate) fn pack_columns(
    py: Python<'_>,
    x: &Bound<'_, PyUntypedArray>,
    w: &Bound<'_, PyArrayDescr>,
    out: &Bound<'_, PyArrayDescr>,
    blocksize: (usize, usize),
    threads: usize,
) -> PyResult<Option<PackedColumns>> {
    let nd = Nd::read(x)?;
    if nd.shape.len() != 2 {
        return Err(PyValueError::new_err(format!("x: expected two dimensions, got {}", nd.shape.len())));
    }
    // SAFETY: the array lives as long as the call, whose caller is told not to write it meanwhile.
    let x =
        unsafe { MatRef::new(nd.ptr, nd.dtype, (nd.shape[0], nd.shape[1]), (nd.strides[0], nd.strides[1])) };
    let (w, out) = (dtype_of_descr(w)?, dtype_of_descr(out)?);
    Ok(enter(py, threads, |context| PackedX::pack(&x, w, out, blocksize, context))?.map(PackedColumns))
}

/// `out = activation(op(W) @ x + bias)`, one product for each batch member. `packed` is what `pack_columns`
/// made of x; with `add`, the product is added to what `out` holds.
#[pyfunction]
#[pyo3(signature = (
    data, indices, indptr, shape, transposed, x, out, bias, activation, threads, packed=None, add=false
))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn dsd(
    py: Python<'_>,
    data: &Bound<'_, PyUntypedArray>,
    indices: &Bound<'_, PyUntypedArray>,
    indptr: &Bound<'_, PyUntypedArray>,
    shape: (usize, usize),
    transposed: bool,
    x: &Bound<'_, PyUntypedArray>,
    out: &Bound<'_, PyUntypedArray>,
    bias: Option<&Bound<'_, PyUntypedArray>>,
    activation: Option<&str>,
    threads: usize,
    packed: Option<&Bound<'_, PackedColumns>>,
    add: bool,
) -> PyResult<()> {
    let call = Batched::new(x, out, bias, activation)?;
    let w = Operand::read(data, indices, indptr, shape, transposed, call.batch())?;
    if packed.is_some() && !call.batch().is_empty() {
        return Err(PyValueError::new_err("a packed operand has no batch"));
    }
    if call.is_empty() {
        return Ok(());
    }
    let packed = packed.map(|packed| &packed.get().0);
    enter_each(py, threads, call.members(), |i, context| {
        Dsd { packed, add, ..call.member(i, w.member(i).bsr()) }.run(context)
    })
}
