//! The watch against a made-up logind, on a paused clock.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::events::Occurrence;
use crate::eviction::Cause;
use crate::fake::{FakeApi, FakeClock};
use crate::shelf::Holds;
use crate::status::writer::PodKey;

const SECOND: Duration = Duration::from_secs(1);

/// What a made-up host has and did.
#[derive(Default)]
struct Host {
    /// Whether there is a logind.
    is_away: bool,
    /// Whether it lets its configuration be changed.
    is_stubborn: bool,
    is_preparing: bool,
    longest: Duration,
    /// How long it may be from then on.
    lengthened: Option<(Instant, Duration)>,
    connections: usize,
    /// The locks that are held, and how few were ever after the first.
    held: usize,
    listeners: Vec<UnboundedSender<bool>>,
}

#[derive(Clone, Default)]
struct FakeLogin(Arc<Mutex<Host>>);

impl FakeLogin {
    fn host(&self) -> MutexGuard<'_, Host> {
        self.0.lock().unwrap()
    }

    /// Says that the host is to go down, or is not.
    fn say(&self, is_ending: bool) {
        let mut host = self.host();
        host.is_preparing = is_ending;
        host.listeners.retain(|listener| listener.send(is_ending).is_ok());
    }
}

struct Held(FakeLogin);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.host().held -= 1;
    }
}

struct FakeSession(FakeLogin, UnboundedReceiver<bool>);

#[async_trait]
impl Login for FakeLogin {
    async fn connect(&self) -> Result<Box<dyn Session>, Error> {
        let mut host = self.host();
        if host.is_away {
            let source = "no such file".into();
            return Err(Error::Asked { what: "cannot be reached", source });
        }
        host.connections += 1;
        let (sender, receiver) = unbounded_channel();
        host.listeners.push(sender);
        Ok(Box::new(FakeSession(self.clone(), receiver)))
    }
}

#[async_trait]
impl Session for FakeSession {
    async fn longest_delay(&self) -> Result<Duration, Error> {
        let host = self.0.host();
        let is_read = |(at, _): &(Instant, Duration)| *at <= Instant::now();
        Ok(host.lengthened.filter(is_read).map_or(host.longest, |(_, delay)| delay))
    }

    async fn lengthen(&self, delay: Duration) -> Result<(), Error> {
        let mut host = self.0.host();
        if !host.is_stubborn {
            host.lengthened = Some((Instant::now() + SECOND, delay));
        }
        Ok(())
    }

    async fn inhibit(&self) -> Result<Lock, Error> {
        assert!(!self.0.host().is_preparing, "logind gives no lock then");
        self.0.host().held += 1;
        Ok(Box::new(Held(self.0.clone())))
    }

    async fn is_preparing(&self) -> Result<bool, Error> {
        Ok(self.0.host().is_preparing)
    }

    async fn next(&mut self) -> Option<bool> {
        self.1.recv().await
    }
}

struct Scene {
    login: FakeLogin,
    parts: Parts,
    orders: mpsc::Receiver<Order>,
    occurrences: mpsc::Receiver<Occurrence>,
    api: FakeApi,
    root: tempfile::TempDir,
    shutdown: CancellationToken,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Which pods were told to end, with how many seconds.
type Told = BTreeMap<String, u64>;

impl Scene {
    /// A host that lets shutdowns wait for 5 s, and a node that wants 20 s and 10 s for critical pods.
    async fn start(adjust: impl FnOnce(&mut Host)) -> Self {
        let login = FakeLogin::default();
        login.host().longest = SECOND * 5;
        adjust(&mut login.host());
        let root = tempfile::tempdir().unwrap();
        let (orders, receiver) = mpsc::channel(16);
        let (events, occurrences) = Recorder::new();
        let (api, shutdown) = (FakeApi::default(), CancellationToken::new());
        let parts = Parts {
            config: Config::of_periods(SECOND * 30, SECOND * 10),
            node: "n".to_owned(),
            root: root.path().to_owned(),
            shelf: Shelf::default(),
            statuses: Writer::new(api.client(), shutdown.clone()),
            orders,
            standing: Standing::default(),
            clock: Arc::new(FakeClock::new()),
            events,
            meters: Meters::default(),
        };
        let scene = Self { login, parts, orders: receiver, occurrences, api, root, shutdown };
        scene.run();
        scene.pass(2).await;
        scene
    }

    fn run(&self) {
        let login = Arc::new(self.login.clone());
        tokio::spawn(run(self.parts.clone(), login, self.shutdown.clone()));
    }

    /// Lets time pass, also for what blocks.
    async fn pass(&self, seconds: u32) {
        for _ in 0..20 {
            tokio::time::sleep(SECOND * seconds / 20).await;
            tokio::task::spawn_blocking(|| ()).await.unwrap();
        }
    }

