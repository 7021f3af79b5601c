//! Who may do what, by Role, ClusterRole and their bindings (`rbac.authorization.k8s.io/v1`): reading
//! the rules, and that nobody grants what they have not got themselves. Works on whatever objects it
//! is given; nothing here is allowed that no rule says.
//!
//! Differs: `nonResourceURLs` are stored and only a master may grant them, but the paths they speak of
//! (discovery, health) are open to every authenticated user anyway; `aggregationRule` is refused.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::http::access::{ANONYMOUS, Identity, NODES};
use crate::object::ObjectExt;
use crate::resource::{Kind, key, prefix};
use crate::store::{Store, Tx};

/// Where roles and bindings are read from.
pub(crate) trait Objects {
    /// One object.
    fn one(&self, key: &str) -> Option<Arc<Value>>;
    /// Those of a prefix.
    fn all(&self, prefix: &str) -> Vec<(String, Arc<Value>)>;
}

impl Objects for Store {
    fn one(&self, key: &str) -> Option<Arc<Value>> {
        self.get(key)
    }

    fn all(&self, prefix: &str) -> Vec<(String, Arc<Value>)> {
        self.list(prefix).items
    }
}

impl Objects for Tx<'_> {
    fn one(&self, key: &str) -> Option<Arc<Value>> {
        self.get(key)
    }

    fn all(&self, prefix: &str) -> Vec<(String, Arc<Value>)> {
        self.list(prefix)
    }
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asked<'a> {
    /// The verb.
    pub verb: &'a str,
    /// The API group, "" for core.
    pub group: &'a str,
    /// The plural.
    pub resource: &'a str,
    /// What below the object; "" for itself.
    pub subresource: &'a str,
    /// The namespace; "" for cluster-scoped resources and for all namespaces.
    pub namespace: &'a str,
    /// The object; "" for collections.
    pub name: &'a str,
}

/// Whether some rule of somebody's allows it.
pub(crate) fn allows(objects: &impl Objects, who: &Identity, asked: &Asked<'_>) -> bool {
    rules_of(objects, who, asked.namespace).any(|rule| covers(&rule, asked))
}

/// The rules that count for somebody in a namespace; those of the whole cluster are the first.
pub(crate) fn rules_of(
    objects: &impl Objects,
    who: &Identity,
    namespace: &str,
) -> impl Iterator<Item = Value> {
    let mut bindings = objects.all(&prefix(Kind::ClusterRoleBinding, ""));
    if !namespace.is_empty() {
        bindings.extend(objects.all(&prefix(Kind::RoleBinding, namespace)));
    }
    let own = bindings.into_iter().filter(|(_, binding)| names(binding, who));
    own.flat_map(|(_, binding)| rules(objects, &binding))
}

/// Whether a binding is about somebody.
fn names(binding: &Value, who: &Identity) -> bool {
    binding.list("/subjects").iter().any(|subject| {
        let name = subject.text("/name");
        match subject.text("/kind") {
            "User" => name == who.user,
            "Group" => {
                (name == "system:authenticated" && who.user != ANONYMOUS)
                    || who.groups.iter().any(|group| group == name)
            }
            "ServiceAccount" => {
                let namespace = subject.text("/namespace");
                who.user == format!("system:serviceaccount:{namespace}:{name}")
            }
            _ => false,
        }
    })
}

/// The rules of the role that a binding names.
fn rules(objects: &impl Objects, binding: &Value) -> Vec<Value> {
    let name = binding.text("/roleRef/name");
    let role = match binding.text("/roleRef/kind") {
        "ClusterRole" => objects.one(&key(Kind::ClusterRole, "", name)),
        "Role" if !binding.namespace().is_empty() => {
            objects.one(&key(Kind::Role, binding.namespace(), name))
        }
        _ => None,
    };
    role.map(|role| role.list("/rules").to_vec()).unwrap_or_default()
}

fn covers(rule: &Value, asked: &Asked<'_>) -> bool {
    let any = |field: &str, fits: &dyn Fn(&str) -> bool| {
        rule.list(field).iter().filter_map(Value::as_str).any(fits)
    };
    let is = |wanted: &str, given: &str| given == "*" || given == wanted;
    let names = rule.list("/resourceNames");
    any("/verbs", &|verb| is(asked.verb, verb))
        && any("/apiGroups", &|group| is(asked.group, group))
        && any("/resources", &|resource| match (resource.split_once('/'), asked.subresource) {
            _ if resource == "*" => true,
            (None, "") => resource == asked.resource,
            (Some((of, sub)), wanted) if !wanted.is_empty() => {
                is(asked.resource, of) && sub == wanted
            }
            _ => false,
        })
        && (names.is_empty() || names.iter().any(|name| name.as_str() == Some(asked.name)))
}

