//! Values do not depend on how many threads work on them, nor does time.

use std::cell::RefCell;

use prunus_core::Never;
use prunus_tensix::numerics::Format;
use prunus_tensix::program::Program;
use prunus_tensix::programs::dynamic::{self, Decide, Found, Pruning};
use prunus_tensix::programs::epilogue::Epilogue;
use prunus_tensix::programs::matmul::{self, Blocking, Handles, Operands};
use prunus_tensix::programs::sparse::{self, TilePattern};
use prunus_tensix::programs::streams::{Buffer, Piece, Stream, Streams, Text, spread};
use prunus_tensix::report::Run;
use prunus_tensix::verbs::{Binary, Unary, Verb};
use prunus_tensix::{ChipSpec, Options, Simulator};

const BLOCKING: Blocking = Blocking {
    grid: (4, 3),
    k: 12,
    per_core: (4, 4),
    in0_block_w: 2,
    out_block: (4, 4),
    out_subblock: (2, 2),
};

/// bfloat16 of many exponents, both signs, no infinities and no NaNs.
fn noise(bytes: usize, mut state: u64) -> Vec<u8> {
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 8) as u16 & 0x83ff) | 0x3c00
    };
    (0..bytes / 2).flat_map(|_| next().to_le_bytes()).collect()
}

/// A chip with a buffer of noise for each number of pages, and one more for the result.
fn chip(pages: [u32; 2], out: (u32, u32)) -> (Simulator, (u16, u16, u16)) {
    let mut chip = Simulator::new(ChipSpec::named("n150").expect("shipped"), true);
    let mut operand = |pages: u32, seed| {
        let buffer = chip.buffer(2048, pages, None).expect("room");
        chip.write_buffer(buffer, &noise(2048 * pages as usize, seed)).expect("its size");
        buffer
    };
    let (in0, in1) = (operand(pages[0], 88_172_645_463_325_252), operand(pages[1], 17));
    let out = chip.buffer(out.1, out.0, None).expect("room");
    (chip, (in0, in1, out))
}

/// What a program gives on so many threads: the result's bytes, and what was used.
fn on(
    threads: usize,
    pages: [u32; 2],
    out: (u32, u32),
    program: impl Fn(&Simulator, (u16, u16, u16)) -> Program,
) -> (Vec<u8>, Run) {
    let (mut chip, buffers) = chip(pages, out);
    let program = program(&chip, buffers);
    let run =
        chip.run(program, Options { wide: true, threads, ..Options::default() }, &Never).expect("an end");
    (chip.read_buffer(buffers.2).expect("all written").to_vec(), run)
}

fn same(pages: [u32; 2], out: (u32, u32), program: impl Fn(&Simulator, (u16, u16, u16)) -> Program) {
    let alone = on(1, pages, out, &program);
    assert!(alone.0.iter().any(|byte| *byte != 0), "there are values");
    for threads in [2, 5] {
        // Which thread does what differs from run to run.
        for _ in 0..3 {
            let (bytes, run) = on(threads, pages, out, &program);
            assert!(bytes == alone.0, "other values on {threads} threads");
            assert_eq!(run, alone.1, "{threads} threads");
        }
    }
}

#[test]
fn dense_products() {
    for packer_l1_acc in [false, true] {
        let format = Format::Bfloat16;
        let operands = Operands { in0_sharded: false, out_sharded: false, format, packer_l1_acc };
        same([12 * 12, 12 * 16], (12 * 16, 2048), |chip, (in0, in1, out)| {
            let handles = Handles { in0: in0.into(), in1, out: out.into() };
            matmul::program(chip, &BLOCKING, &operands, &handles, true).expect("a program")
        });
    }
}