    fn held(&self) -> usize {
        self.login.host().held
    }

    fn put(&self, uid: &str, priority: i32, phase: &str) {
        let pod = json!({
            "metadata": {"name": uid, "namespace": "ns", "uid": uid},
            "spec": {"priority": priority, "containers": [{"name": "c"}]},
        });
        let status = PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() };
        self.parts.shelf.put(&Arc::new(serde_json::from_value::<Pod>(pod).unwrap()), &status);
    }

    /// A pod has ended and given everything back.
    fn end(&self, uid: &str, priority: i32) {
        self.put(uid, priority, "Failed");
        self.parts.shelf.give_back(uid, Holds::Remains);
    }

    fn told(&mut self) -> Told {
        let mut told = Told::new();
        while let Ok(Order::End { uid, eviction }) = self.orders.try_recv() {
            assert_eq!((eviction.cause, eviction.message.as_str()), (Cause::Shutdown, MESSAGE));
            assert!(told.insert(uid, eviction.grace.as_secs()).is_none());
        }
        told
    }

    /// The messages of the node's events.
    fn said(&mut self) -> Vec<(String, String)> {
        let all = std::iter::from_fn(|| self.occurrences.try_recv().ok());
        all.map(|occurrence| (occurrence.reason, occurrence.message)).collect()
    }

    /// The start and the end that `/metrics` tells.
    fn times(&self) -> (f64, f64) {
        let all: BTreeMap<_, _> =
            self.parts.meters.all().into_iter().map(|(m, s)| (m.name, s[0].1.seconds)).collect();
        let of =
            |what: &str| all[format!("kubelet_graceful_shutdown_{what}_time_seconds").as_str()];
        (of("start"), of("end"))
    }
}

fn told<const N: usize>(all: [(&str, u64); N]) -> Told {
    all.map(|(uid, seconds)| (uid.to_owned(), seconds)).into()
}

const CRITICAL: i32 = 2_000_001_000;
const BEGUN: &str = "Shutdown manager detected shutdown event";
const CALLED_OFF: &str = "Shutdown manager detected shutdown cancellation";

#[tokio::test(start_paused = true)]
async fn pods_end_by_priority_and_the_host_is_held_until_all_is_told() {
    let mut scene = Scene::start(|_| ()).await;
    assert_eq!(scene.login.host().lengthened.unwrap().1, SECOND * 30, "5 s are too short");
    assert_eq!(scene.held(), 1);
    for (uid, priority, phase) in [
        ("a", 0, "Running"),
        ("b", -7, "Pending"),
        ("over", 0, "Succeeded"),
        ("critical", CRITICAL, "Running"),
    ] {
        scene.put(uid, priority, phase);
    }
    scene.login.say(true);
    scene.pass(1).await;
    assert!(scene.parts.standing.is_ending());
    assert_eq!(scene.told(), told([("a", 20), ("b", 20)]));
    assert_eq!(scene.said(), [("Shutdown".to_owned(), BEGUN.to_owned())]);
    scene.login.say(true);
    scene.end("a", 0);
    scene.put("b", -7, "Failed");
    scene.pass(2).await;
    assert_eq!(scene.told(), told([]), "what b held is not free");
    scene.parts.shelf.remove("b");
    scene.pass(1).await;
    assert_eq!(scene.told(), told([("critical", 10)]));
    scene.end("critical", CRITICAL);
    let key = PodKey { uid: "a".into(), namespace: "ns".into(), name: "a".into() };
    scene.api.state.lock().unwrap().failing = Some((1, 503));
    scene.parts.statuses.update(&key, PodStatus::default(), &PodStatus::default());
    tokio::time::sleep(SECOND / 10).await;
    assert_eq!((scene.held(), scene.times().1), (1, 0.0), "a status is to be written again");
    scene.parts.statuses.written().await;
    tokio::time::sleep(SECOND / 10).await;
    assert_eq!(scene.held(), 1, "the node's own was not told");
    scene.parts.standing.note_reported(true);
    scene.pass(1).await;
    assert_eq!(scene.held(), 0, "the host may go");
    let (start, end) = scene.times();
    assert!(end > start && end < start + 9.0, "{start} {end}");
    assert!(scene.parts.standing.is_ending() && scene.said().is_empty());
    // After the reboot.
    let kept = Record::read(scene.root.path());
    let meters = Meters::default();
    kept.tell(&meters);
    assert_eq!(meters.all(), scene.parts.meters.all());
}

