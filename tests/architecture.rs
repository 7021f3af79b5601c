//! Holds the rules of the code map: which crate may know which, where Kubernetes types and unsafe
//! code may stand, and how large a file may grow.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which of our crates each may depend on. `berth-oci`'s protocol types are the seam between the
/// runtime and its shim; `berth-nft` is a leaf that both network crates encode with, `berth-guests` one that
/// both HTTPS servers let callers in with.
const MAY_KNOW: [(&str, &[&str]); 11] = [
    ("berth", &["berth-apiserver", "berth-cni", "berth-kubelet", "berth-proxy", "berth-runtime"]),
    ("berth-apiserver", &["berth-guests"]),
    ("berth-cni", &["berth-nft"]),
    ("berth-guests", &[]),
    ("berth-kubelet", &["berth-guests", "berth-runtime"]),
    ("berth-nft", &[]),
    ("berth-oci", &[]),
    ("berth-proxy", &["berth-nft"]),
    ("berth-runtime", &["berth-oci"]),
    ("berth-testkit", &[]),
    ("berth-vm", &[]),
];

/// The crates that may name Kubernetes types, or the files, where not all of a crate may.
const KUBERNETES: [&str; 5] =
    ["kubelet/src", "proxy/src/watch", "proxy/src/convert", "src", "tests"];

/// The largest file, in lines.
const FILE_LIMIT: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

/// Our own crates that each crate needs to be built (tests may know more).
fn known() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let dependencies = |package: &Value| -> BTreeSet<String> {
        let all = package["dependencies"].as_array().expect("dependencies").iter();
        all.filter(|d| d["path"].is_string() && d["kind"] != "dev").map(name).collect()
    };
    packages.iter().map(|package| (name(package), dependencies(package))).collect()
}

fn sources() -> Vec<PathBuf> {
    let output = Command::new("git")
        .current_dir(root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .output()
        .expect("git runs");
    let text = String::from_utf8(output.stdout).expect("names are UTF-8");
    let files: Vec<_> =
        text.lines().map(PathBuf::from).filter(|file| root().join(file).is_file()).collect();
    assert!(files.len() > 20, "git lists the sources: {files:?}");
    files
}

fn read(file: &Path) -> String {
    fs::read_to_string(root().join(file)).expect("a source can be read")
}

#[test]
fn crates_know_only_whom_they_may() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        MAY_KNOW.iter().map(|(name, may)| (*name, may.iter().copied().collect())).collect();
    let mut faults = Vec::new();
    for (package, dependencies) in known() {
        let Some(may) = allowed.get(package.as_str()) else {
            faults.push(format!("{package} is not in the table"));
            continue;
        };
        for dependency in dependencies.iter().filter(|d| !may.contains(d.as_str())) {
            faults.push(format!("{package} must not know {dependency}"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn kubernetes_types_stay_at_the_edges() {
    let names = |text: &str| text.contains("k8s_openapi") || text.contains("kube::");
    let strays: Vec<_> = sources()
        .into_iter()
        .filter(|file| {
            !KUBERNETES.iter().any(|edge| file.starts_with(edge) || is_module(file, edge))
        })
        .filter(|file| !file.components().any(|part| part.as_os_str() == "tests"))
        .filter(|file| names(&read(file)))
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
}

/// Whether `file` is the module at `edge` written as one file.
fn is_module(file: &Path, edge: &str) -> bool {
    file.with_extension("") == Path::new(edge)
}

#[test]
fn unsafe_code_stands_in_sys_modules_only() {
    let strays: Vec<_> = sources()
        .into_iter()
        .filter(|file| {
            !file
                .components()
                .any(|part| matches!(part.as_os_str().to_str(), Some("sys" | "sys.rs")))
        })
        .filter(|file| {
            read(file).lines().any(|line| {
                let code = line.split("//").next().unwrap_or_default();
                ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                    .iter()
                    .any(|form| code.contains(form) && !code.contains('"'))
            })
        })
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
}

#[test]
fn files_say_what_they_own_and_stay_small() {
    let mut faults = Vec::new();
    for file in sources() {
        let text = read(&file);
        if !text.starts_with("//!") {
            faults.push(format!("{} does not open with //!", file.display()));
        }
        let lines = text.lines().count();
        if lines > FILE_LIMIT {
            faults.push(format!("{} has {lines} lines", file.display()));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn no_test_is_skipped_and_nothing_is_unfinished() {
    let marks = [concat!("#[ign", "ore"), concat!("todo", "!("), concat!("unimplemented", "!(")];
    let strays: Vec<_> = sources()
        .into_iter()
        .filter(|file| marks.iter().any(|mark| read(file).contains(mark)))
        .collect();
    assert!(strays.is_empty(), "{strays:?}");
}
