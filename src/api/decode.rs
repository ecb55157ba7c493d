//! JSON the way Go's `encoding/json` reads it: the first value counts, names of fields in any case, unknown
//! ones are ignored, `null` leaves a field as it is. Owns: the words of its errors, which podman shows. Read
//! next: `expose.rs`.

use std::fmt::Display;

use serde_json::{Deserializer, Map, Value};

use super::reply::Refusal;

/// An object that is to become the Go type `types.{name}`.
#[derive(Debug)]
pub(super) struct Object {
    name: String,
    fields: Map<String, Value>,
}

impl Object {
    /// The first value in `body`.
    ///
    /// # Errors
    /// There is none, or it is no object.
    pub(super) fn decode(name: &'static str, body: &[u8]) -> Result<Self, Refusal> {
        let value = match Deserializer::from_slice(body).into_iter::<Value>().next() {
            None => return Err(Refusal::bad_request("EOF")),
            Some(Err(error)) if error.is_eof() => return Err(Refusal::bad_request("unexpected EOF")),
            Some(Err(error)) => return Err(Refusal::bad_request(format!("invalid JSON: {error}"))),
            Some(Ok(value)) => value,
        };
        Self::of(name, value).map_err(|kind| {
            Refusal::bad_request(format!("json: cannot unmarshal {kind} into Go value of type types.{name}"))
        })
    }

    fn of(name: impl Into<String>, value: Value) -> Result<Self, &'static str> {
        let name = name.into();
        match value {
            Value::Object(fields) => Ok(Self { name, fields }),
            Value::Null => Ok(Self { name, fields: Map::new() }),
            other => Err(kind(&other)),
        }
    }

    /// A text; empty where there is none.
    pub(super) fn text(&mut self, field: &str) -> Result<String, Refusal> {
        self.text_of(field, "string")
    }

    /// A text whose Go type is `of`.
    pub(super) fn text_of(&mut self, field: &str, of: &str) -> Result<String, Refusal> {
        self.optional_text(field, of).map(Option::unwrap_or_default)
    }

    /// The same, and whether there is one.
    pub(super) fn optional_text(&mut self, field: &str, of: &str) -> Result<Option<String>, Refusal> {
        match self.take(field) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text)),
            Some((field, other)) => Err(self.mismatch(&other, &field, of)),
        }
    }

    /// A list of objects that are to become `types.{of}`.
    pub(super) fn objects(&mut self, field: &str, of: &str) -> Result<Vec<Self>, Refusal> {
        let (field, list) = match self.take(field) {
            None => return Ok(Vec::new()),
            Some((field, Value::Array(list))) => (field, list),
            Some((field, other)) => return Err(self.mismatch(&other, &field, format!("[]types.{of}"))),
        };
        let objects = list.into_iter().enumerate().map(|(index, value)| {
            let name = format!("{}.{field}.{index}", self.name);
            Self::of(name.clone(), value).map_err(|kind| {
                Refusal::bad_request(format!("json: cannot unmarshal {kind} into {name} of type types.{of}"))
            })
        });
        objects.collect()
    }

    fn mismatch(&self, value: &Value, field: &str, of: impl Display) -> Refusal {
        let (kind, name) = (kind(value), &self.name);
        Refusal::bad_request(format!(
            "json: cannot unmarshal {kind} into Go struct field {name}.{field} of type {of}"
        ))
    }

    /// A field as it is spelled, and its value; the right spelling before others.
    fn take(&mut self, field: &str) -> Option<(String, Value)> {
        let entry = self.fields.remove_entry(field).or_else(|| {
            let other = self.fields.keys().find(|key| key.eq_ignore_ascii_case(field))?.clone();
            self.fields.remove_entry(&other)
        });
        entry.filter(|(_, value)| !value.is_null())
    }
}

/// Go's word for what kind of value it is.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(text: &str) -> Result<String, String> {
        let text = Object::decode("T", text.as_bytes()).and_then(|mut object| object.text("local"));
        text.map_err(|refusal| refusal.text)
    }

    #[test]
    fn reads_what_go_reads() {
        for (text, local) in [
            (r#"{"local":"a"}"#, "a"),
            (r#" {"LOCAL":"a"} and more"#, "a"),
            (r#"{"local":"a"}{"local":"b"}"#, "a"),
            (r#"{"Local":"b","local":"a"}"#, "a"),
            (r#"{"local":"a","local":"b","x":[{}]}"#, "b"),
            (r#"{"local":null}"#, ""),
            ("{}", ""),
            ("null", ""),
        ] {
            assert_eq!(decode(text).as_deref(), Ok(local), "{text}");
        }
    }

    #[test]
    fn refuses_in_gos_words() {
        for (text, why) in [
            ("", "EOF"),
            (" \n", "EOF"),
            ("{", "unexpected EOF"),
            (r#"{"local":"a""#, "unexpected EOF"),
            ("nul", "unexpected EOF"),
            ("[]", "json: cannot unmarshal array into Go value of type types.T"),
            ("1", "json: cannot unmarshal number into Go value of type types.T"),
            (r#"{"local":true}"#, "json: cannot unmarshal bool into Go struct field T.local of type string"),
        ] {
            assert_eq!(decode(text), Err(why.into()), "{text}");
        }
        let syntax = decode(r#"{"local":"x",}"#).unwrap_err();
        assert!(syntax.starts_with("invalid JSON: ") && syntax.ends_with("line 1 column 14"), "{syntax}");
        let deep = decode(&"[".repeat(100_000)).unwrap_err();
        assert!(deep.contains("recursion limit"), "{deep}");
    }

    proptest! {
        #[test]
        fn no_body_panics(body: Vec<u8>) {
            let _ = Object::decode("T", &body).map(|mut object| object.objects("a", "B"));
        }
    }
}
