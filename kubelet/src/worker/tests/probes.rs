//! Probes on the fake node, each for a regular container and for a sidecar: the names of upstream's
//! suites `Probing container` and `Probing restartable init container`, as far as a command can say
//! them. What HTTP, TCP and gRPC probes do on a network is told by the modules that make the calls.

use serde_json::{Value, json};

use super::scene::{Scene, container, plain, sidecar};
use crate::probe::Kind;

/// A probe by the command `name`, with these other numbers.
fn probe(name: &str, more: Value) -> Value {
    let mut probe = json!({"exec": {"command": [name]}, "periodSeconds": 1, "failureThreshold": 1});
    for (field, value) in more.as_object().into_iter().flatten() {
        probe[field] = value.clone();
    }
    probe
}

/// A pod whose container `x` has these fields: once a regular one, once a sidecar.
fn both(fields: &Value) -> [Scene; 2] {
    let regular = Scene::new("Always", vec![], vec![container("x", fields.clone())]);
    let beside = Scene::new("Always", vec![sidecar("x", fields.clone())], plain(&["c"]));
    [regular, beside]
}

fn is_ready(scene: &Scene) -> bool {
    let conditions =
        ["Ready", "ContainersReady"].map(|name| scene.condition(name)["status"] == "True");
    assert_eq!(conditions[0], conditions[1]);
    assert!(!conditions[0] || scene.of("x")["ready"] == true, "ready without its container");
    scene.of("x")["ready"] == true
}

/// "with readiness probe should not be ready before initial delay and never restart"
#[tokio::test(start_paused = true)]
async fn readiness_waits_for_its_delay_and_restarts_nothing() {
    for scene in both(&json!({"readinessProbe": probe("ok", json!({"initialDelaySeconds": 30}))})) {
        let scene = scene.start().await;
        scene.pass(28.0).await;
        assert_eq!((is_ready(&scene), scene.times("exec x ok")), (false, 0));
        scene.pass(2.0).await;
        assert_eq!((is_ready(&scene), scene.restarts("x")), (true, 0));
    }
}

/// "with readiness probe that fails should never be ready and never restart"
/// "should not be ready with an exec readiness probe timeout"
#[tokio::test(start_paused = true)]
async fn what_fails_or_takes_too_long_is_not_ready() {
    for (code, takes) in [(1, 0.0), (0, 10.0)] {
        for scene in both(&json!({"readinessProbe": probe("no", json!({"timeoutSeconds": 1}))})) {
            scene.command("no", code, takes);
            let mut scene = scene.start().await;
            scene.pass(60.0).await;
            assert_eq!((is_ready(&scene), scene.restarts("x")), (false, 0));
            assert!(
                scene.node.messages().iter().any(|m| m.starts_with("Readiness probe failed: "))
            );
        }
    }
}

/// "should be restarted with a exec \"cat /tmp/health\" liveness probe" / "should *not* be restarted …"
/// "should be restarted with an exec liveness probe with timeout"
/// "should be restarted with a failing exec liveness probe that took longer than the timeout"
#[tokio::test(start_paused = true)]
async fn liveness_restarts_what_fails_and_leaves_the_rest_alone() {
    for (code, takes, restarts) in [(0, 0.0, 0), (1, 0.0, 1), (0, 10.0, 1), (1, 10.0, 1)] {
        let numbers = json!({"timeoutSeconds": 1, "initialDelaySeconds": 15});
        for scene in both(&json!({"livenessProbe": probe("live", numbers)})) {
            scene.command("live", code, takes);
            let scene = scene.start().await;
            scene.pass(20.0).await;
            assert_eq!(scene.restarts("x"), restarts, "{code} {takes}");
        }
    }
}

/// "should have monotonically increasing restart count"
#[tokio::test(start_paused = true)]
async fn restart_counts_rise_one_by_one() {
    for scene in both(&json!({"livenessProbe": probe("live", json!({"initialDelaySeconds": 5}))})) {
        scene.command("live", 1, 0.0);
        let scene = scene.start().await;
        let mut last = 0;
        while last < 5 {
            let now = scene.restarts("x");
            assert!(now == last || now == last + 1);
            last = now;
            scene.pass(0.5).await;
        }
    }
}

