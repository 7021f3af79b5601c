//! Containers whose file system changes under the runtime's hands (CVE-2021-30465, 2024-45310,
//! 2025-31133, 2025-52881): what is mounted, made and written lands inside the root or nowhere.
//!
//! The attacker is a thread on the host with the container's volume in its hands, which is faster than
//! any container. `BERTH_RACE_ROUNDS=100000` runs as many set-ups as a release is tested with.

#![allow(clippy::unwrap_used)]

mod fixture;

use std::path::Path;

use berth_oci::protocol::*;
use fixture::oracle::{Swapper, Witness, rounds};
use fixture::{Shim, sandbox, spec_with};
use serde_json::{Value, json};

/// Operations on contested paths that one container's set-up makes.
const A_CONTAINER: u32 = 20;

fn containers(short: u32) -> u32 {
    rounds(short * A_CONTAINER).div_ceil(A_CONTAINER)
}

fn mount_table(pid: i32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap()
}

fn remove(shim: &mut Shim, id: &str) {
    let kill =
        Request::Signal { id: id.to_owned(), signal: libc::SIGKILL, target: SignalTarget::All };
    shim.ask(&kill).unwrap();
    shim.wait(id);
    shim.ask(&Request::Delete { id: id.to_owned() }).unwrap();
}

/// Creates containers one after the other and shows each created one to `look`. How many there were.
fn create_all(
    shim: &mut Shim,
    count: u32,
    change: impl Fn(&mut Value),
    look: impl Fn(&ContainerRecord),
) -> u32 {
    let mut created = 0;
    for round in 0..count {
        let id = format!("c{round}");
        let mut request = shim.container(&id, &["/bin/true"]);
        request.spec = spec_with(&["/bin/true"], &change);
        // A set-up that lost too many races in a row gives up, which is as good.
        if let Ok(record) = shim.create(request) {
            created += 1;
            look(&record);
            remove(shim, &id);
        }
    }
    created
}

#[test]
fn mount_targets_exchanged_for_links_never_lead_outside() {
    let witness = Witness::new();
    let mut shim = Shim::start(&sandbox());
    let volume = shim.root.path().join("volume");
    std::fs::create_dir_all(volume.join("place")).unwrap();
    let swapper = Swapper::start(&volume.join("place"), &witness.path().join("inner"));
    let count = containers(40);
    let change = |spec: &mut Value| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/volume", "source": volume, "options": ["rbind"]}));
        for index in 0..A_CONTAINER {
            mounts.push(json!({"destination": format!("/volume/place/a/b{index}"),
                               "type": "tmpfs", "source": format!("raced-{index}")}));
        }
    };
    let look = |record: &ContainerRecord| {
        let table = mount_table(record.pid);
        // What was mounted elsewhere would have gone with the old root.
        assert_eq!(table.matches(" raced-").count(), A_CONTAINER as usize, "{table}");
    };
    let created = create_all(&mut shim, count, change, look);
    let exchanges = swapper.stop();
    assert!(exchanges > u64::from(count), "{exchanges} exchanges are no race");
    assert!(created > count / 2, "{created} of {count} were created");
    witness.assert_untouched();
    shim.shut_down();
}

#[test]
fn a_null_device_exchanged_for_a_link_masks_nothing_with_it() {
    let witness = Witness::new();
    let mut shim = Shim::start(&sandbox());
    let secret = "secret";
    let masked: Vec<String> = (0..A_CONTAINER).map(|index| format!("/bin/file-{index}")).collect();
    for path in &masked {
        std::fs::write(shim.image().join(&path[1..]), secret).unwrap();
    }
    let null = shim.image().join("dev/null");
    let status =
        std::process::Command::new("mknod").arg(&null).args(["c", "1", "3"]).status().unwrap();
    assert!(status.success());
    let swapper = Swapper::start(&null, Path::new("/proc/sys/kernel/core_pattern"));
    let count = containers(40);
    let change = |spec: &mut Value| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        spec["linux"]["maskedPaths"] = json!(masked);
    };
    let look = |record: &ContainerRecord| {
        let table = mount_table(record.pid);
        let of_proc = table.lines().filter(|line| line.contains(" - proc "));
        for line in of_proc {
            let fields: Vec<&str> = line.split(' ').collect();
            let (root, options) = (fields[3], fields[5]);
            assert!(root == "/" || options.starts_with("ro,"), "{table}");
        }
        let null_masks = table.matches(" /null /bin/file-").count();
        assert_eq!(null_masks, masked.len(), "{table}");
    };
    let created = create_all(&mut shim, count, change, look);
    swapper.stop();
    // The device itself is made on the contested path: links there are refused.
    assert!(created > 0, "none of {count} was created");
    witness.assert_untouched();
    shim.shut_down();
}

