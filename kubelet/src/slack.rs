//! Gives back to the kernel what a start or a crowd of pods needed and a quiet node does not: free
//! memory between what is in use, and the pages of the executable that nothing runs.
//!
//! Nothing is lost by it: what is needed again is mapped again, 16 pages at a time, from the page cache.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::shelf::Shelf;
use crate::sys;

/// Nothing has happened to a pod for so long.
const QUIET: Duration = Duration::from_secs(10);

/// Gives back after the start, and each time after pods have changed, until `shutdown`.
pub(crate) async fn keep_small(shelf: Shelf, shutdown: CancellationToken) {
    let mut moves = shelf.moves();
    let work = async {
        loop {
            while tokio::time::timeout(QUIET, moves.changed()).await.is_ok() {}
            if tokio::task::spawn_blocking(give_back).await.is_err()
                || moves.changed().await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

fn give_back() {
    sys::trim_heap();
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let Ok(executable) = std::fs::read_link("/proc/self/exe") else { return };
    for range in unchanged(&maps, &executable.to_string_lossy()) {
        sys::unmap_pages(range);
    }
}

/// The mappings of `file` that cannot be written and hold nothing but what is in it.
fn unchanged(smaps: &str, file: &str) -> Vec<sys::FileRange> {
    let mut ranges = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(size) = line.strip_prefix("Anonymous:") {
            let range = current.take();
            if size.trim() == "0 kB" {
                ranges.extend(range);
            }
            continue;
        }
        let mut fields = line.split_ascii_whitespace();
        if let (Some(range), Some(rights)) = (fields.next(), fields.next())
            && let Some((start, end)) = range.split_once('-')
            && let (Ok(start), Ok(end)) =
                (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            let is_the_file = fields.nth(3) == Some(file) && fields.next().is_none();
            let is_fixed = matches!(rights, "r-xp" | "r--p");
            current = (is_the_file && is_fixed).then_some(sys::FileRange { start, end });
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_are_as_in_the_file_are_given_back() {
        let maps = "\
55787067d000-557871300000 r--p 00000000 fe:00 5705529      /usr/bin/berth
Size:              12812 kB
Anonymous:             0 kB
557871300000-5578729b3000 r-xp 00c82000 fe:00 5705529      /usr/bin/berth
Anonymous:             0 kB
5578729b3000-557872ae3000 r--p 02334000 fe:00 5705529      /usr/bin/berth
Anonymous:          1216 kB
557872ae3000-557872ae8000 rw-p 02463000 fe:00 5705529      /usr/bin/berth
Anonymous:             0 kB
7f0000000000-7f0000001000 r-xp 00000000 fe:00 77           /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000002000-7f0000003000 rw-p 00000000 00:00 0
Anonymous:             0 kB
";
        let found = unchanged(maps, "/usr/bin/berth");
        let starts: Vec<_> = found.iter().map(|range| range.start).collect();
        assert_eq!(starts, [0x5578_7067_d000, 0x5578_7130_0000]);
    }

    #[test]
    fn the_program_goes_on_after_its_pages_were_given_back() {
        let before: Vec<u8> = (0..=255).collect();
        give_back();
        assert_eq!(before.iter().map(|byte| u32::from(*byte)).sum::<u32>(), 32_640);
    }
}
