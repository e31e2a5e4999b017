//! Decoding: VEX-encoded AMX instructions and the EVEX-encoded `vdpbf16ps`.

use super::frame::{Frame, Vector};

/// An instruction with its operands: addresses computed, memory read.
pub(crate) enum Instruction {
    LoadConfig { at: u64 },
    StoreConfig { at: u64 },
    Release,
    Zero { tile: usize },
    Load { tile: usize, at: u64, stride: i64 },
    Store { tile: usize, at: u64, stride: i64 },
    Bf16 { sums: usize, a: usize, b: usize },
    Int8 { sums: usize, a: usize, b: usize },
    Pairs { sums: usize, a: usize, b: Vector, mask: u16, zeroing: bool },
}

/// The last operand of an instruction.
enum Operand {
    Register(usize),
    Memory(Address),
}

struct Address {
    /// Base and displacement; without the index.
    base: u64,
    /// Index times scale, where there is a SIB byte.
    index: Option<i64>,
}

impl Address {
    fn whole(&self) -> u64 {
        self.base.wrapping_add_signed(self.index.unwrap_or(0))
    }
}

/// Reads bytes in order.
struct Cursor<'a> {
    code: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.code.get(self.at)?;
        self.at += 1;
        Some(byte)
    }
}

/// Extensions of register numbers, as 0 or 8.
struct Extend {
    reg: usize,
    index: usize,
    base: usize,
}

/// Decodes ModRM, SIB and displacement; bytes of displacement count `unit` bytes each. Gives ModRM's
/// middle field, not extended, and the operand.
fn operand(cursor: &mut Cursor<'_>, frame: &Frame, extend: &Extend, unit: i64) -> Option<(usize, Operand)> {
    let modrm = cursor.byte()?;
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    if mode == 3 {
        return Some((reg, Operand::Register(rm + extend.base)));
    }
    let mut index = None;
    let mut base = Some(rm + extend.base);
    if rm == 4 {
        let sib = cursor.byte()?;
        let (scale, i, b) = (sib >> 6, usize::from(sib >> 3 & 7) + extend.index, usize::from(sib & 7));
        // Number 4 (RSP) stands for no index.
        index = Some(if i == 4 { 0 } else { (frame.register(i) as i64) << scale });
        base = (b != 5 || mode != 0).then_some(b + extend.base);
    } else if rm == 5 && mode == 0 {
        // Relative to the next instruction, which starts after the four bytes: none of ours have
        // immediates.
        let displacement = four(cursor)?;
        let next = frame.rip() + cursor.at as u64;
        return Some((reg, Operand::Memory(Address { base: next.wrapping_add_signed(displacement), index })));
    }
    let displacement = match (mode, base) {
        (1, _) => i64::from(cursor.byte()? as i8) * unit,
        (2, _) | (0, None) => four(cursor)?,
        _ => 0,
    };
    let base = base.map_or(0, |register| frame.register(register));
    Some((reg, Operand::Memory(Address { base: base.wrapping_add_signed(displacement), index })))
}

fn four(cursor: &mut Cursor<'_>) -> Option<i64> {
    let bytes = [cursor.byte()?, cursor.byte()?, cursor.byte()?, cursor.byte()?];
    Some(i64::from(i32::from_le_bytes(bytes)))
}

/// Decodes one instruction; gives its length too. None for what it does not know.
pub(crate) fn decode(code: &[u8], frame: &Frame) -> Option<(Instruction, usize)> {
    let mut cursor = Cursor { code, at: 0 };
    let instruction = match cursor.byte()? {
        0xC4 => vex(&mut cursor, frame)?,
        0x62 => evex(&mut cursor, frame)?,
        _ => return None,
    };
    Some((instruction, cursor.at))
}

