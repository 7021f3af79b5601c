//! A pod's runtime class, as upstream's RuntimeClass admission checks it. `Differs:` RuntimeClass objects are
//! not served, so no class is there.

use serde_json::Value;

use crate::object::ObjectExt;

/// Checks that the class which a new pod names is there.
///
/// # Errors
/// For every name.
pub(crate) fn check_runtime_class(pod: &Value) -> Result<(), String> {
    match pod.text("/spec/runtimeClassName") {
        "" => Ok(()),
        name => Err(format!("pod rejected: RuntimeClass {name:?} not found")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_class_is_there() {
        assert_eq!(check_runtime_class(&json!({"spec": {}})), Ok(()));
        let refused = check_runtime_class(&json!({"spec": {"runtimeClassName": "kata"}}));
        assert_eq!(refused, Err("pod rejected: RuntimeClass \"kata\" not found".to_owned()));
    }
}
