//! `berth join`: from an address and a token to a node with a certificate of its own, by kubeadm's
//! steps and under kubeadm's flags.
//!
//! What the flags mean together is [`Plan`] (pure); learning the cluster and asking for the certificate
//! is the kubelet crate's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use berth_kubelet::clock::SystemClock;
use berth_kubelet::credentials::kubeconfig::{self, Endpoint, User};
use berth_kubelet::credentials::{self, Store, Trouble};
use berth_kubelet::discovery::{self, Token, Trust};

use crate::cli::{JoinFlags, NodeFlags};
use crate::control::Lock;
use crate::host::make_private;
use crate::node;
use crate::settings::{Places, Settings};
use crate::unit::Unit;

/// Where a node that joined keeps how it reaches the cluster.
pub(crate) struct Files {
    /// Names the node's certificate.
    pub(crate) kubeconfig: PathBuf,
    /// By which the first certificate was asked for.
    pub(crate) bootstrap: PathBuf,
    /// Certificates and keys.
    pub(crate) pki: PathBuf,
}

impl Files {
    /// Those of a state directory.
    pub(crate) fn of(places: &Places) -> Self {
        let in_state = |name: &str| places.state_dir.join(name);
        Self {
            kubeconfig: in_state("kubelet.conf"),
            bootstrap: in_state("bootstrap.conf"),
            pki: in_state("pki"),
        }
    }
}

/// How the cluster is learnt, and as whom the certificate is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// From whoever answers at an address, believed by a token.
    Token { server: String, token: Token, trust: Trust, asks: Token },
    /// From a kubeconfig; asked for as its user, or by a token.
    File { path: PathBuf, asks: Option<Token> },
}

impl Plan {
    fn of(flags: &JoinFlags) -> Result<Self> {
        let token = |name: &str, text: &Option<String>| -> Result<Option<Token>> {
            text.as_deref().map(str::parse).transpose().with_context(|| format!("--{name}"))
        };
        let both = token("token", &flags.token)?;
        let knows = token("discovery-token", &flags.discovery_token)?.or(both.clone());
        let asks = token("tls-bootstrap-token", &flags.tls_bootstrap_token)?.or(both);
        if let Some(path) = &flags.discovery_file {
            let other = flags.server.is_some() || flags.discovery_token.is_some();
            if other || !flags.discovery_token_ca_cert_hash.is_empty() {
                bail!(
                    "--discovery-file says what the cluster is: give no address, token or hash to discover it by"
                );
            }
            return Ok(Self::File { path: path.clone(), asks });
        }
        let Some(server) = flags.server.clone() else {
            bail!(
                "name the API server (HOST:PORT), or a kubeconfig of the cluster by --discovery-file"
            );
        };
        let (Some(token), Some(asks)) = (knows, asks) else {
            bail!("a token is needed to know the cluster and to be known by it: --token");
        };
        let pins = flags.discovery_token_ca_cert_hash.iter().map(|text| text.parse());
        let pins: Vec<_> =
            pins.collect::<Result<_, _>>().context("--discovery-token-ca-cert-hash")?;
        let trust = match (pins.is_empty(), flags.discovery_token_unsafe_skip_ca_verification) {
            (false, false) => Trust::Pins(pins),
            (true, true) => Trust::TokenAlone,
            (true, false) => bail!(
                "without --discovery-token-ca-cert-hash whoever knows the token can pose as the cluster; \
                 where that is meant, say --discovery-token-unsafe-skip-ca-verification"
            ),
            (false, true) => bail!(
                "--discovery-token-ca-cert-hash and --discovery-token-unsafe-skip-ca-verification exclude each other"
            ),
        };
        Ok(Self::Token { server, token, trust, asks })
    }

    /// Writes the kubeconfig by which the certificate is asked for.
    async fn prepare(&self, bootstrap: &Path, patience: Duration) -> Result<()> {
        match self {
            Self::Token { server, token, trust, asks } => {
                let endpoint = discovery::discover(server, (token, trust), patience).await?;
                kubeconfig::write(bootstrap, &endpoint, &User::Token(asks.reveal()))?;
            }
            Self::File { path, asks: Some(token) } => {
                let endpoint = Endpoint::of_file(path)?;
                kubeconfig::write(bootstrap, &endpoint, &User::Token(token.reveal()))?;
            }
            Self::File { path, asks: None } => {
                if !kubeconfig::has_user(path)? {
                    bail!(
                        "{} names no user: give a token by --tls-bootstrap-token",
                        path.display()
                    );
                }
                kubeconfig::copy(path, bootstrap)?;
            }
        }
        Ok(())
    }
}

