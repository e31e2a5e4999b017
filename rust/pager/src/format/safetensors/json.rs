//! The JSON of a header as it stands there: no number is checked yet, but no name occurs twice.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::METADATA;
use crate::format::{MAX_DIMENSIONS, quoted};

/// Reads one JSON object and nothing after it but white space.
pub(super) fn read(text: &str) -> serde_json::Result<RawHeader> {
    let mut json = serde_json::Deserializer::from_str(text);
    let raw = json.deserialize_map(HeaderVisitor)?;
    json.end()?;
    Ok(raw)
}

/// All that a header says.
#[derive(Default)]
pub(super) struct RawHeader {
    pub(super) tensors: Vec<(String, RawTensor)>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// All that it says of a tensor.
pub(super) struct RawTensor {
    pub(super) dtype: String,
    pub(super) shape: Vec<u64>,
    pub(super) offsets: (u64, u64),
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut raw = RawHeader::default();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if seen.contains(&name) {
                return Err(A::Error::custom(format_args!("two tensors are called {}", quoted(&name))));
            }
            if name == METADATA {
                raw.metadata = map.next_value::<Metadata>()?.0;
            } else {
                raw.tensors.push((name.clone(), map.next_value()?));
            }
            seen.insert(name);
        }
        Ok(raw)
    }
}

struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("__metadata__ to be an object of strings")
    }

    fn visit_unit<E>(self) -> Result<Metadata, E> {
        Ok(Metadata(BTreeMap::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
        let mut all = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, String>()? {
            if let Some(_earlier) = all.insert(name.clone(), value) {
                return Err(A::Error::custom(format_args!("__metadata__ has {} twice", quoted(&name))));
            }
        }
        Ok(Metadata(all))
    }
}

impl<'de> Deserialize<'de> for RawTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TensorVisitor)
    }
}

struct TensorVisitor;

impl<'de> Visitor<'de> for TensorVisitor {
    type Value = RawTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                "shape" => shape.replace(map.next_value::<Shape>()?.0).is_some(),
                "data_offsets" => offsets.replace(map.next_value::<(u64, u64)>()?).is_some(),
                // As the reference implementation: what is not known is passed over.
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    false
                }
            };
            if twice {
                return Err(A::Error::custom(format_args!("a tensor has {key} twice")));
            }
        }
        let missing = |what| A::Error::custom(format_args!("a tensor has no {what}"));
        Ok(RawTensor {
            dtype: dtype.ok_or_else(|| missing("dtype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            offsets: offsets.ok_or_else(|| missing("data_offsets"))?,
        })
    }
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shape: a list of sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(size) = seq.next_element::<u64>()? {
            // Stop early: a hostile header has millions of them.
            if shape.len() == MAX_DIMENSIONS {
                return Err(A::Error::custom(format_args!(
                    "a shape has more than {MAX_DIMENSIONS} dimensions"
                )));
            }
            shape.push(size);
        }
        Ok(Shape(shape))
    }
}
