//! The interrupted thread's registers, as the signal saved them.

use std::arch::x86_64::__cpuid_count;

use super::{flush, multiply_add, widen};

/// Sixteen words.
pub(crate) type Vector = [u32; 16];

/// Bytes of the legacy part of the saved state, and of the header behind it.
const LEGACY: usize = 512;
/// Where the legacy part has the XMM registers.
const XMM: usize = 160;
/// Where the legacy part says that more follows it, and how the kernel marks that.
const MAGIC: usize = 464;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;

/// State components: upper halves of YMM0–15, masks, upper halves of ZMM0–15, ZMM16–31.
const YMM: u32 = 2;
const MASKS: u32 = 5;
const ZMM: u32 = 6;
const HIGH_ZMM: u32 = 7;

/// The context of a signal.
pub(crate) struct Frame {
    context: *mut libc::ucontext_t,
}

/// Offset and size of a state component, in the standard form that signals use.
fn component(number: u32) -> (usize, usize) {
    let leaf = __cpuid_count(0xD, number);
    (leaf.ebx as usize, leaf.eax as usize)
}

impl Frame {
    /// # Safety
    /// The context must be a signal's, and outlive the frame.
    pub(crate) unsafe fn new(context: *mut libc::ucontext_t) -> Self {
        Self { context }
    }

    fn general(&self, register: libc::c_int) -> *mut i64 {
        // SAFETY: the context is a signal's.
        unsafe { &raw mut (*self.context).uc_mcontext.gregs[register as usize] }
    }

    /// A general register by its number in instructions.
    pub(crate) fn register(&self, number: usize) -> u64 {
        use libc::{
            REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RAX, REG_RBP, REG_RBX,
            REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP,
        };
        let order = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10,
            REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        // SAFETY: a register of the context.
        unsafe { *self.general(order[number]) as u64 }
    }

    /// Where the thread stands.
    pub(crate) fn rip(&self) -> u64 {
        // SAFETY: a register of the context.
        unsafe { *self.general(libc::REG_RIP) as u64 }
    }

    /// Where the thread goes on.
    pub(crate) fn set_rip(&mut self, rip: u64) {
        // SAFETY: a register of the context.
        unsafe { *self.general(libc::REG_RIP) = rip as i64 };
    }

    fn state(&self) -> *mut u8 {
        // SAFETY: the context is a signal's.
        unsafe { (*self.context).uc_mcontext.fpregs.cast() }
    }

    /// Address of a component, which is made to exist: a component in its initial state need not have
    /// been saved, and is all zeros.
    fn component(&self, number: u32) -> *mut u8 {
        let (offset, size) = component(number);
        // SAFETY: the mark says that the extended state is there, with a bit for each component.
        unsafe {
            let state = self.state();
            assert_eq!(state.add(MAGIC).cast::<u32>().read(), FP_XSTATE_MAGIC1, "no extended state");
            let present = state.add(LEGACY).cast::<u64>();
            if *present & (1 << number) == 0 {
                state.add(offset).write_bytes(0, size);
                *present |= 1 << number;
            }
            state.add(offset)
        }
    }

    /// The places of a vector register's parts: bytes, and how many.
    fn parts(&self, number: usize) -> [(*mut u8, usize); 3] {
        if number >= 16 {
            let all = self.component(HIGH_ZMM).wrapping_add((number - 16) * 64);
            return [(all, 64), (all, 0), (all, 0)];
        }
        self.keep_legacy();
        let xmm = self.state().wrapping_add(XMM + number * 16);
        let ymm = self.component(YMM).wrapping_add(number * 16);
        let zmm = self.component(ZMM).wrapping_add(number * 32);
        [(xmm, 16), (ymm, 16), (zmm, 32)]
    }

    /// The XMM registers are a component too.
    fn keep_legacy(&self) {
        const SSE: u64 = 1 << 1;
        // SAFETY: the header and the legacy part are always there.
        unsafe {
            let present = self.state().add(LEGACY).cast::<u64>();
            if *present & SSE == 0 {
                self.state().add(XMM).write_bytes(0, 256);
                *present |= SSE;
            }
        }
    }

    /// Reads ZMM `number`.
    pub(crate) fn vector(&self, number: usize) -> Vector {
        let mut vector = [0; 16];
        let mut to: *mut u8 = vector.as_mut_ptr().cast();
        for (from, bytes) in self.parts(number) {
            // SAFETY: parts of the saved state, 64 bytes together.
            unsafe { from.copy_to_nonoverlapping(to, bytes) };
            to = to.wrapping_add(bytes);
        }
        vector
    }

    fn set_vector(&mut self, number: usize, vector: &Vector) {
        let mut from: *const u8 = vector.as_ptr().cast();
        for (to, bytes) in self.parts(number) {
            // SAFETY: parts of the saved state, 64 bytes together.
            unsafe { from.copy_to_nonoverlapping(to, bytes) };
            from = from.wrapping_add(bytes);
        }
    }

    /// The lower bits of mask register `number`.
    pub(crate) fn mask(&self, number: usize) -> u16 {
        // SAFETY: a register of the component.
        unsafe { self.component(MASKS).add(number * 8).cast::<u16>().read() }
    }

    /// `vdpbf16ps`: to each sum, the product of the pairs' upper halves is added, then the lower's.
    pub(crate) fn multiply_pairs(
        &mut self,
        sums: usize,
        a: usize,
        b: Vector,
        mask: u16,
        zeroing: bool,
    ) -> Result<(), &'static str> {
        let a = self.vector(a);
        let mut all = self.vector(sums);
        for (i, sum) in all.iter_mut().enumerate() {
            if mask >> i & 1 == 1 {
                let upper = multiply_add(widen(a[i], true), widen(b[i], true), f32::from_bits(*sum));
                let both = multiply_add(widen(a[i], false), widen(b[i], false), upper);
                *sum = flush(both).to_bits();
            } else if zeroing {
                *sum = 0;
            }
        }
        self.set_vector(sums, &all);
        Ok(())
    }
}
