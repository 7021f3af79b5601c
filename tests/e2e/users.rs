//! Pods whose users are nobody on the host (`hostUsers: false`), seen from both sides; profiles that
//! cannot be had stop a container.
//!
//! | Public test | Here |
//! |---|---|
//! | must create the user namespace if set to false; must not create it if set to true | [`root_of_a_pod_with_users_of_its_own_is_nobody_on_the_host`] |
//! | should mount all volumes with proper permissions with hostUsers=false | [`root_of_a_pod_with_users_of_its_own_is_nobody_on_the_host`] |
//! | should set FSGroup to user inside the container with hostUsers=false | [`root_of_a_pod_with_users_of_its_own_is_nobody_on_the_host`] |
//! | CVE-2023-2431: an empty Localhost profile is no profile | [`a_profile_that_cannot_be_had_stops_the_container`] |

use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use crate::node::Node;

const PODS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hunter2}
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 0
  securityContext: {fsGroup: 3000}
  volumes:
    - {name: settings, configMap: {name: settings, defaultMode: 0440}}
    - {name: keys, secret: {secretName: keys}}
    - {name: disk, emptyDir: {}}
    - {name: memory, emptyDir: {medium: Memory}}
    - {name: facts, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
    - {name: host, hostPath: {path: HOSTPATH}}
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c]
      args:
        - |
          id -u
          tr -s ' ' < /proc/self/uid_map
          for file in / /bin/busybox /etc/hosts /etc/resolv.conf /settings/..data/colour /keys/..data/password /facts/..data/name /disk /memory /host /dev/mqueue
          do stat -c '%n %u:%g' $file; done
          echo mine > /host/mine; chown 7:8 /host/mine
          echo x > /disk/sub/x || { mkdir /disk/sub; echo x > /disk/sub/x; }
          cat /settings/colour /keys/password; echo
          echo last > /dev/termination-log
          hostname
          echo end
          while :; do sleep 1000; done
      volumeMounts:
        - {name: settings, mountPath: /settings}
        - {name: keys, mountPath: /keys}
        - {name: disk, mountPath: /disk}
        - {name: memory, mountPath: /memory}
        - {name: facts, mountPath: /facts}
        - {name: host, mountPath: /host}
    - name: user
      image: berth.local/busybox:1
      securityContext: {runAsUser: 1000, runAsGroup: 1000}
      command: [sh, -c, "id -u; id -G; cat /settings/colour; echo; echo y > /disk/by-user && stat -c %u:%g /disk/by-user; exec sleep 1000"]
      volumeMounts:
        - {name: settings, mountPath: /settings}
        - {name: disk, mountPath: /disk}
---
apiVersion: v1
kind: Pod
metadata: {name: shares}
spec:
  hostUsers: false
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: "berth.local/busybox:1", command: [sh, -c, "ps | grep -c sleep; tr -s ' ' < /proc/self/uid_map; exec sleep 1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: ordinary}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: "berth.local/busybox:1", command: [sh, -c, "tr -s ' ' < /proc/self/uid_map; exec sleep 1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: beyond}
spec:
  hostUsers: false
  restartPolicy: Never
  securityContext: {runAsUser: 70000}
  containers:
    - {name: main, image: "berth.local/busybox:1", command: ["true"]}
"#;

fn log(node: &Node, pod: &str, container: &str) -> String {
    node.wait_for("the container's lines", || {
        let text = node.kubectl(&["logs", pod, "-c", container]);
        (text.lines().count() >= 2).then_some(text)
    })
}

