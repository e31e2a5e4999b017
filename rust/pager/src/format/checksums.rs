//! Checksums of pages: CRC-32C (Castagnoli), by the CPU's own instruction where it has one.

/// Where a tensor's checksums are, in metadata: the bytes of a page, as a decimal number.
pub const METADATA: &str = "prunus.crc32c";

/// The tensor (U32) that holds them: one for the header's bytes, one for every page of every other tensor in
/// the file's order, and one for all of these numbers themselves.
pub const TENSOR: &str = "__crc32c";

/// The checksum of some bytes.
pub fn crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// The checksums of pages of `page` bytes, the last of which may be shorter; none for no bytes.
///
/// # Panics
/// Never: a page of 0 bytes counts as one byte.
pub fn pages(data: &[u8], page: usize) -> Vec<u32> {
    data.chunks(page.max(1)).map(crc32c::crc32c).collect()
}

/// How many pages `length` bytes have.
pub fn count(length: u64, page: u64) -> u64 {
    length.div_ceil(page.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_published_test_vectors() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(pages(b"", 64), Vec::<u32>::new());
    }

    proptest! {
        #[test]
        fn one_bit_anywhere_shows_in_its_page_alone(
            mut data in prop::collection::vec(any::<u8>(), 1..600),
            page in 1usize..100,
            at in any::<prop::sample::Index>(),
            bit in 0u32..8,
        ) {
            let before = pages(&data, page);
            let at = at.index(data.len());
            data[at] ^= 1 << bit;
            let after = pages(&data, page);
            prop_assert_eq!(before.len() as u64, count(data.len() as u64, page as u64));
            for (i, (a, b)) in before.iter().zip(&after).enumerate() {
                prop_assert_eq!(a != b, i == at / page);
            }
        }
    }
}
