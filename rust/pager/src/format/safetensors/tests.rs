use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn path() -> &'static Path {
    Path::new("m.safetensors")
}

/// A header of this JSON.
fn header(json: &[u8]) -> Vec<u8> {
    [&(json.len() as u64).to_le_bytes(), json].concat()
}

/// Reads a header of this JSON in front of `data` bytes.
fn read(json: &str, data: u64) -> Result<Header> {
    let bytes = header(json.as_bytes());
    parse(&bytes, bytes.len() as u64 + data, path())
}

fn spec(name: &str, dtype: DType, shape: &[u64]) -> Spec {
    Spec { name: name.into(), dtype, shape: shape.to_vec() }
}

#[test]
fn a_file_as_the_reference_implementation_writes_it() {
    let json = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"a":{"dtype":"F64","shape":[],"data_offsets":[12,20]}}      "#;
    let found = read(json, 20).unwrap();
    let size = 8 + json.len() as u64;
    assert_eq!(found.metadata, BTreeMap::from([("format".into(), "pt".into())]));
    let expected = [
        TensorInfo { name: "b".into(), dtype: DType::Bf16, shape: vec![2, 3], begin: size, end: size + 12 },
        TensorInfo { name: "a".into(), dtype: DType::F64, shape: vec![], begin: size + 12, end: size + 20 },
    ];
    assert_eq!(found.tensors, expected);
}

