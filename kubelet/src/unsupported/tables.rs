//! The tables: every field of a pod's specification and what becomes of it.

use serde_json::{Map, Value};

use super::Severity;
use super::Support::{Depends, Honoured, List, Object, Refuse, Report};
use super::Table;

type Siblings = Map<String, Value>;

/// `PodSpec`.
pub static POD_SPEC: Table = Table {
    name: "PodSpec",
    fields: &[
        ("activeDeadlineSeconds", Honoured),
        ("affinity", Honoured),
        ("automountServiceAccountToken", Honoured),
        ("containers", List(&CONTAINER)),
        ("dnsConfig", Honoured),
        ("dnsPolicy", Honoured),
        ("enableServiceLinks", Honoured),
        ("ephemeralContainers", Honoured),
        ("hostAliases", Honoured),
        ("hostIPC", Honoured),
        ("hostNetwork", Honoured),
        ("hostPID", Honoured),
        ("hostUsers", Honoured),
        ("hostname", Honoured),
        ("hostnameOverride", Honoured),
        ("imagePullSecrets", Honoured),
        ("initContainers", List(&INIT_CONTAINER)),
        ("nodeName", Honoured),
        ("nodeSelector", Honoured),
        ("os", Honoured),
        ("overhead", Honoured),
        ("preemptionPolicy", Honoured),
        ("priority", Honoured),
        ("priorityClassName", Honoured),
        ("readinessGates", Honoured),
        ("resourceClaims", Refuse("dynamic resource allocation is not supported")),
        ("resources", Object(&RESOURCES)),
        ("restartPolicy", Honoured),
        ("runtimeClassName", Honoured),
        ("schedulerName", Honoured),
        ("schedulingGates", Honoured),
        ("schedulingGroup", Honoured),
        ("securityContext", Object(&POD_SECURITY)),
        ("serviceAccount", Honoured),
        ("serviceAccountName", Honoured),
        ("setHostnameAsFQDN", Honoured),
        ("shareProcessNamespace", Honoured),
        ("subdomain", Honoured),
        ("terminationGracePeriodSeconds", Honoured),
        ("tolerations", Honoured),
        ("topologySpreadConstraints", Honoured),
        ("volumes", List(&VOLUME)),
    ],
};

const DEVICES: &str = "block devices are not supported";

/// `Container`, as a main container.
pub static CONTAINER: Table = Table {
    name: "Container",
    fields: &[
        ("args", Honoured),
        ("command", Honoured),
        ("env", List(&ENV_VAR)),
        ("envFrom", Honoured),
        ("image", Honoured),
        ("imagePullPolicy", Honoured),
        ("lifecycle", Object(&LIFECYCLE)),
        ("livenessProbe", Object(&PROBE)),
        ("name", Honoured),
        ("ports", Honoured),
        ("readinessProbe", Object(&PROBE)),
        ("resizePolicy", Honoured),
        ("resources", Object(&RESOURCES)),
        ("restartPolicy", Honoured),
        ("restartPolicyRules", Honoured),
        ("securityContext", Object(&SECURITY)),
        ("startupProbe", Object(&PROBE)),
        ("stdin", Honoured),
        ("stdinOnce", Honoured),
        ("terminationMessagePath", Honoured),
        ("terminationMessagePolicy", Honoured),
        ("tty", Honoured),
        ("volumeDevices", Refuse(DEVICES)),
        ("volumeMounts", Honoured),
        ("workingDir", Honoured),
    ],
};

