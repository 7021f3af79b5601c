//! Hooks that ask over HTTP, of a server that is really there, and so on a clock that runs.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use super::{Node, SECOND, pod};

/// Answers whatever it is asked, and refuses.
async fn refuses() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    port
}

fn hooked(name: &str, uid: &str, (scheme, port): (&str, u16)) -> Value {
    let mut pod = pod(name, uid, "Always");
    let get = json!({"httpGet": {"host": "127.0.0.1", "port": port, "scheme": scheme}});
    pod["spec"]["containers"][0]["lifecycle"] = json!({"postStart": get});
    pod
}

/// Waits until the hook's outcome is known, and returns what was told of it.
async fn told(node: &mut Node, pod: &str) -> Vec<String> {
    let patience = Instant::now() + SECOND * 30;
    let is_told = |message: &String| message.contains("Hook") || message.contains("HTTP");
    let mut messages = Vec::new();
    while Instant::now() < patience {
        messages.extend(node.messages().into_iter().filter(is_told));
        let status = node.shelf.find("ns", pod).and_then(|pod| pod.status.clone());
        let status = serde_json::to_value(status).unwrap();
        let container = &status["containerStatuses"][0];
        if container["ready"] == true || !messages.is_empty() {
            return messages;
        }
        sleep(SECOND / 100).await;
    }
    panic!("nothing came of the hook: {messages:?}");
}

#[tokio::test]
async fn any_answer_to_a_hook_will_do_and_none_will_not() {
    let mut node = Node::new();
    let port = refuses().await;
    node.apply(hooked("refused", "u1", ("HTTP", port))).await;
    assert_eq!(told(&mut node, "refused").await, Vec::<String>::new());
    // Nobody listens at the first port.
    node.apply(hooked("alone", "u2", ("HTTP", 1))).await;
    let messages = told(&mut node, "alone").await;
    assert!(messages[0].contains("PostStartHook"), "{messages:?}");
}

#[tokio::test]
async fn a_hook_that_is_answered_without_tls_asks_without_it() {
    let mut node = Node::new();
    let port = refuses().await;
    node.apply(hooked("p", "u1", ("HTTPS", port))).await;
    let message = format!(
        "request to HTTPS lifecycle hook 127.0.0.1:{port} got HTTP response, retry with HTTP succeeded"
    );
    let messages = told(&mut node, "p").await;
    assert_eq!(messages, [message]);
}
