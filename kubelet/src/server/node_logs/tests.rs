//! What is served of a log directory and a journal, and what is not.

use std::os::unix::fs::symlink;
use std::path::Path;

use axum::http::Request;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{CWD, FileType, Mode};

use super::query::Services;
use super::*;
use crate::server::tests::running_state;
use files::Range;

/// A stand-in for journalctl: knows one unit, and prints how it was called.
const JOURNALCTL: &str = r#"
case "$1" in
--field) echo other.service; echo web.service ;;
*) for word; do echo "<$word>"; done; echo "${SECRET-unset}"; echo complaint >&2 ;;
esac
"#;

struct Place {
    root: tempfile::TempDir,
    state: State,
}

impl Place {
    async fn new(offer: SystemLogs) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (logs, script) = (root.path().join("log"), root.path().join("journalctl"));
        std::fs::create_dir_all(logs.join("pods/a")).unwrap();
        std::fs::write(&script, JOURNALCTL).unwrap();
        std::fs::write(root.path().join("secret"), "secret").unwrap();
        let mut state = running_state(root.path()).await;
        let command = ["sh", script.to_str().unwrap()].map(str::to_owned).into();
        state.system_logs = Logs::new(offer, logs, command);
        Self { root, state }
    }

    fn logs(&self) -> &Path {
        &self.state.system_logs.directory
    }

    fn write(&self, name: &str, text: &[u8]) {
        std::fs::write(self.logs().join(name), text).unwrap();
    }

    async fn ask(&self, request: Request<Body>) -> (u16, HeaderMap, String) {
        use tower_service::Service as _;
        let mut router = super::super::routes(self.state.clone());
        let response = router.call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (head.status.as_u16(), head.headers, String::from_utf8_lossy(&body).into_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let (status, _, text) = self.ask(request).await;
        (status, text)
    }
}

#[tokio::test]
async fn files_are_read_and_directories_listed() {
    let place = Place::new(SystemLogs::Files).await;
    place.write("syslog", b"one\ntwo\n");
    place.write("a&b <c> \"d\"", b"odd");
    place.write("pods/a/0.log", b"x");
    assert_eq!(place.get("/logs/syslog").await, (200, "one\ntwo\n".to_owned()));
    assert_eq!(place.get("/logs//pods/a/0.log").await, (200, "x".to_owned()));
    assert_eq!(place.get("/logs/a%26b%20%3Cc%3E%20%22d%22").await.1, "odd");
    let listed = "<!doctype html>\n<pre>\n\
        <a href=\"a%26b%20%3Cc%3E%20%22d%22\">a&amp;b &lt;c&gt; &#34;d&#34;</a>\n\
        <a href=\"pods/\">pods/</a>\n<a href=\"syslog\">syslog</a>\n</pre>\n";
    assert_eq!(place.get("/logs/").await, (200, listed.to_owned()));
    for (path, link) in [("/logs", "\"logs/syslog\""), ("/logs/pods", "\"pods/a/\"")] {
        let (status, text) = place.get(path).await;
        assert!(status == 200 && text.contains(link), "{path}: {text}");
    }
}

#[tokio::test]
async fn ranges_heads_and_kinds_are_as_a_file_server_has_them() {
    let place = Place::new(SystemLogs::Files).await;
    place.write("syslog", b"0123456789");
    place.write("wtmp", b"\0\xff");
    place.write("empty", b"");
    let ask = |name: &str, range: &str| {
        let request = Request::get(format!("/logs/{name}")).header("range", range);
        place.ask(request.body(Body::empty()).unwrap())
    };
    let (status, headers, text) = ask("syslog", "bytes=2-4").await;
    assert_eq!((status, text.as_str()), (206, "234"));
    assert_eq!(headers["content-range"], "bytes 2-4/10");
    assert!(headers["last-modified"].to_str().unwrap().ends_with(" GMT"));
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    let (status, headers, _) = ask("syslog", "bytes=10-").await;
    assert_eq!((status, &headers["content-range"]), (416, &"bytes */10".parse().unwrap()));
    let (status, headers, text) = ask("wtmp", "").await;
    assert_eq!((status, text.len()), (200, 4), "{text}");
    assert_eq!(headers["content-type"], "application/octet-stream");
    let (status, headers, _) = ask("empty", "").await;
    assert_eq!((status, &headers["content-length"]), (200, &"0".parse().unwrap()));
    let request = Request::head("/logs/syslog").body(Body::empty()).unwrap();
    let (status, headers, text) = place.ask(request).await;
    assert_eq!((status, text.as_str()), (200, ""));
    assert_eq!(headers["content-length"], "10");
}