/// `Container`, as an init container.
pub static INIT_CONTAINER: Table = Table {
    name: "Container",
    fields: &[
        ("args", Honoured),
        ("command", Honoured),
        ("env", List(&ENV_VAR)),
        ("envFrom", Honoured),
        ("image", Honoured),
        ("imagePullPolicy", Honoured),
        ("lifecycle", Object(&LIFECYCLE)),
        ("livenessProbe", Object(&PROBE)),
        ("name", Honoured),
        ("ports", Honoured),
        ("readinessProbe", Object(&PROBE)),
        ("resizePolicy", Honoured),
        ("resources", Object(&RESOURCES)),
        ("restartPolicy", Honoured),
        ("restartPolicyRules", Honoured),
        ("securityContext", Object(&SECURITY)),
        ("startupProbe", Object(&PROBE)),
        ("stdin", Honoured),
        ("stdinOnce", Honoured),
        ("terminationMessagePath", Honoured),
        ("terminationMessagePolicy", Honoured),
        ("tty", Honoured),
        ("volumeDevices", Refuse(DEVICES)),
        ("volumeMounts", Honoured),
        ("workingDir", Honoured),
    ],
};

/// `Lifecycle`.
pub static LIFECYCLE: Table = Table {
    name: "Lifecycle",
    fields: &[
        ("postStart", Object(&HANDLER)),
        ("preStop", Object(&HANDLER)),
        ("stopSignal", Honoured),
    ],
};

/// `LifecycleHandler`.
pub static HANDLER: Table = Table {
    name: "LifecycleHandler",
    fields: &[
        ("exec", Honoured),
        ("httpGet", Honoured),
        ("sleep", Honoured),
        ("tcpSocket", Refuse("hooks by tcpSocket do not exist any more")),
    ],
};

/// `Probe`.
pub static PROBE: Table = Table {
    name: "Probe",
    fields: &[
        ("exec", Honoured),
        ("failureThreshold", Honoured),
        ("grpc", Honoured),
        ("httpGet", Honoured),
        ("initialDelaySeconds", Honoured),
        ("periodSeconds", Honoured),
        ("successThreshold", Honoured),
        ("tcpSocket", Honoured),
        ("terminationGracePeriodSeconds", Honoured),
        ("timeoutSeconds", Honoured),
    ],
};

/// `EnvVar`.
pub static ENV_VAR: Table = Table {
    name: "EnvVar",
    fields: &[("name", Honoured), ("value", Honoured), ("valueFrom", Object(&ENV_VAR_SOURCE))],
};

/// `EnvVarSource`.
pub static ENV_VAR_SOURCE: Table = Table {
    name: "EnvVarSource",
    fields: &[
        ("configMapKeyRef", Honoured),
        ("fieldRef", Honoured),
        ("fileKeyRef", Honoured),
        ("resourceFieldRef", Honoured),
        ("secretKeyRef", Honoured),
    ],
};

/// `ResourceRequirements`.
pub static RESOURCES: Table = Table {
    name: "ResourceRequirements",
    fields: &[
        ("claims", Refuse("dynamic resource allocation is not supported")),
        ("limits", Honoured),
        ("requests", Honoured),
    ],
};

/// Upstream's runtimes say nothing where a host has no SELinux.
fn selinux_options(_: &Value, _: &Siblings) -> Option<(Severity, &'static str)> {
    let why = "this node has no SELinux, or none with labels for containers";
    (!berth_runtime::has_selinux()).then_some((Severity::Report, why))
}

const WINDOWS: &str = "options for Windows mean nothing on Linux";

/// `SecurityContext`.
pub static SECURITY: Table = Table {
    name: "SecurityContext",
    fields: &[
        ("allowPrivilegeEscalation", Honoured),
        ("appArmorProfile", Honoured),
        ("capabilities", Honoured),
        ("privileged", Honoured),
        ("procMount", Honoured),
        ("readOnlyRootFilesystem", Honoured),
        ("runAsGroup", Honoured),
        ("runAsNonRoot", Honoured),
        ("runAsUser", Honoured),
        ("seLinuxOptions", Depends(selinux_options)),
        ("seccompProfile", Honoured),
        ("windowsOptions", Report(WINDOWS)),
    ],
};