#[test]
fn sparse_products() {
    let (mut columns, mut starts) = (Vec::new(), vec![0]);
    for row in 0..12 {
        columns.extend((0..12).filter(|column| (row * 5 + column * 7) % 3 == 0));
        starts.push(columns.len() as u32);
    }
    let formats = (Format::Bfloat16, Format::Bfloat16, Format::Float32);
    same([columns.len() as u32, 12 * 16], (12 * 16, 4096), |chip, buffers| {
        let pattern = TilePattern { columns: columns.clone(), starts: starts.clone() };
        let blocking = Blocking { out_subblock: (1, 2), ..BLOCKING };
        sparse::program(chip, &blocking, &pattern, formats, buffers, true, Epilogue::default(), true)
            .expect("a program")
    });
}

#[test]
fn products_pruned_as_they_run() {
    let formats = (Format::Bfloat16, Format::Bfloat16, Format::Float32);
    // The noise's largest value but one: some tiles have the largest one, and others do not.
    let pruning = Pruning { decide: Decide::Scan, tau: 1.984_375, mask: None, rows: 12 };
    let found = RefCell::new(Vec::new());
    same([12 * 12, 12 * 16], (12 * 16, 4096), |chip, buffers| {
        let blocking = Blocking { out_subblock: (1, 2), ..BLOCKING };
        let (program, mask) =
            dynamic::program(chip, &blocking, &pruning, formats, buffers, true, Epilogue::default())
                .expect("a program");
        found.borrow_mut().push(mask);
        program
    });
    let masks: Vec<_> = found.borrow().iter().map(Found::mask).collect();
    let live = masks[0].iter().filter(|live| **live).count();
    assert!((1..12 * 12).contains(&live), "{live} of {} tiles", 12 * 12);
    assert!(masks.iter().all(|mask| *mask == masks[0]));
}

#[test]
fn streams_of_tiles() {
    let (in0, in1, out, dst) = (0, 1, 16, 0);
    let text = Text {
        first: vec![Verb::TileRegsAcquire],
        again: vec![
            Verb::CbWaitFront { cb: in0, pages: 1 },
            Verb::CbWaitFront { cb: in1, pages: 2 },
            Verb::MatmulBlock { in0_cb: in0, in1_cb: in1, in0: 0, in1: 0, dst, h: 1, w: 2, in0_stride: 1 },
            Verb::CbPopFront { cb: in0, pages: 1 },
            Verb::CbPopFront { cb: in1, pages: 2 },
        ],
        last: vec![
            Verb::UnaryTile { op: Unary::Gelu, dst: 0 },
            Verb::BinaryDst { op: Binary::Mul, dst: 1, other: 0 },
            Verb::TileRegsCommit,
            Verb::CbReserveBack { cb: out, pages: 2 },
            Verb::TileRegsWait,
            Verb::PackTile { dst, cb: out, tile: 0, tiles: 2 },
            Verb::TileRegsRelease,
            Verb::CbPushBack { cb: out, pages: 2 },
        ],
    };
    let pieces = (0..8).flat_map(|i| {
        (0..8).step_by(2).map(move |j| {
            let inner = (0..8).filter(move |l| (i + l) % 3 > 0);
            Piece {
                repeats: inner.clone().count() as u32,
                groups: 1,
                reads: inner.flat_map(|l| [(0, i * 8 + l), (1, l * 8 + j), (1, l * 8 + j + 1)]).collect(),
                writes: vec![(0, i * 8 + j), (0, i * 8 + j + 1)],
            }
        })
    });
    let pieces: Vec<_> = pieces.collect();
    same([64, 64], (64, 4096), |chip, buffers| {
        let cb =
            |cb, format: Format| Buffer { cb, format, page_bytes: format.tile_bytes() as u32, pages: 16 };
        let streams = Streams {
            buffers: vec![cb(in0, Format::Bfloat16), cb(in1, Format::Bfloat16), cb(out, Format::Float32)],
            inputs: vec![
                Stream { cb: in0, buffer: buffers.0, bytes: 2048 },
                Stream { cb: in1, buffer: buffers.1, bytes: 2048 },
            ],
            outputs: vec![Stream { cb: out, buffer: buffers.2, bytes: 4096 }],
            text: text.clone(),
            norms: None,
        };
        streams.program(chip, spread(pieces.clone(), 9)).expect("a program")
    });
}
