//! One HTTP GET to a container, for probes and hooks: certificates are not verified, at most 10 KiB
//! of the body are read, redirects are followed on the same host only.
//!
//! Serves `httpGet` of the Kubernetes API. A redirect to another host counts as an answer, and nothing is
//! sent there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use bytes::Bytes;
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Position, Url};

/// How much of a body is read.
const MAX_BODY: usize = 10 << 10;

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 10;

/// Why there was no answer. Its words are those of the event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// TLS was spoken to somebody who answers without.
    #[error("Get \"{url}\": server gave HTTP response to HTTPS client")]
    NotTls {
        /// What was asked for.
        url: String,
    },
    /// Anything else.
    #[error("Get \"{url}\": {why}")]
    Other {
        /// What was asked for.
        url: String,
        /// Why it failed.
        why: String,
    },
}

/// Why one call failed, before it is known what was asked for first.
enum Trouble {
    NotTls,
    Other(String),
}

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Other(why)
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
    pub(crate) is_https: bool,
    pub(crate) headers: HeaderMap,
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// The first of the body, or why it broke off before that.
    pub(crate) body: Result<Bytes, String>,
}

impl Call {
    /// The call that an `httpGet` action of `container` describes; `ips` are the pod's.
    pub(crate) fn of_action(
        container: &Container,
        action: &HTTPGetAction,
        ips: &[IpAddr],
    ) -> Result<Self, String> {
        let host = match action.host.as_deref() {
            Some(host) if !host.is_empty() => host.to_owned(),
            _ => ips.first().ok_or("the pod has no address")?.to_string(),
        };
        let path = action.path.clone().unwrap_or_default();
        let path = match path.starts_with('/') {
            true => path,
            false => format!("/{path}"),
        };
        let mut headers = HeaderMap::new();
        for given in action.http_headers.iter().flatten() {
            let name = HeaderName::try_from(&given.name).map_err(|e| e.to_string())?;
            let value = HeaderValue::try_from(&given.value).map_err(|e| e.to_string())?;
            headers.append(name, value);
        }
        Ok(Self {
            host,
            port: port(container, &action.port)?,
            path,
            is_https: action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
            headers,
        })
    }

    fn url(&self) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// Host and port, as URLs have them.
    pub(crate) fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

/// A host, an address or a name, and a port as URLs have them.
pub(crate) fn authority(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// The port that a number or a name means for `container`.
pub(crate) fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse::<i32>() {
            Ok(number) => number,
            Err(_) => {
                let ports = container.ports.iter().flatten();
                let mut named = ports.filter(|p| p.name.as_deref() == Some(name));
                let found = named.next().map(|p| p.container_port);
                found.ok_or_else(|| format!("couldn't find port: {name}"))?
            }
        },
    };
    u16::try_from(number)
        .ok()
        .filter(|p| *p > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

/// Connects to `host`, an address or a name.
pub(crate) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let dialed = match host.parse::<IpAddr>() {
        Ok(ip) => TcpStream::connect(SocketAddr::new(ip, port)).await,
        Err(_) => TcpStream::connect((host, port)).await,
    };
    dialed.map_err(|error| {
        let what = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {host}:{port}: {what}")
    })
}

/// Makes the call and what it is redirected to on the same host, within `timeout` in all.
pub(crate) async fn get(call: &Call, agent: &str, timeout: Duration) -> Result<Reply, Failure> {
    let trouble = match tokio::time::timeout(timeout, follow(call.clone(), agent)).await {
        Ok(Ok(reply)) => return Ok(reply),
        Ok(Err(trouble)) => trouble,
        Err(_) => Trouble::Other(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned(),
        ),
    };
    let url = call.url();
    Err(match trouble {
        Trouble::NotTls => Failure::NotTls { url },
        Trouble::Other(why) => Failure::Other { url, why },
    })
}

async fn follow(mut call: Call, agent: &str) -> Result<Reply, Trouble> {
    for _ in 0..=MAX_REDIRECTS {
        let (reply, location) = once(&call, agent).await?;
        let next = location
            .filter(|_| (300..400).contains(&reply.status))
            .and_then(|location| redirected(&call, &location));
        match next {
            Some(next) => call = next,
            None => return Ok(reply),
        }
    }
    Err(Trouble::Other(format!("stopped after {MAX_REDIRECTS} redirects")))
}

/// The call that a redirect asks for, if it leads to the same host: on another port or with TLS, too.
fn redirected(call: &Call, location: &str) -> Option<Call> {
    let from = Url::parse(&call.url()).ok()?;
    let to = from.join(location).ok()?;
    let is_https = match to.scheme() {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    if to.host() != from.host() {
        return None;
    }
    let port = to.port_or_known_default()?;
    let path = to[Position::BeforePath..Position::AfterQuery].to_owned();
    let mut next = Call { port, path, is_https, ..call.clone() };
    // A name that was given is of where the call went first.
    if Url::parse(location).is_ok() {
        next.headers.remove(header::HOST);
    }
    Some(next)
}

async fn once(call: &Call, agent: &str) -> Result<(Reply, Option<String>), Trouble> {
    let stream = connect(&call.host, call.port).await?;
    match call.is_https {
        false => Ok(exchange(call, agent, stream).await?),
        true => {
            let connector = TlsConnector::from(Arc::new(unverified()?));
            let name = ServerName::try_from(call.host.clone()).map_err(|e| e.to_string())?;
            let stream = connector.connect(name, stream).await;
            Ok(exchange(call, agent, stream.map_err(|error| refusal(&error))?).await?)
        }
    }
}

/// Why there is no TLS.
fn refusal(error: &std::io::Error) -> Trouble {
    use rustls::{Error, InvalidMessage};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    match cause {
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Trouble::NotTls,
        _ => Trouble::Other(error.to_string()),
    }
}

async fn exchange<S>(call: &Call, agent: &str, stream: S) -> Result<(Reply, Option<String>), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let text = |e: hyper::Error| e.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let connection = tokio::spawn(connection);
    let request = request(call, agent)?;
    let reply = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.status().as_u16();
        let location = response.headers().get(header::LOCATION);
        let location = location.and_then(|l| l.to_str().ok()).map(str::to_owned);
        let body = body(response.into_body()).await;
        Ok((Reply { status, body }, location))
    };
    let reply = reply.await;
    connection.abort();
    reply
}

