//! How pods end: sidecars in reverse order, hooks, grace. The tables carry the names of upstream's
//! node conformance suite (`A pod with restartable init containers is terminating` and others).

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::scene::{Scene, container, plain, sidecar};
use super::{Node, SECOND, deleted, pod};

fn pre_stop(command: &str) -> Value {
    json!({"lifecycle": {"preStop": {"exec": {"command": [command]}}}})
}

/// Deletes the pod and tells how long it took until nothing ran.
async fn delete(scene: &mut Scene, grace: i64) -> f64 {
    let begun = Instant::now();
    scene.delete(grace).await;
    while !scene.running().is_empty() {
        scene.pass(0.05).await;
    }
    let took = begun.elapsed().as_secs_f64();
    scene.pass(2.0).await;
    assert!(scene.is_gone());
    took
}

fn linger(scene: &Scene, name: &str, seconds: u64) {
    scene.node.runtime.state().lingers.insert(name.into(), Duration::from_secs(seconds));
}

/// "should terminate sidecars in reverse order after all main containers have exited", and with an
/// image that is updated meanwhile.
#[tokio::test(start_paused = true)]
async fn sidecars_end_in_reverse_order_after_the_containers_they_serve() {
    for policy in ["Always", "OnFailure", "Never"] {
        let inits = plain(&["s1", "s2", "s3"]);
        let mut scene = Scene::new(policy, inits, plain(&["a", "b"])).start().await;
        for name in ["a", "s3"] {
            linger(&scene, name, 3);
        }
        scene.delete(30).await;
        scene.set_image("initContainers", 0, "img:2").await;
        assert!(scene.running().contains(&"s1".to_owned()));
        scene.pass(10.0).await;
        scene.assert_order(&["exit b 143", "exit a 143", "signal s3", "exit s3 143", "signal s2"]);
        scene.assert_order(&["exit s2 143", "signal s1", "exit s1 143"]);
        assert_eq!((scene.is_gone(), scene.times("start s1")), (true, 1), "{policy}");
    }
}

/// "should call sidecar container PreStop hook simultaneously"
#[tokio::test(start_paused = true)]
async fn the_hooks_of_all_containers_run_at_once() {
    let inits = vec![sidecar("s1", pre_stop("one")), sidecar("s2", pre_stop("two"))];
    let mut scene =
        Scene::new("Never", inits, vec![container("c", pre_stop("main"))]).start().await;
    for command in ["one", "two", "main"] {
        scene.command(command, 0, 5.0);
    }
    let took = delete(&mut scene, 30).await;
    assert!((5.0..6.0).contains(&took), "{took}");
    scene.assert_order(&["exit c 143", "exit s2 143", "exit s1 143"]);
    let hooks = ["exec s1 one", "exec s2 two", "exec c main"];
    let history = scene.history();
    let first_end = history.iter().position(|h| h.starts_with("signal")).unwrap();
    assert!(hooks.iter().all(|h| history[..first_end].iter().any(|seen| seen == h)), "{history:?}");
}

