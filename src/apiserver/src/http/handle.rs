//! From one HTTP request to its answer: routes, checks access, reads the body, calls the verb.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use hyper::{Method, Request, StatusCode};
use serde_json::Value;

use super::access::{ANONYMOUS, Attempt, Identity, authorize};
use super::answer::{self, Answer};
use super::form::{self, Form};
use super::impersonate;
use super::query::Query;
use super::route::{Route, Target, route};
use crate::api::Api;
use crate::failure::Failure;
use crate::resource::{Kind, Subresource};
use crate::selector::field;
use crate::verbs::{self, body, delete, read, watch, write};
use crate::{discovery, openapi, tokens};

/// The largest body that is read.
const MAX_BODY: usize = 3 << 20;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(60);

/// What upstream tells users of the older of the two endpoint kinds.
const ENDPOINTS_WARNING: &str =
    "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";

/// The parts of a request that verbs look at.
pub(crate) struct Call {
    /// Who asks.
    pub identity: Identity,
    /// The query parameters.
    pub query: Query,
    /// The form of the answer.
    pub form: Form,
}

/// Answers a request; failures become `Status` objects.
pub(crate) async fn answer(
    api: Arc<Api>,
    identity: Arc<Option<Identity>>,
    request: Request<Incoming>,
) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let result = dispatch(api, identity, request).await;
    match &result {
        Ok(answer) => tracing::debug!(%method, path, code = answer.status().as_u16(), "request"),
        Err(failure) => tracing::debug!(%method, path, code = failure.code(), %failure, "request"),
    }
    result.unwrap_or_else(|failure| answer::failure(&failure))
}

async fn dispatch(
    api: Arc<Api>,
    identity: Arc<Option<Identity>>,
    request: Request<Incoming>,
) -> Result<Answer, Failure> {
    let found = route(request.uri().path());
    match &found {
        Route::Health => return Ok(answer::with_type(StatusCode::OK, "text/plain", "ok")),
        Route::Version => return Ok(answer::json(StatusCode::OK, &discovery::version())),
        _ => {}
    }
    let identity = match identity.as_ref() {
        Some(identity) => identity.clone(),
        None if is_public(&found, &request) => Identity {
            user: ANONYMOUS.to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
        },
        None => bearer(&api, &request)?,
    };
    let identity = impersonate::effective(&api.store, identity, request.headers())?;
    match found {
        Route::Object(target) => object(api, identity, (target, request)).await,
        Route::Review(review) if request.method() == Method::POST => {
            let body = body_of(request).await?;
            verbs::review::answer(&api, (review, &identity), &body)
        }
        other if request.method() == Method::GET => document(&api, &other, &request),
        Route::Nothing => Err(Failure::no_such_path()),
        _ => Err(Failure::method_not_allowed()),
    }
}

/// Whether strangers are heard at all: without credentials only the description of the cluster can be
/// asked for, by which machines begin to join. Whether they get it is up to RBAC.
fn is_public(found: &Route, request: &Request<Incoming>) -> bool {
    let Route::Object(target) = found else { return false };
    let named = (target.resource.kind, target.namespace.as_str(), target.name.as_str());
    named == (Kind::ConfigMap, "kube-public", "cluster-info")
        && request.method() == Method::GET
        && !request.headers().contains_key(AUTHORIZATION)
}

/// Who shows a token. One that is not believed is told so in the log only.
fn bearer(api: &Api, request: &Request<Incoming>) -> Result<Identity, Failure> {
    let shown = header(request, AUTHORIZATION.as_str());
    let token = shown.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let (_, token) = token.ok_or_else(Failure::unauthorized)?;
    tokens::authenticate(api, token.trim(), &[]).map(|bearer| bearer.identity).map_err(|doubt| {
        tracing::debug!(%doubt, "bearer token");
        Failure::unauthorized()
    })
}

fn document(api: &Api, found: &Route, request: &Request<Incoming>) -> Result<Answer, Failure> {
    let aggregated = header(request, ACCEPT.as_str())
        .split(',')
        .any(|one| one.contains("as=APIGroupDiscoveryList") && one.contains("v=v2"));
    let half = |half| {
        let text = discovery::aggregated(half).to_string();
        let media_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        answer::with_type(StatusCode::OK, media_type, text)
    };
    let plain = |value: Option<Value>| {
        value.map(|value| answer::json(StatusCode::OK, &value)).ok_or_else(Failure::no_such_path)
    };
    match found {
        Route::CoreVersions if aggregated => Ok(half(discovery::Half::Core)),
        Route::Groups if aggregated => Ok(half(discovery::Half::Named)),
        Route::CoreVersions => {
            plain(Some(discovery::core_versions(&api.settings.advertise.to_string())))
        }
        Route::Groups => plain(Some(discovery::groups())),
        Route::Group(group) => plain(discovery::group(group)),
        Route::Resources(group, version) => plain(discovery::resources(group, version)),
        Route::Index => plain(Some(serde_json::json!({
            "paths": ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz",
                      "/version"],
        }))),
        Route::Issuer => plain(Some(tokens::discovery())),
        Route::IssuerKeys => plain(Some(api.signer.key_set())),
        Route::OpenApiIndex => plain(Some(openapi::index())),
        Route::OpenApi(path) => {
            let document = openapi::documents().iter().find(|d| d.path == *path);
            Ok(openapi_document(document.ok_or_else(Failure::no_such_path)?, request))
        }
        _ => Err(Failure::no_such_path()),
    }
}

