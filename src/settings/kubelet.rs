//! What a KubeletConfiguration says of the node as such: how it is heard, how it tells that it lives, what
//! is kept back from pods. Pure; every fault found is reported.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use berth_kubelet::config::{Heartbeat, Reserved, SystemLogs, Tls};
use berth_kubelet::disk::USUAL_PERIOD;
use berth_kubelet::image_access::Verification;
use berth_kubelet::image_gc;
use berth_kubelet::qos::{CgroupPolicy, Driver};
use berth_kubelet::quantity::Quantity;
use berth_kubelet::server::tls;
use serde_json::{Map, Value, json};

use super::documents::{KubeletConfiguration, gates};
use super::{duration, eviction, shutdown, verification};

/// The health port, where none is said.
const HEALTH_PORT: u16 = 10248;
/// In which CPU limits are counted, where nothing is said.
const CPU_PERIOD: Duration = Duration::from_millis(100);
/// How many processes a pod may have, where nothing is said.
const POD_PIDS: i64 = 4096;

/// What is said of the node as such.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kubelet {
    /// Where health is told; `None` leaves it out.
    pub(crate) healthz: Option<SocketAddr>,
    pub(crate) tls: Tls,
    pub(crate) system_logs: SystemLogs,
    pub(crate) heartbeat: Heartbeat,
    pub(crate) allowed_unsafe_sysctls: Vec<String>,
    pub(crate) seccomp_default: bool,
    pub(crate) provider_id: Option<String>,
    /// How many images the node's status names.
    pub(crate) max_images: Option<usize>,
    /// How many images are pulled at a time; `None` is as many as are wanted.
    pub(crate) parallel_pulls: Option<NonZeroUsize>,
    /// When images are removed.
    pub(crate) image_gc: image_gc::Policy,
    /// When it is asked who may use images that are there.
    pub(crate) image_verification: Verification,
    /// How often the use of volumes is measured; `None` is never.
    pub(crate) volume_period: Option<Duration>,
    /// What decides cgroup limits.
    pub(crate) cgroups: CgroupPolicy,
    pub(crate) reserved: Reserved,
    /// When pods are evicted.
    pub(crate) eviction: berth_kubelet::eviction::Config,
    /// How pods are ended when the host goes down.
    pub(crate) shutdown: berth_kubelet::shutdown::Config,
    /// Whether its hard thresholds are written.
    pub(crate) eviction_is_said: bool,
    /// Whether a host with swap is refused.
    pub(crate) fail_swap_on: bool,
    /// Whether a kernel with other settings than the kubelet's is refused.
    pub(crate) protect_kernel_defaults: bool,
    /// How much is said, where no flag says that.
    pub(crate) verbosity: u32,
    /// Whether that can be changed over the node's API.
    pub(crate) sets_verbosity: bool,
    /// Whether `/debug/pprof/` is served.
    pub(crate) is_profiled: bool,
    /// Whether containers can be checkpointed over the node's API.
    pub(crate) has_checkpoints: bool,
    /// Fields whose job is done in another way, and how.
    pub(crate) told: Vec<String>,
}

