//! `Dsd::run` against a naive float64 product, at every level that this machine has.

#[path = "support/parts.rs"]
mod parts;
mod support;

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard};

use proptest::prelude::*;
use prunus_core::{Activation, BlockSource, DType, Error, Interrupt, MemoryBlocks, Never};
use prunus_cpu::{Context, level};
use support::{Dense, LAYOUTS, Product, Rng, Scattered, Sparse, WRITEABLE, poison};

use DType::{Bf16, F16, F32, F64, I8, I32};

/// Types of W, x and the result.
const TYPES: [(DType, DType, DType); 18] = [
    (F32, F32, F32),
    (F64, F64, F64),
    (Bf16, Bf16, Bf16),
    (F16, F16, F16),
    (I8, I8, I32),
    (Bf16, Bf16, F32),
    (Bf16, F32, F32),
    (F32, Bf16, F32),
    (F16, F32, F32),
    (F32, F16, F32),
    (F16, Bf16, F32),
    (F32, F64, F64),
    (F64, F32, F64),
    (Bf16, Bf16, F64),
    (F64, F64, F32),
    (I8, F32, F32),
    (F32, I8, F32),
    (I8, I8, F32),
];

/// The level is one for the process: tests that set it take turns.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|held| held.into_inner())
}

fn context(threads: usize) -> Context<'static> {
    Context { threads, interrupt: &Never }
}

fn memory(w: &Sparse) -> MemoryBlocks<'_> {
    // SAFETY: the matrix's own blocks.
    unsafe { MemoryBlocks::new(w.data.as_ptr(), w.block_bytes()) }
}

/// Runs the product at every level, on one to four threads: right, the same bits on any number of
/// threads, and nothing written beside the result.
fn check(product: &Product<'_>, dtype: DType, layout: usize) {
    let shape = (product.rows(), product.x.cols);
    for level in level::available() {
        level::set(level);
        poison();
        let mut one = Dense::new(dtype, shape, layout);
        product.run(&mut one, &context(1)).unwrap();
        product.check(&one);
        assert!(one.guards_hold(), "{} wrote beside the result", level.name());
        for threads in 2..=4 {
            let mut other = Dense::new(dtype, shape, layout);
            product.run(&mut other, &context(threads)).unwrap();
            assert!(other.bytes == one.bytes, "{threads} threads differ at {}", level.name());
        }
    }
}

#[derive(Clone, Debug)]
struct Case {
    types: usize,
    block: (usize, usize),
    grid: (usize, usize),
    /// Rows and columns that the last blocks have too many.
    ragged: (usize, usize),
    columns: usize,
    transposed: bool,
    by_column: bool,
    scattered: bool,
    /// Rows that are packed together, where the block can be cut so.
    group: usize,
    /// Of 4, how many blocks exist.
    density: usize,
    shuffled: bool,
    duplicates: bool,
    lead: usize,
    x_layout: usize,
    out_layout: usize,
    bias: Option<(usize, usize)>,
    activation: usize,
    specials: bool,
    seed: u64,
}

