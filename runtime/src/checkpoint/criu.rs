//! Running criu(8): its command line (pure), the moment at which the container stands still, its end.
//!
//! ```text
//! start ─► seize, dump ─► post-dump ──(one byte)──► is_stopped ─► go_on ─► resume ─► ended
//!             └─ refused: resume ─► ended
//! ```
//! Once it has dumped, criu runs its action script while the container stands still: the script tells so
//! by a byte on criu's output and waits for the end of criu's input, so that what the container wrote can
//! be read as of the same moment. An agent that ends closes that input, and the container goes on.
//!
//! criu is never killed, by no deadline either: it works inside the container's processes, and one whose
//! helper code is left in it does not go on. It may take [`SEIZE_SECONDS`] to stop the processes, gives
//! up by itself and lets them go on. For the same reason the cgroup freezer is not used: what dies with
//! a frozen cgroup leaves it frozen, whereas the kernel frees a process whose tracer dies.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use rustix::fs::{Access, access};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::Error;

/// Where criu finds the programs that it runs itself: `tar` for what is in memory.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long criu may try to stop the processes.
const SEIZE_SECONDS: u64 = 10;
/// How much of a log's end is searched for errors.
const LOG_TAIL_BYTES: u64 = 256 << 10;
/// How many errors are told, and how much of each.
const MAX_ERRORS: usize = 3;
const MAX_ERROR_CHARS: usize = 300;
/// An error that criu goes on after: it would like more descriptors.
const HARMLESS: &str = "RLIMIT_NOFILE";

/// What criu runs once it has dumped. `$PPID` is criu, whose input and output are pipes of the agent.
const HOLD: &str = r#"#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
exec < "/proc/$PPID/fd/0" > "/proc/$PPID/fd/1"
echo
read -r _
exit 0
"#;

/// The first of some places at which there is an executable file. Blocking.
pub(crate) fn find(candidates: &[PathBuf]) -> Result<&Path, Error> {
    let is_program =
        |path: &&PathBuf| path.is_file() && access(path.as_path(), Access::EXEC_OK).is_ok();
    candidates.iter().find(is_program).map(PathBuf::as_path).ok_or(Error::Missing)
}

/// Writes the action script. Blocking.
pub(crate) fn write_hold(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o700).open(path)?;
    file.write_all(HOLD.as_bytes())
}

/// What is dumped, and whereto.
#[derive(Debug)]
pub(crate) struct Dump {
    /// The first process.
    pub(crate) pid: i32,
    /// Where images go.
    pub(crate) images: PathBuf,
    /// Where the log and the statistics go.
    pub(crate) work: PathBuf,
    /// The action script.
    pub(crate) hold: PathBuf,
    /// Mounts and namespaces that are not the container's own, as criu names them.
    pub(crate) external: Vec<OsString>,
    /// Whether TCP connections are left out of the images, which would not be taken else. They stay as
    /// they are; restored, they are closed.
    pub(crate) without_connections: bool,
}

impl Dump {
    fn arguments(&self) -> Vec<OsString> {
        let pid = self.pid.to_string();
        let seize = SEIZE_SECONDS.to_string();
        let mut arguments: Vec<OsString> = [
            "dump",
            // What the host has configured must not end the container.
            "--no-default-config",
            "--leave-running",
            "--file-locks",
            // No connection is dumped, so that what comes for one meanwhile waits, as it does for any
            // process that stands still. A lock would need iptables, and stay if criu died.
            "--network-lock",
            "skip",
            "-v4",
            "--log-file",
            "dump.log",
            "--timeout",
            &seize,
            "--tree",
            &pid,
        ]
        .map(OsString::from)
        .into();
        let places = [
            ("--images-dir", &self.images),
            ("--work-dir", &self.work),
            ("--action-script", &self.hold),
        ];
        for (option, path) in places {
            arguments.extend([option.into(), path.into()]);
        }
        for external in &self.external {
            arguments.extend(["--external".into(), external.clone()]);
        }
        if self.without_connections {
            arguments.push("--tcp-close".into());
        }
        arguments
    }
}

/// A criu at work. Dropping it leaves it at work.
#[derive(Debug)]
pub(crate) struct Running {
    program: PathBuf,
    child: Child,
    told: pipe::Receiver,
    hold: Option<io::PipeWriter>,
}

/// Starts criu. It keeps `log` open, into which it writes what it has to say before it has a log of its
/// own: who finds that file locked finds criu at work.
///
/// # Errors
/// When it cannot be executed.
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn start(program: &Path, dump: &Dump, log: File) -> Result<Running, Error> {
    let failed = |source| Error::Run { program: program.to_owned(), source };
    let (input, hold) = io::pipe().map_err(failed)?;
    let (told, output) = io::pipe().map_err(failed)?;
    let child = Command::new(program)
        .args(dump.arguments())
        .current_dir("/")
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(input)
        .stdout(output)
        .stderr(log)
        // What ends the agent by its terminal is not to end criu.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let told = pipe::Receiver::from_owned_fd(told.into()).map_err(failed)?;
    Ok(Running { program: program.to_owned(), child, told, hold: Some(hold) })
}

impl Running {
    /// Waits until all is dumped and the container stands still; `false` when criu ended before that.
    ///
    /// # Errors
    /// When criu cannot be heard.
    pub(crate) async fn is_stopped(&mut self) -> Result<bool, Error> {
        let mut byte = [0];
        let read = self.told.read(&mut byte).await;
        read.map(|count| count > 0).map_err(|source| self.failed(source))
    }

