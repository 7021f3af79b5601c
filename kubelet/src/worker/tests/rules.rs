//! Restart rules, ephemeral containers, readiness gates and generations on the fake node.

use serde_json::{Value, json};

use super::scene::{Scene, container, plain, sidecar};
use crate::source::Event;

fn rule(action: &str, codes: &[i32]) -> Value {
    json!({"restartPolicy": "Never", "restartPolicyRules": [
        {"action": action, "exitCodes": {"operator": "In", "values": codes}}]})
}

/// "Container Restart Rules": container policies before the pod's, rules before both.
#[tokio::test(start_paused = true)]
async fn a_container_is_restarted_as_its_own_policy_says() {
    for (pod, own, code, runs, phase) in [
        ("Never", json!({"restartPolicy": "Always"}), 0, true, "Running"),
        ("Never", json!({"restartPolicy": "OnFailure"}), 1, true, "Running"),
        ("Never", json!({"restartPolicy": "OnFailure"}), 0, false, "Succeeded"),
        ("Always", json!({"restartPolicy": "Never"}), 1, false, "Failed"),
        ("Always", rule("Restart", &[42]), 42, true, "Running"),
        ("Always", rule("Restart", &[42]), 1, false, "Failed"),
    ] {
        let scene = Scene::new(pod, vec![], vec![container("c", own.clone())]).start().await;
        scene.exit("c", code).await;
        scene.pass(1.0).await;
        assert_eq!((!scene.running().is_empty(), scene.phase().as_str()), (runs, phase), "{own}");
    }
    // Init containers have policies as well.
    let init = container("i", rule("Restart", &[42]));
    let scene = Scene::new("Never", vec![init], plain(&["c"])).start().await;
    scene.exit("i", 42).await;
    assert_eq!((scene.running(), scene.phase()), (vec!["i".to_owned()], "Pending".into()));
    scene.exit("i", 1).await;
    scene.pass(1.0).await;
    assert_eq!(scene.phase(), "Failed");
}

/// "Restart All Containers": a rule brings everything back to the first init container, in place.
#[tokio::test(start_paused = true)]
async fn a_rule_restarts_all_containers_from_the_first() {
    let apps = vec![container("c", rule("RestartAllContainers", &[42])), container("d", json!({}))];
    let scene = Scene::new("Never", plain(&["i", "s"]), apps).start().await;
    scene.exit("i", 0).await;
    let address = scene.status()["podIP"].clone();
    assert_eq!(scene.condition("AllContainersRestarting")["status"], "False");
    scene.node.runtime.state().history.clear();
    scene.node.runtime.state().lingers.insert("d".into(), std::time::Duration::from_secs(1));
    scene.exit("c", 42).await;
    let condition = scene.condition("AllContainersRestarting");
    assert_eq!(
        (&condition["status"], &condition["reason"]),
        (&json!("True"), &json!("RestartAllContainersStarted"))
    );
    scene.pass(2.0).await;
    assert_eq!(scene.running(), ["i"]);
    assert_eq!(
        (scene.phase().as_str(), scene.waiting("d").as_str()),
        ("Running", "RestartingAllContainers")
    );
    let last = scene.of("d")["lastState"]["terminated"].clone();
    assert_eq!(
        (&last["reason"], &last["exitCode"]),
        (&json!("RestartingAllContainers"), &json!(137))
    );
    assert_eq!(scene.condition("AllContainersRestarting")["status"], "False");
    scene.exit("i", 0).await;
    assert_eq!(scene.running(), ["c", "d", "s"]);
    for name in ["i", "s", "c", "d"] {
        assert_eq!(scene.restarts(name), 1, "{name}");
    }
    scene.assert_order(&["exit c 42", "start i", "exit i 0", "start s", "start c", "start d"]);
    assert_eq!(scene.status()["podIP"], address);
    scene.exit("c", 0).await;
    scene.exit("d", 0).await;
    scene.pass(2.0).await;
    assert_eq!(scene.phase(), "Succeeded");
}

/// The record of the cause stays while it is taken away; nothing starts beside it.
#[tokio::test(start_paused = true)]
async fn a_restart_of_all_begins_with_the_first_container_however_long_records_take_to_go() {
    let apps = vec![container("c", rule("RestartAllContainers", &[42])), container("d", json!({}))];
    let scene = Scene::new("Never", plain(&["i", "s"]), apps).start().await;
    scene.exit("i", 0).await;
    scene.node.runtime.state().removal = std::time::Duration::from_millis(700);
    scene.exit("c", 42).await;
    for _ in 0..40 {
        scene.pass(0.1).await;
        let running = scene.running();
        assert!(running.is_empty() || running == ["i"], "{running:?}");
    }
    assert_eq!(scene.running(), ["i"]);
    scene.exit("i", 0).await;
    assert_eq!(scene.running(), ["c", "d", "s"]);
}

