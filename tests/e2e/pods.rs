//! What a pod sees: environment, volumes, identity, order of its containers, and how it ends.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{Node, condition};

const CONFIGURATION: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green, "app.conf": "a=1\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {password: hunter2}
---
"#;

/// Init containers write to a volume; the container prints all it was given.
const EVERYTHING: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: everything
  labels: {tier: front}
  annotations: {note: kept}
spec:
  restartPolicy: Never
  volumes:
    - {name: work, emptyDir: {}}
    - {name: settings, configMap: {name: settings, items: [{key: app.conf, path: etc/app.conf}], defaultMode: 0400}}
    - {name: keys, secret: {secretName: keys}}
    - {name: host, hostPath: {path: HOSTPATH, type: Directory}}
    - {name: facts, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  initContainers:
    - {name: first, image: "berth.local/busybox:1", command: [sh, -c, "echo one >> /scratch/order"], volumeMounts: [{name: work, mountPath: /scratch}]}
    - {name: second, image: "berth.local/busybox:1", command: [sh, -c, "echo two >> /scratch/order; echo \"LEFT='by init'\" > /scratch/env"], volumeMounts: [{name: work, mountPath: /scratch}]}
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c]
      args:
        - |
          echo 'args $(GREETING) $$(LITERAL)'
          echo "image $FROM_IMAGE"
          echo "composed $COMPOSED"
          echo "name $POD_NAME node $NODE_NAME ip $POD_IP cpu $CPU"
          echo "colour $colour prefixed $CM_colour"
          echo "password $PASSWORD"
          echo "left $LEFT"
          echo "order $(tr '\n' ' ' < /scratch/order)"
          echo "file $(cat /settings/etc/app.conf) $(stat -L -c %a /settings/etc/app.conf)"
          echo "secret $(cat /keys/password)"
          echo "labels $(cat /facts/labels)"
          echo "from the host $(cat /host/hello)"
          echo "hostname $(hostname)"
          echo "hosts $(grep -c "$(hostname)" /etc/hosts)"
          echo to stderr >&2
          echo done > /dev/termination-log
      env:
        - {name: GREETING, value: hello}
        - {name: COMPOSED, value: "$(GREETING)-$(MISSING)"}
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
        - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
        - {name: LEFT, valueFrom: {fileKeyRef: {volumeName: work, path: env, key: LEFT}}}
      envFrom:
        - {configMapRef: {name: settings}}
        - {prefix: CM_, configMapRef: {name: settings}}
      resources: {requests: {cpu: 10m}}
      volumeMounts:
        - {name: work, mountPath: /scratch, readOnly: true}
        - {name: settings, mountPath: /settings}
        - {name: keys, mountPath: /keys}
        - {name: host, mountPath: /host}
        - {name: facts, mountPath: /facts}
"#;

#[test]
fn a_pod_is_given_everything_it_asks_for() {
    let node = Node::start();
    let host = node.path("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("hello"), "world").unwrap();
    node.apply(CONFIGURATION);
    node.apply(&EVERYTHING.replace("HOSTPATH", host.to_str().unwrap()));
    let pod = node.wait_phase("everything", "Succeeded");
    let ip = pod["status"]["podIP"].as_str().unwrap();

    let log = node.kubectl(&["logs", "everything"]);
    for line in [
        "args hello $(LITERAL)",
        "image yes",
        "composed hello-$(MISSING)",
        &format!("name everything node node-1 ip {ip} cpu 10"),
        "colour green prefixed green",
        "password hunter2",
        "left by init",
        "order one two ",
        "file a=1 400",
        "secret hunter2",
        "labels tier=\"front\"",
        "from the host world",
        "hostname everything",
        "hosts 1",
        "to stderr",
    ] {
        assert!(log.lines().any(|printed| printed == line), "{line:?} is not in\n{log}");
    }
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["message"]), (&"Completed".into(), &"done\n".into()));
    let init = pod["status"]["initContainerStatuses"].as_array().unwrap();
    assert!(init.iter().all(|status| status["state"]["terminated"]["exitCode"] == 0));
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        node.wait_event("everything", reason);
    }
    node.kubectl(&["delete", "pod", "everything"]);
    node.finish();
}

#[test]
fn containers_end_as_their_restart_policy_says() {
    let node = Node::start();
    let pod = |name: &str, policy: &str, script: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
             restartPolicy: {policy}\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
             - {{name: main, image: \"berth.local/busybox:1\", command: [sh, -c, {script:?}]}}\n"
        )
    };
    node.apply(
        &[
            pod("completes", "Never", "exit 0"),
            pod("fails", "Never", "exit 3"),
            pod("recovers", "OnFailure", "exit 0"),
            pod("crashes", "Always", "cat /proc/uptime; exit 5"),
            pod("signalled", "Never", "kill -9 $$"),
        ]
        .concat(),
    );
    let terminated =
        |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    let done = terminated(&node.wait_phase("completes", "Succeeded"));
    assert_eq!((&done["reason"], &done["exitCode"]), (&"Completed".into(), &0.into()));
    let failed = terminated(&node.wait_phase("fails", "Failed"));
    assert_eq!((&failed["reason"], &failed["exitCode"]), (&"Error".into(), &3.into()));
    node.wait_phase("recovers", "Succeeded");

    let crashed = node.wait_pod("crashes", "in CrashLoopBackOff", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let status = &crashed["status"]["containerStatuses"][0];
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 5);
    assert_eq!(
        (&crashed["status"]["phase"], condition(&crashed, "Ready")),
        (&"Running".into(), "False")
    );
    // While it waits, its newest run is the last; afterwards it is the one before.
    let newest = node.kubectl(&["logs", "crashes"]);
    assert_eq!(node.kubectl(&["logs", "--previous", "crashes"]), newest);
    assert_eq!(newest.lines().count(), 1, "{newest}");
    node.wait_event("crashes", "BackOff");
    let restarts = status["restartCount"].as_u64();
    node.wait_pod("crashes", "restarted", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"].as_u64() > restarts && status["state"]["waiting"].is_object()
    });
    let later = node.kubectl(&["logs", "--previous", "crashes"]);
    assert_eq!((later.lines().count(), later == newest), (1, false), "{later}");
    node.kubectl(&["delete", "pod", "--all"]);
    node.finish();
}

