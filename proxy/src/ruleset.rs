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
//! nN:        random 0..N → goto pick0 … pick(N-1)
//! pickE:     translate to what @epE holds for address.protocol.port
//! ```
//! `local-services` has the same inside with a prefix, for clients from outside of a Service
//! with external traffic policy Local. Fan-outs above 16 get their chains when first needed.
//!
//! Differs: kube-proxy writes a chain for each Service and endpoint; that makes each of its
//! syncs walk everything.

use std::hash::{DefaultHasher, Hash, Hasher};

use berth_nft::{
    Base, Batch, Chain, CtState, DataType, Error, Family, Field, Hook, Load, Name, Rule, Set,
    Table, Verdict,
};

/// Name of our tables.
pub const TABLE: &str = "berth";
/// Fan-outs whose sets exist from the start, looked up one after the other.
pub(crate) const SMALL: usize = 16;
/// The most endpoints a port is spread over.
pub const MAX_BACKENDS: usize = 1024;
/// Mark of packets to be masqueraded. It is the bit kube-proxy uses, so that whoever keeps clear
/// of that one keeps clear of this.
pub(crate) const MARK: u32 = 0x4000;

/// Which clients a list of endpoints is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// All without a list of their own.
    Any,
    /// Those from outside, where policy keeps them on this node.
    Outside,
}

impl Scope {
    const ALL: [Self; 2] = [Self::Any, Self::Outside];

    fn prefix(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Outside => "local-",
        }
    }
}

/// The sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// Ports spread over this many endpoints, up to [`SMALL`].
    Fan(Scope, u16),
    /// Ports spread over more.
    BigFan(Scope),
    /// Endpoints in a slot.
    Slot(Scope, u16),
    /// Ports without endpoints whose clients are told so.
    Refuse,
    /// Ports whose remaining clients get silence.
    Drop,
    /// Ports with a list of their own for clients from outside.
    Local,
    /// Ports whose clients are masqueraded.
    Marked,
    /// Cluster IPs.
    ClusterIps,
    /// Pairs of one endpoint's address with itself.
    Hairpin,
    /// Pod networks: who is inside.
    Pods,
    /// Networks whose clients of cluster IPs keep their source.
    Kept,
    /// Networks of cluster IPs.
    ServiceCidrs,
    /// What is let out of no one until the first sync.
    Gate,
}

/// The sets and maps that exist from the start.
pub(crate) fn fixed_kinds() -> Vec<SetKind> {
    use SetKind::{
        BigFan, ClusterIps, Drop, Fan, Gate, Hairpin, Kept, Local, Marked, Pods, Refuse,
        ServiceCidrs, Slot,
    };
    let mut kinds =
        vec![Refuse, Drop, Local, Marked, ClusterIps, Hairpin, Pods, Kept, ServiceCidrs, Gate];
    for scope in Scope::ALL {
        kinds.push(BigFan(scope));
        kinds.extend((1..=SMALL as u16).map(|fan| Fan(scope, fan)));
        kinds.extend((0..SMALL as u16).map(|slot| Slot(scope, slot)));
    }
    kinds
}

/// The ruleset of one family.
#[derive(Debug, Clone)]
pub struct Ruleset {
    family: Family,
    table: Table,
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
        let mut names = vec!["services".to_owned(), "absent".to_owned(), "refuse".to_owned()];
        names.push("local-services".to_owned());
        for scope in Scope::ALL {
            names.extend((1..=SMALL).map(|fan| fan_name(scope, fan)));
            names.extend((0..SMALL).map(|slot| pick_name(scope, slot)));
        }
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

    /// How many rules there are without the big fan-outs, for a check of what the kernel holds.
    pub(crate) fn rule_count(&self) -> Result<usize, Error> {
        Ok(self.rules()?.len())
    }

