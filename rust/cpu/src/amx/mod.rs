//! AMX: eight tiles of up to 16 rows × 64 bytes, and products of tiles.
//!
//! Stable Rust has no AMX intrinsics, so each instruction is one small function around `asm!`; the
//! compiler itself never touches a tile register. [`kernel`] builds the sums of a product from them.
//!
//! The statements of a kernel keep their order because none of them is declared pure. Loads are
//! `readonly` and products `nomem`, so that the compiler may keep addresses in registers around them.

pub(crate) mod kernel;

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

use half::bf16;

use crate::dsd::store::Sum;

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Bytes of a tile's row: sixteen 32-bit words.
pub(crate) const ROW_BYTES: usize = 64;
/// 32-bit sums in a tile's row.
pub(crate) const COLS: usize = ROW_BYTES / 4;

/// Whether this CPU has AMX for bfloat16 and int8, and this process may use it.
///
/// The first call asks the system for permission; it may refuse (an old kernel, a sandbox, a signal
/// stack too small for tile registers).
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && system_saves_tiles() && ask_permission())
}

/// CPUID leaf 7: AMX-BF16, AMX-TILE and AMX-INT8.
fn has_instructions() -> bool {
    const NEEDED: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    // Leaf 0 tells the highest leaf there is.
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).edx & NEEDED == NEEDED
}

/// XCR0 bits 17 and 18: the system switches tile configuration and tile data between threads.
fn system_saves_tiles() -> bool {
    const NEEDED: u32 = 1 << 17 | 1 << 18;
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
        return false;
    }
    let low: u32;
    // SAFETY: OSXSAVE says that `xgetbv` may be used; register 0 always exists.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    low & NEEDED == NEEDED
}

/// Linux hands out tile registers to processes that ask; threads and forked children inherit them.
#[cfg(target_os = "linux")]
fn ask_permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes only what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Elsewhere nobody has tried.
#[cfg(not(target_os = "linux"))]
fn ask_permission() -> bool {
    false
}

/// The operand of `ldtilecfg`: palette 1 and the size of each tile.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// What the tiles of a product look like. Tiles 0 to 3 hold sums, the rest operands (see [`kernel`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Rows of W in the upper and the lower tiles; no lower tiles where the second is 0.
    pub rows: [usize; 2],
    /// Bytes of W's rows in a tile: four for each row of an x tile.
    pub depth_bytes: usize,
}

impl Shape {
    fn config(self) -> Config {
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut set = |tile: usize, rows: usize, bytes: usize| {
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = bytes as u16;
        };
        let [upper, lower] = self.rows;
        let words = self.depth_bytes / 4;
        if lower > 0 {
            for tile in 0..4 {
                set(tile, if tile < 2 { upper } else { lower }, ROW_BYTES);
            }
            set(4, upper, self.depth_bytes);
            set(5, lower, self.depth_bytes);
        } else {
            for tile in 0..4 {
                set(tile, upper, ROW_BYTES);
            }
            set(4, upper, self.depth_bytes);
            set(5, words, ROW_BYTES);
        }
        set(6, words, ROW_BYTES);
        set(7, words, ROW_BYTES);
        config
    }
}

/// This thread's tile registers while a task uses them; released when dropped, so that the system
/// need not save 8 KiB at every switch of threads.
pub(crate) struct Tiles {
    shape: Option<Shape>,
    this_thread: PhantomData<*const ()>,
}

impl Tiles {
    /// # Safety
    /// AMX must be available, and nothing else on this thread may use tiles while `self` lives.
    pub(crate) unsafe fn new() -> Self {
        Self { shape: None, this_thread: PhantomData }
    }

    /// Sets the tiles' sizes, and their contents to zero, where they are not what they should be.
    pub(crate) fn set(&mut self, shape: Shape) {
        if self.shape == Some(shape) {
            return;
        }
        assert!(shape.rows.iter().all(|&rows| rows <= ROWS) && shape.rows[0] > 0);
        assert!((4..=ROW_BYTES).contains(&shape.depth_bytes) && shape.depth_bytes.is_multiple_of(4));
        let config = shape.config();
        // SAFETY: the constructor's caller vouches for AMX; sizes are within a tile's.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags, readonly));
        }
        self.shape = Some(shape);
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.shape.is_some() {
            // SAFETY: AMX is available, or the tiles could not have been set.
            unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
        }
    }
}

/// Sets tile `T` to zeros.
///
/// # Safety
/// The tile must have a size ([`Tiles::set`]).
#[inline(always)]
pub(crate) unsafe fn zero<const T: u8>() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags, nomem)) }
}

/// Reads tile `T`: its rows lie `pitch` bytes apart.
///
/// # Safety
/// The tile must have a size, and as many rows must be readable.
#[inline(always)]
pub(crate) unsafe fn load<const T: u8>(from: *const u8, pitch: isize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm{t}, [{from} + {pitch}*1]",
            t = const T, from = in(reg) from, pitch = in(reg) pitch,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// Writes tile `T`: its rows lie `pitch` bytes apart.
///
/// # Safety
/// The tile must have a size, and as many rows must be writeable.
#[inline(always)]
pub(crate) unsafe fn store<const T: u8>(to: *mut u8, pitch: isize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilestored [{to} + {pitch}*1], tmm{t}",
            t = const T, to = in(reg) to, pitch = in(reg) pitch,
            options(nostack, preserves_flags),
        );
    }
}

/// A product of tiles: what is multiplied, and what it is summed in.
pub(crate) trait Product: 'static {
    /// Element of the operands.
    type Elem: Copy;
    /// Element of the sums.
    type Acc: Sum;
    /// Elements in a word of 32 bits: the products that are summed in one step.
    const STEP: usize = 4 / size_of::<Self::Elem>();
    /// How reports call the kernel.
    const NAME: &'static str;

    /// Adds the product of tiles `A` and `B` to tile `C`.
    ///
    /// # Safety
    /// The tiles must be three and have sizes that fit each other.
    unsafe fn multiply<const C: u8, const A: u8, const B: u8>();
}

/// Pairs of bfloat16, summed in float32. Denormal operands and sums count as zero.
pub(crate) struct Bf16;

impl Product for Bf16 {
    type Elem = bf16;
    type Acc = f32;
    const NAME: &'static str = "amx bf16";

    #[inline(always)]
    unsafe fn multiply<const C: u8, const A: u8, const B: u8>() {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tdpbf16ps tmm{c}, tmm{a}, tmm{b}",
                c = const C, a = const A, b = const B,
                options(nostack, preserves_flags, nomem),
            );
        }
    }
}

/// Fours of int8, summed in int32 with wrap-around.
pub(crate) struct Int8;

impl Product for Int8 {
    type Elem = i8;
    type Acc = i32;
    const NAME: &'static str = "amx int8";

    #[inline(always)]
    unsafe fn multiply<const C: u8, const A: u8, const B: u8>() {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tdpbssd tmm{c}, tmm{a}, tmm{b}",
                c = const C, a = const A, b = const B,
                options(nostack, preserves_flags, nomem),
            );
        }
    }
}
