//! Live streams through the API server to the node: exec, attach, port-forward and cp with an
//! unmodified kubectl, by WebSocket and by SPDY.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::node::{Node, told};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: "berth.local/busybox:1", imagePullPolicy: Never, command: [sleep, infinity]}
    - {name: other, image: "berth.local/busybox:1", imagePullPolicy: Never, command: [sleep, infinity]}
---
apiVersion: v1
kind: Pod
metadata: {name: cat}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  containers:
    - {name: main, image: "berth.local/busybox:1", imagePullPolicy: Never, stdin: true, stdinOnce: true, command: [cat]}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: main, image: "berth.local/demo:1", imagePullPolicy: Never}
"#;

/// How kubectl speaks to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    WebSocket,
    Spdy,
}

fn kubectl(node: &Node, by: By, args: &[&str]) -> Command {
    let mut command = node.kubectl_command();
    let websockets = if by == By::WebSocket { "true" } else { "false" };
    command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
    command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets).args(args);
    command
}

/// Runs a command with this input; it ends by itself.
fn fed(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn kubectl_execs_attaches_copies_and_forwards() {
    let node = Node::start();
    node.apply(PODS);
    for pod in ["box", "cat", "web"] {
        node.wait_ready(pod);
    }
    for by in [By::WebSocket, By::Spdy] {
        exits_and_streams(&node, by);
        input_reaches_the_command(&node, by);
        a_terminal_has_a_size(&node, by);
        files_are_copied_both_ways(&node, by);
        a_port_is_forwarded(&node, by);
    }
    numbers_are_told(&node);
    local_commands_need_no_api_server(&node);
    attach_feeds_the_first_process(&node);
    refusals_are_told(&node);
    node.finish();
}

fn exits_and_streams(node: &Node, by: By) {
    let script = "echo out; echo err >&2; exit 3";
    let args = ["exec", "box", "-c", "other", "--", "sh", "-c", script];
    let output = kubectl(node, by, &args).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{by:?}: {}", told(&output));
    assert_eq!(text(&output), "out\n");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("err\n") && errors.contains("exit code 3"), "{by:?}: {errors}");
    // What a command leaves behind and what holds its streams is not waited for.
    let args = ["exec", "box", "--", "sh", "-c", "sleep 3000 & echo begun"];
    let output = kubectl(node, by, &args).output().unwrap();
    assert_eq!((output.status.code(), text(&output).as_str()), (Some(0), "begun\n"), "{by:?}");
}

fn input_reaches_the_command(node: &Node, by: By) {
    let input = vec![b'z'; 3 << 20];
    let args = ["exec", "-i", "box", "--", "wc", "-c"];
    let output = fed(&mut kubectl(node, by, &args), &input);
    assert_eq!(text(&output).trim(), input.len().to_string(), "{by:?}: {}", told(&output));
}

