//! From steps to loops over registers.

use prunus_core::Error;

use super::kernels::{Loop, Op, find};
use super::ops::Kind;
use crate::level;

/// Bytes of a register: two operands and a result fit the first cache of most machines.
pub(super) const REGISTER: usize = 16 << 10;

/// One operation of a program. Values are counted: first the inputs, then the results of the steps.
#[derive(Clone, Debug)]
pub struct Step {
    /// NumPy's name of the ufunc, or `"cast"`, which converts to `kind`.
    pub name: String,
    /// In which type it is computed: that of its operands, but for the condition of `where` (a bool).
    pub kind: Kind,
    /// The values that it takes.
    pub args: Vec<usize>,
}

/// Where a value is during a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Input(usize),
    Output(usize),
    Scratch(usize),
}

/// A loop, and the places of what it takes and gives.
#[derive(Clone, Debug)]
pub(super) struct Instruction {
    pub run: Loop,
    pub args: Vec<usize>,
    pub to: usize,
    /// Whether the status of the floating-point unit is part of what it reports.
    pub computes: bool,
}

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Program {
    pub(super) inputs: Vec<Kind>,
    pub(super) outputs: Vec<Kind>,
    pub(super) code: Vec<Instruction>,
    /// Of each register that the code names.
    pub(super) places: Vec<Place>,
    pub(super) scratch: usize,
    /// Values of a chunk.
    pub(super) chunk: usize,
}

fn unknown(expected: &str, got: String) -> Error {
    Error::Choice { what: "step of an elementwise program", expected: expected.to_owned(), got }
}

/// What is being compiled.
struct Build {
    code: Vec<Instruction>,
    registers: Vec<Option<Place>>,
    /// Register and type of each value.
    values: Vec<(usize, Kind)>,
    widest: usize,
}

impl Build {
    fn register(&mut self, place: Option<Place>, kind: Kind) -> usize {
        self.widest = self.widest.max(kind.size());
        self.registers.push(place);
        self.registers.len() - 1
    }

    /// Appends a loop, and returns the register of its result.
    fn push(&mut self, op: Op, kind: Kind, args: Vec<usize>, gives: Kind) -> Result<usize, Error> {
        let run = find(level::current(), op, kind).ok_or_else(|| {
            unknown("an operation and a type that there is a loop for", format!("{op:?} of {}", kind.name()))
        })?;
        let to = self.register(None, gives);
        self.code.push(Instruction { run, args, to, computes: op.computes() });
        Ok(to)
    }