    /// All rules, in order.
    fn rules(&self) -> Result<Vec<Rule>, Error> {
        let mut rules = self.guard_rules()?;
        rules.extend(self.service_rules()?);
        rules.extend(self.filter_rules()?);
        rules.extend(self.source_rules()?);
        for scope in Scope::ALL {
            rules.extend(self.fan_rules(scope)?);
            for slot in 0..SMALL {
                rules.push(self.pick_rule(scope, slot)?);
            }
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
        rules.push(rule.goto(&self.chain("local-services")?));
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
        let services = self.chain(match scope {
            Scope::Any => "services",
            Scope::Outside => "local-services",
        })?;
        let mut rules = Vec::new();
        for fan in 1..=SMALL {
            let set = self.set(SetKind::Fan(scope, fan as u16))?;
            let to = self.chain(&fan_name(scope, fan))?;
            rules.push(Rule::new(&services).in_set(&self.dialled(), &set).goto(&to));
        }
        let big = self.set(SetKind::BigFan(scope))?;
        rules.push(Rule::new(&services).vmap(&self.dialled(), &big));
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

    fn pick_rule(&self, scope: Scope, slot: usize) -> Result<Rule, Error> {
        let transport = crate::model::Protocol::ALL.map(|p| Field::Proto(p.number()));
        let map = self.set(SetKind::Slot(scope, slot as u16))?;
        Ok(Rule::new(&self.chain(&pick_name(scope, slot))?)
            .is_one_of(Load::L4Proto, &transport)
            .dnat_map(&self.dialled(), &map))
    }

    /// Adds the chains and maps that a fan-out above [`SMALL`] needs. Slots below `have` exist.
    pub(crate) fn add_slots(
        &self,
        batch: &mut Batch,
        scope: Scope,
        slots: std::ops::Range<usize>,
    ) -> Result<(), Error> {
        for slot in slots {
            batch.add_set(&self.set(SetKind::Slot(scope, slot as u16))?);
            batch.add_chain(&self.chain(&pick_name(scope, slot))?);
            batch.add_rule(&self.pick_rule(scope, slot)?);
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

/// Chain of a fan-out.
pub(crate) fn fan_name(scope: Scope, fan: usize) -> String {
    format!("{}n{fan}", scope.prefix())
}

/// Chain of a slot.
pub(crate) fn pick_name(scope: Scope, slot: usize) -> String {
    format!("{}pick{slot}", scope.prefix())
}

/// The verdict that leads to a fan-out.
pub(crate) fn fan_verdict(scope: Scope, fan: usize) -> Result<Verdict, Error> {
    Ok(Verdict::Goto(Name::new(&fan_name(scope, fan))?))
}

/// Reads a name made by [`fan_name`] or [`pick_name`] back.
pub(crate) fn parse_chain(name: &str) -> Option<(Scope, ChainRole)> {
    let (scope, rest) = match name.strip_prefix("local-") {
        Some(rest) => (Scope::Outside, rest),
        None => (Scope::Any, name),
    };
    if let Some(slot) = rest.strip_prefix("pick") {
        return Some((scope, ChainRole::Slot(slot.parse().ok()?)));
    }
    Some((scope, ChainRole::Fan(rest.strip_prefix('n')?.parse().ok()?)))
}

/// What a chain made on demand is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainRole {
    /// Chooses among this many slots.
    Fan(usize),
    /// Translates to this slot's endpoint.
    Slot(usize),
}

fn set_name(kind: SetKind) -> String {
    match kind {
        SetKind::Fan(scope, fan) => format!("{}svc{fan}", scope.prefix()),
        SetKind::BigFan(scope) => format!("{}svc-big", scope.prefix()),
        SetKind::Slot(scope, slot) => format!("{}ep{slot}", scope.prefix()),
        SetKind::Refuse => "refused".into(),
        SetKind::Drop => "dropped".into(),
        SetKind::Local => "local".into(),
        SetKind::Marked => "marked".into(),
        SetKind::ClusterIps => "cluster-ips".into(),
        SetKind::Hairpin => "hairpin".into(),
        SetKind::Pods => "pods".into(),
        SetKind::Kept => "kept".into(),
        SetKind::ServiceCidrs => "service-cidrs".into(),
        SetKind::Gate => "gate".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_read_back() {
        for scope in Scope::ALL {
            assert_eq!(parse_chain(&fan_name(scope, 17)), Some((scope, ChainRole::Fan(17))));
            assert_eq!(parse_chain(&pick_name(scope, 3)), Some((scope, ChainRole::Slot(3))));
        }
        assert_eq!(parse_chain("nat-output"), None);
        assert_eq!(parse_chain("services"), None);
    }

    #[test]
    fn the_two_families_have_different_fingerprints_that_do_not_change() {
        let v4 = Ruleset::new(Family::Ip).unwrap();
        let v6 = Ruleset::new(Family::Ip6).unwrap();
        assert_eq!(v4.comment().unwrap(), Ruleset::new(Family::Ip).unwrap().comment().unwrap());
        assert_ne!(v4.comment().unwrap(), v6.comment().unwrap());
    }
}
