//! The emulator that the AMX tests run on, against results worked out from Intel's manual by hand. On
//! a machine that has the instructions they run here too, but for what only the manual tells.
#![cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]

#[path = "support/emulator/mod.rs"]
mod emulator;

use std::arch::asm;
use std::arch::x86_64::*;

use half::bf16;
use prunus_cpu::level::Level;

fn ready() -> bool {
    if !Level::Avx512.is_available() {
        eprintln!("skipped: no AVX-512 here");
        return false;
    }
    if !Level::Amx.is_available() {
        emulator::install();
    }
    true
}

/// The operand of `ldtilecfg`: sizes of the first tiles, as rows and bytes.
#[repr(C, align(64))]
struct Config([u8; 64]);

impl Config {
    fn new(sizes: &[(u8, u8)]) -> Self {
        let mut config = [0; 64];
        config[0] = 1;
        for (tile, &(rows, bytes)) in sizes.iter().enumerate() {
            config[48 + tile] = rows;
            config[16 + 2 * tile] = bytes;
        }
        Self(config)
    }
}

type Words = [u32; 256];

/// Pairs of bfloat16 as a word, the lower half first.
fn pair(lower: f32, upper: f32) -> u32 {
    u32::from(bf16::from_f32(lower).to_bits()) | u32::from(bf16::from_f32(upper).to_bits()) << 16
}

/// Runs one product of tiles with `rows` rows of W and `words` words in each.
fn product(is_int8: bool, rows: u8, words: u8, w: &Words, x: &Words, sums: &mut Words) {
    let config = Config::new(&[(rows, 64), (rows, 4 * words), (words, 64)]);
    // SAFETY: tiles of the sizes that the arrays have; the instructions are there, or emulated.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{sums} + {pitch}*1]",
            "tileloadd tmm1, [{w} + {w_pitch}*1]",
            "tileloadd tmm2, [{x} + {pitch}*1 + 0]",
            "test {is_int8:e}, {is_int8:e}",
            "jnz 2f",
            "tdpbf16ps tmm0, tmm1, tmm2",
            "jmp 3f",
            "2: tdpbssd tmm0, tmm1, tmm2",
            "3: tilestored [{sums} + {pitch}*1], tmm0",
            "tilerelease",
            config = in(reg) &raw const config, sums = in(reg) sums.as_mut_ptr(), w = in(reg) w.as_ptr(),
            x = in(reg) x.as_ptr(), pitch = in(reg) 64usize, w_pitch = in(reg) 4 * usize::from(words),
            is_int8 = in(reg) u32::from(is_int8), options(nostack),
        );
    }
}

#[test]
fn bfloat16_halves_are_summed_apart() {
    if !ready() || Level::Amx.is_available() {
        return;
    }
    let (mut w, mut x, mut sums) = ([0; 256], [0; 256], [0; 256]);
    // One row, two words: 2^24 and 1 and 1, of which a sum in order would lose both ones.
    (w[0], w[1]) = (pair(4096.0, 1.0), pair(0.0, 1.0));
    (x[0], x[16]) = (pair(4096.0, 1.0), pair(7.0, 1.0));
    sums[0] = 3f32.to_bits();
    product(false, 1, 2, &w, &x, &mut sums);
    assert_eq!(f32::from_bits(sums[0]), 16_777_220.0, "16777218 + 3, to nearest even");
    assert!(sums[1..].iter().all(|&word| word == 0));
}

#[test]
fn bfloat16_denormals_count_as_zero_and_others_as_they_are() {
    if !ready() {
        return;
    }
    let (mut w, mut x, mut sums) = ([0; 256], [0; 256], [0; 256]);
    w[0] = 0x0001 | pair(0.0, 2.0);
    x[..16].fill(pair(3e38, 1.5));
    x[1] = pair(0.0, f32::INFINITY);
    x[2] = pair(0.0, f32::NAN);
    sums[0] = 0x0000_0001;
    product(false, 1, 1, &w, &x, &mut sums);
    assert_eq!(f32::from_bits(sums[0]), 3.0);
    assert_eq!(f32::from_bits(sums[1]), f32::INFINITY);
    assert!(f32::from_bits(sums[2]).is_nan());
    assert_eq!(f32::from_bits(sums[15]), 3.0);
}