impl Kubelet {
    /// Resolves a configuration.
    pub(super) fn resolve(given: &KubeletConfiguration) -> Result<Self, Vec<String>> {
        let mut faults = given.refused();
        faults.extend(gates::faults(&given.feature_gates));
        let mut told = given.told();
        let mut keep = |result: Result<Duration, String>| {
            result.map_err(|fault| faults.push(fault)).unwrap_or_default()
        };
        let usual = Heartbeat::default();
        let check = given.node_status_update_frequency.as_deref();
        let status_check = keep(period("nodeStatusUpdateFrequency", check, usual.status_check));
        // As upstream: who says how often to look says with it how often to report.
        let report = match status_check == usual.status_check {
            true => usual.status_report,
            false => status_check,
        };
        let said = given.node_status_report_frequency.as_deref();
        let status_report = keep(period("nodeStatusReportFrequency", said, report));
        let lease = given.node_lease_duration_seconds.filter(|seconds| *seconds > 0);
        let lease_duration =
            lease.map_or(usual.lease_duration, |seconds| Duration::from_secs(seconds.into()));
        let said = given.volume_stats_agg_period.as_deref();
        let volume_period = match said.and_then(|text| duration(text.strip_prefix('-')?)) {
            Some(below) if below.is_zero() => Some(USUAL_PERIOD),
            Some(_) => None,
            None => Some(keep(period("volumeStatsAggPeriod", said, USUAL_PERIOD))),
        };
        faults.extend(given.logging.faults());
        let tls = tls_of(given, &mut told).map_err(|fault| faults.push(fault)).unwrap_or_default();
        let logs = (given.enable_system_log_handler != Some(false), given.enable_system_log_query);
        let system_logs = match logs {
            (true, true) => SystemLogs::Query,
            (true, false) => SystemLogs::Files,
            (false, false) => SystemLogs::Off,
            (false, true) => {
                let field = "enableSystemLogQuery";
                faults.push(format!("{field}: enableSystemLogHandler is needed for that"));
                SystemLogs::Off
            }
        };
        let mut reserved = Reserved::default();
        for (field, all) in
            [("kubeReserved", &given.kube_reserved), ("systemReserved", &given.system_reserved)]
        {
            reserve(&mut reserved, (field, all), &mut faults);
        }
        let eviction = eviction::resolve(given, &mut told);
        let eviction = eviction.map_err(|found| faults.extend(found)).unwrap_or_default();
        let shutdown = shutdown::resolve(given);
        let shutdown = shutdown.map_err(|found| faults.extend(found)).unwrap_or_default();
        let max_images = match given.node_status_max_images.unwrap_or(50) {
            -1 => None,
            count => usize::try_from(count).map(Some).unwrap_or_else(|_| {
                faults.push(format!("nodeStatusMaxImages: {count} is less than -1"));
                None
            }),
        };
        let mut keep = |fault: String| faults.push(fault);
        let image_gc = image_gc(given).map_err(&mut keep).unwrap_or_default();
        let image_verification = verification::resolve(given);
        let image_verification = image_verification
            .map_err(|found| found.into_iter().for_each(&mut keep))
            .unwrap_or_default();
        let parallel_pulls = parallel_pulls(given).map_err(&mut keep).unwrap_or_default();
        let cgroups = cgroup_policy(given).map_err(&mut keep).unwrap_or_default();
        if !faults.is_empty() {
            return Err(faults);
        }
        let address = given.healthz_bind_address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = given.healthz_port.unwrap_or(HEALTH_PORT);
        Ok(Self {
            healthz: (port != 0).then_some(SocketAddr::new(address, port)),
            tls,
            system_logs,
            verbosity: given.logging.verbosity,
            sets_verbosity: given.enable_debug_flags_handler.unwrap_or(true),
            is_profiled: given.enable_profiling_handler.unwrap_or(true),
            has_checkpoints: gates::has_checkpoints(&given.feature_gates),
            heartbeat: Heartbeat { lease_duration, status_check, status_report },
            allowed_unsafe_sysctls: given.allowed_unsafe_sysctls.clone(),
            seccomp_default: given.seccomp_default.unwrap_or(true),
            provider_id: given.provider_id.clone().filter(|id| !id.is_empty()),
            max_images,
            parallel_pulls,
            image_gc,
            image_verification,
            volume_period,
            cgroups,
            reserved,
            eviction,
            shutdown,
            eviction_is_said: given.eviction_hard.is_some(),
            fail_swap_on: given.fail_swap_on.unwrap_or(false),
            protect_kernel_defaults: given.protect_kernel_defaults,
            told,
        })
    }
}