fn a_terminal_has_a_size(node: &Node, by: By) {
    // `script` gives kubectl a terminal of this size.
    let inner =
        kubectl(node, by, &["exec", "-it", "box", "--", "sh", "-c", "sleep 1; stty size; tty"]);
    let words: Vec<String> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let mut command = Command::new("script");
    for (name, value) in inner.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let line = format!("stty rows 33 cols 77; {}", words.join(" "));
    let output =
        command.args(["-q", "-e", "-c", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    assert!(text(&output).contains("33 77"), "{by:?}: {}", told(&output));
    assert!(text(&output).contains("/dev/pts/"), "{by:?}: {}", told(&output));
}

fn files_are_copied_both_ways(node: &Node, by: By) {
    let source = node.path("source.bin");
    let back = node.path("back.bin");
    let mebibytes = 100;
    let make = format!(
        "head -c {}M /dev/urandom > {} && sha256sum < {}",
        mebibytes,
        source.display(),
        source.display()
    );
    let sum = text(&Command::new("sh").args(["-c", &make]).output().unwrap());
    let into = ["cp", source.to_str().unwrap(), "box:/tmp/copy.bin"];
    let output = kubectl(node, by, &into).output().unwrap();
    assert!(output.status.success(), "{by:?}: {}", told(&output));
    let args = ["exec", "box", "--", "sh", "-c", "sha256sum < /tmp/copy.bin"];
    assert_eq!(text(&kubectl(node, by, &args).output().unwrap()), sum, "{by:?}");
    let from = ["cp", "box:/tmp/copy.bin", back.to_str().unwrap()];
    let output = kubectl(node, by, &from).output().unwrap();
    assert!(output.status.success(), "{by:?}: {}", told(&output));
    let check = format!("sha256sum < {}", back.display());
    let returned = text(&Command::new("sh").args(["-c", &check]).output().unwrap());
    assert_eq!(returned, sum, "{by:?}");
    for file in [source, back] {
        std::fs::remove_file(file).unwrap();
    }
}

/// Ends with the test.
struct Forward(Child);

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn a_port_is_forwarded(node: &Node, by: By) {
    let mut child = kubectl(node, by, &["port-forward", "pod/web", ":8080", ":9"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let forward = Forward(child);
    let mut port = |of: &str| {
        let found = lines.by_ref().map(Result::unwrap).find_map(|line| {
            let near = line.strip_prefix("Forwarding from 127.0.0.1:")?;
            let (near, far) = near.split_once(" -> ")?;
            (far == of).then(|| near.parse::<u16>().unwrap())
        });
        found.unwrap_or_else(|| panic!("{by:?}: {of} is not forwarded"))
    };
    let (open, closed) = (port("8080"), port("9"));
    let ask = |port: u16| {
        node.namespace().within(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            answer
        })
    };
    for _ in 0..5 {
        let answer = ask(open);
        assert!(answer.contains("web request"), "{by:?}: {answer:?}");
    }
    assert_eq!(ask(closed), "", "{by:?}: nobody listens there");
    drop(forward);
}

/// The node's own pages, through the node's port with the API server's certificate.
fn numbers_are_told(node: &Node) {
    let pki = node.path("state/standalone/pki");
    let page = |path: &str, with: &[&str]| {
        let mut command = node.namespace().command("curl");
        command.args(["-sS", "--cacert"]).arg(pki.join("ca.crt")).args(with);
        let output = command.arg(format!("https://127.0.0.1:10250{path}")).output().unwrap();
        assert!(output.status.success(), "{path}: {}", told(&output));
        text(&output)
    };
    let file = |name: &str| pki.join(name).display().to_string();
    let (cert, key) = (file("apiserver-kubelet-client.crt"), file("apiserver-kubelet-client.key"));
    let known = ["--cert", cert.as_str(), "--key", key.as_str()];
    let resource = page("/metrics/resource", &known);
    for name in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes"] {
        let labels = r#"{container="other",namespace="default",pod="box"} "#;
        let line = resource.lines().find_map(|l| l.strip_prefix(&format!("{name}{labels}")));
        let line = line.unwrap_or_else(|| panic!("{name}: {resource}"));
        let (value, at_ms) = line.split_once(' ').expect("a value and its time");
        assert!(value.parse::<f64>().unwrap() > 0.0, "metrics-server drops a pod with 0: {line}");
        assert!(at_ms.parse::<u64>().unwrap() > 1_600_000_000_000, "{line}");
    }
    let cadvisor = page("/metrics/cadvisor", &known);
    let received = r#"interface="eth0",name="#;
    assert!(cadvisor.contains("container_network_receive_bytes_total{"), "{cadvisor}");
    assert!(cadvisor.contains(received), "{cadvisor}");
    // Pods and the host have pressure where the kernel keeps it, controllers or not.
    let keeps_pressure = std::path::Path::new("/proc/pressure/cpu").exists();
    for resource in ["cpu", "memory", "io"] {
        let name = format!("container_pressure_{resource}_waiting_seconds_total");
        let of_pod = format!("{name}{{container=\"other\"");
        assert_eq!(cadvisor.contains(&of_pod), keeps_pressure, "{name}: {cadvisor}");
    }
    let summary: serde_json::Value = serde_json::from_str(&page("/stats/summary", &known)).unwrap();
    assert_eq!(summary["node"]["nodeName"], "node-1");
    assert_eq!(summary["pods"].as_array().unwrap().len(), 3, "{summary}");
    for of in [&summary["node"], &summary["pods"][0], &summary["pods"][0]["containers"][0]] {
        assert_eq!(of["io"]["psi"]["some"]["total"].is_u64(), keeps_pressure, "{of}");
        assert_eq!(of["memory"]["psi"]["full"]["avg10"].is_f64(), keeps_pressure, "{of}");
    }
    let parts = summary["node"]["systemContainers"].as_array().unwrap();
    let names: Vec<_> = parts.iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["kubelet", "runtime", "pods"]);
    for part in parts {
        assert!(part["memory"]["workingSetBytes"].as_u64() > Some(100 << 10), "{part}");
        assert!(part["cpu"]["usageCoreNanoSeconds"].as_u64() > Some(0), "{part}");
    }
    assert_eq!(summary["node"]["network"]["name"], "uplink", "the default route's");
    assert_eq!(summary["pods"][0]["network"]["name"], "eth0");
    node.wait_for("a look that is a second later", || {
        let summary: serde_json::Value =
            serde_json::from_str(&page("/stats/summary", &known)).unwrap();
        let rate = |of: &serde_json::Value| of["cpu"]["usageNanoCores"].as_u64();
        let pod = &summary["pods"][0];
        let all = [&summary["node"], pod, &pod["containers"][0]].map(rate);
        all.iter().all(Option::is_some).then(|| assert!(all[0] > Some(0), "{summary}"))
    });
    let own = page("/metrics", &known);
    for start in [
        "kubelet_node_name{node=\"node-1\"} 1",
        "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} 3",
        "kubelet_cgroup_manager_duration_seconds_count{operation_type=\"create\"}",
        "kubelet_started_pods_total 3",
        "kubelet_started_containers_total{container_type=\"container\"}",
        "kubelet_pod_start_duration_seconds_count 3",
        "kubelet_pod_start_total_duration_seconds_count 3",
        "kubelet_pod_status_sync_duration_seconds_count",
        "kubelet_http_requests_total{method=\"GET\",path=\"metrics/cadvisor\"",
        "kubelet_websocket_streaming_requests_total{subresource=\"exec\"}",
        "rest_client_requests_total{code=\"200\"",
        "storage_operation_duration_seconds_count{migrated=\"false\"",
    ] {
        assert!(own.lines().any(|one| one.starts_with(start)), "{start}\n{own}");
    }
    for path in ["/metrics/resource", "/stats/summary", "/exec/default/box/main?command=id"] {
        assert_eq!(page(path, &[]), "Unauthorized\n", "{path} without a certificate");
    }
}

fn local_commands_need_no_api_server(node: &Node) {
    let berth = |command: &str, words: &[&str]| {
        let mut berth = node.namespace().command(crate::node::berth());
        berth.arg(command).args(node.dir_flags()).args(words);
        berth
    };
    let script = "cat; echo err >&2; exit 7";
    let words = ["box", "-c", "main", "-i", "--", "sh", "-c", script];
    let output = fed(&mut berth("exec", &words), b"through the socket\n");
    assert_eq!(output.status.code(), Some(7), "{}", told(&output));
    assert_eq!(text(&output), "through the socket\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    let output = berth("exec", &["box", "--", "true"]).output().unwrap();
    assert!(told(&output).contains("main, other"), "{}", told(&output));
    a_local_terminal_follows_its_size(node);
    let output = berth("stats", &[]).output().unwrap();
    assert!(text(&output).lines().any(|line| line.contains("box")), "{}", told(&output));

    let child = berth("port-forward", &["web", ":8080"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut forward = Forward(child);
    let mut line = String::new();
    BufReader::new(forward.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let near = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|l| l.split_once(' '));
    let near: u16 = near.unwrap_or_else(|| panic!("{line}")).0.parse().unwrap();
    let answer = node.namespace().within(|| {
        let mut stream = TcpStream::connect(("127.0.0.1", near)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answer.contains("web request"), "{answer}");
}

/// `script` gives berth a terminal, whose size changes once the command has begun.
fn a_local_terminal_follows_its_size(node: &Node) {
    let berth = format!(
        "'{}' exec {} box -c other",
        crate::node::berth().display(),
        node.dir_flags().iter().map(|flag| format!("'{flag}'")).collect::<Vec<_>>().join(" ")
    );
    let inside = "stty size; tty; read line; echo got $line; touch /tmp/begun; \
                  until [ \"$(stty size)\" = \"40 90\" ]; do sleep 0.1; done; echo resized; exit 5";
    let line = format!(
        "stty rows 33 cols 77; (until {berth} -- test -e /tmp/begun; do sleep 0.1; done; \
         stty rows 40 cols 90 < /dev/tty) & {berth} -it -- sh -c '{inside}'; code=$?; stty -a; exit $code"
    );
    let mut command = node.namespace().command("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]);
    let output = fed(&mut command, b"typed\r");
    let shown = text(&output);
    assert_eq!(output.status.code(), Some(5), "{}", told(&output));
    for part in ["33 77", "/dev/pts/", "got typed", "resized"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(shown.contains(" icanon") && !shown.contains("-icanon"), "not as before: {shown}");
}

fn attach_feeds_the_first_process(node: &Node) {
    let mut attach = kubectl(node, By::WebSocket, &["attach", "-i", "cat"]);
    let output = fed(&mut attach, b"to the first process\n");
    assert!(text(&output).contains("to the first process"), "{}", told(&output));
    // The input was given once: its end was the end of the process.
    node.wait_phase("cat", "Succeeded");
    assert_eq!(node.kubectl(&["logs", "cat"]), "to the first process\n");
}

fn refusals_are_told(node: &Node) {
    let refused = |args: &[&str]| {
        let output = node.try_kubectl(args);
        assert!(!output.status.success(), "{args:?} succeeded");
        told(&output)
    };
    let missing = refused(&["exec", "box", "--", "/no/such/command"]);
    assert!(missing.contains("/no/such/command"), "{missing}");
    let ended = refused(&["exec", "box", "-c", "none", "--", "true"]);
    assert!(ended.contains("container none is not valid"), "{ended}");
    let unknown = refused(&["exec", "nobody", "--", "true"]);
    assert!(unknown.contains("\"nobody\" not found"), "{unknown}");
}