/// "should terminate sidecars simultaneously if prestop doesn't exit"
#[tokio::test(start_paused = true)]
async fn at_the_deadline_everybody_is_ended_and_gets_two_seconds() {
    let inits = vec![sidecar("s1", pre_stop("hang")), sidecar("s2", pre_stop("hang"))];
    let mut scene =
        Scene::new("Never", inits, vec![container("c", pre_stop("hang"))]).start().await;
    scene.command("hang", 0, 1000.0);
    for name in ["c", "s1", "s2"] {
        scene.node.runtime.state().stubborn.insert(name.into());
    }
    let took = delete(&mut scene, 5).await;
    assert!((7.0..8.0).contains(&took), "{took}");
    let ends = scene.history().iter().filter(|h| h.ends_with(" 137")).count();
    assert_eq!(ends, 3);
    // The same of sidecars once the pod has done what it is for.
    let inits = ["s1", "s2", "s3"].map(|name| sidecar(name, pre_stop("hang")));
    let scene = Scene::new("Never", inits.into(), plain(&["c"])).start().await;
    scene.command("hang", 0, 1000.0);
    for name in ["s1", "s2", "s3"] {
        scene.node.runtime.state().stubborn.insert(name.into());
    }
    scene.exit("c", 0).await;
    scene.pass(1.0).await;
    let begun = scene.history().iter().filter(|h| h.ends_with(" hang")).count();
    assert_eq!(begun, 3);
    scene.pass(30.0).await;
    assert_eq!(scene.running(), ["s1", "s2", "s3"], "thirty seconds and two");
    scene.pass(2.0).await;
    assert_eq!((scene.running().len(), scene.phase().as_str()), (0, "Succeeded"));
    for name in ["s1", "s2", "s3"] {
        let ended = &scene.of(name)["state"]["terminated"];
        assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("Error")));
    }
}

/// "should honor the grace period" of hooks that take longer: they have the last two seconds, too.
#[tokio::test(start_paused = true)]
async fn a_hook_that_outlives_the_grace_goes_on_until_its_container_is_gone() {
    for (takes, answers) in [(6.0, 2), (8.0, 0)] {
        let inits = vec![sidecar("s", pre_stop("hook"))];
        let mut scene =
            Scene::new("Never", inits, vec![container("c", pre_stop("hook"))]).start().await;
        scene.command("hook", 0, takes);
        for name in ["c", "s"] {
            scene.node.runtime.state().stubborn.insert(name.into());
        }
        let took = delete(&mut scene, 5).await;
        assert!((7.0..8.0).contains(&took), "{took}");
        let seen = ["c", "s"].map(|name| scene.times(&format!("answer {name} hook")));
        assert_eq!(seen.iter().sum::<usize>(), answers, "{takes}: {:?}", scene.history());
        if answers > 0 {
            scene.assert_order(&["signal c", "answer c hook", "exit c 137"]);
        }
    }
}

/// A container whose `postStart` hook failed is stopped with its `preStop` hook by the same rule.
#[tokio::test(start_paused = true)]
async fn a_hook_goes_on_beside_the_signal_after_a_failed_start_too() {
    let mut more = pre_stop("hook");
    more["lifecycle"]["postStart"] = json!({"exec": {"command": ["bad"]}});
    let scene = Scene::new("Never", vec![], vec![container("c", more)]);
    scene.command("bad", 1, 0.0);
    scene.command("hook", 0, 31.5);
    scene.node.runtime.state().stubborn.insert("c".into());
    let scene = scene.start().await;
    scene.pass(35.0).await;
    scene.assert_order(&["signal c", "answer c hook", "exit c 137"]);
}

/// "should not hang in termination if terminated during initialization"
/// "should terminate restartable init containers gracefully if there is a non-started restartable
/// init container"
#[tokio::test(start_paused = true)]
async fn a_pod_deleted_while_it_initializes_ends_gracefully() {
    let never = json!({"startupProbe": {"exec": {"command": ["no"]}, "periodSeconds": 1,
                                        "failureThreshold": 600}});
    for inits in [
        vec![sidecar("s1", json!({})), container("i", json!({})), sidecar("s2", json!({}))],
        vec![sidecar("s1", json!({})), sidecar("s2", never)],
    ] {
        let scene = Scene::new("Always", inits, plain(&["c"]));
        scene.command("no", 1, 0.0);
        let mut scene = scene.start().await;
        let took = delete(&mut scene, 30).await;
        assert!(took < 1.0, "{took}");
        assert_eq!((scene.times("exit s1 143"), scene.times("start c")), (1, 0));
        assert_eq!(scene.node.api.statuses("p").last().unwrap()["phase"], "Failed");
    }
}

