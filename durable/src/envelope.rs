//! The fields stored beside a job's own.
//!
//! The payload of a row is the job's own JSON. If it is an object, our part is its field `_tower_jobs`, so
//! that producers and workers in other languages see the fields they expect. Any other value is put into
//! that field's `value`. A row of another producer has no such field.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

const FIELD: &str = "_tower_jobs";

/// Our part of a payload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Note {
    /// How many tries have failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) failures: u32,
    /// In place of the kind's `MAX_ATTEMPTS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_attempts: Option<u32>,
    /// The label of the request that pushed the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) traceparent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tracestate: Option<String>,
    /// The job, if it is no object.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some")]
    pub(crate) value: Option<Value>,
}

/// `null` is a value too.
fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// Joins a job and our part to a payload.
pub(crate) fn wrap(job: Value, mut note: Note) -> Result<Vec<u8>, serde_json::Error> {
    let mut fields = match job {
        Value::Object(fields) => fields,
        value => {
            note.value = Some(value);
            Map::new()
        }
    };
    if note != Note::default() {
        fields.insert(FIELD.to_owned(), serde_json::to_value(note)?);
    }
    serde_json::to_vec(&Value::Object(fields))
}

/// Takes a payload apart. A payload that is not JSON is an error; a foreign `_tower_jobs` is ignored.
pub(crate) fn unwrap(payload: &[u8]) -> Result<(Value, Note), serde_json::Error> {
    let mut job: Value = serde_json::from_slice(payload)?;
    let note = job.as_object_mut().and_then(|fields| fields.remove(FIELD));
    let mut note: Note =
        note.and_then(|note| serde_json::from_value(note).ok()).unwrap_or_default();
    let job = note.value.take().unwrap_or(job);
    Ok((job, note))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn object_keeps_its_fields_for_other_languages() {
        let note = Note { failures: 2, label: Some("POST /users".into()), ..Note::default() };
        let payload = wrap(json!({ "to": "a@b" }), note.clone()).unwrap();
        let seen: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(seen["to"], "a@b");
        assert_eq!(unwrap(&payload).unwrap(), (json!({ "to": "a@b" }), note));
    }

    #[test]
    fn value_that_is_no_object_comes_back() {
        for job in [json!([1, 2]), json!("text"), json!(null), json!(7)] {
            let payload = wrap(job.clone(), Note { failures: 1, ..Note::default() }).unwrap();
            let (back, note) = unwrap(&payload).unwrap();
            assert_eq!((back, note.failures), (job, 1));
        }
    }

    #[test]
    fn foreign_payload_is_the_job_itself() {
        for payload in [json!({ "to": "a" }), json!(3), json!({ "_tower_jobs": 3, "to": "a" })] {
            let (job, note) = unwrap(&serde_json::to_vec(&payload).unwrap()).unwrap();
            assert_eq!(note, Note::default());
            assert!(job == 3 || job == json!({ "to": "a" }), "{job}");
        }
        assert!(unwrap(b"{not json").is_err());
    }
}
