//! Hooks: programs of the specification that run at points of a container's life, told its state.
//!
//! | kind | runs | where its path is looked up | its directory | a failure |
//! |---|---|---|---|---|
//! | prestart, createRuntime | in the host, before the pivot | host | the bundle | undoes the creation |
//! | createContainer | the same, in the container's namespaces | host | the root | undoes the creation |
//! | startContainer | before the command, in the container | container | the command's | ends the container |
//! | poststart | after the command is executed | host | the bundle | ends the container |
//! | poststop | after the deletion | host | the caller's | is told, and the next one runs |
//!
//! A hook gets the state on its standard input, and just the environment it names; one in the container
//! that names none has that of the container's process. What it prints is
//! kept for the error. OCI runtime spec, `config.md`, POSIX-platform Hooks; `runtime.md`, Lifecycle.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use oci_spec::runtime::{Hook as Specified, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::{Doing, Error, Result};
use crate::clock;

/// More of what a hook prints is thrown away.
const MAX_OUTPUT: usize = 16 << 10;

/// A hook, checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hook {
    /// `poststart hook #0`, for errors.
    #[serde(rename = "field")]
    name: String,
    path: PathBuf,
    arguments: Vec<String>,
    /// Absent where the specification speaks of none.
    environment: Option<Vec<(String, String)>>,
    timeout_ms: Option<u64>,
}

/// The hooks of a container, by kind, each in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hooks {
    /// prestart, then createRuntime.
    pub(crate) create_runtime: Vec<Hook>,
    pub(crate) create_container: Vec<Hook>,
    pub(crate) start_container: Vec<Hook>,
    pub(crate) poststart: Vec<Hook>,
    pub(crate) poststop: Vec<Hook>,
}

impl Hooks {
    /// Whether there are some that run before the command is executed.
    pub(super) fn run_while_made(&self) -> bool {
        let kinds = [&self.create_runtime, &self.create_container, &self.start_container];
        kinds.iter().any(|kind| !kind.is_empty())
    }
}

/// What hooks and listeners are told of a container besides what changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) version: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The state of the specification.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'a str,
    /// In the host's PID namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl Subject {
    /// The state at a moment.
    pub(crate) fn state<'a>(&'a self, status: &'a str, pid: Option<i32>) -> State<'a> {
        let Self { version, id, bundle, annotations } = self;
        State { oci_version: version, id, status, pid, bundle, annotations }
    }
}

/// The hooks of a specification.
pub(crate) fn plan(spec: &Spec) -> Result<Hooks> {
    let Some(hooks) = spec.hooks() else { return Ok(Hooks::default()) };
    // Deprecated, but callers that still name these expect them to run.
    #[allow(deprecated)]
    let prestart = hooks.prestart();
    let mut create_runtime = list("prestart", prestart)?;
    create_runtime.extend(list("createRuntime", hooks.create_runtime())?);
    Ok(Hooks {
        create_runtime,
        create_container: list("createContainer", hooks.create_container())?,
        start_container: list("startContainer", hooks.start_container())?,
        poststart: list("poststart", hooks.poststart())?,
        poststop: list("poststop", hooks.poststop())?,
    })
}

fn list(kind: &str, hooks: &Option<Vec<Specified>>) -> Result<Vec<Hook>> {
    let hooks = hooks.iter().flatten().enumerate();
    hooks.map(|(index, hook)| parse((kind, index), hook)).collect()
}

fn parse((kind, index): (&str, usize), hook: &Specified) -> Result<Hook> {
    let refuse = |name: &str, reason: &str| {
        Err(Error::invalid(format!("hooks.{kind}[{index}].{name}"), reason))
    };
    if !hook.path().is_absolute() {
        return refuse("path", "is not an absolute path");
    }
    let timeout_ms = match hook.timeout() {
        None => None,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Some(seconds.saturating_mul(1000)),
            _ => return refuse("timeout", "is not greater than zero"),
        },
    };
    let arguments = hook.args().clone().unwrap_or_default();
    let variables = hook.env().iter().flatten();
    if variables.clone().chain(&arguments).any(|text| text.contains('\0')) {
        return refuse("args", "or env hold a NUL byte");
    }
    let environment = hook.env().as_ref().map(|_| variables.filter_map(|one| pair(one)).collect());
    let name = format!("{kind} hook #{index}");
    Ok(Hook { path: hook.path().clone(), arguments, environment, timeout_ms, name })
}

/// Name and value of a variable that has a name.
fn pair(variable: &str) -> Option<(String, String)> {
    let (name, value) = variable.split_once('=').filter(|(name, _)| !name.is_empty())?;
    Some((name.to_owned(), value.to_owned()))
}

/// What hooks are run with.
#[derive(Debug, Default)]
struct Surroundings<'a> {
    /// That of hooks which name none.
    environment: Vec<(String, String)>,
    /// Absent, it is this process' own.
    directory: Option<&'a Path>,
}

