//! Names of the sets, maps and chains, and what they stand for.
//!
//! Owns the mapping in both directions: a restart reads from the names what was made on demand.

use berth_nft::{Error, Name, Verdict};

/// Fan-outs whose sets exist from the start, looked up one after the other.
pub(crate) const SMALL: usize = 16;
/// The most endpoints a port is spread over.
pub const MAX_BACKENDS: usize = 1024;

/// Which clients a list of endpoints is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// All without a list of their own.
    Any,
    /// Those from outside, where policy keeps them on this node.
    Outside,
}

/// One family of chains that choose and translate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// For whom.
    pub audience: Audience,
    /// For how many seconds a client keeps its endpoint.
    pub hold: Option<u32>,
}

impl Scope {
    /// The scopes that exist from the start.
    pub(crate) const FIXED: [Self; 2] =
        [Self::plain(Audience::Any), Self::plain(Audience::Outside)];

    /// The scope without affinity.
    pub const fn plain(audience: Audience) -> Self {
        Self { audience, hold: None }
    }

    fn prefix(self) -> String {
        let audience = match self.audience {
            Audience::Any => "",
            Audience::Outside => "local-",
        };
        match self.hold {
            Some(seconds) => format!("{audience}hold{seconds}-"),
            None => audience.to_owned(),
        }
    }

    /// Reads a prefix, and returns the rest of the name.
    fn parse(name: &str) -> Option<(Self, &str)> {
        let (audience, rest) = match name.strip_prefix("local-") {
            Some(rest) => (Audience::Outside, rest),
            None => (Audience::Any, name),
        };
        match rest.strip_prefix("hold") {
            Some(rest) => {
                let (seconds, rest) = rest.split_once('-')?;
                Some((Self { audience, hold: Some(seconds.parse().ok()?) }, rest))
            }
            None => Some((Self::plain(audience), rest)),
        }
    }
}

/// The sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// Ports spread over this many endpoints, up to 16.
    Fan(Scope, u16),
    /// Ports spread over more.
    BigFan(Scope),
    /// Endpoints in a slot.
    Slot(Scope, u16),
    /// Clients that keep the endpoint in a slot. Filled by the rules.
    Held(Scope, u16),
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

impl SetKind {
    /// The scope a set belongs to.
    pub(crate) fn scope(self) -> Option<Scope> {
        match self {
            Self::Fan(scope, _)
            | Self::BigFan(scope)
            | Self::Slot(scope, _)
            | Self::Held(scope, _) => Some(scope),
            _ => None,
        }
    }
}

/// The sets and maps that exist from the start.
pub(crate) fn fixed_kinds() -> Vec<SetKind> {
    use SetKind::{
        ClusterIps, Drop, Gate, Hairpin, Kept, Local, Marked, Pods, Refuse, ServiceCidrs,
    };
    let mut kinds =
        vec![Refuse, Drop, Local, Marked, ClusterIps, Hairpin, Pods, Kept, ServiceCidrs, Gate];
    for scope in Scope::FIXED {
        kinds.extend(scope_kinds(scope));
    }
    kinds
}

/// The sets and maps of a scope whose elements we write.
pub(crate) fn scope_kinds(scope: Scope) -> Vec<SetKind> {
    let mut kinds = vec![SetKind::BigFan(scope)];
    kinds.extend((1..=SMALL as u16).map(|fan| SetKind::Fan(scope, fan)));
    kinds.extend((0..SMALL as u16).map(|slot| SetKind::Slot(scope, slot)));
    kinds
}

/// Name of a set or map.
pub(crate) fn set_name(kind: SetKind) -> String {
    match kind {
        SetKind::Fan(scope, fan) => format!("{}svc{fan}", scope.prefix()),
        SetKind::BigFan(scope) => format!("{}svc-big", scope.prefix()),
        SetKind::Slot(scope, slot) => format!("{}ep{slot}", scope.prefix()),
        SetKind::Held(scope, slot) => format!("{}held{slot}", scope.prefix()),
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

/// Chain where a scope starts.
pub(crate) fn entry_name(scope: Scope) -> String {
    format!("{}services", scope.prefix())
}

/// Chain that sends remembered clients back to their endpoints.
pub(crate) fn held_name(scope: Scope) -> String {
    format!("{}held", scope.prefix())
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

/// Reads the name of a scope's chain back.
pub(crate) fn parse_chain(name: &str) -> Option<(Scope, ChainRole)> {
    let (scope, rest) = Scope::parse(name)?;
    if rest == "services" {
        return Some((scope, ChainRole::Entry));
    }
    if let Some(slot) = rest.strip_prefix("pick") {
        return Some((scope, ChainRole::Slot(slot.parse().ok()?)));
    }
    Some((scope, ChainRole::Fan(rest.strip_prefix('n')?.parse().ok()?)))
}

/// What a scope's chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainRole {
    /// Where the scope starts.
    Entry,
    /// Chooses among this many slots.
    Fan(usize),
    /// Translates to this slot's endpoint.
    Slot(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_read_back() {
        let held = Scope { audience: Audience::Outside, hold: Some(10_800) };
        for scope in Scope::FIXED.into_iter().chain([held]) {
            assert_eq!(parse_chain(&fan_name(scope, 17)), Some((scope, ChainRole::Fan(17))));
            assert_eq!(parse_chain(&pick_name(scope, 3)), Some((scope, ChainRole::Slot(3))));
            assert_eq!(parse_chain(&entry_name(scope)), Some((scope, ChainRole::Entry)));
            assert_eq!(parse_chain(&held_name(scope)), None);
        }
        assert_eq!(parse_chain("nat-output"), None);
    }
}
