//! Applies plans to the kernel: one transaction each, on a socket that stays open.
//!
//! Owns the connection to nf_tables and what is known to be programmed. Start: if the table is
//! missing, it is made with the Service range closed; if one is there, it keeps working until
//! the first full sync, which adopts it (only differences are written) or, when its rules are
//! another version's, replaces it in one transaction. Blocking; belongs to one thread, in the
//! network namespace of whoever opened it.

use std::collections::{BTreeMap, HashMap};

use berth_nft::{Batch, Element, Error, Family, Socket, Value, Verdict};

use crate::flows::{self, Changed};
use crate::hold;
use crate::model::{Facts, Protocol, Vip, VipKey};
use crate::names::{ChainRole, SMALL, SetKind, fixed_kinds, parse_chain, scope_kinds};
use crate::plan::{ElementChange, Elements, Gate, Program, SetRef, adopt, diff, fact_elements};
use crate::ruleset::{Grown, Ruleset};

/// What a sync did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Elements written or deleted.
    pub writes: usize,
    /// Tables made or replaced.
    pub rebuilt: usize,
    /// Tracked connections deleted.
    pub stale_flows: usize,
}

/// What one family's table holds.
enum Observed {
    /// Nothing of ours.
    Missing,
    /// Rules of another version, or changed by somebody.
    Foreign,
    /// Our rules.
    Ours(Elements, Grown),
}

/// The proxy's rules in one network namespace.
#[derive(Debug)]
pub struct Dataplane {
    socket: Socket,
    rules: [Ruleset; 2],
    program: Program,
    grown: [Grown; 2],
    generation: Option<u32>,
}

/// Where a family's things are.
fn index(family: Family) -> usize {
    usize::from(family == Family::Ip6)
}

/// The families that have a table.
const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];

