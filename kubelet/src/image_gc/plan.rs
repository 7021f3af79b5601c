//! Which images go, and in what order. Pure.

use std::collections::{BTreeMap, BTreeSet};

use berth_runtime::interface::{Image, ImageId};
use serde::{Deserialize, Serialize};

use super::Policy;
use crate::disk::FileSystem;

/// What is remembered of an image, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// When it was seen first.
    pub(super) first_seen_ms: i64,
    /// When it was seen in use last.
    pub(super) last_used_ms: Option<i64>,
}

/// All images that are remembered.
pub(super) type Records = BTreeMap<ImageId, Record>;

/// Brings the records up to what there is at a time.
pub(super) fn detect(
    records: &mut Records,
    (images, used): (&[Image], &BTreeSet<ImageId>),
    now_ms: i64,
) {
    records.retain(|id, _| images.iter().any(|image| image.id == *id));
    for image in images {
        let new = Record { first_seen_ms: now_ms, last_used_ms: None };
        let record = records.entry(image.id.clone()).or_insert(new);
        if used.contains(&image.id) {
            record.last_used_ms = Some(now_ms);
        }
    }
}

/// The images that may go, those first that were used least recently, and of those never used the one
/// that has been here longest.
pub(super) fn in_order<'a>(
    records: &'a Records,
    (images, used): (&[Image], &BTreeSet<ImageId>),
) -> Vec<(&'a ImageId, Record)> {
    let pinned: BTreeSet<_> = images.iter().filter(|i| i.pinned).map(|i| &i.id).collect();
    let may_go = records.iter().filter(|(id, _)| !used.contains(*id) && !pinned.contains(id));
    let mut order: Vec<_> = may_go.map(|(id, record)| (id, *record)).collect();
    order.sort_by_key(|(_, record)| (record.last_used_ms, record.first_seen_ms));
    order
}

/// Whether an image has not been used for longer than the policy allows.
///
/// Differs: upstream takes an image that was never used for infinitely old, and so waits that long after
/// its start; here it is as old as it was seen first, and records outlive the agent.
pub(super) fn is_too_old(record: Record, policy: &Policy, now_ms: i64) -> bool {
    let since = record.last_used_ms.unwrap_or(record.first_seen_ms);
    policy.longest_unused.is_some_and(|longest| age(since, now_ms) > longest.as_millis())
}

/// Whether an image has been here long enough to go for want of space: one that has just been pulled is
/// about to be used.
pub(super) fn is_old_enough(record: Record, policy: &Policy, now_ms: i64) -> bool {
    age(record.first_seen_ms, now_ms) >= policy.least_age.as_millis()
}

fn age(since_ms: i64, now_ms: i64) -> u128 {
    u128::try_from(now_ms.saturating_sub(since_ms)).unwrap_or(0)
}

/// How full a file system is, in percent, as upstream reckons it.
pub(super) fn percent(fs: &FileSystem) -> u64 {
    let available = u128::from(fs.available_bytes.min(fs.capacity_bytes)) * 100;
    let free = available.checked_div(u128::from(fs.capacity_bytes)).unwrap_or(100);
    100 - u64::try_from(free).unwrap_or(100)
}

/// How much must go so that a file system above the high threshold comes down to the low one; `None`
/// below the high one.
pub(super) fn bytes_to_free(fs: &FileSystem, policy: &Policy) -> Option<u64> {
    if percent(fs) < u64::from(policy.high_percent) {
        return None;
    }
    let free = u128::from(fs.capacity_bytes) * u128::from(100 - policy.low_percent) / 100;
    let free = u64::try_from(free).unwrap_or(u64::MAX);
    Some(free.saturating_sub(fs.available_bytes.min(fs.capacity_bytes)))
}

