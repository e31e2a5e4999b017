//! The selective scan of state-space models: a linear recurrence whose rates depend on the input.
//!
//! For every channel, with a state of a few values,
//! `h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t` and `y_t = (C_t · h_t + D u_t) silu(z_t)`
//! (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023).
//!
//! Channels lie side by side in vectors, so each is computed as if it were alone: results depend neither on
//! threads nor on which other channels take part. Time runs through small tiles that are converted from any
//! layout and type into the first cache; the state stays there. [`plan`] says who computes what.

mod columns;
mod exp;
mod gates;
mod kernel;
pub(crate) mod lanes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plan;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use prunus_core::{DType, Error, MatMut, MatRef, VecRef};

pub use gates::Gates;

use crate::dsd::convert::Rect;
use crate::memory::Workspace;
use crate::threads::{Context, for_each};
use columns::{Reader, Writer};
use kernel::Tile;
use lanes::{Float, Kernels, kernels_f32, kernels_f64};
use plan::{CHUNK, Task};

/// Steps of a tile: with the widest chunk, its inputs and outputs take 16 KiB of the first cache.
const STEPS: usize = 16;
/// Tasks that go through time together, at most: with float32, 2 KiB of a row.
const TOGETHER: usize = 8;
/// Multiply-adds of a task between two looks for Ctrl-C: with those that run together, some tens of milliseconds.
const PATIENCE: usize = 1 << 21;

/// What one member of a batch reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Inputs, `length × channels`.
    pub u: MatRef<'a>,
    /// Step sizes, `length × channels`.
    pub delta: MatRef<'a>,
    /// What the input writes to the state, `length × states`.
    pub b: MatRef<'a>,
    /// What the output reads from the state, `length × states`.
    pub c: MatRef<'a>,
    /// Gates before their activation, `length × channels`.
    pub z: Option<MatRef<'a>>,
    /// The result, `length × channels`.
    pub out: MatMut<'a>,
    /// State before the first step, and after the last, `channels × states`; zeros that are forgotten where
    /// there is none.
    pub state: Option<MatMut<'a>>,
}

/// Which outputs are live: a byte for each step of each member and each branch of channels.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a> {
    /// `members × length × branches` bytes in C order; 0 is dead.
    pub bytes: &'a [u8],
    /// Channels of a branch; the last one may have fewer.
    pub branch: usize,
}

/// One scan.
#[derive(Clone, Copy, Debug)]
pub struct Scan<'a> {
    /// Members of the batch, all of the same shapes and types.
    pub members: &'a [Member<'a>],
    /// Rates of decay, `channels × states`.
    pub a: MatRef<'a>,
    /// How much of the input goes straight to the output, a value for each channel.
    pub skip: Option<VecRef<'a>>,
    /// Added to the step sizes, a value for each channel.
    pub bias: Option<VecRef<'a>>,
    /// Whether step sizes go through softplus.
    pub softplus: bool,
    /// Dead outputs are 0; without a state to return, a channel is computed up to its last live step only.
    pub live: Option<Live<'a>>,
}

