//! A feed-forward layer in one call: its hidden units, and what they contribute.

use prunus_core::{Activation, DType, Error, MatMut, MatRef, VecRef};

use super::dots::run_all;
use super::{Combine, Dots, Live, Panels, compute_type};
use crate::memory::Workspace;
use crate::threads::Context;

/// `out = h @ down + b_down` with `h = activation(x @ up.T + b_up)`, or `h = activation(x @ gate.T) · (x @ up.T +
/// b_up)`, over live units. The same as [`Dots`] and [`Combine`] one after the other, without what calls cost.
#[derive(Clone, Copy)]
pub struct FeedForward<'a> {
    /// Inputs, rows × k, any strides.
    pub x: MatRef<'a>,
    /// The table of units, units × k, rows contiguous.
    pub up: MatRef<'a>,
    /// Likewise, where the layer is gated.
    pub gate: Option<MatRef<'a>>,
    /// What units contribute, as [`Combine`]'s table.
    pub down: MatRef<'a>,
    /// Where its columns lie in panels: how.
    pub panels: Option<Panels>,
    /// Which units take part; None: all.
    pub live: Option<Live<'a>>,
    /// One value a unit.
    pub b_up: Option<VecRef<'a>>,
    /// One value a column.
    pub b_down: Option<VecRef<'a>>,
    /// Of the gate, or of the units where there is none.
    pub activation: Activation,
    /// The result, rows × n.
    pub out: MatMut<'a>,
}

impl FeedForward<'_> {
    /// Runs the layer and says which kernel summed it.
    ///
    /// # Errors
    /// As for [`Dots::run`] and [`Combine::run`], or [`Error::Memory`].
    pub fn run(&self, context: &Context<'_>) -> Result<&'static str, Error> {
        let (a, b, out) = (self.x.dtype, self.up.dtype, self.out.view.dtype);
        let fault = Error::DTypes { what: "feed-forward layer", a, b, out };
        let sums = compute_type(a, b, DType::F32).ok_or(fault)?;
        let (rows, units) = (self.x.rows, self.up.rows);
        let hidden = Workspace::of(&[rows, units, sums.size()])?;
        // SAFETY: the workspace holds as many values of this type, lives as long as the view, and is nobody else's.
        let h = unsafe { matrix(&hidden, sums, rows, units) };
        let (x, live, activation) = (self.x, self.live, self.activation);
        let alone =
            Dots { x, w: self.up, live, bias: self.b_up, activation, scale: None, out: h, found: None };
        match self.gate {
            None => alone.run(context)?,
            Some(w) => {
                let gates = Workspace::of(&[rows, units, sums.size()])?;
                // SAFETY: as above.
                let out = unsafe { matrix(&gates, sums, rows, units) };
                let first = Dots { w, bias: None, out, ..alone };
                let scaled = Dots { activation: Activation::Identity, scale: Some(out.view), ..alone };
                run_all(&[first, scaled], context)?
            }
        };
        let (w, panels, live, bias) = (self.down, self.panels, self.live, self.b_down);
        Combine { h: h.view, w, panels, live, bias, out: self.out, add: false }.run(context)
    }
}

/// # Safety
/// The workspace holds rows × cols values of the type, is not used otherwise, and outlives the view.
unsafe fn matrix<'a>(from: &Workspace, dtype: DType, rows: usize, cols: usize) -> MatMut<'a> {
    let size = dtype.size() as isize;
    // SAFETY: the caller's promise.
    unsafe { MatMut::new(from.as_ptr(), dtype, (rows, cols), (cols as isize * size, size)) }
}
