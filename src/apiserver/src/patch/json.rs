//! JSON patch (RFC 6902). The crate applies the operations; here are the limits on what a small
//! patch may cost.

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use super::Error;

/// The most operations in one patch.
const MAX_OPERATIONS: usize = 10_000;
/// How many bytes all `copy` operations of one patch may make.
const MAX_COPIED_BYTES: usize = 3 << 20;

/// Applies a patch document to an object.
///
/// # Errors
/// When the document is no JSON patch, exceeds the limits, or an operation fails.
pub(crate) fn apply(object: &Value, patch: &Value) -> Result<Value, Error> {
    let Patch(operations) = serde_json::from_value(patch.clone())
        .map_err(|error| Error::Malformed(error.to_string()))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(Error::Malformed(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut copied_bytes = 0;
    let mut patched = object.clone();
    for operation in operations {
        if let PatchOperation::Copy(copy) = &operation {
            let size = copy.from.resolve(&patched).map_or(0, |value| value.to_string().len());
            copied_bytes += size;
            if copied_bytes > MAX_COPIED_BYTES {
                return Err(Error::Malformed(format!(
                    "copy operations make more than {MAX_COPIED_BYTES} bytes"
                )));
            }
        }
        json_patch::patch_unsafe(&mut patched, &[operation])
            .map_err(|error| Error::Inapplicable(error.to_string()))?;
    }
    Ok(patched)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operations_apply_in_order() {
        let patched = apply(
            &json!({"a": [1, 2]}),
            &json!([
                {"op": "test", "path": "/a/0", "value": 1},
                {"op": "add", "path": "/a/-", "value": 3},
                {"op": "remove", "path": "/a/0"},
            ]),
        );
        assert_eq!(patched.unwrap(), json!({"a": [2, 3]}));
    }

    #[test]
    fn a_failed_test_and_a_missing_path_are_refused() {
        let object = json!({"a": 1});
        for patch in [
            json!([{"op": "test", "path": "/a", "value": 2}]),
            json!([{"op": "remove", "path": "/b"}]),
        ] {
            assert!(matches!(apply(&object, &patch), Err(Error::Inapplicable(_))));
        }
        assert!(matches!(apply(&object, &json!({"a": 1})), Err(Error::Malformed(_))));
    }

    #[test]
    fn copies_that_double_without_end_are_cut_off() {
        let mut operations =
            vec![json!({"op": "add", "path": "/x", "value": ["0123456789abcdef"]})];
        for _ in 0..64 {
            operations.push(json!({"op": "copy", "from": "/x", "path": "/x/-"}));
        }
        assert!(apply(&json!({}), &Value::Array(operations)).is_err());
    }
}