/// Whether somebody may write a role or a binding: they hold every right that it gives, or may
/// `escalate` (`bind`) it.
pub(crate) fn may_grant(
    objects: &impl Objects,
    who: &Identity,
    (kind, object): (Kind, &Value),
) -> bool {
    if who.is_master() {
        return true;
    }
    let (given, verb, resource, name) = match kind {
        Kind::Role => (object.list("/rules").to_vec(), "escalate", "roles", object.name()),
        Kind::ClusterRole => {
            (object.list("/rules").to_vec(), "escalate", "clusterroles", object.name())
        }
        Kind::RoleBinding | Kind::ClusterRoleBinding => {
            let resource = match object.text("/roleRef/kind") {
                "ClusterRole" => "clusterroles",
                _ => "roles",
            };
            (rules(objects, object), "bind", resource, object.text("/roleRef/name"))
        }
        _ => return true,
    };
    let namespace = object.namespace();
    let group = "rbac.authorization.k8s.io";
    let asked = Asked { verb, group, resource, subresource: "", namespace, name };
    allows(objects, who, &asked) || given.iter().all(|rule| holds(objects, who, (rule, namespace)))
}

/// Whether somebody has every right of a rule.
fn holds(objects: &impl Objects, who: &Identity, (rule, namespace): (&Value, &str)) -> bool {
    if !rule.list("/nonResourceURLs").is_empty() {
        return false;
    }
    let texts = |field: &str| rule.list(field).iter().filter_map(Value::as_str);
    let mut object_names: Vec<&str> = texts("/resourceNames").collect();
    if object_names.is_empty() {
        object_names.push("");
    }
    texts("/verbs").all(|verb| {
        texts("/apiGroups").all(|group| {
            texts("/resources").all(|resource| {
                let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                object_names.iter().all(|name| {
                    let asked = Asked { verb, group, resource, subresource, namespace, name };
                    allows(objects, who, &asked)
                })
            })
        })
    })
}

/// The roles that always exist, and who has them.
pub(crate) fn defaults() -> Vec<(Kind, Value)> {
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let reads: &[&str] = &["get", "list", "watch"];
    let writes: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
    let seen: &[&str] = &[
        "bindings",
        "configmaps",
        "endpoints",
        "events",
        "limitranges",
        "namespaces",
        "namespaces/status",
        "persistentvolumeclaims",
        "persistentvolumeclaims/status",
        "pods",
        "pods/log",
        "pods/status",
        "serviceaccounts",
        "services",
        "services/status",
    ];
    let worked: &[&str] = &[
        "configmaps",
        "endpoints",
        "events",
        "persistentvolumeclaims",
        "pods",
        "pods/attach",
        "pods/eviction",
        "pods/exec",
        "pods/portforward",
        "secrets",
        "serviceaccounts",
        "serviceaccounts/token",
        "services",
    ];
    let slices = rule(&["discovery.k8s.io"], &["endpointslices"], reads);
    let leases = |verbs| rule(&["coordination.k8s.io"], &["leases"], verbs);
    let view = vec![rule(&[""], seen, reads), slices, leases(reads)];
    let mut edit = view.clone();
    edit.extend([
        rule(&[""], &["secrets", "pods/attach", "pods/exec", "pods/portforward"], reads),
        rule(&[""], worked, writes),
        leases(writes),
    ]);
    let mut admin = edit.clone();
    let all = [reads, writes].concat();
    admin.push(rule(&["rbac.authorization.k8s.io"], &["roles", "rolebindings"], &all));
    let everything = json!([
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
        {"nonResourceURLs": ["*"], "verbs": ["*"]},
    ]);
    let role = |name: &str, rules: Value| {
        (
            Kind::ClusterRole,
            json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
                "rules": rules,
            }),
        )
    };
    let masters = json!({
        "metadata": {"name": "cluster-admin",
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group",
            "name": "system:masters"}],
    });
    let mut all = vec![
        role("cluster-admin", everything),
        role("admin", admin.into()),
        role("edit", edit.into()),
        role("view", view.into()),
        (Kind::ClusterRoleBinding, masters),
    ];
    all.extend(joining());
    all
}

/// The group of the tokens that `kubeadm token create` makes.
const JOINING: &str = "system:bootstrappers:kubeadm:default-node-token";

