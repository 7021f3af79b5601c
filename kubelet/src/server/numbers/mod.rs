//! What the node and its pods use: `/metrics`, `/metrics/resource`, `/metrics/cadvisor`,
//! `/metrics/probes`, `/metrics/slis` and `/stats/summary`.
//!
//! Each request reads the kernel's files anew, on a thread that may block, one request at a time:
//! many who ask cost no more than one after the other. What pods use of disks is what [`crate::disk`] saw
//! last; nothing else is sampled when nobody asks.

mod cadvisor;
mod devices;
mod disks;
pub(super) mod exposition;
mod host;
mod limits;
mod open_files;
mod own;
mod probes;
mod rates;
mod resource;
mod summary;
mod system;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::Router;
use axum::extract::{RawQuery, State as Shared};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use berth_runtime::interface::{PodUsage, Usage};
use tokio::sync::Mutex;

use super::State;
use crate::disk::{Disk, Used};
use disks::Disks;
use host::Host;
use rates::{Look, NanoCores, Rates};
use system::System;

pub use system::Places as Parts;

/// What the numbers say of the node besides what is measured.
#[derive(Clone)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// Its disks.
    pub disk: Disk,
    parts: Parts,
    turn: Arc<Mutex<()>>,
    rates: Arc<std::sync::Mutex<Rates>>,
}

impl Node {
    /// A node of this name with these disks.
    pub fn new(name: String, disk: Disk) -> Self {
        let (turn, rates) = (Arc::default(), Arc::default());
        Self { name, disk, parts: Parts::default(), turn, rates }
    }

    /// The same, and its own parts are seen there.
    pub fn with_parts(self, parts: Parts) -> Self {
        Self { parts, ..self }
    }

    fn rates(&self, reading: &Reading) -> NanoCores {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).look(looks(reading))
    }
}

/// The routes.
pub(super) fn routes() -> Router<State> {
    Router::new()
        .route("/metrics", get(own))
        .route("/metrics/resource", get(resource))
        .route("/metrics/cadvisor", get(cadvisor))
        .route("/metrics/probes", get(probe_counts))
        .route("/metrics/slis", get(health))
        .route("/stats/summary", get(summary))
        .route("/stats/summary/", get(summary))
}

/// What one reading saw.
struct Reading {
    at_ms: i64,
    host: Host,
    disks: Disks,
    pods: Vec<PodUsage>,
    system: System,
    rates: NanoCores,
}

/// What has had processor time, and how much.
fn looks(reading: &Reading) -> Vec<Look> {
    let Reading { at_ms, host, pods, system, .. } = reading;
    let mut looks = vec![Look { of: NODE.to_owned(), at_ms: *at_ms, total_us: host.cpu_us }];
    let mut add = |of: &str, usage: &Usage| {
        let total_us = usage.cpu.as_ref().map(|cpu| cpu.total_us);
        looks.extend(total_us.map(|total_us| Look {
            of: of.to_owned(),
            at_ms: usage.at_ms,
            total_us,
        }));
    };
    add(AGENT, &system.agent.usage);
    if let Some(all) = &system.pods {
        add(PODS, &all.usage);
    }
    for pod in pods {
        add(&pod.cgroup, &pod.total);
        for container in &pod.containers {
            add(&container.cgroup, &container.usage);
        }
    }
    looks
}

/// The names of what has no cgroup, or none that is named, in rates; a cgroup's begins with a slash.
const NODE: &str = "node";
const AGENT: &str = "agent";
const PODS: &str = "pods";

fn failed(error: impl std::fmt::Display) -> Response {
    tracing::warn!(%error, "the numbers cannot be read");
    (StatusCode::INTERNAL_SERVER_ERROR, "the numbers cannot be read\n").into_response()
}