/// `PodSecurityContext`.
pub static POD_SECURITY: Table = Table {
    name: "PodSecurityContext",
    fields: &[
        ("appArmorProfile", Honoured),
        ("fsGroup", Honoured),
        ("fsGroupChangePolicy", Honoured),
        ("runAsGroup", Honoured),
        ("runAsNonRoot", Honoured),
        ("runAsUser", Honoured),
        // Whichever it is: no kind of volume that is there is one which upstream labels by mount option.
        ("seLinuxChangePolicy", Honoured),
        ("seLinuxOptions", Depends(selinux_options)),
        ("seccompProfile", Honoured),
        ("supplementalGroups", Honoured),
        ("supplementalGroupsPolicy", Honoured),
        ("sysctls", Honoured),
        ("windowsOptions", Report(WINDOWS)),
    ],
};

const REMOVED: &str = "volumes of this kind no longer exist in Kubernetes";
const NETWORK: &str = "network volumes of this kind are not supported";

/// `Volume`.
pub static VOLUME: Table = Table {
    name: "Volume",
    fields: &[
        ("awsElasticBlockStore", Refuse(REMOVED)),
        ("azureDisk", Refuse(REMOVED)),
        ("azureFile", Refuse(REMOVED)),
        ("cephfs", Refuse(REMOVED)),
        ("cinder", Refuse(REMOVED)),
        ("configMap", Honoured),
        ("csi", Refuse("CSI volumes are not supported")),
        ("downwardAPI", Honoured),
        ("emptyDir", Object(&EMPTY_DIR)),
        ("ephemeral", Honoured),
        ("fc", Refuse(NETWORK)),
        ("flexVolume", Refuse("flex volumes are not supported, as they run programs of the host")),
        ("flocker", Refuse(REMOVED)),
        ("gcePersistentDisk", Refuse(REMOVED)),
        (
            "gitRepo",
            Refuse(
                "gitRepo volumes are not supported, as a repository can run programs on the host",
            ),
        ),
        ("glusterfs", Refuse(REMOVED)),
        ("hostPath", Honoured),
        ("image", Honoured),
        ("iscsi", Refuse(NETWORK)),
        ("name", Honoured),
        ("nfs", Honoured),
        ("persistentVolumeClaim", Honoured),
        ("photonPersistentDisk", Refuse(REMOVED)),
        ("portworxVolume", Refuse(REMOVED)),
        ("projected", Object(&PROJECTED)),
        ("quobyte", Refuse(REMOVED)),
        ("rbd", Refuse(REMOVED)),
        ("scaleIO", Refuse(REMOVED)),
        ("secret", Honoured),
        ("storageos", Refuse(REMOVED)),
        ("vsphereVolume", Refuse(REMOVED)),
    ],
};

/// `EmptyDirVolumeSource`.
pub static EMPTY_DIR: Table = Table {
    name: "EmptyDirVolumeSource",
    fields: &[("medium", Depends(medium)), ("sizeLimit", Honoured)],
};

/// `ProjectedVolumeSource`.
pub static PROJECTED: Table = Table {
    name: "ProjectedVolumeSource",
    fields: &[("defaultMode", Honoured), ("sources", List(&PROJECTION))],
};

/// `VolumeProjection`.
pub static PROJECTION: Table = Table {
    name: "VolumeProjection",
    fields: &[
        ("clusterTrustBundle", Honoured),
        ("configMap", Honoured),
        ("downwardAPI", Honoured),
        ("podCertificate", Refuse("pod certificates are not supported")),
        ("secret", Honoured),
        ("serviceAccountToken", Honoured),
    ],
};

/// All tables, for the test that compares them with the API.
pub static ALL: &[&Table] = &[
    &POD_SPEC,
    &CONTAINER,
    &INIT_CONTAINER,
    &LIFECYCLE,
    &HANDLER,
    &PROBE,
    &ENV_VAR,
    &ENV_VAR_SOURCE,
    &RESOURCES,
    &SECURITY,
    &POD_SECURITY,
    &VOLUME,
    &EMPTY_DIR,
    &PROJECTED,
    &PROJECTION,
];

fn medium(value: &Value, _: &Siblings) -> Option<(Severity, &'static str)> {
    let known = value.as_str().is_some_and(|m| m == "Memory" || m.starts_with("HugePages"));
    (!known).then_some((Severity::Refuse, "this medium is not supported"))
}