#[test]
fn sysctls_reach_the_kernel_and_not_what_lies_over_procfs() {
    let witness = Witness::new();
    let mut config = sandbox();
    config.new_network = false;
    let mut shim = Shim::start(&config);
    let volume = shim.root.path().join("volume");
    std::fs::create_dir_all(volume.join("core")).unwrap();
    std::fs::write(volume.join("core/somaxconn"), "fake").unwrap();
    let trap = volume.join("trap");
    std::fs::create_dir(&trap).unwrap();
    std::os::unix::fs::symlink("/proc/sys/kernel/core_pattern", trap.join("somaxconn")).unwrap();
    let swapper = Swapper::start(&volume.join("core"), Path::new("trap"));
    let count = containers(40);
    let change = |spec: &mut Value| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts
            .push(json!({"destination": "/proc/sys/net", "source": volume, "options": ["rbind"]}));
        spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "321"});
        spec["linux"]["readonlyPaths"] = json!([]);
    };
    let look = |record: &ContainerRecord| {
        let seen = std::process::Command::new("nsenter")
            .args(["-t", &record.pid.to_string(), "-n", "cat", "/proc/sys/net/core/somaxconn"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&seen.stdout), "321\n");
    };
    let created = create_all(&mut shim, count, change, look);
    swapper.stop();
    assert_eq!(created, count);
    let fake = [volume.join("core"), volume.join("core.link")]
        .map(|path| std::fs::read_to_string(path.join("somaxconn")).unwrap());
    assert!(fake.contains(&"fake".to_owned()), "{fake:?}");
    witness.assert_untouched();
    shim.shut_down();
}

#[test]
fn no_victim_lends_its_executable() {
    let mut shim = Shim::start_sealed(&sandbox());
    let before = std::fs::read(env!("CARGO_BIN_EXE_berth-oci")).unwrap();
    // It may look into any process it sees, as a debugger may: nothing but the seal is in its way.
    let attack = "while :; do for p in /proc/[0-9]*; do \
                  case $(readlink $p/exe) in */busybox|'') continue;; esac; echo seen; \
                  (echo bad > $p/exe) 2> /dev/null && echo overwritten; \
                  dd if=/dev/zero of=$p/exe bs=1 count=1 conv=notrunc 2> /dev/null && echo patched; \
                  done; done";
    let args = ["/bin/sh", "-c", attack];
    let mut request = shim.container("attacker", &args);
    request.spec = spec_with(&args, |spec| {
        let all = json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"]);
        spec["process"]["capabilities"] =
            json!({"bounding": all, "effective": all, "permitted": all});
        spec["linux"]["seccomp"] = json!(null);
    });
    shim.launch(request).unwrap();
    let mut count = 0;
    while count < rounds(200).min(10_000) || !shim.log_text("attacker").contains("seen") {
        let (code, _, error, _) = shim.exec("attacker", &["true"]).unwrap();
        assert_eq!(code, 0, "{error}");
        count += 1;
        assert!(count < 20_000, "the attacker saw no process of ours");
    }
    remove(&mut shim, "attacker");
    let log = shim.log_text("attacker");
    assert!(!log.contains("overwritten") && !log.contains("patched"), "{log}");
    std::fs::write(shim.image().join("entry"), "#!/proc/self/exe\n").unwrap();
    let path = shim.image().join("entry");
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Our own executable becomes the command, with nothing of the runtime's left to it.
    if shim.launch(shim.container("entry", &["/entry"])).is_ok() {
        let exit = shim.wait("entry");
        assert_ne!(exit.exit_code, 0, "{}", shim.log_text("entry"));
    }
    assert!(std::fs::read(env!("CARGO_BIN_EXE_berth-oci")).unwrap() == before);
    shim.shut_down();
}
