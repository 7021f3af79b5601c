//! The items and how each is judged. Pure. Numbers are the benchmark's, the words are ours.

use std::time::Duration;

use serde_json::Value;

use super::facts::{Facts, Owned};
use crate::settings::duration;

/// How an item came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It holds.
    Pass,
    /// It does not.
    Fail,
    /// Somebody has to look.
    Warn,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pass => "PASS",
            Self::Fail => "FAIL",
            Self::Warn => "WARN",
        }
    }
}

/// What is asked of a node.
pub(super) struct Item {
    pub(super) number: &'static str,
    pub(super) title: &'static str,
    /// What to do where it does not hold.
    pub(super) mend: &'static str,
    check: fn(&Facts) -> (State, String),
}

/// An item with how it came out.
pub(super) struct Verdict {
    pub(super) item: &'static Item,
    pub(super) state: State,
    pub(super) found: String,
}

/// Judges every item.
pub(super) fn judge(facts: &Facts) -> Vec<Verdict> {
    let one = |item: &'static Item| {
        let (state, found) = (item.check)(facts);
        Verdict { item, state, found }
    };
    ITEMS.iter().map(one).collect()
}

const MEND_MODE: &str = "chmod 600 the files named";
const MEND_OWNER: &str = "chown root:root the files named";

