//! From a generic value to a typed object, with the path of every complaint.
//!
//! A deserializer over `serde_json::Value` that knows where it is. It does what a stock one does
//! not: it names unknown fields and the known one that is near, takes `snake_case` names and
//! numbers in strings as protobuf's JSON mapping does
//! (<https://protobuf.dev/programming-guides/json/>), treats `null` as unset, and notes fields that
//! are known but not honoured. It gives no meaning to any field.

use std::cell::RefCell;
use std::fmt;

use serde::Deserialize;
use serde::de::value::StringDeserializer;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

use super::suggest::nearest;
use crate::config::api::UNSUPPORTED;

/// Something to say about a field of an object that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Note {
    /// Known, not honoured.
    Unsupported { field: String },
    /// Not known; perhaps misspelt.
    Unknown { field: String, near: Option<&'static str> },
}

/// Why a value is not what the field needs.
#[derive(Debug)]
pub(super) struct FieldError {
    /// Path, once known.
    pub(super) field: Option<String>,
    /// A sentence.
    pub(super) message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for FieldError {}

impl serde::de::Error for FieldError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { field: None, message: message.to_string() }
    }
}

impl FieldError {
    /// The innermost path wins.
    fn at(mut self, path: &Path<'_>) -> Self {
        self.field.get_or_insert_with(|| path.to_string());
        self
    }
}

/// Reads `value` as `T`. `root` is the path of the value itself. With `strict`, unknown fields are
/// noted; else they are passed over.
pub(super) fn read<T: for<'de> Deserialize<'de>>(
    value: Value,
    root: &str,
    strict: bool,
) -> Result<(T, Vec<Note>), FieldError> {
    let notes = RefCell::new(Vec::new());
    let path = Path::Root(root);
    let node = Node { value, path: &path, notes: strict.then_some(&notes) };
    let read = T::deserialize(node).map_err(|error| error.at(&path))?;
    Ok((read, notes.into_inner()))
}

/// Where a value stands, outermost last.
enum Path<'a> {
    Root(&'a str),
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(root) => f.write_str(root),
            Self::Field(Path::Root(""), name) => f.write_str(name),
            Self::Field(parent, name) => {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                if name.chars().all(plain) {
                    write!(f, "{parent}.{name}")
                } else {
                    write!(f, "{parent}[{name}]")
                }
            }
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// One value and its place.
struct Node<'p> {
    value: Value,
    path: &'p Path<'p>,
    /// `None`: unknown fields are passed over.
    notes: Option<&'p RefCell<Vec<Note>>>,
}

impl<'p> Node<'p> {
    fn entries(self, entries: Vec<(String, Value)>) -> Entries<'p> {
        Entries { entries: entries.into_iter(), next: None, path: self.path, notes: self.notes }
    }

    fn note(&self, note: Note) {
        if let Some(notes) = self.notes {
            notes.borrow_mut().push(note);
        }
    }

    fn wrong(&self, wanted: &str) -> FieldError {
        let found = match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Bool(value) => format!("`{value}`"),
            Value::Number(value) => format!("the number {value}"),
            Value::String(value) => format!("the text \"{value}\""),
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "a mapping".to_owned(),
        };
        FieldError::custom(format!("must be {wanted}, not {found}")).at(self.path)
    }

    /// A whole number in `min..=max`, also written as text or as `80.0`.
    fn integer(&self, min: i64, max: i64) -> Result<i64, FieldError> {
        let number = match &self.value {
            Value::Number(number) => whole(number),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number
            .filter(|number| (min..=max).contains(number))
            .ok_or_else(|| self.wrong(&format!("a whole number from {min} to {max}")))
    }

    /// The map's entries as a struct with these fields takes them.
    fn fields_of(
        &self,
        map: Map<String, Value>,
        fields: &'static [&'static str],
    ) -> Vec<(String, Value)> {
        let mut taken = Vec::with_capacity(map.len());
        for (key, value) in map {
            if value.is_null() {
                continue;
            }
            if fields.contains(&key.as_str()) {
                taken.push((key, value));
                continue;
            }
            let camel = camel_case(&key);
            if fields.contains(&camel.as_str()) {
                taken.push((camel, value));
                continue;
            }
            let near = nearest(&key, fields.iter().copied());
            self.note(Note::Unknown { field: Path::Field(self.path, &key).to_string(), near });
        }
        taken
    }
}

