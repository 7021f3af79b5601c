//! Network devices of the host that become the container's: `linux.netDevices`.
//!
//! ```text
//! child, in its network namespace ─ route socket ─► keeper, in the host's
//!                                                     │ lists both ─ checks all ─ moves one by one
//!   goes on ◄────────────────────── release ──────────┘ (addresses again, up)
//! ```
//! All are checked before the first is moved. Once moved they belong to the namespace: whatever happens
//! to the container, nobody here fetches them back. OCI runtime spec, `config-linux.md`, Network Devices.
//!
//! Differs: runc sets a device down before it reads the addresses, which loses those of IPv6; a device
//! that the kernel refuses to move is left as it was.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::namespaces::Namespaces;
use super::{Doing, Error, Result};
use crate::netlink::{Destination, Link, Route};
use crate::sys;

/// Without the zero that ends it: `IFNAMSIZ`.
const MAX_NAME_BYTES: usize = 15;

/// A network device to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// What the host calls it.
    outside: String,
    /// What the container calls it; with `%d` the kernel chooses a number.
    inside: String,
}

impl Interface {
    fn field(&self) -> String {
        format!("linux.netDevices[{}]", self.outside)
    }

    fn is_template(&self) -> bool {
        self.inside.contains('%')
    }
}

/// Plans what is moved, in the order of the host's names.
pub(super) fn plan(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<Interface>> {
    let devices: BTreeMap<_, _> = linux.net_devices().iter().flatten().collect();
    if !devices.is_empty() && !namespaces.has(LinuxNamespaceType::Network) {
        let reason = "is given without a network namespace of the container's own";
        return Err(Error::invalid("linux.netDevices", reason));
    }
    let mut names = HashSet::new();
    let mut interfaces = Vec::new();
    for (outside, device) in devices {
        let inside = device.name().as_ref().filter(|name| !name.is_empty()).unwrap_or(outside);
        let one = Interface { outside: outside.clone(), inside: inside.clone() };
        if !is_name(outside) || outside.contains('%') {
            return Err(Error::invalid(one.field(), "is no name of a network device"));
        }
        if !is_name(inside) || !is_plain_or_template(inside) {
            let reason = format!("{inside:?} is no name of a network device");
            return Err(Error::invalid(one.field(), reason));
        }
        if !one.is_template() && !names.insert(one.inside.clone()) {
            let reason = format!("another device is to be called {inside} as well");
            return Err(Error::invalid(one.field(), reason));
        }
        interfaces.push(one);
    }
    Ok(interfaces)
}

fn is_name(name: &str) -> bool {
    let other = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(other)
}

fn is_plain_or_template(name: &str) -> bool {
    match name.split_once('%') {
        None => true,
        Some((_, rest)) => rest.starts_with('d') && !rest.contains('%'),
    }
}

/// A move that nothing is known to be in the way of.
#[derive(Debug, PartialEq, Eq)]
struct Move<'a> {
    interface: &'a Interface,
    outside: u32,
    /// Its index in the container, where it would not find it by a template.
    inside: u32,
}

/// What to do, from the links of the host and of the container.
fn moves<'a>(
    interfaces: &'a [Interface],
    outside: &[Link],
    inside: &[Link],
) -> Result<Vec<Move<'a>>> {
    let find = |links: &[Link], name: &str| {
        links.iter().find(|link| link.name == name.as_bytes()).map(|link| link.index)
    };
    let mut taken: HashSet<u32> = inside.iter().map(|link| link.index).collect();
    let mut moves = Vec::new();
    for interface in interfaces {
        let Some(index) = find(outside, &interface.outside) else {
            let reason = "the host has no network device of that name";
            return Err(Error::invalid(interface.field(), reason));
        };
        if !interface.is_template() && find(inside, &interface.inside).is_some() {
            let reason = format!(
                "the container's network namespace has a device {} already",
                interface.inside
            );
            return Err(Error::invalid(interface.field(), reason));
        }
        let inside = match taken.contains(&index) {
            false => index,
            true => taken.iter().max().map_or(1, |index| index.saturating_add(1)),
        };
        taken.insert(inside);
        moves.push(Move { interface, outside: index, inside });
    }
    Ok(moves)
}

