//! The database file: one table of objects by key, one of counters. Each commit is durable when
//! it returns (redb's immediate durability, an fsync).

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;

use super::Error;
use super::state::{Act, Change};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const REVISION: &str = "revision";
const FORMAT: &str = "format";
const FORMAT_NOW: u64 = 1;

/// What the database may hold of its file in memory, in bytes.
const CACHE: usize = 512 << 10;

/// What to do with a database that is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recovery {
    /// Say so and do not start.
    #[default]
    Refuse,
    /// Put it aside under a name that says so, and start empty.
    Quarantine,
}

pub(super) struct Disk {
    database: Database,
    path: PathBuf,
}

type Loaded = (Disk, BTreeMap<String, Arc<Value>>, u64);

impl Disk {
    pub(super) fn open(path: &Path, recovery: Recovery) -> Result<Loaded, Error> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|source| Error::Directory { path: parent.to_owned(), source })?;
        }
        make_private(path)?;
        match Self::load(path) {
            Err(Error::Corrupt { why, .. }) if recovery == Recovery::Quarantine => {
                let aside = put_aside(path)?;
                tracing::error!(
                    path = %path.display(), aside = %aside.display(), why,
                    "the object database is damaged; starting empty"
                );
                make_private(path)?;
                Self::load(path)
            }
            other => other,
        }
    }

    fn load(path: &Path) -> Result<Loaded, Error> {
        // Damage that the library meets with a panic is damage all the same.
        catch_unwind(AssertUnwindSafe(|| Self::load_checked(path))).unwrap_or_else(|_| {
            Err(Error::Corrupt { path: path.to_owned(), why: "it cannot be read".to_owned() })
        })
    }

    fn load_checked(path: &Path) -> Result<Loaded, Error> {
        let corrupt = |why: String| Error::Corrupt { path: path.to_owned(), why };
        // All objects are in memory: nothing is read twice.
        let mut builder = Database::builder();
        let opened = builder.set_cache_size(CACHE).create(path);
        let database = opened.map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => Error::InUse { path: path.to_owned() },
            DatabaseError::Storage(redb::StorageError::Io(source)) if !is_damage(&source) => {
                Error::Access { path: path.to_owned(), why: source.to_string() }
            }
            other => corrupt(other.to_string()),
        })?;
        let disk = Self { database, path: path.to_owned() };
        disk.prepare()?;
        let (objects, revision) = disk.read_all().map_err(corrupt)?;
        Ok((disk, objects, revision))
    }

    /// Makes the tables of a new file.
    fn prepare(&self) -> Result<(), Error> {
        let make = || -> Result<(), redb::Error> {
            let write = self.database.begin_write()?;
            {
                write.open_table(OBJECTS)?;
                let mut counters = write.open_table(COUNTERS)?;
                if counters.get(FORMAT)?.is_none() {
                    counters.insert(FORMAT, FORMAT_NOW)?;
                }
            }
            write.commit()?;
            Ok(())
        };
        make().map_err(|error| match error {
            redb::Error::Corrupted(why) => Error::Corrupt { path: self.path.clone(), why },
            other => Error::Access { path: self.path.clone(), why: other.to_string() },
        })
    }

    fn read_all(&self) -> Result<(BTreeMap<String, Arc<Value>>, u64), String> {
        let text = |e: redb::Error| e.to_string();
        let read = self.database.begin_read().map_err(|e| text(e.into()))?;
        let counters = read.open_table(COUNTERS).map_err(|e| text(e.into()))?;
        let counter = |name: &str| -> Result<Option<u64>, String> {
            Ok(counters.get(name).map_err(|e| text(e.into()))?.map(|found| found.value()))
        };
        match counter(FORMAT)? {
            Some(FORMAT_NOW) => {}
            other => return Err(format!("format {other:?} is not {FORMAT_NOW}")),
        }
        let revision = counter(REVISION)?.unwrap_or(0);
        let table = read.open_table(OBJECTS).map_err(|e| text(e.into()))?;
        let mut objects = BTreeMap::new();
        for row in table.iter().map_err(|e| text(e.into()))? {
            let (key, bytes) = row.map_err(|e| text(e.into()))?;
            let object = serde_json::from_slice(bytes.value())
                .map_err(|e| format!("object {}: {e}", key.value()))?;
            objects.insert(key.value().to_owned(), Arc::new(object));
        }
        Ok((objects, revision))
    }

    /// Makes a group of changes durable. Blocking, ends with an fsync.
    pub(super) fn commit(&self, changes: &[Change]) -> Result<(), String> {
        let write = || -> Result<(), redb::Error> {
            let write = self.database.begin_write()?;
            {
                let mut objects = write.open_table(OBJECTS)?;
                let mut counters = write.open_table(COUNTERS)?;
                for change in changes {
                    match change.act {
                        Act::Removed => {
                            objects.remove(change.key.as_str())?;
                        }
                        Act::Created | Act::Updated => {
                            objects.insert(change.key.as_str(), change.object.as_bytes())?;
                        }
                    }
                }
                if let Some(last) = changes.last() {
                    counters.insert(REVISION, last.revision)?;
                }
            }
            write.commit()?;
            Ok(())
        };
        write().map_err(|error| format!("write {}: {error}", self.path.display()))
    }
}

/// Whether what was read is wrong, where else the reading itself failed.
fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof)
}

/// Secrets are in there: nobody but the owner reads it, wherever it is.
fn make_private(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let access =
        |error: std::io::Error| Error::Access { path: path.to_owned(), why: error.to_string() };
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(access)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(access)
}

fn put_aside(path: &Path) -> Result<PathBuf, Error> {
    let seconds = jiff::Timestamp::now().as_second();
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".damaged-{seconds}"));
    let aside = path.with_file_name(name);
    std::fs::rename(path, &aside)
        .map_err(|source| Error::Access { path: path.to_owned(), why: source.to_string() })?;
    Ok(aside)
}
