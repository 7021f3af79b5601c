//! NFS volumes of a real server, the kernel's, which answers and then does not. These run in the VM.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::node::{Namespace, Node, succeed, wait};

/// Serves one directory over NFS 4 in a network namespace; its files and mounts end with it. Clients of an
/// earlier life are waited for as short as the kernel lets it be.
const SERVE: &str = "\
set -e
mount -t tmpfs tmpfs /var/lib/nfs
mkdir -p /var/lib/nfs/v4recovery
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
mount -t nfsd nfsd /proc/fs/nfsd
exportfs -i -o rw,no_root_squash,no_subtree_check,insecure,fsid=7 \"127.0.0.1:$1\"
echo 10 > /proc/fs/nfsd/nfsv4leasetime
echo 10 > /proc/fs/nfsd/nfsv4gracetime
rpc.nfsd --no-nfs-version 3 --host 127.0.0.1 1
exec rpc.mountd --foreground --no-nfs-version 3";

/// Packets of the protocol go nowhere.
const CUT: &str = "\
add table inet cut
add chain inet cut out { type filter hook output priority 0; }
add rule inet cut out tcp dport 2049 drop
add rule inet cut out tcp sport 2049 drop";

/// The kernel's server in a node's network namespace.
struct Server {
    mountd: Child,
}

impl Server {
    fn start(namespace: &Namespace, export: &Path) -> Self {
        let mut command = namespace.command("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-c", SERVE, "sh"]);
        let mountd = command.arg(export).stdin(Stdio::null()).spawn().unwrap();
        wait("an NFS server", || {
            let threads = namespace.command("cat").arg("/proc/net/rpc/nfsd").output().unwrap();
            let name =
                fs::read_to_string(format!("/proc/{}/comm", mountd.id())).unwrap_or_default();
            (threads.status.success() && name == "rpc.mountd\n").then_some(())
        });
        Self { mountd }
    }

    fn stop(mut self) {
        let place =
            ["--target", &self.mountd.id().to_string(), "--mount", "--net"].map(String::from);
        succeed(Command::new("nsenter").args(place).args(["rpc.nfsd", "0"]));
        self.mountd.kill().unwrap();
        self.mountd.wait().unwrap();
    }
}

fn manifest(export: &Path) -> String {
    let export = export.display();
    format!(
        "
apiVersion: v1
kind: PersistentVolume
metadata: {{name: remote}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteMany]
  storageClassName: nfs
  mountOptions: [vers=4.2, timeo=50, retry=0]
  nfs: {{server: 127.0.0.1, path: {export}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: remote}}
spec: {{accessModes: [ReadWriteMany], storageClassName: nfs, resources: {{requests: {{storage: 1Gi}}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: writer}}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {{runAsUser: 1000}}
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: remote}}}}]
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c, 'echo kept >> /data/file; until [ -e /tmp/end ]; do sleep 0.2; done']
      volumeMounts: [{{name: data, mountPath: /data}}, {{name: data, mountPath: /sub, subPath: made}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: reader}}
spec:
  restartPolicy: Never
  volumes: [{{name: data, nfs: {{server: 127.0.0.1, path: {export}, readOnly: true}}}}]
  containers:
    - name: main
      image: berth.local/busybox:1
      command: [sh, -c, 'until [ -s /data/file ]; do sleep 0.2; done; cat /data/file; touch /data/x 2>&1 | grep -c Read-only']
      volumeMounts: [{{name: data, mountPath: /data}}]
"
    )
}

fn mounted() -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(" - nfs4 ") && line.contains("~nfs/")).count()
}

#[test]
fn pods_share_an_export_and_end_though_its_server_is_gone() {
    // Their keyrings stay, and are the machine's.
    succeed(Command::new("modprobe").args(["--all", "nfsv4", "nfsd"]));
    let node = Node::start();
    let export = node.path("export");
    fs::create_dir(&export).unwrap();
    std::os::unix::fs::chown(&export, Some(1000), Some(1000)).unwrap();
    let server = Server::start(node.namespace(), &export);
    node.apply(&manifest(&export));
    node.wait_ready("writer");
    node.wait_phase("reader", "Succeeded");
    assert_eq!(node.kubectl(&["logs", "reader"]), "kept\n1\n");
    assert_eq!(fs::read_to_string(export.join("file")).unwrap(), "kept\n");
    assert!(export.join("made").is_dir());
    node.kubectl(&["delete", "pod", "reader"]);
    assert_eq!(mounted(), 1, "the writer's own");

    // A container that ends while the server is gone waits for it, and its pod can be deleted.
    node.namespace().run("nft", &[CUT]);
    node.kubectl(&["exec", "writer", "--", "touch", "/tmp/end"]);
    let told = node.wait_event("writer", "Failed");
    assert!(told.contains("which is mounted, does not answer"), "{told}");
    node.kubectl(&["delete", "pod", "writer", "--timeout=200s"]);
    assert_eq!(mounted(), 0);
    node.namespace().run("nft", &["delete", "table", "inet", "cut"]);
    assert_eq!(fs::read_to_string(export.join("file")).unwrap(), "kept\n", "it did not begin anew");

    // One that comes while the server is gone is told why it waits, and starts once it is there.
    server.stop();
    let again = manifest(&export).replace("{name: writer}", "{name: later}");
    let pod = again.split("---").find(|part| part.contains("{name: later}")).unwrap();
    node.apply(pod);
    node.wait_event("later", "FailedMount");
    let server = Server::start(node.namespace(), &export);
    node.wait_ready("later");
    // A server that has just begun lets nobody open a file for a while.
    let file = || fs::read_to_string(export.join("file")).unwrap();
    node.wait_for("the second line", || (file() == "kept\nkept\n").then_some(()));
    node.kubectl(&["delete", "pod", "later"]);
    server.stop();
    node.finish();
}
