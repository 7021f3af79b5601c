//! Reading a request: what [`Request`]'s own reading does, in two passes.
//!
//! The derived one holds a request of any kind in memory first and reads it from there, for which all
//! types of a specification would be compiled again: a tenth of the executable.

use serde::Deserialize;

use super::{Failure, FailureKind, Request, SignalTarget};

/// What a request asks for: the `op` of [`Request`].
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    Hello,
    Create,
    Start,
    Signal,
    Delete,
    ExecSync,
    Exec,
    Attach,
    ReopenLog,
    LimitLog,
    Subscribe,
    Shutdown,
}

#[derive(Deserialize)]
struct Tag {
    op: Operation,
}

/// The fields of the requests that have no type of their own.
#[derive(Deserialize)]
struct Named {
    id: String,
}

#[derive(Deserialize)]
struct Signal {
    id: String,
    signal: i32,
    target: SignalTarget,
}

#[derive(Deserialize)]
struct LimitLog {
    id: String,
    max_bytes: u64,
    max_files: u32,
}

#[derive(Deserialize)]
struct Subscribe {
    #[serde(default)]
    log_losses: bool,
}

/// Reads a request. Pure.
///
/// # Errors
/// [`FailureKind::Invalid`], naming what is not understood.
pub fn parse_request(bytes: &[u8]) -> Result<Request, Failure> {
    read_request(bytes).map_err(|error| Failure {
        kind: FailureKind::Invalid,
        message: format!("the request is not understood: {error}"),
        exit_code: None,
    })
}

fn read_request(bytes: &[u8]) -> serde_json::Result<Request> {
    fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> serde_json::Result<T> {
        serde_json::from_slice(bytes)
    }
    Ok(match read::<Tag>(bytes)?.op {
        Operation::Hello => Request::Hello,
        Operation::Create => Request::Create(read(bytes)?),
        Operation::Start => Request::Start { id: read::<Named>(bytes)?.id },
        Operation::Signal => {
            let Signal { id, signal, target } = read(bytes)?;
            Request::Signal { id, signal, target }
        }
        Operation::Delete => Request::Delete { id: read::<Named>(bytes)?.id },
        Operation::ExecSync => Request::ExecSync(read(bytes)?),
        Operation::Exec => Request::Exec(read(bytes)?),
        Operation::Attach => Request::Attach(read(bytes)?),
        Operation::ReopenLog => Request::ReopenLog { id: read::<Named>(bytes)?.id },
        Operation::LimitLog => {
            let LimitLog { id, max_bytes, max_files } = read(bytes)?;
            Request::LimitLog { id, max_bytes, max_files }
        }
        Operation::Subscribe => {
            let Subscribe { log_losses } = read(bytes)?;
            Request::Subscribe { log_losses }
        }
        Operation::Shutdown => Request::Shutdown,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Attach, Exec, ExecSync, Streams, UserSelector};
    use super::*;

    #[test]
    fn an_unknown_request_is_refused_by_its_name() {
        let failure = parse_request(br#"{"op":"checkpoint","id":"x"}"#).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Invalid);
        assert!(failure.message.contains("`checkpoint`"), "{failure}");
        let failure = parse_request(br#"{"op":"start"}"#).unwrap_err();
        assert!(failure.message.contains("`id`"), "{failure}");
        assert!(parse_request(b"").is_err() && parse_request(&[0xff; 40]).is_err());
    }

    #[test]
    fn every_request_is_read_as_it_was_written() {
        let id = || "c".to_owned();
        let args = || vec!["true".to_owned()];
        let create = serde_json::json!({
            "id": "c", "spec": {"process": {"user": {"uid": 0, "gid": 0}, "cwd": "/"}},
            "rootfs": {"directory": "/r"}, "user": UserSelector::default(), "cgroup_path": "c",
            "stdio": {"log_path": "/l", "log_max_bytes": 1, "log_max_files": 1, "tty": false,
                      "stdin": false, "stdin_once": false},
        });
        let requests = [
            Request::Hello,
            Request::Create(serde_json::from_value(create).unwrap()),
            Request::Start { id: id() },
            Request::Signal { id: id(), signal: 15, target: SignalTarget::All },
            Request::Delete { id: id() },
            Request::ExecSync(Box::new(ExecSync {
                id: id(),
                args: args(),
                timeout_ms: Some(1),
                output_limit_bytes: 2,
                once: Some("o".to_owned()),
            })),
            Request::Exec(Box::new(Exec {
                id: id(),
                args: args(),
                streams: Streams::default(),
                tty: true,
                size: None,
            })),
            Request::Attach(Attach { id: id(), streams: Streams::default() }),
            Request::ReopenLog { id: id() },
            Request::LimitLog { id: id(), max_bytes: 3, max_files: 4 },
            Request::Subscribe { log_losses: true },
            Request::Shutdown,
        ];
        for request in requests {
            let text = serde_json::to_vec(&request).unwrap();
            assert_eq!(parse_request(&text).as_ref(), Ok(&request));
            assert_eq!(serde_json::from_slice::<Request>(&text).unwrap(), request);
        }
    }

    #[test]
    fn requests_of_other_releases_are_read() {
        let newer = br#"{"op":"hello","asked_by":"a later release"}"#;
        assert_eq!(parse_request(newer), Ok(Request::Hello));
        let older = br#"{"op":"exec","id":"c","args":["true"],"streams":{}}"#;
        let expected = Exec {
            id: "c".to_owned(),
            args: vec!["true".to_owned()],
            streams: Streams::default(),
            tty: false,
            size: None,
        };
        assert_eq!(parse_request(older), Ok(Request::Exec(Box::new(expected))));
    }
}