#[test]
fn deletion_asks_first_and_kills_at_the_end_of_the_grace() {
    let node = Node::start();
    let pod = |name: &str, grace: u32, script: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
             terminationGracePeriodSeconds: {grace}\n  containers:\n  \
             - {{name: main, image: \"berth.local/busybox:1\", command: [sh, -c, {script:?}]}}\n"
        )
    };
    let polite = "trap 'exit 0' TERM; echo up; while :; do usleep 50000; done";
    let stubborn = "trap '' TERM; echo up; while :; do usleep 50000; done";
    node.apply(&[pod("polite", 60, polite), pod("stubborn", 2, stubborn)].concat());
    for name in ["polite", "stubborn"] {
        node.wait_ready(name);
        node.wait_for("its trap to be set", || {
            node.kubectl(&["logs", name]).contains("up").then_some(())
        });
    }
    let timed = |args: &[&str]| {
        let began = Instant::now();
        node.kubectl(args);
        began.elapsed()
    };
    let polite = timed(&["delete", "pod", "polite"]);
    assert!(polite < Duration::from_secs(30), "{polite:?}");
    node.wait_event("polite", "Killing");
    let stubborn = timed(&["delete", "pod", "stubborn"]);
    assert!(stubborn >= Duration::from_millis(1900), "{stubborn:?}");
    node.finish();
}

#[test]
fn a_pod_runs_with_the_privileges_it_asks_for_and_no_more() {
    let node = Node::start();
    node.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: guarded}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000]}
  volumes: [{name: work, emptyDir: {}}]
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c]
      args:
        - |
          echo "id $(id -u):$(id -g) $(id -G)"
          grep -E 'CapInh|CapEff|NoNewPrivs|Seccomp:' /proc/self/status
          touch /file 2> /dev/null || echo read-only
          echo "work $(stat -c %g /scratch)"
          echo "kcore $(head -c 1 /proc/kcore 2> /dev/null | wc -c)"
          echo x 2> /dev/null > /proc/sys/kernel/hostname || echo sys-read-only
          echo "processes $(ls /proc | grep -c '^[0-9]')"
          echo "fds $(ls /proc/self/fd | tr '\n' ' ')"
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
        seccompProfile: {type: RuntimeDefault}
      volumeMounts: [{name: work, mountPath: /scratch}]
"#,
    );
    node.wait_phase("guarded", "Succeeded");
    let log = node.kubectl(&["logs", "guarded"]);
    for line in [
        "id 1000:3000 3000 50 2000 4000",
        "CapInh:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "read-only",
        "work 2000",
        "kcore 0",
        "sys-read-only",
    ] {
        let wanted: Vec<_> = line.split_whitespace().collect();
        let found = log.lines().any(|printed| {
            let mut words: Vec<_> = printed.split_whitespace().collect();
            let mut wanted = wanted.clone();
            if line.starts_with("id ") {
                words.sort_unstable();
                wanted.sort_unstable();
            }
            words == wanted
        });
        assert!(found, "{line:?} is not in\n{log}");
    }
    node.kubectl(&["delete", "pod", "guarded"]);
    node.finish();
}

#[test]
fn kubectl_shows_pods_as_it_does_anywhere() {
    let node = Node::start();
    node.apply(include_str!("../demo/demo.yaml"));
    node.wait_ready("demo-1");
    node.wait_ready("demo-2");
    let wide = node.kubectl(&["get", "pods", "-o", "wide"]);
    let head: Vec<_> = wide.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        head,
        [
            "NAME",
            "READY",
            "STATUS",
            "RESTARTS",
            "AGE",
            "IP",
            "NODE",
            "NOMINATED",
            "NODE",
            "READINESS",
            "GATES"
        ]
    );
    let row = wide.lines().find(|line| line.starts_with("demo-1")).unwrap();
    assert!(row.contains("1/1") && row.contains("Running") && row.contains("node-1"), "{row}");
    let describe = node.kubectl(&["describe", "pod", "demo-1"]);
    for text in ["Container ID:   berth://", "State:          Running", "Started", "QoS Class:"] {
        assert!(describe.contains(text), "{text:?} is not in\n{describe}");
    }
    node.kubectl(&["delete", "-f", node.path("manifest.yaml").to_str().unwrap()]);
    node.finish();
}
