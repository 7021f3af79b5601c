//! What host and guest say to each other over the virtio-serial port.
//!
//! Owns the frames and their encoding; knows nothing of QEMU or of processes. A frame is a kind
//! byte, a little-endian 32-bit length and that many bytes. A port outlives a reset of the guest,
//! which may cut a frame in two, so both sides begin with [`MAGIC`] and skip all before it:
//!
//! ```text
//! guest: MAGIC Hello            Stdout* Stderr* Exited
//! host:        MAGIC      Start Stdin* StdinEnd        … Start … PowerOff
//! ```

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Where a conversation starts. Its first byte is no frame kind, so a restart is seen.
pub const MAGIC: &[u8; 16] = b"\xf5berth-vm-port1\n";

/// Longest payload. A longer length means that the two sides lost each other.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Name of the port: `/dev/virtio-ports/NAME` where udev runs.
pub const PORT_NAME: &str = "berth.vm";

/// A job's standard input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Empty,
    /// A pipe that [`Frame::Stdin`] fills.
    Fed,
}

/// A command for the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The program and its arguments; looked up in `PATH`.
    pub argv: Vec<String>,
    /// Added to the guest's own environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory, made if it is missing; `/root` without one.
    #[serde(default)]
    pub cwd: Option<String>,
    /// What its standard input is, where it has no terminal.
    #[serde(default)]
    pub stdin: Stdin,
    /// Rows and columns of the terminal to run on; pipes without one.
    #[serde(default)]
    pub terminal: Option<(u16, u16)>,
}

impl Job {
    /// The command `argv`, with nothing else said.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Job { argv: argv.into_iter().map(Into::into).collect(), ..Job::default() }
    }

    /// `script` run by the guest's `/bin/sh`.
    pub fn shell(script: &str) -> Self {
        Job::new(["/bin/sh", "-ec", script])
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Guest: ready for a job. Says the kernel's release.
    Hello(String),
    /// Guest: bytes the job wrote on its standard output, or on its terminal.
    Stdout(Vec<u8>),
    /// Guest: bytes the job wrote on its standard error.
    Stderr(Vec<u8>),
    /// Guest: the job's exit status, 128 + n for signal n.
    Exited(i32),
    /// Host: run this.
    Start(Job),
    /// Host: bytes for the job's standard input.
    Stdin(Vec<u8>),
    /// Host: the end of the job's standard input.
    StdinEnd,
    /// Host: flush the disks and power off.
    PowerOff,
}

impl Frame {
    /// The frame as bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let (kind, payload) = match self {
            Frame::Hello(release) => (1, release.clone().into_bytes()),
            Frame::Stdout(data) => (2, data.clone()),
            Frame::Stderr(data) => (3, data.clone()),
            Frame::Exited(status) => (4, status.to_le_bytes().to_vec()),
            Frame::Start(job) => (5, serde_json::to_vec(job).context("encode the job")?),
            Frame::Stdin(data) => (6, data.clone()),
            Frame::StdinEnd => (7, Vec::new()),
            Frame::PowerOff => (8, Vec::new()),
        };
        if payload.len() > MAX_PAYLOAD {
            bail!("a frame of {} bytes is too long", payload.len());
        }
        let length = u32::try_from(payload.len()).context("frame length")?;
        let mut bytes = vec![kind];
        bytes.extend(length.to_le_bytes());
        bytes.extend(payload);
        Ok(bytes)
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Frame> {
        Ok(match kind {
            1 => Frame::Hello(String::from_utf8_lossy(payload).into_owned()),
            2 => Frame::Stdout(payload.to_vec()),
            3 => Frame::Stderr(payload.to_vec()),
            4 => Frame::Exited(i32::from_le_bytes(
                payload.try_into().context("an exit status is four bytes")?,
            )),
            5 => Frame::Start(serde_json::from_slice(payload).context("decode the job")?),
            6 => Frame::Stdin(payload.to_vec()),
            7 => Frame::StdinEnd,
            8 => Frame::PowerOff,
            other => bail!("no frame has the kind {other}"),
        })
    }
}

/// What [`Decoder::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// The other side began anew.
    Magic,
    /// A message.
    Frame(Frame),
}

