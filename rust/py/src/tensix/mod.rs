//! The Tensix simulator for Python.

mod program;
mod validate;
