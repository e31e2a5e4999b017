//! Operands with every layout, and the naive product that kernels are compared with.

use half::{bf16, f16};
use prunus_core::{Activation, BlockSource, BsrRef, DType, Epilogue, Error, MatMut, MatRef, Pattern, VecRef};
use prunus_cpu::dsd::PackedX;
use prunus_cpu::memory::Workspace;
use prunus_cpu::{Context, Dsd};

/// A small generator (xorshift64*): the same values from the same seed everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((self.next() >> 33) as usize) % n.max(1)
    }
    /// A value of the type's everyday range; now and then, if asked, one that is not finite.
    pub(crate) fn value(&mut self, dtype: DType, specials: bool) -> f64 {
        let random = self.next() >> 11;
        if matches!(dtype, DType::I8 | DType::I32) {
            return (random % 256) as f64 - 128.0;
        }
        if specials && random.is_multiple_of(89) {
            return [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][self.below(3)];
        }
        random as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Bytes at an address that every type may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bytes(Vec<u64>);

impl Bytes {
    /// All ones: NaN in every floating-point type, and -1.
    pub(crate) fn new(len: usize) -> Self {
        Self(vec![u64::MAX; len.div_ceil(8)])
    }
    pub(crate) fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr().cast()
    }
    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
    pub(crate) fn slice(&self, at: usize, len: usize) -> &[u8] {
        assert!(at + len <= self.0.len() * 8);
        // SAFETY: inside the vector; bytes have no invalid values.
        unsafe { std::slice::from_raw_parts(self.as_ptr().add(at), len) }
    }
    fn slice_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        assert!(at + len <= self.0.len() * 8);
        // SAFETY: inside the vector; bytes have no invalid values.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().add(at), len) }
    }
    pub(crate) fn get(&self, dtype: DType, at: usize) -> f64 {
        let b = self.slice(at, dtype.size());
        match dtype {
            DType::F32 => f64::from(f32::from_ne_bytes(b.try_into().unwrap())),
            DType::F64 => f64::from_ne_bytes(b.try_into().unwrap()),
            DType::F16 => f16::from_ne_bytes(b.try_into().unwrap()).to_f64(),
            DType::Bf16 => bf16::from_ne_bytes(b.try_into().unwrap()).to_f64(),
            DType::I8 => f64::from(b[0] as i8),
            DType::I32 => f64::from(i32::from_ne_bytes(b.try_into().unwrap())),
        }
    }
    pub(crate) fn set(&mut self, dtype: DType, at: usize, v: f64) {
        let to = self.slice_mut(at, dtype.size());
        match dtype {
            DType::F32 => to.copy_from_slice(&(v as f32).to_ne_bytes()),
            DType::F64 => to.copy_from_slice(&v.to_ne_bytes()),
            DType::F16 => to.copy_from_slice(&f16::from_f64(v).to_ne_bytes()),
            DType::Bf16 => to.copy_from_slice(&bf16::from_f64(v).to_ne_bytes()),
            DType::I8 => to.copy_from_slice(&(v as i8).to_ne_bytes()),
            DType::I32 => to.copy_from_slice(&(v as i32).to_ne_bytes()),
        }
    }
}

/// Layouts of a dense operand; the last two share elements and suit operands that are only read.
pub(crate) const LAYOUTS: usize = 11;
pub(crate) const WRITEABLE: usize = 9;

/// A dense matrix between guard bytes.
#[derive(Clone)]
pub(crate) struct Dense {
    pub(crate) dtype: DType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    row_stride: isize,
    col_stride: isize,
    origin: isize,
    pub(crate) bytes: Bytes,
}

