//! Block devices: weights and throttles.

use oci_spec::runtime::LinuxBlockIo;

use super::{Settings, refuse};
use crate::container::Result;

/// 10–1000 of the specification onto 1–10000.
fn weight(value: u16) -> u64 {
    1 + (u64::from(value) - 10) * 9999 / 990
}

pub(super) fn plan(settings: &mut Settings, io: &LinuxBlockIo) -> Result<()> {
    if let Some(value) = checked(io.weight())? {
        let setting = settings.add("blockIO.weight", "io.bfq.weight", value);
        setting.instead = Some(("io.weight".to_owned(), weight(value).to_string()));
    }
    if io.leaf_weight().is_some_and(|value| value != 0) {
        return refuse("blockIO.leafWeight", "is not supported on cgroup v2");
    }
    for device in io.weight_device().iter().flatten() {
        if device.leaf_weight().is_some_and(|value| value != 0) {
            return refuse("blockIO.weightDevice.leafWeight", "is not supported on cgroup v2");
        }
        if let Some(value) = checked(device.weight())? {
            let number = format!("{}:{}", device.major(), device.minor());
            let setting =
                settings.add("blockIO.weightDevice", "io.bfq.weight", format!("{number} {value}"));
            setting.instead = Some(("io.weight".to_owned(), format!("{number} {}", weight(value))));
        }
    }
    let limits = [
        ("blockIO.throttleReadBpsDevice", "rbps", io.throttle_read_bps_device()),
        ("blockIO.throttleWriteBpsDevice", "wbps", io.throttle_write_bps_device()),
        ("blockIO.throttleReadIOPSDevice", "riops", io.throttle_read_iops_device()),
        ("blockIO.throttleWriteIOPSDevice", "wiops", io.throttle_write_iops_device()),
    ];
    for (field, key, devices) in limits {
        for device in devices.iter().flatten() {
            // Zero takes a throttle away.
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
            settings.add(field, "io.max", value);
        }
    }
    Ok(())
}

fn checked(weight: Option<u16>) -> Result<Option<u16>> {
    match weight {
        None | Some(0) => Ok(None),
        Some(10..=1000) => Ok(weight),
        Some(value) => refuse("blockIO.weight", format!("{value} is not between 10 and 1000")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{try_plan, writes};
    use super::*;

    #[test]
    fn weights_go_to_bfq_or_else_to_the_default_controller() {
        assert_eq!((weight(10), weight(100), weight(1000)), (1, 910, 10_000));
        let json =
            r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}]}}"#;
        assert_eq!(writes(json), ["io.bfq.weight=500", "io.bfq.weight=8:0 10"]);
        let instead: Vec<_> =
            try_plan(json).unwrap().into_iter().filter_map(|setting| setting.instead).collect();
        let file = || "io.weight".to_owned();
        assert_eq!(instead, [(file(), "4950".to_owned()), (file(), "8:0 1".to_owned())]);
    }

    #[test]
    fn throttles_are_lines_of_one_file() {
        let json = r#"{"blockIO":{
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1048576}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#;
        assert_eq!(writes(json), ["io.max=8:0 rbps=1048576", "io.max=8:16 wiops=max"]);
    }

    #[test]
    fn weights_out_of_range_and_leaf_weights_are_refused() {
        for json in [
            r#"{"weight":9}"#,
            r#"{"weight":1001}"#,
            r#"{"leafWeight":10}"#,
            r#"{"weightDevice":[{"major":8,"minor":0,"leafWeight":10}]}"#,
            r#"{"weightDevice":[{"major":8,"minor":0,"weight":5}]}"#,
        ] {
            assert!(try_plan(&format!(r#"{{"blockIO":{json}}}"#)).is_err(), "{json}");
        }
    }
}