fn is_one_of(text: &str, words: [&str; 3]) -> bool {
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn whole(number: &serde_json::Number) -> Option<i64> {
    if let Some(number) = number.as_i64() {
        return Some(number);
    }
    let float = number.as_f64()?;
    // Above 2^53 a float no longer names one whole number.
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
    (float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0).then_some(float as i64)
}

/// `mirror_percent` -> `mirrorPercent`, as protobuf's JSON mapping spells field names.
pub(super) fn camel_case(name: &str) -> String {
    let mut camel = String::with_capacity(name.len());
    let mut upper = false;
    for letter in name.chars() {
        if letter == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            camel.push(letter.to_ascii_uppercase());
        } else {
            camel.push(letter);
        }
    }
    camel
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.value {
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::Object(_) => self.deserialize_map(visitor),
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(value),
            Value::String(text) => visitor.visit_string(text),
            Value::Number(ref number) => match (number.as_u64(), number.as_i64()) {
                (Some(number), _) => visitor.visit_u64(number),
                (None, Some(number)) => visitor.visit_i64(number),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        // The spellings of YAML 1.1 as well, which Kubernetes' tools read as booleans.
        match &self.value {
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) if is_one_of(text, ["yes", "on", "y"]) => visitor.visit_bool(true),
            Value::String(text) if is_one_of(text, ["no", "off", "n"]) => visitor.visit_bool(false),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_i64(self.integer(i32::MIN.into(), i32::MAX.into())?)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_i64(self.integer(0, u16::MAX.into())?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_i64(self.integer(0, u32::MAX.into())?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_i64(self.integer(0, i64::MAX)?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        let number = match &self.value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let finite = number.filter(|number: &f64| number.is_finite());
        visitor.visit_f64(finite.ok_or_else(|| self.wrong("a number"))?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.value {
            Value::String(text) => visitor.visit_string(text),
            Value::Number(_) | Value::Bool(_) => Err(FieldError::custom(format!(
                "must be text, but YAML reads it as {}: put it in quotes",
                self.value
            ))
            .at(self.path)),
            _ => Err(self.wrong("text")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        let nothing = matches!(&self.value, Value::Array(list) if list.is_empty());
        if name == UNSUPPORTED && !nothing {
            self.note(Note::Unsupported { field: self.path.to_string() });
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, FieldError> {
        match self.value.take() {
            Value::Array(list) => visitor.visit_seq(Elements {
                elements: list.into_iter().enumerate(),
                path: self.path,
                notes: self.notes,
            }),
            other => {
                self.value = other;
                Err(self.wrong("a list"))
            }
        }
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, FieldError> {
        match self.value.take() {
            Value::Object(map) => visitor.visit_map(self.entries(map.into_iter().collect())),
            other => {
                self.value = other;
                Err(self.wrong("a mapping"))
            }
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        match self.value.take() {
            Value::Object(map) => {
                let taken = self.fields_of(map, fields);
                visitor.visit_map(self.entries(taken))
            }
            other => {
                self.value = other;
                Err(self.wrong("a mapping"))
            }
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        let Value::String(text) = &self.value else {
            return Err(self.wrong(&format!("one of {}", variants.join(", "))));
        };
        if variants.contains(&text.as_str()) {
            return visitor.visit_enum(text.clone().into_deserializer());
        }
        let hint = match nearest(text, variants.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("it must be one of {}", variants.join(", ")),
        };
        Err(FieldError::custom(format!("`{text}` is not known; {hint}")).at(self.path))
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i64 i128 u8 u128 f32 char bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}

/// A mapping's entries.
struct Entries<'p> {
    entries: std::vec::IntoIter<(String, Value)>,
    next: Option<(String, Value)>,
    path: &'p Path<'p>,
    notes: Option<&'p RefCell<Vec<Note>>>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, FieldError> {
        self.next = self.entries.next();
        let Some((key, _)) = &self.next else { return Ok(None) };
        let key: StringDeserializer<FieldError> = key.clone().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, FieldError> {
        let (key, value) =
            self.next.take().ok_or_else(|| FieldError::custom("a value without a key"))?;
        let path = Path::Field(self.path, &key);
        seed.deserialize(Node { value, path: &path, notes: self.notes })
            .map_err(|error| error.at(&path))
    }
}

/// A list's elements.
struct Elements<'p> {
    elements: std::iter::Enumerate<std::vec::IntoIter<Value>>,
    path: &'p Path<'p>,
    notes: Option<&'p RefCell<Vec<Note>>>,
}

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, FieldError> {
        let Some((index, value)) = self.elements.next() else { return Ok(None) };
        let path = Path::Index(self.path, index);
        seed.deserialize(Node { value, path: &path, notes: self.notes })
            .map(Some)
            .map_err(|error| error.at(&path))
    }
}
