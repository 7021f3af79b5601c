//! Network devices given to containers, in network namespaces of the test's own, as `ip` sees them.

#![allow(clippy::unwrap_used)]

mod bundle;
mod fixture;

use std::io::Read;
use std::process::{Child, Command, Stdio};

use bundle::Bundle;
use serde_json::{Value, json};

/// A network namespace that is there until dropped.
struct Network(Child);

impl Network {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 120"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        Self(child)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn enter(&self, program: &std::ffi::OsStr) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program).stdin(Stdio::null());
        command
    }

    /// Lines of commands of `ip`.
    fn configure(&self, lines: &str) {
        for line in lines.lines() {
            let output = self.enter("ip".as_ref()).args(line.split_whitespace()).output().unwrap();
            assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        }
    }

    /// What `ip` says of a device; nothing where there is none.
    fn device(&self, name: &str) -> Option<Value> {
        let output = self.enter("ip".as_ref()).args(["-j", "addr", "show"]).output().unwrap();
        let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        list.into_iter().find(|device| device["ifname"] == name)
    }

    /// The bundle's runtime, run by somebody of this network.
    fn runtime(&self, bundle: &Bundle, arguments: &[&str]) -> Command {
        let command = bundle.command(arguments);
        let mut entered = self.enter(command.get_program());
        entered.args(command.get_args());
        entered
    }

    /// Makes and starts a container whose standard output is of no interest.
    fn start(&self, bundle: &Bundle) -> String {
        bundle.write();
        let id = bundle.id();
        let log = bundle.path().join("log");
        let path = bundle.path().to_str().unwrap();
        let run = ["--log", log.to_str().unwrap(), "run", "--detach", "--bundle", path, &id];
        // The container keeps the streams.
        let mut command = self.runtime(bundle, &run);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{}", std::fs::read_to_string(log).unwrap_or_default());
        id
    }

    /// What the runtime says of a container that cannot be made.
    fn refusal(&self, bundle: &Bundle) -> String {
        bundle.write();
        let path = bundle.path().to_str().unwrap();
        let output =
            self.runtime(bundle, &["run", "--bundle", path, &bundle.id()]).output().unwrap();
        assert!(!output.status.success());
        let left = std::fs::read_dir(bundle.path().join("state")).into_iter().flatten().count();
        assert_eq!(left, 0, "a container is left");
        text(&output.stderr)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn with_devices(script: &str, devices: Value) -> Bundle {
    let mut bundle = Bundle::new(script);
    bundle.spec["linux"]["netDevices"] = devices;
    bundle
}

fn join(bundle: &mut Bundle, path: &str) {
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({"type": "network", "path": path}));
}

/// The addresses of a device that are worth a comparison.
fn addresses(device: &Value) -> Vec<Value> {
    let all = device["addr_info"].as_array().unwrap().iter();
    let known = ["local", "address", "prefixlen", "scope", "broadcast", "noprefixroute", "metric"];
    all.map(|one| {
        let kept = known.iter().filter(|key| !one[*key].is_null());
        kept.map(|key| ((*key).to_owned(), one[*key].clone())).collect()
    })
    .collect()
}

fn is_up(device: &Value) -> bool {
    device["flags"].as_array().unwrap().contains(&json!("UP"))
}

/// What of `one` does not change with time.
fn shown(network: &Network) -> (bool, Value, Vec<Value>) {
    let device = network.device("one").unwrap();
    let known = |one: &Value| one["scope"] == "global";
    let addresses = addresses(&device).into_iter().filter(known).collect();
    (is_up(&device), device["mtu"].clone(), addresses)
}

const ADDRESSED: &str = "link add one type veth peer name other
link set one mtu 1400 address 02:00:00:00:00:77
link set one up
addr add 192.0.2.7/24 broadcast 192.0.2.255 dev one
addr add 192.0.2.8/24 dev one
addr add 198.51.100.1 peer 198.51.100.2/32 dev one
addr add 2001:db8::7/64 dev one nodad noprefixroute
addr add 203.0.113.1/32 scope link dev one
addr add 2001:db8:1::9/64 dev one valid_lft 900 preferred_lft 900";