async fn read(state: &State) -> Result<Reading, Response> {
    let _turn = state.node.turn.lock().await;
    let mut pods = state.runtime.usage().await.map_err(failed)?;
    pods.sort_by(|a, b| (&a.pod.namespace, &a.pod.name).cmp(&(&b.pod.namespace, &b.pod.name)));
    let disk = state.node.disk.clone();
    let (parts, at_ms) = (state.node.parts.clone(), state.clock.now().as_millisecond());
    let measure = move || (host::read(), Disks::read(&disk), system::read(&parts, at_ms));
    let measured = tokio::task::spawn_blocking(measure).await;
    let (host, disks, system) = measured.map_err(failed)?;
    let disks = Disks { stored: stored(state).await, ..disks.with(&state.node.disk, &pods) };
    let mut reading = Reading { at_ms, host, disks, pods, system, rates: NanoCores::new() };
    reading.rates = state.node.rates(&reading);
    Ok(reading)
}

/// What the image store holds; nothing where it does not tell.
async fn stored(state: &State) -> Option<Used> {
    let (bytes, inodes) = state.images.stored().await.ok().flatten()?;
    Some(Used { bytes, inodes })
}

fn exposition(text: String) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn resource(Shared(state): Shared<State>) -> Response {
    match read(&state).await {
        Ok(reading) => exposition(resource::render(&reading.host, reading.at_ms, &reading.pods)),
        Err(failure) => failure,
    }
}

async fn cadvisor(Shared(state): Shared<State>) -> Response {
    let reading = match read(&state).await {
        Ok(reading) => reading,
        Err(failure) => return failure,
    };
    match state.runtime.open_files().await {
        Ok(open) => exposition(cadvisor::render(
            &reading.host,
            reading.at_ms,
            (&reading.pods, &reading.disks),
            &open,
        )),
        Err(error) => failed(error),
    }
}

async fn own(Shared(state): Shared<State>) -> Response {
    let sandboxes = match state.runtime.list().await {
        Ok(sandboxes) => sandboxes,
        Err(error) => return failed(error),
    };
    let measured = tokio::task::spawn_blocking(|| (host::read(), host::own())).await;
    let claims = disks::claims(&state.shelf, &state.node.disk);
    match measured {
        Ok((host, own)) => {
            let at = state.clock.now().as_duration().as_secs_f64();
            let facts = own::Facts {
                node: &state.node.name,
                pods: &sandboxes,
                shown: &state.shelf.shown(),
                claims: &claims,
                meters: &state.meters,
                at,
            };
            exposition(own::render(&facts, (&host, own)))
        }
        Err(error) => failed(error),
    }
}

async fn probe_counts(Shared(state): Shared<State>) -> Response {
    match started_at().await {
        Ok(at) => exposition(probes::render(&state.probes.rows(), at)),
        Err(failure) => failure,
    }
}

async fn health(Shared(state): Shared<State>) -> Response {
    match started_at().await {
        Ok(at) => exposition(state.health.render(at)),
        Err(failure) => failure,
    }
}

async fn started_at() -> Result<f64, Response> {
    let measured = tokio::task::spawn_blocking(|| own::started_at(&host::read(), host::own()));
    measured.await.map_err(failed)
}

async fn summary(Shared(state): Shared<State>, RawQuery(query): RawQuery) -> Response {
    let narrow = query.is_some_and(|query| {
        query
            .split('&')
            .any(|part| matches!(part, "only_cpu_and_memory=true" | "only_cpu_and_memory=1"))
    });
    let scope = match narrow {
        true => summary::Scope::CpuAndMemory,
        false => summary::Scope::All,
    };
    let reading = match read(&state).await {
        Ok(reading) => reading,
        Err(failure) => return failure,
    };
    let starts: BTreeMap<_, _> = state
        .shelf
        .shown()
        .into_iter()
        .filter_map(|shown| {
            Some((shown.pod.metadata.uid.clone()?, shown.status.start_time.as_ref()?.0))
        })
        .collect();
    let facts = summary::Facts {
        node: &state.node.name,
        at_ms: reading.at_ms,
        host: &reading.host,
        disks: &reading.disks,
        pods: &reading.pods,
        starts: &starts,
        system: &reading.system,
        started: state.process.started,
        rates: &reading.rates,
    };
    Json(summary::render(&facts, scope)).into_response()
}