    /// Lets the container go on.
    pub(crate) fn go_on(&mut self) {
        self.hold = None;
    }

    /// Waits for the end, which comes only once the container may go on.
    ///
    /// # Errors
    /// When criu cannot be waited for.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus, Error> {
        let ended = self.child.wait().await;
        ended.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Run { program: self.program.clone(), source }
    }
}

/// Why criu refused, from its logs, the first that says something. Blocking.
pub(crate) fn refusal(status: ExitStatus, logs: &[&Path]) -> Error {
    let said = logs.iter().find_map(|path| errors(&tail(path).unwrap_or_default()));
    Error::Refused(said.unwrap_or_else(|| status.to_string()))
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The errors in a log. They name files of the container, so control characters are told as such.
fn errors(log: &str) -> Option<String> {
    let error = |line: &str| {
        let (_, text) = line.split_once("Error (")?;
        let (_, text) = text.split_once("): ")?;
        let is_told = !text.contains(HARMLESS);
        let plain = |letter: char| if letter.is_control() { '?' } else { letter };
        is_told.then(|| text.chars().take(MAX_ERROR_CHARS).map(plain).collect::<String>())
    };
    let errors: Vec<String> = log.lines().filter_map(error).take(MAX_ERRORS).collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}

/// Whether no criu is at work any more that keeps this log. Blocking.
///
/// # Errors
/// When it cannot be looked at.
pub(crate) fn is_over(log: &Path) -> io::Result<bool> {
    use rustix::fs::{FlockOperation, flock};
    match fs::File::open(log) {
        Ok(file) => Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn dump(dir: &Path) -> Dump {
        Dump {
            pid: 42,
            images: dir.join("images"),
            work: dir.to_owned(),
            hold: dir.join("hold"),
            external: vec!["net[1]:extRootNetNS".into(), "mnt[/a b]:/a b".into()],
            without_connections: false,
        }
    }

    /// A `criu` that does as the script says.
    fn program(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("criu");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn log(dir: &Path) -> File {
        File::create(dir.join("log")).unwrap()
    }

    #[test]
    fn the_container_is_left_running_and_nothing_of_the_host_says_otherwise() {
        let mut dump = dump(Path::new("/s"));
        let text = |dump: &Dump| {
            let arguments = dump.arguments();
            arguments.iter().map(|a| a.to_str().unwrap().to_owned()).collect::<Vec<_>>().join("|")
        };
        assert_eq!(
            text(&dump),
            "dump|--no-default-config|--leave-running|--file-locks|--network-lock|skip|-v4|\
             --log-file|dump.log|--timeout|10|--tree|42|--images-dir|/s/images|--work-dir|/s|--action-script|/s/hold|\
             --external|net[1]:extRootNetNS|--external|mnt[/a b]:/a b"
        );
        dump.without_connections = true;
        assert!(text(&dump).ends_with("|--tcp-close"));
    }

    #[tokio::test]
    async fn the_script_tells_that_all_is_dumped_and_waits() {
        let dir = tempfile::tempdir().unwrap();
        write_hold(&dir.path().join("hold")).unwrap();
        let hold = dir.path().join("hold").display().to_string();
        // As criu does it: what the script itself has is not what criu has.
        let run = |action: &str| {
            format!(
                "(export CRTOOLS_SCRIPT_ACTION={action}; exec < /dev/null > /dev/null; exec {hold})"
            )
        };
        let script = format!("{} && {}\nexit $?", run("pre-dump"), run("post-dump"));
        let program = program(dir.path(), &script);
        let mut running = start(&program, &dump(dir.path()), log(dir.path())).unwrap();
        assert!(running.is_stopped().await.unwrap());
        let waits = tokio::time::timeout(std::time::Duration::from_millis(50), running.ended());
        assert!(waits.await.is_err());
        running.go_on();
        assert!(running.ended().await.unwrap().success());
    }

    #[tokio::test]
    async fn what_criu_refuses_is_told_in_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo '(00.1) Error (criu/x.c:1): rlimit: RLIMIT_NOFILE
(00.1) Warn  (criu/x.c:1): odd
(00.2) Error (criu/files.c:7): A bad \x1b file' >&2; exit 1";
        let program = program(dir.path(), script);
        let mut running = start(&program, &dump(dir.path()), log(dir.path())).unwrap();
        assert!(!running.is_stopped().await.unwrap());
        let status = running.ended().await.unwrap();
        let missing = dir.path().join("dump.log");
        let error = refusal(status, &[&missing, &dir.path().join("log")]);
        assert!(error.to_string().starts_with("criu: A bad "), "{error}");
        assert!(!error.to_string().contains('\x1b'), "{error}");
        assert_eq!(refusal(status, &[&missing]).to_string(), "criu: exit status: 1");
    }

    #[tokio::test]
    async fn a_log_is_locked_for_as_long_as_criu_is_at_work() {
        use rustix::fs::{FlockOperation, flock};
        let dir = tempfile::tempdir().unwrap();
        let program = program(dir.path(), "read -r _");
        let file = log(dir.path());
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        let mut running = start(&program, &dump(dir.path()), file).unwrap();
        assert!(!is_over(&dir.path().join("log")).unwrap());
        running.go_on();
        running.ended().await.unwrap();
        assert!(is_over(&dir.path().join("log")).unwrap());
    }

    #[test]
    fn a_host_without_criu_is_told_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let places = [dir.path().join("criu"), dir.path().to_owned()];
        assert!(find(&places).unwrap_err().to_string().contains("package criu"));
        program(dir.path(), "");
        assert_eq!(find(&places).unwrap(), places[0]);
    }
}
