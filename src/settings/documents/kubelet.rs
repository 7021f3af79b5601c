//! `KubeletConfiguration` (`kubelet.config.k8s.io/v1beta1`), all fields of Kubernetes 1.36.
//!
//! A field is read (it has a type here), or it is held against a [`Rule`]: values that say what berth does
//! anyway are accepted, others are refused by name; where berth does the field's job in another way,
//! any value is accepted and that is told. A field that upstream does not know is refused by serde.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::super::duration;

/// What values of a field that is not read are accepted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rule {
    /// Nothing, the zero value, or one of these (JSON): berth does that, and nothing else.
    Usual(&'static [&'static str]),
    /// One of these (JSON); the zero value would mean something else.
    Only(&'static [&'static str]),
    /// Anything; what berth does instead.
    Told(&'static str),
}

use Rule::{Only, Told, Usual};

macro_rules! configuration {
    (
        read { $( $(#[$meta:meta])* $field:ident: $type:ty, )* }
        held { $( $name:literal as $held:ident: $rule:expr, )* }
    ) => {
        /// `kubelet.config.k8s.io/v1beta1`, kind `KubeletConfiguration`.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub(crate) struct KubeletConfiguration {
            $( $(#[$meta])* pub(crate) $field: $type, )*
            $( #[serde(rename = $name)] $held: Option<Value>, )*
        }

        impl KubeletConfiguration {
            /// The fields that are there and not read, with their rules.
            fn held(&self) -> impl Iterator<Item = (&'static str, &Value, Rule)> {
                let all = [$( ($name, self.$held.as_ref(), $rule) ),*];
                all.into_iter().filter_map(|(name, value, rule)| Some((name, value?, rule)))
            }
        }
    };
}

configuration! {
    read {
        api_version: String,
        kind: String,
        /// Where the node's API listens; all addresses when absent.
        address: Option<IpAddr>,
        /// The node's API port, 10250 when absent.
        port: Option<u16>,
        /// Where health is told; loopback when absent.
        healthz_bind_address: Option<IpAddr>,
        /// The health port, 10248 when absent, 0 is off.
        healthz_port: Option<u16>,
        authentication: super::KubeletAuthentication,
        authorization: super::KubeletAuthorization,
        tls_cert_file: Option<PathBuf>,
        tls_private_key_file: Option<PathBuf>,
        /// `VersionTLS12` when absent.
        tls_min_version: Option<String>,
        /// All that are safe when empty.
        tls_cipher_suites: Vec<String>,
        /// Whether the client certificate is renewed; it is when absent.
        rotate_certificates: Option<bool>,
        /// Whether the serving certificate is asked of the cluster.
        #[serde(rename = "serverTLSBootstrap")]
        server_tls_bootstrap: Option<bool>,
        streaming_connection_idle_timeout: Option<String>,
        /// Whether `/logs/` is served; it is when absent.
        enable_system_log_handler: Option<bool>,
        /// Whether `/debug/pprof/` is served; it is when absent.
        enable_profiling_handler: Option<bool>,
        /// Whether queries are, too.
        enable_system_log_query: bool,
        #[serde(rename = "clusterDNS")]
        cluster_dns: Vec<IpAddr>,
        cluster_domain: Option<String>,
        resolv_conf: Option<PathBuf>,
        max_pods: Option<u32>,
        /// No bound when absent or 0.
        pods_per_core: Option<u32>,
        pod_pids_limit: Option<i64>,
        #[serde(rename = "podCIDR")]
        pod_cidr: Option<IpNet>,
        /// Where the files of static pods are.
        static_pod_path: Option<PathBuf>,
        crash_loop_back_off: super::CrashLoopBackOff,
        container_log_max_size: Option<String>,
        container_log_max_files: Option<u32>,
        register_with_taints: Vec<super::Taint>,
        allowed_unsafe_sysctls: Vec<String>,
        /// Whether pods without a profile run under the default one; they do when absent.
        seccomp_default: Option<bool>,
        node_status_update_frequency: Option<String>,
        node_status_report_frequency: Option<String>,
        node_lease_duration_seconds: Option<u32>,
        /// 50 when absent, all when -1.
        node_status_max_images: Option<i32>,
        #[serde(rename = "providerID")]
        provider_id: Option<String>,
        /// Kept back from pods for the rest of the system.
        system_reserved: BTreeMap<String, String>,
        /// Kept back from pods for berth.
        kube_reserved: BTreeMap<String, String>,
        /// What is held to what is not reserved; all pods when absent.
        enforce_node_allocatable: Option<Vec<String>>,
        /// Whether a host with swap is refused; only when that is said.
        fail_swap_on: Option<bool>,
        /// Whether a kernel whose settings are not the kubelet's is refused.
        protect_kernel_defaults: bool,
        cgroup_driver: Option<String>,
        /// Whether CPU limits are enforced; they are when absent.
        #[serde(rename = "cpuCFSQuota")]
        cpu_cfs_quota: Option<bool>,
        /// 100 ms when absent or zero.
        #[serde(rename = "cpuCFSQuotaPeriod")]
        cpu_cfs_quota_period: Option<String>,
        /// Whether an OOM kills one process of a container alone.
        #[serde(rename = "singleProcessOOMKill")]
        single_process_oom_kill: Option<bool>,
        /// Whether one image is pulled at a time; only when that is said, where upstream's usual is that.
        serialize_image_pulls: Option<bool>,
        /// No bound when absent.
        max_parallel_image_pulls: Option<i32>,
        /// How full the disk may get before images are removed; 85 when absent.
        #[serde(rename = "imageGCHighThresholdPercent")]
        image_gc_high_threshold_percent: Option<i32>,
        /// How full it may be then; 80 when absent.
        #[serde(rename = "imageGCLowThresholdPercent")]
        image_gc_low_threshold_percent: Option<i32>,
        /// How long a new image is spared; two minutes when absent or zero.
        #[serde(rename = "imageMinimumGCAge")]
        image_minimum_gc_age: Option<String>,
        /// How long an image may be unused; for ever when absent or zero.
        #[serde(rename = "imageMaximumGCAge")]
        image_maximum_gc_age: Option<String>,
        /// `NeverVerifyPreloadedImages` when absent.
        image_pull_credentials_verification_policy: Option<String>,
        /// With `NeverVerifyAllowlistedImages` alone.
        preloaded_images_verification_allowlist: Vec<String>,
        /// A minute when absent or zero; volumes are not measured when it is negative.
        volume_stats_agg_period: Option<String>,
        /// Upstream's when absent.
        eviction_hard: Option<BTreeMap<String, String>>,
        eviction_soft: BTreeMap<String, String>,
        eviction_soft_grace_period: BTreeMap<String, String>,
        eviction_minimum_reclaim: BTreeMap<String, String>,
        /// In seconds.
        eviction_max_pod_grace_period: Option<i32>,
        /// 5 minutes when absent or zero.
        eviction_pressure_transition_period: Option<String>,
        /// Whether hard thresholds that are not written are the usual ones.
        merge_default_eviction_settings: bool,
        /// How long all pods have when the host goes down; they are not waited for when absent or zero.
        shutdown_grace_period: Option<String>,
        /// How much of it critical pods have, at the end.
        shutdown_grace_period_critical_pods: Option<String>,
        /// Instead of these two, by priority.
        shutdown_grace_period_by_pod_priority: Vec<super::ShutdownBucket>,
        feature_gates: BTreeMap<String, bool>,
        /// Whether `/debug/flags/v` is served; it is when absent.
        enable_debug_flags_handler: Option<bool>,
        logging: super::Logging,
    }
    held {
        "configMapAndSecretChangeDetectionStrategy" as change_detection: Usual(&["\"Watch\""]),
        "containerLogMaxWorkers" as log_workers: Told("logs are rotated where they are written"),
        "containerLogMonitorInterval" as log_interval: Told("logs are rotated at the byte"),
        "containerRuntimeEndpoint" as runtime_endpoint: Told("berth runs containers itself"),
        "contentType" as content_type: Told("the API server is asked for JSON"),
        "cpuManagerPolicy" as cpu_manager: Usual(&["\"none\""]),
        "cpuManagerPolicyOptions" as cpu_manager_options: Usual(&[]),
        "cpuManagerReconcilePeriod" as cpu_manager_period: Told("processors are given to no pod alone"),
        "cgroupRoot" as cgroup_root: Usual(&["\"/\""]),
        "cgroupsPerQOS" as cgroups_per_qos: Only(&["true"]),
        "enableContentionProfiling" as contention_profiling: Usual(&[]),
        "enableControllerAttachDetach" as controller_attach: Only(&["true"]),
        "enableDebuggingHandlers" as debugging_handlers: Only(&["true"]),
        "enableServer" as enable_server: Only(&["true"]),
        "eventBurst" as event_burst: Told("events are held back as upstream's spam filter does"),
        "eventRecordQPS" as event_rate: Told("events are held back as upstream's spam filter does"),
        "fileCheckFrequency" as file_period: Told("files of static pods are followed as they change"),
        "hairpinMode" as hairpin: Usual(&["\"promiscuous-bridge\"", "\"hairpin-veth\""]),
        "httpCheckFrequency" as http_period: Told("there are no static pods from a URL"),
        "imageServiceEndpoint" as image_endpoint: Told("berth pulls images itself"),
        "iptablesDropBit" as drop_bit: Told("no iptables rules are made"),
        "iptablesMasqueradeBit" as masquerade_bit: Told("no iptables rules are made"),
        "kernelMemcgNotification" as memcg_notification: Told("memory is looked at every 10 seconds"),
        "kubeAPIBurst" as api_burst: Told("requests to the API server are spaced by its own answers"),
        "kubeAPIQPS" as api_rate: Told("requests to the API server are spaced by its own answers"),
        "kubeReservedCgroup" as kube_cgroup: Usual(&[]),
        "kubeletCgroups" as kubelet_cgroups: Usual(&[]),
        "localStorageCapacityIsolation" as storage_isolation: Only(&["true"]),
        "makeIPTablesUtilChains" as util_chains: Told("no iptables rules are made"),
        "maxOpenFiles" as open_files: Told("the service manager sets it"),
        "memoryManagerPolicy" as memory_manager: Usual(&["\"None\""]),
        "memoryReservationPolicy" as memory_reservation: Usual(&["\"None\""]),
        "memorySwap" as memory_swap:
            Usual(&["{\"swapBehavior\": \"\"}", "{\"swapBehavior\": \"NoSwap\"}"]),
        "memoryThrottlingFactor" as throttling: Told("memory.high is not set"),
        "oomScoreAdj" as oom_score: Told("the service manager sets it"),
        "podLogsDir" as logs_dir: Usual(&["\"/var/log/pods\"", "\"/var/log/pods/\""]),
        "qosReserved" as qos_reserved: Usual(&[]),
        "readOnlyPort" as read_only_port: Usual(&[]),
        "registerNode" as register_node: Only(&["true"]),
        "registryBurst" as registry_burst: Told("pulls are not spaced by a rate"),
        "registryPullQPS" as registry_rate: Told("pulls are not spaced by a rate"),
        "reservedMemory" as reserved_memory: Usual(&[]),
        "reservedSystemCPUs" as reserved_cpus: Usual(&[]),
        "runOnce" as run_once: Usual(&[]),
        "runtimeRequestTimeout" as request_timeout: Told("berth runs containers itself"),
        "showHiddenMetricsForVersion" as hidden_metrics: Usual(&[]),
        "staticPodURL" as static_url: Usual(&[]),
        "staticPodURLHeader" as static_header: Usual(&[]),
        "syncFrequency" as sync_period: Told("pods are looked at when something changes"),
        "systemCgroups" as system_cgroups: Usual(&[]),
        "systemReservedCgroup" as system_cgroup: Usual(&[]),
        "tlsCurvePreferences" as curves: Usual(&[]),
        "topologyManagerPolicy" as topology: Usual(&["\"none\""]),
        "topologyManagerPolicyOptions" as topology_options: Usual(&[]),
        "topologyManagerScope" as topology_scope: Usual(&["\"container\""]),
        "tracing" as tracing: Usual(&[]),
        "userNamespaces" as user_namespaces: Usual(&["{\"idsPerPod\": 65536}"]),
        "volumePluginDir" as plugin_dir: Told("FlexVolume plugins are not run"),
    }
}

impl KubeletConfiguration {
    /// The fields whose values cannot be honoured.
    pub(crate) fn refused(&self) -> Vec<String> {
        let held = self.held().filter(|(_, value, rule)| !accepts(*rule, value));
        held.map(|(name, value, rule)| {
            let allowed = match rule {
                Usual(allowed) | Only(allowed) => allowed.join(" or "),
                Told(_) => String::new(),
            };
            match allowed.as_str() {
                "" => format!("{name}: {value} is not supported"),
                allowed => format!("{name}: {value} is not supported, only {allowed}"),
            }
        })
        .collect()
    }

    /// The fields whose job is done in another way, with that.
    pub(crate) fn told(&self) -> Vec<String> {
        let held = self.held().filter(|(_, value, _)| !is_zero(value));
        let mut all: Vec<_> = held
            .filter_map(|(name, _, rule)| match rule {
                Told(what) => Some(format!("{name}: {what}")),
                _ => None,
            })
            .collect();
        if self.logging.flush_frequency.as_ref().is_some_and(|value| !is_zero(value)) {
            all.push("logging.flushFrequency: nothing is held back".into());
        }
        all
    }
}

impl super::Logging {
    /// What of it cannot be honoured.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if !matches!(self.format.as_str(), "" | "text") {
            let format = &self.format;
            faults.push(format!("logging.format: {format:?} is not supported, only \"text\""));
        }
        if !self.vmodule.is_empty() {
            faults.push("logging.vmodule is not supported: there are no levels of files".into());
        }
        if self.options.as_ref().is_some_and(|value| !is_zero(value)) {
            faults.push("logging.options: output is not split, and not held back".into());
        }
        faults
    }
}

fn accepts(rule: Rule, value: &Value) -> bool {
    let one_of = |allowed: &[&str]| {
        let allowed = allowed.iter().filter_map(|text| serde_json::from_str(text).ok());
        let mut allowed = allowed.collect::<Vec<Value>>().into_iter();
        allowed.any(|allowed| is_same(&allowed, value))
    };
    match rule {
        Usual(allowed) => is_zero(value) || one_of(allowed),
        Only(allowed) => one_of(allowed),
        Told(_) => true,
    }
}

/// Whether upstream's defaulting takes a value for absent.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => {
            text.is_empty() || duration(text).is_some_and(|duration| duration.is_zero())
        }
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.values().all(is_zero),
    }
}

