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

use serde_json::json;

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
    - name: trust
      projected:
        sources:
          - {clusterTrustBundle: {name: own, path: own.pem, optional: true}}
          - {clusterTrustBundle: {signerName: a.io/b, labelSelector: {}, path: all.pem, optional: true}}
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
    trust_is_followed(&node, &at("kubernetes.io~projected", "trust"));

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

/// Bundles by name and by signer, each certificate once.
fn trust_is_followed(node: &Node, trust: &Path) {
    assert!(holds(&trust.join("own.pem"), "") && holds(&trust.join("all.pem"), ""));
    let root = node.get("configmap", "kube-root-ca.crt");
    let certificate = root["data"]["ca.crt"].as_str().unwrap().replace('\r', "");
    let bundle = |name: &str, signer: &str| {
        json!({"apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle",
               "metadata": {"name": name},
               "spec": {"signerName": signer, "trustBundle": certificate}})
        .to_string()
    };
    follows(
        "trust bundles that appear",
        || {
            let all =
                [bundle("own", ""), bundle("a.io:b:1", "a.io/b"), bundle("a.io:b:2", "a.io/b")];
            node.apply(&all.join("\n---\n"));
        },
        || {
            holds(&trust.join("own.pem"), &certificate)
                && holds(&trust.join("all.pem"), &certificate)
        },
    );
    follows(
        "a trust bundle that goes",
        || {
            node.kubectl(&["delete", "clustertrustbundle", "own"]);
        },
        || holds(&trust.join("own.pem"), ""),
    );
    let shown = node.kubectl(&["get", "clustertrustbundles"]);
    assert!(shown.contains("a.io:b:2") && shown.contains("a.io/b"), "{shown}");
    let refused = node.try_apply(&bundle("other", "a.io/b"));
    assert!(!refused.status.success(), "its name does not say whose it is");
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

const CLAIMS: &str = r#"
apiVersion: v1
kind: PersistentVolume
metadata: {name: data}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: manual
  local: {path: LOCAL}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]}]}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: shared}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadOnlyMany]
  storageClassName: shared
  hostPath: {path: SHARED, type: Directory}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: remote}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteMany]
  storageClassName: remote
  iscsi: {targetPortal: 192.0.2.1, iqn: "iqn.2000-01.a.b:c", lun: 0}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec: {accessModes: [ReadOnlyMany], storageClassName: shared, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: remote}
spec: {accessModes: [ReadWriteMany], storageClassName: remote, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1000, fsGroup: 2000}
  volumes:
    - {name: data, persistentVolumeClaim: {claimName: data}}
    - {name: shared, persistentVolumeClaim: {claimName: shared}}
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c, "echo kept > /data/file; stat -c %g:%a /data; cat /shared/hello; touch /shared/x 2>&1 | grep -c Read-only"]
      volumeMounts: [{name: data, mountPath: /data}, {name: shared, mountPath: /shared}]
---
apiVersion: v1
kind: Pod
metadata: {name: far}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: remote, persistentVolumeClaim: {claimName: remote}}]
  containers:
    - {name: main, image: "berth.local/busybox:1", command: [sleep, "1000"], volumeMounts: [{name: remote, mountPath: /r}]}
"#;

const LATE_CLAIM: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], storageClassName: manual, resources: {requests: {storage: 500Mi}}}
"#;

