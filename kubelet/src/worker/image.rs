//! Gets a container's image and those that its volumes are: from the store, or from the registry where
//! the pull policy says so.
//!
//! Differs: upstream pulls an image that no container mounts, too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_runtime::interface::{Image, ImageError, ImageId, Pulled};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};

use super::Context;
use super::apply::chain;
use super::members;
use super::memory::Failure;
use crate::events::Severity;
use crate::image_access::Need;
use crate::image_policy::{self, ImageAction, Key, PullPolicy};

/// The reason of a start whose volume's image is gone from the store: it is pulled again.
pub(super) const GONE: &str = "ErrImagePull";

/// An image that is needed.
struct Wanted<'a> {
    pod: &'a Pod,
    /// The container whose image it is; a volume's is the pod's.
    container: Option<&'a str>,
    reference: &'a str,
    policy: PullPolicy,
    /// What the container has run with.
    before: &'a [ImageId],
}

impl<'a> Wanted<'a> {
    fn of_volume(pod: &'a Pod, source: &'a ImageVolumeSource, before: &'a [ImageId]) -> Self {
        let reference = source.reference.as_deref().unwrap_or_default();
        let policy = PullPolicy::parse(source.pull_policy.as_deref(), reference);
        Self { pod, container: None, reference, policy, before }
    }

    fn tell(&self, context: &Context, severity: Severity, (reason, message): (&str, String)) {
        match self.container {
            Some(name) => {
                context.events.container((self.pod, name), severity, reason, message);
            }
            None => context.events.pod(self.pod, severity, reason, message),
        }
    }
}

/// The images that volumes of a container are, by the volume's name.
fn volume_sources<'a>(
    pod: &'a Pod,
    container: &Container,
) -> impl Iterator<Item = (&'a str, &'a ImageVolumeSource)> {
    let mounts = container.volume_mounts.iter().flatten();
    let mounted: BTreeSet<String> = mounts.map(|mount| mount.name.clone()).collect();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter(move |volume| mounted.contains(&volume.name))
        .filter_map(|volume| Some((volume.name.as_str(), volume.image.as_ref()?)))
}

/// The image of the container of this name, pulled where its policy says so, after those of its volumes;
/// `before` are the images that it has run with, its volumes' among them. Emits the events of a pull.
pub(super) async fn ensure(
    context: &Context,
    pod: &Pod,
    container: &str,
    before: &[ImageId],
) -> Result<Image, Failure> {
    let Some((_, container)) = members::find(pod, container) else {
        return Err(Failure::new("ErrImagePull", "no such container"));
    };
    let container = &container;
    let result = ensure_all(context, pod, container, before).await;
    if let Err(failure) = &result {
        let own = own(pod, container, before);
        let wanted = match &failure.image {
            Some(reference) => Wanted { container: None, reference, ..own },
            None => own,
        };
        tell_failure(context, &wanted, failure);
        let message = format!("Error: {}", failure.reason);
        let place = (pod, container.name.as_str());
        context.events.container(place, Severity::Warning, "Failed", message);
    }
    result
}

fn own<'a>(pod: &'a Pod, container: &'a Container, before: &'a [ImageId]) -> Wanted<'a> {
    Wanted {
        pod,
        container: Some(&container.name),
        reference: container.image.as_deref().unwrap_or_default(),
        policy: PullPolicy::of(container),
        before,
    }
}

fn tell_failure(context: &Context, wanted: &Wanted<'_>, failure: &Failure) {
    let reference = wanted.reference;
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
    wanted.tell(context, Severity::Warning, (reason, message));
}

async fn ensure_all(
    context: &Context,
    pod: &Pod,
    container: &Container,
    before: &[ImageId],
) -> Result<Image, Failure> {
    for (_, source) in volume_sources(pod, container) {
        let wanted = Wanted::of_volume(pod, source, before);
        let found = ensure_quietly(context, &wanted).await;
        found.map_err(|failure| failure.of_volume(wanted.reference))?;
    }
    ensure_quietly(context, &own(pod, container, before)).await
}

