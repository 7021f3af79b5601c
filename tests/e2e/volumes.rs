//! Volumes as containers see them: what they hold, whose they are, and how soon they follow a change.
//!
//! | Public test | Here |
//! |---|---|
//! | ConfigMap updates should be reflected in volume; Projected configMap updates … | [`changes_reach_files_at_once`] |
//! | ConfigMap / Secrets / Projected … optional updates should be reflected in volume | [`changes_reach_files_at_once`] |
//! | ConfigMap binary data should be reflected in volume | [`changes_reach_files_at_once`] |
//! | Downward API volume / Projected downwardAPI should update labels (annotations) on modification | [`changes_reach_files_at_once`] |
//! | ConfigMap, Secrets, Projected … should be consumable from pods in volume (with mappings, Item mode, defaultMode, as non-root, fsGroup) | [`files_have_the_modes_and_names_that_are_asked_for`] |
//! | … should be consumable in multiple volumes in the same pod | [`files_have_the_modes_and_names_that_are_asked_for`] |
//! | Secrets should be able to mount in a volume regardless of a different secret existing with same name in different namespace | [`files_have_the_modes_and_names_that_are_asked_for`] |
//! | Projected combined should project all components that make up the projection API | [`files_have_the_modes_and_names_that_are_asked_for`] |
//! | Subpath Atomic writer volumes should support subpaths with configmap, secret, downward, projected pod (with mountPath of existing file) | [`changes_reach_files_at_once`] |

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::node::Node;

/// How soon a change of an object is seen in a file. What is measured is printed.
const AT_ONCE: Duration = Duration::from_secs(5);

const SOURCES: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green, gone: x}
binaryData: {bytes: AAH/}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hunter2}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: fixed}
immutable: true
data: {kept: as it is}
---
apiVersion: v1
kind: Pod
metadata: {name: reader, labels: {tier: front}, annotations: {note: old}}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
    - {name: settings, configMap: {name: settings}}
    - {name: keys, secret: {secretName: keys}}
    - {name: fixed, configMap: {name: fixed}}
    - {name: later, configMap: {name: later, optional: true}}
    - {name: later-keys, secret: {secretName: later, optional: true, items: [{key: a, path: deep/a}]}}
    - name: facts
      downwardAPI:
        items:
          - {path: labels, fieldRef: {fieldPath: metadata.labels}}
          - {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}
    - name: all
      projected:
        sources:
          - {configMap: {name: settings, items: [{key: colour, path: from/map}]}}
          - {secret: {name: keys, items: [{key: password, path: from/secret}]}}
          - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c]
      args:
        - |
          until [ "$(cat /facts/note)" = new ] && [ "$(cat /settings/colour)" = blue ]; do usleep 50000; done
          until [ "$(cat /keys/password)" != hunter2 ]; do usleep 50000; done
          for file in /settings/colour /keys/password /facts/note /etc/own /etc/password /etc/labels /etc/os-release
          do echo "$(cat $file)"; done
          echo all
          while :; do usleep 100000; done
      volumeMounts:
        - {name: settings, mountPath: /settings}
        - {name: keys, mountPath: /keys}
        - {name: later, mountPath: /later}
        - {name: facts, mountPath: /facts}
        - {name: all, mountPath: /all}
        - {name: settings, mountPath: /etc/own, subPath: colour}
        - {name: keys, mountPath: /etc/password, subPath: password}
        - {name: facts, mountPath: /etc/labels, subPath: labels}
        - {name: all, mountPath: /etc/os-release, subPath: from/map}
"#;

/// Where a volume of a pod is on the host.
fn volume(node: &Node, uid: &str, plugin: &str, name: &str) -> PathBuf {
    node.path("state/pods").join(uid).join("volumes").join(plugin).join(name)
}

