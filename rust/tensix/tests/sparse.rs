//! Block-sparse products by multicast against double precision.

use proptest::prelude::*;
use prunus_core::Never;
use prunus_tensix::numerics::{Fidelity, Format, Matrix, MatrixMut, tilize, untilize};
use prunus_tensix::programs::epilogue::Epilogue;
use prunus_tensix::programs::matmul::Blocking;
use prunus_tensix::programs::sparse::{TilePattern, program};
use prunus_tensix::report::Run;
use prunus_tensix::{ChipSpec, Options, Simulator};

/// Multiplies a pattern's tiles of small integers with a dense matrix of them: every sum is exact.
fn product(blocking: &Blocking, live: &[bool], wide: bool) -> Run {
    let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), true);
    let format = Format::Bfloat16;
    let (gx, gy) = (u32::from(blocking.grid.0), u32::from(blocking.grid.1));
    let (mt, nt, kt) = (gy * blocking.per_core.0, gx * blocking.per_core.1, blocking.k);
    let (m, n, k) = (mt as usize * 32, nt as usize * 32, kt as usize * 32);
    let value = |i: usize, seed: usize| ((i * 7 + i / 5 + seed * 3) % 3) as f32 - 1.0;
    let a: Vec<f32> = (0..m * k)
        .map(|at| if live[at / k / 32 * kt as usize + at % k / 32] { value(at, 1) } else { 0.0 })
        .collect();
    let b: Vec<f32> = (0..k * n).map(|at| value(at, 2)).collect();
    let mut pattern = TilePattern { columns: Vec::new(), starts: vec![0] };
    let dense = tilize(format, &Matrix::new(&a, m, k).expect("a")).expect("a");
    let mut kept = Vec::new();
    for (row, tiles) in live.chunks(kt as usize).enumerate().take(mt as usize) {
        for column in (0..kt).filter(|column| tiles[*column as usize]) {
            pattern.columns.push(column);
            let page = row * kt as usize + column as usize;
            kept.extend_from_slice(&dense[page * 2048..(page + 1) * 2048]);
        }
        pattern.starts.push(pattern.columns.len() as u32);
    }
    let nnz = pattern.columns.len().max(1) as u32;
    kept.resize(nnz as usize * 2048, 0);
    let buffers = (
        chip.buffer(2048, nnz, None).expect("room"),
        chip.buffer(2048, kt * nt, None).expect("room"),
        chip.buffer(4096, mt * nt, None).expect("room"),
    );
    chip.write_buffer(buffers.0, &kept).expect("a");
    chip.write_buffer(buffers.1, &tilize(format, &Matrix::new(&b, k, n).expect("b")).expect("b")).expect("b");
    let formats = (format, format, Format::Float32);
    let program = program(&chip, blocking, &pattern, formats, buffers, wide, Epilogue::default(), true)
        .expect("a program");
    let options = Options { fidelity: Fidelity::HiFi4, wide, ..Options::default() };
    let run = chip.run(program, options, &Never).expect("an end");
    let mut got = vec![0.0_f32; m * n];
    let bytes = chip.read_buffer(buffers.2).expect("all written").to_vec();
    untilize(Format::Float32, &bytes, &mut MatrixMut::new(&mut got, m, n).expect("c")).expect("tiles");
    for i in 0..m {
        for j in 0..n {
            let want: f32 = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
            // Sums in 16 bits are rounded whenever they are stored.
            let bound = if wide { 0.0 } else { 2.0 + want.abs() / 64.0 };
            assert!((got[i * n + j] - want).abs() <= bound, "{} for {want} at {i}, {j}", got[i * n + j]);
        }
    }
    run
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn values(
        grid in prop::sample::select(vec![(1, 1), (2, 2), (3, 2), (1, 3)]),
        kw in 1_u32..4,
        k_blocks in 1_u32..5,
        two_blocks in any::<bool>(),
        bits in proptest::collection::vec(0_u8..100, 12 * 18),
        density in prop::sample::select(vec![0_u8, 5, 30, 70, 100]),
        wide in any::<bool>(),
    ) {
        let blocking = Blocking {
            grid,
            k: kw * k_blocks,
            per_core: (2, 4),
            in0_block_w: kw,
            out_block: (if two_blocks { 1 } else { 2 }, 4),
            out_subblock: (1, 2),
        };
        let live: Vec<bool> = bits.iter().map(|bit| *bit < density).collect();
        product(&blocking, &live, wide);
    }
}

#[test]
fn what_is_dead_is_not_read() {
    let blocking = Blocking {
        grid: (2, 2),
        k: 8,
        per_core: (2, 2),
        in0_block_w: 2,
        out_block: (2, 2),
        out_subblock: (1, 2),
    };
    let read = |live: &[bool]| -> u64 {
        let written = 4 * 4 * 4096;
        product(&blocking, live, true).channels.iter().map(|(_, bytes, _)| bytes).sum::<u64>() - written
    };
    assert_eq!(read(&[true; 32]), (32 + 2 * 8 * 2) * 2048);
    // One tile of in0 asks for one row of tiles of in1.
    let mut one = [false; 32];
    one[3] = true;
    assert_eq!(read(&one), (1 + 2 * 2) * 2048);
    assert_eq!(read(&[false; 32]), 0);
}
