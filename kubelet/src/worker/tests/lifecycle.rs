//! How pods come up and stay up: init containers, sidecars, images that change. The tables carry the
//! names of upstream's node conformance suite (`Containers Lifecycle`).

use serde_json::{Value, json};

use crate::meters::{self, tests::counted};

use super::scene::{Scene, container, plain, sidecar};
use super::{Node, SECOND, pod};

const POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];

/// Makes a container of this name and these other fields.
type Make = fn(&str, Value) -> Value;

fn startup(command: &str) -> Value {
    json!({"startupProbe": {
        "exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 60,
    }})
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_brought_to_ready_with_the_usual_events() {
    let mut node = Node::new();
    node.apply(pod("p", "u1", "Always")).await;
    node.pass(SECOND).await;
    let status = node.status("p");
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.1"));
    assert!(status.container_statuses.as_ref().unwrap()[0].ready);
    let conditions = status.conditions.unwrap();
    assert!(conditions.iter().all(|c| c.status == "True"), "{conditions:?}");
    assert_eq!(node.reasons(), ["Pulling", "Pulled", "Created", "Started"]);
    let written = node.api.statuses("p");
    assert_eq!(written.last().unwrap()["phase"], "Running");
}

/// "should launch init container serially before a regular container"
/// "should run Init container to completion before call to PostStart of regular container"
/// "should not launch second container before PostStart of the first container completed"
#[tokio::test(start_paused = true)]
async fn init_containers_run_one_after_the_other_and_hooks_hold_the_next_container_up() {
    for policy in POLICIES {
        let hook = json!({"lifecycle": {"postStart": {"exec": {"command": ["hook"]}}}});
        let apps = vec![container("a", hook), container("b", json!({}))];
        let scene = Scene::new(policy, plain(&["i1", "i2"]), apps);
        scene.command("hook", 0, 5.0);
        let scene = scene.start().await;
        assert_eq!(scene.running(), ["i1"]);
        scene.exit("i1", 0).await;
        assert_eq!(scene.running(), ["i2"]);
        scene.exit("i2", 0).await;
        assert_eq!(scene.running(), ["a"]);
        scene.pass(5.0).await;
        assert_eq!(scene.running(), ["a", "b"]);
        scene.assert_order(&["exit i1 0", "start i2", "exit i2 0", "start a", "exec a hook"]);
        scene.assert_order(&["exec a hook", "start b"]);
    }
}

/// "should not launch regular containers if an init container fails" (Never)
/// "should mark an Init container as failed" / "should not start restartable init container"
/// "should have Init container restartCount greater than 0" (Always, OnFailure)
/// "should continuously run Pod keeping it Pending"
#[tokio::test(start_paused = true)]
async fn a_failing_init_container_fails_the_pod_or_is_tried_for_ever() {
    for (policy, phase, restarts) in
        [("Never", "Failed", 0), ("OnFailure", "Pending", 3), ("Always", "Pending", 3)]
    {
        let scene = Scene::new(policy, plain(&["i", "s"]), plain(&["c"])).start().await;
        scene.exit("i", 1).await;
        if policy == "Never" {
            assert_eq!(scene.of("i")["state"]["terminated"]["exitCode"], 1);
        }
        for _ in 0..3 {
            scene.node.runtime.exit("u1", "i", 1);
            scene.pass(45.0).await;
        }
        assert_eq!(scene.phase(), phase, "{policy}");
        assert!(scene.restarts("i") >= restarts, "{policy}");
        assert_eq!(
            (scene.times("start s"), scene.condition("Initialized")["status"].as_str()),
            (0, Some("False"))
        );
        assert_eq!(scene.times("start c"), 0);
    }
}

/// "using a Pod with restartPolicy=Never, three init container and two restartable init containers":
/// all eight.
#[tokio::test(start_paused = true)]
async fn init_containers_and_sidecars_take_turns_and_the_pod_succeeds() {
    let inits = plain(&["i1", "s1", "i2", "s2", "i3"]);
    let scene = Scene::new("Never", inits, plain(&["c"])).start().await;
    assert_eq!(scene.running(), ["i1"]);
    scene.exit("i1", 0).await;
    assert_eq!(scene.running(), ["i2", "s1"]);
    let first = scene.of("s1");
    assert_eq!((&first["started"], &first["ready"]), (&json!(true), &json!(true)));
    assert_eq!(scene.phase(), "Pending");
    scene.exit("i2", 0).await;
    assert_eq!(scene.running(), ["i3", "s1", "s2"]);
    scene.exit("i3", 0).await;
    assert_eq!(scene.running(), ["c", "s1", "s2"]);
    assert_eq!(
        (scene.phase().as_str(), scene.condition("Ready")["status"].as_str()),
        ("Running", Some("True"))
    );
    scene.exit("c", 0).await;
    scene.pass(3.0).await;
    assert_eq!(scene.phase(), "Succeeded");
    scene.assert_order(&["exit c 0", "exit s2 143", "exit s1 143"]);
    assert_eq!(scene.of("s1")["state"]["terminated"]["exitCode"], 143);
    assert_eq!(scene.condition("Initialized")["status"], "True");
}

/// "using a restartable init container in a Pod …" × "runs continuously": the pod's end with every
/// policy, of which the sidecar is no part.
#[tokio::test(start_paused = true)]
async fn a_sidecar_runs_for_as_long_as_its_pod() {
    for policy in POLICIES {
        let scene = Scene::new(policy, plain(&["s"]), plain(&["c"])).start().await;
        assert_eq!(scene.running(), ["c", "s"]);
        scene.exit("c", 0).await;
        scene.pass(5.0).await;
        let (phase, restarts) = if policy == "Always" { ("Running", 1) } else { ("Succeeded", 0) };
        assert_eq!((scene.phase().as_str(), scene.restarts("c")), (phase, restarts), "{policy}");
        assert_eq!((scene.restarts("s"), scene.times("start s")), (0, 1), "{policy}");
    }
}

/// "using a restartable init container in a Pod …" × "starts and exits with exit code 0 continuously",
/// "… 1 continuously": before and after the regular container has started, with every restart policy.
#[tokio::test(start_paused = true)]
async fn a_sidecar_that_ends_is_started_again_whatever_its_code_and_the_pods_policy() {
    for policy in POLICIES {
        for code in [0, 1] {
            let scene = Scene::new(policy, plain(&["s", "i"]), plain(&["c"])).start().await;
            scene.exit("s", code).await;
            assert_eq!(scene.running(), ["i", "s"], "the first restart is immediate");
            scene.exit("s", code).await;
            assert_eq!(scene.waiting("s"), "CrashLoopBackOff");
            assert_eq!(scene.phase(), "Pending");
            scene.pass(10.0).await;
            assert_eq!((scene.running(), scene.restarts("s")), (vec!["i".into(), "s".into()], 2));
            // Its wait holds up nobody that comes after it.
            scene.exit("s", code).await;
            scene.exit("i", 0).await;
            assert_eq!(scene.running(), ["c"], "{policy} {code}");
            assert_eq!(
                scene.condition("ContainersReady")["message"],
                "containers with unready status: [s]"
            );
            scene.pass(20.0).await;
            assert_eq!((scene.running(), scene.restarts("s")), (vec!["c".into(), "s".into()], 3));
            scene.exit("s", code).await;
            scene.exit("c", 0).await;
            scene.pass(2.0).await;
            let expected = if policy == "Always" { "Running" } else { "Succeeded" };
            assert_eq!(scene.phase(), expected, "{policy} {code}");
            assert_eq!(scene.restarts("c"), i64::from(policy == "Always"), "{policy} {code}");
        }
    }
}

/// "a restartable init container (an init container) fails to start because of a bad image": neither it
/// nor a regular container starts, Pending for every policy that may still get it.
#[tokio::test(start_paused = true)]
async fn an_init_container_without_its_image_holds_the_pod_up() {
    for (policy, make) in POLICIES.into_iter().flat_map(|p| [(p, sidecar as Make), (p, container)])
    {
        let bad = make("s", json!({"image": "bad:1"}));
        let scene = Scene::new(policy, vec![bad], plain(&["c"]));
        let message = "manifest unknown".to_owned();
        scene.node.images.broken.lock().unwrap().insert("bad:1".into(), message);
        let scene = scene.start().await;
        scene.pass(60.0).await;
        assert_eq!((scene.phase().as_str(), scene.running().len()), ("Pending", 0), "{policy}");
        assert_eq!(scene.waiting("s"), "ImagePullBackOff");
        assert_eq!(scene.waiting("c"), "PodInitializing");
    }
}

/// "an Init container after restartable init container fails": "should be running restartable init
/// container and a failed Init container in parallel", and the pod's end with every policy.
#[tokio::test(start_paused = true)]
async fn sidecars_run_beside_an_init_container_that_fails() {
    for (policy, phase) in [("Never", "Failed"), ("OnFailure", "Pending"), ("Always", "Pending")] {
        let scene = Scene::new(policy, plain(&["s", "i"]), plain(&["c"])).start().await;
        assert_eq!(scene.running(), ["i", "s"]);
        scene.exit("i", 1).await;
        scene.pass(1.0).await;
        assert_eq!((scene.phase().as_str(), scene.times("start c")), (phase, 0), "{policy}");
        assert_eq!(scene.times("exit s 143"), usize::from(policy == "Never"));
        assert_eq!(scene.restarts("i") > 0, policy != "Never");
        let last = if policy == "Never" { "state" } else { "lastState" };
        assert_eq!(scene.of("i")[last]["terminated"]["exitCode"], 1, "{policy}");
    }
}

/// "should launch restartable init containers serially considering the startup probe"
/// "should continue probing and allow regular container to start after the restartable init container
/// recovers"
#[tokio::test(start_paused = true)]
async fn a_sidecar_lets_the_next_container_start_once_its_startup_probe_succeeds() {
    for policy in POLICIES {
        let inits = vec![sidecar("s1", startup("one")), sidecar("s2", startup("two"))];
        let scene = Scene::new(policy, inits, plain(&["c"]));
        scene.command("one", 1, 0.0);
        scene.command("two", 1, 0.0);
        let scene = scene.start().await;
        scene.pass(3.0).await;
        assert_eq!((scene.running(), scene.phase()), (vec!["s1".to_owned()], "Pending".into()));
        assert_eq!(scene.of("s1")["started"], false);
        assert_eq!(
            scene.condition("Initialized")["message"],
            "containers with incomplete status: [s1 s2]"
        );
        scene.command("one", 0, 0.0);
        scene.pass(1.5).await;
        assert_eq!(scene.running(), ["s1", "s2"], "{policy}");
        scene.command("two", 0, 0.0);
        scene.pass(1.5).await;
        assert_eq!(scene.running(), ["c", "s1", "s2"]);
        assert_eq!(scene.condition("Initialized")["status"], "True");
    }
}

/// "running restartable init containers with startup probes / using a PreStop hook": the hook is
/// called, the next container is not launched. "… with liveness probes": the hook is called, the next
/// container is.
#[tokio::test(start_paused = true)]
async fn a_sidecar_whose_probe_fails_is_ended_with_its_hook_and_started_again() {
    for (kind, next_starts) in [("startupProbe", 0), ("livenessProbe", 1)] {
        let probe = json!({"exec": {"command": ["probe"]}, "periodSeconds": 1, "failureThreshold": 2,
                           "terminationGracePeriodSeconds": 5});
        let hook = json!({"preStop": {"exec": {"command": ["hook"]}}});
        let s = sidecar("s", json!({kind: probe, "lifecycle": hook}));
        let scene = Scene::new("Never", vec![s], plain(&["c"]));
        scene.command("probe", 1, 0.0);
        let scene = scene.start().await;
        scene.pass(2.0).await;
        scene.assert_order(&["start s", "exec s hook", "signal s", "exit s 143", "start s"]);
        assert_eq!(scene.times("start c"), next_starts, "{kind}");
        assert!(scene.restarts("s") >= 1);
    }
}

/// "the regular container has its image updated": restarts with every policy; "… during
/// initialization": not started; "… during termination": not updated.
#[tokio::test(start_paused = true)]
async fn a_container_with_another_image_is_started_again_with_every_policy() {
    for policy in POLICIES {
        let mut scene = Scene::new(policy, plain(&["i"]), plain(&["c"])).start().await;
        scene.set_image("containers", 0, "img:2").await;
        assert_eq!(scene.running(), ["i"], "{policy}: nothing starts before its turn");
        assert_eq!((scene.phase().as_str(), scene.restarts("c")), ("Pending", 0));
        scene.exit("i", 0).await;
        assert_eq!((scene.phase().as_str(), scene.restarts("c")), ("Running", 0));
        assert_eq!(scene.of("c")["image"], "img:2");
        scene.set_image("containers", 0, "img:3").await;
        scene.pass(0.5).await;
        let status = scene.of("c");
        assert_eq!((&status["image"], &status["restartCount"]), (&json!("img:3"), &json!(1)));
        assert!(status["state"]["running"].is_object(), "{policy}: {status}");
        assert_eq!(scene.status()["observedGeneration"], 3);
        let killing = "Container c definition changed, will be restarted";
        assert!(scene.node.messages().iter().any(|m| m == killing));
        scene.node.runtime.state().lingers.insert("c".into(), std::time::Duration::from_secs(3));
        scene.delete(10).await;
        scene.set_image("containers", 0, "img:4").await;
        scene.pass(5.0).await;
        assert_eq!((scene.is_gone(), scene.times("start c")), (true, 2));
    }
}

/// "should update the image when restartPolicy=…" after a failed startup or liveness probe, of regular
/// containers and of sidecars; nobody else is restarted.
#[tokio::test(start_paused = true)]
async fn what_a_probe_has_ended_is_started_with_its_new_image() {
    for (policy, kind) in
        POLICIES.into_iter().flat_map(|p| [(p, "startupProbe"), (p, "livenessProbe")])
    {
        let fields = json!({kind: {
            "exec": {"command": ["no"]}, "initialDelaySeconds": 20, "failureThreshold": 1,
        }});
        let beside = (
            vec![sidecar("s", json!({})), sidecar("x", fields.clone())],
            plain(&["c"]),
            ("initContainers", 1),
        );
        let alone = (vec![], vec![container("x", fields)], ("containers", 0));
        for (inits, apps, (list, index)) in [beside, alone] {
            if (policy, list) == ("Never", "containers") {
                continue;
            }
            let scene = Scene::new(policy, inits, apps);
            scene.command("no", 1, 0.0);
            let mut scene = scene.start().await;
            scene.pass(21.0).await;
            assert_eq!(scene.restarts("x"), 1, "{policy} {kind} {list}");
            scene.set_image(list, index, "img:2").await;
            scene.pass(1.0).await;
            let status = scene.of("x");
            assert_eq!((&status["image"], &status["restartCount"]), (&json!("img:2"), &json!(2)));
            if list == "initContainers" {
                let (phase, started) =
                    if kind == "startupProbe" { ("Pending", 0) } else { ("Running", 1) };
                assert_eq!((scene.phase().as_str(), scene.times("start c")), (phase, started));
                assert_eq!(scene.times("start s"), 1, "{policy} {kind}");
            }
        }
    }
}

/// "initializing an init container after a restartable init container": the sidecar's image changes,
/// with every policy; "should restart when updated with a new image", and no other container does.
#[tokio::test(start_paused = true)]
async fn a_sidecar_takes_its_new_image_whatever_the_others_do() {
    for policy in POLICIES {
        let inits = plain(&["i1", "s1", "i2", "s2"]);
        let mut scene = Scene::new(policy, inits, plain(&["c"])).start().await;
        scene.exit("i1", 0).await;
        assert_eq!(
            (scene.running(), scene.phase()),
            (vec!["i2".into(), "s1".into()], "Pending".into())
        );
        scene.set_image("initContainers", 1, "img:2").await;
        scene.pass(1.0).await;
        let status = scene.of("s1");
        assert_eq!((&status["image"], &status["restartCount"]), (&json!("img:2"), &json!(1)));
        assert!(status["state"]["running"].is_object(), "{policy}: {status}");
        let starts = |names: [&str; 5]| names.map(|name| scene.times(&format!("start {name}")));
        assert_eq!(starts(["i1", "s1", "i2", "s2", "c"]), [1, 2, 1, 0, 0], "{policy}");
        scene.exit("i2", 0).await;
        assert_eq!(scene.running(), ["c", "s1", "s2"]);
        scene.set_image("initContainers", 3, "img:2").await;
        scene.pass(1.0).await;
        assert_eq!(scene.running(), ["c", "s1", "s2"]);
        let starts = |names: [&str; 5]| names.map(|name| scene.times(&format!("start {name}")));
        assert_eq!(starts(["i1", "s1", "i2", "s2", "c"]), [1, 2, 1, 2, 1], "{policy}");
    }
}

/// "A regular container has a PreStop hook", called when its startup or liveness probe fails; "should
/// execute readiness probe while in preStop, but not liveness".
#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_ends_a_container_with_its_hook() {
    for kind in ["startupProbe", "livenessProbe"] {
        let fields = json!({
            kind: {"exec": {"command": ["no"]}, "initialDelaySeconds": 10, "periodSeconds": 1,
                   "failureThreshold": 1},
            "readinessProbe": {"exec": {"command": ["ok"]}, "periodSeconds": 1},
            "lifecycle": {"preStop": {"exec": {"command": ["hook"]}}},
        });
        let scene = Scene::new("Never", vec![], vec![container("c", fields)]);
        scene.command("no", 1, 0.0);
        scene.command("hook", 0, 10.0);
        let scene = scene.start().await;
        scene.pass(25.0).await;
        scene.assert_order(&["start c", "exec c no", "exec c hook", "signal c", "exit c 143"]);
        assert_eq!((scene.phase().as_str(), scene.times("start c")), ("Failed", 1), "{kind}");
        let history = scene.history();
        let place = |what: &str| history.iter().position(|h| h == what).unwrap();
        let meanwhile = &history[place("exec c hook")..place("signal c")];
        let asked = |what: &str| meanwhile.iter().filter(|h| *h == what).count();
        assert_eq!(asked("exec c no"), 0, "{kind}: {history:?}");
        assert_eq!(asked("exec c ok") > 5, kind == "livenessProbe", "{kind}: {history:?}");
    }
}