#[test]
fn what_is_wrong_with_a_header_is_said() {
    let tensor = |offsets: &str| format!(r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}}}"#);
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{first}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{second}}}}}"#
        )
    };
    let shaped = |shape: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,4]}}}}"#);
    let many = format!("[{}1]", "1,".repeat(64));
    let cases: Vec<(String, u64, &str)> = vec![
        (tensor("[0,4]"), 3, "it was cut"),
        (tensor("[0,4]"), 5, "by its header"),
        (tensor("[4,0]"), 4, "before they begin"),
        (tensor("[1,5]"), 5, "leave a gap"),
        (tensor("[0,3]"), 3, "has 4 bytes, data_offsets say 3"),
        (tensor("[-1,3]"), 4, "invalid value"),
        (tensor("[0.0,4.0]"), 4, "invalid type"),
        (tensor("[0,18446744073709551616]"), 4, "invalid"),
        (tensor("[0,18446744073709551615]"), 4, "data_offsets say 18446744073709551615"),
        (tensor("[0]"), 4, "invalid length"),
        (tensor("[0,4,8]"), 4, "JSON"),
        (tensor("null"), 4, "invalid type"),
        (two("[0,4]", "[2,6]"), 6, "overlap"),
        (two("[0,4]", "[0,4]"), 8, "overlap"),
        (two("[0,4]", "[5,9]"), 9, "leave a gap"),
        (shaped("[9223372036854775807,9223372036854775807,9223372036854775807]"), 4, "no size"),
        (shaped("[0,9223372036854775807,8]"), 4, "no size"),
        (shaped("[18446744073709551616]"), 4, "invalid"),
        (shaped("[-1]"), 4, "invalid value"),
        (shaped("7"), 4, "a shape"),
        (shaped(&many), 4, "more than 64 dimensions"),
        (tensor("[0,4]").replace("U8", "U7"), 4, "unknown dtype \"U7\""),
        (tensor("[0,4]").replace("\"dtype\":\"U8\",", ""), 4, "no dtype"),
        (tensor("[0,4]").replace("\"shape\":[4],", ""), 4, "no shape"),
        (tensor("[0,4]").replace(",\"data_offsets\":[0,4]", ""), 0, "no data_offsets"),
        (tensor("[0,4]").replace("\"dtype\"", "\"dtype\":\"U8\",\"dtype\""), 4, "dtype twice"),
        (two("[0,4]", "[4,8]").replace("\"b\"", "\"a\""), 8, "two tensors are called \"a\""),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, "two tensors are called"),
        (r#"{"__metadata__":{"a":"1","a":"2"}}"#.into(), 0, "twice"),
        (r#"{"__metadata__":{"a":1}}"#.into(), 0, "invalid type"),
        (r#"{"__metadata__":[]}"#.into(), 0, "object of strings"),
        (r#"{"a":7}"#.into(), 0, "dtype, shape and data_offsets"),
        (r#"{"a":{}}{"#.into(), 0, "JSON"),
        (r#"{} x"#.into(), 0, "trailing"),
        ("{\"a".into(), 0, "EOF"),
        (" {}".into(), 0, "begins with '{'"),
        ("[]".into(), 0, "begins with '{'"),
        ("{}\0\0".into(), 0, "trailing"),
        (format!("{{\"a\":{}", "[".repeat(200_000)), 0, "JSON"),
        (format!("{{\"a\":{{\"x\":{}", "[".repeat(200_000)), 0, "JSON"),
    ];
    for (json, data, wanted) in &cases {
        let message = read(json, *data).expect_err(json).to_string();
        assert!(message.starts_with("m.safetensors: "), "{message}");
        assert!(message.contains(wanted), "{json}: {message}");
        assert!(message.len() < 400, "{message}");
    }
}

#[test]
fn the_length_is_checked_before_anything_is_read() {
    let said = |head: &[u8], size| header_size(head, size, path()).unwrap_err().to_string();
    assert!(said(b"", 0).contains("at least 10 bytes, got 0"));
    assert!(said(&[1, 2, 3], 3).contains("at least 10 bytes"));
    assert!(said(&[0; 8], 8).contains("at least 2 bytes"));
    assert!(said(&[0xFF; 8], 1 << 40).contains("at most 100000000"));
    assert!(said(&100_000_001u64.to_le_bytes(), 1 << 40).contains("at most 100000000"));
    assert!(said(&100u64.to_le_bytes(), 107).contains("it was cut"));
    assert_eq!(header_size(&100u64.to_le_bytes(), 108, path()).unwrap(), 108);
    let bad = [header(b"{}\xFF"), header(b"\xFF\xFE{}"), header(b"{\"\xC3\x28\":1}")];
    assert!(bad.iter().all(|bytes| parse(bytes, bytes.len() as u64, path()).is_err()));
    assert!(parse(&header(b"{}")[..9], 10, path()).unwrap_err().to_string().contains("got 9"));
}

#[test]
fn what_the_reference_implementation_takes_is_taken() {
    assert_eq!(read("{}", 0).unwrap(), Header::default());
    assert_eq!(read("{\"__metadata__\":null}   ", 0).unwrap(), Header::default());
    let nul = read(r#"{"a\u0000b":{"dtype":"I8","shape":[0,7],"data_offsets":[0,0],"more":{"x":[1]}}}"#, 0)
        .unwrap();
    assert_eq!(nul.tensors[0].name, "a\0b");
    let packed = read(r#"{"q":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]}}"#, 3).unwrap();
    assert_eq!(packed.tensors[0].dtype, DType::F4);
    assert!(read(r#"{"q":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, 1).is_err());
}

#[test]
fn large_tensors_begin_at_pages_and_small_ones_are_packed() {
    let specs = [
        spec("small", DType::U8, &[3]),
        spec("ragged", DType::F32, &[1025]),
        spec("whole", DType::F32, &[1024]),
        spec("wide", DType::F64, &[2]),
        spec("sums", DType::U32, &[4096]),
        spec("none", DType::F32, &[0]),
        spec("ragged2", DType::F32, &[1025]),
    ];
    let laid = layout(&specs, &BTreeMap::new(), 4096, Some("sums"), path()).unwrap();
    let names: Vec<_> = laid.tensors.iter().filter(|t| !is_pad(&t.name)).map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["whole", "ragged", "ragged2", "wide", "none", "small", "sums"]);
    for tensor in &laid.tensors {
        let large = tensor.end - tensor.begin >= 4096 && !is_pad(&tensor.name);
        assert_eq!(tensor.begin % if large { 4096 } else { 1 }, 0, "{tensor:?}");
    }
    assert_eq!(laid.header.len() % 4096, 0);
    let none = layout(&[], &BTreeMap::new(), 1, None, path()).unwrap();
    assert_eq!((none.header.as_slice(), none.file_size), (b"\x08\0\0\0\0\0\0\0{}      ".as_slice(), 16));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let refused =
        |specs: &[Spec], align| layout(specs, &BTreeMap::new(), align, None, path()).unwrap_err().to_string();
    assert!(refused(&[], 0).contains("power of two"));
    assert!(refused(&[], 4095).contains("power of two"));
    assert!(refused(&[spec("__metadata__", DType::U8, &[1])], 8).contains("keeps that name"));
    assert!(refused(&[spec("__pad_0", DType::U8, &[1])], 8).contains("keeps that name"));
    assert!(refused(&[spec("a", DType::U8, &[1]), spec("a", DType::I8, &[1])], 8).contains("two tensors"));
    assert!(refused(&[spec("a", DType::C128, &[1])], 8).contains("no complex128"));
    assert!(refused(&[spec("a", DType::U8, &[u64::MAX])], 8).contains("no size"));
    assert!(refused(&[spec("a", DType::U8, &[1; 65])], 8).contains("dimensions"));
    let huge: Vec<_> = (0..4).map(|i| spec(&i.to_string(), DType::U8, &[i64::MAX as u64])).collect();
    assert!(refused(&huge, 8).contains("bytes"));
    assert!(refused(&huge[..1], 8).contains("2^63"));
    assert!(layout(&[spec("__pad_", DType::U8, &[1])], &BTreeMap::new(), 8, None, path()).is_ok());
}

fn dtypes() -> impl Strategy<Value = DType> {
    let all: Vec<_> = DType::all().filter(|d| d.safetensors().is_some() && d.bits() >= 8).collect();
    prop::sample::select(all)
}

fn contents() -> impl Strategy<Value = (Vec<Spec>, BTreeMap<String, String>, u64)> {
    let shape = prop::collection::vec(0u64..40, 0..4);
    let tensors = prop::collection::btree_map(".{0,12}", (dtypes(), shape), 0..8);
    let metadata = prop::collection::btree_map(".{0,8}", ".{0,20}", 0..4);
    (tensors, metadata, 0u32..14).prop_map(|(tensors, metadata, align)| {
        let specs = tensors.into_iter().map(|(name, (dtype, shape))| Spec { name, dtype, shape }).collect();
        (specs, metadata, 1 << align)
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read((specs, metadata, align) in contents()) {
        let laid = layout(&specs, &metadata, align, None, path()).unwrap();
        let found = parse(&laid.header, laid.file_size, path()).unwrap();
        prop_assert_eq!(&found.metadata, &metadata);
        prop_assert_eq!(&found.tensors, &laid.tensors);
        prop_assert_eq!(laid.header.len() as u64 % align, 0);
        let mut got: Vec<_> = (found.tensors.into_iter().filter(|t| !is_pad(&t.name)))
            .map(|t| {
                assert_eq!(t.begin % u64::from(t.dtype.bits() / 8), 0, "elements are aligned");
                Spec { name: t.name, dtype: t.dtype, shape: t.shape }
            })
            .collect();
        got.sort_by(|a, b| a.name.cmp(&b.name));
        prop_assert_eq!(got, specs);
    }

    #[test]
    fn a_damaged_header_is_read_or_refused_but_nothing_else(
        (specs, metadata, align) in contents(),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6),
        slack in -9i64..9,
    ) {
        let laid = layout(&specs, &metadata, align.min(64), None, path()).unwrap();
        let mut bytes = laid.header;
        for (at, byte, what) in cuts {
            let at = at.index(bytes.len());
            match what {
                0 => bytes[at] = byte,
                1 => bytes[at] ^= 1 << (byte % 8),
                2 => bytes.insert(at, byte),
                _ => { bytes.remove(at); }
            }
        }
        let size = laid.file_size.saturating_add_signed(slack);
        if let Ok(found) = parse(&bytes, size, path()) {
            // What is taken is whole: no byte without a tensor, none beyond the file.
            let mut at = bytes.len() as u64;
            for tensor in &found.tensors {
                prop_assert_eq!(tensor.begin, at);
                prop_assert_eq!(bytes_of(tensor.dtype, &tensor.shape), Some(tensor.end - tensor.begin));
                at = tensor.end;
            }
            prop_assert_eq!(at, size);
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200), size in any::<u64>()) {
        let _ = header_size(&bytes, size, path());
        let _ = parse(&bytes, size, path());
        let _ = parse(&header(&bytes), bytes.len() as u64 + 8, path());
    }

    #[test]
    fn any_numbers_are_refused_or_true(
        shape in prop::collection::vec(any::<u64>(), 0..4), begin in any::<u64>(), end in any::<u64>(), data in any::<u64>(),
    ) {
        let json = format!(r#"{{"a":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}}}"#);
        let bytes = header(json.as_bytes());
        if let Ok(found) = parse(&bytes, data, path()) {
            prop_assert_eq!(found.tensors[0].end, data);
        }
    }
}
