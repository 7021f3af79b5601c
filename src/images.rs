//! `berth images` and `berth pull`: the image store, through the agent or without one.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, Result};
use berth_runtime::interface::Image;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{ImagesAction, ImagesFlags, PullFlags};
use crate::control::{self, Login, Request};
use crate::settings::Places;

/// `berth images [import FILE | remove IMAGE]`.
pub(crate) async fn images(flags: ImagesFlags) -> Result<()> {
    let places = Places::resolve(&flags.host)?;
    let request = match flags.action {
        None => {
            let images = control::images(&places, &Request::List, |_, _| ()).await?;
            return if flags.json { print_json(&images) } else { print_table(&images) };
        }
        Some(ImagesAction::Remove { image }) => Request::Remove { image },
        Some(ImagesAction::Import { file }) => return import(&places, &file).await,
    };
    control::images(&places, &request, |_, _| ()).await.map(drop)
}

/// Imports an archive and prints the references it brought.
async fn import(places: &Places, file: &Path) -> Result<()> {
    let mut spooled = None;
    let archive = if file == Path::new("-") {
        let spool = spooled.insert(Spool::of_stdin()?);
        spool.0.clone()
    } else {
        file.canonicalize().with_context(|| format!("opening {}", file.display()))?
    };
    let images = control::images(places, &Request::Import { archive }, |_, _| ()).await?;
    // An archive has one image under each of its names.
    let names: BTreeSet<&String> = images.iter().flat_map(names).collect();
    for name in names {
        println!("imported {name}");
    }
    Ok(())
}

/// Standard input, kept in a file until the import is over.
struct Spool(std::path::PathBuf);

impl Spool {
    fn of_stdin() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("berth-import-{}", std::process::id()));
        let mut file =
            fs::File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
        let spool = Self(path);
        io::copy(&mut io::stdin().lock(), &mut file).context("reading standard input")?;
        Ok(spool)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // A file that is gone already needs no removal.
        let _ = fs::remove_file(&self.0);
    }
}

/// `berth pull IMAGE`, with a bar on a terminal.
pub(crate) async fn pull(flags: PullFlags) -> Result<()> {
    let places = Places::resolve(&flags.host)?;
    let login = match flags.username {
        None => None,
        Some(username) => {
            let mut password = String::new();
            io::stdin().lock().read_to_string(&mut password).context("reading the password")?;
            Some(Login { username, password: password.trim_end_matches('\n').to_owned() })
        }
    };
    let bar = if io::stderr().is_terminal() {
        let style = "{spinner} {bytes:>10} of {total_bytes:>10} [{wide_bar}] {bytes_per_sec} {eta}";
        ProgressBar::new(0).with_style(ProgressStyle::with_template(style)?)
    } else {
        ProgressBar::hidden()
    };
    let progress = |received, total| {
        bar.set_length(total);
        bar.set_position(received);
    };
    let request = Request::Pull { image: flags.image, login };
    let pulled = control::images(&places, &request, progress).await;
    bar.finish_and_clear();
    for image in pulled? {
        for name in names(&image) {
            println!("{name}");
        }
        println!("{}", image.id);
    }
    Ok(())
}

/// An image's tags, or its digests where it has none.
fn names(image: &Image) -> &[String] {
    if image.tags.is_empty() { &image.digests } else { &image.tags }
}

fn print_json(images: &[Image]) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(images)?);
    Ok(())
}

fn print_table(images: &[Image]) -> Result<()> {
    let mut rows = vec![["IMAGE".to_owned(), "ID".to_owned(), "SIZE".to_owned()]];
    for image in images {
        let id =
            image.id.as_str().trim_start_matches("sha256:").chars().take(12).collect::<String>();
        for name in names(image) {
            rows.push([name.clone(), id.clone(), size(image.size_bytes)]);
        }
    }
    print!("{}", crate::pods::table(&rows));
    Ok(())
}

/// Bytes in the largest decimal unit that leaves a whole part.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB"] {
        if value < 1000.0 {
            return format!("{value:.1}{unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1}GB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size(999), "999.0B");
        assert_eq!(size(1_500_000), "1.5MB");
        assert_eq!(size(2_000_000_000), "2.0GB");
    }
}
