//! A pod's priority, from the name of its class, as upstream's Priority admission computes it.
//! `Differs:` PriorityClass objects are not served; there are the two classes of every cluster.

use serde_json::{Value, json};

use crate::object::ObjectExt;

/// The classes that every cluster has.
const CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// The priority of the pod's class; `None` for a class that is not there.
fn of_class(spec: &Value) -> Option<i64> {
    match spec.text("/priorityClassName") {
        "" => Some(0),
        name => CLASSES.iter().find(|(known, _)| *known == name).map(|(_, value)| *value),
    }
}

/// Gives a pod that names no priority that of its class.
pub(crate) fn default_priority(spec: &mut Value) {
    let value = of_class(spec).unwrap_or(0);
    spec.default_to("/priority", json!(value));
}

/// Checks the priority of a new pod.
///
/// # Errors
/// For a class that is not there, and a priority that is not that of the class.
pub(crate) fn check_priority(pod: &Value) -> Result<(), String> {
    let Some(spec) = pod.get("spec") else { return Ok(()) };
    let Some(computed) = of_class(spec) else {
        let name = spec.text("/priorityClassName");
        return Err(format!("no PriorityClass with name {name} was found"));
    };
    match spec.int("/priority") {
        Some(given) if given != computed => Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority \
             admission controller computed {computed} from the given PriorityClass name"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(spec: Value) -> Result<i64, String> {
        let mut pod = json!({"spec": spec});
        default_priority(&mut pod["spec"]);
        check_priority(&pod).map(|()| pod["spec"].int("/priority").unwrap())
    }

    #[test]
    fn the_class_says_the_priority_and_nothing_else_does() {
        assert_eq!(admitted(json!({})), Ok(0));
        let critical = |name: &str| json!({"priorityClassName": name});
        assert_eq!(admitted(critical("system-node-critical")), Ok(2_000_001_000));
        assert_eq!(admitted(critical("system-cluster-critical")), Ok(2_000_000_000));
        let unknown = admitted(critical("gold")).unwrap_err();
        assert_eq!(unknown, "no PriorityClass with name gold was found");
        let forged = admitted(json!({"priority": 2_000_000_000})).unwrap_err();
        assert!(forged.contains("computed 0"), "{forged}");
        let same = json!({"priority": 2_000_001_000, "priorityClassName": "system-node-critical"});
        assert!(admitted(same).is_ok());
    }
}
