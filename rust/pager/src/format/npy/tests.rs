use std::path::Path;

use proptest::prelude::*;

use super::*;

fn path() -> &'static Path {
    Path::new("a.npy")
}

fn bytes(version: u8, dict: &str) -> Vec<u8> {
    let mut out = b"\x93NUMPY".to_vec();
    out.extend([version, 0]);
    match version {
        1 => out.extend((dict.len() as u16).to_le_bytes()),
        _ => out.extend((dict.len() as u32).to_le_bytes()),
    }
    out.extend(dict.bytes());
    out
}

/// Reads a header with this dictionary in front of as many bytes as anybody may want.
fn read(dict: &str) -> Result<NpyInfo> {
    parse(&bytes(1, dict), 1 << 40, path())
}

#[test]
fn headers_as_numpy_writes_them() {
    let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }           \n";
    for version in 1..=3 {
        let header = bytes(version, dict);
        let begin = header.len() as u64;
        let expected =
            NpyInfo { dtype: DType::F32, shape: vec![3, 4], fortran: false, begin, end: begin + 48 };
        assert_eq!(parse(&header, begin + 48, path()).unwrap(), expected);
        assert_eq!(parse(&header, begin + 50, path()).unwrap(), expected, "more bytes may follow");
        assert!(parse(&header, begin + 47, path()).unwrap_err().to_string().contains("it was cut"));
    }
    let shapes = [("()", vec![]), ("(5,)", vec![5]), ("(2, 0)", vec![2, 0]), ("(3L, 4L,)", vec![3, 4])];
    for (text, shape) in shapes {
        let found = read(&format!("{{'shape': {text}, \"fortran_order\":True,'descr':'<V2'}}")).unwrap();
        assert_eq!((found.shape, found.dtype, found.fortran), (shape, DType::Bf16, true));
    }
}

#[test]
fn every_type_of_the_format_is_known_in_every_spelling() {
    for dtype in DType::all() {
        let Some(descr) = dtype.npy() else { continue };
        let other = format!("={}", &descr[1..]);
        for descr in [descr, other.as_str()] {
            let found = read(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,)}}"));
            if descr == "=V2" {
                assert!(found.is_err());
            } else {
                assert_eq!(found.unwrap().dtype, dtype, "{descr}");
            }
        }
        if dtype.bits() > 8 && dtype != DType::Bf16 {
            let swapped = format!("{{'descr': '>{}', 'fortran_order': False, 'shape': ()}}", &descr[1..]);
            let message = read(&swapped).unwrap_err().to_string();
            assert!(message.contains("big-endian") && message.contains("newbyteorder"), "{message}");
        }
    }
    let resaved = read("{'descr': '|V2', 'fortran_order': False, 'shape': ()}").unwrap();
    assert_eq!(resaved.dtype, DType::Bf16);
}

#[test]
fn what_is_wrong_with_a_header_is_said() {
    let with = |descr: &str| format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (1,)}}");
    let shaped = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}");
    let many = format!("({})", "1,".repeat(65));
    let cases = [
        (with("[('a', '<f4')]"), "structured"),
        (with("'<U4'"), "not supported"),
        (with("'|O'"), "not supported"),
        (with("'|S3'"), "not supported"),
        (with("'<M8[ns]'"), "not supported"),
        (with("'<f16'"), "not supported"),
        (with("'<V1'"), "not supported"),
        (with("'>V2'"), "not supported"),
        (with("''"), "not supported"),
        (with("'é'"), "not supported"),
        (with("'<f4"), "expected '}'"),
        ("{'descr': '<f4".into(), "does not end"),
        (with("'\\x3cf4'"), "without escapes"),
        (with("f4"), "expected a string"),
        (shaped("(1)"), "comma"),
        (shaped("1"), "expected '('"),
        (shaped("(-1,)"), "expected a size"),
        (shaped("(1.5,)"), "expected a comma"),
        (shaped("(1 2)"), "expected"),
        (shaped("(99999999999999999999,)"), "expected a size"),
        (shaped("(9223372036854775807, 9)"), "no size"),
        (shaped("(0, 9223372036854775807)"), "no size"),
        (shaped("(9223372036854775000,)"), "no size"),
        (shaped("(549755813888,)"), "it was cut"),
        (shaped(&many), "64 dimensions"),
        (shaped("(__import__('os').system('true'),)"), "expected a size"),
        ("{'descr': '<f4', 'fortran_order': 1, 'shape': ()}".into(), "True or False"),
        ("{'descr': '<f4', 'shape': ()}".into(), "'fortran_order' is missing"),
        ("{'descr': '<f4', 'fortran_order': False}".into(), "'shape' is missing"),
        ("{'fortran_order': False, 'shape': ()}".into(), "'descr' is missing"),
        ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': ()}".into(), "twice"),
        ("{'more': 1}".into(), "unknown key"),
        (shaped("()") + "x", "nothing after"),
        ("".into(), "expected '{'"),
        ("{".into(), "expected a string"),
        ("{'descr'".into(), "expected ':'"),
    ];
    for (dict, wanted) in &cases {
        let message = read(dict).expect_err(dict).to_string();
        assert!(message.contains(wanted), "{dict}: {message}");
        assert!(message.starts_with("a.npy: ") && message.len() < 400, "{message}");
    }
}

