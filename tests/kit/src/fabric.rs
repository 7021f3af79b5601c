//! Several nodes on one machine: network namespaces on one link.
//!
//! Owns the namespaces, the bridge between them and their addresses. Made inside
//! [`crate::Private`], so that all of it ends with the test.

use std::net::Ipv4Addr;
use std::process::Command;

use crate::namespaces::{Private, run};

/// A network namespace with a name, as `ip netns` has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes it, with loopback up.
    ///
    /// # Panics
    /// The name is taken, or privilege is missing.
    pub fn create(name: &str) -> Netns {
        run("ip", &["netns", "add", name]);
        run("ip", &["-n", name, "link", "set", "lo", "up"]);
        Netns { name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that pins it.
    pub fn path(&self) -> std::path::PathBuf {
        std::path::Path::new("/run/netns").join(&self.name)
    }

    /// A command that will run in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a program in it that must succeed, and returns what it printed.
    ///
    /// # Panics
    /// It does not succeed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let mut all = vec!["netns", "exec", self.name(), program];
        all.extend(arguments);
        run("ip", &all)
    }
}

/// Nodes that share a link: node n is 172.31.0.n on its `eth0`, this test 172.31.0.254.
#[derive(Debug)]
pub struct Fabric {
    nodes: Vec<Netns>,
}

const BRIDGE: &str = "fabric";

impl Fabric {
    /// Makes `count` nodes, called node1 and on.
    ///
    /// # Panics
    /// Missing privilege, or the test's network namespace has a fabric already.
    pub fn create(_inside: &Private, count: u8) -> Fabric {
        assert!((1..=200).contains(&count), "a fabric has 1 to 200 nodes");
        run("ip", &["link", "add", BRIDGE, "type", "bridge"]);
        run("ip", &["link", "set", BRIDGE, "up"]);
        run("ip", &["address", "add", "172.31.0.254/24", "dev", BRIDGE]);
        let nodes = (1..=count).map(|number| {
            let node = Netns::create(&format!("node{number}"));
            let port = format!("port{number}");
            run(
                "ip",
                &[
                    "link",
                    "add",
                    &port,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    node.name(),
                ],
            );
            run("ip", &["link", "set", &port, "master", BRIDGE, "up"]);
            let address = format!("{}/24", Fabric::address_of(number));
            run("ip", &["-n", node.name(), "address", "add", &address, "dev", "eth0"]);
            run("ip", &["-n", node.name(), "link", "set", "eth0", "up"]);
            run("ip", &["-n", node.name(), "route", "add", "default", "via", "172.31.0.254"]);
            node
        });
        Fabric { nodes: nodes.collect() }
    }

    /// The nodes, in order.
    pub fn nodes(&self) -> &[Netns] {
        &self.nodes
    }

    /// The address of the node with this number, counted from 1.
    pub fn address_of(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 0, number)
    }
}
