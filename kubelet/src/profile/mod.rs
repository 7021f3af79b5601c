//! Where the agent spends its processor time, in pprof's format: a `Profile` of its `profile.proto`,
//! compressed. Functions have names where the executable has a symbol table.

mod images;
mod message;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use prost::Message as _;

use crate::sys::sampler::{PERIOD, Sampler};
use images::{Image, Name};
use message::{Function, Line, Location, Mapping, Profile, Sample, ValueType};

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another is being taken.
    #[error("cpu profiling already in use")]
    InUse,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What was seen, from when on and for how long.
#[derive(Debug)]
struct Seen {
    /// Each stack's addresses, the innermost first.
    stacks: Vec<Vec<usize>>,
    /// Stacks that were not kept.
    lost: usize,
    from: Timestamp,
    duration: Duration,
}

/// Takes a profile for so long.
///
/// # Errors
/// [`Error::InUse`] while another is taken; [`Error::Io`] when the kernel has no timer for it, or does
/// not tell what is mapped.
pub(crate) async fn take(from: Timestamp, duration: Duration) -> Result<Vec<u8>, Error> {
    let sampler = Sampler::start()?.ok_or(Error::InUse)?;
    tokio::time::sleep(duration).await;
    let write = move || {
        let stacks = sampler.stop();
        let (stacks, lost) = (stacks.all(), stacks.lost());
        write(&Seen { stacks, lost, from, duration })
    };
    Ok(tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??)
}

/// The names of the functions at those addresses; blocking.
///
/// # Errors
/// When the kernel does not tell what is mapped.
pub(crate) fn names(addresses: &BTreeSet<u64>) -> io::Result<BTreeMap<u64, String>> {
    let images = Image::all()?;
    let names = images.iter().flat_map(|image| image.names(addresses));
    Ok(names.map(|(address, name)| (address, name.readable)).collect())
}

fn write(seen: &Seen) -> io::Result<Vec<u8>> {
    let addresses = seen.stacks.iter().flatten().map(|address| *address as u64).collect();
    let images = Image::all()?.into_iter().map(|image| {
        let names = image.names(&addresses);
        (image, names)
    });
    let mut compressed = GzEncoder::new(Vec::new(), Compression::default());
    compressed.write_all(&profile(seen, &images.collect::<Vec<_>>()).encode_to_vec())?;
    compressed.finish()
}

fn profile(seen: &Seen, images: &[(Image, BTreeMap<u64, Name>)]) -> Profile {
    let mut strings = Strings::default();
    let processor = ValueType { kind: strings.of("cpu"), unit: strings.of("nanoseconds") };
    let samples = ValueType { kind: strings.of("samples"), unit: strings.of("count") };
    let mut counts = BTreeMap::<_, i64>::new();
    for stack in &seen.stacks {
        *counts.entry(stack).or_default() += 1;
    }
    let mut locations = BTreeMap::new();
    let mut functions = BTreeMap::new();
    let sample = |(stack, count): (&Vec<usize>, i64)| {
        let location_id = stack.iter().map(|address| id(&mut locations, *address as u64)).collect();
        Sample { location_id, value: vec![count, count.saturating_mul(nanoseconds(PERIOD))] }
    };
    let sample = counts.into_iter().map(sample).collect();
    let location = |(address, id): (&u64, &u64)| {
        let place = images.iter().position(|(image, _)| (image.start..image.end).contains(address));
        let name = place.and_then(|place| images[place].1.get(address));
        let line = |name| Line { function_id: self::id(&mut functions, name) };
        let mapping_id = place.map_or(0, |place| place as u64 + 1);
        Location {
            id: *id,
            mapping_id,
            address: *address,
            line: name.map(line).into_iter().collect(),
        }
    };
    let location = locations.iter().map(location).collect();
    let function = functions.into_iter().map(|(name, id)| Function {
        id,
        name: strings.of(&name.readable),
        system_name: strings.of(&name.linked),
    });
    let function = function.collect();
    let mapping = (1..).zip(images).map(|(id, (image, names))| Mapping {
        id,
        memory_start: image.start,
        memory_limit: image.end,
        file_offset: image.offset,
        filename: strings.of(&image.path.to_string_lossy()),
        has_functions: !names.is_empty(),
    });
    let mapping = mapping.collect();
    let lost = format!("{} samples were lost", seen.lost);
    let comment = (seen.lost > 0).then(|| strings.of(&lost)).into_iter().collect();
    Profile {
        sample_type: vec![samples, processor],
        sample,
        mapping,
        location,
        function,
        time_nanos: i64::try_from(seen.from.as_nanosecond()).unwrap_or_default(),
        duration_nanos: nanoseconds(seen.duration),
        period_type: Some(processor),
        period: nanoseconds(PERIOD),
        comment,
        string_table: strings.table(),
    }
}

