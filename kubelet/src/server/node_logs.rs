//! `/logs/`: the files of the host's log directory, and what its services wrote to the journal
//! (KEP-2258, node log query).
//!
//! ```text
//! path ───────────────────────────────► files: beneath the directory, through no link
//! query=<file with a slash> ──────────►   ”
//! query=<service> ─► in the journal? ─┬► journalctl with exact arguments
//!                                     └► <service>, <service>.log, <service>/<service>.log
//! ```
//!
//! What a pod writes into a log directory that it was given must not lead the agent out of it
//! (`/var/log` by hostPath and a link in it), so no link is followed at all.
//!
//! `Differs:` no link is followed; nothing is answered with a redirect; a wrong query is always 400; a
//! query that is not allowed by configuration is refused instead of being answered by a listing.

mod files;
mod journal;
mod query;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{OriginalUri, RawQuery, State as Shared};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::Semaphore;

use super::State;
use crate::config::SystemLogs;
use journal::Journal;
use query::Query;

/// How many journals may be read at once.
const READERS: usize = 4;

/// Where logs are, and what of them is served.
#[derive(Debug, Clone)]
pub struct Logs {
    offer: SystemLogs,
    directory: PathBuf,
    journal: Journal,
}

impl Logs {
    /// The host's.
    pub fn of_host(offer: SystemLogs) -> Self {
        Self::new(offer, "/var/log".into(), vec!["journalctl".to_owned()])
    }

    /// Those of a test: files and nothing else.
    #[cfg(test)]
    pub(super) fn in_directory(directory: PathBuf) -> Self {
        Self::new(SystemLogs::Query, directory, vec!["/nonexistent/journalctl".to_owned()])
    }

    /// Those in `directory`, and what `journalctl` says.
    fn new(offer: SystemLogs, directory: PathBuf, journalctl: Vec<String>) -> Self {
        let journal = Journal::new(journalctl, Arc::new(Semaphore::new(READERS)));
        Self { offer, directory, journal }
    }
}

/// The routes.
pub(super) fn routes() -> Router<State> {
    let router = Router::new();
    ["/logs", "/logs/", "/logs/{*path}"].into_iter().fold(router, |all, path| {
        // Every method comes here, so that a switched-off path says so to each.
        all.route(path, get(serve).fallback(other))
    })
}

/// What cannot be served, with its status.
type Refusal = (StatusCode, String);

fn off() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.\n").into_response()
}

async fn other(Shared(state): Shared<State>) -> Response {
    match state.system_logs.offer {
        SystemLogs::Off => off(),
        _ => (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")]).into_response(),
    }
}

async fn serve(
    Shared(state): Shared<State>,
    OriginalUri(uri): OriginalUri,
    RawQuery(query): RawQuery,
    (method, headers): (Method, HeaderMap),
) -> Response {
    let logs = &state.system_logs;
    if logs.offer == SystemLogs::Off {
        return off();
    }
    let query = match Query::parse(query.as_deref().unwrap_or_default()) {
        Ok(query) => query,
        Err(why) => return (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    };
    if query.is_some() && logs.offer != SystemLogs::Query {
        let why = "node log queries are disabled: enableSystemLogQuery is not set\n";
        return (StatusCode::BAD_REQUEST, why).into_response();
    }
    let path = uri.path().strip_prefix("/logs").unwrap_or_default();
    let asked = files::Asked { head: method == Method::HEAD, headers: &headers };
    let served = match query {
        None => match files::decoded(path) {
            Some(path) => files::serve(&logs.directory, &path, &asked).await,
            None => Err((StatusCode::BAD_REQUEST, "not a path\n".to_owned())),
        },
        // As upstream, a query for a file is answered whatever the path is.
        Some(Query::File(path)) => {
            files::serve(&logs.directory, &path, &asked).await.map_err(|refusal| match refusal.0 {
                StatusCode::NOT_FOUND => {
                    (StatusCode::BAD_REQUEST, format!("query: {path:?}: no such file\n"))
                }
                _ => refusal,
            })
        }
        Some(Query::Services(services)) => {
            match logs.journal.read(&logs.directory, services).await {
                Ok(text) => Ok(plain(text)),
                Err(refusal) => Err(refusal),
            }
        }
    };
    served.unwrap_or_else(IntoResponse::into_response)
}

fn plain(body: Body) -> Response {
    let kind = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (kind, body).into_response()
}
