//! Running a program: chunk after chunk, operands where they lie or gathered into registers.

use prunus_core::Error;

use super::compile::{Place, Program, REGISTER};
use super::flags::{self, Status};
use super::layout::{Operand, Rows, Walk, merge};
use super::ops::Kind;
use crate::memory::Workspace;

/// Rows from this many values on are cut into chunks one by one; shorter ones share chunks.
const LONG: usize = 512;

/// What a chunk covers: some whole rows, or a part of one.
#[derive(Clone, Copy)]
struct Chunk {
    row: usize,
    rows: usize,
    column: usize,
    width: usize,
    /// Whether its rows end with it.
    ends: bool,
}

/// An operand during a run.
struct Cursor<'a> {
    ptr: *mut u8,
    size: usize,
    /// Bytes between values of a row.
    stride: isize,
    /// Whether it is the same in every row.
    repeats: bool,
    /// Bytes from row to row, if rows lie one after the other without gaps.
    flat: Option<usize>,
    rows: Rows<'a>,
    /// Where its values are put together, if they lie apart.
    scratch: *mut u8,
    /// First row, first column and number of values that are there already.
    held: Option<(usize, usize, usize)>,
}

impl<'a> Cursor<'a> {
    fn new(operand: &'a Operand, size: usize, walk: &'a Walk, scratch: *mut u8) -> Self {
        let (stride, outer) = operand.strides.split_last().map_or((0, &[][..]), |(last, rest)| (*last, rest));
        let mut next = (walk.width * size) as isize;
        let mut together = stride == size as isize || walk.width == 1;
        for (&stride, &count) in outer.iter().zip(&walk.outer).rev() {
            together &= stride == next;
            next = next.wrapping_mul(count as isize);
        }
        Self {
            ptr: operand.ptr,
            size,
            stride,
            repeats: outer.iter().all(|&stride| stride == 0),
            flat: together.then_some(walk.width * size),
            rows: Rows::new(&walk.outer, outer),
            scratch,
            held: None,
        }
    }

    /// Where the values of a chunk lie one after the other, if they do.
    fn direct(&self, chunk: Chunk) -> Option<*mut u8> {
        if let Some(row) = self.flat {
            return Some(self.ptr.wrapping_add(chunk.row * row + chunk.column * self.size));
        }
        let together = chunk.rows == 1 && (self.stride == self.size as isize || chunk.width == 1);
        together.then(|| self.part(chunk))
    }

    /// Where the chunk's columns of the row that the cursor is at begin.
    fn part(&self, chunk: Chunk) -> *mut u8 {
        self.ptr.wrapping_offset(self.rows.offset() + chunk.column as isize * self.stride)
    }

    /// Whether the scratch has the values of a chunk from before.
    fn has(&self, chunk: Chunk) -> bool {
        self.held.is_some_and(|(row, column, count)| {
            let same = if self.stride == 0 { chunk.rows == 1 && row == chunk.row } else { false };
            let columns = self.stride == 0 || column == chunk.column;
            (self.repeats || same) && columns && count >= chunk.rows * chunk.width
        })
    }

    /// Returns where the values of a chunk can be read one after the other, and goes on to the next one.
    ///
    /// # Safety
    /// The operand's values can be read, and its scratch holds as many as a chunk has.
    unsafe fn read(&mut self, chunk: Chunk) -> *const u8 {
        if let Some(at) = self.direct(chunk) {
            self.skip(chunk);
            return at;
        }
        if self.has(chunk) {
            self.skip(chunk);
            return self.scratch;
        }
        let bytes = chunk.width * self.size;
        for row in 0..chunk.rows {
            // SAFETY: values of the row; the scratch holds all rows of the chunk.
            unsafe {
                gather(self.part(chunk), self.stride, self.scratch.add(row * bytes), self.size, chunk.width);
            }
            if chunk.ends {
                self.rows.next();
            }
        }
        self.held = Some((chunk.row, chunk.column, chunk.rows * chunk.width));
        self.scratch
    }

    /// Puts the values of a chunk where they belong, if they are not there, and goes on to the next one.
    ///
    /// # Safety
    /// The operand's values can be written, and its scratch holds those of the chunk.
    unsafe fn write(&mut self, chunk: Chunk) {
        if self.direct(chunk).is_some() {
            return self.skip(chunk);
        }
        let bytes = chunk.width * self.size;
        for row in 0..chunk.rows {
            // SAFETY: as above.
            unsafe {
                scatter(self.scratch.add(row * bytes), self.part(chunk), self.stride, self.size, chunk.width);
            }
            if chunk.ends {
                self.rows.next();
            }
        }
    }

    /// Goes past the rows of a chunk.
    fn skip(&mut self, chunk: Chunk) {
        if chunk.ends && self.flat.is_none() && !self.repeats {
            for _ in 0..chunk.rows {
                self.rows.next();
            }
        }
    }
}

/// # Safety
/// `count` values of `T` can be read `stride` bytes apart, and written together.
unsafe fn gather_of<T: Copy>(from: *const u8, stride: isize, to: *mut u8, count: usize) {
    let to = to.cast::<T>();
    if stride == 0 {
        // SAFETY: the caller's promise, here and below.
        let value = unsafe { from.cast::<T>().read_unaligned() };
        for i in 0..count {
            // SAFETY: as above.
            unsafe { to.add(i).write_unaligned(value) };
        }
        return;
    }
    for i in 0..count {
        // SAFETY: as above.
        unsafe {
            to.add(i).write_unaligned(from.wrapping_offset(i as isize * stride).cast::<T>().read_unaligned());
        }
    }
}