/// The number of `key`, which is the next when it has none; from 1 on.
fn id<K: Ord>(ids: &mut BTreeMap<K, u64>, key: K) -> u64 {
    let next = ids.len() as u64 + 1;
    *ids.entry(key).or_insert(next)
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Each string once.
#[derive(Default)]
struct Strings(BTreeMap<String, i64>);

impl Strings {
    /// Its place in the table; nought is the empty one's.
    fn of(&mut self, text: &str) -> i64 {
        if text.is_empty() {
            return 0;
        }
        let next = self.0.len() as i64 + 1;
        *self.0.entry(text.to_owned()).or_insert(next)
    }

    fn table(self) -> Vec<String> {
        let mut placed: Vec<_> = self.0.into_iter().map(|(text, place)| (place, text)).collect();
        placed.sort();
        let texts = placed.into_iter().map(|(_, text)| text);
        std::iter::once(String::new()).chain(texts).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::hint;
    use std::io::Read as _;
    use std::time::Instant;

    use super::*;

    fn text(profile: &Profile, place: i64) -> &str {
        &profile.string_table[usize::try_from(place).unwrap()]
    }

    #[test]
    fn equal_stacks_are_one_sample_and_each_thing_has_one_number() {
        let name = |text: &str| Name { readable: text.to_owned(), linked: format!("_{text}") };
        let image = Image { start: 100, end: 200, offset: 0x1000, path: "/berth".into() };
        let named = [(110, name("inner")), (111, name("inner")), (120, name("outer"))].into();
        let stacks = vec![vec![110, 120], vec![111, 120], vec![110, 120], vec![300]];
        let duration = Duration::from_secs(2);
        let from = Timestamp::from_second(7).unwrap();
        let seen = Seen { stacks, lost: 3, from, duration };
        let profile = profile(&seen, &[(image, named)]);
        let samples: Vec<_> =
            profile.sample.iter().map(|one| (one.location_id.clone(), one.value.clone())).collect();
        let expected = [
            (vec![1, 2], vec![2, 20_000_000]),
            (vec![3, 2], vec![1, 10_000_000]),
            (vec![4], vec![1, 10_000_000]),
        ];
        assert_eq!(samples, expected);
        let located: BTreeMap<_, _> = profile
            .location
            .iter()
            .map(|one| {
                let functions: Vec<_> = one.line.iter().map(|line| line.function_id).collect();
                (one.id, (one.address, one.mapping_id, functions))
            })
            .collect();
        let expected = [
            (1, (110, 1, vec![1])),
            (2, (120, 1, vec![2])),
            (3, (111, 1, vec![1])),
            (4, (300, 0, vec![])),
        ];
        assert_eq!(located, expected.into());
        let functions: Vec<_> = profile
            .function
            .iter()
            .map(|one| (one.id, text(&profile, one.name), text(&profile, one.system_name)))
            .collect();
        assert_eq!(functions, [(1, "inner", "_inner"), (2, "outer", "_outer")]);
        let mapping = &profile.mapping[0];
        assert_eq!((text(&profile, mapping.filename), mapping.file_offset), ("/berth", 0x1000));
        assert_eq!(text(&profile, profile.comment[0]), "3 samples were lost");
        let kinds: Vec<_> = profile
            .sample_type
            .iter()
            .map(|kind| (text(&profile, kind.kind), text(&profile, kind.unit)))
            .collect();
        assert_eq!(kinds, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!((profile.time_nanos, profile.duration_nanos), (7_000_000_000, 2_000_000_000));
        assert_eq!(text(&profile, 0), "");
    }

    #[inline(never)]
    fn burns_the_processor(until: Instant) -> u64 {
        let mut rounds = 0_u64;
        while Instant::now() < until {
            rounds = hint::black_box(rounds + 1);
        }
        rounds
    }

    #[tokio::test]
    async fn a_profile_names_what_runs_and_there_is_one_at_a_time() {
        let duration = Duration::from_millis(500);
        let busy = std::thread::spawn(move || burns_the_processor(Instant::now() + duration));
        let taking = tokio::spawn(take(Timestamp::now(), duration));
        tokio::task::yield_now().await;
        assert!(matches!(take(Timestamp::now(), duration).await, Err(Error::InUse)));
        let compressed = taking.await.unwrap().unwrap();
        assert!(busy.join().unwrap() > 0);
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&*compressed).read_to_end(&mut bytes).unwrap();
        let profile = Profile::decode(&*bytes).unwrap();
        let name = concat!(module_path!(), "::burns_the_processor");
        let burns: Vec<_> = (profile.function.iter())
            .filter(|function| text(&profile, function.name) == name)
            .map(|function| function.id)
            .collect();
        let is_inside = |id: &u64| {
            let location = profile.location.iter().find(|location| location.id == *id).unwrap();
            location.line.iter().any(|line| burns.contains(&line.function_id))
        };
        let count =
            |samples: &mut dyn Iterator<Item = &Sample>| samples.map(|one| one.value[0]).sum();
        let all: i64 = count(&mut profile.sample.iter());
        let within: i64 =
            count(&mut profile.sample.iter().filter(|one| one.location_id.iter().any(is_inside)));
        assert!(within > 0 && within * 2 > all, "{within} of {all}: {:?}", profile.string_table);
        // The handler is not what is looked for.
        assert!(!profile.string_table.iter().any(|text| text.contains("on_signal")));
        // One that is called off makes room for the next.
        let brief = Duration::from_millis(1);
        let long = take(Timestamp::now(), Duration::from_secs(60));
        assert!(tokio::time::timeout(brief, long).await.is_err());
        assert!(take(Timestamp::now(), brief).await.is_ok());
    }
}
