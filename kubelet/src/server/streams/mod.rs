//! `/exec`, `/attach`, `/portForward` and `/run`: live streams of a pod, over WebSocket and SPDY/3.1.
//!
//! ```text
//! query: path, query, protocol ─► find the container ─► 101 ─► websocket | spdy + multiplex
//!                                                                 └─► remote | forward ◄─► runtime
//! ```
//!
//! A request is answered with 101 only after whoever asks has been let in and what is asked for has
//! been found; a connection whose upgrade fails is closed, so that nothing after it is served
//! (CVE-2018-1002105).

mod find;
mod forward;
mod multiplex;
pub(super) mod query;
mod remote;
pub(super) mod websocket;

#[cfg(test)]
mod tests;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State as Shared};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, post};
use berth_guests::UnderWay;
use berth_runtime::interface::{Exec, Session};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::State;
use super::activity::Activity;
use super::budget::{Held, Use};
use super::spdy::session as spdy;
use find::Container;
pub(super) use query::pairs;
use query::{ForwardProtocol, Options, Refusal, Upgrade};
use remote::{Outcome, Remote};

/// What a path names: namespace, pod, the pod's UID where it is given, container.
type Names = Vec<(String, String)>;

/// The streaming routes.
pub(super) fn routes() -> Router<State> {
    Router::new()
        .route("/exec/{namespace}/{pod}/{container}", any(exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", any(exec))
        .route("/attach/{namespace}/{pod}/{container}", any(attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", any(attach))
        .route("/portForward/{namespace}/{pod}", any(port_forward))
        .route("/portForward/{namespace}/{pod}/{uid}", any(port_forward))
        .route("/run/{namespace}/{pod}/{container}", post(run))
        .route("/run/{namespace}/{pod}/{uid}/{container}", post(run))
}

/// What a session does in its container.
enum Work {
    Exec,
    Attach,
}

async fn exec(state: Shared<State>, names: Path<Names>, request: Request) -> Response {
    answer(session(state.0, names.0, (request, Work::Exec)).await)
}

async fn attach(state: Shared<State>, names: Path<Names>, request: Request) -> Response {
    answer(session(state.0, names.0, (request, Work::Attach)).await)
}

async fn port_forward(state: Shared<State>, names: Path<Names>, request: Request) -> Response {
    answer(forwarding(state.0, names.0, request).await)
}

/// A refused upgrade ends its connection.
fn answer(result: Result<Response, Refusal>) -> Response {
    result.unwrap_or_else(|refusal| {
        let mut response = refusal.into_response();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    })
}

/// Exec or attach.
async fn session(
    state: State,
    names: Names,
    (mut request, work): (Request, Work),
) -> Result<Response, Refusal> {
    let options = Options::parse(request.uri().query().unwrap_or_default())?;
    if matches!(work, Work::Exec) && options.command.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "you must specify a command\n".to_owned()));
    }
    let upgrade = query::upgrade(request.headers())?;
    let container = find::container(&state, &names).await?;
    let held = state.streaming.budget.take(Use::Session)?;
    let job = Job { container, options, work, held };
    match upgrade {
        Upgrade::WebSocket => {
            let protocol = query::session_protocol(request.headers())?;
            let (response, upgraded) = websocket_handshake(&mut request, protocol.name)?;
            spawn(&state, &mut request, |activity| async move {
                let Ok(connection) = upgraded.await else { return };
                let socket = websocket::accept(TokioIo::new(connection)).await;
                let (remote, carry) = websocket::session(socket, protocol, &job.options, activity);
                let ((), carried) = tokio::join!(job.run(remote), carry);
                said(carried);
            });
            Ok(response)
        }
        Upgrade::Spdy => {
            let protocol = query::spdy_protocol(request.headers())?;
            let (response, upgraded) = spdy_handshake(&mut request, protocol.name)?;
            spawn(&state, &mut request, |activity| async move {
                let Ok(connection) = upgraded.await else { return };
                let (mut session, carry) = spdy::serve(TokioIo::new(connection), activity);
                let serve = async move {
                    if let Some(remote) =
                        multiplex::session(&mut session, protocol, &job.options).await
                    {
                        job.run(remote).await;
                    }
                };
                let ((), carried) = tokio::join!(serve, carry);
                said(carried);
            });
            Ok(response)
        }
    }
}

fn said(carried: Result<(), impl std::fmt::Display>) {
    if let Err(error) = carried {
        tracing::debug!(%error, "a streaming client went away");
    }
}

/// An exec or attach that has been let in.
struct Job {
    container: Container,
    options: Options,
    work: Work,
    /// Until the session is over.
    held: Held,
}

impl Job {
    async fn run(self, mut remote: Remote) {
        let outcome = match self.begin().await {
            Err(error) => Some(Outcome::of_error(&error)),
            Ok(session) => remote.carry(session).await.map(|end| match self.work {
                Work::Exec => Outcome::of_exec(&end),
                // What has been attached to ends with its own code, which is the pod's to tell.
                Work::Attach => end.map_or_else(|e| Outcome::of_error(&e), |_| Outcome::Success),
            }),
        };
        drop(self.held);
        if let Some(outcome) = outcome {
            remote.end(&outcome).await;
        }
    }

    async fn begin(&self) -> Result<Session, berth_runtime::interface::RuntimeError> {
        let Container { runtime, id } = &self.container;
        let Options { command, streams, tty } = self.options.clone();
        match self.work {
            Work::Exec => runtime.exec(id, Exec { command, streams, tty, size: None }).await,
            Work::Attach => runtime.attach(id, streams).await,
        }
    }
}

async fn forwarding(state: State, names: Names, mut request: Request) -> Result<Response, Refusal> {
    let upgrade = query::upgrade(request.headers())?;
    let destination = find::destination(&state, &names).await?;
    match upgrade {
        Upgrade::Spdy => {
            let name = query::spdy_forward(request.headers())?;
            let (response, upgraded) = spdy_handshake(&mut request, name)?;
            spawn(&state, &mut request, |activity| async move {
                let Ok(connection) = upgraded.await else { return };
                let (session, carry) = spdy::serve(TokioIo::new(connection), activity);
                let ((), carried) = tokio::join!(forward::spdy(session, destination), carry);
                said(carried);
            });
            Ok(response)
        }
        Upgrade::WebSocket => match query::forward_protocol(request.headers())? {
            ForwardProtocol::Tunnel => {
                let (response, upgraded) = websocket_handshake(&mut request, query::TUNNEL)?;
                spawn(&state, &mut request, |activity| async move {
                    let Ok(connection) = upgraded.await else { return };
                    let socket = websocket::accept(TokioIo::new(connection)).await;
                    let (near, far) = tokio::io::duplex(64 << 10);
                    let (session, carry) = spdy::serve(near, activity);
                    let forward = forward::spdy(session, destination);
                    let tunnel = websocket::tunnel(socket, far);
                    let ((), carried, tunnelled) = tokio::join!(forward, carry, tunnel);
                    said(carried);
                    said(tunnelled);
                });
                Ok(response)
            }
            ForwardProtocol::Channels { name, coding } => {
                let ports = query::ports(request.uri().query().unwrap_or_default())?;
                let (response, upgraded) = websocket_handshake(&mut request, name)?;
                spawn(&state, &mut request, |activity| async move {
                    let Ok(connection) = upgraded.await else { return };
                    let socket = websocket::accept(TokioIo::new(connection)).await;
                    let (lanes, gone, carry) =
                        websocket::lanes(socket, coding, ports.len(), activity);
                    let forward = forward::channels(lanes, ports, (destination, gone));
                    let ((), carried) = tokio::join!(forward, carry);
                    said(carried);
                });
                Ok(response)
            }
        },
    }
}

/// Runs what follows an upgrade beside the connection that it was asked on, whose place it keeps.
fn spawn<F>(state: &State, request: &mut Request, work: impl FnOnce(Activity) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let activity = Activity::new();
    let (idle, shutdown) = (state.streaming.idle_timeout, state.streaming.shutdown.clone());
    let under_way = request.extensions_mut().remove::<UnderWay>();
    let work = work(activity.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = work => {}
            () = activity.idle(idle) => tracing::debug!("a streaming connection was idle"),
            () = shutdown.cancelled() => {}
        }
        drop(under_way);
    });
}