static ITEMS: [Item; 25] = [
    Item {
        number: "4.1.1",
        title: "only root reads and changes the service's unit",
        mend: MEND_MODE,
        check: |facts| private(&facts.units),
    },
    Item {
        number: "4.1.2",
        title: "the service's unit is root's",
        mend: MEND_OWNER,
        check: |facts| owner(&facts.units),
    },
    Item {
        number: "4.1.3",
        title: "only root reads and changes the proxy's kubeconfig (here the agent's)",
        mend: MEND_MODE,
        check: |facts| private(&facts.kubeconfigs),
    },
    Item {
        number: "4.1.4",
        title: "the proxy's kubeconfig is root's",
        mend: MEND_OWNER,
        check: |facts| owner(&facts.kubeconfigs),
    },
    Item {
        number: "4.1.5",
        title: "only root reads and changes the agent's kubeconfig",
        mend: MEND_MODE,
        check: |facts| private(&facts.kubeconfigs),
    },
    Item {
        number: "4.1.6",
        title: "the agent's kubeconfig is root's",
        mend: MEND_OWNER,
        check: |facts| owner(&facts.kubeconfigs),
    },
    Item {
        number: "4.1.7",
        title: "only root changes the authority of client certificates",
        mend: "chmod 644 the files named",
        check: |facts| modes(&facts.client_cas, 0o644),
    },
    Item {
        number: "4.1.8",
        title: "the authority of client certificates is root's",
        mend: MEND_OWNER,
        check: |facts| owner(&facts.client_cas),
    },
    Item {
        number: "4.1.9",
        title: "only root reads and changes the configuration",
        mend: MEND_MODE,
        check: |facts| private(&facts.configurations),
    },
    Item {
        number: "4.1.10",
        title: "the configuration is root's",
        mend: MEND_OWNER,
        check: |facts| owner(&facts.configurations),
    },
    Item {
        number: "4.2.1",
        title: "nobody is let in anonymously",
        mend: "leave authentication.anonymous.enabled out, or set it to false",
        check: |facts| {
            unless(facts, "/authentication/anonymous/enabled", |v| *v == Value::Bool(true))
        },
    },
    Item {
        number: "4.2.2",
        title: "requests need a right",
        mend: "leave authorization.mode out, or set it to Webhook",
        check: |facts| unless(facts, "/authorization/mode", |v| *v != "Webhook"),
    },
    Item {
        number: "4.2.3",
        title: "client certificates are believed by one authority",
        mend: "set authentication.x509.clientCAFile to a file that is there",
        check: client_ca,
    },
    Item {
        number: "4.2.4",
        title: "there is no port without authentication",
        mend: "leave readOnlyPort out, and end what listens on port 10255",
        check: |facts| match facts.ports.contains(&10255) {
            true => (State::Fail, "port 10255 is open".to_owned()),
            false => unless(facts, "/readOnlyPort", |v| *v != 0),
        },
    },
    Item {
        number: "4.2.5",
        title: "streams that carry nothing end",
        mend: "leave streamingConnectionIdleTimeout out, or set it to a day at most",
        check: |facts| unless(facts, "/streamingConnectionIdleTimeout", is_endless),
    },
    Item {
        number: "4.2.6",
        title: "the agent keeps its packet rules itself",
        mend: "leave makeIPTablesUtilChains out: berth's rules are its own",
        check: |facts| unless(facts, "/makeIPTablesUtilChains", |v| *v == Value::Bool(false)),
    },
    Item {
        number: "4.2.7",
        title: "the node has the host's name",
        mend: "make sure that certificates fit the name that is given",
        check: |facts| match ["--node-name", "--hostname-override"]
            .into_iter()
            .find(|flag| facts.command.contains(flag))
        {
            Some(flag) => (State::Warn, format!("the service has {flag}")),
            None => (State::Pass, "no other name is given".to_owned()),
        },
    },
    Item {
        number: "4.2.8",
        title: "events are neither lost nor a flood",
        mend: "leave eventRecordQPS out: events are held back as upstream's spam filter does",
        check: |facts| match facts.written.get("eventRecordQPS") {
            Some(value) => (State::Warn, format!("eventRecordQPS is {value}, without effect")),
            None => (State::Pass, "bounded for each object and in all".to_owned()),
        },
    },
    Item {
        number: "4.2.9",
        title: "the node's API shows a certificate, whose key only root reads",
        mend: "set tlsCertFile and tlsPrivateKeyFile, or serverTLSBootstrap, or neither; chmod 600 keys",
        check: serving,
    },
    Item {
        number: "4.2.10",
        title: "the client certificate is renewed",
        mend: "leave rotateCertificates out, or set it to true",
        check: |facts| unless(facts, "/rotateCertificates", |v| *v == Value::Bool(false)),
    },
    Item {
        number: "4.2.11",
        title: "the serving certificate is renewed",
        mend: "leave the gate RotateKubeletServerCertificate out, or set it to true",
        check: |facts| {
            let gate = "/featureGates/RotateKubeletServerCertificate";
            unless(facts, gate, |v| *v == Value::Bool(false))
        },
    },
    Item {
        number: "4.2.12",
        title: "only strong ciphers are spoken",
        mend: "leave tlsCipherSuites out, or name suites with ECDHE and AEAD",
        check: |facts| unless(facts, "/tlsCipherSuites", has_weak_suites),
    },
    Item {
        number: "4.2.13",
        title: "a pod's processes are bounded",
        mend: "leave podPidsLimit out, or set it above 0",
        check: |facts| {
            unless(facts, "/podPidsLimit", |v| v.as_i64().is_none_or(|limit| limit <= 0))
        },
    },
    Item {
        number: "4.2.14",
        title: "pods run under a seccomp profile",
        mend: "leave seccompDefault out, or set it to true",
        check: |facts| unless(facts, "/seccompDefault", |v| *v == Value::Bool(false)),
    },
    Item {
        number: "4.3.1",
        title: "the proxy's numbers are for this host only",
        mend: "end what listens on port 10249: berth's proxy serves no metrics of its own",
        check: |facts| match facts.ports.contains(&10249) {
            true => (State::Fail, "port 10249 is open".to_owned()),
            false => (State::Pass, "port 10249 is not open".to_owned()),
        },
    },
];

/// Passes unless the field is there and `wrong`.
fn unless(facts: &Facts, pointer: &str, wrong: impl Fn(&Value) -> bool) -> (State, String) {
    let field = pointer.trim_start_matches('/').replace('/', ".");
    let mut value = None;
    for (depth, part) in pointer.trim_start_matches('/').split('/').enumerate() {
        value = match depth {
            0 => facts.written.get(part),
            _ => value.and_then(|value| value.get(part)),
        };
    }
    match value.filter(|value| !value.is_null()) {
        None => (State::Pass, format!("{field} is not set: the default holds")),
        Some(value) if wrong(value) => (State::Fail, format!("{field} is {value}")),
        Some(value) => (State::Pass, format!("{field} is {value}")),
    }
}

fn private(files: &[Owned]) -> (State, String) {
    modes(files, 0o600)
}

/// Passes where no file has a bit that is not in `most`.
fn modes(files: &[Owned], most: u32) -> (State, String) {
    hold(files, |file| (file.mode & !most & 0o7777 != 0).then(|| format!("is {:o}", file.mode)))
}

fn owner(files: &[Owned]) -> (State, String) {
    hold(files, |file| {
        (file.uid != 0 || file.gid != 0).then(|| format!("is {}:{}'s", file.uid, file.gid))
    })
}

