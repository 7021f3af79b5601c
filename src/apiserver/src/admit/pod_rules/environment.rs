//! Rules for the environment of containers: names that a process can take, one source each, and files
//! of volumes that the pod's own containers fill.

use serde_json::{Value, json};

use crate::admit::names;
use crate::failure::Cause;
use crate::object::ObjectExt;

const NAME_RULE: &str = "a valid environment variable name must consist only of printable ASCII \
     characters other than '='";

/// Checks the variables of one container.
pub(super) fn check_variables(path: &str, container: &Value, causes: &mut Vec<Cause>) {
    for (index, variable) in container.list("/env").iter().enumerate() {
        let name = variable.text("/name");
        let field = format!("{path}.env[{index}]");
        if name.is_empty() {
            causes.push(Cause::required(format!("{field}.name"), ""));
        } else if !is_name(name) {
            causes.push(Cause::invalid(format!("{field}.name"), &json!(name), NAME_RULE));
        }
        if let Some(file) = variable.pointer("/valueFrom/fileKeyRef") {
            check_file(&format!("{field}.valueFrom.fileKeyRef"), file, causes);
        }
        if !variable.text("/value").is_empty() && variable.has("/valueFrom") {
            let detail = "may not be specified when `value` is not empty";
            causes.push(Cause::invalid(format!("{field}.valueFrom"), &json!(""), detail));
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.contains('=') && name.chars().all(|c| c.is_ascii() && !c.is_ascii_control())
}

/// Checks what names a key of a file.
fn check_file(field: &str, file: &Value, causes: &mut Vec<Cause>) {
    for part in ["key", "path"] {
        if file.text(&format!("/{part}")).is_empty() {
            causes.push(Cause::required(format!("{field}.{part}"), ""));
        }
    }
    names::check_label(&format!("{field}.volumeName"), file.text("/volumeName"), causes);
    let (key, path) = (file.text("/key"), file.text("/path"));
    if !is_name(key) {
        causes.push(Cause::invalid(format!("{field}.key"), &json!(key), NAME_RULE));
    }
    if path.split('/').any(|part| part == "..") {
        causes.push(Cause::invalid(format!("{field}.path"), &json!(path), "must not contain '..'"));
    }
}

/// Checks that the files which variables are read from lie in volumes that begin empty: whatever else
/// has files is not the containers' to fill.
pub(super) fn check_files(pod: &Value, causes: &mut Vec<Cause>) {
    let volumes = pod.list("/spec/volumes");
    for list in ["initContainers", "containers"] {
        for (at, container) in pod.list(&format!("/spec/{list}")).iter().enumerate() {
            for (index, variable) in container.list("/env").iter().enumerate() {
                let name = variable.text("/valueFrom/fileKeyRef/volumeName");
                if name.is_empty() {
                    continue;
                }
                let field =
                    format!("spec.{list}[{at}].env[{index}].valueFrom.fileKeyRef.volumeName");
                match volumes.iter().find(|volume| volume.text("/name") == name) {
                    None => causes.push(Cause::missing(field, &json!(name))),
                    Some(volume) if !volume.has("/emptyDir") => {
                        let detail = "must be a volume of type emptyDir";
                        causes.push(Cause::invalid(field, &json!(name), detail));
                    }
                    Some(_) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(volume: &str) -> Value {
        json!({"name": "A", "valueFrom": {"fileKeyRef":
            {"volumeName": volume, "path": "x.env", "key": "A"}}})
    }

    #[test]
    fn files_of_variables_lie_in_volumes_that_begin_empty() {
        let pod = json!({"spec": {
            "volumes": [{"name": "empty", "emptyDir": {}}, {"name": "s", "secret": {}}],
            "initContainers": [{"env": [file("s")]}],
            "containers": [{"env": [file("empty")]}, {"env": [{"name": "B"}, file("gone")]}],
        }});
        let mut causes = Vec::new();
        check_files(&pod, &mut causes);
        let of = |place: &str| format!("spec.{place}.valueFrom.fileKeyRef.volumeName");
        let detail = "must be a volume of type emptyDir";
        assert_eq!(
            causes,
            [
                Cause::invalid(of("initContainers[0].env[0]"), &json!("s"), detail),
                Cause::missing(of("containers[1].env[1]"), &json!("gone")),
            ]
        );
    }

    #[test]
    fn what_names_a_key_of_a_file_is_whole_and_stays_in_the_volume() {
        let found = |file: Value| {
            let mut causes = Vec::new();
            check_file("f", &file, &mut causes);
            causes
        };
        let whole = json!({"volumeName": "v", "path": "a/b.env", "key": "K.1"});
        assert_eq!(found(whole), []);
        assert_eq!(found(json!({})).len(), 3);
        let out = found(json!({"volumeName": "v", "path": "a/../../b", "key": "K"}));
        assert_eq!(out, [Cause::invalid("f.path", &json!("a/../../b"), "must not contain '..'")]);
        let key = found(json!({"volumeName": "v", "path": "b", "key": "K="}));
        assert_eq!(key, [Cause::invalid("f.key", &json!("K="), NAME_RULE)]);
    }
}