fn blocks() -> impl Strategy<Value = (usize, usize)> {
    let tuned = prop::sample::select(vec![4usize, 8, 16, 32, 64]);
    prop_oneof![
        3 => (tuned.clone(), tuned),
        4 => (1..20usize, 1..20usize),
        1 => (Just(1), 1..200usize),
        1 => (1..200usize, Just(1)),
        1 => (60..140usize, 1..10usize),
        1 => (1..10usize, 60..140usize),
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    let form = (blocks(), (0..5usize, 0..5usize), (0..64usize, 0..64usize));
    let columns = prop_oneof![2 => 0..6usize, 3 => 0..40usize, 1 => 0..=200usize];
    let group = prop::sample::select(vec![0usize, 2, 4, 8]);
    let pattern = (0..=4usize, any::<[bool; 2]>(), 0..3usize, group);
    let operand = (columns, any::<[bool; 4]>(), 0..LAYOUTS, 0..WRITEABLE);
    let epilogue = (prop::option::of((0..3usize, 0..WRITEABLE)), 0..4usize);
    (0..TYPES.len(), form, pattern, operand, epilogue, any::<u64>()).prop_map(
        |(types, (block, grid, ragged), pattern, operand, (bias, activation), seed)| Case {
            types,
            block,
            grid,
            ragged,
            columns: operand.0,
            transposed: operand.1[0],
            by_column: operand.1[1],
            scattered: operand.1[2],
            group: pattern.3,
            density: pattern.0,
            shuffled: pattern.1[0],
            duplicates: pattern.1[1],
            lead: pattern.2,
            x_layout: operand.2,
            out_layout: operand.3,
            bias,
            activation,
            specials: operand.1[3],
            seed,
        },
    )
}

fn pattern(case: &Case, rng: &mut Rng) -> Vec<Vec<usize>> {
    let mut row = || {
        let mut columns: Vec<usize> = (0..case.grid.1).filter(|_| rng.below(4) < case.density).collect();
        if case.duplicates && !columns.is_empty() {
            columns.insert(0, columns[0]);
        }
        if case.shuffled {
            for i in (1..columns.len()).rev() {
                columns.swap(i, rng.below(i + 1));
            }
        }
        columns
    };
    (0..case.grid.0).map(|_| row()).collect()
}

fn run(case: &Case) {
    let mut rng = Rng::new(case.seed);
    let (w_type, x_type, out_type) = TYPES[case.types];
    let integers = out_type == I32;
    let (block, grid) = (case.block, case.grid);
    let size = |grid: usize, block: usize, ragged: usize| (grid * block).saturating_sub(ragged % block);
    let shape = (size(grid.0, block.0, case.ragged.0), size(grid.1, block.1, case.ragged.1));
    let rows = pattern(case, &mut rng);
    let lead = if grid.1 == 0 { 0 } else { case.lead };
    let w = Sparse::new(w_type, shape, block, &rows, lead, || rng.value(w_type, case.specials));
    let (m, k) = if case.transposed { (shape.1, shape.0) } else { shape };
    let x =
        Dense::new(x_type, (k, case.columns), case.x_layout).fill(|_, _| rng.value(x_type, case.specials));
    let bias = case.bias.map(|(dtype, layout)| {
        let choices = if integers { [I8, I32, I32] } else { [F32, F64, Bf16] };
        Dense::new(choices[dtype], (m, 1), layout).fill(|_, _| rng.value(choices[dtype], case.specials))
    });
    let activation = match case.activation {
        0 => Activation::Identity,
        1 => Activation::Relu,
        _ if integers => Activation::Relu,
        2 => Activation::Gelu,
        _ => Activation::Silu,
    };
    let by_column = w.pattern.transposed();
    let group = if case.group > 0 && block.0.is_multiple_of(case.group) { case.group } else { 0 };
    let packed = (group > 0).then(|| w.packed(group));
    let stored = packed.as_ref().unwrap_or(&w);
    let (together, apart) = (memory(stored), Scattered { of: stored, fails: None });
    let source: &dyn BlockSource = if case.scattered { &apart } else { &together };
    let product = Product {
        w: &w,
        source,
        transposed: case.transposed,
        group,
        by_column: case.by_column.then_some(&by_column),
        x: &x,
        bias: bias.as_ref(),
        activation,
    };
    check(&product, out_type, case.out_layout);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(target_arch = "x86_64") { 600 } else { 300 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_level_agrees_with_float64(case in cases()) {
        let _turn = one_at_a_time();
        run(&case);
    }
}

/// A plain product of full patterns: `density` of 8 blocks exist.
fn big(
    types: (DType, DType, DType),
    shape: (usize, usize),
    block: (usize, usize),
    columns: usize,
    density: usize,
) -> (Sparse, Dense) {
    let mut rng = Rng::new(shape.1 as u64 + columns as u64);
    let grid = (shape.0.div_ceil(block.0), shape.1.div_ceil(block.1));
    let row = |rng: &mut Rng| (0..grid.1).filter(|_| rng.below(8) < density).collect();
    let rows: Vec<Vec<usize>> = (0..grid.0).map(|_| row(&mut rng)).collect();
    let w = Sparse::new(types.0, shape, block, &rows, 0, || rng.value(types.0, false));
    let x = Dense::new(types.1, (shape.1, columns), 0).fill(|_, _| rng.value(types.1, false));
    (w, x)
}

fn plain<'a>(w: &'a Sparse, source: &'a dyn BlockSource, x: &'a Dense) -> Product<'a> {
    let activation = Activation::Identity;
    Product { w, source, transposed: false, group: 0, by_column: None, x, bias: None, activation }
}

#[test]
fn work_is_split_among_threads_without_a_trace() {
    let _turn = one_at_a_time();
    for types in [TYPES[0], TYPES[1], TYPES[2], TYPES[4]] {
        let (w, x) = big(types, (500, 400), (20, 16), 130, 4);
        let source = memory(&w);
        check(&plain(&w, &source, &x), types.2, 0);
    }
}

#[test]
fn long_rows_are_summed_in_parts() {
    let _turn = one_at_a_time();
    for types in [TYPES[0], TYPES[2], TYPES[4]] {
        // One block row holds more than is swept at a time, and blocks are longer than a burst.
        let (w, x) = big(types, (70, 9000), (70, 150), 20, 7);
        let source = memory(&w);
        check(&plain(&w, &source, &x), types.2, 1);
    }
}

#[test]
fn many_columns_are_packed_in_turns() {
    let _turn = one_at_a_time();
    let (w, x) = big(TYPES[4], (3, 1 << 16), (2, 64), 300, 1);
    let source = memory(&w);
    check(&plain(&w, &source, &x), I32, 0);
}

#[test]
fn integer_sums_wrap() {
    let _turn = one_at_a_time();
    let k = 140_001;
    let w = Sparse::new(I8, (1, k), (1, k), &[vec![0]], 0, || -128.0);
    let x = Dense::new(I8, (k, 5), 0).fill(|_, _| -128.0);
    let bias = Dense::new(I32, (1, 1), 0).fill(|_, _| f64::from(i32::MAX));
    let source = memory(&w);
    check(&plain(&w, &source, &x), I32, 0);
    check(&Product { bias: Some(&bias), ..plain(&w, &source, &x) }, I32, 0);
}

