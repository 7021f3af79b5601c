//! The paths and queries of the streaming API, and which protocol a client asks for. Pure.

use axum::http::{HeaderMap, StatusCode, header};
use berth_runtime::interface::Streams;

use super::remote::{Coding, StatusForm};

/// The longest command, all arguments together.
const MAX_COMMAND_BYTES: usize = 128 << 10;

/// A refusal with its status.
pub(crate) type Refusal = (StatusCode, String);

/// What a session carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) command: Vec<String>,
    pub(crate) streams: Streams,
    pub(crate) tty: bool,
}

fn refuse<T>(message: &str) -> Result<T, Refusal> {
    Err((StatusCode::BAD_REQUEST, format!("{message}\n")))
}

/// `a=b&c=d` with percent-escapes and `+` for space.
pub(in crate::server) fn pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(name), decode(value))
    })
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, escaped) {
            (b'%', Some(escaped)) => {
                plain.push(escaped);
                at += 2;
            }
            (b'+', _) => plain.push(b' '),
            _ => plain.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&plain).into_owned()
}

impl Options {
    /// Reads `command`, `input`, `output`, `error` and `tty`.
    ///
    /// # Errors
    /// Where no stream is asked for, or the command is absurd.
    pub(crate) fn parse(query: &str) -> Result<Self, Refusal> {
        let mut options = Self { command: Vec::new(), streams: Streams::default(), tty: false };
        for (name, value) in pairs(query) {
            let set = matches!(value.as_str(), "1" | "true");
            match name.as_str() {
                "command" => options.command.push(value),
                "input" | "stdin" => options.streams.stdin = set,
                "output" | "stdout" => options.streams.stdout = set,
                "error" | "stderr" => options.streams.stderr = set,
                "tty" => options.tty = set,
                _ => {}
            }
        }
        if options.command.iter().map(String::len).sum::<usize>() > MAX_COMMAND_BYTES {
            return refuse("the command is too long");
        }
        if options.command.iter().any(|word| word.contains('\0')) {
            return refuse("the command has a NUL in it");
        }
        // A terminal has one output.
        options.streams.stderr &= !options.tty;
        match options.streams {
            Streams { stdin: false, stdout: false, stderr: false } => {
                refuse("you must specify at least 1 of stdin, stdout, stderr")
            }
            _ => Ok(options),
        }
    }
}

/// The ports of a port-forward by WebSocket channels.
pub(crate) fn ports(query: &str) -> Result<Vec<u16>, Refusal> {
    let mut ports = Vec::new();
    let named = pairs(query).filter(|(name, _)| matches!(name.as_str(), "port" | "ports"));
    for (_, value) in named {
        for one in value.split(',') {
            match one.parse::<u16>() {
                Ok(port @ 1..) => ports.push(port),
                _ => return refuse(&format!("invalid port {one:?}")),
            }
        }
    }
    match ports.len() {
        0 => refuse("query parameter \"ports\" is required"),
        1..=100 => Ok(ports),
        _ => refuse("too many ports"),
    }
}

/// The command of `/run`.
pub(crate) fn run_command(query: &str) -> Result<Vec<String>, Refusal> {
    let cmd = pairs(query).find(|(name, _)| name == "cmd").map(|(_, value)| value);
    let words: Vec<_> = cmd.unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    match words.is_empty() || words.iter().any(|word| word.contains('\0')) {
        true => refuse("query parameter \"cmd\" is required"),
        false => Ok(words),
    }
}

/// What a connection becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// WebSocket (RFC 6455).
    WebSocket,
    /// SPDY/3.1.
    Spdy,
}

/// What the client asks the connection to become.
///
/// # Errors
/// Where it asks for nothing that is spoken here.
pub(crate) fn upgrade(headers: &HeaderMap) -> Result<Upgrade, Refusal> {
    let connection = tokens(headers, header::CONNECTION.as_str());
    if !connection.iter().any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return refuse("unable to upgrade: missing upgrade headers in request");
    }
    let wanted = tokens(headers, header::UPGRADE.as_str());
    match wanted.as_slice() {
        [one] if one.eq_ignore_ascii_case("websocket") => Ok(Upgrade::WebSocket),
        [one] if one.eq_ignore_ascii_case("SPDY/3.1") => Ok(Upgrade::Spdy),
        _ => refuse(&format!("unable to upgrade to {wanted:?}: expected websocket or SPDY/3.1")),
    }
}

