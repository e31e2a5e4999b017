//! Block-sparse matrix times dense matrix: `out = epilogue(op(W) · x)`.
//!
//! One entry serves every layout: `x @ W` is `op(W)ᵀ · xᵀ` on swapped strides. [`panel`] holds the
//! general kernel's driver, [`pack`] the x that it reads, [`plan`] the fixed rules by which work is cut up.

#[cfg(target_arch = "x86_64")]
mod amx;
mod blocks;
pub(crate) mod convert;
mod pack;
mod panel;
pub(crate) mod parts;
pub(crate) mod plan;
#[cfg(target_arch = "x86_64")]
mod stages;
pub(crate) mod store;
pub(crate) mod thin;
pub(crate) mod tile;
mod transpose;

pub use pack::PackedX;

use prunus_core::{Activation, BsrRef, DType, Epilogue, Error, MatMut, MatRef};

#[cfg(target_arch = "x86_64")]
use crate::amx as tiles;
use crate::dispatch::with_lanes;
use crate::level;
#[cfg(target_arch = "x86_64")]
use crate::level::Level;
use crate::threads::Context;

/// The fixed constants by which work is cut up, for reports.
pub fn constants() -> Vec<(&'static str, u64)> {
    let constants = plan::constants();
    #[cfg(target_arch = "x86_64")]
    let constants = [&constants[..], &amx::constants()].concat();
    constants
}

/// Rows that packing lays together for the kernels of the level in use (see [`BsrRef::group`]); 0 where
/// blocks are used as they are.
pub fn group_rows(dtype: DType, block_rows: usize) -> usize {
    let group = level::group_of(level::current().vector_registers());
    let native = matches!(dtype, DType::F32 | DType::F64);
    if native && block_rows.is_multiple_of(group) { group } else { 0 }
}

/// One product of a block-sparse with a dense matrix.
#[derive(Clone, Copy)]
pub struct Dsd<'a> {
    /// The block-sparse operand, `M × K` after transposition.
    pub w: BsrRef<'a>,
    /// The dense operand, `K × N`.
    pub x: MatRef<'a>,
    /// The result, `M × N`.
    pub out: MatMut<'a>,
    /// Bias and activation.
    pub epilogue: Epilogue<'a>,
    /// x packed ahead of time, for kernels that read it so.
    pub packed: Option<&'a PackedX>,
    /// Whether the product is added to what the result holds, which must be of the sums' type: float32, or
    /// float64 or int32 where one computes in these. The sums go on from there, as if blocks before these had
    /// been summed first.
    pub add: bool,
}