#[test]
fn a_claim_brings_the_volume_it_is_bound_to() {
    let node = Node::start();
    let (local, shared) = (node.path("local"), node.path("shared"));
    std::fs::create_dir(&local).unwrap();
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("hello"), "hello\n").unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    node.apply(&CLAIMS.replace("LOCAL", &text(&local)).replace("SHARED", &text(&shared)));
    let waits = node.wait_pod("writer", "unschedulable for want of its claim", |pod| {
        pod["status"]["conditions"][0]["reason"] == "Unschedulable"
    });
    let why = waits["status"]["conditions"][0]["message"].as_str().unwrap();
    assert_eq!(why, "persistentvolumeclaim \"data\" not found");
    node.apply(LATE_CLAIM);
    node.wait_phase("writer", "Succeeded");
    assert_eq!(node.kubectl(&["logs", "writer"]), "2000:2775\nhello\n1\n");
    assert_eq!(std::fs::read_to_string(local.join("file")).unwrap(), "kept\n");
    let claims = node.kubectl(&["get", "pvc"]);
    assert!(
        claims.lines().any(|line| line.starts_with("data") && line.contains("Bound")),
        "{claims}"
    );

    let refused = node.wait_event("far", "FailedMount");
    assert!(
        refused.contains("volume remote is of kind iscsi, which is not supported"),
        "{refused}"
    );
    node.kubectl(&["delete", "pvc", "data", "--wait=false"]);
    let held = node.get("persistentvolumeclaim", "data");
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    node.kubectl(&["delete", "pod", "--all"]);
    node.kubectl(&["wait", "--for=delete", "pvc/data", "--timeout=60s"]);
    let released = || {
        let phase = node.get("persistentvolume", "data")["status"]["phase"].clone();
        (phase == "Released").then_some(())
    };
    node.wait_for("the volume to be released", released);
    assert!(local.join("file").exists(), "the data outlives pod and claim");
    node.finish();
}

const SCRATCH: &str = r#"
apiVersion: v1
kind: PersistentVolume
metadata: {name: scratch}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: scratch
  local: {path: LOCAL}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: user}
spec:
  restartPolicy: Never
  volumes:
    - name: scratch
      ephemeral:
        volumeClaimTemplate:
          metadata: {labels: {of: scratch}}
          spec: {accessModes: [ReadWriteOnce], storageClassName: scratch, resources: {requests: {storage: 1Gi}}}
  containers:
    - {name: main, image: "berth.local/busybox:1", command: [sh, -c, "echo written > /scratch/file"], volumeMounts: [{name: scratch, mountPath: /scratch}]}
"#;

#[test]
fn an_ephemeral_volume_is_claimed_for_its_pod_and_let_go_with_it() {
    let node = Node::start();
    let local = node.path("local");
    std::fs::create_dir(&local).unwrap();
    node.apply(&SCRATCH.replace("LOCAL", local.to_str().unwrap()));
    let pod = node.wait_phase("user", "Succeeded");
    assert_eq!(std::fs::read_to_string(local.join("file")).unwrap(), "written\n");
    let claim = node.get("persistentvolumeclaim", "user-scratch");
    let owner = &claim["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["uid"], &owner["controller"]), (&pod["metadata"]["uid"], &true.into()));
    assert_eq!(claim["metadata"]["labels"]["of"], "scratch");
    node.kubectl(&["delete", "pod", "user"]);
    node.kubectl(&["wait", "--for=delete", "pvc/user-scratch", "--timeout=60s"]);

    // A claim that has the name and is somebody's own is not taken.
    let head = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: user-scratch}\n";
    node.apply(&format!(
        "{head}spec: {{accessModes: [ReadWriteOnce], storageClassName: other, \
         resources: {{requests: {{storage: 1Gi}}}}}}"
    ));
    node.apply(&SCRATCH[SCRATCH.find("---").unwrap()..]);
    let waits = node.wait_pod("user", "unschedulable for want of a claim of its own", |pod| {
        pod["status"]["conditions"][0]["reason"] == "Unschedulable"
    });
    let why = waits["status"]["conditions"][0]["message"].as_str().unwrap();
    assert_eq!(
        why,
        "PVC default/user-scratch was not created for pod default/user (pod is not owner)"
    );
    let output = node.try_apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: empty}\nspec: {volumes: [{name: v, ephemeral: {}}], \
         containers: [{name: c, image: 'berth.local/busybox:1'}]}",
    );
    let refused = String::from_utf8_lossy(&output.stderr).into_owned();
    let field = "spec.volumes[0].ephemeral.volumeClaimTemplate: Required value";
    assert!(refused.contains(field), "{refused}");
    node.kubectl(&["delete", "pod", "user"]);
    assert!(!node.get("persistentvolumeclaim", "user-scratch").is_null(), "it stays its owner's");
    node.finish();
}
