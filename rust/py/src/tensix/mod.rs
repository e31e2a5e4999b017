//! The Tensix simulator for Python.

mod context;
mod errors;
pub(crate) mod estimate;
mod kernel;
pub(crate) mod layers;
pub(crate) mod mesh;
pub(crate) mod products;
pub(crate) mod program;
pub(crate) mod streams;
pub(crate) mod tiles;
pub(crate) mod validate;
mod verb;
mod watch;

pub(crate) use context::KernelContext;
pub(crate) use verb::{Place, Verb};