impl Dataplane {
    /// Opens the namespace of the calling thread, and closes the Service range in tables that
    /// do not exist yet.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(facts: &Facts) -> Result<Self, Error> {
        let mut dataplane = Self {
            socket: Socket::open()?,
            rules: [Ruleset::new(Family::Ip)?, Ruleset::new(Family::Ip6)?],
            program: Program::default(),
            grown: Default::default(),
            generation: None,
        };
        let mut batch = Batch::new();
        let closed = fact_elements(facts, Gate::Closed);
        for rules in dataplane.rules.clone() {
            let family = rules.table().family();
            if matches!(dataplane.observe(&rules)?, Observed::Missing) {
                rules.create(&mut batch)?;
                let own = closed.iter().filter(|((set, _), _)| set.family == family);
                let own: Elements = own.map(|(k, v)| (k.clone(), v.clone())).collect();
                dataplane.write(&mut batch, &diff(&Elements::new(), &own))?;
            }
        }
        dataplane.socket.commit(batch)?;
        Ok(dataplane)
    }

    fn rules(&self, family: Family) -> &Ruleset {
        &self.rules[index(family)]
    }

    /// Makes the kernel hold exactly what is wanted: dumps, and writes what differs.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing was changed, and only another full sync may follow.
    pub fn sync_full(
        &mut self,
        wanted: Vec<(VipKey, Vip)>,
        facts: &Facts,
    ) -> Result<Report, Error> {
        let mut report = Report::default();
        let mut batch = Batch::new();
        let mut observed = Elements::new();
        let mut grown: [Grown; 2] = Default::default();
        for rules in self.rules.clone() {
            let family = rules.table().family();
            match self.observe(&rules)? {
                Observed::Ours(elements, more) => {
                    observed.extend(elements);
                    grown[index(family)] = more;
                }
                Observed::Missing | Observed::Foreign => {
                    rules.create(&mut batch)?;
                    report.rebuilt += 1;
                    tracing::info!(family = family.as_str(), "writing the Service rules");
                }
            }
        }
        let program = adopt(&observed, wanted);
        let mut desired = program.elements()?;
        desired.extend(fact_elements(facts, Gate::Open));
        let changes = diff(&observed, &desired);
        report.writes = changes.len();
        self.grown = grown;
        let grown = self.write(&mut batch, &changes)?;
        self.socket.commit(batch)?;
        self.grown = grown;
        let moves = hold::moves_since(&observed, &program);
        self.program = program;
        self.move_held(&moves);
        self.generation = self.socket.generation().ok();
        let keys: Vec<VipKey> = self.program.vips().map(|(key, _)| *key).collect();
        report.stale_flows = self.forget_flows(&keys, &HashMap::new());
        Ok(report)
    }

    /// Changes some ports, `None` to go. Cost depends on the change, not on what is programmed.
    ///
    /// # Errors
    /// When the kernel refuses; then nothing was changed, and a full sync must follow.
    pub fn sync(&mut self, wanted: Vec<(VipKey, Option<Vip>)>) -> Result<Report, Error> {
        let plan = self.program.plan(wanted)?;
        let mut report = Report { writes: plan.changes.len(), ..Report::default() };
        if plan.changes.is_empty() {
            self.program.applied(plan);
            return Ok(report);
        }
        let before = self.generation;
        let mut batch = Batch::new();
        let grown = self.write(&mut batch, &plan.changes)?;
        self.socket.commit(batch)?;
        // Our own transaction moves the generation by one; more means somebody else's too.
        self.generation = before.map(|generation| generation.wrapping_add(1));
        self.grown = grown;
        let mut gone = HashMap::new();
        let mut keys = Vec::new();
        let mut moves = Vec::new();
        for (key, after) in plan.changed() {
            if let Some(before) = self.program.vip(key) {
                moves.extend(hold::moves(key, before, after));
            }
            if flows::may_leave_flows(key, self.program.vip(key), after) {
                keys.push(*key);
                if after.is_none() {
                    gone.insert(*key, None);
                }
            }
        }
        self.program.applied(plan);
        self.move_held(&moves);
        report.stale_flows = self.forget_flows(&keys, &gone);
        Ok(report)
    }

    /// Lets clients with affinity follow their endpoints to other slots, and forgets those of
    /// endpoints that are gone. A failure is not the sync's: who is sent to an empty slot
    /// chooses anew.
    fn move_held(&mut self, moves: &[hold::Move]) {
        if moves.is_empty() {
            return;
        }
        if let Err(error) = self.try_move_held(moves) {
            tracing::warn!(%error, "some clients lose their affinity");
        }
        // Whatever was written here was ours.
        self.generation = self.socket.generation().ok();
    }

    fn try_move_held(&mut self, moves: &[hold::Move]) -> Result<(), Error> {
        let mut batch = Batch::new();
        let mut come = Vec::new();
        for one in moves {
            let rules = self.rules(one.family()).clone();
            let from = rules.set(SetKind::Held(one.scope, one.from))?;
            let held = self.socket.elements(&from)?;
            let held: Vec<_> = held.into_iter().filter(|element| one.concerns(element)).collect();
            // One that expires meanwhile would fail the deletion: make sure it is there.
            batch.add_elements(&from, &held);
            batch.delete_elements(&from, &held);
            if let Some(to) = one.to {
                come.push((rules.set(SetKind::Held(one.scope, to))?, held));
            }
        }
        for (to, held) in come {
            batch.add_elements(&to, &held);
        }
        self.socket.commit(batch)
    }

    /// Whether somebody changed nf_tables since our last transaction. Costs one message.
    pub fn disturbed(&mut self) -> bool {
        match (self.socket.generation(), self.generation) {
            (Ok(now), Some(known)) => now != known,
            _ => true,
        }
    }

    /// Deletes the tracked connections that the changed ports left behind. A failure is not the
    /// sync's: the entries time out.
    fn forget_flows(&mut self, keys: &[VipKey], gone: &Changed<'_>) -> usize {
        let Self { socket, program, .. } = self;
        let mut changed: Changed<'_> = keys
            .iter()
            .filter(|key| key.protocol == Protocol::Udp)
            .filter_map(|key| Some((*key, Some(program.vip(key)?))))
            .collect();
        changed.extend(gone);
        let mut deleted = 0;
        for family in flows::families(&changed) {
            let result = socket.flows(family, Protocol::Udp.number()).and_then(|flows| {
                let stale = flows.iter().filter(|flow| flows::is_stale(flow, &changed));
                stale.map(|flow| socket.delete_flow(flow)).try_fold(0, |n, one| one.map(|()| n + 1))
            });
            match result {
                Ok(count) => deleted += count,
                Err(error) => {
                    tracing::warn!(%error, "stale UDP connections stay until they time out");
                }
            }
        }
        deleted
    }

    /// Adds changes to a transaction, with the chains they need. Returns what exists after it.
    fn write(&self, batch: &mut Batch, changes: &[ElementChange]) -> Result<[Grown; 2], Error> {
        type Sides<'a> = (Vec<&'a Element>, Vec<&'a Element>);
        let mut grown = self.grown.clone();
        let mut sets: BTreeMap<SetRef, Sides<'_>> = BTreeMap::new();
        for change in changes {
            match change {
                ElementChange::Delete(set, element) => {
                    sets.entry(*set).or_default().0.push(element)
                }
                ElementChange::Add(set, element) => {
                    let grown = &mut grown[index(set.family)];
                    self.grow(batch, grown, (*set, element))?;
                    sets.entry(*set).or_default().1.push(element);
                }
            }
        }
        for (set, (gone, come)) in sets {
            let object = self.rules(set.family).set(set.kind)?;
            if !gone.is_empty() {
                batch.delete_elements(&object, gone);
            }
            if !come.is_empty() {
                batch.add_elements(&object, come);
            }
        }
        Ok(grown)
    }

    /// Adds the chains and maps that an element leads to, unless they exist.
    fn grow(
        &self,
        batch: &mut Batch,
        grown: &mut Grown,
        (set, element): (SetRef, &Element),
    ) -> Result<(), Error> {
        let rules = self.rules(set.family);
        let Some(scope) = set.kind.scope() else { return Ok(()) };
        if scope.hold.is_some() && grown.holds.insert(scope) {
            rules.add_scope(batch, scope)?;
        }
        let Value::Verdict(Verdict::Goto(chain)) = &element.value else { return Ok(()) };
        let Some((_, ChainRole::Fan(fan))) = parse_chain(chain.as_str()) else { return Ok(()) };
        let slots = grown.slots.entry(scope).or_insert(SMALL);
        if *slots < fan {
            rules.add_slots(batch, scope, *slots..fan)?;
            *slots = fan;
        }
        if grown.fans.insert((scope, fan)) {
            rules.add_fan(batch, scope, fan)?;
        }
        Ok(())
    }

    /// Reads what a family's table holds.
    fn observe(&mut self, rules: &Ruleset) -> Result<Observed, Error> {
        let family = rules.table().family();
        let tables = self.socket.tables(family)?;
        let Some(table) = tables.iter().find(|table| table.name == rules.table().name()) else {
            return Ok(Observed::Missing);
        };
        let Some(grown) = self.observe_rules(rules)? else { return Ok(Observed::Foreign) };
        if table.comment != Some(rules.comment()?) {
            return Ok(Observed::Foreign);
        }
        let mut kinds = fixed_kinds();
        kinds.extend(grown.holds.iter().copied().flat_map(scope_kinds));
        for (scope, slots) in &grown.slots {
            kinds.extend((SMALL..*slots).map(|slot| SetKind::Slot(*scope, slot as u16)));
        }
        let mut elements = Elements::new();
        for kind in kinds {
            let dumped = match self.socket.elements(&rules.set(kind)?) {
                Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => {
                    return Ok(Observed::Foreign);
                }
                dumped => dumped?,
            };
            for element in dumped {
                elements.insert((SetRef { family, kind }, element.key), element.value);
            }
        }
        Ok(Observed::Ours(elements, grown))
    }

    /// The chains made on demand, `None` when the rules are not the ones we would write.
    fn observe_rules(&mut self, rules: &Ruleset) -> Result<Option<Grown>, Error> {
        let mut grown = Grown::default();
        for chain in self.socket.chains(rules.table())? {
            match parse_chain(&chain.name) {
                Some((scope, ChainRole::Slot(slot))) if slot >= SMALL => {
                    let slots = grown.slots.entry(scope).or_insert(SMALL);
                    *slots = (*slots).max(slot + 1);
                }
                Some((scope, ChainRole::Fan(fan))) if fan > SMALL => {
                    grown.fans.insert((scope, fan));
                }
                Some((scope, ChainRole::Entry)) if scope.hold.is_some() => {
                    grown.holds.insert(scope);
                }
                _ => {}
            }
        }
        let count = self.socket.rules(rules.table())?.len();
        Ok((count == rules.rule_count(&grown)?).then_some(grown))
    }
}

/// Removes the proxy's tables from the calling thread's namespace. Removing what is not there is
/// fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove() -> Result<(), Error> {
    let mut socket = Socket::open()?;
    let mut batch = Batch::new();
    for family in FAMILIES {
        let rules = Ruleset::new(family)?;
        batch.add_table(rules.table());
        batch.delete_table(rules.table());
    }
    socket.commit(batch)
}
