//! Every command of the README is run by a test: here, that none is there which no test knows.

use std::collections::BTreeSet;

use crate::node::Node;

const README: &str = include_str!("../../README.md");

/// The commands of the README's code blocks, and what runs each.
const RUN_BY: [(&str, &str); 22] = [
    ("make build", "Makefile: the same cargo command as build-tools"),
    (
        "target/release/berth up -f tests/demo/demo.yaml",
        "readme::up_applies_the_manifests_it_is_given",
    ),
    ("export KUBECONFIG=/var/lib/berth/standalone/admin.kubeconfig", "node::Node::kubeconfig"),
    ("kubectl get pods,svc -o wide", "tests/demo/run.sh"),
    ("kubectl logs demo-1", "tests/demo/run.sh"),
    ("make demo", "make e2e"),
    ("make demo-vm", "make e2e-vm"),
    ("berth check", "cli::check_says_what_is_not_enforced_and_how_to_mend_it"),
    (
        "berth join 192.0.2.1:6443 --token $TOKEN --discovery-token-ca-cert-hash $HASH --systemd",
        "service::a_joined_node_is_a_service_whose_pods_outlive_it",
    ),
    ("berth install-kubelet", "service::installed_as_the_kubelet_berth_is_what_kubeadm_looks_for"),
    (
        "kubeadm join 192.0.2.1:6443 --token $TOKEN --discovery-token-ca-cert-hash $HASH \
         --cri-socket unix:///run/berth/berth.sock",
        "kubelet::under_the_kubelets_name_berth_is_what_kubeadm_starts_and_waits_for",
    ),
    (
        "berth agent --kubeconfig /etc/berth/kubeconfig",
        "nodes::pods_on_two_nodes_reach_each_other_by_routes",
    ),
    ("berth pods", "cli::pods_and_logs_work_while_the_api_server_is_down"),
    ("berth logs demo-1", "cli::pods_and_logs_work_while_the_api_server_is_down"),
    ("berth stats", "cli::pods_and_logs_work_while_the_api_server_is_down"),
    ("berth events demo-1", "cli::pods_and_logs_work_while_the_api_server_is_down"),
    ("berth audit", "cli::pods_and_logs_work_while_the_api_server_is_down"),
    ("berth images", "cli::pods_and_logs_work_while_the_api_server_is_down"),
    (
        "berth pull 127.0.0.1:5000/tools/busybox:2",
        "images::an_image_is_pulled_from_a_registry_and_run",
    ),
    ("berth reset", "node::Node::finish, after every test"),
    (
        "berth oci-runtime /usr/local/bin/berth-oci",
        "cli::the_oci_runtime_is_written_to_a_file_of_its_own",
    ),
    ("make test", "CI"),
];

/// What is not a check but a measurement.
const MEASURES: &str = "make bench AREA=pods";

/// The lines of the README's `sh` code blocks, without comments and prompts.
fn commands() -> BTreeSet<&'static str> {
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in README.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if inside => {
                let command = line.split(" #").next().unwrap_or_default().trim();
                if !command.is_empty() && !command.starts_with('#') {
                    found.insert(command);
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn every_command_of_the_readme_is_run_by_a_test() {
    let known: BTreeSet<_> = RUN_BY.iter().map(|(command, _)| *command).chain([MEASURES]).collect();
    let commands = commands();
    assert!(!commands.is_empty());
    let unknown: Vec<_> = commands.difference(&known).collect();
    let gone: Vec<_> = known.difference(&commands).collect();
    assert!(
        unknown.is_empty() && gone.is_empty(),
        "not run: {unknown:?}; not in the README: {gone:?}"
    );
}

#[test]
fn up_applies_the_manifests_it_is_given() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/demo/demo.yaml");
    let node = Node::start_with(&["-f", manifest]);
    node.wait_ready("demo-1");
    node.wait_ready("demo-2");
    node.kubectl(&["delete", "-f", manifest]);
    node.finish();
}
