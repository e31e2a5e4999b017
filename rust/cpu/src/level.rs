//! Which instruction set the kernels use: found once, pinned by `PRUNUS_SIMD`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use prunus_core::Error;

/// Instruction sets that kernels exist for, in ascending order of preference on one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Level {
    /// Plain Rust; the twin that every other level is tested against.
    Scalar = 0,
    /// 128-bit vectors of AArch64.
    Neon = 1,
    /// AVX2, FMA and F16C.
    Avx2 = 2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512 = 3,
    /// AVX-512 with VNNI (8-bit products) and, where present, BF16 (bfloat16 products).
    Avx512Dot = 4,
    /// AMX tiles for bfloat16 and int8; the rest as [`Level::Avx512Dot`].
    Amx = 5,
}

const ALL: [Level; 6] =
    [Level::Scalar, Level::Neon, Level::Avx2, Level::Avx512, Level::Avx512Dot, Level::Amx];

impl Level {
    /// Name used by `PRUNUS_SIMD` and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Dot => "avx512-dot",
            Self::Amx => "amx",
        }
    }

    /// Bytes of a vector as the kernels use it.
    pub(crate) const fn vector_bytes(self) -> usize {
        match self {
            Self::Scalar | Self::Neon => 16,
            Self::Avx2 => 32,
            Self::Avx512 | Self::Avx512Dot | Self::Amx => 64,
        }
    }

    /// Vector registers that kernels may count on.
    pub(crate) const fn vector_registers(self) -> usize {
        match self {
            Self::Scalar | Self::Avx2 => 16,
            Self::Neon | Self::Avx512 | Self::Avx512Dot | Self::Amx => 32,
        }
    }

    /// Whether this machine can run the level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Dot => Self::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Self::Avx512Dot.is_available() && has_avx512_bf16() && crate::amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

/// Rows that packing lays together where there are so many vector registers: the height of the largest
/// tile.
pub(crate) const fn group_of(registers: usize) -> usize {
    registers / 4
}

/// Whether bfloat16 dot products (`vdpbf16ps`) exist here.
pub fn has_avx512_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether the level in use multiplies pairs of bfloat16. AMX implies it, under an emulator too.
pub fn multiplies_pairs() -> bool {
    match current() {
        Level::Amx => true,
        Level::Avx512Dot => has_avx512_bf16(),
        _ => false,
    }
}

/// Levels that this machine can run, best last.
pub fn available() -> Vec<Level> {
    ALL.into_iter().filter(|level| level.is_available()).collect()
}

/// Where the level in use came from.
#[derive(Clone, Debug)]
enum Origin {
    Detected,
    Environment,
    /// `PRUNUS_SIMD` named something that cannot run here.
    Fault(Error),
}

fn initial() -> &'static (Level, Origin) {
    static INITIAL: OnceLock<(Level, Origin)> = OnceLock::new();
    INITIAL.get_or_init(|| {
        let best = available().last().copied().unwrap_or(Level::Scalar);
        match std::env::var("PRUNUS_SIMD") {
            Err(_) => (best, Origin::Detected),
            Ok(name) if name.is_empty() => (best, Origin::Detected),
            Ok(name) => match named("PRUNUS_SIMD", &name) {
                Ok(level) => (level, Origin::Environment),
                Err(fault) => (best, Origin::Fault(fault)),
            },
        }
    })
}

const UNSET: u8 = u8::MAX;
static PINNED: AtomicU8 = AtomicU8::new(UNSET);

/// The level in use.
pub fn current() -> Level {
    match PINNED.load(Ordering::Relaxed) {
        UNSET => initial().0,
        pinned => ALL[pinned as usize],
    }
}

/// How the level in use was chosen: `detected`, `PRUNUS_SIMD` or `set_level`.
pub fn origin() -> &'static str {
    if PINNED.load(Ordering::Relaxed) != UNSET {
        return "set_level";
    }
    match initial().1 {
        Origin::Environment => "PRUNUS_SIMD",
        Origin::Detected | Origin::Fault(_) => "detected",
    }
}

/// Checks the environment variable once, when the library is loaded.
///
/// # Errors
/// [`Error::Choice`] where `PRUNUS_SIMD` names no level that this machine can run.
pub fn check_environment() -> Result<(), Error> {
    match &initial().1 {
        Origin::Fault(fault) => Err(fault.clone()),
        _ => Ok(()),
    }
}

/// Uses `level` from now on, in every thread (for tests and comparisons).
///
/// Not checked, unlike [`parse`]: tests that emulate instructions use levels that the machine lacks.
pub fn set(level: Level) {
    PINNED.store(level as u8, Ordering::Relaxed);
}

/// Finds a level by name, if this machine can run it.
///
/// # Errors
/// [`Error::Choice`] that lists the available levels.
pub fn parse(name: &str) -> Result<Level, Error> {
    named("SIMD level", name)
}

fn named(what: &'static str, name: &str) -> Result<Level, Error> {
    available().into_iter().find(|level| level.name() == name).ok_or_else(|| Error::Choice {
        what,
        expected: format!(
            "one of {}",
            available().iter().map(|level| level.name()).collect::<Vec<_>>().join(", ")
        ),
        got: name.to_owned(),
    })
}

/// Runs `f` at every level of this machine in turn; tests that set the level wait for each other.
#[cfg(test)]
pub(crate) fn each(mut f: impl FnMut(Level)) {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(|held| held.into_inner());
    let before = PINNED.load(Ordering::Relaxed);
    for level in available() {
        set(level);
        f(level);
    }
    PINNED.store(before, Ordering::Relaxed);
}
