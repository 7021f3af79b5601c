//! The fixed rules, and the sets and maps whose elements move.
//!
//! Owns the data plane's shape. Every Service is only elements; the rules are the same at none
//! and at ten thousand Services, so a change costs the same at both. Not owned: which elements
//! there are (`plan`), and talking to the kernel (`dataplane`).
//!
//! Where a packet meets the table `berth` of its family (names and layout are not an API):
//! ```text
//! prerouting, output  -300  guard-*        loopback from outside; the Service range until synced
//! prerouting, output  -100  nat-*          services: mark, choose, translate
//! input, forward, output 0  filter-*       new and still untranslated: refuse or drop
//! postrouting          100  nat-postrouting  masquerade what was marked, and hairpins
//!
//! services:  address.protocol.port in @marked        mark
//!            address in @cluster-ips, source not kept mark
//!            … in @local, from outside                goto local-services
//!            … in @svc1 goto n1, …, @svc16 goto n16, @svc-big map to nN
//!            @ep0, when a change came in between
//! nN:        random 0..N → goto pick0 … pick(N-1)
//! pickE:     translate to what @epE holds for address.protocol.port, or else @ep0
//! ```
//! `local-services` has the same inside with a prefix, for clients from outside of a Service
//! with external traffic policy Local. Fan-outs above 16 get their chains when first needed.
//!
//! Client affinity of N seconds has the same again, prefixed `holdN-`, made when first needed.
//! There, pickE remembers the client and what it dialled in @heldE for N seconds, and held sends
//! whoever is remembered back to pickE, before another choice is made. If the slot is empty by
//! then, the choice is made anew.
//!
//! Differs: kube-proxy writes a chain for each Service and endpoint; that makes each of its
//! syncs walk everything.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use berth_nft::{
    Base, Batch, Chain, CtState, DataType, Error, Family, Field, Hook, Load, Rule, Set, Table,
};

use crate::names::{
    Audience, SMALL, Scope, SetKind, entry_name, fan_name, fixed_kinds, held_name, pick_name,
    scope_kinds, set_name,
};

/// Name of our tables.
pub const TABLE: &str = "berth";
/// Mark of packets to be masqueraded. It is the bit kube-proxy uses, so that whoever keeps clear
/// of that one keeps clear of this.
pub(crate) const MARK: u32 = 0x4000;
/// Why the first slot is tried last. Each lookup of a packet sees the latest transaction, so one
/// that commits between two lookups can hide a port from both: it just left the one fan-out, or
/// the slot that was chosen. Whatever has an endpoint at all has one in the first slot.
const LATE: &str = "a change came between two lookups";
/// The most clients remembered in one slot of one affinity; more are not held.
const HELD_MAX: u32 = 1 << 17;

/// The ruleset of one family.
#[derive(Debug, Clone)]
pub struct Ruleset {
    family: Family,
    table: Table,
}

/// What exists in a table besides the fixed chains.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grown {
    /// Slots of scopes that have more than [`SMALL`].
    pub(crate) slots: BTreeMap<Scope, usize>,
    /// Fan-outs above [`SMALL`].
    pub(crate) fans: BTreeSet<(Scope, usize)>,
    /// Affinities.
    pub(crate) holds: BTreeSet<Scope>,
}

/// The type of an address of the family.
fn address_type(family: Family) -> DataType {
    if family == Family::Ip6 { DataType::Ipv6 } else { DataType::Ipv4 }
}

impl Ruleset {
    /// The ruleset of [`Family::Ip`] or [`Family::Ip6`].
    ///
    /// # Errors
    /// None in practice: all names are constants.
    pub fn new(family: Family) -> Result<Self, Error> {
        let bare = Self { family, table: Table::new(family, TABLE)? };
        let comment = format!("berth rules {:016x}", bare.fingerprint()?);
        Ok(Self { table: Table::new(family, TABLE)?.comment(&comment)?, ..bare })
    }

    /// The table. Its comment names the rules, so that another version's are recognized.
    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// The comment of a table with these rules.
    pub(crate) fn comment(&self) -> Result<String, Error> {
        Ok(format!("berth rules {:016x}", self.fingerprint()?))
    }