/// Turns bytes, in whatever pieces they come, into frames. Skips all before the first [`MAGIC`].
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
    in_step: bool,
}

impl Decoder {
    /// Adds bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Forgets where the other side was: the next item is a magic.
    pub fn resync(&mut self) {
        self.in_step = false;
    }

    /// The next item, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// Bytes that are no frame: the two sides are out of step.
    pub fn next_item(&mut self) -> Result<Option<Item>> {
        if !self.in_step || self.pending.first() == Some(&MAGIC[0]) {
            return Ok(self.find_magic().then_some(Item::Magic));
        }
        let Some((head, rest)) = self.pending.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let [kind, length @ ..] = *head;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_PAYLOAD {
            bail!("a frame claims {length} bytes");
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Frame::decode(kind, payload)?;
        self.pending.drain(..5 + length);
        Ok(Some(Item::Frame(frame)))
    }

    fn find_magic(&mut self) -> bool {
        let at = self.pending.windows(MAGIC.len()).position(|window| window == MAGIC);
        match at {
            Some(at) => {
                self.pending.drain(..at + MAGIC.len());
                self.in_step = true;
                true
            }
            None => {
                // What cannot be the beginning of one is let go.
                let keep = self.pending.len().saturating_sub(MAGIC.len() - 1);
                if !self.in_step {
                    self.pending.drain(..keep);
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame() -> impl Strategy<Value = Frame> {
        let bytes = proptest::collection::vec(any::<u8>(), 0..300);
        prop_oneof![
            ".{0,20}".prop_map(Frame::Hello),
            bytes.clone().prop_map(Frame::Stdout),
            bytes.clone().prop_map(Frame::Stderr),
            any::<i32>().prop_map(Frame::Exited),
            proptest::collection::vec(".{0,20}", 1..4)
                .prop_map(|argv| Frame::Start(Job::new(argv))),
            bytes.prop_map(Frame::Stdin),
            Just(Frame::StdinEnd),
            Just(Frame::PowerOff),
        ]
    }

    fn drain(decoder: &mut Decoder) -> Vec<Item> {
        std::iter::from_fn(|| decoder.next_item().expect("in step")).collect()
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting_and_any_rubbish_before_them(
            rubbish in proptest::collection::vec(any::<u8>(), 0..60),
            frames in proptest::collection::vec(frame(), 0..8),
            piece in 1usize..40,
        ) {
            let mut bytes = rubbish;
            bytes.extend(MAGIC);
            for frame in &frames {
                bytes.extend(frame.encode().expect("short enough"));
            }
            let mut decoder = Decoder::default();
            let mut items = Vec::new();
            for piece in bytes.chunks(piece) {
                decoder.push(piece);
                items.extend(drain(&mut decoder));
            }
            let expected: Vec<Item> =
                std::iter::once(Item::Magic).chain(frames.into_iter().map(Item::Frame)).collect();
            prop_assert_eq!(items, expected);
        }

        #[test]
        fn no_bytes_panic_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut decoder = Decoder::default();
            decoder.push(MAGIC);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_item() {}
        }
    }

    #[test]
    fn a_frame_cut_by_a_reset_is_skipped_after_resync() {
        let mut decoder = Decoder::default();
        decoder.push(MAGIC);
        decoder.push(&Frame::Stdout(b"half".to_vec()).encode().unwrap()[..6]);
        assert_eq!(drain(&mut decoder), [Item::Magic]);
        decoder.resync();
        decoder.push(MAGIC);
        decoder.push(&Frame::Exited(3).encode().unwrap());
        assert_eq!(drain(&mut decoder), [Item::Magic, Item::Frame(Frame::Exited(3))]);
    }

    #[test]
    fn a_guest_that_restarts_between_frames_is_seen() {
        let mut decoder = Decoder::default();
        decoder.push(MAGIC);
        decoder.push(&Frame::Exited(0).encode().unwrap());
        decoder.push(MAGIC);
        assert_eq!(drain(&mut decoder), [Item::Magic, Item::Frame(Frame::Exited(0)), Item::Magic]);
    }
}