/// A size as upstream's messages write it.
#[allow(clippy::cast_precision_loss, reason = "one digit behind the point is told")]
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let found = UNITS.iter().find(|(_, shift)| bytes >> shift > 0);
    found.map_or_else(
        || format!("{bytes} B"),
        |(unit, shift)| {
            let unit_bytes = 1_u64 << shift;
            format!("{:.1} {unit}", bytes as f64 / unit_bytes as f64)
        },
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> ImageId {
        ImageId::try_from(format!("sha256:{}", format!("{number:02x}").repeat(32))).unwrap()
    }

    fn image(number: u8, pinned: bool) -> Image {
        Image { id: id(number), pinned, ..crate::fake::image("i") }
    }

    fn fs(capacity_bytes: u64, available_bytes: u64) -> FileSystem {
        FileSystem { capacity_bytes, available_bytes, ..FileSystem::default() }
    }

    #[test]
    fn thresholds_are_reckoned_as_upstream_reckons_them() {
        let policy = Policy { high_percent: 90, low_percent: 80, ..Policy::default() };
        for (available, full, expected) in [
            (1000, 0, None),
            (110, 89, None),
            (101, 90, Some(99)),
            (100, 90, Some(100)),
            (55, 95, Some(145)),
            (0, 100, Some(200)),
            (5000, 0, None),
        ] {
            let fs = fs(1000, available);
            assert_eq!(
                (percent(&fs), bytes_to_free(&fs, &policy)),
                (full, expected),
                "{available}"
            );
        }
        let all = fs(u64::MAX, 0);
        assert_eq!((percent(&all), bytes_to_free(&all, &policy)), (100, Some(u64::MAX / 5)));
        assert_eq!(percent(&fs(0, 0)), 0);
    }

    #[test]
    fn ages_are_counted_from_the_first_look_and_the_last_use() {
        let policy = Policy {
            least_age: Duration::from_millis(100),
            longest_unused: Some(Duration::from_millis(1000)),
            ..Policy::default()
        };
        let record = |first_seen_ms, last_used_ms| Record { first_seen_ms, last_used_ms };
        for (record, now, old_enough, too_old) in [
            (record(0, None), 99, false, false),
            (record(0, None), 100, true, false),
            (record(0, None), 1001, true, true),
            (record(0, Some(500)), 1001, true, false),
            (record(0, Some(500)), 1501, true, true),
            (record(5000, Some(5000)), 0, false, false),
        ] {
            let found = (is_old_enough(record, &policy, now), is_too_old(record, &policy, now));
            assert_eq!(found, (old_enough, too_old), "{record:?} at {now}");
        }
        assert!(!is_too_old(record(0, None), &Policy::default(), i64::MAX), "off by default");
    }

    #[test]
    fn sizes_read_as_upstreams() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (10 << 20, "10.0 MiB"),
            (3 << 30, "3.0 GiB"),
            (5 << 40, "5.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    proptest! {
        /// Whatever happened before: nothing in use or pinned goes, and the order is that of use.
        #[test]
        fn the_order_is_that_of_use_and_spares_what_is_needed(
            looks in prop::collection::vec(
                (prop::collection::btree_set(0_u8..8, 0..8), prop::collection::btree_set(0_u8..8, 0..4)),
                1..8,
            ),
            pinned in prop::collection::btree_set(0_u8..8, 0..3),
        ) {
            let mut records = Records::new();
            let (mut images, mut used) = (Vec::new(), BTreeSet::new());
            for (at, (there, in_use)) in looks.iter().enumerate() {
                images = there.iter().map(|n| image(*n, pinned.contains(n))).collect::<Vec<_>>();
                used = in_use.iter().map(|n| id(*n)).collect();
                detect(&mut records, (&images, &used), i64::try_from(at).unwrap());
            }
            let order = in_order(&records, (&images, &used));
            let there = &looks.last().unwrap().0;
            let expected = there.iter().filter(|n| !pinned.contains(n) && !used.contains(&id(**n)));
            prop_assert_eq!(
                order.iter().map(|(id, _)| (*id).clone()).collect::<BTreeSet<_>>(),
                expected.map(|n| id(*n)).collect::<BTreeSet<_>>()
            );
            // When each was used last, by the looks alone.
            let last = |of: &ImageId| looks.iter().enumerate().filter_map(|(at, (there, in_use))| {
                let number = there.iter().find(|n| id(**n) == *of)?;
                in_use.contains(number).then_some(at)
            }).next_back();
            let gone_since = |of: &ImageId| looks.iter().rposition(|(there, _)| !there.iter().any(|n| id(*n) == *of));
            let uses: Vec<_> = order.iter().map(|(id, _)| {
                // A use before the image was gone for a while is forgotten with its record.
                last(id).filter(|at| gone_since(id).is_none_or(|gone| gone < *at))
            }).collect();
            prop_assert!(uses.is_sorted(), "{:?}", uses);
        }
    }
}
