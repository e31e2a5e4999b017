//! Block-sparse matrix times dense matrix: `out = epilogue(op(W) · x)`.
//!
//! One entry serves every layout: `x @ W` is `op(W)ᵀ · xᵀ` on swapped strides. [`panel`] holds the
//! general kernel's driver, [`plan`] the fixed rules by which work is cut up.

#[cfg(target_arch = "x86_64")]
mod amx;
mod blocks;
mod convert;
mod panel;
mod plan;
#[cfg(target_arch = "x86_64")]
mod stages;
pub(crate) mod store;
pub(crate) mod thin;
pub(crate) mod tile;
#[cfg(target_arch = "x86_64")]
mod transpose;

use convert::Element;
use prunus_core::{Activation, BsrRef, DType, Epilogue, Error, MatMut, MatRef};

use crate::level::{self, Level};
use crate::simd::Lanes;
use crate::simd::scalar::Plain;
use crate::threads::Context;
use store::Sum;

#[cfg(target_arch = "x86_64")]
use crate::amx as tiles;
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2, avx512};

/// The fixed constants by which work is cut up, for reports.
pub fn constants() -> Vec<(&'static str, u64)> {
    let mut constants = plan::constants();
    #[cfg(target_arch = "x86_64")]
    constants.extend(amx::constants());
    constants
}

/// Rows that packing lays together for the kernels of the level in use (see [`BsrRef::group`]); 0 where
/// blocks are used as they are.
pub fn group_rows(dtype: DType, block_rows: usize) -> usize {
    let registers = match level::current() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Dot | Level::Amx => avx512::F32x16::REGISTERS,
        _ => Plain::<f32>::REGISTERS,
    };
    let group = registers / 4;
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
        let level = level::current();
        match compute_type(self.w.dtype, self.x.dtype, self.out.view.dtype) {
            Some(DType::F32) => self.run_float(level, context),
            Some(DType::F64) => match level {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 | Level::Avx512Dot | Level::Amx => {
                    self.by_width::<avx512::F64x8>(context, ["thin f64 avx512", "panel f64 avx512"])
                }
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => self.by_width::<avx2::F64x4>(context, ["thin f64 avx2", "panel f64 avx2"]),
                _ => self.by_width::<Plain<f64>>(context, ["thin f64 scalar", "panel f64 scalar"]),
            },
            Some(DType::Bf16) => self.run_bf16(level, context),
            Some(DType::I32) => match level {
                #[cfg(target_arch = "x86_64")]
                Level::Amx if amx::pays::<tiles::Int8>(self) => amx::run::<tiles::Int8>(self, context),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512Dot | Level::Amx => {
                    panel::run::<avx512::I16x32Vnni>(self, context).map(|()| "panel int8 vnni")
                }
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => panel::run::<avx512::I16x32>(self, context).map(|()| "panel int8 avx512"),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => panel::run::<avx2::I16x16>(self, context).map(|()| "panel int8 avx2"),
                _ => panel::run::<Plain<i16>>(self, context).map(|()| "panel int8 scalar"),
            },
            _ => Err(self.no_kernel()),
        }
    }

    /// bfloat16 with bfloat16: in tiles or pairs where the machine multiplies them, else widened to
    /// float32.
    fn run_bf16(&self, level: Level, context: &Context<'_>) -> Result<&'static str, Error> {
        #[cfg(target_arch = "x86_64")]
        if level == Level::Amx && amx::pays::<tiles::Bf16>(self) {
            return amx::run::<tiles::Bf16>(self, context);
        }
        // Whatever has tiles has the pairs too.
        #[cfg(target_arch = "x86_64")]
        if (level == Level::Amx || (level == Level::Avx512Dot && level::has_avx512_bf16()))
            && !thin::applies::<avx512::F32x16>(self)
        {
            return panel::run::<avx512::Bf16x32>(self, context).map(|()| "panel bf16 avx512-bf16");
        }
        self.run_float(level, context)
    }

    /// Everything that is summed in float32, widened to it where it is not stored so.
    fn run_float(&self, level: Level, context: &Context<'_>) -> Result<&'static str, Error> {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Dot | Level::Amx => {
                self.by_width::<avx512::F32x16>(context, ["thin f32 avx512", "panel f32 avx512"])
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => self.by_width::<avx2::F32x8>(context, ["thin f32 avx2", "panel f32 avx2"]),
            _ => self.by_width::<Plain<f32>>(context, ["thin f32 scalar", "panel f32 scalar"]),
        }
    }

    /// The kernel for a few columns, or that for many.
    fn by_width<L>(&self, context: &Context<'_>, names: [&'static str; 2]) -> Result<&'static str, Error>
    where
        L: Lanes,
        L::Elem: Element,
        L::Acc: Sum,
    {
        if thin::applies::<L>(self) {
            thin::run::<L>(self, context).map(|()| names[0])
        } else {
            panel::run::<L>(self, context).map(|()| names[1])
        }
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

/// Type that sums are computed in: what the operands' elements are turned into for the kernel.
/// `Bf16` stands for products of bfloat16 pairs summed in float32.
fn compute_type(w: DType, x: DType, out: DType) -> Option<DType> {
    use DType::{Bf16, F64, I8, I32};
    match (w, x, out) {
        (I8, I8, I32) => Some(I32),
        (I32, _, _) | (_, I32, _) | (_, _, I32 | I8) => None,
        (F64, _, _) | (_, F64, _) | (_, _, F64) => Some(F64),
        (Bf16, Bf16, _) => Some(Bf16),
        _ => Some(DType::F32),
    }
}