#[test]
fn a_range_is_a_part_or_beyond_the_end_or_the_whole() {
    let part = |from, length| Range::Part { from, length };
    for (text, range) in [
        ("bytes=0-0", part(0, 1)),
        ("bytes=5-", part(5, 5)),
        ("bytes=5-99", part(5, 5)),
        ("bytes=-3", part(7, 3)),
        ("bytes=-99", part(0, 10)),
        ("bytes=5-18446744073709551615", part(5, 5)),
        ("bytes=10-", Range::Outside),
        ("bytes=-0", Range::Outside),
        ("bytes=4-3", Range::All),
        ("bytes=0-1,3-4", Range::All),
        ("bytes=+1-2", Range::All),
        ("bytes=-", Range::All),
        ("lines=1-2", Range::All),
    ] {
        assert_eq!(Range::parse(text, 10), range, "{text}");
    }
}

#[tokio::test]
async fn nothing_leads_out_and_nothing_but_files_is_opened() {
    let place = Place::new(SystemLogs::Query).await;
    place.write("syslog", b"inside");
    let secret = place.root.path().join("secret");
    let at = |name: &str| place.logs().join(name);
    symlink(&secret, at("pods/link")).unwrap();
    symlink("../../secret", at("pods/climbing")).unwrap();
    symlink("../syslog", at("pods/inside")).unwrap();
    symlink(place.root.path(), at("out")).unwrap();
    symlink("/proc/self/root", at("magic")).unwrap();
    let pipe = at("pipe");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let opened = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&opened, &pipe, WatchFlags::OPEN).unwrap();
    let absolute = format!("/{}", secret.display());
    for path in [
        "pods/link",
        "pods/climbing",
        "pods/inside",
        "out/secret",
        "out",
        "magic/etc/passwd",
        "magic/",
        "pipe",
        "../secret",
        "pods/../../secret",
        "%2e%2e/secret",
        "..%2fsecret",
        "pods/%2e%2e/%2e%2e/secret",
        "syslog/",
        "syslog/x",
        absolute.as_str(),
    ] {
        let (status, text) = place.get(&format!("/logs/{path}")).await;
        assert_eq!((status, text.as_str()), (404, "404 page not found\n"), "{path}");
        let path = path.replace("%2e", ".").replace("%2f", "/");
        let (status, text) = place.get(&format!("/logs/?query=/{path}")).await;
        assert!(status == 400 && text.ends_with(": no such file\n"), "query {path}: {text}");
    }
    for path in ["%00", "%ff", "%zz", "%4"] {
        assert_eq!(place.get(&format!("/logs/{path}")).await.0, 400, "{path}");
    }
    let long = "x".repeat(300);
    assert_eq!(place.get(&format!("/logs/{long}")).await.0, 404);
    assert_eq!(place.get("/logs/pods/../syslog").await, (200, "inside".to_owned()));
    let listed = place.get("/logs/pods/").await.1;
    assert!(listed.contains("a/") && !listed.contains("link"), "{listed}");
    let event = rustix::io::read(&opened, &mut [0; 64]);
    assert_eq!(event.unwrap_err(), rustix::io::Errno::AGAIN, "the pipe was opened");
}