/// Moves devices of the caller's network namespace to that of a route socket. Blocking.
pub(crate) fn bring(interfaces: &[Interface], socket: OwnedFd) -> Result<()> {
    let operation = || "linux.netDevices: find the network namespaces";
    let mut outside = Route::open().doing(operation)?;
    let mut inside = Route::from(socket);
    let namespace = sys::network_namespace(inside.as_fd()).doing(operation)?;
    let own = sys::network_namespace(outside.as_fd()).doing(operation)?;
    let identity = |namespace: &OwnedFd| {
        rustix::fs::fstat(namespace).map(|stat| (stat.st_dev, stat.st_ino)).doing(operation)
    };
    if identity(&namespace)? == identity(&own)? {
        let reason = "the network namespace of the path is the host's own";
        return Err(Error::invalid("linux.netDevices", reason));
    }
    let listing = || "linux.netDevices: list network devices";
    let links = (outside.links().doing(listing)?, inside.links().doing(listing)?);
    for one in moves(interfaces, &links.0, &links.1)? {
        let field = one.interface.field();
        let addresses = outside.addresses().doing(|| format!("{field}: read its addresses"))?;
        let name = &one.interface.inside;
        let to = Destination { namespace: namespace.as_fd(), name, index: one.inside };
        outside.send_away(one.outside, &to).doing(|| format!("{field}: move it"))?;
        let kept = |address: &&crate::netlink::Address| {
            address.link == one.outside && address.is_permanent_and_global()
        };
        for address in addresses.iter().filter(kept) {
            inside
                .add_address(one.inside, address)
                .doing(|| format!("{field}: give it its address again"))?;
        }
        inside.set_up(one.inside).doing(|| format!("{field}: set it up"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn planned(devices: Value) -> Result<Vec<Interface>> {
        let linux = json!({"netDevices": devices});
        let namespaces =
            Namespaces { create: LinuxNamespaceType::Network as u64, ..Namespaces::default() };
        plan(&serde_json::from_value(linux).unwrap(), &namespaces)
    }

    fn refusal(devices: Value) -> String {
        planned(devices).unwrap_err().to_string()
    }

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.as_bytes().to_owned() }
    }

    #[test]
    fn devices_keep_their_names_or_get_those_they_are_given() {
        let plan = planned(
            json!({"b": {"name": "inner"}, "a": {}, "c": {"name": ""}, "d": {"name": "x%d"}}),
        );
        let names: Vec<_> = plan
            .unwrap()
            .into_iter()
            .map(|one| format!("{}>{}", one.outside, one.inside))
            .collect();
        assert_eq!(names, ["a>a", "b>inner", "c>c", "d>x%d"]);
        assert_eq!(planned(json!({})).unwrap(), []);
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(16);
        for name in
            ["", ".", "..", "a/b", "a:1", "a b", "a\tb", "a\nb", "a\0b", "eth%d", long.as_str()]
        {
            let message = refusal(json!({name: {}}));
            let expected = format!("linux.netDevices[{name}]: is no name of a network device");
            assert_eq!(message, expected);
        }
        for name in [".", "..", "a/b", "a:1", "a b", "%", "a%s", "%d%d", "a%d%", long.as_str()] {
            let message = refusal(json!({"eth0": {"name": name}}));
            let expected =
                format!("linux.netDevices[eth0]: {name:?} is no name of a network device");
            assert_eq!(message, expected);
        }
        let fifteen = "a".repeat(15);
        assert!(planned(json!({fifteen: {"name": "ä"}})).is_ok());
    }

    #[test]
    fn two_devices_cannot_have_one_name() {
        let message = refusal(json!({"a": {"name": "x"}, "b": {"name": "x"}}));
        assert_eq!(message, "linux.netDevices[b]: another device is to be called x as well");
        assert!(planned(json!({"a": {"name": "x%d"}, "b": {"name": "x%d"}})).is_ok());
        assert!(planned(json!({"a": {"name": "b"}, "b": {"name": "a"}})).is_ok());
    }

    #[test]
    fn without_a_network_namespace_of_its_own_a_container_gets_none() {
        let linux: Linux = serde_json::from_value(json!({"netDevices": {"a": {}}})).unwrap();
        let message = plan(&linux, &Namespaces::default()).unwrap_err().to_string();
        let expected =
            "linux.netDevices: is given without a network namespace of the container's own";
        assert_eq!(message, expected);
        let none: Linux = serde_json::from_value(json!({"netDevices": {}})).unwrap();
        assert_eq!(plan(&none, &Namespaces::default()).unwrap(), []);
    }

    #[test]
    fn all_are_checked_before_one_is_moved_and_no_index_is_used_twice() {
        let plan = planned(json!({"a": {}, "b": {"name": "x"}, "c": {"name": "lo%d"}})).unwrap();
        let outside = [link(1, "lo"), link(2, "a"), link(3, "b"), link(9, "c")];
        let inside = [link(1, "lo"), link(3, "y")];
        let moves = |inside: &[Link]| {
            let moves = super::moves(&plan, &outside, inside)?;
            Ok(moves.iter().map(|one| (one.outside, one.inside)).collect::<Vec<_>>())
        };
        assert_eq!(moves(&inside).unwrap(), [(2, 2), (3, 4), (9, 9)]);
        let refused: Result<_> = moves(&[link(1, "x")]);
        let message = refused.unwrap_err().to_string();
        let expected =
            "linux.netDevices[b]: the container's network namespace has a device x already";
        assert_eq!(message, expected);
        let missing = super::moves(&plan, &outside[..3], &inside).unwrap_err().to_string();
        assert_eq!(missing, "linux.netDevices[c]: the host has no network device of that name");
    }
}
