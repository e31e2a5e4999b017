//! What a program reports, and the status of the floating-point unit that most of it is read from.

/// An invalid operation, such as the difference of two infinities.
pub const INVALID: u32 = 1;
/// A division by zero.
pub const DIVIDE: u32 = 2;
/// A result too large for its type.
pub const OVER: u32 = 4;
/// A result too small for its type.
pub const UNDER: u32 = 8;
/// Values that the program leaves to NumPy: its results for them are not to be used.
pub const DEFER: u32 = 16;

/// Whether the status can be read here.
pub const READABLE: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// The status register as it was; dropped, it has what it had before.
pub(super) struct Status(u64);

impl Status {
    pub(super) fn save() -> Self {
        Self(get())
    }
}

impl Drop for Status {
    fn drop(&mut self) {
        set(self.0);
    }
}

#[cfg(target_arch = "x86_64")]
mod unit {
    use std::arch::asm;

    /// The sticky bits of MXCSR.
    pub(super) const STICKY: u64 = 0x3f;

    pub(super) fn get() -> u64 {
        let mut word = 0u32;
        // SAFETY: stores four bytes there. Memory is not declared untouched, so that arithmetic whose results
        // are in memory stays on its side.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags)) };
        u64::from(word)
    }

    pub(super) fn set(word: u64) {
        let word = word as u32;
        // SAFETY: only sticky bits differ from what the register had.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, preserves_flags)) };
    }

    pub(super) fn flags(word: u64) -> u32 {
        let word = word as u32;
        word & 1 | (word >> 1) & 0b1110
    }
}

#[cfg(target_arch = "aarch64")]
mod unit {
    use std::arch::asm;

    /// The cumulative bits of FPSR.
    pub(super) const STICKY: u64 = 0x9f;

    pub(super) fn get() -> u64 {
        let word: u64;
        // SAFETY: reads a register. Memory is not declared untouched, see x86-64.
        unsafe { asm!("mrs {}, fpsr", out(reg) word, options(nostack, preserves_flags)) };
        word
    }

    pub(super) fn set(word: u64) {
        // SAFETY: only cumulative bits differ from what the register had.
        unsafe { asm!("msr fpsr, {}", in(reg) word, options(nostack, preserves_flags)) };
    }

    pub(super) fn flags(word: u64) -> u32 {
        word as u32 & 0b1111
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod unit {
    pub(super) const STICKY: u64 = 0;

    pub(super) fn get() -> u64 {
        0
    }

    pub(super) fn set(_: u64) {}

    pub(super) fn flags(_: u64) -> u32 {
        0
    }
}

use unit::{get, set};

/// Clears the status; leaves the register alone where there is nothing to clear, since writing it is slow.
pub(super) fn clear() {
    let word = get();
    if word & unit::STICKY != 0 {
        set(word & !unit::STICKY);
    }
}

/// What has happened since the status was cleared.
pub(super) fn raised() -> u32 {
    unit::flags(get())
}