/// A container that waits for its next start does so with another image at once.
#[tokio::test(start_paused = true)]
async fn a_new_image_ends_a_crash_loop_at_once() {
    for policy in POLICIES {
        for list in ["initContainers", "containers"] {
            if (policy, list) == ("Never", "containers") {
                continue;
            }
            let (inits, apps) = (plain(&["s"]), plain(&["c"]));
            let mut scene = Scene::new(policy, inits, apps).start().await;
            let name = if list == "containers" { "c" } else { "s" };
            scene.exit(name, 1).await;
            scene.exit(name, 1).await;
            assert_eq!(scene.waiting(name), "CrashLoopBackOff");
            scene.set_image(list, 0, "img:2").await;
            let status = scene.of(name);
            assert_eq!((&status["image"], &status["restartCount"]), (&json!("img:2"), &json!(2)));
            assert_eq!(scene.running(), ["c", "s"], "{policy} {list}");
            scene.set_image(list, 0, "img:3").await;
            assert_eq!((scene.running(), scene.restarts(name)), (vec!["c".into(), "s".into()], 3));
        }
    }
}

/// "the init container is updated with a new image": not restarted while it runs, nor once it is done,
/// nor while the pod ends; and its status tells of what it ran.
#[tokio::test(start_paused = true)]
async fn an_init_container_with_another_image_goes_on() {
    let mut scene = Scene::new("Always", plain(&["i"]), plain(&["c"])).start().await;
    scene.set_image("initContainers", 0, "bad:1").await;
    assert_eq!((scene.running(), scene.times("start i")), (vec!["i".to_owned()], 1));
    scene.exit("i", 0).await;
    scene.set_image("initContainers", 0, "img:3").await;
    scene.pass(5.0).await;
    assert_eq!((scene.running(), scene.times("start i")), (vec!["c".to_owned()], 1));
    let done = scene.of("i");
    assert_eq!((&done["image"], &done["restartCount"]), (&json!("img:1"), &json!(0)));
    assert_eq!(done["state"]["terminated"]["exitCode"], 0);
    scene.node.runtime.state().lingers.insert("c".into(), std::time::Duration::from_secs(20));
    scene.delete(30).await;
    scene.set_image("initContainers", 0, "img:4").await;
    scene.pass(15.0).await;
    assert_eq!((scene.of("i")["image"].as_str(), scene.times("start i")), (Some("img:1"), 1));
    scene.pass(10.0).await;
    assert_eq!((scene.is_gone(), scene.times("start i")), (true, 1));
}

