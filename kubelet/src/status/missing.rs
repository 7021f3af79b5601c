//! What a pod that is over says of containers that nobody saw end: that they failed, with the reason
//! `ContainerStatusUnknown`. Serves upstream's `TerminatePod`: a pod never looks as if it had done well
//! because something was not seen. Pure.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateTerminated, ContainerStatus,
};

use crate::worker::members::{self, Role};
use crate::worker::runs::UNKNOWN_EXIT_CODE;

const MESSAGE: &str = "The container could not be located when the pod was terminated";

/// Fills in the ends of containers that began, or would have, when the pod was over. Those that were
/// never due keep waiting: the init container before them says why.
pub(super) fn fill(
    specs: &[Container],
    inits: &mut [ContainerStatus],
    apps: &mut [ContainerStatus],
) {
    let is_initialized = is_initialized(specs, inits, apps);
    // Those that were tried, and the first one in any case.
    let tried = inits.iter().rposition(|status| !is_waiting(status) || has_ended_before(status));
    let tried = tried.map_or(usize::from(!inits.is_empty()), |last| last + 1);
    let apps = if is_initialized { apps } else { &mut [] };
    for status in inits[..tried].iter_mut().chain(apps) {
        let has_ended = status.state.as_ref().is_some_and(|state| state.terminated.is_some());
        if !has_ended {
            status.ready = false;
            status.state = Some(ContainerState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: UNKNOWN_EXIT_CODE,
                    reason: Some("ContainerStatusUnknown".to_owned()),
                    message: Some(MESSAGE.to_owned()),
                    ..ContainerStateTerminated::default()
                }),
                ..ContainerState::default()
            });
        }
    }
}

fn is_waiting(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.waiting.is_some())
}

fn has_ended_before(status: &ContainerStatus) -> bool {
    status.last_state.as_ref().is_some_and(|state| state.terminated.is_some())
}

/// Whether the app containers were due.
fn is_initialized(
    specs: &[Container],
    inits: &[ContainerStatus],
    apps: &[ContainerStatus],
) -> bool {
    let (Some(spec), Some(last)) = (specs.last(), inits.last()) else { return true };
    if apps.iter().any(|status| !is_waiting(status) || has_ended_before(status)) {
        return true;
    }
    let state = last.state.as_ref();
    match members::role_of_init(spec) {
        Role::Sidecar => {
            state.is_some_and(|state| state.running.is_some()) && last.started == Some(true)
        }
        _ => {
            let ends = [state, last.last_state.as_ref()];
            let codes =
                ends.into_iter().filter_map(|state| Some(state?.terminated.as_ref()?.exit_code));
            codes.into_iter().any(|code| code == 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The states of init and app containers as letters: `w` waits, `r` runs, `0` and `1` have ended,
    /// `b` waits between two runs; `?` is what is filled in.
    fn filled(inits: &str, apps: &str) -> (String, String) {
        let read = |letters: &str| -> Vec<ContainerStatus> {
            let status = |letter: char| -> Value {
                let (state, last) = match letter {
                    'r' => (json!({"running": {}}), json!({})),
                    '0' => (json!({"terminated": {"exitCode": 0}}), json!({})),
                    '1' => (json!({"terminated": {"exitCode": 1}}), json!({})),
                    'b' => (json!({"waiting": {}}), json!({"terminated": {"exitCode": 1}})),
                    _ => (json!({"waiting": {}}), json!({})),
                };
                json!({"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                    "state": state, "lastState": last})
            };
            letters.chars().map(|letter| serde_json::from_value(status(letter)).unwrap()).collect()
        };
        let write = |statuses: &[ContainerStatus]| -> String {
            let letter = |status: &ContainerStatus| {
                let state = status.state.as_ref().unwrap();
                match &state.terminated {
                    Some(ended) if ended.reason.as_deref() == Some("ContainerStatusUnknown") => {
                        assert!(!status.ready);
                        '?'
                    }
                    Some(ended) => {
                        if ended.exit_code == 0 {
                            '0'
                        } else {
                            '1'
                        }
                    }
                    None => 'w',
                }
            };
            statuses.iter().map(letter).collect()
        };
        let (mut init, mut app) = (read(inits), read(apps));
        let specs = vec![Container::default(); init.len()];
        fill(&specs, &mut init, &mut app);
        (write(&init), write(&app))
    }

    #[test]
    fn what_was_due_and_not_seen_to_end_has_failed() {
        for (inits, apps, expected_inits, expected_apps) in [
            ("", "w", "", "?"),
            ("", "wb0", "", "??0"),
            ("", "01", "", "01"),
            ("w", "w", "?", "w"),
            ("1w", "w", "1w", "w"),
            ("0b", "ww", "0?", "ww"),
            ("0w", "w", "0w", "w"),
            ("00", "ww", "00", "??"),
            ("0w", "0w", "0w", "0?"),
            ("0w", "b", "0w", "?"),
        ] {
            let expected = (expected_inits.to_owned(), expected_apps.to_owned());
            assert_eq!(filled(inits, apps), expected, "{inits} {apps}");
        }
    }
}