impl Scan<'_> {
    /// Runs the scan and says which kernel did it: in float64 if anything is, else in float32.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DTypes`] for operands that do not fit, [`Error::Memory`] or
    /// [`Error::Interrupted`].
    pub fn run(&self, context: &Context<'_>) -> Result<&'static str, Error> {
        let Some(first) = self.members.first() else { return Ok("nothing to do") };
        for member in self.members {
            self.check(member)?;
        }
        let (length, channels) = (first.u.rows, first.u.cols);
        if let Some(live) = self.live {
            let branches = channels.div_ceil(live.branch.max(1));
            let expected = self.members.len() * length * branches;
            if live.branch == 0 || live.bytes.len() != expected {
                return Err(shape("live", expected.to_string(), live.bytes.len().to_string()));
            }
        }
        if length == 0 || channels == 0 {
            return Ok("nothing to do");
        }
        if self.computes_wide(first) {
            let (kernels, path) = kernels_f64();
            self.run_as(context, kernels).map(|()| path)
        } else {
            let (kernels, path) = kernels_f32();
            self.run_as(context, kernels).map(|()| path)
        }
    }

    fn check(&self, member: &Member<'_>) -> Result<(), Error> {
        let first = &self.members[0];
        let (length, channels) = (first.u.rows, first.u.cols);
        let states = self.a.cols;
        let mut all = vec![
            ("A", self.a, (channels, states), self.a.dtype),
            ("u", member.u, (length, channels), first.u.dtype),
            ("delta", member.delta, (length, channels), first.delta.dtype),
            ("B", member.b, (length, states), first.b.dtype),
            ("C", member.c, (length, states), first.c.dtype),
            ("result", member.out.view, (length, channels), first.out.view.dtype),
        ];
        if let Some(z) = member.z {
            all.push(("z", z, (length, channels), first.z.map_or(z.dtype, |z| z.dtype)));
        }
        if let Some(state) = member.state {
            all.push(("state", state.view, (channels, states), first.compute_type(self)));
        }
        for (what, view, expected, dtype) in all {
            if (view.rows, view.cols) != expected {
                return Err(shape(what, format!("{expected:?}"), format!("{:?}", (view.rows, view.cols))));
            }
            if matches!(view.dtype, DType::I8 | DType::I32) || view.dtype != dtype {
                return Err(Error::DTypes { what: "scan", a: view.dtype, b: dtype, out: dtype });
            }
        }
        for (what, vector) in [("D", self.skip), ("delta_bias", self.bias)] {
            let Some(vector) = vector else { continue };
            if vector.len != channels {
                return Err(shape(what, channels.to_string(), vector.len.to_string()));
            }
            if matches!(vector.dtype, DType::I8 | DType::I32) {
                return Err(Error::DTypes { what: "scan", a: vector.dtype, b: DType::F32, out: DType::F32 });
            }
        }
        if member.z.is_some() != first.z.is_some() || member.state.is_some() != first.state.is_some() {
            return Err(shape("members", "all with gates and states, or none".into(), "a mix".into()));
        }
        Ok(())
    }

    fn computes_wide(&self, first: &Member<'_>) -> bool {
        first.compute_type(self) == DType::F64
    }

    fn run_as<E: Float>(&self, context: &Context<'_>, kernels: Kernels<E>) -> Result<(), Error> {
        let first = &self.members[0];
        let (length, states) = (first.u.rows, self.a.cols);
        let tasks = plan::tasks(self, context.threads);
        let states_of = Workspace::of(&[tasks.len(), states.max(1), CHUNK, size_of::<E>()])?;
        let states_of =
            StateOf { start: states_of.as_ptr().cast::<E>(), task: states * CHUNK, _keep: &states_of };
        let copies = Copies::<E>::new(self)?;
        // Neighbouring channels go through time together: their parts of a row share pages of memory.
        let together = (tasks.len() / (2 * context.threads)).clamp(1, TOGETHER);
        // Whole tiles, so that where a segment ends changes nothing.
        let segment = (PATIENCE / CHUNK / states.max(1)).next_multiple_of(STEPS).max(STEPS);
        for from in (0..length).step_by(segment) {
            let steps = from..length.min(from + segment);
            for_each(context, tasks.len().div_ceil(together), |group| {
                let group = group * together..tasks.len().min((group + 1) * together);
                let mut works = Vec::with_capacity(group.len());
                for i in group {
                    let (task, h) = (&tasks[i], states_of.of(i));
                    works.push(Work::new(self, task, kernels, &copies, h, steps.start)?);
                }
                for from in steps.clone().step_by(STEPS) {
                    let count = STEPS.min(steps.end - from);
                    works.iter_mut().for_each(|work| work.advance(from, count));
                }
                if steps.end == length {
                    works.iter().for_each(Work::finish);
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Member<'_> {
    /// The type that a scan with this member computes in.
    fn compute_type(&self, scan: &Scan<'_>) -> DType {
        let views = [Some(self.u), Some(self.delta), Some(self.b), Some(self.c), self.z, Some(scan.a)];
        let vectors = [scan.skip, scan.bias];
        let wide = views.iter().flatten().any(|view| view.dtype == DType::F64)
            || vectors.iter().flatten().any(|vector| vector.dtype == DType::F64)
            || self.state.is_some_and(|state| state.view.dtype == DType::F64)
            || self.out.view.dtype == DType::F64;
        if wide { DType::F64 } else { DType::F32 }
    }
}

fn shape(what: &'static str, expected: String, got: String) -> Error {
    Error::Shape { what, expected, got }
}

/// Where each task keeps its state between segments: `states × CHUNK` values.
struct StateOf<'a, E> {
    start: *mut E,
    task: usize,
    _keep: &'a Workspace,
}

// SAFETY: tasks use parts of their own.
unsafe impl<E> Sync for StateOf<'_, E> {}

impl<E> StateOf<'_, E> {
    fn of(&self, task: usize) -> *mut E {
        self.start.wrapping_add(task * self.task)
    }
}

/// How each operand is read, and the result written.
struct Copies<E> {
    u: Reader<E>,
    delta: Reader<E>,
    b: Reader<E>,
    c: Reader<E>,
    z: Option<Reader<E>>,
    a: Reader<E>,
    out: Writer<E>,
    /// The state is in the type that is computed in.
    state: (Reader<E>, Writer<E>),
}

impl<E: Float> Copies<E> {
    fn new(scan: &Scan<'_>) -> Result<Self, Error> {
        let first = &scan.members[0];
        Ok(Self {
            u: Reader::new(first.u.dtype)?,
            delta: Reader::new(first.delta.dtype)?,
            b: Reader::new(first.b.dtype)?,
            c: Reader::new(first.c.dtype)?,
            z: first.z.map(|z| Reader::new(z.dtype)).transpose()?,
            a: Reader::new(scan.a.dtype)?,
            out: Writer::new(first.out.view.dtype)?,
            state: (Reader::new(E::DTYPE)?, Writer::new(E::DTYPE)?),
        })
    }
}

/// One task over some steps.
struct Work<'a, E: Float> {
    scan: &'a Scan<'a>,
    task: &'a Task,
    kernels: Kernels<E>,
    copies: &'a Copies<E>,
    h: *mut E,
    parts: Parts<E>,
}

impl<'a, E: Float> Work<'a, E> {
    fn new(
        scan: &'a Scan<'a>,
        task: &'a Task,
        kernels: Kernels<E>,
        copies: &'a Copies<E>,
        h: *mut E,
        from: usize,
    ) -> Result<Self, Error> {
        let width = task.width();
        let work = Self { scan, task, kernels, copies, h, parts: Parts::new(scan.a.cols, width)? };
        if from < task.end {
            if from == 0 {
                work.begin(&scan.members[task.member], width);
            }
            work.constants(&work.parts, width);
        }
        Ok(work)
    }

    fn advance(&mut self, from: usize, count: usize) {
        let (task, width) = (self.task, self.task.width());
        let member = &self.scan.members[task.member];
        if from < task.end {
            self.tile(member, from, count, width);
        } else {
            // SAFETY: the part holds that many values.
            unsafe { std::slice::from_raw_parts_mut(self.parts.y, count * width).fill(E::ZERO) };
        }
        // SAFETY: these rows and the task's columns are within the result, and no other task's.
        unsafe { self.copies.out.write(&member.out.view, from, count, &task.runs, self.parts.y, width) };
    }

    fn finish(&self) {
        let (task, states) = (self.task, self.scan.a.cols);
        if let Some(state) = self.scan.members[task.member].state {
            let writer = &self.copies.state.1;
            // SAFETY: as above, for the state.
            unsafe { writer.write(&state.view.t(), 0, states, &task.runs, self.h, task.width()) };
        }
    }

    /// Copies the task's columns of some rows of `view`, `width` apart.
    fn copy(&self, view: &MatRef<'_>, reader: &Reader<E>, rows: Range<usize>, to: *mut E, width: usize) {
        // SAFETY: callers name rows of the view and a part that holds as many; the task's channels are columns.
        unsafe { reader.read(view, rows.start, rows.len(), &self.task.runs, to, width) };
    }

    /// The state before the first step.
    fn begin(&self, member: &Member<'_>, width: usize) {
        let states = self.scan.a.cols;
        match member.state {
            Some(state) => self.copy(&state.view.t(), &self.copies.state.0, 0..states, self.h, width),
            // SAFETY: the task's own part of the workspace.
            None => unsafe { std::slice::from_raw_parts_mut(self.h, states * width).fill(E::ZERO) },
        }
    }

    /// What is the same for every step.
    fn constants(&self, parts: &Parts<E>, width: usize) {
        let (scan, states) = (self.scan, self.scan.a.cols);
        self.copy(&scan.a.t(), &self.copies.a, 0..states, parts.a, width);
        for i in 0..states * width {
            // SAFETY: the part holds that many values.
            unsafe { *parts.a.add(i) = *parts.a.add(i) * E::LOG2_E };
        }
        for (vector, to) in [(scan.skip, parts.skip), (scan.bias, parts.bias)] {
            let Some(vector) = vector else { continue };
            columns::each(&self.task.runs, |at, channel, n| {
                for i in 0..n {
                    // SAFETY: within the chunk; `bias` reads element `channel + i` of a checked vector.
                    unsafe { *to.add(at + i) = E::bias(&vector, channel + i) };
                }
            });
            let channels = self.task.channels();
            // SAFETY: within the chunk.
            unsafe { std::slice::from_raw_parts_mut(to.add(channels), width - channels) }.fill(E::ZERO);
        }
    }

    fn tile(&mut self, member: &Member<'_>, from: usize, count: usize, width: usize) {
        let (scan, copies, parts) = (self.scan, self.copies, &self.parts);
        let states = scan.a.cols;
        let rows = from..from + count;
        self.copy(&member.u, &copies.u, rows.clone(), parts.u, width);
        self.copy(&member.delta, &copies.delta, rows.clone(), parts.delta, width);
        if let (Some(z), Some(reader)) = (&member.z, &copies.z) {
            self.copy(z, reader, rows.clone(), parts.z, width);
        }
        for (view, reader, to) in [(&member.b, copies.b, parts.b), (&member.c, copies.c, parts.c)] {
            let rect = Rect {
                src: view.at(from, 0),
                rows: count,
                cols: states,
                row_stride: view.row_stride,
                col_stride: view.col_stride,
            };
            // SAFETY: these rows are within the view; the part holds `STEPS × states` values.
            unsafe { (reader.convert)(&rect, to, states) };
        }
        let next = from + count..(from + count + STEPS).min(member.u.rows);
        for view in [Some(&member.u), Some(&member.delta), member.z.as_ref()].into_iter().flatten() {
            columns::prefetch(view, next.clone(), &self.task.runs);
        }
        let live = scan.live.map(|live| {
            self.task.liveness(&live, scan, rows, &mut self.parts.live);
            self.parts.live.as_ptr()
        });
        self.task.ends(from, count, &mut self.parts.ends);
        let parts = &self.parts;
        let null = std::ptr::null();
        let tile = Tile {
            steps: count,
            width,
            states,
            u: parts.u,
            delta: parts.delta,
            b: parts.b,
            c: parts.c,
            z: if member.z.is_some() { parts.z } else { null },
            a: parts.a,
            h: self.h,
            skip: if scan.skip.is_some() { parts.skip } else { null },
            bias: if scan.bias.is_some() { parts.bias } else { null },
            softplus: scan.softplus,
            live: live.unwrap_or(null.cast()),
            ends: parts.ends.as_ptr(),
            y: parts.y,
        };
        // SAFETY: the parts are as large as the tile says, and apart; the kernels are of the level in use.
        unsafe { (self.kernels.run)(&tile) };
    }
}

/// A task's memory, in values of the type that is computed in.
struct Parts<E> {
    u: *mut E,
    delta: *mut E,
    z: *mut E,
    y: *mut E,
    a: *mut E,
    b: *mut E,
    c: *mut E,
    skip: *mut E,
    bias: *mut E,
    live: Vec<u8>,
    ends: Vec<usize>,
    _keep: Workspace,
}

impl<E> Parts<E> {
    fn new(states: usize, width: usize) -> Result<Self, Error> {
        let (tile, pairs) = (STEPS * width, STEPS * states);
        // Multiples of a cache line each, so that vectors do not straddle lines.
        let sizes = [tile, tile, tile, tile, states * width, pairs, pairs, width, width];
        let sizes = sizes.map(|size| size.next_multiple_of(16));
        let keep = Workspace::of(&[sizes.iter().sum::<usize>(), size_of::<E>()])?;
        let mut next = keep.as_ptr().cast::<E>();
        let [u, delta, z, y, a, b, c, skip, bias] = sizes.map(|size| {
            let part = next;
            next = next.wrapping_add(size);
            part
        });
        let (live, ends) = (vec![0; tile], vec![0; width]);
        Ok(Self { u, delta, z, y, a, b, c, skip, bias, live, ends, _keep: keep })
    }
}