/// "A regular container restarts with init containers / shouldn't restart init containers"
#[tokio::test(start_paused = true)]
async fn init_containers_do_not_run_again_when_a_container_does() {
    let scene = Scene::new("Always", plain(&["i", "s"]), plain(&["c"])).start().await;
    scene.exit("i", 0).await;
    for _ in 0..3 {
        scene.node.runtime.exit("u1", "c", 1);
        scene.pass(50.0).await;
    }
    assert_eq!((scene.times("start i"), scene.times("start s"), scene.restarts("c")), (1, 1, 3));
}

/// "A node running restartable init containers reboots": all, in the right order, also when the pod
/// is changed meanwhile.
#[tokio::test(start_paused = true)]
async fn after_a_reboot_everything_starts_again_in_its_order() {
    for image in ["img:1", "img:2"] {
        let mut scene = Scene::new("Always", plain(&["i1", "s1", "i2", "s2"]), plain(&["c"]));
        scene.tell().await;
        for init in ["i1", "i2"] {
            scene.pass(1.0).await;
            scene.exit(init, 0).await;
        }
        assert_eq!(scene.running(), ["c", "s1", "s2"]);
        scene.node.kill_agent().await;
        scene.node.runtime.state().sandboxes.clear();
        scene.node.runtime.state().history.clear();
        scene.node.start_agent();
        scene.set_image("containers", 0, image).await;
        for init in ["i1", "i2"] {
            scene.pass(1.0).await;
            scene.exit(init, 0).await;
        }
        scene.assert_order(&[
            "start i1",
            "exit i1 0",
            "start s1",
            "start i2",
            "start s2",
            "start c",
        ]);
        assert_eq!((scene.restarts("c"), scene.restarts("s1")), (1, 1));
        assert_eq!(scene.of("c")["image"], image);
    }
}

