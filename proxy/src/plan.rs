//! From what clients may dial to the elements that make it so, and from two such states to the
//! few elements between them.
//!
//! Pure. Owns: which elements a port needs, the order of its endpoints in slots, and both
//! diffs: the small one against what is known to be programmed, the full one against a dump.
//! Applying either to the state it was made from gives the other state.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use berth_nft::{Data, Element, Error, Family, Field, Key, Value};
use ipnet::IpNet;

use crate::model::{Absent, Backend, Facts, MasqueradeScope, Place, Vip, VipKey, VipKind};
use crate::names::{Audience, MAX_BACKENDS, SMALL, Scope, SetKind, fan_verdict};

/// A set of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetRef {
    /// Family.
    pub family: Family,
    /// Which of its sets.
    pub kind: SetKind,
}

/// One change of one element. Deletions of a set come before its additions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ElementChange {
    /// Delete an element.
    Delete(SetRef, Element),
    /// Add an element.
    Add(SetRef, Element),
}

/// Elements by set and key, as the kernel holds them.
pub type Elements = BTreeMap<(SetRef, Key), Value>;

/// What is programmed, with endpoints in the order of their slots.
#[derive(Debug, Default)]
pub struct Program {
    vips: HashMap<VipKey, Vip>,
    shared: HashMap<(SetRef, Element), usize>,
}

/// Changes, and the state after them.
#[derive(Debug)]
pub struct Plan {
    /// What to change, deletions first in each set.
    pub changes: Vec<ElementChange>,
    arranged: Vec<(VipKey, Option<Vip>)>,
    counts: BTreeMap<(SetRef, Element), isize>,
}

impl Program {
    /// Plans for some ports to become what is wanted, `None` to go.
    ///
    /// # Errors
    /// None in practice: all names are constants.
    pub fn plan(&self, wanted: Vec<(VipKey, Option<Vip>)>) -> Result<Plan, Error> {
        let mut plan = Plan { changes: Vec::new(), arranged: Vec::new(), counts: BTreeMap::new() };
        for (key, vip) in wanted {
            let before = self.vips.get(&key);
            let after = vip.map(|vip| arranged(before, vip));
            if before == after.as_ref() {
                continue;
            }
            plan.one(key, before, after.as_ref())?;
            plan.arranged.push((key, after));
        }
        for (shared, change) in &plan.counts {
            let before = self.shared.get(shared).copied().unwrap_or(0);
            let (set, element) = shared.clone();
            match (before, before.saturating_add_signed(*change)) {
                (0, 1..) => plan.changes.push(ElementChange::Add(set, element)),
                (1.., 0) => plan.changes.push(ElementChange::Delete(set, element)),
                _ => {}
            }
        }
        Ok(plan)
    }

    /// Takes note that a plan was applied.
    pub fn applied(&mut self, plan: Plan) {
        for (key, vip) in plan.arranged {
            match vip {
                Some(vip) => drop(self.vips.insert(key, vip)),
                None => drop(self.vips.remove(&key)),
            }
        }
        for (shared, change) in plan.counts {
            let count = self.shared.entry(shared.clone()).or_insert(0);
            *count = count.saturating_add_signed(change);
            if *count == 0 {
                self.shared.remove(&shared);
            }
        }
    }

    /// What is programmed for a port.
    pub fn vip(&self, key: &VipKey) -> Option<&Vip> {
        self.vips.get(key)
    }

    /// All that is programmed.
    pub fn vips(&self) -> impl Iterator<Item = (&VipKey, &Vip)> {
        self.vips.iter()
    }

    /// All elements of the program.
    ///
    /// # Errors
    /// None in practice: all names are constants.
    pub fn elements(&self) -> Result<Elements, Error> {
        let mut all = Elements::new();
        let mut out = Vec::new();
        for (key, vip) in &self.vips {
            own_elements(key, vip, &mut out)?;
            out.extend(shared_elements(key, vip));
            all.extend(out.drain(..).map(|(set, e)| ((set, e.key), e.value)));
        }
        Ok(all)
    }
}

impl Plan {
    /// The ports that change.
    pub fn changed(&self) -> impl Iterator<Item = (&VipKey, Option<&Vip>)> {
        self.arranged.iter().map(|(key, vip)| (key, vip.as_ref()))
    }

    fn one(&mut self, key: VipKey, before: Option<&Vip>, after: Option<&Vip>) -> Result<(), Error> {
        let (mut old, mut new) = (Vec::new(), Vec::new());
        if let Some(vip) = before {
            own_elements(&key, vip, &mut old)?;
            for shared in shared_elements(&key, vip) {
                *self.counts.entry(shared).or_insert(0) -= 1;
            }
        }
        if let Some(vip) = after {
            own_elements(&key, vip, &mut new)?;
            for shared in shared_elements(&key, vip) {
                *self.counts.entry(shared).or_insert(0) += 1;
            }
        }
        let (old, new): (BTreeSet<_>, BTreeSet<_>) =
            (old.into_iter().collect(), new.into_iter().collect());
        let gone = old.difference(&new).cloned();
        self.changes.extend(gone.map(|(set, element)| ElementChange::Delete(set, element)));
        let come = new.difference(&old).cloned();
        self.changes.extend(come.map(|(set, element)| ElementChange::Add(set, element)));
        Ok(())
    }
}

