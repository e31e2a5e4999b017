//! `Ssd::plan` and `Ssd::plan_at` against a naive float64 product, at every level that this machine has.

// What it has besides serves other tests.
#[allow(dead_code)]
mod support;

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard};

use proptest::prelude::*;
use prunus_core::{BlocksMut, BsrRef, DType, Error, Interrupt, MemoryBlocks, Never, Pattern};
use prunus_cpu::ssd::Plan;
use prunus_cpu::{Context, Ssd, level};
use support::{Rng, Sparse, poison};

use DType::{Bf16, F16, F32, F64, I8, I32};

/// Types of A, B and the result.
const TYPES: [(DType, DType, DType); 14] = [
    (F32, F32, F32),
    (F64, F64, F64),
    (Bf16, Bf16, Bf16),
    (F16, F16, F16),
    (I8, I8, I32),
    (Bf16, Bf16, F32),
    (Bf16, F32, F32),
    (F32, F16, F32),
    (F16, Bf16, F32),
    (F32, F64, F64),
    (F64, F32, F64),
    (Bf16, Bf16, F64),
    (I8, F32, F32),
    (F32, I8, F32),
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

fn operand<'a>(w: &'a Sparse, source: &'a MemoryBlocks<'a>, transposed: bool) -> BsrRef<'a> {
    BsrRef {
        pattern: &w.pattern,
        source,
        dtype: w.dtype,
        shape: w.shape,
        blocksize: w.block,
        transposed,
        group: 0,
        by_column: None,
    }
}

/// The bytes that a plan writes to `count` blocks; those that it does not write hold ones.
fn run(plan: &Plan<'_>, dtype: DType, count: usize, context: &Context<'_>) -> Result<support::Bytes, Error> {
    let (rows, cols) = plan.blocksize();
    let bytes = support::Bytes::new(count * rows * cols * dtype.size());
    // SAFETY: the buffer has room for all blocks, nobody else uses it, and it was made to be written.
    let out = unsafe { BlocksMut::new(bytes.as_ptr().cast_mut(), dtype, (rows, cols), count) };
    plan.run(&out, context)?;
    Ok(bytes)
}

#[derive(Clone, Debug)]
struct Case {
    types: usize,
    /// Rows, inner length and columns of blocks, how many blocks, and what the last of them have too many.
    block: [usize; 3],
    grid: [usize; 3],
    ragged: [usize; 3],
    transposed: [bool; 2],
    /// Of 4, how many blocks of A, of B and of those wanted exist.
    density: [usize; 3],
    shuffled: [bool; 3],
    duplicates: [bool; 3],
    lead: [usize; 3],
    specials: bool,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let tuned = prop::sample::select(vec![4usize, 8, 16, 32, 64]);
    let side = || prop_oneof![3 => tuned.clone(), 4 => 1..20usize, 1 => 60..140usize];
    let form =
        ([side(), side(), side()], [0..5usize, 0..5usize, 0..5usize], [0..64usize, 0..64usize, 0..64usize]);
    let pattern = ([0..=4usize, 0..=4usize, 0..=4usize], any::<[bool; 3]>(), any::<[bool; 3]>());
    let rest = ([0..3usize, 0..3usize, 0..3usize], any::<[bool; 2]>(), any::<bool>(), any::<u64>());
    (0..TYPES.len(), form, pattern, rest).prop_map(
        |(types, (block, grid, ragged), (density, shuffled, duplicates), rest)| Case {
            types,
            block,
            grid,
            ragged,
            transposed: rest.1,
            density,
            shuffled,
            duplicates,
            lead: rest.0,
            specials: rest.2,
            seed: rest.3,
        },
    )
}

/// Block columns of each of `rows` rows of a grid.
fn grid_rows(case: &Case, which: usize, (rows, cols): (usize, usize), rng: &mut Rng) -> Vec<Vec<usize>> {
    let row = |_| {
        let mut row: Vec<usize> = (0..cols).filter(|_| rng.below(4) < case.density[which]).collect();
        if case.duplicates[which] && !row.is_empty() {
            row.push(row[rng.below(row.len())]);
            row.sort_unstable();
        }
        if case.shuffled[which] {
            for i in (1..row.len()).rev() {
                row.swap(i, rng.below(i + 1));
            }
        }
        row
    };
    (0..rows).map(row).collect()
}

