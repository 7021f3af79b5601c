//! Sessions of commands that exist in memory only.
//!
//! | command | what it does |
//! |---|---|
//! | `cat` | gives its input back on stdout, ends with 0 at the input's end |
//! | `echo …` | prints its arguments, ends with 0 |
//! | `err …` | prints its arguments on stderr, ends with 0 |
//! | `exit N` | ends with N |
//! | `size` | with a terminal: prints `<columns>x<rows>` at the start and at each resize; ends at the input's end |
//! | else | cannot be started, 127 |

use std::io;
use std::sync::{Arc, Mutex};

use berth_runtime::interface::{
    Exec, RuntimeError, Session, SessionEnd, SessionInput, SessionOutput, Streams, Terminal,
    TerminalSize,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};

const PIPE_BYTES: usize = 64 << 10;

/// The far ends of a session.
struct Process {
    stdin: Option<DuplexStream>,
    stdout: Option<DuplexStream>,
    stderr: Option<DuplexStream>,
    sizes: mpsc::UnboundedReceiver<TerminalSize>,
    end: oneshot::Sender<i32>,
}

struct FakeTerminal(Mutex<mpsc::UnboundedSender<TerminalSize>>);

impl Terminal for FakeTerminal {
    fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let sent = super::lock(&self.0).send(size);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn open(streams: Streams, tty: bool) -> (Session, Process) {
    let pair = |wanted: bool| {
        let (ours, theirs) = duplex(PIPE_BYTES);
        if wanted { (Some(ours), Some(theirs)) } else { (None, None) }
    };
    let (stdin, far_in) = pair(streams.stdin);
    let (stdout, far_out) = pair(streams.stdout);
    let (stderr, far_err) = pair(streams.stderr && !tty);
    let (resize, sizes) = mpsc::unbounded_channel();
    let (end, ended) = oneshot::channel();
    let session = Session {
        stdin: stdin.map(|s| Box::pin(s) as SessionInput),
        stdout: stdout.map(|s| Box::pin(s) as SessionOutput),
        stderr: stderr.map(|s| Box::pin(s) as SessionOutput),
        terminal: tty.then(|| Arc::new(FakeTerminal(Mutex::new(resize))) as Arc<dyn Terminal>),
        end: Box::pin(async move {
            let exit_code = ended.await.map_err(|error| RuntimeError::Host {
                operation: "wait for the end of a session".to_owned(),
                source: Box::new(error),
            })?;
            Ok(SessionEnd { exit_code, dropped_bytes: 0 })
        }),
    };
    (session, Process { stdin: far_in, stdout: far_out, stderr: far_err, sizes, end })
}

async fn say(stream: &mut Option<DuplexStream>, text: &str) {
    if let Some(stream) = stream {
        let _ = stream.write_all(text.as_bytes()).await;
    }
}

impl Process {
    async fn cat(mut self) {
        if let Some(mut stdin) = self.stdin.take() {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdin.read(&mut buffer).await {
                if let Some(stdout) = &mut self.stdout {
                    let _ = stdout.write_all(&buffer[..count]).await;
                }
            }
        }
        drop((self.stdout, self.stderr));
        let _ = self.end.send(0);
    }

    async fn tell_sizes(mut self, first: Option<TerminalSize>) {
        let print = |size: TerminalSize| format!("{}x{}\n", size.columns, size.rows);
        if let Some(size) = first {
            say(&mut self.stdout, &print(size)).await;
        }
        let Some(mut stdin) = self.stdin.take() else { return };
        let mut buffer = [0; 64];
        loop {
            tokio::select! {
                Some(size) = self.sizes.recv() => say(&mut self.stdout, &print(size)).await,
                read = stdin.read(&mut buffer) => if !matches!(read, Ok(1..)) { break },
            }
        }
        drop((self.stdout, self.stderr));
        let _ = self.end.send(0);
    }

    async fn print(mut self, out: String, err: String, exit_code: i32) {
        say(&mut self.stdout, &out).await;
        say(&mut self.stderr, &err).await;
        drop((self.stdout, self.stderr));
        let _ = self.end.send(exit_code);
    }
}

/// Runs a command.
pub(super) fn of_exec(exec: &Exec) -> Result<Session, RuntimeError> {
    let words: Vec<&str> = exec.command.iter().map(String::as_str).collect();
    let missing = || RuntimeError::Start {
        exit_code: 127,
        message: format!("exec: {:?}: executable file not found in $PATH", words.join(" ")),
    };
    let (session, process) = open(exec.streams, exec.tty);
    match words.as_slice() {
        ["cat"] => drop(tokio::spawn(process.cat())),
        ["size"] => drop(tokio::spawn(process.tell_sizes(exec.size))),
        ["echo", rest @ ..] => {
            drop(tokio::spawn(process.print(rest.join(" ") + "\n", String::new(), 0)));
        }
        ["err", rest @ ..] => {
            drop(tokio::spawn(process.print(String::new(), rest.join(" ") + "\n", 0)));
        }
        ["exit", code] => {
            let code = code.parse().map_err(|_| missing())?;
            drop(tokio::spawn(process.print(String::new(), String::new(), code)));
        }
        _ => return Err(missing()),
    }
    Ok(session)
}

/// A container that gives its input back, for ever.
pub(super) fn echo(streams: Streams, tty: bool) -> Session {
    let (session, process) = open(streams, tty);
    drop(tokio::spawn(process.cat()));
    session
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fake_command_speaks_through_its_streams() {
        let streams = Streams { stdin: true, stdout: true, stderr: true };
        let exec = |command: &[&str], tty| Exec {
            command: command.iter().map(|w| (*w).to_owned()).collect(),
            streams,
            tty,
            size: None,
        };
        let mut session = of_exec(&exec(&["cat"], false)).unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(b"hello").await.unwrap();
        drop(stdin);
        let mut text = String::new();
        session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello");
        let end = session.end.await.unwrap();
        assert_eq!(end, SessionEnd { exit_code: 0, dropped_bytes: 0 });
        let session = of_exec(&exec(&["exit", "7"], false)).unwrap();
        assert_eq!(session.end.await.unwrap().exit_code, 7);
        assert!(of_exec(&exec(&["nothing"], false)).is_err());
        let session = of_exec(&exec(&["size"], true)).unwrap();
        let size = TerminalSize { columns: 80, rows: 24 };
        session.terminal.as_ref().unwrap().resize(size).unwrap();
        let mut line = [0; 6];
        session.stdout.unwrap().read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"80x24\n");
    }
}
