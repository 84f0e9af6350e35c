//! The JSON forms: objects with their fields in the documented order, and bytes that may not be
//! UTF-8.
//!
//! Invariant: a key or value that is UTF-8 appears as itself, any other as the same field with
//! `_base64` appended (standard alphabet, padded), each field by itself; both are read back.

use crate::KeyValue;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

/// An object whose fields keep the order they were added in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object(Vec<(String, Field)>);

/// The value of a field.
#[derive(Clone, Debug)]
pub(crate) enum Field {
    Plain(Value),
    Object(Object),
    List(Vec<Object>),
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain(value) => value.serialize(serializer),
            Self::Object(object) => object.serialize(serializer),
            Self::List(list) => list.serialize(serializer),
        }
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Object {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.push((name.to_owned(), Field::Plain(value.into())));
        self
    }

    pub(crate) fn with_object(mut self, name: &str, value: Option<Self>) -> Self {
        let field = value.map_or(Field::Plain(Value::Null), Field::Object);
        self.0.push((name.to_owned(), field));
        self
    }

    pub(crate) fn with_list(mut self, name: &str, list: Vec<Self>) -> Self {
        self.0.push((name.to_owned(), Field::List(list)));
        self
    }

    /// A field of bytes, under its name or its name with `_base64`.
    pub(crate) fn with_bytes(self, name: &str, bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.with(name, text),
            Err(_not_utf8) => self.with(&format!("{name}_base64"), STANDARD.encode(bytes)),
        }
    }

    /// The object as one line, without the newline.
    pub(crate) fn to_line(&self) -> String {
        // Keys are strings and values are JSON values: nothing that could fail to be written.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// An item of a `range`, or what `put --prev` found.
pub(crate) fn item(item: &KeyValue, keys_only: bool) -> Object {
    let object = Object::new().with_bytes("key", &item.key);
    let object = if keys_only { object } else { object.with_bytes("value", &item.value) };
    object
        .with("create_revision", item.create_revision)
        .with("mod_revision", item.mod_revision)
        .with("version", item.version)
        .with("lease", item.lease)
}

/// A line of an export.
pub(crate) fn pair(item: &KeyValue) -> Object {
    Object::new().with_bytes("key", &item.key).with_bytes("value", &item.value)
}

/// A line that must be an object.
///
/// # Errors
/// What it is instead.
pub(crate) fn parse_object(line: &[u8]) -> Result<serde_json::Map<String, Value>, String> {
    let parsed: Value = serde_json::from_slice(line).map_err(|error| {
        format!("not JSON: {}", error.to_string().replace("line 1 column", "column"))
    })?;
    let Value::Object(object) = parsed else {
        return Err(format!("not an object but {}", type_of(&parsed)));
    };
    Ok(object)
}

/// Takes a field of bytes out of a parsed object, under its name or its name with `_base64`.
/// `None` if neither is there.
///
/// # Errors
/// Both are there, or the one that is there is not what it should be.
pub(crate) fn take_bytes(
    object: &mut serde_json::Map<String, Value>,
    name: &str,
) -> Result<Option<Bytes>, String> {
    let base64_name = format!("{name}_base64");
    match (object.remove(name), object.remove(&base64_name)) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(format!("both \"{name}\" and \"{base64_name}\" are given")),
        (Some(Value::String(text)), None) => Ok(Some(Bytes::from(text))),
        (Some(other), None) => Err(format!("\"{name}\" must be a string, not {}", type_of(&other))),
        (None, Some(Value::String(text))) => match STANDARD.decode(&text) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) => Err(format!("\"{base64_name}\" is not base64: {error}")),
        },
        (None, Some(other)) => {
            Err(format!("\"{base64_name}\" must be a string, not {}", type_of(&other)))
        }
    }
}

/// The JSON type of a value, for messages.
pub(crate) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_value(key: &[u8], value: &[u8]) -> KeyValue {
        KeyValue {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            lease: 0,
        }
    }

    #[test]
    fn fields_keep_the_documented_order() {
        assert_eq!(
            item(&key_value(b"k", b"v"), false).to_line(),
            r#"{"key":"k","value":"v","create_revision":2,"mod_revision":3,"version":2,"lease":0}"#
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_travel_as_base64_each_field_by_itself() {
        let line = pair(&key_value(b"k\xff", "wärme\n".as_bytes())).to_line();
        assert_eq!(line, r#"{"key_base64":"a/8=","value":"wärme\n"}"#);
        let Ok(Value::Object(mut parsed)) = serde_json::from_str(&line) else {
            panic!("an object")
        };
        assert_eq!(take_bytes(&mut parsed, "key"), Ok(Some(Bytes::from_static(b"k\xff"))));
        assert_eq!(take_bytes(&mut parsed, "value"), Ok(Some(Bytes::from("wärme\n"))));
        assert!(parsed.is_empty(), "taken");
    }

    #[test]
    fn every_byte_string_comes_back_as_it_was() {
        for byte in 0..=u8::MAX {
            let value = [b'x', byte];
            let line = pair(&key_value(b"k", &value)).to_line();
            let Ok(Value::Object(mut parsed)) = serde_json::from_str(&line) else {
                panic!("an object: {line}")
            };
            assert_eq!(take_bytes(&mut parsed, "value"), Ok(Some(Bytes::copy_from_slice(&value))));
        }
    }

    #[test]
    fn fields_of_the_wrong_kind_are_named() {
        for (text, said) in [
            (r#"{"value":5}"#, "\"value\" must be a string, not a number"),
            (r#"{"value":null}"#, "\"value\" must be a string, not null"),
            (
                r#"{"value":"a","value_base64":"YQ=="}"#,
                "both \"value\" and \"value_base64\" are given",
            ),
        ] {
            let Ok(Value::Object(mut parsed)) = serde_json::from_str(text) else {
                panic!("an object: {text}")
            };
            assert_eq!(take_bytes(&mut parsed, "value"), Err(said.to_owned()));
        }
        let Ok(Value::Object(mut parsed)) = serde_json::from_str(r#"{"value_base64":"?"}"#) else {
            panic!("an object")
        };
        assert!(take_bytes(&mut parsed, "value").is_err(), "not base64");
    }
}
