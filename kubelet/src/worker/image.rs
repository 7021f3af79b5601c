//! Gets a container's image: from the store, or from the registry where the pull policy says so.

use std::time::Duration;

use berth_runtime::interface::{Image, ImageError};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::Context;
use super::apply::chain;
use super::memory::Failure;
use crate::events::Severity;
use crate::image_policy::{self, ImageAction, PullPolicy};

/// The image of `container`, pulled where its policy says so. Emits the events of a pull.
pub(super) async fn ensure(
    context: &Context,
    pod: &Pod,
    container: &Container,
) -> Result<Image, Failure> {
    let reference = container.image.as_deref().unwrap_or_default();
    let place = (pod, container.name.as_str());
    let result = ensure_quietly(context, pod, container, reference).await;
    if let Err(failure) = &result {
        let message = match failure.reason.as_str() {
            "ErrImageNeverPull" => failure.message.clone(),
            // The store's own text begins like that already.
            _ => match failure.message.strip_prefix("failed") {
                Some(rest) => format!("Failed{rest}"),
                None => format!("Failed to pull image \"{reference}\": {}", failure.message),
            },
        };
        let reason = match failure.reason.as_str() {
            "ErrImageNeverPull" => "ErrImageNeverPull",
            "InvalidImageName" => "InspectFailed",
            _ => "Failed",
        };
        let events = &context.events;
        events.container(place, Severity::Warning, reason, message);
        let message = format!("Error: {}", failure.reason);
        events.container(place, Severity::Warning, "Failed", message);
    }
    result
}

async fn ensure_quietly(
    context: &Context,
    pod: &Pod,
    container: &Container,
    reference: &str,
) -> Result<Image, Failure> {
    let place = (pod, container.name.as_str());
    let present = context.images.status(reference).await;
    let present = present.map_err(|error| match error {
        ImageError::InvalidName { .. } => Failure::new(
            "InvalidImageName",
            format!("Failed to apply default image tag \"{reference}\": {error}"),
        ),
        error => Failure::new("ImageInspectError", chain(&error)),
    })?;
    let policy = PullPolicy::of(container);
    match (image_policy::decide(reference, policy, present.as_ref()), present) {
        (ImageAction::Use, Some(image)) => {
            let message = image_policy::present_message(reference);
            context.events.container(place, Severity::Normal, "Pulled", message);
            Ok(image)
        }
        (ImageAction::NeverPull(message), _) => {
            Err(Failure::new(image_policy::NEVER_PULL_REASON, message))
        }
        (ImageAction::Pull | ImageAction::Use, _) => pull(context, pod, container, reference).await,
    }
}

async fn pull(
    context: &Context,
    pod: &Pod,
    container: &Container,
    reference: &str,
) -> Result<Image, Failure> {
    let place = (pod, container.name.as_str());
    let events = &context.events;
    let credentials = context.materials.credentials(pod, reference).await?;
    let message = image_policy::pulling_message(reference);
    events.container(place, Severity::Normal, "Pulling", message);
    let begun = context.clock.now();
    let pulled = context.images.pull(reference, credentials, None).await;
    let image = pulled.map_err(|error| Failure::new(failure_reason(&error), chain(&error)))?;
    let took = context.clock.now().duration_since(begun);
    let took = spent(took);
    let message = format!(
        "Successfully pulled image \"{reference}\" in {took} ({took} including waiting). \
         Image size: {} bytes.",
        image.size_bytes
    );
    events.container(place, Severity::Normal, "Pulled", message);
    Ok(image)
}

fn failure_reason(error: &ImageError) -> &'static str {
    match error {
        ImageError::InvalidName { .. } => "InvalidImageName",
        ImageError::RegistryUnavailable { .. } => "RegistryUnavailable",
        ImageError::Pull { .. } | ImageError::Store { .. } => "ErrImagePull",
    }
}

/// To the millisecond, as Go prints it: `850ms`, `2.5s`, `1m3.2s`.
fn spent(took: SignedDuration) -> String {
    let took = Duration::try_from(took).unwrap_or_default();
    let millis = took.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let minutes = took.as_secs() / 60;
    let rest = took - Duration::from_secs(minutes * 60);
    let seconds = format!("{:.3}", rest.as_secs_f64());
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match minutes {
        0 => format!("{seconds}s"),
        _ => format!("{minutes}m{seconds}s"),
    }
}

/// The identity that a status shows: a reference by digest where there is one, else the image's own.
pub(super) fn shown_id(image: &Image) -> String {
    let digest = image.digests.first();
    digest.cloned().unwrap_or_else(|| image.id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_pull_reads_as_go_prints_it() {
        for (millis, text) in [(7, "7ms"), (2_500, "2.5s"), (3_000, "3s"), (63_250, "1m3.25s")] {
            assert_eq!(spent(SignedDuration::from_millis(millis)), text);
        }
    }
}