/// `VEX.128.{NP,66,F3,F2}.0F38.W0`, opcodes 49 (configuration), 4B (memory), 5C and 5E (products).
fn vex(cursor: &mut Cursor<'_>, frame: &Frame) -> Option<Instruction> {
    let (second, third) = (cursor.byte()?, cursor.byte()?);
    let bit = |byte: u8, n: u8| usize::from(byte >> n & 1 == 0) * 8;
    let extend = Extend { reg: bit(second, 7), index: bit(second, 6), base: bit(second, 5) };
    let (map, wide, long) = (second & 31, third & 0x80 != 0, third & 4 != 0);
    let (vvvv, prefix) = (usize::from(!third >> 3 & 15), third & 3);
    if map != 2 || wide || long {
        return None;
    }
    let opcode = cursor.byte()?;
    let (reg, rm) = operand(cursor, frame, &extend, 1)?;
    let tile = reg + extend.reg;
    // Prefixes: 0 none, 1 66, 2 F3, 3 F2.
    Some(match (opcode, prefix, rm) {
        (0x49, 0, Operand::Memory(at)) if reg == 0 && vvvv == 0 => Instruction::LoadConfig { at: at.whole() },
        (0x49, 1, Operand::Memory(at)) if reg == 0 && vvvv == 0 => {
            Instruction::StoreConfig { at: at.whole() }
        }
        (0x49, 0, Operand::Register(0)) if reg == 0 && vvvv == 0 => Instruction::Release,
        (0x49, 3, Operand::Register(0)) if vvvv == 0 => Instruction::Zero { tile },
        // Tiles are loaded and stored through a SIB byte, whose index is the stride.
        (0x4B, 1 | 3, Operand::Memory(at)) if vvvv == 0 => {
            Instruction::Load { tile, at: at.base, stride: at.index? }
        }
        (0x4B, 2, Operand::Memory(at)) if vvvv == 0 => {
            Instruction::Store { tile, at: at.base, stride: at.index? }
        }
        (0x5C, 2, Operand::Register(a)) => Instruction::Bf16 { sums: tile, a, b: vvvv },
        (0x5E, 3, Operand::Register(a)) => Instruction::Int8 { sums: tile, a, b: vvvv },
        _ => return None,
    })
}

/// `EVEX.512.F3.0F38.W0 52 /r`: vdpbf16ps with a register, memory or broadcast operand.
fn evex(cursor: &mut Cursor<'_>, frame: &Frame) -> Option<Instruction> {
    let p = [cursor.byte()?, cursor.byte()?, cursor.byte()?];
    let bit = |byte: u8, n: u8, value: usize| if byte >> n & 1 == 0 { value } else { 0 };
    let (map, fixed) = (p[0] & 0x0F, p[1] & 4);
    let (wide, prefix) = (p[1] & 0x80 != 0, p[1] & 3);
    let (zeroing, length, broadcast) = (p[2] & 0x80 != 0, p[2] >> 5 & 3, p[2] & 0x10 != 0);
    if map != 2 || fixed == 0 || wide || prefix != 2 || length != 2 || cursor.byte()? != 0x52 {
        return None;
    }
    let extend =
        Extend { reg: bit(p[0], 7, 8) + bit(p[0], 4, 16), index: bit(p[0], 6, 8), base: bit(p[0], 5, 8) };
    let a = usize::from(!p[1] >> 3 & 15) + bit(p[2], 3, 16);
    // Without broadcast a byte of displacement counts whole vectors, with it single words.
    let (reg, rm) = operand(cursor, frame, &extend, if broadcast { 4 } else { 64 })?;
    let b = match rm {
        // In registers the index's extension is the fifth bit; broadcast would mean rounding.
        Operand::Register(_) if broadcast => return None,
        Operand::Register(rm) => frame.vector(rm + 2 * extend.index),
        Operand::Memory(at) => {
            let at = at.whole();
            // SAFETY: the interrupted code vouches for its memory operand.
            unsafe {
                if broadcast {
                    [(at as *const u32).read_unaligned(); 16]
                } else {
                    (at as *const Vector).read_unaligned()
                }
            }
        }
    };
    let mask = match p[2] & 7 {
        0 => u16::MAX,
        k => frame.mask(usize::from(k)),
    };
    Some(Instruction::Pairs { sums: reg + extend.reg, a, b, mask, zeroing })
}
