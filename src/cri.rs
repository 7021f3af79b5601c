//! The CRI socket, `<run dir>/berth.sock`: served by the agent, or by `berth cri`, which kubeadm needs
//! before there is an agent (its checks) and after it was stopped (`kubeadm reset`).
//!
//! Either way a call is one request of [`control`]: to the agent, and where none runs to a host that is
//! opened for it. Whoever serves the socket first keeps it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use berth_kubelet::qos::Driver;
use berth_runtime::cri::{self, About, Backend, CgroupDriver};
use berth_runtime::interface::{
    Checkpoint, ContainerId, Credentials, Image, SandboxId, SandboxStatus,
};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::cli::HostFlags;
use crate::control::{self, Answer, Login, Request};
use crate::host::{Host, make_private};
use crate::settings::Settings;
use crate::{node, notify, signals};

/// `berth cri`.
pub(crate) async fn run(flags: HostFlags) -> Result<()> {
    let settings = Settings::of_host(&flags)?;
    let shutdown = signals::shutdown()?;
    make_private(&settings.places.run_dir)?;
    let path = settings.places.run_dir.join("berth.sock");
    let Some(listener) = listen(&path).await? else {
        bail!("{} is served already", path.display());
    };
    notify::ready(&shutdown)?;
    serve(listener, settings, shutdown).await
}

/// Serves the socket for as long as the agent lives, unless somebody does already.
pub(crate) async fn beside_agent(settings: Settings, shutdown: CancellationToken) -> Result<()> {
    match listen(&settings.places.run_dir.join("berth.sock")).await? {
        Some(listener) => serve(listener, settings, shutdown).await,
        None => {
            shutdown.cancelled().await;
            Ok(())
        }
    }
}

/// Listens, for root alone; `None` where somebody does.
async fn listen(path: &Path) -> Result<Option<UnixListener>> {
    if UnixStream::connect(path).await.is_ok() {
        return Ok(None);
    }
    control::listen(path).map(Some)
}

async fn serve(
    listener: UnixListener,
    settings: Settings,
    shutdown: CancellationToken,
) -> Result<()> {
    let places = &settings.places;
    let path = places.run_dir.join("berth.sock");
    let about = About {
        version: env!("CARGO_PKG_VERSION"),
        images: places.state_dir.join("images"),
        layers: places.state_dir.join("containers"),
        handlers: settings.runtime_handlers.clone(),
    };
    info!(socket = %path.display(), "the CRI is served");
    let backend = Arc::new(Requests { settings, alone: Mutex::default() });
    cri::serve(listener, (backend, about), shutdown).await.context("serving gRPC")?;
    control::remove(&path)
}

/// Turns calls into requests.
struct Requests {
    settings: Settings,
    /// One host at a time is opened here.
    alone: Mutex<()>,
}

impl Requests {
    async fn ask(&self, request: Request) -> Result<Answer> {
        let places = &self.settings.places;
        let mut unseen = |_, _| ();
        if let Some(answer) = control::ask_agent(places, &request, &mut unseen).await? {
            return Ok(answer);
        }
        let _alone = self.alone.lock().await;
        let host = Host::open(places, &self.settings.resolv_conf).await?;
        // A sandbox gives its addresses back to the network that it has them of.
        let ends = matches!(request, Request::Stop { .. } | Request::Discard { .. });
        if let Some(cidrs) = node::remembered(places).filter(|_| ends) {
            node::open_network(&self.settings, &host, cidrs).await?;
        }
        let network = Arc::clone(&host.network);
        let answer = control::ask_host(host, &request, &mut unseen).await;
        network.flush().await;
        answer
    }

    async fn ask_images(&self, request: Request) -> Result<Vec<Image>, String> {
        match self.ask(request).await {
            Ok(Answer::Images(images)) => Ok(images),
            Ok(other) => Err(control::unexpected(&other).to_string()),
            Err(error) => Err(format!("{error:#}")),
        }
    }
}

#[async_trait]
impl Backend for Requests {
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, String> {
        match self.ask(Request::Pods).await {
            Ok(Answer::Pods(pods)) => Ok(pods),
            Ok(other) => Err(control::unexpected(&other).to_string()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    async fn stop_sandbox(&self, sandbox: SandboxId) -> Result<(), String> {
        self.ask_images(Request::Stop { sandbox }).await.map(drop)
    }

    async fn remove_sandbox(&self, sandbox: SandboxId) -> Result<(), String> {
        self.ask_images(Request::Discard { sandbox }).await.map(drop)
    }

    async fn checkpoint(&self, container: ContainerId, to: Checkpoint) -> Result<(), String> {
        let Checkpoint { location, timeout } = to;
        self.ask_images(Request::Checkpoint { container, location, timeout }).await.map(drop)
    }

    async fn images(&self) -> Result<Vec<Image>, String> {
        self.ask_images(Request::List).await
    }

    async fn image(&self, image: String) -> Result<Option<Image>, String> {
        Ok(self.ask_images(Request::Status { image }).await?.into_iter().next())
    }

    async fn pull(&self, image: String, login: Option<Credentials>) -> Result<Image, String> {
        let login = match login {
            Some(Credentials::Basic { username, password }) => Some(Login { username, password }),
            Some(Credentials::Bearer(_)) => return Err("tokens are not taken".to_owned()),
            None => None,
        };
        let pulled = self.ask_images(Request::Pull { image, login }).await?;
        pulled.into_iter().next().ok_or_else(|| "the image is gone again".to_owned())
    }

    /// The agent's, and where none runs that of the own configuration.
    async fn cgroup_driver(&self) -> CgroupDriver {
        let mut unseen = |_, _| ();
        let asked = control::ask_agent(&self.settings.places, &Request::Driver, &mut unseen);
        let driver = match asked.await {
            Ok(Some(Answer::Driver(Some(driver)))) => driver,
            _ => self.settings.kubelet.cgroups.driver,
        };
        match driver {
            Driver::Cgroupfs => CgroupDriver::Cgroupfs,
            Driver::Systemd => CgroupDriver::Systemd,
        }
    }

    async fn user_namespaces(&self) -> Result<bool, String> {
        match self.ask(Request::UserNamespaces).await {
            Ok(Answer::UserNamespaces(can)) => Ok(can),
            Ok(other) => Err(control::unexpected(&other).to_string()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    async fn remove_image(&self, image: String) -> Result<(), String> {
        self.ask_images(Request::Remove { image }).await.map(drop)
    }

    async fn network(&self) -> Result<(), String> {
        match node::remembered(&self.settings.places) {
            Some(_) => Ok(()),
            None => Err("the node has no pod CIDR yet".to_owned()),
        }
    }
}
