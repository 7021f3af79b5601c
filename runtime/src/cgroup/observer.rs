//! Telling somebody what is done to cgroups, and how long it takes.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Error, GroupPath, Hierarchy};

/// What was done to a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It was made.
    Create,
    /// What it is held to was written.
    Update,
    /// It was removed.
    Destroy,
}

/// Hears of operations that have ended, also of those that failed. Must not block.
pub trait Observer: Debug + Send + Sync {
    /// An operation has ended after `took`.
    fn ended(&self, operation: Operation, took: Duration);
}

impl Hierarchy {
    /// Has `observer` hear of what is done from now on through this and its clones. The first one stays.
    pub fn tell(&self, observer: Arc<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    /// Does something to a cgroup, and tells it. Removing one that is not there is nothing.
    pub(super) fn told(
        &self,
        (operation, path): (Operation, &GroupPath),
        work: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some(observer) = self.observer.get() else { return work() };
        let is_there = self.directory(path).is_dir();
        let operation = match operation {
            Operation::Create if is_there => Operation::Update,
            Operation::Update | Operation::Destroy if !is_there => return work(),
            operation => operation,
        };
        let begun = Instant::now();
        let done = work();
        observer.ended(operation, begun.elapsed());
        done
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::interface::Resources;

    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<Operation>>);

    impl Observer for Heard {
        fn ended(&self, operation: Operation, _: Duration) {
            self.0.lock().unwrap().push(operation);
        }
    }

    #[test]
    fn what_is_done_to_a_cgroup_is_told_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
        let hierarchy = Hierarchy::at(dir.path()).unwrap();
        let group = GroupPath::try_from(Path::new("pod")).unwrap();
        let limits = Resources::default();
        hierarchy.clone().ensure(&group, &limits).unwrap();
        hierarchy.remove(&group).unwrap();
        let heard = Arc::new(Heard::default());
        hierarchy.tell(heard.clone());
        let clone = hierarchy.clone();
        clone.change(&group, (&limits, &limits)).unwrap();
        clone.remove(&group).unwrap();
        assert_eq!(*heard.0.lock().unwrap(), []);
        clone.ensure(&group, &limits).unwrap();
        clone.ensure(&group, &limits).unwrap();
        clone.change(&group, (&limits, &limits)).unwrap();
        clone.remove(&group).unwrap();
        let expected =
            [Operation::Create, Operation::Update, Operation::Update, Operation::Destroy];
        assert_eq!(*heard.0.lock().unwrap(), expected);
        fs::write(dir.path().join("file"), "").unwrap();
        let below = GroupPath::try_from(Path::new("file/pod")).unwrap();
        assert!(clone.ensure(&below, &limits).is_err());
        assert_eq!(heard.0.lock().unwrap().len(), 5, "failures count");
    }
}