/// "A node is rebooting and receives an update request", or its agent is started again.
#[tokio::test(start_paused = true)]
async fn a_sidecar_takes_the_image_that_it_was_given_while_no_agent_ran() {
    for (is_rebooted, restarts) in [(true, 1), (false, 0)] {
        let mut scene = Scene::new("Always", plain(&["i1", "s", "i2"]), plain(&["c"]));
        scene.tell().await;
        for init in ["i1", "i2"] {
            scene.pass(1.0).await;
            scene.exit(init, 0).await;
        }
        scene.node.kill_agent().await;
        if is_rebooted {
            scene.node.runtime.state().sandboxes.clear();
        }
        scene.node.start_agent();
        scene.set_image("initContainers", 1, "img:2").await;
        for init in ["i1", "i2"].iter().filter(|_| is_rebooted) {
            scene.pass(1.0).await;
            scene.exit(init, 0).await;
        }
        scene.pass(1.0).await;
        assert_eq!((scene.phase().as_str(), scene.restarts("c")), ("Running", restarts));
        assert_eq!((&scene.of("s")["image"], scene.restarts("s")), (&json!("img:2"), 1));
    }
}

/// A restarted agent neither restarts a sidecar nor forgets that it has started.
#[tokio::test(start_paused = true)]
async fn a_restarted_agent_leaves_sidecars_as_they_are() {
    let inits = vec![sidecar("s", startup("probe"))];
    let mut scene = Scene::new("Never", inits, plain(&["c"])).start().await;
    scene.exit("s", 1).await;
    scene.pass(1.0).await;
    let before = scene.status();
    scene.node.kill_agent().await;
    scene.command("probe", 1, 0.0);
    scene.node.start_agent();
    scene.pass(20.0).await;
    assert_eq!(scene.status(), before);
    assert_eq!((scene.times("start s"), scene.times("start c")), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_one_by_one_before_the_others() {
    let node = Node::new();
    let mut pod = pod("p", "u1", "Always");
    pod["spec"]["initContainers"] =
        json!([{"name": "i1", "image": "img:1"}, {"name": "i2", "image": "img:1"}]);
    node.apply(pod).await;
    node.pass(SECOND).await;
    assert_eq!(node.runtime.running("u1"), ["i1"]);
    assert_eq!(node.status("p").phase.as_deref(), Some("Pending"));
    node.runtime.exit("u1", "i1", 0);
    node.pass(SECOND).await;
    assert_eq!(node.runtime.running("u1"), ["i2"]);
    node.runtime.exit("u1", "i2", 0);
    node.pass(SECOND).await;
    assert_eq!(node.runtime.running("u1"), ["c"]);
    assert_eq!(node.status("p").phase.as_deref(), Some("Running"));
}

#[tokio::test(start_paused = true)]
async fn starts_are_counted_and_those_with_own_users_besides() {
    let node = Node::new();
    node.runtime.state().failures.insert("run_sandbox", 1);
    let mut own = pod("own", "u1", "Always");
    own["spec"]["hostUsers"] = json!(false);
    node.apply(own).await;
    node.pass(SECOND * 30).await;
    for (uid, users) in [("u2", json!(true)), ("u3", Value::Null)] {
        let mut other = pod(uid, uid, "Always");
        other["spec"]["hostUsers"] = users;
        node.apply(other).await;
    }
    node.pass(SECOND).await;
    let counts =
        [&meters::PODS, &meters::FAILED_PODS, &meters::USER_PODS, &meters::FAILED_USER_PODS];
    assert_eq!(counts.map(|meter| counted(&node.meters, meter)[""]), [4, 1, 2, 1]);
}