/// "should mark pod as succeeded if any of the restartable init containers have …": a non-zero exit
/// code, by a signal, by a hook, past the grace; "should mark pod as failed if regular container has
/// exceeded …".
#[tokio::test(start_paused = true)]
async fn only_the_containers_a_pod_is_for_decide_how_it_ended() {
    for (main, side, is_stubborn, phase) in [
        (0, 1, "none", "Succeeded"),
        (0, 0, "s", "Succeeded"),
        (0, 143, "none", "Succeeded"),
        (1, 0, "none", "Failed"),
    ] {
        let scene = Scene::new("Never", plain(&["s"]), plain(&["c"])).start().await;
        scene.node.runtime.state().stop_codes.insert("s".into(), side);
        scene.node.runtime.state().stubborn.insert(is_stubborn.into());
        scene.exit("c", main).await;
        assert_eq!(scene.phase() == "Running", is_stubborn == "s", "it ends with its sidecars");
        scene.pass(31.0).await;
        assert_eq!(scene.phase(), phase, "{main} {side}");
    }
    // Deleted, the main container too slow.
    for (name, phase) in [("c", "Failed"), ("s", "Succeeded")] {
        let mut scene = Scene::new("Never", plain(&["s"]), plain(&["c"])).start().await;
        scene.node.runtime.state().stop_codes.insert("c".into(), 0);
        scene.node.runtime.state().stubborn.insert(name.into());
        delete(&mut scene, 5).await;
        assert_eq!(scene.node.api.statuses("p").last().unwrap()["phase"], phase, "{name}");
    }
}

/// "… have exceeded its termination grace period seconds by prestop hook", of the regular container and of
/// a sidecar; "… exit with non-zero exit code by prestop hook", which costs nobody anything.
#[tokio::test(start_paused = true)]
async fn a_hook_that_does_not_end_costs_its_container_the_graceful_end() {
    for (hooked, seconds, phase) in
        [("c", 1000.0, "Failed"), ("s", 1000.0, "Succeeded"), ("s", 0.0, "Succeeded")]
    {
        let more = |name: &str| if name == hooked { pre_stop("hook") } else { json!({}) };
        let inits = vec![sidecar("s", more("s")), sidecar("s2", json!({}))];
        let mut scene = Scene::new("Never", inits, vec![container("c", more("c"))]).start().await;
        scene.command("hook", 1, seconds);
        for name in ["c", "s", "s2"] {
            scene.node.runtime.state().stop_codes.insert(name.into(), 0);
        }
        if seconds > 0.0 {
            scene.node.runtime.state().stubborn.insert(hooked.into());
        }
        delete(&mut scene, 5).await;
        let status = scene.node.api.statuses("p").last().unwrap().clone();
        assert_eq!(status["phase"], phase, "{hooked} {seconds}");
        let lists = ["initContainerStatuses", "containerStatuses"];
        for one in lists.iter().flat_map(|list| status[*list].as_array().unwrap()) {
            let is_late = one["name"] == hooked && seconds > 0.0;
            let (code, reason) = if is_late { (137, "Error") } else { (0, "Completed") };
            let ended = &one["state"]["terminated"];
            assert_eq!(
                (&ended["exitCode"], &ended["reason"]),
                (&json!(code), &json!(reason)),
                "{hooked}: {one}"
            );
        }
    }
}

/// "should respect termination grace period seconds", with and without a long-running hook; "should
/// call the container's preStop hook" after failed probes, with upstream's grace periods.
#[tokio::test(start_paused = true)]
async fn grace_is_kept_to_the_second() {
    for (grace, hook, least, most) in [
        (10, None, 10.0, 10.5),
        (10, Some(3.0), 10.0, 10.5),
        (10, Some(100.0), 12.0, 12.5),
        (0, Some(0.0), 0.0, 3.1),
    ] {
        let more = if hook.is_some() { pre_stop("hook") } else { json!({}) };
        let mut scene = Scene::new("Always", vec![], vec![container("c", more)]).start().await;
        scene.command("hook", 0, hook.unwrap_or_default());
        scene.node.runtime.state().stubborn.insert("c".into());
        let took = delete(&mut scene, grace).await;
        assert!((least..most).contains(&took), "{grace} {hook:?}: {took}");
    }
}