fn hold(files: &[Owned], fault: impl Fn(&Owned) -> Option<String>) -> (State, String) {
    let faults: Vec<_> = files
        .iter()
        .filter_map(|file| Some(format!("{} {}", file.path.display(), fault(file)?)))
        .collect();
    match (files, faults.is_empty()) {
        ([], _) => (State::Pass, "there is no such file".to_owned()),
        (files, true) => {
            let names: Vec<_> = files.iter().map(|file| file.path.display().to_string()).collect();
            (State::Pass, names.join(" "))
        }
        _ => (State::Fail, faults.join("; ")),
    }
}

/// Without a file of that name the cluster's own authority is believed, which the agent keeps.
fn client_ca(facts: &Facts) -> (State, String) {
    let field = "/authentication/x509/clientCAFile";
    match unless(facts, field, |v| *v != "" && facts.client_cas.is_empty()) {
        (State::Fail, found) => (State::Fail, format!("{found}, which is not there")),
        passed => passed,
    }
}

fn serving(facts: &Facts) -> (State, String) {
    let is_set = |name: &str| facts.written.get(name).is_some_and(|v| !v.is_null() && v != "");
    match (is_set("tlsCertFile"), is_set("tlsPrivateKeyFile")) {
        (true, false) => return (State::Fail, "tlsPrivateKeyFile is not set".to_owned()),
        (false, true) => return (State::Fail, "tlsCertFile is not set".to_owned()),
        _ => {}
    }
    match private(&facts.keys) {
        (State::Pass, _) if facts.keys.is_empty() => {
            (State::Pass, "a key is made, for root alone, where none is given".to_owned())
        }
        judged => judged,
    }
}

/// Zero, which kubeadm writes, is the usual four hours for upstream and here.
fn is_endless(value: &Value) -> bool {
    let given = value.as_str().and_then(duration);
    given.is_none_or(|given| given > Duration::from_secs(24 * 3600))
}