impl Dense {
    pub(crate) fn new(dtype: DType, (rows, cols): (usize, usize), layout: usize) -> Self {
        let (r, c) = (rows as isize, cols as isize);
        // In elements, and the bytes that the first element is off an aligned address.
        let (row, col, off) = match layout {
            0 => (c, 1, 0),
            1 => (1, r, 0),
            2 => (c + 3, 1, 0),
            3 => (1, r + 5, 0),
            4 => (-c, 1, 0),
            5 => (c, -1, 0),
            6 => (2 * c, 2, 0),
            7 => (-1, -r, 0),
            8 => (c + 1, 1, 1),
            9 => (0, 1, 0),
            _ => (1, 0, 0),
        };
        let size = dtype.size() as isize;
        let reach = |stride: isize, n: isize| stride * (n - 1).max(0);
        let (a, b) = (reach(row, r), reach(col, c));
        let lowest = a.min(0) + b.min(0);
        let highest = a.max(0) + b.max(0);
        let bytes = Bytes::new(((highest - lowest + 1) * size + off + 128) as usize);
        let origin = 64 + off - lowest * size;
        Self { dtype, rows, cols, row_stride: row * size, col_stride: col * size, origin, bytes }
    }
    pub(crate) fn at(&self, i: usize, j: usize) -> usize {
        (self.origin + i as isize * self.row_stride + j as isize * self.col_stride) as usize
    }
    pub(crate) fn get(&self, i: usize, j: usize) -> f64 {
        self.bytes.get(self.dtype, self.at(i, j))
    }
    pub(crate) fn fill(mut self, mut value: impl FnMut(usize, usize) -> f64) -> Self {
        for i in 0..self.rows {
            for j in 0..self.cols {
                let at = self.at(i, j);
                self.bytes.set(self.dtype, at, value(i, j));
            }
        }
        self
    }
    pub(crate) fn view(&self) -> MatRef<'_> {
        let at = self.bytes.as_ptr().wrapping_offset(self.origin);
        // SAFETY: `new` made room for every element.
        unsafe { MatRef::new(at, self.dtype, (self.rows, self.cols), (self.row_stride, self.col_stride)) }
    }
    pub(crate) fn view_mut(&mut self) -> MatMut<'_> {
        let at = self.bytes.as_mut_ptr().wrapping_offset(self.origin);
        let (shape, strides) = ((self.rows, self.cols), (self.row_stride, self.col_stride));
        // SAFETY: as in `view`; the matrix is borrowed for writing.
        unsafe { MatMut::new(at, self.dtype, shape, strides) }
    }
    /// True where every byte that belongs to no element still has its first value.
    pub(crate) fn guards_hold(&self) -> bool {
        let mut copy = self.bytes.clone();
        for i in 0..self.rows {
            for j in 0..self.cols {
                copy.slice_mut(self.at(i, j), self.dtype.size()).fill(u8::MAX);
            }
        }
        copy.0.iter().all(|&word| word == u64::MAX)
    }
}

/// A block-sparse matrix; what its blocks hold outside the shape is NaN or garbage.
pub(crate) struct Sparse {
    pub(crate) dtype: DType,
    pub(crate) shape: (usize, usize),
    pub(crate) block: (usize, usize),
    pub(crate) pattern: Pattern,
    pub(crate) data: Bytes,
}

