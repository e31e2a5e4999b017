//! What can be wrong with arguments of this module.

use super::Format;

/// What can be wrong with arguments. Every message says what was expected and what came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not as many as the tiles have.
    #[error("{}: expected {expected} bytes, got {got}", format.name())]
    Bytes {
        /// Format of the tiles.
        format: Format,
        /// Bytes that they take.
        expected: usize,
        /// Bytes that came.
        got: usize,
    },
    /// Floating-point values for an integer format, or the reverse.
    #[error("{}: expected {} values, got {got}", format.name(), if format.is_float() { "f32" } else { "i32" })]
    Values {
        /// Format of the tiles.
        format: Format,
        /// Type of the values that came.
        got: &'static str,
    },
    /// A matrix reaches past the end of its data.
    #[error(
        "a matrix of {rows} x {cols} with strides {row_stride} and {col_stride} does not fit into {len} elements"
    )]
    Matrix {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
        /// Elements from one row to the next.
        row_stride: usize,
        /// Elements from one column to the next.
        col_stride: usize,
        /// Elements that there are.
        len: usize,
    },
    /// A matrix has more tiles than memory can hold.
    #[error("the tiles of a matrix of {rows} x {cols} do not fit into memory")]
    TooLarge {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// Blocks of tiles whose numbers do not fit each other.
    #[error(
        "blocks of {height} x k, k x {width} and {height} x {width} tiles: got {in0}, {in1} and {dst} tiles"
    )]
    Blocks {
        /// Rows of tiles of the product.
        height: usize,
        /// Columns of tiles of the product.
        width: usize,
        /// Tiles of the left operand.
        in0: usize,
        /// Tiles of the right operand.
        in1: usize,
        /// Tiles of the product.
        dst: usize,
    },
}