#[test]
fn a_device_comes_with_its_lasting_global_addresses_and_is_up() {
    let (host, inside) = (Network::new(), Network::new());
    host.configure(ADDRESSED);
    // Both namespaces number their devices from the same number on.
    inside.configure("link add name in-the-way type veth peer name too");
    let before = host.device("one").unwrap();
    let mut bundle = with_devices("sleep 60", json!({"one": {"name": "inner"}}));
    join(&mut bundle, &inside.path());
    let id = host.start(&bundle);
    assert_eq!((host.device("one"), inside.device("one")), (None, None));
    let after = inside.device("inner").unwrap();
    assert!(is_up(&after), "{after}");
    assert_eq!((&after["mtu"], &after["address"]), (&json!(1400), &json!("02:00:00:00:00:77")));
    let lasting = |one: &Value| one["scope"] == "global" && one["local"] != "2001:db8:1::9";
    let expected: Vec<Value> = addresses(&before).into_iter().filter(lasting).collect();
    let kept: Vec<Value> =
        addresses(&after).into_iter().filter(|one| one["scope"] == "global").collect();
    assert_eq!(expected.len(), 4, "{before}");
    assert_eq!(kept, expected);
    assert!(!after.to_string().contains("203.0.113.1"), "{after}");
    // It belongs to the namespace, not to the container.
    assert!(host.runtime(&bundle, &["delete", "--force", &id]).status().unwrap().success());
    assert!(inside.device("inner").is_some_and(|device| is_up(&device)));
}

#[test]
fn in_a_namespace_of_the_container_s_own_the_kernel_may_number_names() {
    let host = Network::new();
    host.configure(
        "link add name a type veth peer name a-peer\nlink add name b type veth peer name b-peer\n\
         addr add 192.0.2.1/24 dev a",
    );
    let bundle = with_devices("sleep 60", json!({"a": {"name": "net%d"}, "b": {"name": "net%d"}}));
    let id = host.start(&bundle);
    let state = host.runtime(&bundle, &["state", &id]).output().unwrap();
    let state: Value = serde_json::from_slice(&state.stdout).unwrap();
    let output = Command::new("nsenter")
        .args(["-t", &state["pid"].to_string(), "--net", "ip", "-j", "addr"])
        .output()
        .unwrap();
    let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = list.iter().map(|device| device["ifname"].as_str().unwrap()).collect();
    assert_eq!(names, ["lo", "net0", "net1"]);
    assert!(list[1..].iter().all(is_up), "{list:?}");
    assert_eq!(list[1]["addr_info"][0]["local"], "192.0.2.1");
    assert!(host.runtime(&bundle, &["delete", "--force", &id]).status().unwrap().success());
}

#[test]
fn a_user_namespace_s_container_gets_its_devices_too() {
    let host = Network::new();
    host.configure("link add one type veth peer name other\naddr add 192.0.2.1/24 dev one");
    let script = "grep -c one: /proc/net/dev; readlink /proc/self/ns/user";
    let mut bundle = with_devices(script, json!({"one": {}}));
    let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65_536}]);
    bundle.spec["linux"]["uidMappings"] = map.clone();
    bundle.spec["linux"]["gidMappings"] = map;
    bundle.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    let output = host.runtime(&bundle, &["run", "--bundle", path, &bundle.id()]).output().unwrap();
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{errors}");
    let own = std::fs::read_link("/proc/self/ns/user").unwrap();
    assert!(said.starts_with("1\n") && !said.contains(own.to_str().unwrap()), "{said}");
}

#[test]
fn what_cannot_be_moved_stays_as_it_was_and_is_named() {
    let (host, inside) = (Network::new(), Network::new());
    host.configure(ADDRESSED);
    inside.configure("link add taken type veth peer name peer");
    let before = shown(&host);
    let inside_path = inside.path();
    let host_path = host.path();
    let cases = [
        (json!({"one": {}, "two": {}}), &inside_path, "linux.netDevices[two]: the host has no"),
        (json!({"one": {"name": "taken"}}), &inside_path, "has a device taken already"),
        (json!({"one": {"name": "lo"}}), &inside_path, "has a device lo already"),
        (json!({"one": {"name": "x"}}), &host_path, "is the host's own"),
        (json!({"lo": {"name": "x"}}), &inside_path, "linux.netDevices[lo]: move it: "),
        (json!({"one": {"name": "a b"}}), &inside_path, "linux.netDevices[one]: "),
    ];
    for (devices, path, reason) in cases {
        let mut bundle = with_devices("true", devices.clone());
        join(&mut bundle, path);
        let message = host.refusal(&bundle);
        assert!(message.contains(reason), "{devices}: {message}");
        assert_eq!(shown(&host), before, "{devices}");
        assert_eq!(inside.device("one"), None);
    }
    let mut bundle = with_devices("true", json!({"one": {}}));
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    let message = host.refusal(&bundle);
    assert!(message.contains("without a network namespace of the container's own"), "{message}");
    assert_eq!(shown(&host), before);
}

#[test]
fn a_container_that_fails_later_leaves_the_device_to_its_namespace() {
    let (host, inside) = (Network::new(), Network::new());
    host.configure("link add one type veth peer name other");
    let mut bundle = with_devices("true", json!({"one": {}}));
    bundle.spec["process"]["args"] = json!(["/nowhere"]);
    join(&mut bundle, &inside.path());
    let message = host.refusal(&bundle);
    assert!(message.contains("/nowhere"), "{message}");
    assert!(inside.device("one").is_some() && host.device("one").is_none());
}