/// Runs `change`, waits until `seen`, and prints how long that took.
fn follows(what: &str, change: impl FnOnce(), mut seen: impl FnMut() -> bool) {
    let begun = Instant::now();
    change();
    let asked = begun.elapsed();
    while !seen() {
        assert!(begun.elapsed() < asked + AT_ONCE, "{what}: not seen within {AT_ONCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = begun.elapsed().saturating_sub(asked);
    println!("{what}: in the file {} ms after kubectl was done", took.as_millis());
}

fn holds(path: &Path, content: &str) -> bool {
    std::fs::read(path).is_ok_and(|found| found == content.as_bytes())
}

#[test]
fn changes_reach_files_at_once() {
    let node = Node::start();
    node.apply(SOURCES);
    let pod = node.wait_ready("reader");
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let at = |plugin: &str, name: &str| volume(&node, uid, plugin, name);
    let settings = at("kubernetes.io~configmap", "settings");
    let later = at("kubernetes.io~configmap", "later");
    let keys = at("kubernetes.io~secret", "keys");
    let later_keys = at("kubernetes.io~secret", "later-keys");
    let facts = at("kubernetes.io~downward-api", "facts");
    let all = at("kubernetes.io~projected", "all");
    assert_eq!(std::fs::read(settings.join("bytes")).unwrap(), [0, 1, 0xff]);

    let patch = |kind: &str, name: &str, patch: &str| {
        node.kubectl(&["patch", kind, name, "-p", patch]);
    };
    follows(
        "a changed ConfigMap, alone and projected, a key taken away, bytes",
        || {
            let changed = r#"{"data":{"colour":"blue","gone":null},"binaryData":{"bytes":"AgM="}}"#;
            patch("configmap", "settings", changed);
        },
        || {
            holds(&settings.join("colour"), "blue")
                && holds(&all.join("from/map"), "blue")
                && holds(&settings.join("bytes"), "\u{2}\u{3}")
                && !settings.join("gone").exists()
        },
    );
    follows(
        "a changed Secret, alone and projected",
        || patch("secret", "keys", r#"{"stringData":{"password":"correct horse"}}"#),
        || {
            holds(&keys.join("password"), "correct horse")
                && holds(&all.join("from/secret"), "correct horse")
        },
    );
    follows(
        "a changed label and annotation",
        || {
            node.kubectl(&["label", "pod", "reader", "tier=back", "--overwrite"]);
            node.kubectl(&["annotate", "pod", "reader", "note=new", "--overwrite"]);
        },
        || {
            holds(&facts.join("labels"), "tier=\"back\"")
                && holds(&facts.join("note"), "new")
                && holds(&all.join("labels"), "tier=\"back\"")
        },
    );
    follows(
        "an optional ConfigMap that appears",
        || {
            node.kubectl(&["create", "configmap", "later", "--from-literal=a=1"]);
        },
        || holds(&later.join("a"), "1"),
    );
    follows(
        "an optional Secret that appears, its key mapped",
        || {
            node.kubectl(&["create", "secret", "generic", "later", "--from-literal=a=2"]);
        },
        || holds(&later_keys.join("deep/a"), "2"),
    );
    follows(
        "an optional ConfigMap that goes",
        || {
            node.kubectl(&["delete", "configmap", "later"]);
        },
        || !later.join("a").exists(),
    );
    assert!(holds(&at("kubernetes.io~configmap", "fixed").join("kept"), "as it is"));

    // The container sees the same, but for what is mounted by subPath.
    let seen = node.wait_for("the container to see it", || {
        let log = node.kubectl(&["logs", "reader"]);
        log.ends_with("all\n").then_some(log)
    });
    let expected =
        ["blue", "correct horse", "new", "green", "hunter2", "tier=\"front\"", "green", "all"];
    assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
    node.kubectl(&["delete", "pod", "reader"]);
    node.finish();
}

#[test]
fn files_have_the_modes_and_names_that_are_asked_for() {
    let node = Node::start();
    node.kubectl(&["create", "namespace", "elsewhere"]);
    node.kubectl(&[
        "create",
        "secret",
        "generic",
        "s",
        "--from-literal=k=elsewhere",
        "-n",
        "elsewhere",
    ]);
    node.kubectl(&["create", "secret", "generic", "s", "--from-literal=k=here"]);
    node.kubectl(&["create", "configmap", "c", "--from-literal=k=map", "--from-literal=unused=x"]);
    let volumes = |kind: &str| match kind {
        "configMap" => ("configMap: {name: c", "}"),
        "secret" => ("secret: {secretName: s", "}"),
        _ => ("projected: {sources: [{configMap: {name: c}}]", "}"),
    };
    let mut spec = String::new();
    let mut mounts = String::new();
    let mut script = String::new();
    let mut expected = Vec::new();
    for kind in ["configMap", "secret", "projected"] {
        let (open, close) = volumes(kind);
        let lower = kind.to_lowercase();
        let content = if kind == "secret" { "here" } else { "map" };
        let items = match kind {
            "projected" => String::new(),
            _ => ", items: [{key: k, path: path/to/k, mode: 0400}]".to_owned(),
        };
        for (name, extra) in
            [("plain", ""), ("mode", ", defaultMode: 0440"), ("items", items.as_str())]
        {
            spec.push_str(&format!("    - {{name: {lower}-{name}, {open}{extra}{close}}}\n"));
            mounts.push_str(&format!(
                "        - {{name: {lower}-{name}, mountPath: /{lower}-{name}}}\n"
            ));
        }
        let file = if kind == "projected" { "k" } else { "path/to/k" };
        for (name, file) in [("plain", "k"), ("mode", "k"), ("items", file)] {
            script.push_str(&format!(
                "echo $(cat /{lower}-{name}/{file}) $(stat -L -c %a:%g /{lower}-{name}/{file}) $(ls /{lower}-{name} | tr '\\n' ' ')\n"
            ));
        }
        let names = match kind {
            "secret" => "k",
            _ => "k unused",
        };
        let items_line = match kind {
            // A mode of its own gets the group's right to read.
            "projected" => format!("{content} 644:2000 {names}"),
            _ => format!("{content} 440:2000 path"),
        };
        expected.extend([
            format!("{content} 644:2000 {names}"),
            format!("{content} 440:2000 {names}"),
            items_line,
        ]);
    }
    let script = script.lines().map(|l| format!("          {l}\n")).collect::<String>();
    node.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: modes}}\nspec:\n  restartPolicy: Never\n  \
         securityContext: {{runAsUser: 1000, fsGroup: 2000}}\n  volumes:\n{spec}  containers:\n    \
         - name: main\n      image: berth.local/busybox:1\n      command: [sh, -c]\n      args:\n        \
         - |\n{script}      volumeMounts:\n{mounts}"
    ));
    node.wait_phase("modes", "Succeeded");
    let log = node.kubectl(&["logs", "modes"]);
    assert_eq!(log.lines().map(str::trim).collect::<Vec<_>>(), expected);
    node.kubectl(&["delete", "pod", "modes"]);
    node.finish();
}