/// Joins a cluster.
pub(crate) async fn run(flags: JoinFlags) -> Result<()> {
    let plan = Plan::of(&flags)?;
    let settings = Settings::resolve(&flags.node)?;
    let places = &settings.places;
    let files = Files::of(places);
    if files.kubeconfig.exists() {
        bail!(
            "this host has joined a cluster: {} is there (berth reset leaves it)",
            files.kubeconfig.display()
        );
    }
    node::node_ips(&settings)?;
    make_private(&places.state_dir)?;
    let lock = Lock::take(places).await?;
    let patience = Duration::from_secs(flags.timeout);
    plan.prepare(&files.bootstrap, patience).await?;
    println!("the cluster is the one that was meant");
    let node = identity(&settings, &files);
    let asked = tokio::time::timeout(patience, ask(&node)).await;
    asked.with_context(|| format!("no certificate within {} s", patience.as_secs()))??;
    println!("{} has a certificate", settings.node_name);
    drop(lock);
    let unit = unit(&flags.node, places)?;
    if flags.systemd {
        unit.install()?;
        println!("the service berth runs");
    } else {
        println!("run it: {} {}", unit.executable.display(), unit.arguments.join(" "));
    }
    Ok(())
}

/// The node's client certificate, as the agent and `join` both look after it.
pub(crate) fn identity(settings: &Settings, files: &Files) -> credentials::Node {
    credentials::Node {
        name: settings.node_name.clone(),
        kubeconfig: files.kubeconfig.clone(),
        bootstrap: Some(files.bootstrap.clone()),
        store: Store::client(&files.pki),
        clock: Arc::new(SystemClock),
    }
}

/// Asks until there is a certificate, or asking is in vain.
async fn ask(node: &credentials::Node) -> Result<(), Trouble> {
    loop {
        match node.bootstrap().await {
            Err(error) if !error.is_final() => {
                tracing::warn!(%error, "no certificate yet, asking again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            done => return done,
        }
    }
}

/// The service that runs this node's agent.
fn unit(flags: &NodeFlags, places: &Places) -> Result<Unit> {
    let executable = std::env::current_exe().context("finding this executable")?;
    let mut arguments = vec!["agent".to_owned()];
    let mut add = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    let absolute = |path: &Path| -> Result<String> {
        let path = std::path::absolute(path)?;
        path.into_os_string().into_string().map_err(|p| anyhow::anyhow!("{p:?} is not UTF-8"))
    };
    let host = &flags.host;
    for (name, path) in [
        ("config", &host.config),
        ("state-dir", &host.state_dir),
        ("run-dir", &host.run_dir),
        ("log-dir", &host.log_dir),
    ] {
        if let Some(path) = path {
            add(name, absolute(path)?);
        }
    }
    if let Some(name) = &flags.node_name {
        add("node-name", name.clone());
    }
    flags.node_ip.iter().for_each(|address| add("node-ip", address.to_string()));
    flags.node_label.iter().for_each(|label| add("node-label", label.clone()));
    Ok(Unit { executable, arguments, state_dir: std::path::absolute(&places.state_dir)? })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    const TOKEN: &str = "abcdef.0123456789abcdef";
    const HASH: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn plan(line: &str) -> Result<Plan> {
        let words = ["berth", "join"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words)?.command {
            Command::Join(flags) => Plan::of(&flags),
            _ => unreachable!("join"),
        }
    }

    #[test]
    fn kubeadms_line_is_understood() {
        let line = format!("10.0.0.1:6443 --token {TOKEN} --discovery-token-ca-cert-hash {HASH}");
        let token: Token = TOKEN.parse().unwrap();
        let expected = Plan::Token {
            server: "10.0.0.1:6443".into(),
            token: token.clone(),
            trust: Trust::Pins(vec![HASH.parse().unwrap()]),
            asks: token,
        };
        assert_eq!(plan(&line).unwrap(), expected);
    }

    #[test]
    fn a_cluster_is_not_believed_by_accident() {
        let bare = format!("10.0.0.1:6443 --token {TOKEN}");
        assert!(plan(&bare).unwrap_err().to_string().contains("ca-cert-hash"));
        let skipped = format!("{bare} --discovery-token-unsafe-skip-ca-verification");
        assert!(matches!(plan(&skipped).unwrap(), Plan::Token { trust: Trust::TokenAlone, .. }));
        assert!(plan(&format!("{skipped} --discovery-token-ca-cert-hash {HASH}")).is_err());
        assert!(plan(&format!("{bare} --discovery-token-ca-cert-hash sha256:12")).is_err());
        assert!(plan("10.0.0.1:6443 --token nonsense").is_err());
        assert!(plan("10.0.0.1:6443").is_err() && plan(&format!("--token {TOKEN}")).is_err());
    }

    #[test]
    fn a_file_says_what_the_cluster_is_and_nothing_else_does() {
        let file = plan("--discovery-file /x").unwrap();
        assert_eq!(file, Plan::File { path: "/x".into(), asks: None });
        let asking = plan(&format!("--discovery-file /x --tls-bootstrap-token {TOKEN}")).unwrap();
        assert!(matches!(asking, Plan::File { asks: Some(_), .. }));
        assert!(plan(&format!("10.0.0.1:6443 --discovery-file /x --token {TOKEN}")).is_err());
    }
}