    fn fingerprint(&self) -> Result<u64, Error> {
        let mut hasher = DefaultHasher::new();
        for rule in self.rules()? {
            rule.exprs().hash(&mut hasher);
        }
        for kind in fixed_kinds() {
            self.set(kind)?.hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    /// The set or map of a kind.
    ///
    /// # Errors
    /// None in practice: all names are constants.
    pub(crate) fn set(&self, kind: SetKind) -> Result<Set, Error> {
        let table = Table::new(self.family, TABLE)?;
        let address = address_type(self.family);
        let key = [address, DataType::Proto, DataType::Service];
        let name = set_name(kind);
        match kind {
            SetKind::Fan(..)
            | SetKind::Refuse
            | SetKind::Drop
            | SetKind::Local
            | SetKind::Marked => Set::of_keys(&table, &name, &key),
            SetKind::BigFan(_) => Set::vmap(&table, &name, &key),
            SetKind::Slot(..) => Set::map(&table, &name, &key, &[address, DataType::Service]),
            SetKind::Held(scope, _) => {
                let key = [address, address, DataType::Proto, DataType::Service];
                let timeout = Duration::from_secs(scope.hold.unwrap_or(1).into());
                Ok(Set::of_keys(&table, &name, &key)?.dynamic(HELD_MAX).timeout(timeout))
            }
            SetKind::ClusterIps => Set::of_keys(&table, &name, &[address]),
            SetKind::Hairpin => Set::of_keys(&table, &name, &[address, address]),
            SetKind::Pods | SetKind::Kept | SetKind::ServiceCidrs | SetKind::Gate => {
                Ok(Set::of_keys(&table, &name, &[address])?.interval())
            }
        }
    }

    fn chain(&self, name: &str) -> Result<Chain, Error> {
        Chain::regular(&Table::new(self.family, TABLE)?, name)
    }

    fn base_chains(&self) -> Result<Vec<Chain>, Error> {
        let table = Table::new(self.family, TABLE)?;
        [
            ("guard-prerouting", Base::filter(Hook::Prerouting, -300)),
            ("guard-output", Base::filter(Hook::Output, -300)),
            ("nat-prerouting", Base::nat(Hook::Prerouting, -100)),
            ("nat-output", Base::nat(Hook::Output, -100)),
            ("filter-input", Base::filter(Hook::Input, 0)),
            ("filter-forward", Base::filter(Hook::Forward, 0)),
            ("filter-output", Base::filter(Hook::Output, 0)),
            ("nat-postrouting", Base::nat(Hook::Postrouting, 100)),
        ]
        .into_iter()
        .map(|(name, base)| Chain::base(&table, name, base))
        .collect()
    }

    fn small_chains(&self) -> Result<Vec<Chain>, Error> {
        let mut chains = vec![self.chain("absent")?, self.chain("refuse")?];
        for scope in Scope::FIXED {
            chains.extend(self.scope_chains(scope)?);
        }
        Ok(chains)
    }

    fn scope_chains(&self, scope: Scope) -> Result<Vec<Chain>, Error> {
        let mut names = vec![entry_name(scope)];
        if scope.hold.is_some() {
            names.push(held_name(scope));
        }
        names.extend((1..=SMALL).map(|fan| fan_name(scope, fan)));
        names.extend((0..SMALL).map(|slot| pick_name(scope, slot)));
        names.iter().map(|name| self.chain(name)).collect()
    }

    /// Writes the whole ruleset, without elements, over whatever the table holds.
    pub(crate) fn create(&self, batch: &mut Batch) -> Result<(), Error> {
        batch.add_table(&self.table);
        batch.delete_table(&self.table);
        batch.create_table(&self.table);
        for kind in fixed_kinds() {
            batch.add_set(&self.set(kind)?);
        }
        for chain in self.base_chains()?.iter().chain(&self.small_chains()?) {
            batch.add_chain(chain);
        }
        for rule in self.rules()? {
            batch.add_rule(&rule);
        }
        Ok(())
    }

    /// How many rules there are, for a check of what the kernel holds.
    pub(crate) fn rule_count(&self, grown: &Grown) -> Result<usize, Error> {
        let mut count = self.rules()?.len() + grown.fans.len();
        for (scope, slots) in &grown.slots {
            for slot in SMALL..*slots {
                count += self.slot_rules(*scope, slot)?.len();
            }
        }
        for scope in &grown.holds {
            count += self.scope_rules(*scope)?.len();
        }
        Ok(count)
    }

    /// All rules, in order.
    fn rules(&self) -> Result<Vec<Rule>, Error> {
        let mut rules = self.guard_rules()?;
        rules.extend(self.service_rules()?);
        rules.extend(self.filter_rules()?);
        rules.extend(self.source_rules()?);
        for scope in Scope::FIXED {
            rules.extend(self.scope_rules(scope)?);
        }
        Ok(rules)
    }

    /// The rules of one scope, with the one that leads there.
    fn scope_rules(&self, scope: Scope) -> Result<Vec<Rule>, Error> {
        let mut rules = Vec::new();
        if scope.hold.is_some() {
            let (entry, held) = (self.chain(&entry_name(scope))?, self.chain(&held_name(scope))?);
            let parent = self.chain(&entry_name(Scope::plain(scope.audience)))?;
            rules.push(Rule::new(&parent).jump(&entry));
            rules.push(Rule::new(&entry).jump(&held));
        }
        rules.extend(self.fan_rules(scope)?);
        for slot in 0..SMALL {
            rules.extend(self.slot_rules(scope, slot)?);
        }
        Ok(rules)
    }

    /// What clients dial, as it stands in a packet.
    fn dialled(&self) -> [Load; 3] {
        [Load::daddr(self.family), Load::L4Proto, Load::Dport]
    }

    fn guard_rules(&self) -> Result<Vec<Rule>, Error> {
        let (prerouting, output) = (self.chain("guard-prerouting")?, self.chain("guard-output")?);
        let gate = self.set(SetKind::Gate)?;
        let daddr = [Load::daddr(self.family)];
        let mut rules = Vec::new();
        if self.family == Family::Ip {
            let from_outside = Rule::new(&prerouting).is_not(Load::Iifname, loopback());
            rules.push(
                from_outside
                    .in_prefix(Load::daddr(self.family), [127, 0, 0, 0].into(), 8)
                    .drop()
                    .comment("loopback is not for neighbours"),
            );
        }
        for chain in [&prerouting, &output] {
            let rule = Rule::new(chain).in_set(&daddr, &gate).drop();
            rules.push(rule.comment("Services are not programmed yet"));
        }
        Ok(rules)
    }

    fn service_rules(&self) -> Result<Vec<Rule>, Error> {
        let services = self.chain("services")?;
        let dialled = self.dialled();
        let saddr = [Load::saddr(self.family)];
        let local = self.set(SetKind::Local)?;
        let mut rules: Vec<_> = [self.chain("nat-prerouting")?, self.chain("nat-output")?]
            .iter()
            .map(|chain| Rule::new(chain).jump(&services))
            .collect();
        let rule = Rule::new(&services).in_set(&dialled, &self.set(SetKind::Marked)?);
        rules.push(rule.set_mark_bits(MARK));
        let rule = Rule::new(&services)
            .in_set(&[Load::daddr(self.family)], &self.set(SetKind::ClusterIps)?)
            .not_in_set(&saddr, &self.set(SetKind::Kept)?);
        rules.push(rule.set_mark_bits(MARK).comment("from outside the pod networks"));
        let rule = Rule::new(&services).in_set(&dialled, &local).saddr_is_local();
        rules.push(rule.set_mark_bits(MARK).comment("the node itself"));
        let rule = Rule::new(&services)
            .in_set(&dialled, &local)
            .saddr_is_not_local()
            .not_in_set(&saddr, &self.set(SetKind::Pods)?);
        let outside = Scope::plain(Audience::Outside);
        rules.push(rule.goto(&self.chain(&entry_name(outside))?));
        Ok(rules)
    }

    fn filter_rules(&self) -> Result<Vec<Rule>, Error> {
        let (absent, refuse) = (self.chain("absent")?, self.chain("refuse")?);
        let (dialled, daddr) = (self.dialled(), [Load::daddr(self.family)]);
        let forward = self.chain("filter-forward")?;
        let mut rules = vec![
            Rule::new(&forward)
                .ct_state(CtState::INVALID)
                .drop()
                .comment("would reset translated connections"),
        ];
        for chain in ["filter-input", "filter-forward", "filter-output"] {
            rules.push(Rule::new(&self.chain(chain)?).ct_state(CtState::NEW).jump(&absent));
        }
        rules.push(Rule::new(&absent).in_set(&dialled, &self.set(SetKind::Drop)?).drop());
        rules.push(Rule::new(&absent).in_set(&dialled, &self.set(SetKind::Refuse)?).goto(&refuse));
        let cluster_ips = self.set(SetKind::ClusterIps)?;
        rules.push(Rule::new(&absent).in_set(&daddr, &cluster_ips).goto(&refuse));
        rules.push(Rule::new(&absent).in_set(&daddr, &self.set(SetKind::ServiceCidrs)?).drop());
        rules.push(Rule::new(&refuse).reject_with_tcp_reset());
        rules.push(Rule::new(&refuse).reject_with_port_unreachable());
        Ok(rules)
    }

    fn source_rules(&self) -> Result<Vec<Rule>, Error> {
        let chain = self.chain("nat-postrouting")?;
        let pair = [Load::saddr(self.family), Load::daddr(self.family)];
        let hairpin = Rule::new(&chain).ct_status_dnat();
        Ok(vec![
            Rule::new(&chain).mark_has(MARK).clear_mark_bits(MARK).masquerade(),
            hairpin.in_set(&pair, &self.set(SetKind::Hairpin)?).masquerade().comment("hairpin"),
        ])
    }

    fn fan_rules(&self, scope: Scope) -> Result<Vec<Rule>, Error> {
        let services = self.chain(&entry_name(scope))?;
        let mut rules = Vec::new();
        for fan in 1..=SMALL {
            let set = self.set(SetKind::Fan(scope, fan as u16))?;
            let to = self.chain(&fan_name(scope, fan))?;
            rules.push(Rule::new(&services).in_set(&self.dialled(), &set).goto(&to));
        }
        let big = self.set(SetKind::BigFan(scope))?;
        rules.push(Rule::new(&services).vmap(&self.dialled(), &big));
        rules.push(self.translate(&entry_name(scope), SetKind::Slot(scope, 0))?.comment(LATE));
        for fan in 1..=SMALL {
            rules.push(self.choice_rule(scope, fan)?);
        }
        Ok(rules)
    }

    fn choice_rule(&self, scope: Scope, fan: usize) -> Result<Rule, Error> {
        let rule = Rule::new(&self.chain(&fan_name(scope, fan))?);
        let picks: Vec<_> = (0..fan)
            .map(|slot| self.chain(&pick_name(scope, slot)))
            .collect::<Result<_, Error>>()?;
        Ok(match picks.as_slice() {
            [only] => rule.goto(only),
            several => rule.goto_one_of(several),
        })
    }

    fn slot_rules(&self, scope: Scope, slot: usize) -> Result<Vec<Rule>, Error> {
        let name = pick_name(scope, slot);
        let pick = self.chain(&name)?;
        let mut rules = Vec::new();
        if scope.hold.is_some() {
            let held = self.set(SetKind::Held(scope, slot as u16))?;
            let client = [[Load::saddr(self.family)].as_slice(), &self.dialled()].concat();
            rules.push(
                Rule::new(&self.chain(&held_name(scope))?).in_set(&client, &held).jump(&pick),
            );
            rules.push(Rule::new(&pick).remember(&client, &held));
        }
        rules.push(self.translate(&name, SetKind::Slot(scope, slot as u16))?);
        if slot > 0 {
            rules.push(self.translate(&name, SetKind::Slot(scope, 0))?.comment(LATE));
        }
        Ok(rules)
    }

    /// Translates to the endpoint a slot holds for what was dialled; goes on when there is none.
    fn translate(&self, chain: &str, slot: SetKind) -> Result<Rule, Error> {
        let transport = crate::model::Protocol::ALL.map(|p| Field::Proto(p.number()));
        let rule = Rule::new(&self.chain(chain)?).is_one_of(Load::L4Proto, &transport);
        Ok(rule.dnat_map(&self.dialled(), &self.set(slot)?))
    }

    /// Adds the chains, maps and rules of an affinity.
    pub(crate) fn add_scope(&self, batch: &mut Batch, scope: Scope) -> Result<(), Error> {
        for kind in scope_kinds(scope) {
            batch.add_set(&self.set(kind)?);
        }
        for slot in 0..SMALL {
            batch.add_set(&self.set(SetKind::Held(scope, slot as u16))?);
        }
        for chain in self.scope_chains(scope)? {
            batch.add_chain(&chain);
        }
        for rule in self.scope_rules(scope)? {
            batch.add_rule(&rule);
        }
        Ok(())
    }

    /// Adds the chains and maps of slots that a fan-out above [`SMALL`] needs.
    pub(crate) fn add_slots(
        &self,
        batch: &mut Batch,
        scope: Scope,
        slots: std::ops::Range<usize>,
    ) -> Result<(), Error> {
        for slot in slots {
            batch.add_set(&self.set(SetKind::Slot(scope, slot as u16))?);
            if scope.hold.is_some() {
                batch.add_set(&self.set(SetKind::Held(scope, slot as u16))?);
            }
            batch.add_chain(&self.chain(&pick_name(scope, slot))?);
            for rule in self.slot_rules(scope, slot)? {
                batch.add_rule(&rule);
            }
        }
        Ok(())
    }

    /// Adds the chain of one fan-out above [`SMALL`], whose slots exist.
    pub(crate) fn add_fan(&self, batch: &mut Batch, scope: Scope, fan: usize) -> Result<(), Error> {
        batch.add_chain(&self.chain(&fan_name(scope, fan))?);
        batch.add_rule(&self.choice_rule(scope, fan)?);
        Ok(())
    }
}

/// Name of the loopback interface, as a key.
fn loopback() -> Field {
    let mut name = [0; 16];
    name[..2].copy_from_slice(b"lo");
    Field::Ifname(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_families_have_different_fingerprints_that_do_not_change() {
        let v4 = Ruleset::new(Family::Ip).unwrap();
        let v6 = Ruleset::new(Family::Ip6).unwrap();
        assert_eq!(v4.comment().unwrap(), Ruleset::new(Family::Ip).unwrap().comment().unwrap());
        assert_ne!(v4.comment().unwrap(), v6.comment().unwrap());
    }
}
