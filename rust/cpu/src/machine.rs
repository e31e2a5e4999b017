//! The machine: its name, caches and features, and the rates that it reaches.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prunus_core::Error;

use crate::dsd::tile::{Block, Tile};
use crate::level::{self, Level};
use crate::memory::Buffer;
use crate::simd::Lanes;
use crate::simd::scalar::Plain;
use crate::threads::{Context, for_each};

#[cfg(target_arch = "x86_64")]
use crate::amx;
#[cfg(target_arch = "x86_64")]
use crate::amx::kernel::{Pass, Step, step_work};
#[cfg(target_arch = "aarch64")]
use crate::simd::neon;
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2, avx512};

/// The CPU's name as the system tells it.
pub fn model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name"));
    match name.and_then(|line| line.split_once(':')) {
        Some((_, name)) => name.trim().to_owned(),
        None => std::env::consts::ARCH.to_owned(),
    }
}

/// Instruction sets that kernels look for and that this machine has.
pub fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        let amx = Level::Amx.is_available().then_some("amx");
        found.into_iter().filter_map(|(name, has)| has.then_some(name)).chain(amx).collect()
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec!["neon"]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

/// Data caches of the first CPU: (level, bytes), from sysfs; empty where it does not tell.
pub fn caches() -> Vec<(u32, u64)> {
    let mut found = Vec::new();
    for index in 0..8 {
        let read = |what: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{what}");
            std::fs::read_to_string(path).ok()
        };
        let (Some(kind), Some(depth), Some(size)) = (read("type"), read("level"), read("size")) else {
            continue;
        };
        let size = size.trim();
        let digits = size.trim_end_matches(char::is_alphabetic);
        let unit = match &size[digits.len()..] {
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => 1,
        };
        if let (Ok(depth), Ok(count)) = (depth.trim().parse(), digits.parse::<u64>())
            && kind.trim() != "Instruction"
        {
            found.push((depth, count * unit));
        }
    }
    found
}

/// FLOP/s of the widest multiply-add for `dtype`, from the tile kernel on operands in the first
/// cache, on all threads of the context at once.
///
/// # Errors
/// [`Error::Choice`] for a dtype without a kernel.
pub fn measure_flops(context: &Context<'_>, dtype: &str, seconds: f64) -> Result<f64, Error> {
    let level = level::current();
    match (dtype, level) {
        #[cfg(target_arch = "x86_64")]
        ("float32", Level::Avx512 | Level::Avx512Dot | Level::Amx) => {
            rate::<avx512::F32x16>(context, seconds)
        }
        #[cfg(target_arch = "x86_64")]
        ("float32", Level::Avx2) => rate::<avx2::F32x8>(context, seconds),
        #[cfg(target_arch = "aarch64")]
        ("float32", Level::Neon) => rate::<neon::F32x4>(context, seconds),
        ("float32", _) => rate::<Plain<f32>>(context, seconds),
        #[cfg(target_arch = "x86_64")]
        ("float64", Level::Avx512 | Level::Avx512Dot | Level::Amx) => rate::<avx512::F64x8>(context, seconds),
        #[cfg(target_arch = "x86_64")]
        ("float64", Level::Avx2) => rate::<avx2::F64x4>(context, seconds),
        #[cfg(target_arch = "aarch64")]
        ("float64", Level::Neon) => rate::<neon::F64x2>(context, seconds),
        ("float64", _) => rate::<Plain<f64>>(context, seconds),
        #[cfg(target_arch = "x86_64")]
        ("bfloat16", Level::Amx) => tile_rate::<amx::Bf16>(context, seconds),
        #[cfg(target_arch = "x86_64")]
        ("int8", Level::Amx) => tile_rate::<amx::Int8>(context, seconds),
        #[cfg(target_arch = "x86_64")]
        ("bfloat16", Level::Avx512Dot) if level::multiplies_pairs() => {
            rate::<avx512::Bf16x32>(context, seconds)
        }
        // Without pairs of bfloat16, products run as float32.
        ("bfloat16" | "float16", _) => measure_flops(context, "float32", seconds),
        #[cfg(target_arch = "x86_64")]
        ("int8", Level::Avx512Dot) => rate::<avx512::I16x32Vnni>(context, seconds),
        #[cfg(target_arch = "x86_64")]
        ("int8", Level::Avx512) => rate::<avx512::I16x32>(context, seconds),
        #[cfg(target_arch = "x86_64")]
        ("int8", Level::Avx2) => rate::<avx2::I16x16>(context, seconds),
        #[cfg(target_arch = "aarch64")]
        ("int8", Level::Neon) => rate::<neon::I16x8>(context, seconds),
        ("int8", _) => rate::<Plain<i16>>(context, seconds),
        _ => Err(Error::Choice {
            what: "dtype",
            expected: "one of float32, float64, float16, bfloat16, int8".to_owned(),
            got: dtype.to_owned(),
        }),
    }
}