impl Dsd<'_> {
    /// Runs the product and says which kernel did it.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DTypes`] for operands that do not fit, [`Error::Interrupted`],
    /// or what kept a block from arriving.
    pub fn run(&self, context: &Context<'_>) -> Result<&'static str, Error> {
        self.check()?;
        if self.out.view.rows == 0 || self.out.view.cols == 0 {
            return Ok("nothing to do");
        }
        let compute = compute_type(self.w.dtype, self.x.dtype, self.out.view.dtype);
        #[cfg(target_arch = "x86_64")]
        if level::current() == Level::Amx {
            match compute {
                Some(DType::Bf16) if amx::pays::<tiles::Bf16>(self) => {
                    if self.add {
                        return self.run_apart(context);
                    }
                    return amx::run::<tiles::Bf16>(self, context);
                }
                Some(DType::I32) if amx::pays::<tiles::Int8>(self) => {
                    if self.add {
                        return self.run_apart(context);
                    }
                    return amx::run::<tiles::Int8>(self, context);
                }
                _ => {}
            }
        }
        // A few columns wait for memory: there bfloat16 may as well be widened on its way.
        let widened = if compute == Some(DType::Bf16) { Some(DType::F32) } else { compute };
        if thin::applies(self, widened) {
            if self.add {
                return self.run_apart(context);
            }
            return with_lanes!("thin", widened, L => thin::run::<L>(self, context), else Err(self.no_kernel()));
        }
        with_lanes!("panel", compute, L => panel::run::<L>(self, context), else Err(self.no_kernel()))
    }

    fn no_kernel(&self) -> Error {
        Error::DTypes {
            what: "block-sparse product",
            a: self.w.dtype,
            b: self.x.dtype,
            out: self.out.view.dtype,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let (m, k) = self.w.op_shape();
        let (x, out) = (&self.x, &self.out.view);
        let fault = |what, expected: (usize, usize), got: (usize, usize)| {
            Err(Error::Shape {
                what,
                expected: format!("{} x {}", expected.0, expected.1),
                got: format!("{} x {}", got.0, got.1),
            })
        };
        if x.rows != k {
            return fault("dense operand", (k, x.cols), (x.rows, x.cols));
        }
        if (out.rows, out.cols) != (m, x.cols) {
            return fault("result", (m, x.cols), (out.rows, out.cols));
        }
        let (shape, block) = (self.w.shape, self.w.blocksize);
        if block.0 == 0 || block.1 == 0 {
            return fault("block size", (1, 1), block);
        }
        let grid = (shape.0.div_ceil(block.0), shape.1.div_ceil(block.1));
        let pattern = (self.w.pattern.block_rows(), self.w.pattern.block_cols());
        if grid != pattern {
            return fault("block pattern", grid, pattern);
        }
        if let Some(bias) = &self.epilogue.bias
            && bias.len != m
        {
            return fault("bias", (m, 1), (bias.len, 1));
        }
        let integer = compute_type(self.w.dtype, self.x.dtype, out.dtype) == Some(DType::I32);
        if let Some(bias) = &self.epilogue.bias
            && integer
            && !matches!(bias.dtype, DType::I8 | DType::I32)
        {
            return Err(Error::Choice {
                what: "bias of an integer product",
                expected: "int8 or int32".to_owned(),
                got: bias.dtype.name().to_owned(),
            });
        }
        if let Some(packed) = self.packed
            && packed.shape() != (x.rows, x.cols)
        {
            return fault("packed operand", (x.rows, x.cols), packed.shape());
        }
        if self.add {
            let sums = sums_type(compute_type(self.w.dtype, self.x.dtype, out.dtype));
            if sums != Some(out.dtype) {
                return Err(self.no_kernel());
            }
            if !self.epilogue.is_identity() {
                return Err(Error::Choice {
                    what: "a product that is added",
                    expected: "neither bias nor activation".to_owned(),
                    got: format!("{:?}", self.epilogue.activation).to_lowercase(),
                });
            }
        }
        let float_only = matches!(self.epilogue.activation, Activation::Gelu | Activation::Silu);
        if integer && float_only {
            return Err(Error::Choice {
                what: "activation of an integer product",
                expected: "relu".to_owned(),
                got: format!("{:?}", self.epilogue.activation).to_lowercase(),
            });
        }
        Ok(())
    }
}

/// Type that sums of a compute type have.
pub(crate) fn sums_type(compute: Option<DType>) -> Option<DType> {
    match compute? {
        DType::F64 => Some(DType::F64),
        DType::I32 => Some(DType::I32),
        _ => Some(DType::F32),
    }
}

/// Type that sums are computed in: what the operands' elements are turned into for the kernel.
/// `Bf16` stands for products of bfloat16 pairs summed in float32.
pub(crate) fn compute_type(w: DType, x: DType, out: DType) -> Option<DType> {
    use DType::{Bf16, F64, I8, I32};
    match (w, x, out) {
        (I8, I8, I32) => Some(I32),
        (I32, _, _) | (_, I32, _) | (_, _, I32 | I8) => None,
        (F64, _, _) | (_, F64, _) | (_, _, F64) => Some(F64),
        (Bf16, Bf16, _) => Some(Bf16),
        _ => Some(DType::F32),
    }
}
