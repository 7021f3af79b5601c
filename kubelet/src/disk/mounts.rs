//! How full mounts are: all are asked at once, with one deadline.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::FileSystem;
use crate::inquiry::{Asked, Asker, Question};

/// How long all mounts of a pass have to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks mounts how full they are.
#[derive(Debug)]
pub(super) struct Mounts {
    /// A mount that went meanwhile has nothing to tell; what is wrong with it is told to whoever uses it.
    asker: Asker<Option<FileSystem>>,
    patience: Duration,
}

impl Default for Mounts {
    fn default() -> Self {
        Self { asker: Asker::new(|place| FileSystem::of(place).ok()), patience: PATIENCE }
    }
}

impl Mounts {
    /// How full the mounts are that answer in time. Blocks that long at most; one that has not answered is
    /// left out until it has.
    pub(super) fn ask(&self, places: &[PathBuf]) -> HashMap<PathBuf, FileSystem> {
        let asked: Vec<_> =
            places.iter().filter_map(|place| Some((place, self.begin(place)?))).collect();
        let mut answers = HashMap::new();
        for (place, question) in asked {
            match question.within(self.patience) {
                Some(Some(found)) => drop(answers.insert(place.clone(), found)),
                Some(None) => {}
                None => tracing::warn!(?place, "a mount does not tell how full it is"),
            }
        }
        answers
    }

    fn begin(&self, place: &Path) -> Option<Arc<Question<Option<FileSystem>>>> {
        match self.asker.ask(place) {
            Ok(Asked::Now(question)) => Some(question),
            Ok(Asked::Before(_)) => None,
            Err(error) => {
                tracing::warn!(?place, %error, "a mount cannot be asked how full it is");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    static DEAD: Mutex<()> = Mutex::new(());

    fn look(place: &Path) -> Option<FileSystem> {
        if place.ends_with("dead") {
            drop(DEAD.lock());
        }
        (!place.ends_with("gone")).then(FileSystem::default)
    }

    #[test]
    fn a_mount_that_does_not_answer_is_left_out_until_it_does() {
        let places = ["/dead", "/gone", "/alive"].map(PathBuf::from);
        let mut mounts = Mounts { asker: Asker::new(look), patience: Duration::from_millis(50) };
        let dead = DEAD.lock().unwrap();
        assert!(mounts.ask(&places[..1]).is_empty());
        mounts.patience = Duration::from_secs(600);
        let answers = mounts.ask(&places);
        assert!(answers.len() == 1 && answers.contains_key(&places[2]), "{answers:?}");
        drop(dead);
        while mounts.ask(&places).len() < 2 {
            std::thread::yield_now();
        }
    }
}