#[test]
fn int8_is_signed_and_wraps_around() {
    if !ready() {
        return;
    }
    let (mut w, mut x, mut sums) = ([0; 256], [0; 256], [0; 256]);
    for r in 0..16usize {
        for k in 0..16usize {
            w[r * 16 + k] = u32::from_le_bytes([r as u8, (k as u8).wrapping_neg(), 0x80, 1]);
            x[k * 16 + r] = u32::from_le_bytes([0x80, k as u8, 0x80, r as u8]);
        }
    }
    sums[0] = i32::MAX as u32;
    product(true, 16, 16, &w, &x, &mut sums);
    for r in 0..16i32 {
        for n in 0..16i32 {
            let start = if (r, n) == (0, 0) { i32::MAX } else { 0 };
            let squares: i32 = (0..16).map(|k| k * k).sum();
            let expected = start.wrapping_add(16 * (r * -128 + 16384 + n) - squares);
            assert_eq!(sums[(r * 16 + n) as usize] as i32, expected, "row {r}, column {n}");
        }
    }
}

#[test]
fn tiles_are_loaded_and_stored_at_any_stride() {
    if !ready() {
        return;
    }
    let config = Config::new(&[(0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (5, 12)]);
    let from: Vec<u8> = (0..200).collect();
    let mut to = [0xEEu8; 200];
    let mut kept = [0u8; 64];
    // SAFETY: five rows of 12 bytes, from the last at 100 backwards by 20, to 17 bytes apart.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "sttilecfg [{kept}]",
            "tilezero tmm5",
            "tileloadd tmm5, [{from} + {back}*2 + 80]",
            "tilestored [{to} + {far}*1], tmm5",
            "tilerelease",
            config = in(reg) &raw const config, kept = in(reg) kept.as_mut_ptr(), from = in(reg) from.as_ptr(),
            to = in(reg) to.as_mut_ptr(), back = in(reg) -10isize, far = in(reg) 17isize, options(nostack),
        );
    }
    assert_eq!(kept, config.0);
    for (at, &byte) in to.iter().enumerate() {
        let (row, col) = (at / 17, at % 17);
        let expected = if row < 5 && col < 12 { (80 - 20 * row + col) as u8 } else { 0xEE };
        assert_eq!(byte, expected, "byte {at}");
    }
}

/// What the manual forbids kills the process rather than give a result.
#[test]
fn forbidden_operands_are_fatal() {
    if !ready() {
        return;
    }
    let sizes = [(16, 64), (16, 64), (16, 64), (8, 64), (16, 62), (0, 4)];
    for what in 0..6 {
        let mut config = Config::new(&sizes[..if what == 0 { 6 } else { 5 }]);
        if what == 1 {
            config.0[0] = 2;
        }
        // SAFETY: the child runs tile instructions only, and leaves without cleaning up.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::close(2);
                asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack));
                match what {
                    // tdpbf16ps tmm0, tmm1, tmm1, which the assembler refuses too.
                    2 => asm!(".byte 0xc4, 0xe2, 0x72, 0x5c, 0xc1", options(nostack)),
                    3 => asm!("tdpbf16ps tmm0, tmm1, tmm3", options(nostack)),
                    4 => asm!("tdpbssd tmm0, tmm4, tmm2", options(nostack)),
                    5 => asm!("tilezero tmm7", options(nostack)),
                    _ => {}
                }
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            assert!(libc::WIFSIGNALED(status), "case {what} went through");
        }
    }
}

/// Sixteen pairs, products and sums by the definition; whole numbers, so exact.
#[test]
fn pairs_in_registers_in_memory_and_broadcast() {
    if !ready() {
        return;
    }
    // SAFETY: AVX-512 is there.
    unsafe { pairs() };
}

