//! Which ids of the host a pod with a user namespace gets: 65536 that no other pod has.
//!
//! They are recorded with the sandbox, so that a restarted agent knows them again. The ranges come
//! from the lines of `kubelet` in `/etc/subuid` and `/etc/subgid`, where there are any; else they are
//! whatever no other user was given there. KEP-127; subuid(5).

use std::path::Path;

use berth_oci::protocol::UserIds;

/// What every pod gets. An image's users are below that.
pub(super) const COUNT: u32 = 1 << 16;
/// Whose subordinate ids are for pods.
const OWNER: &str = "kubelet";

/// Which ids pods may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pool {
    /// These alone.
    Given(Vec<UserIds>),
    /// Every id but the host's own and these.
    AllBut(Vec<UserIds>),
}

impl Pool {
    /// As `/etc/subuid` and `/etc/subgid` say. Blocking.
    pub(super) fn of_host() -> Self {
        let read = |path| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
        Self::parse(&read("/etc/subuid"), &read("/etc/subgid"))
    }

    fn parse(uids: &str, gids: &str) -> Self {
        let given = |text| lines(text).filter(|(owner, _)| *owner == OWNER).map(|(_, ids)| ids);
        let both: Vec<UserIds> =
            given(uids).filter(|ids| given(gids).any(|other| other == *ids)).collect();
        match both.is_empty() {
            false => Self::Given(both),
            true => Self::AllBut(lines(uids).chain(lines(gids)).map(|(_, ids)| ids).collect()),
        }
    }

    /// Ids that nobody has yet, the lowest ones.
    pub(super) fn allocate(&self, taken: &[UserIds]) -> Option<UserIds> {
        let ids = |first: u32| UserIds { first, count: COUNT };
        let is_free = |ids: &UserIds| !taken.iter().any(|other| overlap(*ids, *other));
        match self {
            Self::Given(ranges) => {
                let pieces = ranges.iter().flat_map(|range| {
                    (0..range.count / COUNT).map(|index| ids(range.first + index * COUNT))
                });
                pieces.into_iter().find(is_free)
            }
            Self::AllBut(others) => {
                // Not the host's own first ones, and not the last ones, where -1 is.
                let mut pieces = (1..u32::MAX / COUNT).map(|index| ids(index * COUNT));
                pieces.find(|piece| {
                    is_free(piece) && !others.iter().any(|other| overlap(*piece, *other))
                })
            }
        }
    }
}

/// The lines that are of the form `owner:first:count` and make sense.
fn lines(text: &str) -> impl Iterator<Item = (&str, UserIds)> {
    text.lines().filter_map(|line| {
        let mut parts = line.trim().split(':');
        let (owner, first, count) = (parts.next()?, parts.next()?, parts.next()?);
        let ids = UserIds { first: first.parse().ok()?, count: count.parse().ok()? };
        ids.first.checked_add(ids.count)?;
        (ids.count > 0 && parts.next().is_none()).then_some((owner, ids))
    })
}

fn overlap(a: UserIds, b: UserIds) -> bool {
    let end = |ids: UserIds| u64::from(ids.first) + u64::from(ids.count);
    u64::from(a.first) < end(b) && u64::from(b.first) < end(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_share_an_id_and_what_is_given_back_is_used_again() {
        let pool = Pool::parse("", "");
        let mut taken = Vec::new();
        for _ in 0..500 {
            let new = pool.allocate(&taken).unwrap();
            assert!(new.first >= COUNT && new.count == COUNT);
            assert!(!taken.iter().any(|other| overlap(new, *other)));
            taken.push(new);
        }
        let back = taken.remove(7);
        assert_eq!(pool.allocate(&taken), Some(back));
    }

    #[test]
    fn ids_of_other_users_are_left_to_them() {
        let pool = Pool::parse("alice:65536:65536\n# x\nbroken:1\n", "bob:131073:1\n");
        assert_eq!(pool.allocate(&[]).unwrap().first, 3 * COUNT);
    }

    #[test]
    fn the_kubelets_own_lines_are_a_limit() {
        let text = "alice:1:5\nkubelet:200000:131072\n";
        let pool = Pool::parse(text, text);
        let first = pool.allocate(&[]).unwrap();
        let second = pool.allocate(&[first]).unwrap();
        assert_eq!((first.first, second.first), (200_000, 265_536));
        assert_eq!(pool.allocate(&[first, second]), None);
        // Lines that are in one of the files only are of no use.
        assert!(matches!(Pool::parse(text, ""), Pool::AllBut(_)));
    }
}
