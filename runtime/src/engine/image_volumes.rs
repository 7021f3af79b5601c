//! Volumes that are images (KEP-4639): the layers of an image, mounted read-only for one container.
//!
//! The mount is an overlay without a writable layer, so whiteouts hold, and nothing in it can be
//! changed, executed, opened as a device, or give privileges. Each container has a mount of its own
//! below `volumes/<container>`, which goes with the container; the layers' files are shared. For a pod
//! with a user namespace each layer is mapped first, since an overlay itself cannot be. What fails is
//! told as upstream's runtimes tell it (`ImageVolumeMountFailed`). All functions but [`fetch`] block.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount,
};

use super::volumes;
use crate::images::digest::ChainId;
use crate::images::{Hold, Store};
use crate::interface::{ImageError, ImageId, Mount};

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// mount(2) takes a page of options, and the kernel stacks no more than 500 layers.
const MAX_OPTIONS: usize = 4095;

/// The images that a container's volumes are.
#[derive(Debug, Default)]
pub(super) struct ImageLayers {
    /// The layers' directories, topmost first.
    lower: BTreeMap<ImageId, Vec<PathBuf>>,
    /// All layers, to be held as long as the container is there.
    pub(super) chain: Vec<ChainId>,
    /// Keeps them until somebody else does.
    holds: Vec<Hold>,
}

/// Looks up the images of a container's mounts in the store.
pub(super) async fn fetch(store: &Store, mounts: &[Mount]) -> Result<ImageLayers, ImageError> {
    let mut found = ImageLayers::default();
    for image in mounts.iter().filter_map(|mount| mount.image.as_ref()) {
        if !found.lower.contains_key(image) {
            let prepared = store.prepare(image).await?;
            found.lower.insert(image.clone(), prepared.lower);
            found.chain.extend(prepared.layers);
            found.holds.push(prepared.hold);
        }
    }
    Ok(found)
}

/// Mounts the image of `mount`, or what its sub-path names, at `place`, with ids and label as `images` says.
pub(super) fn mount(
    images: &volumes::Images<'_>,
    (image, sub_path): (&ImageId, Option<&Path>),
    place: &Path,
) -> Result<(), String> {
    let failed = |why: String| format!("ImageVolumeMountFailed: mount image {image}: {why}");
    let lower =
        images.layers.lower.get(image).ok_or_else(|| failed("it is not in the store".into()))?;
    let Some(sub_path) = sub_path.filter(|path| !path.as_os_str().is_empty()) else {
        return overlay(lower, place, images).map_err(|error| failed(error.to_string()));
    };
    let whole = place.with_extension("image");
    overlay(lower, &whole, images).map_err(|error| failed(error.to_string()))?;
    volumes::bind_existing(&whole, sub_path, place)
        .map_err(|why| failed(format!("subPath {sub_path:?}: {why}")))?;
    // What was bound keeps it.
    unmount(&whole, UnmountFlags::DETACH).map_err(|error| failed(error.to_string()))
}

fn overlay(lower: &[PathBuf], place: &Path, images: &volumes::Images<'_>) -> io::Result<()> {
    // Alone, the layers of an image may be too few for an overlay that has nothing else.
    let bottom = place.with_extension("bottom");
    fs::create_dir_all(place)?;
    fs::create_dir_all(&bottom)?;
    let users = images.users.map(AsFd::as_fd);
    let shelf = Shelf { place: place.with_extension("layers"), users };
    let mut opened = Vec::new();
    for (index, layer) in lower.iter().enumerate() {
        opened.push(shelf.layer(layer, index)?);
    }
    opened.push(open(&bottom, DIRECTORY, Mode::empty())?);
    let options = options(&opened, images.label)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("overlay", place, "overlay", flags, Some(options.as_c_str()))?;
    drop(opened);
    shelf.clear(lower.len())
}

/// Names the layers by descriptor: short, and nothing in a path needs escaping.
fn options(layers: &[OwnedFd], label: Option<&str>) -> io::Result<std::ffi::CString> {
    let name = |layer: &OwnedFd| format!("/proc/self/fd/{}", layer.as_raw_fd());
    let mut text = format!("lowerdir={}", layers.iter().map(name).collect::<Vec<_>>().join(":"));
    if let Some(label) = label {
        text.push_str(&format!(",context=\"{label}\""));
    }
    if text.len() > MAX_OPTIONS {
        return Err(io::Error::other(format!("{} layers are too many", layers.len() - 1)));
    }
    Ok(std::ffi::CString::new(text)?)
}

/// Where mapped layers are attached until the overlay has them: it takes no others before Linux 6.15.
struct Shelf<'a> {
    place: PathBuf,
    users: Option<BorrowedFd<'a>>,
}

impl Shelf<'_> {
    fn layer(&self, layer: &Path, index: usize) -> io::Result<OwnedFd> {
        let Some(users) = self.users else {
            return Ok(open(layer, DIRECTORY, Mode::empty())?);
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, layer, flags)?;
        berth_oci::map_mount_ids(tree.as_fd(), users, false)?;
        let place = self.place.join(index.to_string());
        fs::create_dir_all(&place)?;
        move_mount(&tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(tree)
    }

    fn clear(&self, count: usize) -> io::Result<()> {
        let mapped = if self.users.is_some() { count } else { 0 };
        for index in 0..mapped {
            unmount(self.place.join(index.to_string()), UnmountFlags::DETACH)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_layers_than_options_can_name_are_refused() {
        let some = |count| -> Vec<OwnedFd> {
            (0..count).map(|_| open("/", DIRECTORY, Mode::empty()).unwrap()).collect()
        };
        assert!(
            options(&some(2), None)
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("lowerdir=/proc/self/fd/")
        );
        let error = options(&some(300), None).unwrap_err();
        assert!(error.to_string().contains("299 layers are too many"), "{error}");
    }
}
