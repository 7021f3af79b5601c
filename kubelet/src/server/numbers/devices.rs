//! Block devices in cAdvisor's families, with the label `device` that dashboards choose by. A cgroup's are
//! what it did with each device (`io.stat`), those of the node are what `/proc/diskstats` says of the
//! devices that its file systems are on. Pure.

use berth_runtime::interface::{DeviceUsage, PodUsage, Usage};

use super::cadvisor::labels;
use super::disks::Place;
use super::exposition::{Exposition, Family, Kind, number};
use super::host::{BlockDevice, Host};

/// How many bytes a sector of `/proc/diskstats` is, whatever the device's.
const SECTOR: u64 = 512;

/// A number of a cgroup's use of a device; the kernel keeps few of them.
type OfGroup = fn(&DeviceUsage) -> u64;

/// A number of a device.
type OfHost = fn(&[u64; 11]) -> f64;

/// One family: of cgroups, where they have it, and of the node.
struct Numbers {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    group: Option<OfGroup>,
    host: OfHost,
}

const fn total(
    name: &'static str,
    help: &'static str,
    (group, host): (Option<OfGroup>, OfHost),
) -> Numbers {
    Numbers { name, kind: Kind::Counter, help, group, host }
}

fn milliseconds(value: u64) -> f64 {
    number(value) / 1000.0
}

const FAMILIES: [Numbers; 13] = [
    total(
        "container_fs_reads_bytes_total",
        "Cumulative count of bytes read",
        (Some(|d| d.read_bytes), |c| number(c[2].saturating_mul(SECTOR))),
    ),
    total(
        "container_fs_writes_bytes_total",
        "Cumulative count of bytes written",
        (Some(|d| d.written_bytes), |c| number(c[6].saturating_mul(SECTOR))),
    ),
    total(
        "container_fs_reads_total",
        "Cumulative count of reads completed",
        (Some(|d| d.reads), |c| number(c[0])),
    ),
    total(
        "container_fs_writes_total",
        "Cumulative count of writes completed",
        (Some(|d| d.writes), |c| number(c[4])),
    ),
    total(
        "container_fs_reads_merged_total",
        "Cumulative count of reads merged",
        (None, |c| number(c[1])),
    ),
    total(
        "container_fs_writes_merged_total",
        "Cumulative count of writes merged",
        (None, |c| number(c[5])),
    ),
    total(
        "container_fs_sector_reads_total",
        "Cumulative count of sector reads completed",
        (None, |c| number(c[2])),
    ),
    total(
        "container_fs_sector_writes_total",
        "Cumulative count of sector writes completed",
        (None, |c| number(c[6])),
    ),
    total(
        "container_fs_read_seconds_total",
        "Cumulative count of seconds spent reading",
        (None, |c| milliseconds(c[3])),
    ),
    total(
        "container_fs_write_seconds_total",
        "Cumulative count of seconds spent writing",
        (None, |c| milliseconds(c[7])),
    ),
    total(
        "container_fs_io_time_seconds_total",
        "Cumulative count of seconds spent doing I/Os",
        (None, |c| milliseconds(c[9])),
    ),
    total(
        "container_fs_io_time_weighted_seconds_total",
        "Cumulative weighted I/O time in seconds",
        (None, |c| milliseconds(c[10])),
    ),
    Numbers {
        name: "container_fs_io_current",
        kind: Kind::Gauge,
        help: "Number of I/Os currently in progress",
        group: None,
        host: |c| number(c[8]),
    },
];

/// A cgroup with the values of its labels.
struct Group<'a> {
    usage: &'a Usage,
    labels: [(&'static str, &'a str); 6],
}

/// Writes what was done with block devices.
pub(super) fn write(
    text: &mut Exposition,
    (host, at_ms): (&Host, i64),
    (pods, places): (&[PodUsage], &[&Place]),
) {
    let groups: Vec<Group<'_>> = pods.iter().flat_map(groups).collect();
    let name = |number: (u32, u32)| {
        let found = host.block.iter().find(|device| device.number == number);
        // One that is gone has no name any more, and two of those must not have the same.
        let gone = || format!("{}:{}", number.0, number.1);
        found.map_or_else(gone, |device| format!("/dev/{}", device.name))
    };
    for numbers in FAMILIES {
        let mut family = text.family(numbers.name, numbers.kind, numbers.help);
        of_node(&mut family, &numbers, (host, at_ms), places);
        let Some(pick) = numbers.group else { continue };
        for Group { usage, labels } in &groups {
            for device in usage.io.iter().flat_map(|io| &io.devices) {
                let name = name(device.number);
                let labels = with_device(*labels, &name);
                family.at(&labels, number(pick(device)), Some(usage.at_ms));
            }
        }
    }
    let help = "Blkio Device bytes usage";
    let mut family = text.family("container_blkio_device_usage_total", Kind::Counter, help);
    for Group { usage, labels } in &groups {
        for device in usage.io.iter().flat_map(|io| &io.devices) {
            let name = name(device.number);
            let [major, minor] = [device.number.0, device.number.1].map(|one| one.to_string());
            for (operation, bytes) in [("Read", device.read_bytes), ("Write", device.written_bytes)]
            {
                let [container, id, image, short, namespace, pod] = *labels;
                let (major, minor) = (("major", major.as_str()), ("minor", minor.as_str()));
                let (device, operation) = (("device", name.as_str()), ("operation", operation));
                let labels =
                    [container, device, id, image, major, minor, short, namespace, operation, pod];
                family.at(&labels, number(bytes), Some(usage.at_ms));
            }
        }
    }
}

fn groups(pod: &PodUsage) -> impl Iterator<Item = Group<'_>> {
    let place = [pod.pod.namespace.as_str(), &pod.pod.name];
    let total = Group { usage: &pod.total, labels: labels("", &pod.cgroup, ["", ""], place) };
    let containers = pod.containers.iter().map(move |container| {
        let of = [container.image.as_str(), container.id.as_str()];
        let labels = labels(&container.name, &container.cgroup, of, place);
        Group { usage: &container.usage, labels }
    });
    std::iter::once(total).chain(containers)
}

fn of_node(
    family: &mut Family<'_>,
    numbers: &Numbers,
    (host, at_ms): (&Host, i64),
    places: &[&Place],
) {
    let labels = labels("", "/", ["", ""], ["", ""]);
    for place in places {
        let is_its = |device: &&BlockDevice| Some(device.number) == place.number;
        if let Some(device) = host.block.iter().find(is_its) {
            let labels = with_device(labels, &place.device);
            family.at(&labels, (numbers.host)(&device.counters), Some(at_ms));
        }
    }
}

/// The labels with the device's, in cAdvisor's order.
fn with_device<'a>(
    [container, rest @ ..]: [(&'static str, &'a str); 6],
    device: &'a str,
) -> [(&'static str, &'a str); 7] {
    let [id, image, name, namespace, pod] = rest;
    [container, ("device", device), id, image, name, namespace, pod]
}