/// Values and sums of sizes of the dense product, and how many terms a value has at most.
fn dense(
    a: &Sparse,
    b: &Sparse,
    transposed: [bool; 2],
    (m, k, n): (usize, usize, usize),
) -> (Vec<(f64, f64)>, usize) {
    let mut lines: Vec<Vec<(usize, f64)>> = vec![Vec::new(); k];
    b.each(|row, col, value| {
        let (row, col) = if transposed[1] { (col, row) } else { (row, col) };
        lines[row].push((col, value));
    });
    let mut sums = vec![(0f64, 0f64); m * n];
    let mut terms = vec![0usize; m * n];
    a.each(|row, col, value| {
        let (row, col) = if transposed[0] { (col, row) } else { (row, col) };
        for &(to, other) in &lines[col] {
            let sum = &mut sums[row * n + to];
            *sum = (sum.0 + value * other, sum.1 + (value * other).abs());
            terms[row * n + to] += 1;
        }
    });
    (sums, terms.into_iter().max().unwrap_or(0))
}

/// Panics unless each entry of a pattern holds its block of the dense product, with zeros past the edge.
#[allow(clippy::too_many_arguments)]
fn compare(
    rows: impl Iterator<Item = (usize, usize, usize)>,
    got: &support::Bytes,
    dtype: DType,
    (br, bc): (usize, usize),
    (m, n): (usize, usize),
    sums: &[(f64, f64)],
    terms: usize,
    wide: bool,
) {
    let eps = if wide { f64::EPSILON } else { f64::from(f32::EPSILON) };
    for (entry, row, col) in rows {
        for (r, c) in (0..br).flat_map(|r| (0..bc).map(move |c| (r, c))) {
            let value = got.get(dtype, (entry * br * bc + r * bc + c) * dtype.size());
            let (i, j) = (row * br + r, col * bc + c);
            if i >= m || j >= n {
                assert_eq!(value, 0.0, "past the edge at ({i}, {j}) of {m} x {n}");
                continue;
            }
            let (want, size) = sums[i * n + j];
            if dtype == I32 {
                assert_eq!(value, f64::from(want as i64 as i32));
                continue;
            }
            if !want.is_finite() {
                assert!(value == want || value.is_nan() && want.is_nan(), "{value}, not {want}");
                continue;
            }
            let rounding = match dtype {
                F16 => 2f64.powi(-11) * want.abs() + 2f64.powi(-25),
                Bf16 => 2f64.powi(-8) * want.abs(),
                F32 => 2f64.powi(-24) * want.abs(),
                _ => 0.0,
            };
            let bound = 1.01 * rounding + eps * (terms + 8) as f64 * size;
            assert!(
                (value - want).abs() <= bound,
                "{value}, not {want} ± {bound} at ({i}, {j}) of {m} x {n}"
            );
        }
    }
}

/// Entry, block row and block column of everything that a pattern names.
fn entries(pattern: &Pattern) -> impl Iterator<Item = (usize, usize, usize)> {
    let row = |(row, ends): (usize, &[usize])| {
        (ends[0]..ends[1]).map(|e| (pattern.block(e), row, pattern.indices()[e] as usize)).collect::<Vec<_>>()
    };
    pattern.indptr().windows(2).enumerate().flat_map(row).collect::<Vec<_>>().into_iter()
}