fn openapi_document(document: &openapi::Document, request: &Request<Incoming>) -> Answer {
    let etag = format!("\"{}\"", document.hash);
    let mut response = if header(request, IF_NONE_MATCH.as_str()) == etag {
        let mut unchanged = answer::with_type(StatusCode::NOT_MODIFIED, "application/json", "");
        unchanged.headers_mut().remove(CONTENT_TYPE);
        unchanged
    } else {
        answer::with_type(StatusCode::OK, "application/json", document.text.clone())
    };
    let query = Query::parse(request.uri().query().unwrap_or_default());
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    if query.text("hash") == document.hash {
        let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
        response.headers_mut().insert("cache-control", forever);
    }
    response
}

fn header<'a>(request: &'a Request<Incoming>, name: &str) -> &'a str {
    request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn verb_of(method: &Method, target: &Target, query: &Query) -> Option<&'static str> {
    let named = !target.name.is_empty();
    Some(match (method, named) {
        (&Method::GET | &Method::HEAD, true) if query.flag("watch") => "watch",
        (&Method::GET | &Method::HEAD, true) => "get",
        (&Method::GET | &Method::HEAD, false) if query.flag("watch") => "watch",
        (&Method::GET | &Method::HEAD, false) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, true) => "update",
        (&Method::PATCH, true) => "patch",
        (&Method::DELETE, true) => "delete",
        (&Method::DELETE, false) => "deletecollection",
        _ => return None,
    })
}

async fn object(
    api: Arc<Api>,
    identity: Identity,
    (target, request): (Target, Request<Incoming>),
) -> Result<Answer, Failure> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let connects = target.subresource.is_some_and(Subresource::connects);
    let verb = match request.method() {
        // Whatever begins a stream creates something (a WebSocket can begin with GET only).
        &Method::GET | &Method::POST if connects => "create",
        method => verb_of(method, &target, &query).ok_or_else(Failure::method_not_allowed)?,
    };
    // One that makes no sense is refused where it is used; until then it narrows nothing.
    let fields = field::Selector::parse(target.resource.kind, query.text("fieldSelector"));
    let fields = fields.unwrap_or_default();
    let demanded = |pointer| match verb {
        "list" | "watch" => fields.demanded(pointer).unwrap_or_default(),
        _ => "",
    };
    let attempt = Attempt {
        verb,
        resource: target.resource,
        subresource: target.subresource,
        namespace: &target.namespace,
        name: if target.name.is_empty() { demanded("/metadata/name") } else { &target.name },
        node: demanded("/spec/nodeName"),
    };
    authorize(&api.store, &identity, &attempt)?;
    let allowed = match target.subresource {
        Some(sub) => sub.verbs().contains(&verb),
        // Something is created in a collection, not at a name.
        None => verb != "create" || target.name.is_empty(),
    };
    if !allowed {
        return Err(Failure::method_not_allowed());
    }
    if target.subresource == Some(Subresource::Log) {
        let log = verbs::log::stream(&api, &target, &query).await?;
        return match verbs::log_socket::is_wanted(request.headers()) {
            true => verbs::log_socket::upgrade(request, log, api.stop.clone()),
            false => Ok(log),
        };
    }
    if target.subresource == Some(Subresource::Proxy) {
        return verbs::proxy::read(&api, &target, &request).await;
    }
    if connects {
        return verbs::connect::stream(&api, &target, (&query, request)).await;
    }
    let form = Form::negotiate(header(&request, ACCEPT.as_str()), &query)?;
    let call = Call { identity, query, form };
    let mut answer = match verb {
        "get" => read::get(&api, &target, &call),
        "list" => read::list(&api, &target, &call),
        "watch" => watch::stream(&api, &target, &call),
        _ => write_verb(&api, (verb, &target, &call), request).await,
    }?;
    if target.resource.kind == Kind::Endpoints {
        answer::warn(&mut answer, &[ENDPOINTS_WARNING.to_owned()]);
    }
    Ok(answer)
}

async fn write_verb(
    api: &Api,
    (verb, target, call): (&str, &Target, &Call),
    request: Request<Incoming>,
) -> Result<Answer, Failure> {
    let body = body_of(request).await?;
    match (verb, target.subresource) {
        ("create", Some(Subresource::Binding)) => {
            verbs::pod::bind(api, target, (call, &body)).await
        }
        ("create", Some(Subresource::Token)) => verbs::token::issue(api, target, (call, &body)),
        ("create", Some(Subresource::Eviction)) => {
            verbs::pod::evict(api, target, (call, &body)).await
        }
        ("create", _) => write::create(api, target, (call, &body)).await,
        ("update", _) => write::update(api, target, (call, &body)).await,
        ("patch", _) => write::patch(api, target, (call, &body)).await,
        ("delete", _) => delete::one(api, target, (call, &body)).await,
        ("deletecollection", _) => delete::collection(api, target, (call, &body)).await,
        _ => Err(Failure::method_not_allowed()),
    }
}

async fn body_of(request: Request<Incoming>) -> Result<body::Body, Failure> {
    let media_type = header(&request, CONTENT_TYPE.as_str())
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_lowercase();
    Ok(body::Body { media_type, bytes: read_body(request).await? })
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes, Failure> {
    let reading = Limited::new(request.into_body(), MAX_BODY).collect();
    match tokio::time::timeout(BODY_TIME, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failure::too_large(MAX_BODY)),
        Ok(Err(error)) => Err(Failure::bad_request(format!("read the request body: {error}"))),
        Err(_) => Err(Failure::bad_request("the request body took too long to arrive")),
    }
}

/// Renders one object in the form the client wants.
pub(crate) fn rendered(
    call: &Call,
    target: &Target,
    (code, object): (StatusCode, &Value),
) -> Answer {
    answer::json(code, &form::one(call.form, target.resource, object))
}
