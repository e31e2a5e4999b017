//! Block-sparse products at the AMX level, instruction by instruction: on machines without AMX (and
//! without `vdpbf16ps`) the kernels' machine code runs under an emulator of those instructions.
#![cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]

#[path = "support/emulator/mod.rs"]
mod emulator;
#[path = "support/product.rs"]
mod product;

use prunus_core::{Activation, DType, Never};
use prunus_cpu::level::{self, Level};
use prunus_cpu::{Context, machine};

use product::{Case, LAYOUTS, Layout, Random};

/// Pins the AMX level; false where not even AVX-512 is there, which the level builds on.
fn ready() -> bool {
    if !Level::Avx512Dot.is_available() {
        eprintln!("skipped: no AVX-512 with VNNI here");
        return false;
    }
    if !Level::Amx.is_available() {
        emulator::install();
    }
    level::set(Level::Amx);
    true
}

/// Runs a case in tiles.
fn tiles(case: &Case) -> Vec<u8> {
    let (path, result) = case.check(1);
    let expected = if case.dtype == DType::I8 { "amx int8" } else { "amx bf16" };
    assert_eq!(path, expected, "{case:?}");
    result
}

const TYPES: [DType; 2] = [DType::Bf16, DType::I8];

#[test]
fn every_block_size_works_in_place_and_transposed() {
    if !ready() {
        return;
    }
    let sizes = [16, 32, 64, 128, 8, 48, 17, 33, 40, 80, 66];
    for dtype in TYPES {
        for rows in sizes {
            for cols in sizes {
                for transposed in [false, true] {
                    // Both dimensions end within a block.
                    let (r, c) = if transposed { (cols, rows) } else { (rows, cols) };
                    let (m, k) = (r * 40usize.div_ceil(r) + r / 2, c * 60usize.div_ceil(c) + c / 3);
                    let mut case = Case::new(dtype, (m, k, 28), (rows, cols));
                    (case.transposed, case.density, case.seed) =
                        (transposed, 90, (rows * 1000 + cols) as u64);
                    if r.min(16) * (c * dtype.size()).min(64) >= 256 {
                        tiles(&case);
                    } else {
                        case.check(1);
                    }
                }
            }
        }
    }
}

#[test]
fn every_number_of_columns_and_rows_works() {
    if !ready() {
        return;
    }
    for dtype in TYPES {
        for n in [8, 9, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65, 80, 96, 127, 300] {
            for block in [(32, 32), (16, 32)] {
                let mut case = Case::new(dtype, (70, 100, n), block);
                case.density = 80;
                tiles(&case);
            }
        }
        for m in 1..=50 {
            let mut case = Case::new(dtype, (m, 100, 33), (50, 50));
            case.density = 100;
            tiles(&case);
        }
    }
}

#[test]
fn every_layout_and_result_type_works() {
    if !ready() {
        return;
    }
    for x in LAYOUTS {
        for out in LAYOUTS {
            for transposed in [false, true] {
                for (block, n) in [((32, 32), 37), ((16, 16), 70), ((33, 21), 32)] {
                    let mut case = Case::new(DType::I8, (70, 66, n), block);
                    (case.x, case.out, case.transposed) = (x, out, transposed);
                    tiles(&case);
                    case.dtype = DType::Bf16;
                    for out_dtype in [DType::F32, DType::Bf16] {
                        case.out_dtype = out_dtype;
                        tiles(&case);
                    }
                }
            }
        }
    }
    let mut case = Case::new(DType::Bf16, (70, 66, 40), (32, 32));
    case.out_dtype = DType::F16;
    tiles(&case);
}

#[test]
fn bias_and_activation_come_after_the_last_sum() {
    if !ready() {
        return;
    }
    for activation in [Activation::Identity, Activation::Relu, Activation::Silu] {
        for bias in [false, true] {
            for out in [Layout::Rows, Layout::Columns] {
                for out_dtype in [DType::F32, DType::Bf16] {
                    let mut case = Case::new(DType::Bf16, (64, 64, 40), (32, 32));
                    (case.bias, case.activation, case.out, case.out_dtype) =
                        (bias, activation, out, out_dtype);
                    tiles(&case);
                }
                let mut case = Case::new(DType::I8, (64, 64, 40), (16, 64));
                (case.bias, case.activation, case.out) = (bias, activation, out);
                if activation != Activation::Silu {
                    tiles(&case);
                }
            }
        }
    }
}