/// "should restart all containers on regular container exit": also where the one that causes it ends
/// before the one after it was started.
#[tokio::test(start_paused = true)]
async fn all_containers_have_been_restarted_equally_often() {
    let apps = vec![container("c", rule("RestartAllContainers", &[42])), container("d", json!({}))];
    let scene = Scene::new("Never", plain(&["i", "s"]), apps);
    scene.node.runtime.state().exits_at_once.insert("c".into(), 42);
    let scene = scene.start().await;
    scene.exit("i", 0).await;
    scene.node.runtime.state().exits_at_once.clear();
    scene.pass(2.0).await;
    scene.exit("i", 0).await;
    assert_eq!(scene.running(), ["c", "d", "s"]);
    for name in ["i", "s", "c", "d"] {
        assert_eq!(scene.restarts(name), 1, "{name}");
        assert!(scene.of(name)["lastState"].get("terminated").is_some(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_all_outlives_the_agent() {
    for millis in [1, 10, 40, 100, 400, 900, 1_050] {
        let apps =
            vec![container("c", rule("RestartAllContainers", &[42])), container("d", json!({}))];
        let mut scene = Scene::new("Never", plain(&["i", "s"]), apps).start().await;
        scene.exit("i", 0).await;
        scene.node.runtime.state().lingers.insert("d".into(), std::time::Duration::from_secs(1));
        assert!(scene.node.runtime.exit("u1", "c", 42));
        scene.pass(f64::from(millis) / 1000.0).await;
        scene.node.kill_agent().await;
        scene.node.start_agent();
        scene.pass(5.0).await;
        assert_eq!(scene.running(), ["i"], "killed after {millis} ms");
        scene.exit("i", 0).await;
        assert_eq!(scene.running(), ["c", "d", "s"]);
        assert_eq!(scene.restarts("d"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_restarts_all_its_containers_again_and_again_waits_longer_each_time() {
    let apps = vec![container("c", rule("RestartAllContainers", &[42]))];
    let scene = Scene::new("Never", vec![], apps);
    scene.node.runtime.state().exits_at_once.insert("c".into(), 42);
    let scene = scene.start().await;
    scene.pass(8.0).await;
    assert_eq!((scene.times("start c"), scene.waiting("c").as_str()), (2, "CrashLoopBackOff"));
    scene.pass(10.0).await;
    assert_eq!(scene.times("start c"), 3);
    scene.pass(5.0).await;
    assert_eq!((scene.times("start c"), scene.phase().as_str()), (3, "Running"));
}

/// "Ephemeral Containers will start an ephemeral container in an existing pod"; never again.
#[tokio::test(start_paused = true)]
async fn an_ephemeral_container_runs_once_and_sees_its_target() {
    let mut scene = Scene::new("Always", plain(&["i"]), plain(&["c"])).start().await;
    let debug = |name: &str, target: &str| json!({"name": name, "image": "img:1", "targetContainerName": target});
    scene.pod["spec"]["ephemeralContainers"] = json!([debug("e1", ""), debug("e2", "c")]);
    scene.tell().await;
    scene.pass(0.5).await;
    assert_eq!(scene.running(), ["e1", "i"], "while the pod initializes");
    assert_eq!(scene.waiting("e2"), "CreateContainerConfigError");
    scene.exit("i", 0).await;
    scene.pass(11.0).await;
    assert_eq!(scene.running(), ["c", "e1", "e2"]);
    let target = {
        let state = scene.node.runtime.state();
        let containers = &state.sandboxes[0].containers;
        let of = |name: &str| containers.iter().find(|c| c.config.name == name).unwrap().clone();
        (of("e2").config.pid_target, Some(of("c").id))
    };
    assert_eq!(target.0, target.1);
    let status = scene.of("e1");
    assert_eq!((&status["ready"], status.get("started")), (&json!(false), None));
    assert_eq!(scene.condition("Ready")["status"], "True");
    scene.exit("e1", 3).await;
    scene.pass(60.0).await;
    assert_eq!(scene.of("e1")["state"]["terminated"]["exitCode"], 3);
    assert_eq!((scene.times("start e1"), scene.restarts("e1")), (1, 0));
    scene.delete(10).await;
    scene.pass(3.0).await;
    assert!(scene.is_gone());
}

/// "should support pod readiness gates"
#[tokio::test(start_paused = true)]
async fn a_readiness_gate_opens_with_its_condition() {
    let mut scene = Scene::new("Always", vec![], plain(&["c"]));
    scene.pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/gate"}]);
    let mut scene = scene.start().await;
    let ready = scene.condition("Ready");
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("False"), &json!("ReadinessGatesNotReady"))
    );
    assert_eq!(scene.condition("ContainersReady")["status"], "True");
    for (status, expected) in [("True", "True"), ("False", "False")] {
        scene.pod["status"]["conditions"] = json!([{"type": "example.com/gate", "status": status}]);
        scene.tell().await;
        scene.pass(0.2).await;
        assert_eq!(scene.condition("Ready")["status"], expected);
        assert_eq!(scene.condition("example.com/gate")["status"], status);
    }
}

/// "pod generation": the status names the generation it serves, and so do its conditions.
#[tokio::test(start_paused = true)]
async fn statuses_say_which_generation_they_are_of() {
    let mut scene = Scene::new("Always", vec![], plain(&["c"])).start().await;
    for generation in 1..4 {
        assert_eq!(scene.status()["observedGeneration"], generation);
        for condition in scene.status()["conditions"].as_array().unwrap() {
            assert_eq!(condition["observedGeneration"], generation, "{condition}");
        }
        scene.pod["spec"]["activeDeadlineSeconds"] = json!(1000 - generation);
        scene.tell().await;
        scene.pass(0.2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_says_what_follows() {
    let probe = json!({"livenessProbe": {"exec": {"command": ["no"]}, "failureThreshold": 1}});
    for (policy, inits, apps, message) in [
        (
            "Always",
            vec![],
            vec![container("x", probe.clone())],
            "Container x failed liveness probe, will be restarted",
        ),
        ("Never", vec![], vec![container("x", probe.clone())], "Container x failed liveness probe"),
        (
            "Never",
            vec![sidecar("x", probe.clone())],
            plain(&["c"]),
            "Init container x failed liveness probe",
        ),
    ] {
        let scene = Scene::new(policy, inits, apps);
        scene.command("no", 1, 0.0);
        let mut scene = scene.start().await;
        assert!(scene.node.messages().iter().any(|m| m == message), "{message}");
        let expected =
            if message == "Container x failed liveness probe" { "Failed" } else { "Running" };
        assert_eq!(scene.phase(), expected);
    }
}

/// The controller that watches nodes takes the pods of a silent one for not ready; nobody but the node
/// takes that back.
#[tokio::test(start_paused = true)]
async fn a_status_that_another_has_overwritten_is_written_again() {
    let mut scene = Scene::new("Always", vec![], plain(&["c"])).start().await;
    let written = |scene: &Scene| scene.node.api.statuses("p").len();
    let own = scene.status();
    scene.pod["status"] = own.clone();
    scene.node.apply(scene.pod.clone()).await;
    let before = written(&scene);
    scene.pass(60.0).await;
    assert_eq!(written(&scene), before, "its own echo is no news");
    for condition in scene.pod["status"]["conditions"].as_array_mut().unwrap() {
        if condition["type"] == "Ready" {
            condition["status"] = json!("False");
        }
    }
    scene.node.apply(scene.pod.clone()).await;
    scene.pass(0.5).await;
    assert_eq!(written(&scene), before, "it may be an echo that is late");
    scene.pass(1.0).await;
    assert_eq!(written(&scene), before + 1);
    let last = scene.node.api.statuses("p").pop().unwrap();
    let mut conditions = last["conditions"].as_array().unwrap().iter();
    assert_eq!(conditions.find(|c| c["type"] == "Ready").unwrap()["status"], "True");
    scene.pass(10.0).await;
    assert_eq!(written(&scene), before + 2, "the server goes on to show the other");
    scene.pod["status"] = own;
    scene.node.apply(scene.pod.clone()).await;
    scene.pass(60.0).await;
    assert_eq!(written(&scene), before + 2);
}

/// A status that is in dispute when its pod is taken away has nobody left to be written for.
#[tokio::test(start_paused = true)]
async fn a_dispute_ends_with_its_pod() {
    let mut scene = Scene::new("Always", vec![], plain(&["c"])).start().await;
    scene.pod["status"] = scene.status();
    scene.pod["status"]["phase"] = json!("Pending");
    scene.node.apply(scene.pod.clone()).await;
    scene.pass(0.5).await;
    scene.node.runtime.state().stubborn.insert("c".to_owned());
    let last = serde_json::from_value(scene.pod.clone()).unwrap();
    scene.node.tell(Event::Deleted(last)).await;
    scene.pass(120.0).await;
    assert!(scene.is_gone());
}