/// # Safety
/// As for [`gather_of`], of values of `size` bytes.
unsafe fn gather(from: *const u8, stride: isize, to: *mut u8, size: usize, count: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            1 => gather_of::<u8>(from, stride, to, count),
            2 => gather_of::<u16>(from, stride, to, count),
            4 if stride == 4 => to.copy_from_nonoverlapping(from, 4 * count),
            4 => gather_of::<u32>(from, stride, to, count),
            _ => gather_of::<u64>(from, stride, to, count),
        }
    }
}

/// # Safety
/// `count` values of `T` can be read together, and written `stride` bytes apart.
unsafe fn scatter_of<T: Copy>(from: *const u8, to: *mut u8, stride: isize, count: usize) {
    for i in 0..count {
        let to = to.wrapping_offset(i as isize * stride).cast::<T>();
        // SAFETY: the caller's promise.
        unsafe { to.write_unaligned(from.cast::<T>().add(i).read_unaligned()) };
    }
}

/// # Safety
/// As for [`scatter_of`], of values of `size` bytes.
unsafe fn scatter(from: *const u8, to: *mut u8, stride: isize, size: usize, count: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match size {
            1 => scatter_of::<u8>(from, to, stride, count),
            2 => scatter_of::<u16>(from, to, stride, count),
            4 => scatter_of::<u32>(from, to, stride, count),
            _ => scatter_of::<u64>(from, to, stride, count),
        }
    }
}

/// The chunks of a walk, in order.
fn chunks(walk: &Walk, most: usize) -> impl Iterator<Item = Chunk> + use<> {
    let (width, count) = (walk.width, walk.outer.iter().product::<usize>());
    // Long rows are cut; short ones are taken some at a time.
    let (rows, columns) = if width >= LONG { (1, most.min(width)) } else { ((most / width).max(1), width) };
    (0..count).step_by(rows).flat_map(move |row| {
        (0..width).step_by(columns).map(move |column| {
            let (rows, columns) = (rows.min(count - row), columns.min(width - column));
            Chunk { row, rows, column, width: columns, ends: column + columns == width }
        })
    })
}

impl Program {
    /// Computes the outputs, arrays of `shape`, from the inputs, and returns what NumPy would warn of, and
    /// whether it has to do it ([`flags`]).
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of operands or axes than the program or the shape has;
    /// [`Error::Memory`].
    ///
    /// # Safety
    /// All values that an operand's strides reach in `shape` must be readable, those of outputs writable. Two
    /// values of an output must not share memory, nor one with another operand.
    pub unsafe fn run(&self, shape: &[usize], inputs: &[Operand], outputs: &[Operand]) -> Result<u32, Error> {
        let misfit = |what, expected: usize, got: usize| {
            Err(Error::Shape { what, expected: expected.to_string(), got: got.to_string() })
        };
        if inputs.len() != self.inputs.len() {
            return misfit("inputs of an elementwise program", self.inputs.len(), inputs.len());
        }
        if outputs.len() != self.outputs.len() {
            return misfit("outputs of an elementwise program", self.outputs.len(), outputs.len());
        }
        if let Some(odd) = inputs.iter().chain(outputs).find(|of| of.strides.len() != shape.len()) {
            return misfit("axes of an operand", shape.len(), odd.strides.len());
        }
        if shape.contains(&0) {
            return Ok(0);
        }
        let mut operands: Vec<Operand> = inputs.iter().chain(outputs).cloned().collect();
        let walk = merge(shape, &mut operands);
        let scratch = Workspace::of(&[self.scratch + operands.len(), REGISTER])?;
        let register = |at: usize| scratch.as_ptr().wrapping_add(at * REGISTER);
        let sizes = self.inputs.iter().chain(&self.outputs).map(|kind: &Kind| kind.size());
        let cursors = operands.iter().zip(sizes).enumerate();
        let mut sources: Vec<Cursor<'_>> = cursors
            .map(|(at, (of, size))| Cursor::new(of, size, &walk, register(self.scratch + at)))
            .collect();
        let mut targets = sources.split_off(inputs.len());
        let mut at: Vec<*mut u8> = vec![std::ptr::null_mut(); self.places.len()];
        let _status = Status::save();
        flags::clear();
        let mut found = 0;
        for chunk in chunks(&walk, self.chunk) {
            for (to, place) in at.iter_mut().zip(&self.places) {
                *to = match *place {
                    // SAFETY: the caller's promise; a register holds a chunk of the widest type.
                    Place::Input(i) => unsafe { sources[i].read(chunk).cast_mut() },
                    Place::Output(i) => targets[i].direct(chunk).unwrap_or(targets[i].scratch),
                    Place::Scratch(i) => register(i),
                };
            }
            // SAFETY: each place holds as many values as the chunk has, of the type that was compiled for.
            found |= unsafe { self.execute(&at, chunk.rows * chunk.width) };
            for target in &mut targets {
                // SAFETY: as above.
                unsafe { target.write(chunk) };
            }
        }
        Ok(found)
    }

    /// Runs the code over one chunk whose registers are at `at`.
    ///
    /// # Safety
    /// Each register holds `count` values of its type; those that are written lie apart from all others.
    unsafe fn execute(&self, at: &[*mut u8], count: usize) -> u32 {
        let mut found = 0;
        for instruction in &self.code {
            let mut from = [std::ptr::null(); 3];
            for (from, &arg) in from.iter_mut().zip(&instruction.args) {
                *from = at[arg].cast_const();
            }
            if instruction.computes {
                flags::clear();
            }
            // SAFETY: the caller's promise; the loop is one of a level that this machine has.
            found |= unsafe { (instruction.run)(&from, at[instruction.to], count) };
            if instruction.computes {
                found |= flags::raised();
            }
        }
        found
    }
}