/// The comma-separated values of all headers of a name.
fn tokens<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|t| !t.is_empty()).collect()
}

/// A protocol of session channels in a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Channels {
    /// Its name; empty where the client named none.
    pub(crate) name: &'static str,
    pub(crate) coding: Coding,
    pub(crate) form: StatusForm,
    /// Whether the client can end one channel of several (v5).
    pub(crate) half_close: HalfClose,
}

/// Whether one channel can end before the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HalfClose {
    /// By a message on channel 255 (v5).
    Signalled,
    /// Not at all (before).
    Absent,
}

const fn channels(
    name: &'static str,
    coding: Coding,
    form: StatusForm,
    half_close: HalfClose,
) -> Channels {
    Channels { name, coding, form, half_close }
}

const SESSIONS: [Channels; 5] = {
    use {Coding::*, HalfClose::*, StatusForm::*};
    [
        channels("v5.channel.k8s.io", Binary, Json, Signalled),
        channels("v4.channel.k8s.io", Binary, Json, Absent),
        channels("v4.base64.channel.k8s.io", Base64, Json, Absent),
        channels("channel.k8s.io", Binary, Text, Absent),
        channels("base64.channel.k8s.io", Base64, Text, Absent),
    ]
};

/// A WebSocket's subprotocol for exec and attach.
///
/// # Errors
/// Where the client knows none of ours.
pub(crate) fn session_protocol(headers: &HeaderMap) -> Result<Channels, Refusal> {
    let offered = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str());
    if offered.is_empty() {
        return Ok(channels("", Coding::Binary, StatusForm::Text, HalfClose::Absent));
    }
    let known = offered.iter().find_map(|name| SESSIONS.iter().find(|p| p.name == *name));
    known.copied().ok_or_else(|| unknown_protocol(&offered))
}

/// A WebSocket's subprotocol for port-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForwardProtocol {
    /// SPDY frames in binary messages.
    Tunnel,
    /// Two channels a port.
    Channels { name: &'static str, coding: Coding },
}

/// The protocol's name by which SPDY is tunnelled.
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Chooses a subprotocol for port-forward.
///
/// # Errors
/// Where the client knows none of ours.
pub(crate) fn forward_protocol(headers: &HeaderMap) -> Result<ForwardProtocol, Refusal> {
    let offered = tokens(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str());
    let channels = |name, coding| ForwardProtocol::Channels { name, coding };
    if offered.is_empty() {
        return Ok(channels("", Coding::Binary));
    }
    let known = |name: &&str| match *name {
        TUNNEL => Some(ForwardProtocol::Tunnel),
        "v4.channel.k8s.io" => Some(channels("v4.channel.k8s.io", Coding::Binary)),
        "v4.base64.channel.k8s.io" => Some(channels("v4.base64.channel.k8s.io", Coding::Base64)),
        _ => None,
    };
    offered.iter().find_map(known).ok_or_else(|| unknown_protocol(&offered))
}

/// The header that names protocols over SPDY.
pub(crate) const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// A protocol over SPDY for exec and attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpdyProtocol {
    pub(crate) name: &'static str,
    pub(crate) form: StatusForm,
    pub(crate) resizing: Resizing,
}

/// Whether a terminal's size can change (v3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resizing {
    /// By a stream of sizes.
    Streamed,
    /// Not at all.
    Absent,
}