/// Puts a wanted port's endpoints into slots, moving as few as possible.
fn arranged(before: Option<&Vip>, mut wanted: Vip) -> Vip {
    let old = |audience| before.map_or(&[][..], |vip| vip.list(audience));
    wanted.backends = arrange(old(Audience::Any), &wanted.backends);
    if let VipKind::LocalExternal(local) = &mut wanted.kind {
        *local = arrange(old(Audience::Outside), local);
    }
    wanted
}

/// Puts endpoints into slots: who stays keeps the slot, new ones fill the holes, and the last
/// ones move into holes that remain. At most [`MAX_BACKENDS`] are used.
pub fn arrange(before: &[Backend], wanted: &[Backend]) -> Vec<Backend> {
    let places: BTreeMap<SocketAddr, Place> =
        wanted.iter().take(MAX_BACKENDS).map(|backend| (backend.address, backend.place)).collect();
    let old: BTreeSet<SocketAddr> = before.iter().map(|backend| backend.address).collect();
    let mut fresh = places.keys().filter(|address| !old.contains(address));
    let mut slots: Vec<Option<SocketAddr>> = before
        .iter()
        .map(|backend| {
            if places.contains_key(&backend.address) {
                Some(backend.address)
            } else {
                fresh.next().copied()
            }
        })
        .collect();
    slots.extend(fresh.map(|address| Some(*address)));
    let mut at = 0;
    while at < slots.len() {
        if slots[at].is_none() {
            slots.swap_remove(at);
        } else {
            at += 1;
        }
    }
    slots
        .into_iter()
        .flatten()
        .filter_map(|address| Some(Backend { address, place: *places.get(&address)? }))
        .collect()
}

/// The key of a port in our sets.
pub(crate) fn dialled(key: &VipKey) -> Data {
    Data::from([
        Field::from(key.address),
        Field::Proto(key.protocol.number()),
        Field::Port(key.port),
    ])
}

pub(crate) fn family(key: &VipKey) -> Family {
    if key.address.is_ipv6() { Family::Ip6 } else { Family::Ip }
}

/// The elements that belong to one port alone.
fn own_elements(key: &VipKey, vip: &Vip, out: &mut Vec<(SetRef, Element)>) -> Result<(), Error> {
    let set = |kind| SetRef { family: family(key), kind };
    let mut member = |kind| out.push((set(kind), Element::key(dialled(key))));
    match &vip.kind {
        VipKind::ClusterIp => {}
        VipKind::External => member(SetKind::Marked),
        VipKind::LocalExternal(_) => member(SetKind::Local),
    }
    let hidden = matches!(&vip.kind, VipKind::LocalExternal(local) if local.is_empty());
    match (vip.backends.is_empty(), vip.absent) {
        (true, Absent::Refuse) => member(SetKind::Refuse),
        (true, Absent::Drop) => member(SetKind::Drop),
        (false, _) if hidden => member(SetKind::Drop),
        (false, _) => {}
    }
    vip.lists().try_for_each(|(scope, list)| list_elements(scope, key, list, out))
}

/// The elements of one list of endpoints.
fn list_elements(
    scope: Scope,
    key: &VipKey,
    backends: &[Backend],
    out: &mut Vec<(SetRef, Element)>,
) -> Result<(), Error> {
    let set = |kind| SetRef { family: family(key), kind };
    match backends.len() {
        0 => {}
        fan if fan <= SMALL => {
            let kind = SetKind::Fan(scope, fan as u16);
            out.push((set(kind), Element::key(dialled(key))));
        }
        fan => {
            let verdict = fan_verdict(scope, fan)?;
            out.push((set(SetKind::BigFan(scope)), Element::verdict(dialled(key), verdict)));
        }
    }
    for (slot, backend) in (0..).zip(backends) {
        let to = [Field::from(backend.address.ip()), Field::Port(backend.address.port())];
        out.push((set(SetKind::Slot(scope, slot)), Element::data(dialled(key), to)));
    }
    Ok(())
}

/// The elements that several ports may need.
fn shared_elements(key: &VipKey, vip: &Vip) -> BTreeSet<(SetRef, Element)> {
    let set = |kind| SetRef { family: family(key), kind };
    let mut out: BTreeSet<_> = vip
        .lists()
        .flat_map(|(_, list)| list)
        .filter(|backend| backend.place == Place::Here)
        .map(|backend| {
            let address = Field::from(backend.address.ip());
            (set(SetKind::Hairpin), Element::key([address, address]))
        })
        .collect();
    if vip.kind == VipKind::ClusterIp {
        let address = Field::from(key.address);
        out.insert((set(SetKind::ClusterIps), Element::key(address)));
    }
    out
}