impl Sparse {
    /// `lead` stored blocks come before the first that the pattern names.
    pub(crate) fn new(
        dtype: DType,
        shape: (usize, usize),
        block: (usize, usize),
        rows: &[Vec<usize>],
        lead: usize,
        mut value: impl FnMut() -> f64,
    ) -> Self {
        let mut indptr = vec![lead as i64];
        let mut indices = vec![0i64; lead];
        for row in rows {
            indices.extend(row.iter().map(|&c| c as i64));
            indptr.push(indices.len() as i64);
        }
        let grid_cols = shape.1.div_ceil(block.1);
        let pattern = Pattern::new(indptr.into_iter(), indices.clone().into_iter(), grid_cols).unwrap();
        let (area, size) = (block.0 * block.1, dtype.size());
        let mut data = Bytes::new(indices.len() * area * size);
        for (i, row) in rows.iter().enumerate() {
            for (e, &c) in (pattern.indptr()[i]..).zip(row) {
                for r in 0..block.0.min(shape.0 - i * block.0) {
                    for k in 0..block.1.min(shape.1 - c * block.1) {
                        data.set(dtype, (e * area + r * block.1 + k) * size, value());
                    }
                }
            }
        }
        Self { dtype, shape, block, pattern, data }
    }
    pub(crate) fn block_bytes(&self) -> usize {
        self.block.0 * self.block.1 * self.dtype.size()
    }
    /// The same blocks laid down in groups of `group` rows, as packing does: what a block has past the
    /// last column is zero.
    pub(crate) fn packed(&self, group: usize) -> Self {
        let (size, (rows, cols)) = (self.dtype.size(), self.block);
        let mut data = self.data.clone();
        for w in self.pattern.indptr().windows(2) {
            for e in w[0]..w[1] {
                let depth = cols.min(self.shape.1 - self.pattern.indices()[e] as usize * cols);
                for r in 0..rows {
                    for c in 0..cols {
                        let from = e * self.block_bytes() + (r * cols + c) * size;
                        let to = r / group * group * cols + c * group + r % group;
                        let to = data.slice_mut(e * self.block_bytes() + to * size, size);
                        if c < depth { to.copy_from_slice(self.data.slice(from, size)) } else { to.fill(0) }
                    }
                }
            }
        }
        Self { data, pattern: self.pattern.clone(), ..*self }
    }
    /// Calls `f(row, column, value)` for every value of every block, inside the shape.
    pub(crate) fn each(&self, mut f: impl FnMut(usize, usize, f64)) {
        for (i, w) in self.pattern.indptr().windows(2).enumerate() {
            for e in w[0]..w[1] {
                let c = self.pattern.indices()[e] as usize;
                for r in 0..self.block.0.min(self.shape.0 - i * self.block.0) {
                    for k in 0..self.block.1.min(self.shape.1 - c * self.block.1) {
                        let at = e * self.block_bytes() + (r * self.block.1 + k) * self.dtype.size();
                        f(i * self.block.0 + r, c * self.block.1 + k, self.data.get(self.dtype, at));
                    }
                }
            }
        }
    }
}

/// Blocks that lie where they like: each is handed out by its own address, and may fail to come.
pub(crate) struct Scattered<'a> {
    pub(crate) of: &'a Sparse,
    pub(crate) fails: Option<usize>,
}

impl BlockSource for Scattered<'_> {
    fn block(&self, index: usize) -> Result<*const u8, Error> {
        if self.fails == Some(index) {
            return Err(Error::Pattern(format!("block {index} did not come")));
        }
        let size = self.of.block_bytes();
        Ok(self.of.data.slice(index * size, size).as_ptr())
    }
}

/// One product: operands, orientation, epilogue. `source` has the blocks of `w`, in groups of `group` rows
/// where that is not 0.
pub(crate) struct Product<'a> {
    pub(crate) w: &'a Sparse,
    pub(crate) source: &'a dyn BlockSource,
    pub(crate) transposed: bool,
    pub(crate) group: usize,
    pub(crate) by_column: Option<&'a Pattern>,
    pub(crate) x: &'a Dense,
    pub(crate) bias: Option<&'a Dense>,
    pub(crate) activation: Activation,
}

