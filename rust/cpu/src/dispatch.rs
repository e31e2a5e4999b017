//! Choice of the vector type for a product: by compute type and SIMD level, in one place.

/// Runs `$body` with `$lanes` standing for the vector type that computes `$compute` at the level in
/// use, and maps its `Ok(())` to the kernel's name: `$name`, compute type, level.
///
/// `$compute` is what [`compute_type`](crate::dsd::compute_type) found; `$none` is the value where it
/// found nothing.
macro_rules! with_lanes {
    ($name:literal, $compute:expr, $lanes:ident => $body:expr, else $none:expr) => {{
        use prunus_core::DType;
        use $crate::level::Level;
        #[cfg(target_arch = "aarch64")]
        use $crate::simd::neon;
        use $crate::simd::scalar::Plain;
        #[cfg(target_arch = "x86_64")]
        use $crate::simd::{avx2, avx512};
        macro_rules! with {
            ($type:ty, $what:literal) => {{
                type $lanes = $type;
                $body.map(|()| concat!($name, " ", $what))
            }};
        }
        let level = $crate::level::current();
        match ($compute, level) {
            #[cfg(target_arch = "x86_64")]
            (Some(DType::Bf16), Level::Avx512Dot | Level::Amx) if $crate::level::multiplies_pairs() => {
                with!(avx512::Bf16x32, "bf16 avx512-bf16")
            }
            #[cfg(target_arch = "x86_64")]
            (Some(DType::Bf16), Level::Avx512 | Level::Avx512Dot | Level::Amx) => {
                with!(avx512::F32x16, "bf16 as f32 avx512")
            }
            #[cfg(target_arch = "x86_64")]
            (Some(DType::Bf16), Level::Avx2) => with!(avx2::F32x8, "bf16 as f32 avx2"),
            #[cfg(target_arch = "aarch64")]
            (Some(DType::Bf16), Level::Neon) => with!(neon::F32x4, "bf16 as f32 neon"),
            (Some(DType::Bf16), _) => with!(Plain<f32>, "bf16 as f32 scalar"),
            #[cfg(target_arch = "x86_64")]
            (Some(DType::I32), Level::Avx512Dot | Level::Amx) => {
                with!(avx512::I16x32Vnni, "int8 vnni")
            }
            #[cfg(target_arch = "x86_64")]
            (Some(DType::I32), Level::Avx512) => with!(avx512::I16x32, "int8 avx512"),
            #[cfg(target_arch = "x86_64")]
            (Some(DType::I32), Level::Avx2) => with!(avx2::I16x16, "int8 avx2"),
            #[cfg(target_arch = "aarch64")]
            (Some(DType::I32), Level::Neon) => with!(neon::I16x8, "int8 neon"),
            (Some(DType::I32), _) => with!(Plain<i16>, "int8 scalar"),
            (compute, _) => $crate::dispatch::with_floats!($name, compute, $lanes => $body, else $none),
        }
    }};
}
pub(crate) use with_lanes;

/// As [`with_lanes`] for a compute type of single or double precision, and `$none` for any other.
macro_rules! with_floats {
    ($name:literal, $compute:expr, $lanes:ident => $body:expr, else $none:expr) => {{
        use prunus_core::DType;
        use $crate::level::Level;
        #[cfg(target_arch = "aarch64")]
        use $crate::simd::neon;
        use $crate::simd::scalar::Plain;
        #[cfg(target_arch = "x86_64")]
        use $crate::simd::{avx2, avx512};
        macro_rules! with {
            ($type:ty, $what:literal) => {{
                type $lanes = $type;
                $body.map(|()| concat!($name, " ", $what))
            }};
        }
        match ($compute, $crate::level::current()) {
            #[cfg(target_arch = "x86_64")]
            (Some(DType::F32), Level::Avx512 | Level::Avx512Dot | Level::Amx) => {
                with!(avx512::F32x16, "f32 avx512")
            }
            #[cfg(target_arch = "x86_64")]
            (Some(DType::F32), Level::Avx2) => with!(avx2::F32x8, "f32 avx2"),
            #[cfg(target_arch = "aarch64")]
            (Some(DType::F32), Level::Neon) => with!(neon::F32x4, "f32 neon"),
            (Some(DType::F32), _) => with!(Plain<f32>, "f32 scalar"),
            #[cfg(target_arch = "x86_64")]
            (Some(DType::F64), Level::Avx512 | Level::Avx512Dot | Level::Amx) => {
                with!(avx512::F64x8, "f64 avx512")
            }
            #[cfg(target_arch = "x86_64")]
            (Some(DType::F64), Level::Avx2) => with!(avx2::F64x4, "f64 avx2"),
            #[cfg(target_arch = "aarch64")]
            (Some(DType::F64), Level::Neon) => with!(neon::F64x2, "f64 neon"),
            (Some(DType::F64), _) => with!(Plain<f64>, "f64 scalar"),
            _ => $none,
        }
    }};
}
pub(crate) use with_floats;