/// "should override timeoutGracePeriodSeconds when LivenessProbe/StartupProbe field is set"
#[tokio::test(start_paused = true)]
async fn a_probe_may_have_a_grace_period_of_its_own() {
    for kind in ["livenessProbe", "startupProbe"] {
        for make in [container, sidecar] {
            let probe = json!({kind: {"exec": {"command": ["no"]}, "failureThreshold": 1,
                                      "terminationGracePeriodSeconds": 5}});
            let one = vec![make("x", probe)];
            let is_sidecar = one[0].get("restartPolicy").is_some();
            let (inits, apps) = match is_sidecar {
                true => (one, plain(&["c"])),
                false => (vec![], one),
            };
            let mut scene = Scene::new("Always", inits, apps);
            scene.pod["spec"]["terminationGracePeriodSeconds"] = json!(500);
            scene.command("no", 1, 0.0);
            scene.node.runtime.state().stubborn.insert("x".into());
            let scene = scene.start().await;
            scene.pass(3.0).await;
            assert_eq!(scene.times("exit x 137"), 0);
            scene.pass(2.0).await;
            assert_eq!(scene.times("exit x 137"), 1, "{kind}");
        }
    }
}

/// "should mark readiness on pods to false (and disable liveness probes) while pod is in progress of
/// terminating"
#[tokio::test(start_paused = true)]
async fn readiness_is_probed_to_the_end_and_liveness_is_not() {
    let probe = |command: &str| json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1});
    let mut more = pre_stop("hook");
    more["readinessProbe"] = probe("ready");
    more["livenessProbe"] = probe("live");
    let alone = (vec![], vec![container("c", more.clone())]);
    let beside = (vec![sidecar("c", more)], plain(&["d"]));
    for (inits, apps) in [alone, beside] {
        let mut scene = Scene::new("Always", inits, apps).start().await;
        scene.command("hook", 0, 20.0);
        assert_eq!(scene.condition("Ready")["status"], "True");
        scene.delete(30).await;
        assert_eq!(scene.of("c")["ready"], true, "it serves until it says otherwise");
        scene.command("ready", 1, 0.0);
        scene.command("live", 1, 0.0);
        scene.pass(3.0).await;
        assert_eq!(
            (scene.condition("Ready")["status"].as_str(), &scene.of("c")["ready"]),
            (Some("False"), &json!(false))
        );
        let probes = scene.times("exec c live");
        scene.pass(10.0).await;
        assert_eq!((scene.times("exec c live"), scene.times("signal c")), (probes, 0));
        scene.pass(10.0).await;
        assert!(scene.is_gone());
    }
}

/// Upstream's worker does nothing else while it waits for a hook ("should not continue running liveness
/// probes for restartable init containers and restart them while in preStop"), and means to (KEP-4438).
#[tokio::test(start_paused = true)]
async fn sidecars_are_kept_up_while_the_last_container_ends() {
    let mut more = pre_stop("hook");
    more["livenessProbe"] = json!({"exec": {"command": ["no"]}, "failureThreshold": 1});
    let scene = Scene::new("Never", plain(&["s"]), vec![container("c", more)]);
    scene.command("no", 1, 0.0);
    scene.command("hook", 0, 20.0);
    let scene = scene.start().await;
    assert_eq!(scene.times("exec c hook"), 1);
    scene.exit("s", 1).await;
    assert_eq!((scene.running(), scene.restarts("s")), (vec!["c".into(), "s".into()], 1));
    scene.pass(25.0).await;
    assert_eq!((scene.phase().as_str(), scene.running().len()), ("Failed", 0));
}