fn check(case: &Case) {
    let (a_type, b_type, out) = TYPES[case.types];
    let mut rng = Rng::new(case.seed);
    let [br, bi, bc] = case.block;
    let length = |i: usize| {
        let (count, block) = (case.grid[i], case.block[i]);
        if count == 0 { 0 } else { count * block - case.ragged[i] % block }
    };
    let (m, k, n) = (length(0), length(1), length(2));
    let grid = |length: usize, block: usize| length.div_ceil(block);
    let make = |which: usize, (rows, cols): (usize, usize), (r, c): (usize, usize), dtype, rng: &mut Rng| {
        let turned = case.transposed[which];
        let (shape, block) = if turned { ((cols, rows), (c, r)) } else { ((rows, cols), (r, c)) };
        let places = grid_rows(case, which, (grid(shape.0, block.0), grid(shape.1, block.1)), rng);
        let mut values = Rng::new(rng.next());
        let lead = if shape.1 == 0 { 0 } else { case.lead[which] };
        Sparse::new(dtype, shape, block, &places, lead, || values.value(dtype, case.specials))
    };
    let a = make(0, (m, k), (br, bi), a_type, &mut rng);
    let b = make(1, (k, n), (bi, bc), b_type, &mut rng);
    let places = grid_rows(case, 2, (grid(m, br), grid(n, bc)), &mut rng);
    let at =
        Sparse::new(I8, (m, n), (br, bc), &places, if n == 0 { 0 } else { case.lead[2] }, || 0.0).pattern;
    let (sums, terms) = dense(&a, &b, case.transposed, (m, k, n));
    let wide = [a_type, b_type, out].contains(&F64);
    let (left, right) = (memory(&a), memory(&b));
    let call = Ssd { a: operand(&a, &left, case.transposed[0]), b: operand(&b, &right, case.transposed[1]) };
    for level in level::available() {
        level::set(level);
        poison();
        let whole = call.plan(&context(1)).unwrap();
        let every = run(&whole, out, whole.indices().len(), &context(1)).unwrap();
        let found = Pattern::new(
            whole.indptr().iter().map(|&offset| offset as i64),
            whole.indices().iter().map(|&column| i64::from(column)),
            grid(n, bc),
        )
        .unwrap();
        compare(entries(&found), &every, out, (br, bc), (m, n), &sums, terms, wide);
        poison();
        let plan = call.plan_at(&at, &context(1)).unwrap();
        // Room for more than the pattern names, which is left alone.
        let count = at.indices().len() + 1;
        let got = run(&plan, out, count, &context(1)).unwrap();
        compare(entries(&at), &got, out, (br, bc), (m, n), &sums, terms, wide);
        let bytes = br * bc * out.size();
        for other in (0..at.indptr()[0]).chain([count - 1]) {
            assert!(
                got.slice(other * bytes, bytes).iter().all(|&byte| byte == u8::MAX),
                "wrote beside the result"
            );
        }
        // The same bits as of the whole product, and a zero where that has no block.
        for (entry, row, column) in entries(&at) {
            let line = &whole.indices()[whole.indptr()[row]..whole.indptr()[row + 1]];
            let block = got.slice(entry * bytes, bytes);
            match line.binary_search(&(column as u32)) {
                Ok(place) => {
                    let place = whole.indptr()[row] + place;
                    assert!(block == every.slice(place * bytes, bytes), "differs at {}", level.name());
                }
                Err(_) => assert!(block.iter().all(|&byte| byte == 0)),
            }
        }
        for threads in 2..=4 {
            let plan = call.plan_at(&at, &context(threads)).unwrap();
            let other = run(&plan, out, count, &context(threads)).unwrap();
            assert!(other == got, "{threads} threads differ at {}", level.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(debug_assertions) { 200 } else { 400 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn chosen_blocks_are_those_of_the_whole_product(case in cases()) {
        let _turn = one_at_a_time();
        check(&case);
    }
}

fn full(shape: (usize, usize), block: (usize, usize), one_in: usize, seed: u64) -> Sparse {
    let mut rng = Rng::new(seed);
    let (rows, cols) = (shape.0.div_ceil(block.0), shape.1.div_ceil(block.1));
    let places: Vec<Vec<usize>> =
        (0..rows).map(|_| (0..cols).filter(|_| rng.below(one_in) == 0).collect()).collect();
    Sparse::new(F32, shape, block, &places, 0, || rng.value(F32, false))
}

#[test]
fn only_pairs_that_meet_in_a_chosen_block_are_multiplied() {
    let _turn = one_at_a_time();
    // A and B hold everything: 20³ pairs, of which each chosen block has 20.
    let (a, b) = (full((80, 80), (4, 4), 1, 1), full((80, 80), (4, 4), 1, 2));
    let (left, right) = (memory(&a), memory(&b));
    let call = Ssd { a: operand(&a, &left, false), b: operand(&b, &right, false) };
    let at = full((80, 80), (4, 4), 10, 3).pattern;
    assert_eq!(call.plan(&context(1)).unwrap().products(), 8000);
    let plan = call.plan_at(&at, &context(2)).unwrap();
    assert_eq!(plan.products(), 20 * at.len());
    assert_eq!(plan.work(), (20 * at.len() * 64) as u64);
    assert_eq!(plan.indices(), at.indices());
}

#[test]
fn blocks_of_b_are_packed_in_turns() {
    let _turn = one_at_a_time();
    // 600 blocks of 256 x 128 in float32, twice the room that packed blocks have.
    let shape = (256 * 24, 128 * 25);
    let (a, b) = (full((512, shape.0), (256, 256), 4, 1), full((shape.1, shape.0), (128, 256), 1, 2));
    let (left, right) = (memory(&a), memory(&b));
    let call = Ssd { a: operand(&a, &left, false), b: operand(&b, &right, true) };
    let at = full((512, shape.1), (256, 128), 3, 3).pattern;
    let (whole, plan) = (call.plan(&context(2)).unwrap(), call.plan_at(&at, &context(2)).unwrap());
    let every = run(&whole, F32, whole.indices().len(), &context(2)).unwrap();
    let got = run(&plan, F32, at.len(), &context(2)).unwrap();
    let bytes = 256 * 128 * 4;
    for (entry, row, column) in entries(&at) {
        let line = &whole.indices()[whole.indptr()[row]..whole.indptr()[row + 1]];
        let place = whole.indptr()[row] + line.binary_search(&(column as u32)).unwrap();
        assert!(got.slice(entry * bytes, bytes) == every.slice(place * bytes, bytes));
    }
}

/// Answers `true` from the given question on.
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
fn an_interrupt_stops_planning_and_computing() {
    let _turn = one_at_a_time();
    let a = full((512, 512), (8, 8), 1, 1);
    let source = memory(&a);
    let call = Ssd { a: operand(&a, &source, false), b: operand(&a, &source, true) };
    let plan = call.plan_at(&a.pattern, &context(1)).unwrap();
    for threads in 1..=3 {
        let at_once = || Fires { after: 0, asked: Cell::new(0) };
        let (planning, computing) = (at_once(), at_once());
        let planned = call.plan_at(&a.pattern, &Context { threads, interrupt: &planning });
        let done = run(&plan, F32, a.pattern.len(), &Context { threads, interrupt: &computing });
        // Other threads may be done before the first question.
        assert!(threads > 1 || (planning.asked.get() > 0 && computing.asked.get() > 0));
        assert_eq!(planned.err(), (planning.asked.get() > 0).then_some(Error::Interrupted));
        assert_eq!(done.err(), (computing.asked.get() > 0).then_some(Error::Interrupted));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let _turn = one_at_a_time();
    let (a, b) = (full((20, 24), (4, 8), 1, 1), full((24, 12), (8, 4), 1, 2));
    let (left, right) = (memory(&a), memory(&b));
    let call = Ssd { a: operand(&a, &left, false), b: operand(&b, &right, false) };
    for (shape, block) in [((20, 16), (4, 4)), ((24, 12), (4, 4)), ((20, 12), (2, 4))] {
        let at = full(shape, block, 1, 3).pattern;
        let error = call.plan_at(&at, &context(1)).err().unwrap();
        assert!(error.to_string().starts_with("block pattern: expected 5 x 3 blocks"), "{error}");
    }
    let at = full((20, 12), (4, 4), 1, 3).pattern;
    let plan = call.plan_at(&at, &context(1)).unwrap();
    let error = run(&plan, F32, at.len() - 1, &context(1)).err().unwrap();
    assert!(error.to_string().contains("expected 15 blocks of 4 x 4, got 14"), "{error}");
    assert!(matches!(run(&plan, I8, at.len(), &context(1)), Err(Error::DTypes { .. })));
    let mixed = Ssd { a: operand(&a, &left, false), b: operand(&a, &left, false) };
    assert!(matches!(mixed.plan_at(&at, &context(1)), Err(Error::Shape { .. })));
}