#[target_feature(enable = "avx512f")]
fn pairs() {
    let value = |i: usize| (i % 9) as f32 - 4.0;
    let words = |by: usize| std::array::from_fn::<u32, 48, _>(|i| pair(value(i * by), value(i * by + 3)));
    let (a, b) = (words(5), words(7));
    let start: [f32; 16] = std::array::from_fn(|i| i as f32);
    let halves = |word: u32| (f32::from_bits(word << 16), f32::from_bits(word & 0xFFFF_0000));
    let expected = |with: &dyn Fn(usize) -> u32, lane: usize| {
        let ((a0, a1), (b0, b1)) = (halves(a[lane]), halves(with(lane)));
        start[lane] + a0 * b0 + a1 * b1
    };
    let check = |got: __m512, with: &dyn Fn(usize) -> u32, mask: u16, rest: Option<f32>| {
        let mut lanes = [0f32; 16];
        // SAFETY: 16 lanes.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), got) };
        for (lane, &value) in lanes.iter().enumerate() {
            let live = mask >> lane & 1 == 1;
            let other = rest.unwrap_or(start[lane]);
            assert_eq!(value, if live { expected(with, lane) } else { other }, "lane {lane}");
        }
    };
    // SAFETY: arrays of 16 and 48 words; the instruction is there, or emulated.
    unsafe {
        let (va, vb) = (_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast()));
        let sums = _mm512_loadu_ps(start.as_ptr());
        let all = |lane: usize| b[lane];

        let mut low = sums;
        asm!("vdpbf16ps zmm0, zmm9, zmm14", inout("zmm0") low, in("zmm9") va, in("zmm14") vb);
        check(low, &all, u16::MAX, None);
        let mut high = sums;
        asm!("vdpbf16ps zmm17, zmm30, zmm21", inout("zmm17") high, in("zmm30") va, in("zmm21") vb);
        check(high, &all, u16::MAX, None);
        let mut mixed = sums;
        asm!("vdpbf16ps zmm25, zmm3, zmm12", inout("zmm25") mixed, in("zmm3") va, in("zmm12") vb);
        check(mixed, &all, u16::MAX, None);

        let mut near = sums;
        asm!("vdpbf16ps {s}, {a}, [{b} + 64]", s = inout(zmm_reg) near, a = in(zmm_reg) va, b = in(reg) b.as_ptr());
        check(near, &|lane| b[lane + 16], u16::MAX, None);
        let mut far = sums;
        asm!(
            "vdpbf16ps {s}, {a}, [r13 + {i}*4 - 300]",
            s = inout(zmm_reg) far, a = in(zmm_reg) va, in("r13") b.as_ptr().wrapping_add(60), i = in(reg) 20usize,
        );
        check(far, &|lane| b[lane + 5], u16::MAX, None);
        let mut one = sums;
        asm!(
            "vdpbf16ps {s}, {a}, dword ptr [r12 + 8]{{1to16}}",
            s = inout(zmm_reg) one, a = in(zmm_reg) va, in("r12") b.as_ptr(),
        );
        check(one, &|_| b[2], u16::MAX, None);

        let mut merged = sums;
        asm!(
            "vdpbf16ps {s} {{k3}}, {a}, {b}",
            s = inout(zmm_reg) merged, a = in(zmm_reg) va, b = in(zmm_reg) vb, in("k3") 0xA5F0u16,
        );
        check(merged, &all, 0xA5F0, None);
        let mut zeroed = sums;
        asm!(
            "vdpbf16ps {s} {{k3}} {{z}}, {a}, {b}",
            s = inout(zmm_reg) zeroed, a = in(zmm_reg) va, b = in(zmm_reg) vb, in("k3") 0x0F01u16,
        );
        check(zeroed, &all, 0x0F01, Some(0.0));
    }
}

#[test]
fn threads_have_tiles_of_their_own() {
    if !ready() {
        return;
    }
    let before = emulator::count();
    let run = |rows: u8| {
        let (mut w, mut x) = ([0; 256], [0; 256]);
        w[..16 * usize::from(rows)].fill(pair(1.0, 2.0));
        x.fill(pair(f32::from(rows), 1.0));
        for _ in 0..50 {
            let mut sums = [0; 256];
            product(false, rows, 16, &w, &x, &mut sums);
            let expected = 16.0 * (f32::from(rows) + 2.0);
            for (i, &sum) in sums.iter().enumerate() {
                assert_eq!(f32::from_bits(sum), if i < 16 * usize::from(rows) { expected } else { 0.0 });
            }
        }
    };
    std::thread::scope(|scope| {
        for rows in [1, 7, 16] {
            scope.spawn(move || run(rows));
        }
    });
    run(3);
    assert!(Level::Amx.is_available() || emulator::count() - before == 50 * 7);
}