/// What lets machines join by a bootstrap token, under kubeadm's and upstream's names: they read the
/// description of the cluster, ask for a certificate, and get it without a person, as nodes get their
/// next one.
fn joining() -> Vec<(Kind, Value)> {
    let labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    let group = "rbac.authorization.k8s.io";
    let requests = |resource: &str, verbs: &[&str]| json!([{"apiGroups": ["certificates.k8s.io"], "resources": [resource], "verbs": verbs}]);
    let role = |name: &str, rules: Value| {
        (Kind::ClusterRole, json!({"metadata": {"name": name, "labels": labels}, "rules": rules}))
    };
    let bound = |name: &str, role: &str, to: &str| {
        let object = json!({
            "metadata": {"name": name, "labels": labels},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": group, "kind": "Group", "name": to}],
        });
        (Kind::ClusterRoleBinding, object)
    };
    let bootstrapper = "system:node-bootstrapper";
    let prefix = "system:certificates.k8s.io:certificatesigningrequests";
    let (any, own) = (format!("{prefix}:nodeclient"), format!("{prefix}:selfnodeclient"));
    let reader = "kubeadm:bootstrap-signer-clusterinfo";
    let public = json!({"name": reader, "namespace": "kube-public"});
    let rule = json!({"apiGroups": [""], "resources": ["configmaps"],
        "resourceNames": ["cluster-info"], "verbs": ["get"]});
    let asking: &[&str] = &["create", "get", "list", "watch"];
    vec![
        role(bootstrapper, requests("certificatesigningrequests", asking)),
        role(&any, requests("certificatesigningrequests/nodeclient", &["create"])),
        role(&own, requests("certificatesigningrequests/selfnodeclient", &["create"])),
        bound("kubeadm:kubelet-bootstrap", bootstrapper, JOINING),
        bound("kubeadm:node-autoapprove-bootstrap", &any, JOINING),
        bound("kubeadm:node-autoapprove-certificate-rotation", &own, NODES),
        (Kind::Role, json!({"metadata": public, "rules": [rule]})),
        (
            Kind::RoleBinding,
            json!({
                "metadata": public,
                "roleRef": {"apiGroup": group, "kind": "Role", "name": reader},
                "subjects": [{"apiGroup": group, "kind": "User", "name": ANONYMOUS}],
            }),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Default)]
    struct Shelf(BTreeMap<String, Arc<Value>>);

    impl Objects for Shelf {
        fn one(&self, key: &str) -> Option<Arc<Value>> {
            self.0.get(key).cloned()
        }

        fn all(&self, prefix: &str) -> Vec<(String, Arc<Value>)> {
            let found = self.0.iter().filter(|(key, _)| key.starts_with(prefix));
            found.map(|(key, object)| (key.clone(), Arc::clone(object))).collect()
        }
    }

    impl Shelf {
        fn put(&mut self, kind: Kind, object: Value) {
            self.0.insert(key(kind, object.namespace(), object.name()), Arc::new(object));
        }
    }

    fn account() -> Identity {
        Identity {
            user: "system:serviceaccount:a:robot".into(),
            groups: vec!["system:serviceaccounts".into(), "system:serviceaccounts:a".into()],
        }
    }

    fn objects(rules: Value) -> Shelf {
        let mut objects = Shelf::default();
        objects
            .put(Kind::Role, json!({"metadata": {"name": "r", "namespace": "a"}, "rules": rules}));
        objects.put(
            Kind::RoleBinding,
            json!({
                "metadata": {"name": "b", "namespace": "a"},
                "roleRef": {"kind": "Role", "name": "r"},
                "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "a"}],
            }),
        );
        objects
    }

    fn asked<'a>(verb: &'a str, resource: &'a str, namespace: &'a str) -> Asked<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        Asked { verb, group: "", resource, subresource, namespace, name: "x" }
    }

    #[test]
    fn a_role_gives_what_its_rules_say_in_its_namespace_and_nothing_else() {
        let objects = objects(json!([
            {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["x"], "verbs": ["get"]},
        ]));
        let may = |verb, resource, namespace| {
            allows(&objects, &account(), &asked(verb, resource, namespace))
        };
        assert!(
            may("get", "pods", "a") && may("get", "pods/log", "a") && may("get", "secrets", "a")
        );
        assert!(!may("get", "pods/exec", "a") && !may("delete", "pods", "a"));
        assert!(!may("get", "pods", "b") && !may("list", "pods", ""));
        let unnamed = Asked { name: "", ..asked("get", "secrets", "a") };
        assert!(!allows(&objects, &account(), &unnamed));
        let stranger = Identity { user: "system:serviceaccount:b:robot".into(), groups: vec![] };
        assert!(!allows(&objects, &stranger, &asked("get", "pods", "a")));
        let other_group = Asked { group: "apps", ..asked("get", "pods", "a") };
        assert!(!allows(&objects, &account(), &other_group));
    }

    #[test]
    fn nobody_grants_what_they_have_not_got() {
        let mut objects = objects(json!([
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]},
        ]));
        let role = |resources: &[&str], verbs: &[&str]| {
            json!({
                "metadata": {"name": "new", "namespace": "a"},
                "rules": [{"apiGroups": [""], "resources": resources, "verbs": verbs}],
            })
        };
        let grants =
            |objects: &Shelf, object: &Value| may_grant(objects, &account(), (Kind::Role, object));
        assert!(grants(&objects, &role(&["pods"], &["get"])));
        assert!(!grants(&objects, &role(&["pods"], &["*"])));
        assert!(!grants(&objects, &role(&["*"], &["get"])));
        assert!(!grants(&objects, &role(&["pods", "secrets"], &["get"])));
        for (kind, object) in defaults() {
            objects.put(kind, object);
        }
        let admin = json!({"metadata": {"name": "mine", "namespace": "a"},
            "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"}});
        assert!(!may_grant(&objects, &account(), (Kind::RoleBinding, &admin)));
        let master = Identity { user: "root".into(), groups: vec!["system:masters".into()] };
        assert!(may_grant(&objects, &master, (Kind::RoleBinding, &admin)));
    }
}