/// What 0 stands for in a line of a mapping.
fn first(text: &str) -> u32 {
    let line =
        text.lines().find(|line| line.ends_with(" 65536")).unwrap_or_else(|| panic!("{text}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn reason(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or_default()
}

#[test]
fn root_of_a_pod_with_users_of_its_own_is_nobody_on_the_host() {
    let mut node = Node::start();
    let host = node.path("host");
    std::fs::create_dir(&host).unwrap();
    node.apply(&PODS.replace("HOSTPATH", host.to_str().unwrap()));
    node.wait_ready("own");
    let text = node.wait_for("the whole log", || {
        let text = node.kubectl(&["logs", "own", "-c", "main"]);
        text.contains("\nend\n").then_some(text)
    });
    let base = first(&text);
    assert!(base >= 65_536 && text.starts_with("0\n 0 "), "{text}");
    for line in [
        "/ 0:0",
        "/bin/busybox 0:0",
        "/etc/hosts 0:0",
        "/etc/resolv.conf 0:0",
        "/settings/..data/colour 0:3000",
        "/keys/..data/password 0:3000",
        "/facts/..data/name 0:3000",
        "/disk 0:3000",
        "/memory 0:3000",
        "/host 0:0",
        "/dev/mqueue 0:0",
        "own",
        "greenhunter2",
    ] {
        assert!(text.lines().any(|seen| seen == line), "{line:?} is not in {text}");
    }
    let mine = std::fs::metadata(host.join("mine")).unwrap();
    assert_eq!((mine.uid(), mine.gid()), (7, 8), "a volume holds ids as the pod means them");
    let user = node.wait_for("the user's lines", || {
        let text = node.kubectl(&["logs", "own", "-c", "user"]);
        text.contains("1000:3000").then_some(text)
    });
    assert!(user.starts_with("1000\n1000 50 3000\ngreen\n"), "{user}");

    // The kernel's own word, of the host.
    let pid = processes(&node, base);
    assert!(!pid.is_empty(), "a process of the pod has an id of its range");
    assert_eq!(node.kubectl(&["exec", "own", "-c", "main", "--", "id", "-u"]), "0\n");
    node.wait_ready("shares");
    let other = first(&log(&node, "shares", "main"));
    assert!(other.abs_diff(base) >= 65_536, "{other} and {base} share ids");
    node.wait_ready("ordinary");
    let ordinary = node.wait_for("a mapping", || {
        let text = node.kubectl(&["logs", "ordinary"]);
        (!text.is_empty()).then_some(text)
    });
    assert_eq!(ordinary.trim(), "0 0 4294967295");
    let refused =
        node.wait_pod("beyond", "refused its user", |pod| reason(pod) == "CreateContainerError");
    let why = refused["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
    assert!(why.contains("runAsUser 70000 is not one of the 65536 ids"), "{why}");
    let handlers = &node.get("node", "node-1")["status"]["runtimeHandlers"];
    assert_eq!(handlers[0]["features"]["userNamespaces"], true, "{handlers}");

    // A restarted agent gives no id away twice.
    node.kill_agent();
    node.up(&[]);
    node.await_ready();
    node.apply(
        &PODS[PODS.find("---\napiVersion: v1\nkind: Pod\nmetadata: {name: shares}").unwrap()
            ..PODS.find("---\napiVersion: v1\nkind: Pod\nmetadata: {name: ordinary}").unwrap()]
            .replace("name: shares", "name: later"),
    );
    node.wait_ready("later");
    let later = first(&log(&node, "later", "main"));
    for taken in [base, other] {
        assert!(later.abs_diff(taken) >= 65_536, "{later} was given away already: {taken}");
    }
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

/// The processes of the host whose user is `id`.
fn processes(node: &Node, id: u32) -> Vec<String> {
    let owned = |pid: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        let uid: u32 = line.split_whitespace().next()?.parse().ok()?;
        (uid == id).then(|| pid.to_owned())
    };
    node.namespace().within(|| {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| owned(entry.file_name().to_str()?)).collect()
    })
}

const PROFILES: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  volumes: [{name: host, hostPath: {path: HOSTPATH}}]
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [touch, /host/NAME]
      securityContext: {seccompProfile: {type: Localhost, localhostProfile: PROFILE}}
      volumeMounts: [{name: host, mountPath: /host}]
"#;

#[test]
fn a_profile_that_cannot_be_had_stops_the_container() {
    let node = Node::start();
    let host = node.path("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("outside.json"), "").unwrap();
    for (name, profile) in
        [("missing", "nowhere.json"), ("none", "\"\""), ("above", "../../outside.json")]
    {
        let manifest = PROFILES
            .replace("NAME", name)
            .replace("PROFILE", profile)
            .replace("HOSTPATH", host.to_str().unwrap());
        if !node.try_apply(&manifest).status.success() {
            // The API server sees what is no profile at all.
            continue;
        }
        let refused = node.wait_pod(name, "refused its profile", |pod| {
            matches!(reason(pod), "CreateContainerError" | "CreateContainerConfigError")
        });
        let why = &refused["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
        assert!(why.as_str().unwrap().contains("rofile"), "{why}");
    }
    for name in ["missing", "none", "above"] {
        assert!(!host.join(name).exists(), "{name} ran");
    }
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}