#[test]
fn nothing_absent_is_seen() {
    let _turn = one_at_a_time();
    for (types, block) in [(TYPES[0], 8), (TYPES[1], 5), (TYPES[2], 7), (TYPES[2], 8), (TYPES[3], 8)] {
        // Block columns 1 and 3 have no block; x is NaN there, and infinite where only row 1 looks.
        let rows = [vec![0, 4], vec![2], vec![]];
        let w = Sparse::new(types.0, (3 * block, 5 * block - 2), (block, block), &rows, 2, || 1.0);
        let x = Dense::new(types.1, (5 * block - 2, 37), 0).fill(|k, _| match k / block {
            1 | 3 => f64::NAN,
            2 => f64::INFINITY,
            _ => 1.0,
        });
        let source = memory(&w);
        let product = plain(&w, &source, &x);
        check(&product, types.2, 0);
        let mut out = Dense::new(types.2, (3 * block, 37), 0);
        product.run(&mut out, &context(1)).unwrap();
        assert_eq!(out.get(0, 36), (2 * block - 2) as f64);
        assert_eq!(out.get(block, 0), f64::INFINITY);
        assert_eq!(out.get(2 * block, 0), 0.0);
    }
}

#[test]
fn empty_shapes_give_empty_or_zero_results() {
    let _turn = one_at_a_time();
    for shape in [(0, 0), (0, 9), (9, 0), (9, 9)] {
        for columns in [0, 1, 33] {
            let rows = vec![vec![]; usize::div_ceil(shape.0, 4)];
            let w = Sparse::new(F32, shape, (4, 4), &rows, 0, || 1.0);
            let x = Dense::new(F32, (shape.1, columns), 0).fill(|_, _| f64::NAN);
            let source = memory(&w);
            check(&plain(&w, &source, &x), F32, 0);
        }
    }
}

/// Answers `true` from the given question on; remembers whether it did.
struct Fires {
    after: usize,
    asked: Cell<usize>,
}

impl Interrupt for Fires {
    fn interrupted(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.asked.get() > self.after
    }
}

#[test]
fn an_interrupt_stops_the_work() {
    let _turn = one_at_a_time();
    let (w, x) = big(TYPES[0], (500, 400), (20, 16), 130, 8);
    let source = memory(&w);
    let product = plain(&w, &source, &x);
    for level in level::available() {
        level::set(level);
        for threads in 1..=4 {
            for after in [0, 1, 3, usize::MAX] {
                let interrupt = Fires { after, asked: Cell::new(0) };
                let mut out = Dense::new(F32, (500, 130), 0);
                let result = product.run(&mut out, &Context { threads, interrupt: &interrupt });
                let fired = interrupt.asked.get() > after;
                assert_eq!(result.is_err(), fired, "{threads} threads, after {after}");
                if fired {
                    assert_eq!(result, Err(Error::Interrupted));
                }
                assert!(fired || threads > 1 || after > 0);
            }
        }
    }
}

#[test]
fn a_block_that_does_not_come_ends_the_call() {
    let _turn = one_at_a_time();
    let (w, x) = big(TYPES[0], (100, 80), (20, 16), 40, 8);
    for level in level::available() {
        level::set(level);
        for threads in 1..=4 {
            for fails in [0, 7, 24] {
                let source = Scattered { of: &w, fails: Some(fails) };
                let mut out = Dense::new(F32, (100, 40), 0);
                let fault = plain(&w, &source, &x).run(&mut out, &context(threads)).unwrap_err();
                assert!(fault.to_string().contains(&format!("block {fails} did not come")));
            }
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let _turn = one_at_a_time();
    let (w, x) = big(TYPES[0], (10, 8), (4, 4), 3, 8);
    let source = memory(&w);
    let product = plain(&w, &source, &x);
    let refused = |product: &Product<'_>, out: (DType, (usize, usize))| {
        let mut out = Dense::new(out.0, out.1, 0);
        product.run(&mut out, &context(1)).unwrap_err().to_string()
    };
    assert!(refused(&product, (F32, (10, 4))).contains("result: expected 10 x 3, got 10 x 4"));
    assert!(refused(&product, (I32, (10, 3))).contains("no product for dtypes float32 and float32"));
    let short = Dense::new(F32, (7, 3), 0);
    assert!(refused(&plain(&w, &source, &short), (F32, (10, 3))).contains("expected 8 x 3, got 7 x 3"));
    let bias = Dense::new(F32, (9, 1), 0);
    let biased = Product { bias: Some(&bias), ..plain(&w, &source, &x) };
    assert!(refused(&biased, (F32, (10, 3))).contains("bias"));
    let (w, x) = big(TYPES[4], (10, 8), (4, 4), 3, 8);
    let source = memory(&w);
    let gelu = Product { activation: Activation::Gelu, ..plain(&w, &source, &x) };
    assert!(refused(&gelu, (I32, (10, 3))).contains("relu"));
}