/// The images that volumes of a container are, which were pulled before, by the volume's name.
pub(super) async fn of_volumes(
    context: &Context,
    pod: &Pod,
    container: &Container,
) -> Result<BTreeMap<String, ImageId>, Failure> {
    let mut images = BTreeMap::new();
    for (name, source) in volume_sources(pod, container) {
        let reference = source.reference.as_deref().unwrap_or_default();
        let found = context.images.status(reference).await;
        let found = found.map_err(|error| Failure::new(GONE, chain(&error)))?;
        let gone =
            || Failure::new(GONE, format!("image {reference:?} is not in the store any more"));
        images.insert(name.to_owned(), found.ok_or_else(gone)?.id);
    }
    Ok(images)
}

async fn ensure_quietly(context: &Context, wanted: &Wanted<'_>) -> Result<Image, Failure> {
    let reference = wanted.reference;
    let present = context.images.status(reference).await;
    let present = present.map_err(|error| match error {
        ImageError::InvalidName { .. } => Failure::new(
            "InvalidImageName",
            format!("Failed to apply default image tag \"{reference}\": {error}"),
        ),
        error => Failure::new("ImageInspectError", chain(&error)),
    })?;
    let never = |message| Err(Failure::new(image_policy::NEVER_PULL_REASON, message));
    let keys = match (image_policy::decide(reference, wanted.policy, present.as_ref()), present) {
        (ImageAction::Use, Some(image)) => match may_use(context, wanted, &image).await {
            Use::Allowed => {
                let message = image_policy::present_message(reference);
                wanted.tell(context, Severity::Normal, ("Pulled", message));
                return Ok(image);
            }
            Use::Unknown(_) if wanted.policy == PullPolicy::Never => {
                return never(image_policy::never_message(reference));
            }
            Use::Unknown(keys) => keys,
        },
        (ImageAction::NeverPull(message), _) => return never(message),
        (ImageAction::Pull | ImageAction::Use, _) => None,
    };
    pull(context, wanted, keys).await
}

/// Whether a pod may use an image that is there.
enum Use {
    Allowed,
    /// That is for the registry to say; with the pod's keys where they were fetched.
    Unknown(Option<Vec<Key>>),
}

async fn may_use(context: &Context, wanted: &Wanted<'_>, image: &Image) -> Use {
    let (access, reference) = (&context.access, wanted.reference);
    // What it has run with, it has.
    if wanted.before.contains(&image.id) {
        return Use::Allowed;
    }
    match access.need(image, reference).await {
        Need::Nothing => Use::Allowed,
        Need::Registry => Use::Unknown(None),
        Need::Key => {
            let keys = context.materials.keys(wanted.pod, reference).await;
            match access.opens(image, reference, &keys).await {
                true => Use::Allowed,
                false => Use::Unknown(Some(keys)),
            }
        }
    }
}

async fn pull(
    context: &Context,
    wanted: &Wanted<'_>,
    keys: Option<Vec<Key>>,
) -> Result<Image, Failure> {
    let (access, reference) = (&context.access, wanted.reference);
    let keys = match keys {
        Some(keys) => keys,
        None => context.materials.keys(wanted.pod, reference).await,
    };
    let message = image_policy::pulling_message(reference);
    wanted.tell(context, Severity::Normal, ("Pulling", message));
    let asked = context.clock.now();
    // Closed by nobody: the worker goes with it.
    let permit = context.pulls.acquire().await;
    let begun = context.clock.now();
    access.begin(reference).await.map_err(|error| {
        let message = format!(
            "Failed to record image pull intent for container image {reference:?}: {error}"
        );
        Failure::new(image_policy::PULL_FAILED_REASON, message)
    })?;
    let credentials = keys.iter().map(|key| key.credentials.clone()).collect();
    let pulled = context.images.pull(reference, credentials, None).await;
    drop(permit);
    let Pulled { image, opened_by } = match pulled {
        Ok(pulled) => pulled,
        Err(error) => {
            // What the store failed at may have been done all the same.
            if !matches!(error, ImageError::Store { .. }) {
                access.failed(reference).await;
            }
            return Err(Failure::new(failure_reason(&error), chain(&error)));
        }
    };
    access.pulled(reference, &image.id, opened_by.and_then(|place| keys.get(place))).await;
    let ended = context.clock.now();
    let (took, waited) = (spent(ended.duration_since(begun)), spent(ended.duration_since(asked)));
    let message = format!(
        "Successfully pulled image \"{reference}\" in {took} ({waited} including waiting). \
         Image size: {} bytes.",
        image.size_bytes
    );
    wanted.tell(context, Severity::Normal, ("Pulled", message));
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
