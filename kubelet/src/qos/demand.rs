//! A pod's requests and limits, parsed once and summed the way the scheduler sums them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use super::Class;
use crate::quantity::{InvalidQuantity, Quantity};

/// Amounts by resource name.
pub type ResourceAmounts = BTreeMap<String, Quantity>;

/// A request or limit that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{owner}: {list}[{resource}]")]
pub struct InvalidResource {
    /// The container, or `pod`.
    pub owner: String,
    /// `requests`, `limits` or `overhead`.
    pub list: &'static str,
    /// The resource's name.
    pub resource: String,
    /// What is wrong with the amount.
    #[source]
    pub source: InvalidQuantity,
}

/// What one container asks for.
#[derive(Debug, Clone, Default)]
pub struct ContainerDemand {
    /// The container's name.
    pub name: String,
    /// Whether it is an init container that keeps running (`restartPolicy: Always`).
    pub is_sidecar: bool,
    /// Requests; a limit without a request stands for both.
    pub requests: ResourceAmounts,
    /// Limits as written.
    pub limits: ResourceAmounts,
}

impl ContainerDemand {
    /// The request for a resource, or zero.
    pub fn request(&self, resource: &str) -> Quantity {
        self.requests.get(resource).copied().unwrap_or_default()
    }

    /// The limit of a resource, where there is one above zero.
    pub fn limit(&self, resource: &str) -> Option<Quantity> {
        self.limits.get(resource).copied().filter(Quantity::is_positive)
    }
}

/// What a pod asks for.
#[derive(Debug, Clone, Default)]
pub struct PodDemand {
    /// Init containers in order, sidecars among them.
    pub init_containers: Vec<ContainerDemand>,
    /// Main containers in order.
    pub containers: Vec<ContainerDemand>,
    /// The pod's own requests and limits (`spec.resources`); its name is empty.
    pub pod: Option<ContainerDemand>,
    /// What the runtime class adds.
    pub overhead: ResourceAmounts,
}

fn parse_list(
    owner: &str,
    list: &'static str,
    amounts: Option<&BTreeMap<String, ApiQuantity>>,
) -> Result<ResourceAmounts, InvalidResource> {
    let parse = |(resource, amount): (&String, &ApiQuantity)| match Quantity::try_from(amount) {
        Ok(amount) => Ok((resource.clone(), amount)),
        Err(source) => Err(InvalidResource {
            owner: owner.to_owned(),
            list,
            resource: resource.clone(),
            source,
        }),
    };
    amounts.into_iter().flatten().map(parse).collect()
}

fn parse_requirements(
    owner: &str,
    requirements: Option<&ResourceRequirements>,
) -> Result<ContainerDemand, InvalidResource> {
    let limits = parse_list(owner, "limits", requirements.and_then(|r| r.limits.as_ref()))?;
    let mut requests =
        parse_list(owner, "requests", requirements.and_then(|r| r.requests.as_ref()))?;
    for (resource, limit) in &limits {
        requests.entry(resource.clone()).or_insert(*limit);
    }
    Ok(ContainerDemand { name: String::new(), is_sidecar: false, requests, limits })
}

fn parse_container(container: &Container) -> Result<ContainerDemand, InvalidResource> {
    let demand = parse_requirements(&container.name, container.resources.as_ref())?;
    Ok(ContainerDemand {
        name: container.name.clone(),
        is_sidecar: container.restart_policy.as_deref() == Some("Always"),
        ..demand
    })
}

impl PodDemand {
    /// Reads all requests and limits of a pod.
    pub fn parse(pod: &Pod) -> Result<Self, InvalidResource> {
        let Some(spec) = &pod.spec else {
            return Ok(Self::default());
        };
        let init = spec.init_containers.as_deref().unwrap_or_default();
        let main = |container| {
            parse_container(container).map(|demand| ContainerDemand { is_sidecar: false, ..demand })
        };
        let own = match &spec.resources {
            Some(requirements) => Some(parse_requirements("pod", Some(requirements))?),
            None => None,
        };
        Ok(Self {
            init_containers: init.iter().map(parse_container).collect::<Result<_, _>>()?,
            containers: spec.containers.iter().map(main).collect::<Result<_, _>>()?,
            pod: own.filter(|own| !own.requests.is_empty() || !own.limits.is_empty()),
            overhead: parse_list("pod", "overhead", spec.overhead.as_ref())?,
        })
    }

    /// The named container, main or init.
    pub fn container(&self, name: &str) -> Option<&ContainerDemand> {
        self.all().find(|c| c.name == name)
    }

    fn all(&self) -> impl Iterator<Item = &ContainerDemand> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// The pod's QoS class.
    pub fn class(&self) -> Class {
        match &self.pod {
            Some(own) => class_of(std::iter::once(own)),
            None => class_of(self.all()),
        }
    }

    /// What the scheduler reserves: the larger of the main containers together and each init
    /// container with the sidecars before it, pod-level amounts in place of either, plus overhead.
    pub fn requests(&self) -> ResourceAmounts {
        self.total(|c| &c.requests)
    }

    /// The limits of the pod, summed like the requests. A resource that only some containers limit is
    /// in it too; [`Self::every_container_limits`] tells.
    pub fn limits(&self) -> ResourceAmounts {
        let mut limits = self.total_without_overhead(|c| &c.limits);
        for (resource, amount) in &self.overhead {
            limits.entry(resource.clone()).and_modify(|limit| {
                if limit.is_positive() {
                    *limit = *limit + *amount;
                }
            });
        }
        limits
    }

