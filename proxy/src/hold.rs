//! Client affinity when endpoints change slots.
//!
//! Pure. The rules remember a client by the slot of its endpoint. When an endpoint moves to
//! another slot its clients must follow, and when it goes they must be forgotten.

use berth_nft::{Element, Family};

use crate::model::{Backend, Vip, VipKey};
use crate::names::Scope;
use crate::plan::{self, Elements, Program};

/// What happens to the clients of one port that are held in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// The port.
    pub key: VipKey,
    /// Where it is held.
    pub scope: Scope,
    /// The slot.
    pub from: u16,
    /// The slot their endpoint has now; `None` when it is gone.
    pub to: Option<u16>,
}

impl Move {
    /// The family of the port.
    pub fn family(&self) -> Family {
        plan::family(&self.key)
    }

    /// Whether a remembered client is one of the port's.
    pub fn concerns(&self, element: &Element) -> bool {
        element.key.start().as_bytes().ends_with(plan::dialled(&self.key).as_bytes())
    }
}

/// What a port's change means for those it holds.
pub fn moves(key: &VipKey, before: &Vip, after: Option<&Vip>) -> Vec<Move> {
    let lists = before.lists().filter(|(scope, _)| scope.hold.is_some());
    lists
        .flat_map(|(scope, old)| {
            let same = after.into_iter().flat_map(Vip::lists).find(|(now, _)| *now == scope);
            list_moves(*key, scope, (old, same.map_or(&[], |(_, list)| list)))
        })
        .collect()
}

/// What adoption means for those that were held before it.
pub fn moves_since(observed: &Elements, program: &Program) -> Vec<Move> {
    let held = program.vips().filter(|(_, vip)| vip.hold.is_some());
    held.flat_map(|(key, vip)| {
        vip.lists().flat_map(move |(scope, list)| {
            let old = plan::observed_slots(observed, key, scope);
            list_moves(*key, scope, (&old, list))
        })
    })
    .collect()
}

fn list_moves(key: VipKey, scope: Scope, (old, new): (&[Backend], &[Backend])) -> Vec<Move> {
    (0u16..)
        .zip(old)
        .filter_map(|(from, backend)| {
            let mut slots = (0u16..).zip(new);
            let to = slots.find(|(_, now)| now.address == backend.address).map(|(slot, _)| slot);
            (to != Some(from)).then_some(Move { key, scope, from, to })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Absent, Place, Protocol, VipKind};

    fn vip(last: &[u8]) -> Vip {
        let backend = |last: &u8| Backend {
            address: ([10, 244, 0, *last], 8080).into(),
            place: Place::Elsewhere,
        };
        Vip {
            kind: VipKind::ClusterIp,
            backends: last.iter().map(backend).collect(),
            absent: Absent::Refuse,
            hold: Some(60),
        }
    }

    #[test]
    fn clients_follow_a_moved_endpoint_and_those_of_a_gone_one_are_forgotten() {
        let key = VipKey { address: [10, 96, 0, 1].into(), protocol: Protocol::Tcp, port: 80 };
        let moved: Vec<_> = moves(&key, &vip(&[1, 2, 3]), Some(&vip(&[3, 2])))
            .into_iter()
            .map(|one| (one.from, one.to))
            .collect();
        assert_eq!(moved, [(0, None), (2, Some(0))]);
        assert_eq!(moves(&key, &vip(&[1, 2]), Some(&vip(&[1, 2, 3]))), []);
        let other = Vip { hold: Some(30), ..vip(&[1, 2]) };
        assert_eq!(moves(&key, &vip(&[1, 2]), Some(&other)).len(), 2);
    }
}
