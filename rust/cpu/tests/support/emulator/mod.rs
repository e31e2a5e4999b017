//! Runs AMX and AVX512-BF16 instructions on machines that lack them, so that kernels are tested as
//! machine code.
//!
//! An instruction that the CPU does not know raises SIGILL. The handler here decodes the instruction
//! that the thread stands on, does what Intel's manual says that it does, on tile registers that each
//! thread has in memory and on the vector registers that the signal saved, and steps over it. What it
//! does not know, and what the manual forbids, ends the process with a message.
//!
//! On a machine that has the instructions nothing traps, and the same tests run on the real ones.

mod decode;
mod frame;
mod tiles;

use std::cell::UnsafeCell;
use std::sync::Once;

use decode::{Instruction, decode};
use frame::Frame;
use tiles::Tiles;

thread_local! {
    // No destructor and a constant: touching it in a signal handler allocates nothing.
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles::NEW) };
    static COUNT: UnsafeCell<u64> = const { UnsafeCell::new(0) };
}

/// Takes over SIGILL, once in a process.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: an all-zero action is a valid start; the handler has the signature SA_SIGINFO asks
        // for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal_instruction as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
}

/// Instructions emulated on this thread so far.
pub(crate) fn count() -> u64 {
    // SAFETY: a number of this thread's own.
    COUNT.with(|count| unsafe { *count.get() })
}

/// Ends the process: there is nothing to return to.
fn die(what: &str, bytes: &[u8]) -> ! {
    let mut line = [0u8; 256];
    let mut at = 0;
    let mut put = |text: &[u8]| {
        for &byte in text.iter().take(line.len() - at) {
            line[at] = byte;
            at += 1;
        }
    };
    put(b"emulator: ");
    put(what.as_bytes());
    put(b"; instruction bytes");
    for byte in bytes {
        let digit = |d: u8| b"0123456789abcdef"[usize::from(d)];
        put(&[b' ', digit(byte >> 4), digit(byte & 15)]);
    }
    put(b"\n");
    // SAFETY: writing a buffer and aborting are safe in a signal handler.
    unsafe {
        libc::write(2, line.as_ptr().cast(), at);
        libc::abort()
    }
}

extern "C" fn on_illegal_instruction(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the context of the interrupted thread, whose RIP leads to code; an
    // instruction has at most 15 bytes, and code pages end with more than that (tests end with data).
    let mut frame = unsafe { Frame::new(context.cast()) };
    let at = frame.rip() as *const u8;
    // SAFETY: as above.
    let code = unsafe { std::slice::from_raw_parts(at, 15) };
    let Some((instruction, length)) = decode(code, &frame) else { die("unknown instruction", code) };
    // SAFETY: this thread's own tiles; a handler does not interrupt itself.
    let outcome = TILES.with(|tiles| unsafe { execute(instruction, &mut *tiles.get(), &mut frame) });
    if let Err(fault) = outcome {
        die(fault, code);
    }
    // SAFETY: this thread's own number.
    COUNT.with(|count| unsafe { *count.get() += 1 });
    frame.set_rip(at as u64 + length as u64);
}

/// Does what an instruction does.
///
/// # Safety
/// Its memory operands must be what the interrupted code promised.
unsafe fn execute(
    instruction: Instruction,
    tiles: &mut Tiles,
    frame: &mut Frame,
) -> Result<(), &'static str> {
    // SAFETY: addresses come from the interrupted code, which vouches for them.
    unsafe {
        match instruction {
            Instruction::LoadConfig { at } => tiles.configure(&*(at as *const [u8; 64])),
            Instruction::StoreConfig { at } => {
                (at as *mut [u8; 64]).write(tiles.config());
                Ok(())
            }
            Instruction::Release => {
                *tiles = Tiles::NEW;
                Ok(())
            }
            Instruction::Zero { tile } => tiles.zero(tile),
            Instruction::Load { tile, at, stride } => tiles.load(tile, at as *const u8, stride),
            Instruction::Store { tile, at, stride } => tiles.store(tile, at as *mut u8, stride),
            Instruction::Bf16 { sums, a, b } => tiles.multiply_bf16(sums, a, b),
            Instruction::Int8 { sums, a, b } => tiles.multiply_int8(sums, a, b),
            Instruction::Pairs { sums, a, b, mask, zeroing } => {
                frame.multiply_pairs(sums, a, b, mask, zeroing)
            }
        }
    }
}

/// Denormals count as zero, and come out as zero.
fn flush(v: f32) -> f32 {
    if v.is_subnormal() { 0f32.copysign(v) } else { v }
}

/// One bfloat16 of a word as float32.
fn widen(word: u32, upper: bool) -> f32 {
    flush(f32::from_bits(if upper { word & 0xFFFF_0000 } else { word << 16 }))
}

/// A fused multiply-add with denormals as zero, rounded to nearest. Products of bfloat16 are exact in
/// float32 unless they leave its range, so that fusing only matters there.
fn multiply_add(a: f32, b: f32, sum: f32) -> f32 {
    flush(a.mul_add(b, flush(sum)))
}