#[test]
fn sums_of_whole_numbers_are_exact_at_every_density() {
    if !ready() {
        return;
    }
    for density in [5, 10, 30, 50, 100] {
        let mut case = Case::new(DType::Bf16, (128, 256, 64), (32, 32));
        (case.density, case.whole, case.seed) = (density, true, density as u64 + 5);
        case.check(1);
        case.block = (16, 16);
        case.check(1);
    }
}

/// A row's blocks beyond what fits the second cache are summed in parts.
#[test]
fn long_rows_are_summed_in_parts() {
    if !ready() {
        return;
    }
    for (shape, block, transposed) in [
        ((20, 9000, 40), (20, 64), false),
        ((20, 9000, 40), (64, 20), true),
        ((12, 9000, 72), (12, 32), false),
    ] {
        let mut case = Case::new(DType::Bf16, shape, block);
        (case.density, case.transposed, case.whole) = (100, transposed, true);
        tiles(&case);
        (case.out, case.out_dtype, case.whole) = (Layout::Columns, DType::Bf16, false);
        tiles(&case);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    if !ready() {
        return;
    }
    for dtype in TYPES {
        for block in [(32, 32), (16, 16), (64, 64), (24, 40)] {
            let mut case = Case::new(dtype, (400, 200, 160), block);
            case.density = 30;
            let (path, one) = case.check(1);
            assert!(path.starts_with("amx"));
            for threads in [2, 5] {
                assert_eq!(case.check(threads).1, one, "{threads} threads, {case:?}");
            }
        }
    }
}

#[test]
fn empty_rows_and_empty_patterns_give_zeros() {
    if !ready() {
        return;
    }
    let mut case = Case::new(DType::Bf16, (300, 64, 64), (32, 32));
    for seed in 1..6 {
        (case.density, case.seed) = (20, seed);
        case.check(1);
    }
    case.density = 0;
    assert!(case.check(2).1.iter().all(|&byte| byte == 0));
}

#[test]
fn shapes_by_chance() {
    if !ready() {
        return;
    }
    let mut random = Random::new(42);
    for seed in 0..150 {
        let dtype = random.pick(&TYPES);
        let block = (1 + random.below(70), 1 + random.below(70));
        let shape = (1 + random.below(100), 1 + random.below(150), 1 + random.below(70));
        let mut case = Case::new(dtype, shape, block);
        case.transposed = random.below(2) == 1;
        case.density = random.pick(&[0, 20, 60, 100]);
        (case.x, case.out) = (random.pick(&LAYOUTS), random.pick(&LAYOUTS));
        case.bias = random.below(2) == 1;
        case.activation = random.pick(&[Activation::Identity, Activation::Relu]);
        if dtype == DType::Bf16 {
            case.out_dtype = random.pick(&[DType::F32, DType::Bf16, DType::F16]);
        }
        case.loose = random.below(4) == 0;
        case.seed = seed;
        let one = case.check(1).1;
        assert_eq!(case.check(3).1, one, "{case:?}");
    }
}

#[test]
fn the_rate_of_tiles_is_measured() {
    if !ready() {
        return;
    }
    let context = Context { threads: 1, interrupt: &Never };
    for dtype in ["bfloat16", "int8"] {
        assert!(machine::measure_flops(&context, dtype, 0.0).unwrap() > 0.0);
    }
}

/// What tiles do not pay for goes to `vdpbf16ps`: few columns, short or narrow blocks.
#[test]
fn pairs_of_bfloat16_multiply_what_tiles_do_not() {
    if !ready() {
        return;
    }
    let before = emulator::count();
    let sizes = [(32, 32), (8, 8), (4, 8), (2, 16), (1, 32), (1, 1), (7, 5), (3, 9), (16, 4), (17, 3)];
    for block in sizes {
        for n in [1, 2, 5, 7, 16, 33, 48, 100] {
            for transposed in [false, true] {
                let mut case = Case::new(DType::Bf16, (37, 45, n), block);
                (case.transposed, case.density) = (transposed, 50);
                (case.x, case.out) = if n % 2 == 0 {
                    (Layout::Columns, Layout::Columns)
                } else {
                    (Layout::GapRows, Layout::Rows)
                };
                let (path, one) = case.check(1);
                let (rows, cols) = if transposed { (block.1, block.0) } else { block };
                if n <= 4 && cols >= 16 {
                    assert!(path.starts_with("thin"), "{path}, {case:?}");
                } else if n < 8 || rows.min(16) * (cols * 2).min(64) < 256 {
                    assert_eq!(path, "panel bf16 avx512-bf16", "{case:?}");
                }
                assert_eq!(case.check(2).1, one);
            }
        }
    }
    if !level::has_avx512_bf16() {
        assert!(emulator::count() > before);
    }
}