/// When images are removed, in upstream's bounds.
fn image_gc(given: &KubeletConfiguration) -> Result<image_gc::Policy, String> {
    let usual = image_gc::Policy::default();
    let percent = |field: &str, said: Option<i32>, usual: u8| match said.map(u8::try_from) {
        None => Ok(usual),
        Some(Ok(percent)) if percent <= 100 => Ok(percent),
        Some(_) => Err(format!("{field}: {} is not between 0 and 100", said.unwrap_or_default())),
    };
    let (high, low) = ("imageGCHighThresholdPercent", "imageGCLowThresholdPercent");
    let high_percent = percent(high, given.image_gc_high_threshold_percent, usual.high_percent)?;
    let low_percent = percent(low, given.image_gc_low_threshold_percent, usual.low_percent)?;
    if low_percent >= high_percent {
        return Err(format!("{low}: {low_percent} is not less than {high}, {high_percent}"));
    }
    let least = given.image_minimum_gc_age.as_deref();
    let least_age = period("imageMinimumGCAge", least, usual.least_age)?;
    let field = "imageMaximumGCAge";
    let longest = period(field, given.image_maximum_gc_age.as_deref(), Duration::ZERO)?;
    let longest_unused = (!longest.is_zero()).then_some(longest);
    if longest_unused.is_some_and(|longest| longest <= least_age) {
        return Err(format!(
            "{field}: {longest:?} is not more than imageMinimumGCAge, {least_age:?}"
        ));
    }
    Ok(image_gc::Policy { high_percent, low_percent, least_age, longest_unused })
}

/// How many images are pulled at a time.
fn parallel_pulls(given: &KubeletConfiguration) -> Result<Option<NonZeroUsize>, String> {
    let field = "maxParallelImagePulls";
    let most = match given.max_parallel_image_pulls {
        None => None,
        Some(count) => match usize::try_from(count).ok().and_then(NonZeroUsize::new) {
            Some(count) => Some(count),
            None => return Err(format!("{field}: {count} is less than 1")),
        },
    };
    match (given.serialize_image_pulls == Some(true), most) {
        (true, Some(count)) if count > NonZeroUsize::MIN => {
            Err(format!("{field}: serializeImagePulls allows no more than 1"))
        }
        (true, _) => Ok(Some(NonZeroUsize::MIN)),
        (false, most) => Ok(most),
    }
}

/// What decides cgroup limits. Upstream asks for the gate `CustomCPUCFSQuotaPeriod` where the period is
/// not the usual one; it is on here.
fn cgroup_policy(given: &KubeletConfiguration) -> Result<CgroupPolicy, String> {
    let field = "cpuCFSQuotaPeriod";
    let cpu_period = period(field, given.cpu_cfs_quota_period.as_deref(), CPU_PERIOD)?;
    if !(Duration::from_millis(1)..=Duration::from_secs(1)).contains(&cpu_period) {
        return Err(format!("{field}: {cpu_period:?} is not between 1ms and 1s"));
    }
    let pids = given.pod_pids_limit.unwrap_or(POD_PIDS);
    let driver = match given.cgroup_driver.as_deref() {
        None | Some("" | "cgroupfs") => Driver::Cgroupfs,
        Some("systemd") => Driver::Systemd,
        Some(other) => {
            return Err(format!("cgroupDriver: {other:?} is neither cgroupfs nor systemd"));
        }
    };
    Ok(CgroupPolicy {
        driver,
        enforce_allocatable: enforce_allocatable(given)?,
        enforce_cpu_limits: given.cpu_cfs_quota.unwrap_or(true),
        cpu_period_us: u64::try_from(cpu_period.as_micros()).unwrap_or(u64::MAX),
        single_process_oom_kill: given.single_process_oom_kill.unwrap_or(false),
        pod_pids_limit: u64::try_from(pids).ok(),
        ..CgroupPolicy::default()
    })
}