/// Chooses a protocol over SPDY.
///
/// # Errors
/// 403 where the client knows none of ours, as upstream says it.
pub(crate) fn spdy_protocol(headers: &HeaderMap) -> Result<SpdyProtocol, Refusal> {
    use {Resizing::*, StatusForm::*};
    let protocol = |name, form, resizing| SpdyProtocol { name, form, resizing };
    let known = |name: &&str| match *name {
        "v5.channel.k8s.io" => Some(protocol("v5.channel.k8s.io", Json, Streamed)),
        "v4.channel.k8s.io" => Some(protocol("v4.channel.k8s.io", Json, Streamed)),
        "v3.channel.k8s.io" => Some(protocol("v3.channel.k8s.io", Text, Streamed)),
        "v2.channel.k8s.io" => Some(protocol("v2.channel.k8s.io", Text, Absent)),
        "channel.k8s.io" => Some(protocol("channel.k8s.io", Text, Absent)),
        _ => None,
    };
    let offered = tokens(headers, STREAM_PROTOCOL);
    if offered.is_empty() {
        return Ok(protocol("", Text, Absent));
    }
    offered.iter().find_map(known).ok_or_else(|| {
        let (_, message) = unknown_protocol(&offered);
        (StatusCode::FORBIDDEN, message)
    })
}

/// Whether the client speaks port-forward over SPDY.
///
/// # Errors
/// 403 where it speaks something else.
pub(crate) fn spdy_forward(headers: &HeaderMap) -> Result<&'static str, Refusal> {
    let offered = tokens(headers, STREAM_PROTOCOL);
    match offered.is_empty() || offered.contains(&"portforward.k8s.io") {
        true => Ok("portforward.k8s.io"),
        false => {
            let (_, message) = unknown_protocol(&offered);
            Err((StatusCode::FORBIDDEN, message))
        }
    }
}

fn unknown_protocol(offered: &[&str]) -> Refusal {
    (StatusCode::BAD_REQUEST, format!("none of these protocols is spoken here: {offered:?}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn options_are_read_from_the_query() {
        let options = Options::parse("command=sh&command=-c&command=a%20%2b+b&output=1&error=1");
        let options = options.unwrap();
        assert_eq!(options.command, ["sh", "-c", "a + b"]);
        assert_eq!(options.streams, Streams { stdin: false, stdout: true, stderr: true });
        let tty = Options::parse("input=true&output=true&error=true&tty=true").unwrap();
        assert!(tty.tty && !tty.streams.stderr, "a terminal has one output");
        assert!(Options::parse("command=x").is_err());
        assert!(Options::parse("command=%00&output=1").is_err());
        assert!(Options::parse(&format!("output=1&command={}", "x".repeat(200_000))).is_err());
    }

    #[test]
    fn ports_are_numbers_of_ports() {
        assert_eq!(ports("ports=80,81&port=82"), Ok(vec![80, 81, 82]));
        for bad in ["", "ports=0", "ports=65536", "ports=x", "ports=80,"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_upgrade_is_named_by_two_headers() {
        let both = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")]);
        assert_eq!(upgrade(&both), Ok(Upgrade::WebSocket));
        let spdy = headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]);
        assert_eq!(upgrade(&spdy), Ok(Upgrade::Spdy));
        assert!(upgrade(&headers(&[("upgrade", "websocket")])).is_err());
        assert!(upgrade(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])).is_err());
        let two = headers(&[("connection", "upgrade"), ("upgrade", "websocket, SPDY/3.1")]);
        assert!(upgrade(&two).is_err());
    }

    #[test]
    fn the_first_protocol_that_both_know_is_spoken() {
        let name = "sec-websocket-protocol";
        let both = headers(&[(name, "v9.x, v4.channel.k8s.io"), (name, "v5.channel.k8s.io")]);
        assert_eq!(session_protocol(&both).unwrap().name, "v4.channel.k8s.io");
        assert_eq!(session_protocol(&HeaderMap::new()).unwrap().form, StatusForm::Text);
        assert!(session_protocol(&headers(&[(name, "mqtt")])).is_err());
        let tunnel = headers(&[(name, TUNNEL)]);
        assert_eq!(forward_protocol(&tunnel), Ok(ForwardProtocol::Tunnel));
        let spdy = headers(&[(STREAM_PROTOCOL, "v3.channel.k8s.io")]);
        assert_eq!(spdy_protocol(&spdy).unwrap().resizing, Resizing::Streamed);
        let other = headers(&[(STREAM_PROTOCOL, "v9")]);
        assert_eq!(spdy_protocol(&other).unwrap_err().0, StatusCode::FORBIDDEN);
    }
}