fn upgradable(request: &mut Request) -> Result<OnUpgrade, Refusal> {
    let upgraded = request.extensions_mut().remove::<OnUpgrade>();
    upgraded.ok_or_else(|| {
        let message = "this connection cannot be upgraded\n".to_owned();
        (StatusCode::BAD_REQUEST, message)
    })
}

/// 101 for a WebSocket.
fn websocket_handshake(
    request: &mut Request,
    protocol: &'static str,
) -> Result<(Response, OnUpgrade), Refusal> {
    let bad = |why: &str| Err((StatusCode::BAD_REQUEST, format!("{why}\n")));
    let headers = request.headers();
    if request.method() != axum::http::Method::GET {
        return bad("a WebSocket begins with GET");
    }
    let version = headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
    if version != Some(b"13") {
        return bad("a WebSocket of version 13 is expected");
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return bad("a WebSocket has a key");
    };
    let accept = derive_accept_key(key.as_bytes());
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !protocol.is_empty() {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    finished(response, upgradable(request)?)
}

/// 101 for SPDY.
fn spdy_handshake(
    request: &mut Request,
    protocol: &'static str,
) -> Result<(Response, OnUpgrade), Refusal> {
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1");
    if !protocol.is_empty() {
        response = response.header(query::STREAM_PROTOCOL, protocol);
    }
    finished(response, upgradable(request)?)
}

fn finished(
    response: axum::http::response::Builder,
    upgraded: OnUpgrade,
) -> Result<(Response, OnUpgrade), Refusal> {
    let response = response.body(Body::empty());
    let response = response.map_err(|error| {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot answer: {error}\n"))
    })?;
    Ok((response, upgraded))
}

/// Runs a command and answers with what it prints.
async fn run(state: Shared<State>, names: Path<Names>, RawQuery(query): RawQuery) -> Response {
    let work = async {
        let command = query::run_command(&query.unwrap_or_default())?;
        let Container { runtime, id } = find::container(&state.0, &names.0).await?;
        let _held = state.0.streaming.budget.take(Use::Command)?;
        let output = runtime.exec_sync(&id, command, None).await;
        let output = output.map_err(|error| {
            let text = format!("{}\n", crate::worker::chain(&error));
            (StatusCode::INTERNAL_SERVER_ERROR, text)
        })?;
        let mut text = output.stdout;
        text.extend_from_slice(&output.stderr);
        match output.exit_code {
            0 => Ok(text.into_response()),
            code => {
                let message = format!("command terminated with exit code {code}\n");
                text.extend_from_slice(message.as_bytes());
                Ok((StatusCode::INTERNAL_SERVER_ERROR, text).into_response())
            }
        }
    };
    work.await.unwrap_or_else(|refusal: Refusal| refusal.into_response())
}