#[tokio::test(start_paused = true)]
async fn no_bucket_takes_longer_than_it_may_and_an_empty_one_no_time() {
    let mut scene = Scene::start(|_| ()).await;
    scene.put("critical", CRITICAL, "Running");
    scene.login.say(true);
    scene.pass(1).await;
    assert_eq!(scene.told(), told([("critical", 10)]));
    scene.put("late", 0, "Running");
    scene.pass(8).await;
    assert_eq!(scene.held(), 1);
    scene.pass(17).await;
    assert_eq!((scene.held(), scene.told()), (0, told([])));

    let mut scene = Scene::start(|_| ()).await;
    for (uid, priority) in [("a", 0), ("critical", CRITICAL)] {
        scene.put(uid, priority, "Running");
    }
    scene.login.say(true);
    scene.pass(19).await;
    assert_eq!(scene.told(), told([("a", 20)]));
    scene.put("late", 0, "Running");
    scene.pass(2).await;
    assert_eq!(scene.told(), told([("critical", 10), ("late", 10)]));
    scene.pass(16).await;
    assert_eq!(scene.held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_pods_holds_the_host_until_it_is_known_to_go() {
    let mut scene = Scene::start(|_| ()).await;
    scene.login.say(true);
    scene.pass(1).await;
    assert_eq!(scene.held(), 1);
    scene.parts.standing.note_reported(true);
    scene.pass(1).await;
    assert_eq!((scene.held(), scene.told()), (0, told([])));

    let scene = Scene::start(|_| ()).await;
    scene.login.say(true);
    scene.pass(13).await;
    assert_eq!(scene.held(), 1);
    scene.pass(3).await;
    assert_eq!(scene.held(), 0, "nobody may be there to be told");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_is_called_off_ends_no_more_pods() {
    let mut scene = Scene::start(|_| ()).await;
    for (uid, priority) in [("a", 0), ("critical", CRITICAL)] {
        scene.put(uid, priority, "Running");
    }
    scene.login.say(false);
    scene.pass(1).await;
    assert_eq!(scene.said(), [], "nothing was called off");
    scene.login.say(true);
    scene.pass(5).await;
    assert_eq!(scene.told(), told([("a", 20)]));
    scene.login.say(false);
    scene.pass(60).await;
    assert_eq!((scene.told(), scene.held()), (told([]), 1));
    assert!(!scene.parts.standing.is_ending());
    let said: Vec<_> = scene.said().into_iter().map(|(_, message)| message).collect();
    assert_eq!(said, [BEGUN, CALLED_OFF]);
    scene.end("a", 0);
    scene.login.say(true);
    scene.pass(1).await;
    assert_eq!(scene.told(), told([("critical", 10)]), "and the next one begins");
}

#[tokio::test(start_paused = true)]
async fn a_logind_that_comes_back_is_held_again_and_the_lock_is_kept_meanwhile() {
    let scene = Scene::start(|_| ()).await;
    scene.login.host().is_away = true;
    scene.login.host().listeners.clear();
    for _ in 0..10 {
        scene.pass(1).await;
        assert_eq!(scene.held(), 1);
    }
    scene.login.host().is_away = false;
    scene.pass(20).await;
    assert_eq!((scene.held(), scene.login.host().connections), (1, 2));
    // What it said in between is heard of all the same.
    scene.login.host().is_preparing = true;
    scene.login.host().listeners.clear();
    scene.pass(2).await;
    assert!(scene.parts.standing.is_ending());
    // The ending goes on though the bus does not.
    scene.login.host().is_away = true;
    scene.login.host().listeners.clear();
    scene.parts.standing.note_reported(true);
    scene.pass(2).await;
    assert_eq!(scene.held(), 0);
    scene.login.host().is_away = false;
    scene.login.host().is_preparing = false;
    scene.pass(10).await;
    assert!(!scene.parts.standing.is_ending(), "called off while nobody listened");
    assert_eq!(scene.held(), 1);
}

#[tokio::test(start_paused = true)]
async fn trouble_is_told_once_and_tried_again() {
    let mut scene = Scene::start(|host| host.is_away = true).await;
    scene.pass(200).await;
    let expected = "a shutdown of the node would not wait for its pods: systemd-logind: cannot be \
                    reached: no such file";
    assert_eq!(scene.said(), [("NotEnforced".to_owned(), expected.to_owned())]);
    scene.login.host().is_stubborn = true;
    scene.login.host().is_away = false;
    scene.pass(200).await;
    let said = scene.said();
    let expected = "systemd-logind lets a shutdown wait for 5s at the most, and 30s are asked: set \
                    InhibitDelayMaxSec=30 in /etc/systemd/logind.conf, and see that no drop-in says less";
    assert!(said.len() == 1 && said[0].1.ends_with(expected), "{said:?}");
    assert_eq!(scene.held(), 0, "as upstream: not at all rather than in part");
    scene.login.host().longest = SECOND * 30;
    scene.pass(70).await;
    assert_eq!((scene.held(), scene.said()), (1, vec![]));
}
