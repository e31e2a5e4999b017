//! What the tests of this crate share.

#[cfg(target_os = "linux")]
pub(crate) mod emulator;
pub(crate) mod product;