/// Runs hooks one after the other, up to the first that fails.
pub(crate) fn run(hooks: &[Hook], state: &State<'_>) -> Result<()> {
    run_in(hooks, state, &Surroundings::default())
}

/// The same in the container's bundle.
pub(crate) fn run_in_bundle(hooks: &[Hook], state: &State<'_>) -> Result<()> {
    let directory = Some(state.bundle);
    run_in(hooks, state, &Surroundings { directory, ..Surroundings::default() })
}

/// The same; those that name no environment get this one.
pub(super) fn run_with(hooks: &[Hook], state: &State<'_>, environment: &[String]) -> Result<()> {
    let environment = environment.iter().filter_map(|variable| pair(variable)).collect();
    run_in(hooks, state, &Surroundings { environment, directory: None })
}

fn run_in(hooks: &[Hook], state: &State<'_>, surroundings: &Surroundings<'_>) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    // Plain strings and numbers: encoding cannot fail.
    let state = serde_json::to_vec(state).unwrap_or_default();
    hooks.iter().try_for_each(|hook| run_one(hook, &state, surroundings))
}

/// Runs all hooks, whatever becomes of them; what failed is returned.
pub(crate) fn run_all(hooks: &[Hook], state: &State<'_>) -> Vec<Error> {
    hooks.iter().filter_map(|hook| run(std::slice::from_ref(hook), state).err()).collect()
}

fn run_one(hook: &Hook, state: &[u8], surroundings: &Surroundings<'_>) -> Result<()> {
    let operation = || format!("error running {}: execute {}", hook.name, hook.path.display());
    let environment = hook.environment.as_deref().unwrap_or(&surroundings.environment);
    let (output, writer) = std::io::pipe().doing(operation)?;
    let mut command = Command::new(&hook.path);
    if let [name, arguments @ ..] = hook.arguments.as_slice() {
        command.arg0(name).args(arguments);
    }
    if let Some(directory) = surroundings.directory {
        command.current_dir(directory);
    }
    let errors = writer.try_clone().doing(operation)?;
    command
        .env_clear()
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(writer)
        .stderr(errors);
    let mut child = command.spawn().doing(operation)?;
    // Its copies of the pipe's end would keep it open.
    drop(command);
    let ended = attend(hook, &mut child, state, &OwnedFd::from(output));
    if ended.is_err() {
        // Our unreaped child.
        let _ = child.kill();
    }
    let status = child.wait().doing(operation)?;
    let printed = ended?;
    if status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&printed);
    let separator = if printed.trim().is_empty() { "" } else { ": " };
    Err(hook.failure(format!("{}{separator}{}", describe(status), printed.trim())))
}

/// How a hook ended, in the words that runc's callers know.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(libc::SIGSYS)) => "signal: bad system call".to_owned(),
        (None, Some(libc::SIGKILL)) => "signal: killed".to_owned(),
        (None, Some(libc::SIGTERM)) => "signal: terminated".to_owned(),
        (None, Some(libc::SIGSEGV)) => "signal: segmentation fault".to_owned(),
        (None, _) => status.to_string(),
    }
}

impl Hook {
    fn failure(&self, reason: String) -> Error {
        Error::invalid(format!("error running {}", self.name), reason)
    }
}

/// Feeds a hook its state and reads what it prints until it ends.
fn attend(hook: &Hook, child: &mut Child, state: &[u8], output: &OwnedFd) -> Result<Vec<u8>> {
    let operation = || format!("error running {}: attend to {}", hook.name, hook.path.display());
    let pidfd = pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty());
    let pidfd = pidfd.doing(operation)?;
    let mut input = child.stdin.take();
    if let Some(input) = &input {
        rustix::io::ioctl_fionbio(input, true).doing(operation)?;
    }
    rustix::io::ioctl_fionbio(output, true).doing(operation)?;
    let deadline = hook.timeout_ms.map(|ms| clock::monotonic_ms().saturating_add(ms));
    let (mut rest, mut printed) = (state, Vec::new());
    loop {
        if let Some(pipe) = &mut input {
            match pipe.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // It does not care.
                Err(_) => rest = &[],
            }
            if rest.is_empty() {
                input = None;
            }
        }
        let open = read(output, &mut printed).doing(operation)?;
        let left = deadline.map(|at| at.saturating_sub(clock::monotonic_ms()));
        if left == Some(0) {
            let reason =
                format!("did not end within its timeout of {} ms", hook.timeout_ms.unwrap_or(0));
            return Err(hook.failure(reason));
        }
        let mut waiting = vec![PollFd::new(&pidfd, PollFlags::IN)];
        if open {
            waiting.push(PollFd::new(output, PollFlags::IN));
        }
        if let Some(pipe) = &input {
            waiting.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::OUT));
        }
        let left = left.map(|ms| Timespec {
            tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ms % 1000).unwrap_or(0) * 1_000_000,
        });
        rustix::io::retry_on_intr(|| poll(&mut waiting, left.as_ref())).doing(operation)?;
        if !waiting[0].revents().is_empty() {
            read(output, &mut printed).doing(operation)?;
            return Ok(printed);
        }
    }
}

