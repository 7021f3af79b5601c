//! What the agent tells a service manager, and when.

use std::os::unix::net::UnixDatagram;

use crate::node::{NODE_IP, Node, berth, patience};

#[test]
fn a_service_manager_is_told_that_the_agent_is_ready_lives_and_stops() {
    let mut node = Node::prepare("node-1");
    node.uplink();
    let path = node.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(patience())).unwrap();
    let told = || {
        let mut bytes = [0; 64];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let mut command = node.namespace().command(berth());
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    command.arg("up").args(node.dir_flags()).args(["--node-name", "node-1", "--node-ip", NODE_IP]);
    node.spawn(command);
    assert_eq!(told(), "READY=1");
    for _ in 0..3 {
        assert_eq!(told(), "WATCHDOG=1");
    }
    node.stop_agent();
    let last = std::iter::repeat_with(told).find(|text| text != "WATCHDOG=1");
    assert_eq!(last.as_deref(), Some("STOPPING=1"));
    node.finish();
}
