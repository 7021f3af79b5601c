//! Reading the files of variables that a pod keeps in its `emptyDir` volumes (KEP-3721).
//!
//! What lies there is the container's: nothing outside the volume is reached, nothing is waited for, and
//! no more is read than a file may hold.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use k8s_openapi::api::core::v1::{Container, Pod};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::directory;
use super::{PodDirectory, VolumePlugin};
use crate::objects::EnvFile;

/// Longer files are refused.
const MAX_BYTES: u64 = 1 << 20;

const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Every file that a container's variables name, by volume and path. Blocks.
pub fn read_env_files(
    pod: &Pod,
    container: &Container,
    directory: &PodDirectory,
) -> Vec<((String, String), EnvFile)> {
    let sources = container.env.iter().flatten().filter_map(|v| v.value_from.as_ref());
    let selectors = sources.filter_map(|source| source.file_key_ref.as_ref());
    let read = selectors.map(|selector| {
        let (volume, path) = (&selector.volume_name, &selector.path);
        let file = match is_empty_dir(pod, volume) {
            true => read(directory, volume, path),
            false => EnvFile::NoVolume,
        };
        ((volume.clone(), path.clone()), file)
    });
    read.collect()
}

fn is_empty_dir(pod: &Pod, name: &str) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| volume.name == name && volume.empty_dir.is_some())
}

fn read(pod: &PodDirectory, volume: &str, path: &str) -> EnvFile {
    let Ok(root) = pod.volume_path(VolumePlugin::EmptyDir, volume) else {
        return EnvFile::NoVolume;
    };
    let read = directory::open_path(&root).and_then(|root| read_inside(&root, path));
    match read {
        Ok(text) => EnvFile::Text(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => EnvFile::Missing,
        Err(error) => {
            tracing::warn!(volume, path, %error, "file of variables not read");
            EnvFile::Unreadable
        }
    }
}

fn read_inside(root: &OwnedFd, path: &str) -> io::Result<String> {
    // What is no file is not even opened: a container makes devices, which do things when they are.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(root, path, flags, Mode::empty(), INSIDE)?;
    if !FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_file() {
        return Err(io::Error::other("not a file"));
    }
    let file = std::fs::File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_BYTES {
        true => Err(io::Error::other("the file is too long")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

    use super::*;

    #[test]
    fn a_file_is_read_inside_its_volume_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        let pod = PodDirectory::new(root.path(), "u").unwrap();
        pod.create().unwrap();
        let volume = pod.volume_path(VolumePlugin::EmptyDir, "v").unwrap();
        std::fs::create_dir_all(volume.join("d")).unwrap();
        std::fs::write(volume.join("d/env"), "A='1'\n").unwrap();
        std::fs::write(root.path().join("secret"), "A='2'\n").unwrap();
        let link = |to: &str, name: &str| {
            std::os::unix::fs::symlink(to, volume.join(name)).unwrap();
        };
        link("d/env", "inside");
        link(root.path().join("secret").to_str().unwrap(), "absolute");
        link("../../../../secret", "climbing");
        let pipe = volume.join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        let opened = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&opened, &pipe, WatchFlags::OPEN).unwrap();
        std::fs::write(volume.join("long"), vec![b'x'; (1 << 20) + 1]).unwrap();
        let text = EnvFile::Text("A='1'\n".to_owned());
        assert_eq!(read(&pod, "v", "d/env"), text);
        assert_eq!(read(&pod, "v", "inside"), text);
        for (path, found) in [
            ("absolute", EnvFile::Missing),
            ("climbing", EnvFile::Missing),
            ("none", EnvFile::Missing),
            ("pipe", EnvFile::Unreadable),
            ("d", EnvFile::Unreadable),
            ("long", EnvFile::Unreadable),
        ] {
            assert_eq!(read(&pod, "v", path), found, "{path}");
        }
        let event = rustix::io::read(&opened, &mut [0; 64]);
        assert_eq!(event.unwrap_err(), rustix::io::Errno::AGAIN, "the pipe was opened");
    }
}
