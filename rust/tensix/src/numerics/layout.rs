//! Matrices as tiles, and back.

use super::tile::{TILE, TILE_VALUES, check};
use super::{Element, Error, Format};

/// A matrix to read: a slice with strides, in elements.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    shape: Shape,
}

/// A matrix to write: a slice with strides, in elements. Of elements at the same place the last one written stays.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    shape: Shape,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// A matrix whose rows lie one after another.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self, Error> {
        Self::with_strides(data, rows, cols, cols, 1)
    }

    /// A matrix of any strides; fails unless all of it lies in `data`.
    pub fn with_strides(
        data: &'a [T],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Result<Self, Error> {
        let shape = Shape { rows, cols, row_stride, col_stride };
        shape.check(data.len())?;
        Ok(Self { data, shape })
    }
}

impl<'a, T> MatrixMut<'a, T> {
    /// A matrix whose rows lie one after another.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self, Error> {
        Self::with_strides(data, rows, cols, cols, 1)
    }

    /// A matrix of any strides; fails unless all of it lies in `data`.
    pub fn with_strides(
        data: &'a mut [T],
        rows: usize,
        cols: usize,
        row_stride: usize,
        col_stride: usize,
    ) -> Result<Self, Error> {
        let shape = Shape { rows, cols, row_stride, col_stride };
        shape.check(data.len())?;
        Ok(Self { data, shape })
    }
}

impl Shape {
    fn check(self, len: usize) -> Result<(), Error> {
        let Self { rows, cols, row_stride, col_stride } = self;
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        let last = || (rows - 1).checked_mul(row_stride)?.checked_add((cols - 1).checked_mul(col_stride)?);
        match last() {
            Some(last) if last < len => Ok(()),
            _ => Err(Error::Matrix { rows, cols, row_stride, col_stride, len }),
        }
    }

    /// Tiles of the matrix, and bytes of all of them.
    fn tiles(self, format: Format) -> Result<(usize, usize), Error> {
        let (down, across) = tile_grid(self.rows, self.cols);
        let tiles = || {
            let tiles = down.checked_mul(across)?;
            Some((
                tiles,
                tiles.checked_mul(format.tile_bytes()).filter(|&bytes| bytes <= isize::MAX as usize)?,
            ))
        };
        tiles().ok_or(Error::TooLarge { rows: self.rows, cols: self.cols })
    }

    /// The part of the matrix that tile `index` has: its first element's place, rows and columns.
    fn part(self, index: usize) -> (usize, usize, usize) {
        let across = self.cols.div_ceil(TILE);
        let (i, j) = (index / across * TILE, index % across * TILE);
        let first = i * self.row_stride + j * self.col_stride;
        (first, TILE.min(self.rows - i), TILE.min(self.cols - j))
    }
}

/// Rows and columns of tiles that cover a matrix.
pub const fn tile_grid(rows: usize, cols: usize) -> (usize, usize) {
    (rows.div_ceil(TILE), cols.div_ceil(TILE))
}

/// The tiles of a matrix, row of tiles by row of tiles, each as [`encode_tile`](super::encode_tile) writes it; beyond
/// the matrix's edges they hold zeros.
pub fn tilize<T: Element>(format: Format, matrix: &Matrix<'_, T>) -> Result<Vec<u8>, Error> {
    let Matrix { data, shape } = *matrix;
    let (tiles, len) = shape.tiles(format)?;
    check::<T>(format, tiles, len)?;
    let mut bytes = Vec::new();
    if bytes.try_reserve_exact(len).is_err() {
        return Err(Error::TooLarge { rows: shape.rows, cols: shape.cols });
    }
    bytes.resize(len, 0);
    for (index, bytes) in bytes.chunks_exact_mut(format.tile_bytes()).enumerate() {
        let (first, rows, cols) = shape.part(index);
        let mut tile = [T::default(); TILE_VALUES];
        for (i, row) in tile.chunks_exact_mut(TILE).take(rows).enumerate() {
            let from = &data[first + i * shape.row_stride..];
            if shape.col_stride == 1 {
                row[..cols].copy_from_slice(&from[..cols]);
            } else {
                row[..cols].iter_mut().enumerate().for_each(|(j, to)| *to = from[j * shape.col_stride]);
            }
        }
        T::encode(format, &tile, bytes);
    }
    Ok(bytes)
}

/// Writes the matrix that its tiles hold, in the order of [`tilize`]. What they hold beyond its edges is not read.
pub fn untilize<T: Element>(
    format: Format,
    bytes: &[u8],
    matrix: &mut MatrixMut<'_, T>,
) -> Result<(), Error> {
    let shape = matrix.shape;
    let (tiles, _) = shape.tiles(format)?;
    check::<T>(format, tiles, bytes.len())?;
    for (index, bytes) in bytes.chunks_exact(format.tile_bytes()).enumerate() {
        let (first, rows, cols) = shape.part(index);
        let mut tile = [T::default(); TILE_VALUES];
        T::decode(format, bytes, &mut tile);
        for (i, row) in tile.chunks_exact(TILE).take(rows).enumerate() {
            let to = &mut matrix.data[first + i * shape.row_stride..];
            if shape.col_stride == 1 {
                to[..cols].copy_from_slice(&row[..cols]);
            } else {
                row[..cols].iter().enumerate().for_each(|(j, &from)| to[j * shape.col_stride] = from);
            }
        }
    }
    Ok(())
}
