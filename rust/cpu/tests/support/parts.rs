//! Products that come in parts: an x packed ahead of time changes no bit, and sums go on from what is there.

use proptest::prelude::*;
use prunus_core::{Activation, DType, Error, MemoryBlocks, Never};
use prunus_cpu::dsd::PackedX;
use prunus_cpu::{Context, level};

use crate::one_at_a_time;
use crate::support::{Dense, LAYOUTS, Product, Rng, Sparse, WRITEABLE};

use DType::{Bf16, F16, F32, F64, I8, I32};

/// Types of W and x, and that of their sums.
const TYPES: [(DType, DType, DType); 8] = [
    (F32, F32, F32),
    (F64, F64, F64),
    (Bf16, Bf16, F32),
    (F16, F32, F32),
    (I8, I8, I32),
    (F32, F64, F64),
    (Bf16, F32, F32),
    (F32, F16, F32),
];

#[derive(Clone, Debug)]
struct Case {
    types: usize,
    block: (usize, usize),
    grid: (usize, usize),
    ragged: (usize, usize),
    density: usize,
    columns: usize,
    transposed: bool,
    layouts: (usize, usize),
    threads: usize,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let tuned = prop::sample::select(vec![4usize, 8, 16, 32]);
    let block = prop_oneof![(tuned.clone(), tuned), (1..20usize, 1..20usize), (60..140usize, 1..10usize)];
    let columns = prop_oneof![1 => 0..6usize, 3 => 0..40usize, 1 => 0..=330usize];
    let form = (block, (1..5usize, 1..5usize), (0..64usize, 0..64usize), 0..=4usize);
    let operand = (columns, any::<bool>(), (0..LAYOUTS, 0..WRITEABLE), 1..4usize);
    (0..TYPES.len(), form, operand, any::<u64>()).prop_map(
        |(types, (block, grid, ragged, density), (columns, transposed, layouts, threads), seed)| Case {
            types,
            block,
            grid,
            ragged,
            density,
            columns,
            transposed,
            layouts,
            threads,
            seed,
        },
    )
}

fn run(case: &Case) {
    let _turn = one_at_a_time();
    let mut rng = Rng::new(case.seed);
    let (w_type, x_type, out_type) = TYPES[case.types];
    let size = |grid: usize, block: usize, ragged: usize| grid * block - ragged % block;
    let (block, grid) = (case.block, case.grid);
    let shape = (size(grid.0, block.0, case.ragged.0), size(grid.1, block.1, case.ragged.1));
    let rows: Vec<Vec<usize>> =
        (0..grid.0).map(|_| (0..grid.1).filter(|_| rng.below(4) < case.density).collect()).collect();
    // Whole numbers, all of whose sums are exact: what is added in another order is the same.
    let whole = |rng: &mut Rng| rng.below(7) as f64 - 3.0;
    let w = Sparse::new(w_type, shape, block, &rows, 0, || whole(&mut rng));
    let (m, k) = if case.transposed { (shape.1, shape.0) } else { shape };
    let x = Dense::new(x_type, (k, case.columns), case.layouts.0).fill(|_, _| whole(&mut rng));
    // SAFETY: the matrix's own blocks.
    let source = unsafe { MemoryBlocks::new(w.data.as_ptr(), w.block_bytes()) };
    let product = Product {
        w: &w,
        source: &source,
        transposed: case.transposed,
        group: 0,
        by_column: None,
        x: &x,
        bias: None,
        activation: Activation::Identity,
    };
    let op_block = if case.transposed { (block.1, block.0) } else { block };
    let before = Dense::new(out_type, (m, case.columns), case.layouts.1).fill(|_, _| whole(&mut rng));
    for level in level::available() {
        level::set(level);
        let context = Context { threads: case.threads, interrupt: &Never };
        let mut plain = Dense::new(out_type, (m, case.columns), case.layouts.1);
        product.run(&mut plain, &context).unwrap();
        let packed = PackedX::pack(&x.view(), w_type, out_type, op_block, &context).unwrap();
        let mut other = Dense::new(out_type, (m, case.columns), case.layouts.1);
        product.run_with(&mut other, &context, packed.as_ref(), false).unwrap();
        assert!(other.bytes == plain.bytes, "packed x differs at {}", level.name());
        let mut sums = before.clone();
        product.run_with(&mut sums, &context, packed.as_ref(), true).unwrap();
        assert!(sums.guards_hold(), "{} wrote beside the sums", level.name());
        for i in 0..m {
            for j in 0..case.columns {
                assert_eq!(sums.get(i, j), before.get(i, j) + plain.get(i, j), "{} ({i}, {j})", level.name());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_packed_x_changes_no_bit_and_sums_go_on(case in cases()) {
        run(&case);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let _turn = one_at_a_time();
    let context = Context { threads: 1, interrupt: &Never };
    let w = Sparse::new(F32, (16, 16), (8, 8), &[vec![0], vec![1]], 0, || 1.0);
    let (x, other) = (Dense::new(F32, (16, 40), 1).fill(|_, _| 1.0), Dense::new(F32, (16, 41), 1));
    // SAFETY: the matrix's own blocks.
    let source = unsafe { MemoryBlocks::new(w.data.as_ptr(), w.block_bytes()) };
    let product = Product {
        w: &w,
        source: &source,
        transposed: false,
        group: 0,
        by_column: None,
        x: &x,
        bias: None,
        activation: Activation::Identity,
    };
    let packed = PackedX::pack(&other.view(), F32, F32, (8, 8), &context).unwrap().unwrap();
    let mut out = Dense::new(F32, (16, 40), 0);
    let wrong = product.run_with(&mut out, &context, Some(&packed), false);
    assert!(matches!(wrong, Err(Error::Shape { what: "packed operand", .. })), "{wrong:?}");
    let mut half = Dense::new(F16, (16, 40), 0);
    let wrong = product.run_with(&mut half, &context, None, true);
    assert!(matches!(wrong, Err(Error::DTypes { .. })), "{wrong:?}");
    let wrong = Product { activation: Activation::Relu, ..product }.run_with(&mut out, &context, None, true);
    assert!(matches!(wrong, Err(Error::Choice { .. })), "{wrong:?}");
    let wrong = PackedX::pack(&x.view(), F32, I32, (8, 8), &context);
    assert!(matches!(wrong, Err(Error::DTypes { .. })), "{wrong:?}");
    let wrong = PackedX::pack(&x.view(), F32, F32, (0, 8), &context);
    assert!(matches!(wrong, Err(Error::Shape { .. })), "{wrong:?}");
    // In another block size than it was packed for, x is packed anew.
    let packed = PackedX::pack(&x.view(), F32, F32, (8, 4), &context).unwrap();
    assert_eq!(packed.as_ref().map(PackedX::shape), Some((16, 40)));
    let product = Product { activation: Activation::Identity, ..product };
    let mut plain = Dense::new(F32, (16, 40), 0);
    product.run(&mut plain, &context).unwrap();
    product.run_with(&mut out, &context, packed.as_ref(), false).unwrap();
    assert!(out.bytes == plain.bytes);
}