#[tokio::test(start_paused = true)]
async fn a_container_may_name_its_stop_signal() {
    let more = json!({"lifecycle": {"stopSignal": "SIGUSR1"}});
    let mut scene = Scene::new("Always", vec![], vec![container("c", more)]).start().await;
    assert_eq!(scene.of("c")["stopSignal"], "SIGUSR1");
    delete(&mut scene, 5).await;
    assert_eq!(scene.times("signal c 10"), 1);
}

#[tokio::test(start_paused = true)]
async fn each_container_is_said_to_be_killed_once() {
    let inits = vec![sidecar("s", pre_stop("hook"))];
    let mut scene = Scene::new("Always", inits, plain(&["c"])).start().await;
    scene.command("hook", 1, 2.0);
    delete(&mut scene, 30).await;
    let mut said = scene.node.messages();
    said.retain(|m| m.starts_with("Stopping") || m.starts_with("PreStop"));
    said.sort();
    assert_eq!(said, ["PreStopHook failed", "Stopping container c", "Stopping container s"]);
}

#[tokio::test(start_paused = true)]
async fn a_post_start_hook_that_fails_ends_its_container() {
    let mut node = Node::new();
    let mut pod = pod("p", "u1", "Always");
    pod["spec"]["containers"][0]["lifecycle"] =
        json!({"postStart": {"exec": {"command": ["hook"]}}});
    node.runtime.state().failures.insert("exec_sync", 1);
    node.apply(pod).await;
    node.pass(SECOND * 3).await;
    let status = super::state(&node.status("p"));
    assert_eq!(status["restartCount"], 1);
    assert!(status["ready"].as_bool().unwrap());
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 143);
    assert!(node.reasons().contains(&"FailedPostStartHook".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_runs_before_the_signal_and_within_the_grace_period() {
    for (seconds, grace, least, most) in [(5, 30, 5, 6), (100, 10, 10, 12), (0, 30, 0, 1)] {
        let node = Node::new();
        let mut pod = pod("p", "u1", "Always");
        pod["spec"]["containers"][0]["lifecycle"] =
            json!({"preStop": {"sleep": {"seconds": seconds}}});
        node.apply(pod.clone()).await;
        node.pass(SECOND).await;
        node.apply(deleted(pod, grace)).await;
        let begun = tokio::time::Instant::now();
        while !node.runtime.running("u1").is_empty() {
            node.pass(Duration::from_millis(100)).await;
        }
        let took = begun.elapsed();
        assert!(took >= SECOND * least && took <= SECOND * most, "{seconds} {grace}: {took:?}");
    }
}

/// "should mark pod as succeeded if any of the restartable init containers have exceeded its
/// termination grace period seconds": the last sidecar's turn comes when the grace is over.
#[tokio::test(start_paused = true)]
async fn a_sidecar_has_two_seconds_though_the_one_before_it_used_up_the_grace() {
    let mut scene = Scene::new("Never", plain(&["s1", "s2"]), plain(&["c"])).start().await;
    let lingers = [("s1", 1_500), ("s2", 20_000)];
    for (name, millis) in lingers {
        let takes = std::time::Duration::from_millis(millis);
        scene.node.runtime.state().lingers.insert(name.into(), takes);
    }
    scene.delete(5).await;
    scene.pass(10.0).await;
    scene.assert_order(&["exit c 143", "signal s2", "exit s2 137", "signal s1", "exit s1 143"]);
}

/// A pod that is stuck says why.
#[tokio::test(start_paused = true)]
async fn what_keeps_a_pod_from_ending_is_told() {
    for call in ["stop_container", "stop_sandbox", "remove_sandbox"] {
        let mut scene = Scene::new("Always", vec![], plain(&["c"])).start().await;
        scene.node.runtime.state().failures.insert(call, 1);
        scene.node.messages();
        scene.delete(1).await;
        scene.pass(30.0).await;
        let messages = scene.node.messages();
        let told = messages.iter().filter(|said| said.starts_with("error killing pod: ")).count();
        assert_eq!((told, scene.is_gone()), (1, true), "{call}: {messages:?}");
    }
}
