//! `berth exec`, `berth attach` and `berth port-forward`: streams of this node's pods by the agent's
//! socket, with no API server.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;
use tracing::warn;

use crate::cli::{ExecFlags, PortForwardFlags};
use crate::control::{self, Answer, Request};
use crate::session::{Kind, Place, Wanted, read_frame, size_bytes, write_frame};
use crate::settings::Places;
use crate::terminal::{self, Raw};

/// Runs a command in a container, or attaches to its first process where there is none; ends with the
/// process's exit code.
pub(crate) async fn run(flags: ExecFlags) -> Result<ExitCode> {
    let places = Places::resolve(&flags.host)?;
    let place = Place { pod: flags.pod, container: flags.container };
    let size = terminal::size().filter(|_| flags.tty).map(|size| (size.columns, size.rows));
    let streams = Wanted { stdin: flags.stdin, tty: flags.tty, size };
    let request = Request::Session { place, command: flags.command, streams };
    let (mut reader, writer) = begin(&places, &request).await?;
    // From here on every key is the process's, until this function ends.
    let _raw = if flags.tty && flags.stdin { Raw::enter()? } else { None };
    let mut ended = signal(SignalKind::terminate())?;
    let writer = Mutex::new(writer);
    let input = async {
        let inputs = async { if flags.stdin { feed(&writer).await } else { Ok(()) } };
        let sizes = async { if flags.tty { follow_size(&writer).await } else { Ok(()) } };
        tokio::try_join!(inputs, sizes)?;
        std::future::pending::<std::io::Result<ExitCode>>().await
    };
    tokio::select! {
        code = print(&mut reader) => code,
        _ = ended.recv() => Ok(ExitCode::from(128 + 15)),
        // A process that has ended takes no more input; its end comes by the other way.
        Err(_) = input => print(&mut reader).await,
    }
}

/// Sends standard input.
async fn feed<W: AsyncWrite + Unpin>(writer: &Mutex<W>) -> std::io::Result<()> {
    let mut buffer = vec![0; 32 << 10];
    let mut stdin = tokio::io::stdin();
    loop {
        let count = stdin.read(&mut buffer).await?;
        write_frame(&mut *writer.lock().await, Kind::Input, &buffer[..count]).await?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Sends the terminal's size whenever it changes.
async fn follow_size<W: AsyncWrite + Unpin>(writer: &Mutex<W>) -> std::io::Result<()> {
    let mut changes = signal(SignalKind::window_change())?;
    while changes.recv().await.is_some() {
        if let Some(size) = terminal::size() {
            write_frame(&mut *writer.lock().await, Kind::Size, &size_bytes(size)).await?;
        }
    }
    Ok(())
}

/// Prints what the process prints, until it has ended.
async fn print<R: AsyncRead + Unpin>(reader: &mut R) -> Result<ExitCode> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some((kind, bytes)) = read_frame(reader).await? {
        match kind {
            Kind::Output => {
                out.write_all(&bytes).await?;
                out.flush().await?;
            }
            Kind::Error => {
                err.write_all(&bytes).await?;
                err.flush().await?;
            }
            Kind::Exit => {
                let code = bytes.first_chunk().map(|code| i32::from_be_bytes(*code));
                let code = code.context("an exit code of four bytes")?;
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            Kind::Failed => bail!("{}", String::from_utf8_lossy(&bytes)),
            Kind::Input | Kind::Size => {}
        }
    }
    bail!("the agent ended before the process")
}

/// Sends a request, and returns the connection once the agent has begun.
async fn begin(
    places: &Places,
    request: &Request,
) -> Result<(impl AsyncRead + Unpin + use<>, impl AsyncWrite + Unpin + use<>)> {
    let (reader, writer) = tokio::io::split(control::connect(places, request).await?);
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    match serde_json::from_str(&line).context("the agent ended before it answered")? {
        Answer::Started => Ok((reader, writer)),
        Answer::Failed(message) => bail!("{message}"),
        _ => bail!("the agent is of another version: it answered something else"),
    }
}

/// Forwards ports of this host's loopback to a pod's, until a signal.
pub(crate) async fn forward(flags: PortForwardFlags) -> Result<()> {
    let places = Places::resolve(&flags.host)?;
    let shutdown = crate::signals::shutdown()?;
    let mut listeners = tokio::task::JoinSet::new();
    for pair in &flags.ports {
        let (near, far) = ports(pair)?;
        let listener = TcpListener::bind(("127.0.0.1", near))
            .await
            .with_context(|| format!("listening on 127.0.0.1:{near}"))?;
        println!("Forwarding from {} -> {far}", listener.local_addr()?);
        let (places, pod) = (places.clone(), flags.pod.clone());
        listeners.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (places, pod) = (places.clone(), pod.clone());
                tokio::spawn(async move {
                    if let Err(error) = one(&places, &pod, (stream, far)).await {
                        eprintln!("berth: port {far}: {error:#}");
                        warn!(far, "a forwarded connection failed");
                    }
                });
            }
        });
    }
    shutdown.cancelled().await;
    listeners.shutdown().await;
    Ok(())
}

async fn one(places: &Places, pod: &str, (mut near, port): (TcpStream, u16)) -> Result<()> {
    let place = Place { pod: pod.to_owned(), container: None };
    let (reader, writer) = begin(places, &Request::Forward { place, port }).await?;
    let mut far = tokio::io::join(reader, writer);
    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}

/// `8080`, `9090:8080`, `:8080`.
fn ports(text: &str) -> Result<(u16, u16)> {
    let (near, far) = text.split_once(':').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().with_context(|| format!("{text:?} is no port"));
    let near = if near.is_empty() { 0 } else { port(near)? };
    match port(far)? {
        0 => bail!("0 is no port of a pod"),
        far => Ok((near, far)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_as_kubectl_names_them() {
        assert_eq!(ports("80").unwrap(), (80, 80));
        assert_eq!(ports("8080:80").unwrap(), (8080, 80));
        assert_eq!(ports(":80").unwrap(), (0, 80));
        for bad in ["", "x", "80:0", "80:", "70000"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