/// Whether two values mean the same: durations can be written in more than one way.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => {
            a == b || duration(a).is_some() && duration(a) == duration(b)
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> KubeletConfiguration {
        serde_saphyr::from_str(fields).unwrap()
    }

    /// What kubeadm 1.36 writes on a host with systemd-resolved.
    pub(crate) const KUBEADM: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization:
  mode: Webhook
  webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}
cgroupDriver: systemd
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: \"\"
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
kind: KubeletConfiguration
logging:
  flushFrequency: 0
  options:
    json: {infoBufferSize: \"0\"}
    text: {infoBufferSize: \"0\"}
  verbosity: 0
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
resolvConf: /run/systemd/resolve/resolv.conf
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
";

    #[test]
    fn what_kubeadm_writes_is_honoured() {
        let kubeadm = read(KUBEADM);
        assert_eq!((kubeadm.refused(), kubeadm.told()), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_field_that_is_not_honoured_is_refused_or_told_by_its_name() {
        for field in [
            "cpuManagerPolicy: static",
            "readOnlyPort: 10255",
            "runOnce: true",
            "registerNode: false",
            "memorySwap: {swapBehavior: LimitedSwap}",
            "tracing: {endpoint: 'localhost:4317'}",
            "topologyManagerPolicy: single-numa-node",
            "reservedSystemCPUs: 0-1",
            "staticPodURL: http://x/",
        ] {
            let refused = read(field).refused();
            let name = field.split(':').next().unwrap();
            assert!(refused.len() == 1 && refused[0].starts_with(name), "{field}: {refused:?}");
        }
        for field in
            ["kernelMemcgNotification: true", "registryPullQPS: 7", "logging: {flushFrequency: 5s}"]
        {
            let given = read(field);
            assert_eq!((given.refused().len(), given.told().len()), (0, 1), "{field}");
        }
        let read_logging = |text: &str| read(text).logging;
        for refused in
            ["{format: json}", "{vmodule: [{}]}", "{options: {text: {splitStream: true}}}"]
        {
            let logging = read_logging(&format!("logging: {refused}"));
            assert!(
                logging.faults().iter().all(|fault| fault.starts_with("logging.")),
                "{refused}"
            );
            assert_eq!(logging.faults().len(), 1, "{refused}");
        }
        let taken = read_logging("logging: {format: text, verbosity: 4, flushFrequency: 5s}");
        assert_eq!((taken.faults(), taken.verbosity), (vec![], 4));
        for field in ["cpuCFSQuotaPeriod: 0.1s", "registerNode: true", "readOnlyPort: 0"] {
            let given = read(field);
            assert_eq!((given.refused().len(), given.told().len()), (0, 0), "{field}");
        }
        assert!(serde_saphyr::from_str::<KubeletConfiguration>("maxPodz: 3").is_err());
    }
}
