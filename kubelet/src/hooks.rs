//! Lifecycle hooks of containers: `postStart` and `preStop` with `exec`, `httpGet` and `sleep`.

use std::net::IpAddr;
use std::time::Duration;

use axum::http::header::AUTHORIZATION;
use berth_runtime::interface::ContainerId;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::events::Severity;
use crate::http_call::{self, Call, Failure};
use crate::meters;
use crate::worker::Context;
use crate::worker::members;

/// How hooks introduce themselves.
const AGENT: &str = "kube-lifecycle/1.36";
/// What holds a hook up is ended with its container, and by nothing else.
const UNBOUNDED: Duration = Duration::MAX;

/// Runs the container's `postStart` hook, if it has one. The error is the event's message.
pub(crate) async fn post_start(
    context: &Context,
    pod: &Pod,
    (container, id): (&Container, &ContainerId),
    ips: &[IpAddr],
) -> Result<(), String> {
    let lifecycle = container.lifecycle.as_ref();
    let Some(handler) = lifecycle.and_then(|l| l.post_start.as_ref()) else {
        return Ok(());
    };
    run(context, (pod, container, id), handler, ips).await.map_err(|error| {
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        tracing::info!(pod, container = %container.name, %error, "postStart hook failed");
        format!("PostStartHook failed: {error}")
    })
}

/// Runs the container's `preStop` hook, if it has one, to its end: a hook that outlives the grace period
/// goes on beside the signal until the container is gone. Dropping it ends its process.
pub(crate) async fn pre_stop(context: &Context, pod: &Pod, (name, id): (&str, &ContainerId)) {
    let Some((_, container)) = members::find(pod, name) else {
        return;
    };
    let lifecycle = container.lifecycle.as_ref();
    let Some(handler) = lifecycle.and_then(|l| l.pre_stop.as_ref()) else {
        return;
    };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let ips = pod_ips(context, uid).await;
    if let Err(error) = run(context, (pod, &container, id), handler, &ips).await {
        let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
        tracing::info!(pod = pod_name, container = name, %error, "preStop hook failed");
        let events = &context.events;
        // What the hook said may be secret; it stays in the log.
        let message = "PreStopHook failed";
        events.container((pod, name), Severity::Warning, "FailedPreStopHook", message);
    }
}

async fn pod_ips(context: &Context, uid: &str) -> Vec<IpAddr> {
    let sandboxes = context.runtime.pod(uid).await.unwrap_or_default();
    let ips = sandboxes.last().map(|s| s.ips.clone()).unwrap_or_default();
    match ips.is_empty() {
        true => context.node_ips.clone(),
        false => ips,
    }
}

async fn run(
    context: &Context,
    (pod, container, id): (&Pod, &Container, &ContainerId),
    handler: &LifecycleHandler,
    ips: &[IpAddr],
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output = context.runtime.exec_sync(id, command.clone(), None).await;
        let output = output.map_err(|error| error.to_string())?;
        return match output.exit_code {
            0 => Ok(()),
            code => Err(format!(
                "command '{}' exited with {code}: {}",
                command.join(" "),
                String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(1024)])
            )),
        };
    }
    if let Some(action) = &handler.http_get {
        return get(context, pod, Call::of_action(container, action, ips)?).await;
    }
    if let Some(sleep) = &handler.sleep {
        let duration = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
        tokio::time::sleep(duration).await;
        return Ok(());
    }
    Err("invalid handler: no action".to_owned())
}

/// Makes the call, however long that takes. Any answer will do, whatever its status; one that is not in
/// TLS, where TLS was spoken, is asked for once more without. As upstream does it.
async fn get(context: &Context, pod: &Pod, mut call: Call) -> Result<(), String> {
    let failure = match http_call::get(&call, AGENT, UNBOUNDED).await {
        Ok(_) => return Ok(()),
        Err(failure @ Failure::NotTls { .. }) => failure,
        Err(failure) => return Err(failure.to_string()),
    };
    call.is_https = false;
    call.headers.remove(AUTHORIZATION);
    http_call::get(&call, AGENT, UNBOUNDED).await.map_err(|_| failure.to_string())?;
    context.meters.count(&meters::HOOK_FALLBACKS, &[]);
    let message = format!(
        "request to HTTPS lifecycle hook {} got HTTP response, retry with HTTP succeeded",
        call.authority()
    );
    context.events.pod(pod, Severity::Warning, "LifecycleHTTPFallback", message);
    Ok(())
}