fn request(call: &Call, agent: &str) -> Result<Request<axum::body::Body>, String> {
    let mut builder = Request::get(&call.path);
    let own_host = call.headers.get(header::HOST).cloned();
    let host = match own_host {
        Some(host) => host,
        None => HeaderValue::try_from(call.authority()).map_err(|e| e.to_string())?,
    };
    builder = builder.header(header::HOST, host);
    if !call.headers.contains_key(header::USER_AGENT) {
        builder = builder.header(header::USER_AGENT, agent);
    }
    if !call.headers.contains_key(header::ACCEPT) {
        builder = builder.header(header::ACCEPT, "*/*");
    }
    builder = builder.header(header::CONNECTION, "close");
    for (name, value) in &call.headers {
        if name != header::HOST {
            builder = builder.header(name, value);
        }
    }
    builder.body(axum::body::Body::empty()).map_err(|e| e.to_string())
}

/// The first of the body; what follows is of no interest.
async fn body(mut body: hyper::body::Incoming) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    while bytes.len() < MAX_BODY {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await;
        let frame = match frame {
            None => break,
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return Err("unexpected EOF".to_owned()),
        };
        if let Some(data) = frame.data_ref() {
            let room = MAX_BODY - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    Ok(Bytes::from(bytes))
}

fn unverified() -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    Ok(config
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone { schemes }))
        .with_no_client_auth())
}

/// Takes any certificate: a probe asks whether something answers, not who.
#[derive(Debug)]
struct Anyone {
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each call with `head`, and then with `piece` as often as is said, or until nobody reads.
    async fn served(head: &'static str, (piece, times): (&'static str, usize)) -> Call {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let _ = stream.write_all(head.as_bytes()).await;
                    for _ in 0..times {
                        if stream.write_all(piece.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let (host, path, headers) = ("127.0.0.1".to_owned(), "/".to_owned(), HeaderMap::new());
        Call { host, port, path, is_https: false, headers }
    }

    async fn got(call: &Call) -> Result<Reply, Failure> {
        get(call, "test", Duration::from_secs(20)).await
    }

    #[tokio::test]
    async fn of_a_body_that_does_not_end_the_first_is_read() {
        let head = "HTTP/1.1 200 OK\r\n\r\n";
        let call = served(head, ("0123456789abcdef", usize::MAX)).await;
        let reply = got(&call).await.unwrap();
        assert_eq!((reply.status, reply.body.unwrap().len()), (200, MAX_BODY));
    }

    #[tokio::test]
    async fn a_head_that_does_not_end_is_no_answer() {
        let call = served("HTTP/1.1 200 OK\r\n", ("name: value\r\n", usize::MAX)).await;
        let error = got(&call).await.unwrap_err().to_string();
        assert!(!error.contains("deadline"), "it ends by what is read, not by time: {error}");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_told() {
        let call = served("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n", ("abc", 1)).await;
        let reply = got(&call).await.unwrap();
        assert_eq!(reply, Reply { status: 200, body: Err("unexpected EOF".to_owned()) });
    }

    #[tokio::test]
    async fn an_answer_without_tls_is_told_from_other_failures() {
        let mut call = served("HTTP/1.1 400 Bad Request\r\n\r\nno TLS here", ("", 0)).await;
        call.is_https = true;
        let error = got(&call).await.unwrap_err();
        assert_eq!(error, Failure::NotTls { url: call.url() });
        assert!(error.to_string().ends_with("server gave HTTP response to HTTPS client"));
    }

    #[test]
    fn redirects_stay_on_their_host_and_may_change_the_rest() {
        let of = |path: &str, port, is_https| {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("shop"))]);
            Call { host: "192.0.2.7".to_owned(), port, path: path.to_owned(), is_https, headers }
        };
        let call = of("/a/b?x=1", 8080, false);
        let nameless = |mut call: Call| {
            call.headers.clear();
            call
        };
        for (location, expected) in [
            ("/c?d=e", Some(of("/c?d=e", 8080, false))),
            ("c", Some(of("/a/c", 8080, false))),
            ("http://192.0.2.7:8080/c", Some(nameless(of("/c", 8080, false)))),
            ("https://192.0.2.7:8443/c#d", Some(nameless(of("/c", 8443, true)))),
            ("https://192.0.2.7", Some(nameless(of("/", 443, true)))),
            ("//192.0.2.7:81/c", Some(of("/c", 81, false))),
            ("http://192.0.2.8:8080/c", None),
            ("https://shop/", None),
            ("file:///etc/passwd", None),
            ("http://", None),
        ] {
            assert_eq!(redirected(&call, location), expected, "{location}");
        }
    }

    #[tokio::test]
    async fn redirects_end_and_never_lead_to_another_host() {
        let away = "HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n";
        let reply = got(&served(away, ("", 0)).await).await.unwrap();
        assert_eq!(reply.status, 302);
        let again = "HTTP/1.1 302 Found\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n";
        let error = got(&served(again, ("", 0)).await).await.unwrap_err().to_string();
        assert!(error.contains("stopped after 10 redirects"), "{error}");
    }
}
