//! What goes to the guest: frames from the one who runs jobs and from who feeds their input.
//!
//! Owns the sending side of the port. Frames of two threads must not mix, and input must reach the
//! job that it is meant for: it waits for that job's start and is dropped after its end.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

use crate::wire::{Frame, Job};

#[derive(Debug)]
pub(crate) struct Writer {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    stream: UnixStream,
    /// How many jobs were started and have ended.
    pub(crate) started: u64,
    ended: u64,
}

impl State {
    fn write(&mut self, frame: &Frame) -> Result<()> {
        self.stream.write_all(&frame.encode()?).context("write to the guest")
    }
}

impl Writer {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Writer { state: Mutex::new(State { stream, started: 0, ended: 0 }), moved: Condvar::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of the other thread leaves counters and a socket: both stay usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn greet(&self, magic: &[u8]) -> Result<()> {
        self.lock().stream.write_all(magic).context("greet the guest")
    }

    pub(crate) fn send(&self, frame: &Frame) -> Result<()> {
        self.lock().write(frame)
    }

    pub(crate) fn start(&self, job: &Job) -> Result<()> {
        let mut state = self.lock();
        state.write(&Frame::Start(job.clone()))?;
        state.started += 1;
        self.moved.notify_all();
        Ok(())
    }

    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.ended = state.started;
    }

    /// After a reset.
    pub(crate) fn replace(&self, stream: UnixStream) {
        let mut state = self.lock();
        state.stream = stream;
        state.ended = state.started;
    }
}

/// The way to a job's standard input.
#[derive(Debug)]
pub struct Input {
    pub(crate) writer: Arc<Writer>,
    /// The job is the one that follows this many.
    pub(crate) after: u64,
}

impl Input {
    /// Waits for the job's start, passes on what `from` yields until its end, and then ends the
    /// job's input. Returns early when the job has ended. The guest keeps what the job has not read.
    pub fn feed(&mut self, from: &mut dyn Read) -> Result<()> {
        let mut state = self.writer.lock();
        while state.started <= self.after {
            state = self.writer.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = match from.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("read the standard input"),
            };
            let mut state = self.writer.lock();
            if state.ended > self.after {
                return Ok(());
            }
            match count {
                0 => return state.write(&Frame::StdinEnd),
                count => state.write(&Frame::Stdin(buffer[..count].to_vec()))?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Decoder, Item, MAGIC};

    fn items(from: &mut UnixStream, count: usize) -> Vec<Item> {
        let mut decoder = Decoder::default();
        decoder.push(MAGIC);
        let mut found = Vec::new();
        let mut buffer = [0; 4096];
        while found.len() < count + 1 {
            let read = from.read(&mut buffer).unwrap();
            decoder.push(&buffer[..read]);
            found.extend(std::iter::from_fn(|| decoder.next_item().unwrap()));
        }
        found.split_off(1)
    }

    #[test]
    fn input_waits_for_its_job_and_comes_after_the_start() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let writer = Arc::new(Writer::new(ours));
        let mut input = Input { writer: Arc::clone(&writer), after: 0 };
        let feeder = std::thread::spawn(move || input.feed(&mut b"abc".as_slice()));
        let job = Job::new(["cat"]);
        writer.start(&job).unwrap();
        feeder.join().unwrap().unwrap();
        let expected = [Frame::Start(job), Frame::Stdin(b"abc".to_vec()), Frame::StdinEnd];
        assert_eq!(items(&mut guest, 3), expected.map(Item::Frame));
    }

    #[test]
    fn input_for_a_job_that_has_ended_is_dropped() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let writer = Arc::new(Writer::new(ours));
        let mut input = Input { writer: Arc::clone(&writer), after: 0 };
        let job = Job::new(["true"]);
        writer.start(&job).unwrap();
        writer.end();
        input.feed(&mut b"abc".as_slice()).unwrap();
        writer.send(&Frame::PowerOff).unwrap();
        let expected = [Frame::Start(job), Frame::PowerOff];
        assert_eq!(items(&mut guest, 2), expected.map(Item::Frame));
    }
}