/// Whether all pods together are held to what is not reserved. Services of the host have no cgroups here
/// that could be.
fn enforce_allocatable(given: &KubeletConfiguration) -> Result<bool, String> {
    let field = "enforceNodeAllocatable";
    let Some(names) = &given.enforce_node_allocatable else { return Ok(true) };
    match names.iter().find(|name| !matches!(name.as_str(), "pods" | "none" | "")) {
        Some(name) => Err(format!("{field}: {name:?} is not offered, but \"pods\" and \"none\"")),
        None if names.len() > 1 && names.iter().any(|name| name == "none") => {
            Err(format!("{field}: \"none\" allows no other"))
        }
        None => Ok(names.iter().any(|name| name == "pods")),
    }
}

/// A duration of which zero stands for the usual.
fn period(field: &str, text: Option<&str>, usual: Duration) -> Result<Duration, String> {
    match text.map(duration) {
        None => Ok(usual),
        Some(Some(given)) if given.is_zero() => Ok(usual),
        Some(Some(given)) => Ok(given),
        Some(None) => Err(format!("{field}: {:?} is no duration", text.unwrap_or_default())),
    }
}

fn tls_of(given: &KubeletConfiguration, told: &mut Vec<String>) -> Result<Tls, String> {
    let only_13 = match given.tls_min_version.as_deref() {
        None | Some("" | "VersionTLS12") => false,
        Some("VersionTLS13") => true,
        Some(other) => {
            return Err(format!("tlsMinVersion: {other:?} is not VersionTLS12 or VersionTLS13"));
        }
    };
    let mut suites = Vec::new();
    for name in &given.tls_cipher_suites {
        match tls::suite(name) {
            Some(suite) => suites.push(suite),
            None => told.push(format!("tlsCipherSuites: {name} is never offered")),
        }
    }
    match suites.is_empty() && !given.tls_cipher_suites.is_empty() {
        true => Err("tlsCipherSuites: none of these is safe and known".to_owned()),
        false => Ok(Tls { only_13, suites }),
    }
}

/// Adds what is kept back.
fn reserve(
    reserved: &mut Reserved,
    (field, all): (&str, &BTreeMap<String, String>),
    faults: &mut Vec<String>,
) {
    for (name, text) in all {
        let Ok(quantity) = text.parse::<Quantity>() else {
            faults.push(format!("{field}: {name}: {text:?} is no quantity"));
            continue;
        };
        match name.as_str() {
            "cpu" => {
                let millis = u64::try_from(quantity.milli_value()).unwrap_or(0);
                reserved.cpu_millis = reserved.cpu_millis.saturating_add(millis);
            }
            "memory" => {
                let bytes = quantity.unsigned_value();
                reserved.memory_bytes = reserved.memory_bytes.saturating_add(bytes);
            }
            "ephemeral-storage" => {
                let bytes = quantity.unsigned_value();
                reserved.storage_bytes = reserved.storage_bytes.saturating_add(bytes);
            }
            "pid" => reserved.pids = reserved.pids.saturating_add(quantity.unsigned_value()),
            other => faults.push(format!("{field}: {other} cannot be kept back")),
        }
    }
}