    /// Whether the pod as a whole is bounded in a resource: by a pod-level limit, or because each of
    /// its containers has a limit.
    pub fn every_container_limits(&self, resource: &str) -> bool {
        if self.pod.as_ref().is_some_and(|own| own.limit(resource).is_some()) {
            return true;
        }
        self.all().all(|c| c.limit(resource).is_some())
    }

    /// Memory that the pod requests beyond what its containers do, split evenly among all of them,
    /// init containers too.
    pub(super) fn unclaimed_memory_bytes_a_container(&self) -> i64 {
        let Some(own) = self.pod.as_ref().and_then(|own| own.requests.get("memory")) else {
            return 0;
        };
        let claimed = self.sum_of_containers(|c| &c.requests);
        let claimed = claimed.get("memory").copied().unwrap_or_default();
        let containers = self.all().count().max(1);
        own.minus(claimed).value().max(0) / i64::try_from(containers).unwrap_or(i64::MAX)
    }

    fn total(&self, list: fn(&ContainerDemand) -> &ResourceAmounts) -> ResourceAmounts {
        let mut total = self.total_without_overhead(list);
        add(&mut total, &self.overhead);
        total
    }

    fn total_without_overhead(
        &self,
        list: fn(&ContainerDemand) -> &ResourceAmounts,
    ) -> ResourceAmounts {
        let mut total = self.sum_of_containers(list);
        for (resource, amount) in self.pod.iter().flat_map(list) {
            total.insert(resource.clone(), *amount);
        }
        total
    }

    fn sum_of_containers(&self, list: fn(&ContainerDemand) -> &ResourceAmounts) -> ResourceAmounts {
        let mut running = ResourceAmounts::new();
        for container in &self.containers {
            add(&mut running, list(container));
        }
        let mut sidecars = ResourceAmounts::new();
        let mut peak = ResourceAmounts::new();
        for container in &self.init_containers {
            if container.is_sidecar {
                add(&mut running, list(container));
                add(&mut sidecars, list(container));
                raise(&mut peak, &sidecars);
            } else {
                let mut with_sidecars = list(container).clone();
                add(&mut with_sidecars, &sidecars);
                raise(&mut peak, &with_sidecars);
            }
        }
        raise(&mut running, &peak);
        running
    }
}

fn add(total: &mut ResourceAmounts, amounts: &ResourceAmounts) {
    for (resource, amount) in amounts {
        let sum = total.entry(resource.clone()).or_default();
        *sum = *sum + *amount;
    }
}

fn raise(total: &mut ResourceAmounts, amounts: &ResourceAmounts) {
    for (resource, amount) in amounts {
        let highest = total.entry(resource.clone()).or_insert(*amount);
        *highest = (*highest).max(*amount);
    }
}

fn class_of<'c>(demands: impl Iterator<Item = &'c ContainerDemand>) -> Class {
    const COUNTED: [&str; 2] = ["cpu", "memory"];
    let mut requests = ResourceAmounts::new();
    let mut limits = ResourceAmounts::new();
    let mut all_limited = true;
    for demand in demands {
        for resource in COUNTED {
            let sum = |total: &mut ResourceAmounts, amount: Quantity| {
                let sum = total.entry(resource.to_owned()).or_default();
                *sum = *sum + amount;
            };
            if demand.request(resource).is_positive() {
                sum(&mut requests, demand.request(resource));
            }
            match demand.limit(resource) {
                Some(limit) => sum(&mut limits, limit),
                None => all_limited = false,
            }
        }
    }
    if requests.is_empty() && limits.is_empty() {
        Class::BestEffort
    } else if all_limited && requests == limits {
        Class::Guaranteed
    } else {
        Class::Burstable
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn demand(spec: serde_json::Value) -> PodDemand {
        PodDemand::parse(&serde_json::from_value(json!({"spec": spec})).unwrap()).unwrap()
    }

    fn cpu(amounts: &ResourceAmounts) -> String {
        amounts["cpu"].to_string()
    }

    #[test]
    fn requests_are_the_larger_of_init_and_main_containers() {
        let with = |amount: &str| json!({"requests": {"cpu": amount}});
        let main = json!([{"name": "a", "resources": with("1")}, {"name": "b", "resources": with("500m")}]);
        assert_eq!(cpu(&demand(json!({"containers": main})).requests()), "1500m");
        let init = json!([{"name": "i", "resources": with("2")}]);
        let both = demand(json!({"containers": main, "initContainers": init}));
        assert_eq!(cpu(&both.requests()), "2");
        let sidecar_first = json!([
            {"name": "s", "restartPolicy": "Always", "resources": with("1")},
            {"name": "i", "resources": with("2")},
        ]);
        let demand = demand(
            json!({"containers": main, "initContainers": sidecar_first, "overhead": {"cpu": "100m"}}),
        );
        assert_eq!(cpu(&demand.requests()), "3100m");
    }

    #[test]
    fn pod_level_amounts_replace_the_sum() {
        let demand = demand(json!({
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}],
            "resources": {"limits": {"cpu": "4"}},
        }));
        assert_eq!(cpu(&demand.requests()), "4");
        assert_eq!(demand.requests()["memory"].to_string(), "1Gi");
        assert!(demand.every_container_limits("cpu"));
        assert!(!demand.every_container_limits("memory"));
    }

    #[test]
    fn an_unreadable_amount_names_its_place() {
        let pod = json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "lots"}}}]}});
        let error = PodDemand::parse(&serde_json::from_value(pod).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "a: limits[cpu]");
    }
}