#[tokio::test]
async fn a_service_is_read_from_the_journal_with_exact_arguments() {
    let place = Place::new(SystemLogs::Query).await;
    place.write("plain.log", b"of a file\n");
    let query = "/logs/?query=web&tailLines=5&boot=-1&pattern=--file%3D/etc/shadow%20;id\
                 &sinceTime=2024-01-02T03:04:05%2B01:00&untilTime=2025-01-01T00:00:00Z";
    let expected = "<--utc>\n<--no-pager>\n<--output=short-precise>\n\
        <--since=2024-01-02 02:04:05 UTC>\n<--until=2025-01-01 00:00:00 UTC>\n<--lines=5>\n\
        <--unit=web>\n<--grep=--file=/etc/shadow ;id>\n<--boot=-1>\nunset\ncomplaint\n";
    assert_eq!(place.get(query).await, (200, expected.to_owned()));
    let (status, text) = place.get("/logs/?query=-D&query=web.service").await;
    assert!(status == 200 && text.contains("<--unit=web.service>"), "{text}");
    assert!(text.ends_with("\nlog not found for -D\n"), "{text}");
    assert_eq!(place.get("/logs?query=plain").await, (200, "of a file\n".to_owned()));
    let (status, text) = place.get("/logs?query=plain&tailLines=1").await;
    assert!(status == 200 && text.contains("query resolved to log files for [plain]"), "{text}");
}

#[tokio::test]
async fn without_a_journal_files_are_looked_for() {
    let mut place = Place::new(SystemLogs::Query).await;
    place.write("web", b"of a file\n");
    let logs = place.logs().to_owned();
    place.state.system_logs =
        Logs::new(SystemLogs::Query, logs, vec!["/nonexistent/journalctl".to_owned()]);
    assert_eq!(place.get("/logs?query=web").await, (200, "of a file\n".to_owned()));
}

#[tokio::test]
async fn no_more_journals_are_read_at_once_than_there_are_turns() {
    let place = Place::new(SystemLogs::Query).await;
    let services = Services { names: vec!["web".to_owned()], ..Services::default() };
    let journal = &place.state.system_logs.journal;
    let read = || journal.read(place.logs(), services.clone());
    let mut open = Vec::new();
    for _ in 0..READERS {
        open.push(read().await.unwrap());
    }
    assert_eq!(read().await.unwrap_err().0, StatusCode::TOO_MANY_REQUESTS);
    open.pop();
    assert!(read().await.is_ok(), "a turn is given back by whoever goes away");
}

#[tokio::test]
async fn what_is_wrong_with_a_query_is_told() {
    let place = Place::new(SystemLogs::Query).await;
    let long = format!("query={}", "x".repeat(257));
    let pattern = format!("query=a&pattern={}", "x".repeat(1025));
    for query in [
        "query=",
        "query=%20",
        "tailLines=1",
        "query=a%20b",
        "query=a;id",
        "query=a%00",
        "query=a*",
        "query=%24(id)",
        "query=a&query=b&query=c&query=d&query=e",
        "query=/a&query=b",
        "query=/a&query=/b",
        "query=/syslog&tailLines=1",
        "query=/a%00",
        "query=a&tailLines=-1",
        "query=a&tailLines=100001",
        "query=a&boot=1",
        "query=a&boot=x",
        "query=a&sinceTime=yesterday",
        "query=a&sinceTime=2025-01-01T00:00:00Z&untilTime=2024-01-01T00:00:00Z",
        "query=a&pattern=%00",
        long.as_str(),
        pattern.as_str(),
        // An option of journalctl that is a path is a file's name here, and there is none.
        "query=-D/x;id",
    ] {
        let (status, text) = place.get(&format!("/logs/?{query}")).await;
        assert!(status == 400 && text.contains(": "), "{query}: {status} {text}");
    }
}

#[tokio::test]
async fn nothing_is_served_that_the_configuration_switches_off() {
    let place = Place::new(SystemLogs::Off).await;
    for path in ["/logs", "/logs/", "/logs/syslog", "/logs/?query=web"] {
        let off = (405, "logs endpoint is disabled.\n".to_owned());
        assert_eq!(place.get(path).await, off, "{path}");
        let request = Request::post(path).body(Body::empty()).unwrap();
        assert_eq!(place.ask(request).await.0, 405);
    }
    let place = Place::new(SystemLogs::Files).await;
    let (status, text) = place.get("/logs/?query=web").await;
    assert!(status == 400 && text.contains("enableSystemLogQuery"), "{text}");
    let request = Request::post("/logs/").body(Body::empty()).unwrap();
    assert_eq!(place.ask(request).await.0, 405);
}
