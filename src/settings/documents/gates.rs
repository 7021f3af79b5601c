//! Feature gates by name: those that are about nodes, and whether berth does what each switches.
//!
//! A gate can say what is so, and nothing else: nothing here is switched. What a gate of another part of
//! Kubernetes says is that part's business; naming it to a node is a mistake, and is refused.

use std::collections::BTreeMap;

/// The gates that berth knows.
const GATES: [(&str, bool); 48] = [
    ("ClusterTrustBundleProjection", true),
    ("ContainerCheckpoint", false),
    ("ContainerRestartRules", true),
    ("ContainerStopSignals", true),
    ("CPUManagerPolicyAlphaOptions", false),
    ("CPUManagerPolicyBetaOptions", false),
    ("CustomCPUCFSQuotaPeriod", true),
    ("DevicePluginCDIDevices", false),
    ("DynamicResourceAllocation", false),
    ("EnvFiles", true),
    ("EventedPLEG", false),
    ("ExtendWebSocketsToKubelet", true),
    ("GracefulNodeShutdown", true),
    ("GracefulNodeShutdownBasedOnPodPriority", true),
    ("ImageMaximumGCAge", true),
    ("ImageVolume", true),
    ("KubeletCgroupDriverFromCRI", false),
    ("KubeletCrashLoopBackOffMax", true),
    ("KubeletEnsureSecretPulledImages", false),
    ("KubeletFineGrainedAuthz", true),
    ("KubeletInUserNamespace", false),
    ("KubeletPodResources", true),
    ("KubeletPodResourcesDynamicResources", true),
    ("KubeletPodResourcesGet", true),
    ("KubeletPodResourcesListUseActivePods", true),
    ("KubeletSeparateDiskGC", false),
    ("KubeletServiceAccountTokenForCredentialProviders", false),
    ("KubeletTracing", false),
    ("LocalStorageCapacityIsolationFSQuotaMonitoring", false),
    ("MemoryQoS", false),
    ("NodeLogQuery", true),
    ("PodCertificateRequest", false),
    ("PodLifecycleSleepAction", true),
    ("PodLifecycleSleepActionAllowZero", true),
    ("ProcMountType", false),
    ("RecursiveReadOnlyMounts", true),
    ("ReduceDefaultCrashLoopBackOffDecay", false),
    ("ResourceHealthStatus", false),
    ("RestartAllContainersOnContainerExits", true),
    ("RotateKubeletClientCertificate", true),
    ("RotateKubeletServerCertificate", true),
    ("SELinuxMount", false),
    ("SidecarContainers", true),
    ("SupplementalGroupsPolicy", true),
    ("TopologyManagerPolicyAlphaOptions", false),
    ("TopologyManagerPolicyBetaOptions", false),
    ("UserNamespacesSupport", true),
    ("WindowsHostNetwork", false),
];

/// What is said of features that is not so.
pub(crate) fn faults(gates: &BTreeMap<String, bool>) -> Vec<String> {
    let fault =
        |(name, wanted): (&String, &bool)| match GATES.iter().find(|(known, _)| known == name) {
            Some((_, is)) if is == wanted => None,
            Some((_, true)) => Some(format!("featureGates: {name} cannot be switched off")),
            Some((_, false)) => Some(format!("featureGates: {name} is not there")),
            None => Some(format!("featureGates: {name} is no feature of a node that berth knows")),
        };
    gates.iter().filter_map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_says_what_is_so_and_nothing_else() {
        let of = |pairs: &[(&str, bool)]| {
            faults(&pairs.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect())
        };
        assert!(of(&[("SidecarContainers", true), ("MemoryQoS", false)]).is_empty());
        let faults = of(&[("SidecarContainers", false), ("MemoryQoS", true), ("NoSuch", true)]);
        assert_eq!(faults.len(), 3);
        assert!(faults[2].contains("SidecarContainers cannot be switched off"), "{faults:?}");
    }
}