fn has_weak_suites(value: &Value) -> bool {
    let strong = |name: &Value| {
        let name = name.as_str().unwrap_or_default();
        let ephemeral = name.starts_with("TLS_ECDHE_") || name.starts_with("TLS_AES_");
        let ephemeral = ephemeral || name.starts_with("TLS_CHACHA20_");
        ephemeral && (name.contains("_GCM_") || name.contains("CHACHA20_POLY1305"))
    };
    value.as_array().is_none_or(|all| !all.iter().all(strong))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(path: &str, mode: u32) -> Owned {
        Owned { path: path.into(), mode, uid: 0, gid: 0 }
    }

    /// A node as berth makes it.
    fn usual() -> Facts {
        Facts {
            units: vec![file("/unit", 0o600)],
            command: "ExecStart=\"/usr/local/bin/berth\" \"agent\"".to_owned(),
            kubeconfigs: vec![file("/kubeconfig", 0o600)],
            client_cas: vec![file("/ca", 0o644)],
            configurations: vec![file("/configuration", 0o600)],
            keys: vec![file("/key", 0o600)],
            ports: [10250].into(),
            ..Facts::default()
        }
    }

    fn state(facts: &Facts, number: &str) -> State {
        let mut verdicts = judge(facts).into_iter();
        verdicts.find(|verdict| verdict.item.number == number).unwrap().state
    }

    #[test]
    fn what_berth_runs_by_itself_passes_every_item() {
        for facts in [usual(), Facts::default()] {
            for verdict in judge(&facts) {
                assert_eq!(
                    verdict.state,
                    State::Pass,
                    "{}: {}",
                    verdict.item.number,
                    verdict.found
                );
            }
        }
    }

    /// What is wrong with a file.
    type Wrong = fn(&mut Owned);

    #[test]
    fn each_item_about_files_fails_by_a_mode_or_an_owner() {
        let readable: Wrong = |file| file.mode = 0o640;
        let writable: Wrong = |file| file.mode = 0o664;
        let foreign: Wrong = |file| file.uid = 1000;
        let grouped: Wrong = |file| file.gid = 1000;
        type Pick = fn(&mut Facts) -> &mut Vec<Owned>;
        let cases: [(&str, Pick, &[Wrong]); 11] = [
            ("4.1.1", |f| &mut f.units, &[readable, writable]),
            ("4.1.2", |f| &mut f.units, &[foreign, grouped]),
            ("4.1.3", |f| &mut f.kubeconfigs, &[readable]),
            ("4.1.4", |f| &mut f.kubeconfigs, &[foreign, grouped]),
            ("4.1.5", |f| &mut f.kubeconfigs, &[readable]),
            ("4.1.6", |f| &mut f.kubeconfigs, &[foreign, grouped]),
            ("4.1.7", |f| &mut f.client_cas, &[writable]),
            ("4.1.8", |f| &mut f.client_cas, &[foreign, grouped]),
            ("4.1.9", |f| &mut f.configurations, &[readable]),
            ("4.1.10", |f| &mut f.configurations, &[foreign, grouped]),
            ("4.2.9", |f| &mut f.keys, &[readable, writable]),
        ];
        for (number, pick, faults) in cases {
            for fault in faults {
                let mut facts = usual();
                fault(&mut pick(&mut facts)[0]);
                assert_eq!(state(&facts, number), State::Fail, "{number}");
            }
        }
    }

    #[test]
    fn each_item_about_the_configuration_fails_by_a_field() {
        for (number, expected, written) in [
            ("4.2.1", State::Fail, json!({"authentication": {"anonymous": {"enabled": true}}})),
            ("4.2.2", State::Fail, json!({"authorization": {"mode": "AlwaysAllow"}})),
            ("4.2.3", State::Fail, json!({"authentication": {"x509": {"clientCAFile": "/no"}}})),
            ("4.2.4", State::Fail, json!({"readOnlyPort": 10255})),
            ("4.2.5", State::Fail, json!({"streamingConnectionIdleTimeout": "87600h"})),
            ("4.2.6", State::Fail, json!({"makeIPTablesUtilChains": false})),
            ("4.2.8", State::Warn, json!({"eventRecordQPS": 0})),
            ("4.2.9", State::Fail, json!({"tlsCertFile": "/cert"})),
            ("4.2.9", State::Fail, json!({"tlsPrivateKeyFile": "/key"})),
            ("4.2.10", State::Fail, json!({"rotateCertificates": false})),
            (
                "4.2.11",
                State::Fail,
                json!({"featureGates": {"RotateKubeletServerCertificate": false}}),
            ),
            (
                "4.2.12",
                State::Fail,
                json!({"tlsCipherSuites": ["TLS_RSA_WITH_AES_128_GCM_SHA256"]}),
            ),
            ("4.2.13", State::Fail, json!({"podPidsLimit": -1})),
            ("4.2.14", State::Fail, json!({"seccompDefault": false})),
        ] {
            let mut facts = usual();
            facts.client_cas.retain(|_| number != "4.2.3");
            facts.written = written.as_object().unwrap().clone();
            let verdicts = judge(&facts);
            for verdict in verdicts {
                let expected = if verdict.item.number == number { expected } else { State::Pass };
                assert_eq!(verdict.state, expected, "{}: {written}", verdict.item.number);
            }
        }
    }

    #[test]
    fn what_listens_and_what_the_service_is_called_with_counts() {
        for (number, port) in [("4.2.4", 10255), ("4.3.1", 10249)] {
            let mut facts = usual();
            facts.ports.insert(port);
            assert_eq!(state(&facts, number), State::Fail);
        }
        for flag in ["--node-name", "--hostname-override"] {
            let mut facts = usual();
            facts.command.push_str(flag);
            assert_eq!(state(&facts, "4.2.7"), State::Warn);
        }
    }

    #[test]
    fn what_is_written_and_harmless_passes() {
        let written = json!({
            "authentication": {"anonymous": {"enabled": false}, "x509": {"clientCAFile": "/ca"}},
            "authorization": {"mode": "Webhook"},
            "readOnlyPort": 0,
            "streamingConnectionIdleTimeout": "4h0m0s",
            "tlsCertFile": "/cert",
            "tlsPrivateKeyFile": "/key",
            "tlsCipherSuites": ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"],
            "podPidsLimit": 100,
        });
        let mut facts = usual();
        facts.written = written.as_object().unwrap().clone();
        for verdict in judge(&facts) {
            assert_eq!(verdict.state, State::Pass, "{}: {}", verdict.item.number, verdict.found);
        }
    }

    #[test]
    fn items_are_numbered_once_and_say_how_to_mend() {
        let mut numbers: Vec<_> = ITEMS.iter().map(|item| item.number).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), ITEMS.len());
        assert!(ITEMS.iter().all(|item| !item.mend.is_empty() && !item.title.is_empty()));
    }
}