/// The configuration in force, for `/configz`: what was written, with the values of what was not.
pub(crate) fn in_force(settings: &super::Settings, written: &Map<String, Value>) -> Value {
    let node = &settings.kubelet;
    let cgroups = &node.cgroups;
    let text = |duration: Duration| format!("{}s", duration.as_secs_f64());
    let usual = json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "address": settings.bind_address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        "port": settings.port,
        "readOnlyPort": 0,
        "healthzPort": node.healthz.map_or(0, |address| address.port()),
        "healthzBindAddress": node.healthz.map(|address| address.ip()),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true, "cacheTTL": "2m0s"},
            "x509": {"clientCAFile": settings.client_ca_file},
        },
        "authorization": {
            "mode": "Webhook",
            "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"},
        },
        "rotateCertificates": settings.rotate_certificates,
        "serverTLSBootstrap": settings.server_tls_bootstrap,
        "enableSystemLogHandler": node.system_logs != SystemLogs::Off,
        "enableSystemLogQuery": node.system_logs == SystemLogs::Query,
        "streamingConnectionIdleTimeout": text(settings.streaming_idle_timeout),
        "clusterDNS": settings.cluster_dns,
        "clusterDomain": settings.cluster_domain,
        "resolvConf": settings.resolv_conf,
        "maxPods": settings.max_pods,
        "podPidsLimit": cgroups.pod_pids_limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(-1)),
        "staticPodPath": settings.static_pod_path,
        "crashLoopBackOff": {"maxContainerRestartPeriod": text(settings.longest_restart_delay)},
        "containerLogMaxSize": settings.log_max_bytes.to_string(),
        "containerLogMaxFiles": settings.log_max_files,
        "nodeStatusUpdateFrequency": text(node.heartbeat.status_check),
        "nodeStatusReportFrequency": text(node.heartbeat.status_report),
        "nodeLeaseDurationSeconds": node.heartbeat.lease_duration.as_secs(),
        "nodeStatusMaxImages": node.max_images.map_or(-1, |count| i64::try_from(count).unwrap_or(-1)),
        "seccompDefault": node.seccomp_default,
        "failSwapOn": node.fail_swap_on,
        "protectKernelDefaults": node.protect_kernel_defaults,
        "configMapAndSecretChangeDetectionStrategy": "Watch",
        "cgroupDriver": cgroups.driver.as_str(),
        "cgroupsPerQOS": true,
        "cpuCFSQuota": cgroups.enforce_cpu_limits,
        "cpuCFSQuotaPeriod": text(Duration::from_micros(cgroups.cpu_period_us)),
        "enableServer": true,
        "registerNode": true,
        "serializeImagePulls": node.parallel_pulls == Some(NonZeroUsize::MIN),
        "maxParallelImagePulls": node.parallel_pulls,
        "singleProcessOOMKill": cgroups.single_process_oom_kill,
    });
    let disks = json!({
        "imageGCHighThresholdPercent": node.image_gc.high_percent,
        "imageGCLowThresholdPercent": node.image_gc.low_percent,
        "imageMinimumGCAge": text(node.image_gc.least_age),
        "imageMaximumGCAge": text(node.image_gc.longest_unused.unwrap_or_default()),
        "imagePullCredentialsVerificationPolicy": verification::name(&node.image_verification),
        "volumeStatsAggPeriod": node.volume_period.map_or("-1s".to_owned(), text),
    });
    let all_pods = if cgroups.enforce_allocatable { "pods" } else { "none" };
    let log = json!({
        "enforceNodeAllocatable": [all_pods],
        "enableDebugFlagsHandler": node.sets_verbosity,
        "enableProfilingHandler": node.is_profiled,
        "logging": {"format": "text", "verbosity": node.verbosity},
    });
    let mut shown = written.clone();
    // What is in force goes over what was written: a zero there meant the usual.
    for part in [usual, disks, log] {
        let Value::Object(part) = part else { continue };
        shown.extend(part.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Value::Object(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::documents;

    fn resolve(fields: &str) -> Result<Kubelet, Vec<String>> {
        let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        Kubelet::resolve(&documents::parse(&format!("{head}{fields}")).unwrap().kubelet)
    }

    #[test]
    fn zero_periods_are_the_usual_ones() {
        let usual = resolve("").unwrap();
        let zeroes = "nodeStatusUpdateFrequency: 0s\nnodeStatusReportFrequency: 0s\n";
        assert_eq!(resolve(zeroes).unwrap(), usual);
        assert_eq!(usual.heartbeat, Heartbeat::default());
        assert_eq!(usual.healthz, Some("127.0.0.1:10248".parse().unwrap()));
        let often = resolve("nodeStatusUpdateFrequency: 4s\n").unwrap().heartbeat;
        assert_eq!(often.status_report, Duration::from_secs(4));
    }

    #[test]
    fn images_go_as_was_said() {
        let policy = |fields: &str| resolve(fields).map(|kubelet| kubelet.image_gc);
        let zero = "imageMinimumGCAge: 0s\nimageMaximumGCAge: 0s\n";
        assert_eq!(policy(zero).unwrap(), image_gc::Policy::default());
        let said = policy(
            "imageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 0\n\
             imageMinimumGCAge: 1s\nimageMaximumGCAge: 2s\n",
        );
        let expected = image_gc::Policy {
            high_percent: 100,
            low_percent: 0,
            least_age: Duration::from_secs(1),
            longest_unused: Some(Duration::from_secs(2)),
        };
        assert_eq!(said.unwrap(), expected);
        for wrong in [
            "imageGCHighThresholdPercent: 101",
            "imageGCHighThresholdPercent: 80",
            "imageGCLowThresholdPercent: -1",
            "imageGCLowThresholdPercent: 85",
            "imageMinimumGCAge: -1s",
            "imageMaximumGCAge: 2m",
        ] {
            let faults = policy(wrong).unwrap_err();
            assert!(faults.len() == 1 && faults[0].contains("image"), "{wrong}: {faults:?}");
        }
    }

    #[test]
    fn volumes_are_measured_as_often_as_was_said() {
        for (said, period) in [
            ("0s", Some(USUAL_PERIOD)),
            ("-0s", Some(USUAL_PERIOD)),
            ("3s", Some(Duration::from_secs(3))),
            ("-1s", None),
            ("-1m30s", None),
        ] {
            let given = resolve(&format!("volumeStatsAggPeriod: {said}\n")).unwrap();
            assert_eq!(given.volume_period, period, "{said}");
        }
        assert!(resolve("volumeStatsAggPeriod: -soon\n").is_err());
    }

    #[test]
    fn limits_are_enforced_as_was_said() {
        let policy = |fields: &str| resolve(fields).unwrap().cgroups;
        let usual = CgroupPolicy { pod_pids_limit: Some(4096), ..CgroupPolicy::default() };
        assert_eq!(policy("cpuCFSQuotaPeriod: 0s\nsingleProcessOOMKill: false\n"), usual);
        let given = "cpuCFSQuota: false\ncpuCFSQuotaPeriod: 5ms\nsingleProcessOOMKill: true\npodPidsLimit: -1\n";
        let said = CgroupPolicy {
            enforce_cpu_limits: false,
            cpu_period_us: 5_000,
            single_process_oom_kill: true,
            pod_pids_limit: None,
            ..usual
        };
        assert_eq!(policy(given), said);
        assert_eq!(policy("cgroupDriver: systemd\n").driver, Driver::Systemd);
        assert_eq!(policy("cgroupDriver: ''\n").driver, Driver::Cgroupfs);
        for wrong in ["900us", "1001ms", "soon"] {
            let faults = resolve(&format!("cpuCFSQuotaPeriod: {wrong}\n")).unwrap_err();
            assert!(faults.len() == 1 && faults[0].contains("cpuCFSQuotaPeriod"), "{faults:?}");
        }
    }

    #[test]
    fn as_many_images_are_pulled_at_a_time_as_was_said() {
        let pulls =
            |fields: &str| resolve(fields).map(|node| node.parallel_pulls.map(NonZeroUsize::get));
        assert_eq!(pulls(""), Ok(None));
        assert_eq!(pulls("serializeImagePulls: true\nmaxParallelImagePulls: 1\n"), Ok(Some(1)));
        assert_eq!(pulls("serializeImagePulls: false\nmaxParallelImagePulls: 3\n"), Ok(Some(3)));
        for wrong in
            ["serializeImagePulls: true\nmaxParallelImagePulls: 2\n", "maxParallelImagePulls: 0\n"]
        {
            let faults = pulls(wrong).unwrap_err();
            assert!(
                faults.len() == 1 && faults[0].starts_with("maxParallelImagePulls"),
                "{faults:?}"
            );
        }
    }

    #[test]
    fn the_hosts_logs_are_served_as_far_as_was_said() {
        let logs = |fields: &str| resolve(fields).unwrap().system_logs;
        assert_eq!(logs(""), SystemLogs::Files);
        assert_eq!(logs("enableSystemLogHandler: false\n"), SystemLogs::Off);
        let on = "featureGates: {NodeLogQuery: true}\nenableSystemLogQuery: true\n";
        assert_eq!(logs(on), SystemLogs::Query);
        let faults = resolve("enableSystemLogHandler: false\nenableSystemLogQuery: true\n");
        assert!(faults.unwrap_err()[0].starts_with("enableSystemLogQuery"));
    }

    #[test]
    fn what_serves_for_finding_faults_is_there_unless_it_is_not_wanted() {
        let of = |fields: &str| {
            let kubelet = resolve(fields).unwrap();
            (kubelet.sets_verbosity, kubelet.is_profiled)
        };
        assert_eq!(of(""), (true, true));
        assert_eq!(of("enableDebugFlagsHandler: false\n"), (false, true));
        assert_eq!(of("enableProfilingHandler: false\n"), (true, false));
    }

    #[test]
    fn what_is_kept_back_adds_up() {
        let fields = "kubeReserved: {cpu: 100m, memory: 1Gi}\n\
                      systemReserved: {cpu: '1', ephemeral-storage: 1Gi, pid: '100'}\n";
        let kubelet = resolve(fields).unwrap();
        let (memory_bytes, storage_bytes) = (1 << 30, 1 << 30);
        let expected = Reserved { cpu_millis: 1100, memory_bytes, storage_bytes, pids: 100 };
        assert_eq!(kubelet.reserved, expected);
        let faults = resolve("kubeReserved: {cpu: much, gpu: '1'}\n").unwrap_err();
        assert_eq!(faults.len(), 2, "{faults:?}");
    }

    #[test]
    fn pods_are_held_together_unless_that_is_not_wanted() {
        let of = |list: &str| {
            let kubelet = resolve(&format!("enforceNodeAllocatable: {list}\n"));
            kubelet.map(|kubelet| kubelet.cgroups.enforce_allocatable)
        };
        assert!(resolve("").unwrap().cgroups.enforce_allocatable);
        for (list, expected) in [("[pods]", true), ("[none]", false), ("[]", false)] {
            assert_eq!(of(list), Ok(expected), "{list}");
        }
        for bad in ["[pods, none]", "[kube-reserved]", "[pods, system-reserved]"] {
            let faults = of(bad).unwrap_err();
            assert!(faults[0].starts_with("enforceNodeAllocatable: "), "{faults:?}");
        }
    }

    #[test]
    fn tls_is_as_strict_as_was_said_and_never_laxer() {
        assert!(resolve("tlsMinVersion: VersionTLS13\n").unwrap().tls.only_13);
        assert!(resolve("tlsMinVersion: VersionTLS10\n").is_err());
        let suites = "tlsCipherSuites: [TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305, \
                      TLS_RSA_WITH_AES_256_GCM_SHA384]\n";
        let kubelet = resolve(suites).unwrap();
        assert_eq!(kubelet.tls.suites.len(), 1);
        assert!(kubelet.told[0].contains("TLS_RSA_WITH_AES_256_GCM_SHA384"));
        assert!(resolve("tlsCipherSuites: [TLS_RSA_WITH_AES_256_GCM_SHA384]\n").is_err());
    }

    #[test]
    fn faults_of_every_sort_are_named_together() {
        let faults = resolve(
            "runOnce: true\nfeatureGates: {NoSuch: true}\ncgroupDriver: other\n\
             nodeStatusUpdateFrequency: often\n",
        )
        .unwrap_err();
        assert_eq!(faults.len(), 4, "{faults:?}");
    }
}