/// Runs the largest tile for a while on every thread; adds up what each did.
fn rate<L: Lanes>(context: &Context<'_>, seconds: f64) -> Result<f64, Error> {
    const WORDS: usize = 32;
    let rows = if L::REGISTERS == 32 { 8 } else { 4 };
    let (tile, rows) = L::tile(rows, 3, false);
    let total = AtomicU64::new(0);
    for_each(context, context.threads, |_| {
        let width = 3 * L::LANES;
        let w = Buffer::new(rows * WORDS * L::STEP * size_of::<L::Elem>())?;
        let x = Buffer::new(WORDS * width * L::STEP * size_of::<L::Elem>())?;
        let out = Buffer::new(rows * width * size_of::<L::Acc>())?;
        for buffer in [&w, &x, &out] {
            // SAFETY: the buffer's own bytes. Zeros: no rate depends on the values here.
            unsafe { buffer.as_ptr().write_bytes(0, buffer.len()) };
        }
        let block = Block::<L::Elem> { w: w.as_ptr().cast(), k: 0, words: WORDS };
        let args = Tile::<L> {
            blocks: &raw const block,
            count: 1,
            tiles: 1,
            w_offset: 0,
            w_tile: 0,
            w_row: WORDS * L::STEP,
            w_word: L::STEP,
            x: x.as_ptr().cast(),
            x_word: width * L::STEP,
            init: out.as_ptr().cast(),
            init_row: width,
            out: out.as_ptr().cast(),
            out_row: width,
            next: std::ptr::null(),
            next_count: 0,
            next_line: 0,
            next_step: 0,
            next_end: 0,
            fetch_w: false,
        };
        let best = best_rate(seconds, 2.0 * (rows * width * WORDS * L::STEP) as f64, || {
            // SAFETY: buffers of the tile's size.
            unsafe { tile(black_box(&args)) };
        });
        total.fetch_add(best as u64, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(total.into_inner() as f64)
}

/// The same with AMX tiles: eight steps of 2 × 2 tiles, over and over.
#[cfg(target_arch = "x86_64")]
fn tile_rate<P: amx::Product>(context: &Context<'_>, seconds: f64) -> Result<f64, Error> {
    const STEPS: usize = 8;
    const TILE: usize = amx::ROWS * amx::ROW_BYTES;
    let total = AtomicU64::new(0);
    for_each(context, context.threads, |_| {
        let buffers = Buffer::new((4 * STEPS + 4) * TILE)?;
        // SAFETY: the buffer's own bytes. Zeros: no rate depends on the values here.
        unsafe { buffers.as_ptr().write_bytes(0, buffers.len()) };
        let (w, x) = (buffers.as_ptr(), buffers.as_ptr().wrapping_add(2 * STEPS * TILE));
        let out = x.wrapping_add(2 * STEPS * TILE);
        let steps: Vec<_> = (0..STEPS).map(|i| Step { w: w.wrapping_add(2 * i * TILE), x: i }).collect();
        let pass = Pass {
            steps: steps.as_ptr(),
            count: STEPS,
            w_pitch: amx::ROW_BYTES as isize,
            w_bytes: amx::ROW_BYTES,
            w_rows: 2 * amx::ROWS,
            x: [x, x],
            x_pitch: [2 * TILE, 0],
            x_tile: TILE,
            init: std::ptr::null(),
            out,
            init_pitch: 0,
            out_pitch: 2 * amx::ROW_BYTES as isize,
            fetch: false,
        };
        // SAFETY: the level in use has AMX; nothing else here uses tiles.
        let mut tiles = unsafe { amx::Tiles::new() };
        tiles.set(amx::Shape { rows: [amx::ROWS; 2], depth_bytes: amx::ROW_BYTES });
        let best = best_rate(seconds, 2.0 * (STEPS * step_work::<P>()) as f64, || {
            // SAFETY: tiles of full size; the buffer holds the steps' operands and the result.
            unsafe { amx::kernel::run::<P>((2, 2), black_box(&pass)) };
        });
        total.fetch_add(best as u64, Ordering::Relaxed);
        Ok(())
    })?;
    Ok(total.into_inner() as f64)
}

/// The best rate among slices of a thousand calls, each of which does `work`.
fn best_rate(seconds: f64, work: f64, mut call: impl FnMut()) -> f64 {
    const CALLS: usize = 1000;
    let end = Duration::from_secs_f64(seconds.clamp(0.0, 60.0));
    let mut best = 0f64;
    let start = Instant::now();
    loop {
        let slice = Instant::now();
        for _ in 0..CALLS {
            call();
        }
        best = best.max(CALLS as f64 * work / slice.elapsed().as_secs_f64());
        if start.elapsed() >= end {
            return best;
        }
    }
}

/// Bytes a second that the threads together read from a buffer far larger than the caches.
///
/// # Errors
/// [`Error::Interrupted`].
pub fn measure_bandwidth(context: &Context<'_>, seconds: f64) -> Result<f64, Error> {
    const SLICE: usize = 1 << 20;
    let largest = caches().into_iter().map(|(_, bytes)| bytes as usize).max().unwrap_or(32 << 20);
    let slices = (4 * largest).clamp(64 << 20, 1 << 30) / SLICE;
    let buffer = Buffer::new(slices * SLICE)?;
    // SAFETY: the buffer's own bytes.
    unsafe { buffer.as_ptr().write_bytes(1, buffer.len()) };
    let end = Duration::from_secs_f64(seconds.clamp(0.0, 60.0));
    let start = Instant::now();
    let mut best = 0f64;
    while start.elapsed() < end || best == 0.0 {
        let pass = Instant::now();
        for_each(context, slices, |i| {
            // SAFETY: slice i of a buffer that was filled above.
            let bytes: &[u64] =
                unsafe { std::slice::from_raw_parts(buffer.as_ptr().add(i * SLICE).cast(), SLICE / 8) };
            let mut sums = [0u64; 16];
            for chunk in bytes.chunks_exact(16) {
                for (sum, value) in sums.iter_mut().zip(chunk) {
                    *sum ^= value;
                }
            }
            black_box(sums);
            Ok(())
        })?;
        best = best.max((slices * SLICE) as f64 / pass.elapsed().as_secs_f64());
    }
    Ok(best)
}
