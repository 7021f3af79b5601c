//! Whether pods can have user namespaces, as the agent asks it: a kernel that is too old says what it lacks.

use std::fs;
use std::process::Command;

use crate::bundle::ours;

#[test]
fn a_kernel_maps_the_ids_of_pods_or_says_what_it_lacks() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap());
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    let output = Command::new(ours()).args(["can-map-ids", "/tmp"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if version >= (6, 3) {
        assert!(output.status.success(), "{said}");
        return;
    }
    let lacks = "berth-oci: map the ids of a file system in memory, which kernels do from Linux 6.3 on: \
                 Invalid argument (os error 22)\n";
    assert_eq!((output.status.code(), said.as_str()), (Some(1), lacks));
}
