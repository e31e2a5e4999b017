//! Products to try: operands laid out as asked, the result by the definition, and the comparison.

use half::bf16;
use prunus_core::{
    Activation, BlockSource, BsrRef, DType, Epilogue, Error, MatMut, MatRef, MemoryBlocks, Never, Pattern,
    VecRef,
};
use prunus_cpu::{Context, Dsd};

/// Numbers that look random (xorshift).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// How a dense operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Layout {
    /// Rows are contiguous, one after another.
    Rows,
    /// Columns are contiguous, one after another: tokens.
    Columns,
    /// Rows are contiguous, with gaps between them.
    GapRows,
    /// Columns are contiguous, with gaps between them.
    GapColumns,
    /// No two values are adjacent.
    Scattered,
    /// Rows from last to first, values from last to first.
    Backwards,
}

pub(crate) const LAYOUTS: [Layout; 6] = [
    Layout::Rows,
    Layout::Columns,
    Layout::GapRows,
    Layout::GapColumns,
    Layout::Scattered,
    Layout::Backwards,
];

impl Layout {
    /// Offset of the first value, strides, and values in all.
    fn of(self, rows: usize, cols: usize) -> (usize, (isize, isize), usize) {
        let (r, c) = (rows as isize, cols as isize);
        let (first, strides) = match self {
            Self::Rows => (0, (c, 1)),
            Self::Columns => (0, (1, r)),
            Self::GapRows => (3, (c + 5, 1)),
            Self::GapColumns => (1, (1, r + 3)),
            Self::Scattered => (2, (2 * c + 3, 2)),
            Self::Backwards => (rows * cols, (-c, -1)),
        };
        (first, strides, (2 * cols + 8) * rows + (rows + 8) * cols + 16)
    }
}

/// One product.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Rows of W, summed dimension, columns of x.
    pub shape: (usize, usize, usize),
    /// Rows and columns of a block as stored.
    pub block: (usize, usize),
    pub transposed: bool,
    /// Percent of the blocks that exist.
    pub density: usize,
    pub dtype: DType,
    pub out_dtype: DType,
    pub x: Layout,
    pub out: Layout,
    pub bias: bool,
    pub activation: Activation,
    /// Blocks that the engine must ask for one by one.
    pub(crate) loose: bool,
    /// Small whole numbers, whose sums are exact.
    pub whole: bool,
    pub seed: u64,
}

impl Case {
    pub(crate) fn new(dtype: DType, shape: (usize, usize, usize), block: (usize, usize)) -> Self {
        let out_dtype = if dtype == DType::I8 { DType::I32 } else { DType::F32 };
        Self {
            shape,
            block,
            transposed: false,
            density: 40,
            dtype,
            out_dtype,
            x: Layout::Rows,
            out: Layout::Rows,
            bias: false,
            activation: Activation::Identity,
            loose: false,
            whole: false,
            seed: 1,
        }
    }