/// Reads what there is; whether there may be more.
fn read(output: &OwnedFd, printed: &mut Vec<u8>) -> Result<bool, Errno> {
    let mut chunk = [0; 4096];
    loop {
        match rustix::io::read(output, &mut chunk) {
            Ok(0) => return Ok(false),
            Ok(count) => {
                let room = MAX_OUTPUT.saturating_sub(printed.len());
                printed.extend_from_slice(&chunk[..count.min(room)]);
            }
            Err(Errno::AGAIN) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn planned(hooks: Value) -> Result<Hooks> {
        let spec = json!({"ociVersion": "1.2.0", "hooks": hooks});
        plan(&serde_json::from_value(spec).unwrap())
    }

    fn run_script(script: &str, timeout: Value) -> Result<()> {
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"], "timeout": timeout});
        let hooks = planned(json!({"poststart": [hook]})).unwrap();
        let subject = Subject { id: "c".to_owned(), ..Subject::default() };
        run(&hooks.poststart, &subject.state("running", Some(7)))
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_the_field_s_name() {
        for (hooks, message) in [
            (
                json!({"poststop": [{"path": "/a"}, {"path": "b"}]}),
                "hooks.poststop[1].path: is not an absolute path",
            ),
            (
                json!({"startContainer": [{"path": "/a", "timeout": 0}]}),
                "hooks.startContainer[0].timeout: is not greater than zero",
            ),
            (
                json!({"createContainer": [{"path": "/a", "timeout": -3}]}),
                "hooks.createContainer[0].timeout: is not greater than zero",
            ),
        ] {
            assert_eq!(planned(hooks).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn prestart_hooks_come_before_those_of_the_runtime() {
        let hooks =
            planned(json!({"createRuntime": [{"path": "/b"}], "prestart": [{"path": "/a"}]}));
        let names: Vec<String> =
            hooks.unwrap().create_runtime.into_iter().map(|hook| hook.name).collect();
        assert_eq!(names, ["prestart hook #0", "createRuntime hook #0"]);
    }

    #[test]
    fn a_hook_gets_the_state_and_its_own_environment_alone() {
        let script = r#"test "$(cat)" = '{"ociVersion":"","id":"c","status":"running","pid":7,"bundle":""}' || exit 3
                        test "$A" = b && test -z "$HOME" || exit 4"#;
        run_script(script, Value::Null).unwrap();
    }

    #[test]
    fn what_a_failing_hook_prints_is_in_the_error() {
        let error = run_script("echo why; echo because >&2; exit 5", Value::Null).unwrap_err();
        assert_eq!(
            error.to_string(),
            "error running poststart hook #0: exit status 5: why\nbecause"
        );
        let error = run_script("head -c 1000000 /dev/zero; exit 1", Value::Null).unwrap_err();
        assert!(error.to_string().len() < 2 * MAX_OUTPUT);
    }

    #[test]
    fn a_hook_that_names_no_environment_has_that_of_the_process_it_is_run_for() {
        let script = "test \"$A$B\" = x || exit 3";
        let named = json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["B=x"]});
        let unnamed = json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        let hooks = planned(json!({"startContainer": [named, unnamed]})).unwrap();
        let subject = Subject::default();
        let (state, environment) = (subject.state("created", None), ["A=x".to_owned()]);
        run_with(&hooks.start_container, &state, &environment).unwrap();
        let error = run(&hooks.start_container, &state).unwrap_err();
        assert_eq!(error.to_string(), "error running startContainer hook #1: exit status 3");
        let error = run_script("kill -SYS $$", Value::Null).unwrap_err();
        assert!(error.to_string().ends_with("signal: bad system call"), "{error}");
    }

    #[test]
    fn a_hook_that_leaves_somebody_behind_is_not_waited_for() {
        run_script("sleep 5 &", json!(3)).unwrap();
    }

    #[test]
    fn a_hook_is_killed_at_its_timeout() {
        let before = clock::monotonic_ms();
        let error = run_script("exec sleep 20", json!(1)).unwrap_err();
        assert!(error.to_string().contains("timeout of 1000 ms"), "{error}");
        assert!(clock::monotonic_ms() - before < 10_000);
    }

    #[test]
    fn a_long_state_does_not_block_a_hook_that_does_not_read_it() {
        let annotations = BTreeMap::from([("a".to_owned(), "b".repeat(1 << 20))]);
        let subject = Subject { annotations, ..Subject::default() };
        let hooks = planned(
            json!({"poststop": [{"path": "/bin/true"}, {"path": "/bin/false"}, {"path": "/none"}]}),
        );
        let errors = run_all(&hooks.unwrap().poststop, &subject.state("stopped", None));
        assert_eq!(errors.len(), 2);
    }
}