#[test]
fn the_length_is_checked_before_anything_is_read() {
    let said = |head: &[u8], size| header_size(head, size, path()).unwrap_err().to_string();
    assert!(said(b"", 0).contains("begins with"));
    assert!(said(b"PK\x03\x04 an archive", 99).contains("begins with"));
    assert!(said(b"\x93NUMPY\x04\x00\x00\x00\x00\x00", 99).contains("got 4.0"));
    assert!(said(b"\x93NUMPY\x01\x01\x00\x00\x00\x00", 99).contains("got 1.1"));
    assert!(said(b"\x93NUMPY\x02\x00\xFF\xFF\xFF\xFF", 1 << 40).contains("at most"));
    assert!(said(b"\x93NUMPY\x02\x00\x01\x00", 10).contains("inside its header"));
    assert!(said(b"\x93NUMPY\x01\x00\xFF\xFF", 99).contains("it was cut"));
    assert!(parse(&bytes(1, "{}")[..11], 12, path()).unwrap_err().to_string().contains("got 11"));
    assert!(parse(b"\x93NUMPY\x01\x00\x01\x00\xFF", 11, path()).unwrap_err().to_string().contains("UTF-8"));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let refused =
        |dtype, shape: &[u64], align| header(dtype, shape, false, align, path()).unwrap_err().to_string();
    assert!(refused(DType::F8E4M3, &[1], 64).contains("no float8_e4m3fn"));
    assert!(refused(DType::F32, &[u64::MAX], 64).contains("no size"));
    assert!(refused(DType::F32, &[1; 65], 64).contains("no size"));
    assert!(refused(DType::F32, &[1], 0).contains("power of two"));
    assert!(refused(DType::F32, &[1], 65536).contains("power of two"));
    let longest = header(DType::F32, &[1_000_000_000_000_000_000; 1], false, 4096, path()).unwrap();
    assert_eq!(longest.len(), 4096);
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        dtype in prop::sample::select(DType::all().filter(|d| d.npy().is_some()).collect::<Vec<_>>()),
        shape in prop::collection::vec(0u64..1000, 0..6),
        fortran in any::<bool>(),
        align in 6u32..16,
    ) {
        let written = header(dtype, &shape, fortran, 1 << align, path()).unwrap();
        let begin = written.len() as u64;
        prop_assert_eq!(begin % (1 << align), 0);
        prop_assert_eq!(header_size(&written[..12], 1 << 60, path()).unwrap(), begin);
        let found = parse(&written, 1 << 62, path()).unwrap();
        let end = begin + bytes_of(dtype, &shape).unwrap();
        prop_assert_eq!(found, NpyInfo { dtype, shape, fortran, begin, end });
    }

    #[test]
    fn a_damaged_header_is_read_or_refused_but_nothing_else(
        shape in prop::collection::vec(0u64..100, 0..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
        size in 0u64..100_000,
    ) {
        let mut written = header(DType::F32, &shape, false, 64, path()).unwrap();
        for (at, byte, what) in changes {
            let at = at.index(written.len());
            match what {
                0 => written[at] = byte,
                1 => written.insert(at, byte),
                _ => { written.remove(at); }
            }
        }
        if let Ok(found) = parse(&written, size, path()) {
            prop_assert!(found.end <= size);
            prop_assert_eq!(bytes_of(found.dtype, &found.shape), Some(found.end - found.begin));
        }
    }

    #[test]
    fn any_text_is_refused_or_read(text in ".{0,80}", tail in "[{}()',:a-zTF<>0-9 ]{0,80}") {
        let _ = read(&text);
        let _ = read(&format!("{{'descr': '<f4', {tail}"));
        let _ = parse(text.as_bytes(), 1 << 40, path());
    }
}