    /// Runs the product on `threads` threads, compares it, and gives the kernel's name and the result.
    pub(crate) fn check(&self, threads: usize) -> (&'static str, Vec<u8>) {
        let (m, k, n) = self.shape;
        let mut random = Random::new(self.seed);
        let stored = if self.transposed { (k, m) } else { (m, k) };
        let grid = (stored.0.div_ceil(self.block.0), stored.1.div_ceil(self.block.1));
        let (mut indptr, mut indices) = (vec![0i64], Vec::new());
        for _ in 0..grid.0 {
            indices.extend((0..grid.1).filter(|_| random.below(100) < self.density).map(|c| c as i64));
            indptr.push(indices.len() as i64);
        }
        let pattern = Pattern::new(indptr.iter().copied(), indices.iter().copied(), grid.1).unwrap();

        // Blocks, with poison beyond the matrix, and the dense matrix in f64.
        let area = self.block.0 * self.block.1;
        let mut w = Values::poisoned(self.dtype, indices.len() * area);
        let mut dense = vec![0f64; m * k];
        for row in 0..grid.0 {
            let (start, end) = (indptr[row] as usize, indptr[row + 1] as usize);
            for (e, &column) in indices.iter().enumerate().take(end).skip(start) {
                for i in 0..area {
                    let (r, c) = (i / self.block.1, i % self.block.1);
                    let at = (row * self.block.0 + r, column as usize * self.block.1 + c);
                    if at.0 < stored.0 && at.1 < stored.1 {
                        let value = w.set(e * area + i, self.value(&mut random));
                        let at = if self.transposed { at.1 * k + at.0 } else { at.0 * k + at.1 };
                        dense[at] = value;
                    }
                }
            }
        }
        let (x_first, x_strides, x_len) = self.x.of(k, n);
        let mut x = Values::poisoned(self.dtype, x_len);
        let mut x_dense = vec![0f64; k * n];
        for i in 0..k {
            for j in 0..n {
                let at = place(x_first, x_strides, i, j);
                x_dense[i * n + j] = x.set(at, self.value(&mut random));
            }
        }
        let bias: Vec<f32> = (0..m).map(|i| (i % 7) as f32 - 3.0).collect();
        let whole_bias: Vec<i32> = bias.iter().map(|&b| b as i32).collect();

        let (out_first, out_strides, out_len) = self.out.of(m, n);
        let size = self.out_dtype.size();
        let mut out = vec![0xA5u8; out_len * size];
        let bytes = |(a, b): (isize, isize), size: usize| (a * size as isize, b * size as isize);
        // SAFETY: views of the vectors above, which outlive the product.
        let source = unsafe { MemoryBlocks::new(w.bytes.as_ptr(), area * self.dtype.size()) };
        let loose = Loose(source);
        // SAFETY: as above.
        let call = unsafe {
            let in_size = self.dtype.size();
            let x_ptr = x.bytes.as_ptr().add(x_first * in_size);
            let out_ptr = out.as_mut_ptr().add(out_first * size);
            let (bias_ptr, bias_dtype) = if self.dtype == DType::I8 {
                (whole_bias.as_ptr().cast(), DType::I32)
            } else {
                (bias.as_ptr().cast(), DType::F32)
            };
            Dsd {
                w: BsrRef {
                    pattern: &pattern,
                    source: if self.loose { &loose } else { &source },
                    dtype: self.dtype,
                    shape: stored,
                    blocksize: self.block,
                    transposed: self.transposed,
                    group: 0,
                    by_column: None,
                },
                x: MatRef::new(x_ptr, self.dtype, (k, n), bytes(x_strides, in_size)),
                out: MatMut { view: MatRef::new(out_ptr, self.out_dtype, (m, n), bytes(out_strides, size)) },
                epilogue: Epilogue {
                    bias: self.bias.then(|| VecRef::new(bias_ptr, bias_dtype, m, 4)),
                    activation: self.activation,
                },
                packed: None,
                add: false,
            }
        };
        let path = call.run(&Context { threads, interrupt: &Never }).unwrap();

        let mut result = Vec::new();
        let mut written = vec![false; out_len];
        for i in 0..m {
            for j in 0..n {
                let (mut sum, mut size_of_terms) = (0f64, 0f64);
                for l in 0..k {
                    let term = dense[i * k + l] * x_dense[l * n + j];
                    sum += term;
                    size_of_terms += term.abs();
                }
                let sum = if self.bias { sum + f64::from(bias[i]) } else { sum };
                let expected = activate(self.activation, sum);
                let at = place(out_first, out_strides, i, j);
                written[at] = true;
                let stored = &out[at * size..(at + 1) * size];
                result.extend_from_slice(stored);
                let got = read(self.out_dtype, stored);
                let rounding = match self.out_dtype {
                    DType::Bf16 => expected.abs() / 256.0,
                    DType::F16 => expected.abs() / 2048.0,
                    _ => expected.abs() * 1e-6,
                };
                let exact = self.dtype == DType::I8 || (self.whole && self.out_dtype == DType::F32);
                let exact = exact && matches!(self.activation, Activation::Identity | Activation::Relu);
                let tolerance = if exact { 0.0 } else { rounding + size_of_terms * 2e-6 + 1e-30 };
                assert!(
                    (got - expected).abs() <= tolerance,
                    "{path}, row {i}, column {j}: {got} instead of {expected} in {self:?}"
                );
            }
        }
        for (at, written) in written.into_iter().enumerate() {
            let untouched = out[at * size..(at + 1) * size].iter().all(|&byte| byte == 0xA5);
            assert!(written || untouched, "{path} wrote beside the result in {self:?}");
        }
        (path, result)
    }

    fn value(&self, random: &mut Random) -> f64 {
        match self.dtype {
            DType::I8 => random.below(256) as f64 - 128.0,
            _ if self.whole => random.below(9) as f64 - 4.0,
            _ => random.below(4001) as f64 / 1000.0 - 2.0,
        }
    }
}

/// Blocks that are in memory, without saying so.
struct Loose<'a>(MemoryBlocks<'a>);

impl BlockSource for Loose<'_> {
    fn block(&self, index: usize) -> Result<*const u8, Error> {
        self.0.block(index)
    }
}

fn place(first: usize, (row, col): (isize, isize), i: usize, j: usize) -> usize {
    (first as isize + i as isize * row + j as isize * col) as usize
}

fn activate(activation: Activation, v: f64) -> f64 {
    match activation {
        Activation::Identity => v,
        Activation::Relu => v.max(0.0),
        Activation::Silu => v / (1.0 + (-v).exp()),
        Activation::Gelu => unreachable!("not among the cases"),
    }
}

fn read(dtype: DType, bytes: &[u8]) -> f64 {
    match dtype {
        DType::I32 => f64::from(i32::from_ne_bytes(bytes.try_into().unwrap())),
        DType::F32 => f64::from(f32::from_ne_bytes(bytes.try_into().unwrap())),
        DType::F64 => f64::from_ne_bytes(bytes.try_into().unwrap()),
        DType::F16 => half::f16::from_ne_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::Bf16 => bf16::from_ne_bytes(bytes.try_into().unwrap()).to_f64(),
        DType::I8 => f64::from(bytes[0] as i8),
    }
}

/// Values of one type, all of them poison until set: NaN, or the largest int8.
struct Values {
    dtype: DType,
    bytes: Vec<u8>,
}

impl Values {
    fn poisoned(dtype: DType, len: usize) -> Self {
        let bytes = match dtype {
            DType::I8 => vec![127; len],
            DType::Bf16 => bf16::NAN.to_ne_bytes().repeat(len),
            _ => f32::NAN.to_ne_bytes().repeat(len),
        };
        Self { dtype, bytes }
    }

    /// Sets a value, and gives it as it was rounded.
    fn set(&mut self, at: usize, value: f64) -> f64 {
        match self.dtype {
            DType::I8 => {
                self.bytes[at] = value as i8 as u8;
                value
            }
            DType::Bf16 => {
                let value = bf16::from_f64(value);
                self.bytes[2 * at..2 * at + 2].copy_from_slice(&value.to_ne_bytes());
                value.to_f64()
            }
            _ => {
                let value = value as f32;
                self.bytes[4 * at..4 * at + 4].copy_from_slice(&value.to_ne_bytes());
                f64::from(value)
            }
        }
    }
}
