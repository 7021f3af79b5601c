//! The files whose instructions this process runs, and the names of their functions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use object::read::ReadCache;
use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, SymbolKind};

/// A function's name as it is written, and as it is linked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) readable: String,
    pub(super) linked: String,
}

/// A part of a file, mapped to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    /// The first address.
    pub(super) start: u64,
    /// The address after the last.
    pub(super) end: u64,
    /// Where in the file that is, in bytes.
    pub(super) offset: u64,
    pub(super) path: PathBuf,
}

impl Image {
    /// Those of this process, by their addresses.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn all() -> io::Result<Vec<Self>> {
        Ok(of(&fs::read_to_string("/proc/self/maps")?))
    }

    /// The functions of those addresses that have names; none when the file has none or cannot be read.
    pub(super) fn names(&self, addresses: &BTreeSet<u64>) -> BTreeMap<u64, Name> {
        // The mapped file, though another has its path now; whoever may not look there has the path.
        let mapped = format!("/proc/self/map_files/{:x}-{:x}", self.start, self.end);
        let file = File::open(mapped).or_else(|_| File::open(&self.path));
        match file {
            Ok(file) => self.names_in(file, addresses).unwrap_or_default(),
            Err(_) => BTreeMap::new(),
        }
    }

    fn names_in(
        &self,
        file: File,
        addresses: &BTreeSet<u64>,
    ) -> object::Result<BTreeMap<u64, Name>> {
        let cache = ReadCache::new(file);
        let elf = object::File::parse(&cache)?;
        let mut symbols: Vec<_> = elf
            .symbols()
            .chain(elf.dynamic_symbols())
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.address() > 0)
            .collect();
        symbols.sort_by_key(|symbol| symbol.address());
        let mut names = BTreeMap::new();
        for address in addresses.range(self.start..self.end) {
            let at = address - self.start + self.offset;
            let linked_at = elf.segments().find_map(|segment| {
                let (start, length) = segment.file_range();
                let inside = at.checked_sub(start).filter(|inside| *inside < length)?;
                segment.address().checked_add(inside)
            });
            let Some(linked_at) = linked_at else { continue };
            let before = symbols.partition_point(|symbol| symbol.address() <= linked_at);
            let Some(symbol) = before.checked_sub(1).and_then(|last| symbols.get(last)) else {
                continue;
            };
            // A size of none is of what was written by hand: it goes on to the next.
            let is_inside = symbol.size() == 0 || linked_at - symbol.address() < symbol.size();
            if let (true, Ok(linked)) = (is_inside, symbol.name()) {
                let readable = format!("{:#}", rustc_demangle::demangle(linked));
                names.insert(*address, Name { readable, linked: linked.to_owned() });
            }
        }
        Ok(names)
    }
}

/// Those of a `/proc/<pid>/maps` text.
fn of(maps: &str) -> Vec<Image> {
    maps.lines().filter_map(image).collect()
}

fn image(line: &str) -> Option<Image> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let access = fields.next()?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let offset = number(fields.next()?)?;
    let path = fields.nth(2)?.trim_start();
    let is_file = access.contains('x') && path.starts_with('/');
    let image =
        || Some(Image { start: number(start)?, end: number(end)?, offset, path: path.into() });
    is_file.then(image).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_the_files_that_are_run() {
        let maps = "\
7f00-7f01 r--p 00000000 fe:00 1                          /usr/bin/berth
7f01-7f02 r-xp 00001000 fe:00 1                          /usr/bin/a berth (deleted)
7f02-7f03 r-xp 00000000 00:00 0                          [vdso]
7f03-7f04 rwxp 00000000 00:00 0
7f04-7f05 r-xp zz fe:00 1 /x
7f05 r-xp
";
        let expected = Image {
            start: 0x7f01,
            end: 0x7f02,
            offset: 0x1000,
            path: "/usr/bin/a berth (deleted)".into(),
        };
        assert_eq!(of(maps), [expected]);
    }

    #[test]
    fn functions_of_this_process_have_their_names() {
        let here = images_are_the_files_that_are_run as fn() as usize as u64;
        let all = Image::all().unwrap();
        let image = all.iter().find(|image| (image.start..image.end).contains(&here)).unwrap();
        let names = image.names(&[here, here + 1].into());
        let readable: Vec<_> = names.values().map(|name| name.readable.as_str()).collect();
        let own = concat!(module_path!(), "::images_are_the_files_that_are_run");
        assert_eq!(readable, [own, own]);
        let elsewhere = Image { path: "/nowhere".into(), start: 1, end: 2, offset: 0 };
        assert_eq!(elsewhere.names(&[1].into()), BTreeMap::new());
    }
}