/// The elements that follow from the facts. `gate` says whether Services are still closed.
pub fn fact_elements(facts: &Facts, gate: Gate) -> Elements {
    let mut out = Elements::new();
    for family in [Family::Ip, Family::Ip6] {
        let mut put = |kind, cidrs: &[IpNet]| {
            for key in prefixes(family, cidrs) {
                out.insert((SetRef { family, kind }, key), Value::None);
            }
        };
        put(SetKind::Pods, &facts.pod_cidrs);
        put(SetKind::ServiceCidrs, &facts.service_cidrs);
        if gate == Gate::Closed {
            put(SetKind::Gate, &facts.service_cidrs);
        }
        match facts.masquerade {
            MasqueradeScope::All => {}
            MasqueradeScope::OffCluster if prefixes(family, &facts.pod_cidrs).is_empty() => {
                put(SetKind::Kept, &[everything(family)]);
            }
            MasqueradeScope::OffCluster => put(SetKind::Kept, &facts.pod_cidrs),
        }
    }
    out
}

/// Whether traffic to Services passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Nothing leaves for the Service range: nothing is programmed yet.
    Closed,
    /// Services are programmed.
    Open,
}

fn everything(family: Family) -> IpNet {
    match family {
        Family::Ip6 => IpNet::V6(ipnet::Ipv6Net::default()),
        _ => IpNet::V4(ipnet::Ipv4Net::default()),
    }
}

/// The prefixes of a family, without those inside another one: an interval set refuses overlap.
fn prefixes(family: Family, cidrs: &[IpNet]) -> Vec<Key> {
    let of_family = cidrs
        .iter()
        .filter(|cidr| matches!(cidr.network(), IpAddr::V6(_)) == (family == Family::Ip6));
    IpNet::aggregate(&of_family.copied().collect())
        .into_iter()
        .map(|cidr| Key::prefix(cidr.network(), cidr.prefix_len()))
        .collect()
}

/// The endpoints a dump holds in slots for a port, so that adoption keeps their order.
pub fn observed_slots(observed: &Elements, key: &VipKey, scope: Scope) -> Vec<Backend> {
    let family = family(key);
    let dialled = Key::One(dialled(key));
    let types = match family {
        Family::Ip6 => [berth_nft::DataType::Ipv6, berth_nft::DataType::Service],
        _ => [berth_nft::DataType::Ipv4, berth_nft::DataType::Service],
    };
    (0..MAX_BACKENDS as u16)
        .map_while(|slot| {
            let set = SetRef { family, kind: SetKind::Slot(scope, slot) };
            let Value::Data(data) = observed.get(&(set, dialled.clone()))? else { return None };
            match *data.fields(&types)?.as_slice() {
                [Field::Ipv4(v4), Field::Port(port)] => Some(SocketAddr::new(v4.into(), port)),
                [Field::Ipv6(v6), Field::Port(port)] => Some(SocketAddr::new(v6.into(), port)),
                _ => None,
            }
        })
        .map(|address| Backend { address, place: Place::Elsewhere })
        .collect()
}

/// A program for all that is wanted, with endpoints in the slots a dump holds them in.
pub fn adopt(observed: &Elements, wanted: Vec<(VipKey, Vip)>) -> Program {
    let mut program = Program::default();
    for (key, mut vip) in wanted {
        let scope = |audience| Scope { audience, hold: vip.hold };
        let slots = |audience| observed_slots(observed, &key, scope(audience));
        vip.backends = arrange(&slots(Audience::Any), &vip.backends);
        if let VipKind::LocalExternal(local) = &mut vip.kind {
            *local = arrange(&slots(Audience::Outside), local);
        }
        for shared in shared_elements(&key, &vip) {
            *program.shared.entry(shared).or_insert(0) += 1;
        }
        program.vips.insert(key, vip);
    }
    program
}

/// The changes from one set of elements to another.
pub fn diff(observed: &Elements, desired: &Elements) -> Vec<ElementChange> {
    let element = |key: &Key, value: &Value| Element {
        key: key.clone(),
        value: value.clone(),
        timeout: None,
    };
    let gone = observed.iter().filter(|(key, value)| desired.get(key) != Some(value));
    let come = desired.iter().filter(|(key, value)| observed.get(key) != Some(value));
    gone.map(|((set, key), value)| ElementChange::Delete(*set, element(key, value)))
        .chain(come.map(|((set, key), value)| ElementChange::Add(*set, element(key, value))))
        .collect()
}

#[cfg(test)]
mod tests;
