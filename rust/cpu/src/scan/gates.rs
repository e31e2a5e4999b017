//! How open gates are: the statistics that decide which of a scan's outputs are live.

use prunus_core::{DType, Error, MatMut, MatRef};

use super::lanes::{Float, Kernels, PAD, kernels_f32, kernels_f64};
use super::shape;
use crate::dsd::convert::{Element, Rect};
use crate::memory::Workspace;
use crate::threads::{Context, for_each};

/// Values that a task looks at: its copy of them stays in the second cache.
const VALUES: usize = 1 << 14;

/// Norms of `silu(z)` over branches of neighbouring channels.
#[derive(Clone, Copy, Debug)]
pub struct Gates<'a> {
    /// Gates before their activation, `length × channels` for each member of a batch.
    pub z: &'a [MatRef<'a>],
    /// Channels of a branch; the last one may have fewer.
    pub branch: usize,
    /// The root of the sum of squares in place of the largest absolute value.
    pub l2: bool,
    /// Written, in float32: `members · length × branches`. NaN where a gate is; 0 only where the norm is 0.
    pub norms: MatMut<'a>,
}

impl Gates<'_> {
    /// Computes the norms.
    ///
    /// # Errors
    /// As [`Scan::run`](super::Scan::run).
    pub fn run(&self, context: &Context<'_>) -> Result<&'static str, Error> {
        let Some(first) = self.z.first() else { return Ok("nothing to do") };
        let expected = (self.z.len() * first.rows, first.cols.div_ceil(self.branch.max(1)));
        let norms = &self.norms.view;
        if self.branch == 0 || (norms.rows, norms.cols) != expected {
            return Err(shape("norms", format!("{expected:?}"), format!("{:?}", (norms.rows, norms.cols))));
        }
        for z in self.z {
            if (z.rows, z.cols) != (first.rows, first.cols) {
                return Err(shape(
                    "z",
                    format!("{:?}", (first.rows, first.cols)),
                    format!("{:?}", (z.rows, z.cols)),
                ));
            }
            let known = !matches!(z.dtype, DType::I8 | DType::I32) && z.dtype == first.dtype;
            if !known || norms.dtype != DType::F32 {
                return Err(Error::DTypes { what: "gates", a: z.dtype, b: first.dtype, out: norms.dtype });
            }
        }
        if first.rows == 0 || first.cols == 0 {
            return Ok("nothing to do");
        }
        if first.dtype == DType::F64 {
            let (kernels, path) = kernels_f64();
            self.run_as(context, kernels).map(|()| path)
        } else {
            let (kernels, path) = kernels_f32();
            self.run_as(context, kernels).map(|()| path)
        }
    }

    fn run_as<E: Float>(&self, context: &Context<'_>, kernels: Kernels<E>) -> Result<(), Error> {
        let (length, channels) = (self.z[0].rows, self.z[0].cols);
        let no_kernel = || Error::DTypes { what: "gates", a: self.z[0].dtype, b: E::DTYPE, out: E::DTYPE };
        let convert = <E as Element>::convert(self.z[0].dtype).ok_or_else(no_kernel)?;
        let width = channels.next_multiple_of(PAD);
        let rows = (VALUES / width).max(1);
        let tasks = length.div_ceil(rows);
        for_each(context, self.z.len() * tasks, |i| {
            let (member, from) = (i / tasks, i % tasks * rows);
            let count = rows.min(length - from);
            let space = Workspace::of(&[count, width, size_of::<E>()])?;
            let values = space.as_ptr().cast::<E>();
            let z = &self.z[member];
            let rect = Rect {
                src: z.at(from, 0),
                rows: count,
                cols: channels,
                row_stride: z.row_stride,
                col_stride: z.col_stride,
            };
            // SAFETY: these rows are within the view, and the workspace holds as many of `width`; the kernels
            // are of the level in use.
            unsafe {
                convert(&rect, values, width);
                for row in 0..count {
                    let row = values.add(row * width);
                    std::slice::from_raw_parts_mut(row.add(channels), width - channels).fill(E::ZERO);
                }
                (kernels.silu)(values, count * width);
            }
            for row in 0..count {
                // SAFETY: initialised above.
                let gates = unsafe { std::slice::from_raw_parts(values.add(row * width), channels) };
                self.norms_of(gates, member * length + from + row);
            }
            Ok(())
        })
    }

    fn norms_of<E: Float>(&self, gates: &[E], row: usize) {
        let norms = &self.norms.view;
        if self.branch == 1 && norms.col_stride == size_of::<f32>() as isize {
            let to = self.norms.at(row, 0).cast::<f32>();
            for (i, gate) in gates.iter().enumerate() {
                // SAFETY: there is a float32 for each gate, side by side.
                unsafe { to.add(i).write_unaligned(rounded(gate.wide().abs())) };
            }
            return;
        }
        for (branch, gates) in gates.chunks(self.branch).enumerate() {
            let values = gates.iter().map(|gate| gate.wide());
            let norm = if self.l2 {
                values.map(|v| v * v).sum::<f64>().sqrt()
            } else {
                values.fold(0.0, |norm: f64, v| if v.is_nan() || v.abs() > norm { v.abs() } else { norm })
            };
            // SAFETY: row and branch are within `norms`, which holds float32.
            unsafe { self.norms.at(row, branch).cast::<f32>().write_unaligned(rounded(norm)) };
        }
    }
}

/// A norm in float32, and not 0 unless it is: what contributes is not dead at threshold 0.
#[inline(always)]
fn rounded(norm: f64) -> f32 {
    let near = norm as f32;
    if near == 0.0 && norm > 0.0 { f32::from_bits(1) } else { near }
}