impl Product<'_> {
    pub(crate) fn rows(&self) -> usize {
        if self.transposed { self.w.shape.1 } else { self.w.shape.0 }
    }

    /// Runs it into `out`.
    pub(crate) fn run(&self, out: &mut Dense, context: &Context<'_>) -> Result<&'static str, Error> {
        self.run_with(out, context, None, false)
    }

    /// Runs it with an x that was packed before, and adds it to what `out` holds.
    pub(crate) fn run_with(
        &self,
        out: &mut Dense,
        context: &Context<'_>,
        packed: Option<&PackedX>,
        add: bool,
    ) -> Result<&'static str, Error> {
        let bias = self.bias.map(|b| {
            let view = b.view();
            // SAFETY: the bias is a matrix of one column.
            unsafe { VecRef::new(view.ptr, view.dtype, view.rows, view.row_stride) }
        });
        let w = BsrRef {
            pattern: &self.w.pattern,
            source: self.source,
            dtype: self.w.dtype,
            shape: self.w.shape,
            blocksize: self.w.block,
            transposed: self.transposed,
            group: self.group,
            by_column: self.by_column,
        };
        let epilogue = Epilogue { bias, activation: self.activation };
        Dsd { w, x: self.x.view(), out: out.view_mut(), epilogue, packed, add }.run(context)
    }

    /// Panics unless `out` holds the product within what rounding allows.
    pub(crate) fn check(&self, out: &Dense) {
        let (m, n) = (self.rows(), self.x.cols);
        let x: Vec<f64> = (0..self.x.rows * n).map(|i| self.x.get(i / n, i % n)).collect();
        let mut sums = vec![(0f64, 0f64); m * n];
        let mut terms = vec![0usize; m];
        self.w.each(|row, col, w| {
            let (row, k) = if self.transposed { (col, row) } else { (row, col) };
            terms[row] += 1;
            for (sum, x) in sums[row * n..][..n].iter_mut().zip(&x[k * n..][..n]) {
                *sum = (sum.0 + w * x, sum.1 + (w * x).abs());
            }
        });
        let types = [self.w.dtype, self.x.dtype, out.dtype];
        let eps = if types.contains(&DType::F64) { f64::EPSILON } else { f64::from(f32::EPSILON) };
        for i in 0..m {
            let bias = self.bias.map_or(0.0, |b| b.get(i, 0));
            for j in 0..n {
                let (sum, size) = sums[i * n + j];
                let got = out.get(i, j);
                let place = || format!("({i}, {j}) of {m} x {n}, {types:?}, block {:?}", self.w.block);
                if out.dtype == DType::I32 {
                    let want = (sum as i64 as i32).wrapping_add(bias as i32);
                    let want = if self.activation == Activation::Relu { want.max(0) } else { want };
                    assert_eq!(got, f64::from(want), "{}", place());
                    continue;
                }
                let want = activate(sum + bias, self.activation);
                if want.is_nan() || want.is_infinite() {
                    assert!(got == want || got.is_nan() && want.is_nan(), "{got}, not {want} at {}", place());
                    continue;
                }
                let rounding = match out.dtype {
                    DType::F16 => 2f64.powi(-11) * want.abs() + 2f64.powi(-25),
                    DType::Bf16 => 2f64.powi(-8) * want.abs(),
                    DType::F32 => 2f64.powi(-24) * want.abs(),
                    _ => 0.0,
                };
                let bound = 1.01 * rounding + eps * (terms[i] + 8) as f64 * (size + bias.abs());
                assert!((got - want).abs() <= bound, "{got}, not {want} ± {bound} at {}", place());
            }
        }
    }
}

/// Leaves NaN in the workspaces that the next call will take: it must read nothing that it did not
/// write.
pub(crate) fn poison() {
    let taken: Vec<Workspace> = (6..=16)
        .flat_map(|log| [1 << log; 3])
        .map(|bytes| {
            let workspace = Workspace::take(bytes).unwrap();
            // SAFETY: the workspace has as many bytes, and nobody else has it.
            unsafe { workspace.as_ptr().write_bytes(u8::MAX, bytes) };
            workspace
        })
        .collect();
    drop(taken);
}

fn activate(v: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Identity => v,
        Activation::Relu if v < 0.0 => 0.0,
        Activation::Relu => v,
        Activation::Gelu => 0.5 * v * (1.0 + libm::erf(v * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::Silu => v / (1.0 + (-v).exp()),
    }
}