/// "should be restarted startup probe fails"
/// "should *not* be restarted by liveness probe because startup probe delays it"
/// "should be restarted by liveness probe after startup probe enables it"
/// "should be ready immediately after startupProbe succeeds"
#[tokio::test(start_paused = true)]
async fn the_startup_probe_goes_before_the_others() {
    let fields = json!({
        "startupProbe": probe("up", json!({"failureThreshold": 60})),
        "livenessProbe": probe("live", json!({})),
        "readinessProbe": probe("ok", json!({"periodSeconds": 600})),
    });
    for scene in both(&fields) {
        scene.command("up", 1, 0.0);
        scene.command("live", 1, 0.0);
        let scene = scene.start().await;
        scene.pass(30.0).await;
        assert_eq!((scene.restarts("x"), is_ready(&scene)), (0, false));
        assert_eq!((scene.times("exec x live"), scene.times("exec x ok")), (0, 0));
        scene.command("live", 0, 0.0);
        scene.command("up", 0, 0.0);
        scene.pass(1.5).await;
        assert_eq!(scene.of("x")["started"], true);
        assert!(is_ready(&scene), "at once, whatever its period");
        scene.command("live", 1, 0.0);
        scene.pass(3.0).await;
        assert_eq!(scene.restarts("x"), 1);
    }
    let fields = json!({"startupProbe": probe("up", json!({"failureThreshold": 3}))});
    for scene in both(&fields) {
        scene.command("up", 1, 0.0);
        let scene = scene.start().await;
        assert_eq!(scene.restarts("x"), 0);
        scene.pass(2.5).await;
        assert_eq!(scene.restarts("x"), 1);
    }
}

/// Thresholds of both kinds, and the first probe at once.
#[tokio::test(start_paused = true)]
async fn thresholds_count_and_a_restarted_agent_does_not_begin_again() {
    let numbers = json!({"failureThreshold": 3, "successThreshold": 2, "periodSeconds": 10});
    for scene in both(&json!({"readinessProbe": probe("ok", numbers)})) {
        let mut scene = scene.start().await;
        scene.pass(10.0).await;
        assert!(is_ready(&scene));
        scene.node.kill_agent().await;
        scene.node.start_agent();
        scene.command("ok", 1, 0.0);
        scene.pass(15.0).await;
        assert!(is_ready(&scene), "two failures are not three");
        scene.pass(10.0).await;
        assert!(!is_ready(&scene));
        let written = scene.node.api.statuses("p");
        let flaps = written.windows(2).filter(|w| ready_of(&w[0]) && !ready_of(&w[1])).count();
        assert_eq!(flaps, 1);
    }
}

fn ready_of(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

#[tokio::test(start_paused = true)]
async fn commands_of_probes_know_the_variables_with_fixed_values() {
    let fields = json!({
        "env": [{"name": "PORT", "value": "80"}],
        "readinessProbe": probe("check $(PORT) $(OTHER)", json!({})),
    });
    let [scene, _] = both(&fields);
    let scene = scene.start().await;
    assert!(scene.times("exec x check 80 $(OTHER)") >= 1, "{:?}", scene.history());
}

/// What `/metrics/probes` tells: of each container's probe, across its restarts.
#[tokio::test(start_paused = true)]
async fn probes_are_counted_by_what_came_of_them() {
    let fields = json!({
        "readinessProbe": probe("ok", json!({})),
        "livenessProbe": probe("live", json!({"initialDelaySeconds": 5})),
    });
    for scene in both(&fields) {
        scene.command("live", 1, 0.0);
        let scene = scene.start().await;
        scene.pass(30.0).await;
        let rows = scene.node.probes.rows();
        let of = |kind| rows.iter().find(|row| row.kind == kind).unwrap();
        let (ready, live) = (of(Kind::Readiness), of(Kind::Liveness));
        assert_eq!((rows.len(), live.container.as_str()), (2, "x"));
        assert_eq!(ready.tally.successful as usize, scene.times("exec x ok"));
        assert_eq!(live.tally.failed as usize, scene.times("exec x live"));
        assert!(live.tally.failed > 1 && scene.restarts("x") > 0, "counted on after a restart");
    }
}

/// A probe that cannot be run says nothing about its container, and is told.
#[tokio::test(start_paused = true)]
async fn probes_that_cannot_be_run_neither_restart_nor_unready_a_container() {
    let nowhere =
        json!({"httpGet": {"port": "nowhere"}, "periodSeconds": 1, "failureThreshold": 1});
    for kind in ["livenessProbe", "startupProbe", "readinessProbe"] {
        for scene in both(&json!({kind: nowhere})) {
            let mut scene = scene.start().await;
            scene.pass(60.0).await;
            assert_eq!((is_ready(&scene), scene.restarts("x")), (kind == "livenessProbe", 0));
            let title =
                format!("{}{} probe errored", kind[..1].to_uppercase(), &kind[1..kind.len() - 5]);
            let messages = scene.node.messages();
            assert!(messages.iter().any(|said| said.starts_with(&title)), "{title}: {messages:?}");
            assert_eq!(scene.node.probes.rows(), [], "none was run");
        }
    }
}
