//! Fused elementwise expressions over arrays.

use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use prunus_cpu::elementwise::{Kind, Operand, Program, Step, flags};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::arrays::{bfloat16_num, check_output, data_ptr, extent};
use crate::door::{enter, to_python};

fn named(name: &str) -> PyResult<Kind> {
    Kind::NAMED.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or_else(|| {
        let known: Vec<&str> = Kind::NAMED.iter().map(|(name, _)| *name).collect();
        PyTypeError::new_err(format!("expected one of the dtypes {}, got {name}", known.join(", ")))
    })
}

/// Whether an array's values are of a kind, in this machine's byte order.
fn is_of(array: &Bound<'_, PyUntypedArray>, kind: Kind) -> PyResult<bool> {
    let descr = array.dtype();
    if descr.itemsize() != kind.size() || !descr.is_native_byteorder().unwrap_or(true) {
        return Ok(false);
    }
    Ok(match kind {
        Kind::Bool => descr.kind() == b'b',
        Kind::I8 | Kind::I16 | Kind::I32 | Kind::I64 => descr.kind() == b'i',
        Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => descr.kind() == b'u',
        Kind::F16 | Kind::F32 | Kind::F64 => descr.kind() == b'f',
        Kind::Bf16 => descr.num() == bfloat16_num(array.py())?,
    })
}

/// Describes an array of a kind, broadcast to `shape`.
fn operand(array: &Bound<'_, PyUntypedArray>, kind: Kind, shape: &[usize]) -> PyResult<Operand> {
    if !is_of(array, kind)? {
        let message = format!("expected an operand of dtype {}, got {}", kind.name(), array.dtype());
        return Err(PyTypeError::new_err(message));
    }
    let own = array.shape();
    let lead = shape.len().checked_sub(own.len());
    let fits = |lead: usize| own.iter().zip(&shape[lead..]).all(|(&own, &whole)| own == whole || own == 1);
    let Some(lead) = lead.filter(|&lead| fits(lead)) else {
        let message = format!("an operand of shape {own:?} does not broadcast to {shape:?}");
        return Err(PyValueError::new_err(message));
    };
    let mut strides = vec![0; lead];
    strides.extend(own.iter().zip(array.strides()).map(|(&n, &stride)| if n == 1 { 0 } else { stride }));
    Ok(Operand { ptr: data_ptr(array), strides })
}

/// Refuses outputs that share memory with an input or with each other.
fn apart(inputs: &[Bound<'_, PyUntypedArray>], outputs: &[Bound<'_, PyUntypedArray>]) -> PyResult<()> {
    for (at, out) in outputs.iter().enumerate() {
        let Some((first, last)) = extent(out) else { continue };
        for other in inputs.iter().chain(&outputs[..at]) {
            if extent(other).is_some_and(|(from, to)| from < last && first < to) {
                return Err(PyValueError::new_err("output array overlaps another operand"));
            }
        }
    }
    Ok(())
}

/// Arrays on their way to a thread without the GIL.
struct Operands(Vec<Operand>);
// SAFETY: the arrays behind them are kept alive by the call that made them.
unsafe impl Send for Operands {}

/// A compiled elementwise expression.
#[pyclass(frozen, module = "prunus._core")]
pub(crate) struct Elementwise {
    program: Program,
}

#[pymethods]
impl Elementwise {
    /// Compiles steps (name of the ufunc or `"cast"`, dtype in which it is computed, values it takes) over
    /// inputs of some dtypes; values are counted, inputs first, and `outputs` are those wanted.
    #[new]
    fn new(
        inputs: Vec<String>,
        steps: Vec<(String, String, Vec<usize>)>,
        outputs: Vec<usize>,
    ) -> PyResult<Self> {
        let inputs: Vec<Kind> = inputs.iter().map(|name| named(name)).collect::<PyResult<_>>()?;
        let steps: Vec<Step> = steps
            .into_iter()
            .map(|(name, kind, args)| Ok(Step { name, kind: named(&kind)?, args }))
            .collect::<PyResult<_>>()?;
        let program = Program::new(&inputs, &steps, &outputs).map_err(to_python)?;
        Ok(Self { program })
    }

    /// Computes the outputs, all of one shape to which the inputs broadcast. Returns what NumPy would warn of
    /// (1 invalid, 2 divide, 4 over, 8 under), and 16 where the values are for NumPy to compute.
    fn run(
        &self,
        py: Python<'_>,
        inputs: Vec<Bound<'_, PyUntypedArray>>,
        outputs: Vec<Bound<'_, PyUntypedArray>>,
    ) -> PyResult<u32> {
        let program = &self.program;
        let shape = outputs.first().map(|out| out.shape().to_vec()).unwrap_or_default();
        for out in &outputs {
            if out.shape() != shape {
                let message = format!("outputs of different shapes, {shape:?} and {:?}", out.shape());
                return Err(PyValueError::new_err(message));
            }
            check_output(out)?;
        }
        apart(&inputs, &outputs)?;
        let given = |arrays: &[Bound<'_, PyUntypedArray>], kinds: &[Kind]| -> PyResult<Operands> {
            if arrays.len() != kinds.len() {
                let message = format!("expected {} operands, got {}", kinds.len(), arrays.len());
                return Err(PyValueError::new_err(message));
            }
            let found = arrays.iter().zip(kinds).map(|(array, kind)| operand(array, *kind, &shape));
            Ok(Operands(found.collect::<PyResult<_>>()?))
        };
        let sources = given(&inputs, program.inputs())?;
        let targets = given(&outputs, program.outputs())?;
        enter(py, 1, move |_| {
            let (sources, targets) = (sources, targets);
            // SAFETY: the arrays live as long as the call and have these shapes; outputs overlap neither
            // themselves nor anything else.
            unsafe { program.run(&shape, &sources.0, &targets.0) }
        })
    }

    /// Whether this machine tells what NumPy would warn of.
    #[staticmethod]
    fn available() -> bool {
        flags::READABLE
    }
}
