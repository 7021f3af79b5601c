//! Mounts cross a volume as far as a container asks for it, or it is refused. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use berth_runtime::interface::{Mount, Propagation, Runtime};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use support::node::Node;

/// A mount of the host's, of a kind of propagation, with what is below unmounted when it is dropped.
struct HostMount(PathBuf);

impl HostMount {
    fn make(path: PathBuf, propagation: MountPropagationFlags) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        mount("none", &path, "tmpfs", MountFlags::empty(), None).unwrap();
        mount_change(&path, propagation).unwrap();
        Self(path)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        for below in ["made", ""] {
            let _ = unmount(self.0.join(below), UnmountFlags::DETACH);
        }
    }
}

#[tokio::test]
async fn mounts_cross_a_volume_as_asked_or_the_container_is_refused() {
    use Propagation::{Bidirectional, HostToContainer, Private};
    let node = Node::new().await;
    let sandbox = node.run_sandbox("u1").await;
    let at = |name: &str| node.dir.path().join(name);
    let private = HostMount::make(at("private"), MountPropagationFlags::PRIVATE);
    let shared = HostMount::make(at("shared"), MountPropagationFlags::SHARED);
    let config = |volume: &HostMount, propagation| {
        let command = "mkdir -p /v/made && mount -t tmpfs none /v/made && echo x > /v/made/file";
        let mut config = node.container("c", command);
        config.security.privileged = true;
        config.mounts = vec![Mount {
            host_path: volume.0.clone(),
            image: None,
            sub_path: None,
            container_path: "/v".into(),
            read_only: false,
            recursive_read_only: false,
            propagation,
            relabel: false,
        }];
        config
    };
    for (propagation, lacks) in
        [(Bidirectional, "is not a shared mount"), (HostToContainer, "is not a shared or slave")]
    {
        let refused = node.engine.create_container(&sandbox, config(&private, propagation)).await;
        let error = refused.unwrap_err().to_string();
        assert!(error.contains(lacks) && error.contains("/private"), "{error}");
    }
    for (propagation, is_seen) in
        [(Private, false), (HostToContainer, false), (Bidirectional, true)]
    {
        let created = node.engine.create_container(&sandbox, config(&shared, propagation)).await;
        let id = created.unwrap();
        node.engine.start_container(&id).await.unwrap();
        assert_eq!(node.exit(&id).await.0, 0, "{}", node.log(&id).await);
        assert_eq!(shared.0.join("made/file").exists(), is_seen, "{propagation:?}");
        node.engine.remove_container(&id).await.unwrap();
    }
    drop((private, shared));
    node.finish().await;
}