    fn cast(&mut self, value: usize, to: Kind) -> Result<usize, Error> {
        let (register, from) = self.values[value];
        if from == to {
            return Ok(register);
        }
        // What rounds twice here would round once in NumPy, or the other way round.
        let exact = matches!(from, Kind::Bool | Kind::I8 | Kind::U8 | Kind::I16 | Kind::U16 | Kind::F32);
        if to.is_half() && !exact || from.is_half() && to.is_half() {
            return Err(unknown(
                "a cast that there is a loop for",
                format!("{} to {}", from.name(), to.name()),
            ));
        }
        let mut register = register;
        if from.held() != to.held() {
            register = self.push(Op::Cast(to.held()), from.held(), vec![register], to.held())?;
        }
        match to.is_half() {
            true => self.push(Op::Round, to, vec![register], Kind::F32),
            false => Ok(register),
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), Error> {
        if let Some(&missing) = step.args.iter().find(|&&arg| arg >= self.values.len()) {
            let fault = format!("{} of value {missing}, of {}", step.name, self.values.len());
            return Err(unknown("values that come before it", fault));
        }
        if step.name == "cast" {
            let &[value] = step.args.as_slice() else {
                return Err(unknown("one value to cast", format!("{} of them", step.args.len())));
            };
            let register = self.cast(value, step.kind)?;
            self.values.push((register, step.kind));
            return Ok(());
        }
        let Some(&(_, op, exchanged)) = Op::NAMED.iter().find(|(name, ..)| *name == step.name) else {
            return Err(unknown("the name of an elementwise operation", step.name.clone()));
        };
        let wanted = |at: usize| if op == Op::Where && at == 0 { Kind::Bool } else { step.kind };
        let fits = step.args.iter().enumerate().all(|(at, &arg)| self.values[arg].1 == wanted(at));
        if !fits || step.args.len() != op.takes() {
            let kinds: Vec<_> = step.args.iter().map(|&arg| self.values[arg].1.name()).collect();
            let fault = format!("{} in {} of ({})", step.name, step.kind.name(), kinds.join(", "));
            return Err(unknown("operands of the type in which the step is computed", fault));
        }
        let mut args: Vec<usize> = step.args.iter().map(|&arg| self.values[arg].0).collect();
        if exchanged {
            args.reverse();
        }
        let gives = if op.tells() { Kind::Bool } else { step.kind };
        let mut register = self.push(op, step.kind.held(), args, gives.held())?;
        if gives.is_half() && op.computes() {
            register = self.push(Op::Round, gives, vec![register], Kind::F32)?;
        }
        self.values.push((register, gives));
        Ok(())
    }
}

impl Program {
    /// Compiles `steps` over inputs of the given types for the level in use; `outputs` are the values wanted.
    ///
    /// # Errors
    /// [`Error::Choice`] for a step that there is no loop for, or that takes what it cannot.
    pub fn new(inputs: &[Kind], steps: &[Step], outputs: &[usize]) -> Result<Self, Error> {
        let mut build = Build { code: Vec::new(), registers: Vec::new(), values: Vec::new(), widest: 1 };
        for (at, &kind) in inputs.iter().enumerate() {
            let mut register = build.register(Some(Place::Input(at)), kind);
            if kind.is_half() {
                register = build.push(Op::Unpack, kind, vec![register], Kind::F32)?;
            }
            build.values.push((register, kind));
        }
        for step in steps {
            build.step(step)?;
        }
        let mut kinds = Vec::new();
        for (at, &value) in outputs.iter().enumerate() {
            let Some(&(mut register, kind)) = build.values.get(value) else {
                return Err(unknown("outputs that are values", format!("value {value}")));
            };
            kinds.push(kind);
            if kind.is_half() {
                register = build.push(Op::Pack, kind, vec![register], kind)?;
            } else if build.registers[register].is_some() {
                register = build.push(Op::Copy, kind, vec![register], kind)?;
            }
            build.registers[register] = Some(Place::Output(at));
        }
        let Build { code, registers, widest, .. } = build;
        let (places, scratch) = place(&code, registers);
        let chunk = REGISTER / widest;
        Ok(Self { inputs: inputs.to_vec(), outputs: kinds, code, places, scratch, chunk })
    }

    /// Types of the inputs.
    pub fn inputs(&self) -> &[Kind] {
        &self.inputs
    }

    /// Types of the outputs.
    pub fn outputs(&self) -> &[Kind] {
        &self.outputs
    }
}

/// Gives scratch to the registers that have no place, each until it is read for the last time.
fn place(code: &[Instruction], registers: Vec<Option<Place>>) -> (Vec<Place>, usize) {
    let mut last = vec![0; registers.len()];
    for (at, instruction) in code.iter().enumerate() {
        last[instruction.to] = at;
        for &arg in &instruction.args {
            last[arg] = at;
        }
    }
    let (mut free, mut count) = (Vec::new(), 0);
    let mut places: Vec<Place> =
        registers.into_iter().map(|place| place.unwrap_or(Place::Scratch(usize::MAX))).collect();
    for (at, instruction) in code.iter().enumerate() {
        if places[instruction.to] == Place::Scratch(usize::MAX) {
            let slot = free.pop().unwrap_or_else(|| {
                count += 1;
                count - 1
            });
            places[instruction.to] = Place::Scratch(slot);
        }
        let mut read: Vec<usize> = instruction.args.clone();
        read.push(instruction.to);
        read.sort_unstable();
        read.dedup();
        for register in read {
            if let (Place::Scratch(slot), true) = (places[register], last[register] == at) {
                free.push(slot);
            }
        }
    }
    (places, count)
}
