//! How a program walks over arrays: axes in the order of storage, merged where they lie together.

/// An array: its first value, and bytes from one value to the next along each axis (0 where it is broadcast).
#[derive(Clone, Debug)]
pub struct Operand {
    /// First value.
    pub ptr: *mut u8,
    /// Bytes along each axis of the shape that the program runs over.
    pub strides: Vec<isize>,
}

/// The walk: rows of values, and the strides of each operand.
pub(super) struct Walk {
    /// Lengths of the axes before the last.
    pub outer: Vec<usize>,
    /// Values of a row.
    pub width: usize,
}

/// Merges axes: returns the walk, and gives each operand strides of its axes, the last one's last.
pub(super) fn merge(shape: &[usize], operands: &mut [Operand]) -> Walk {
    let mut order: Vec<usize> = (0..shape.len()).filter(|&axis| shape[axis] != 1).collect();
    // The last operand is an output: its longest strides come first.
    if let Some(lead) = operands.last() {
        order.sort_by_key(|&axis| std::cmp::Reverse(lead.strides[axis].unsigned_abs()));
    }
    let mut sizes: Vec<usize> = Vec::new();
    let mut strides: Vec<Vec<isize>> = vec![Vec::new(); operands.len()];
    for &axis in &order {
        let size = shape[axis];
        let joins = !sizes.is_empty()
            && operands.iter().zip(&strides).all(|(operand, merged)| {
                merged.last() == Some(&operand.strides[axis].wrapping_mul(size as isize))
            });
        for (operand, merged) in operands.iter().zip(&mut strides) {
            if joins {
                merged.pop();
            }
            merged.push(operand.strides[axis]);
        }
        match (joins, sizes.last_mut()) {
            (true, Some(last)) => *last *= size,
            _ => sizes.push(size),
        }
    }
    for (operand, merged) in operands.iter_mut().zip(strides) {
        operand.strides = if merged.is_empty() { vec![0] } else { merged };
    }
    let width = sizes.pop().unwrap_or(1);
    Walk { outer: sizes, width }
}

/// Offsets of consecutive rows of one operand.
pub(super) struct Rows<'a> {
    sizes: &'a [usize],
    strides: &'a [isize],
    index: Vec<usize>,
    offset: isize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(sizes: &'a [usize], strides: &'a [isize]) -> Self {
        Self { sizes, strides, index: vec![0; sizes.len()], offset: 0 }
    }

    /// Offset of the row.
    pub(super) fn offset(&self) -> isize {
        self.offset
    }

    /// Goes on to the next row; after the last one it is at the first again.
    #[inline]
    pub(super) fn next(&mut self) {
        for axis in (0..self.sizes.len()).rev() {
            self.index[axis] += 1;
            self.offset += self.strides[axis];
            if self.index[axis] < self.sizes[axis] {
                return;
            }
            self.offset -= self.strides[axis] * self.sizes[axis] as isize;
            self.index[axis] = 0;
        }
    }
}
