//! `prunus._core`: the only crate that knows Python.
//!
//! Each function turns arrays into views ([`arrays`], block-sparse ones in [`operand`]), goes through one
//! door that releases the GIL and listens for signals ([`door`]), and calls an engine.

use pyo3::prelude::*;

mod arrays;
mod attention;
mod door;
mod dsd;
mod elementwise;
mod formats;
mod info;
mod leftover;
mod moments;
mod operand;
mod packed;
mod pager;
mod probe;
mod rows;
mod scan;
mod sdd;
mod select;
mod ssd;
mod tensix;
mod transform;

/// Compiled part of prunus.
#[pymodule]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::arrays::writes_apart;
    #[pymodule_export]
    use super::attention::{attention, pooled_scores};
    #[pymodule_export]
    use super::dsd::{PackedColumns, dsd, pack_columns};
    #[pymodule_export]
    use super::elementwise::Elementwise;
    #[pymodule_export]
    use super::formats::{
        crc32c_pages, npy_header, npy_header_size, parse_npy, parse_safetensors, safetensors_header_size,
        write_safetensors_header,
    };
    #[pymodule_export]
    use super::info::{
        available_levels, cpu_info, default_threads, follow_threads, last_path, lend_threads, level,
        measure_bandwidth, measure_flops, set_level,
    };

    #[pymodule_export]
    use super::leftover::Leftover;
    #[pymodule_export]
    use super::moments::moments;
    #[pymodule_export]
    use super::packed::{Packed, dsd_packed, pack};
    #[pymodule_export]
    use super::pager::{DiskFile, Pager, Reader, Segment, Writer};
    #[pymodule_export]
    use super::probe::measure_io;
    #[pymodule_export]
    use super::rows::{combine, count_rows, dots, feed_forward};
    #[pymodule_export]
    use super::scan::{gates, scan};
    #[pymodule_export]
    use super::sdd::sdd;
    #[pymodule_export]
    use super::select::largest;
    #[pymodule_export]
    use super::ssd::{ssd, ssd_at};
    #[pymodule_export]
    use super::tensix::estimate::{tensix_estimate, tensix_multiply};
    #[pymodule_export]
    use super::tensix::layers::{tensix_layer, tensix_layer_cut, tensix_sparse, tensix_sparse_covered};
    #[pymodule_export]
    use super::tensix::mesh::{tensix_estimate_mesh, tensix_gather};
    #[pymodule_export]
    use super::tensix::products::{tensix_covered, tensix_multicast};
    #[pymodule_export]
    use super::tensix::program::{TensixChip, check_chip, chip_names, chip_text};
    #[pymodule_export]
    use super::tensix::streams::{tensix_norms, tensix_streams, tensix_wide_norms};
    #[pymodule_export]
    use super::tensix::tiles::{tilize, untilize};
    #[pymodule_export]
    use super::tensix::validate::{tensix_blocking, tensix_dram, tensix_product, tensix_traffic};
    #[pymodule_export]
    use super::tensix::{KernelContext, Place, Verb};
    #[pymodule_export]
    use super::transform::{rms_norm, rotate};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        prunus_cpu::level::check_environment().map_err(door::to_python)?;
        prunus_cpu::threads::default_threads().map_err(door::to_python)?;
        Ok(())
    }
}
