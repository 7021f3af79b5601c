//! The images that the node's status names, so that the scheduler prefers nodes that have a pod's. Pure.

use berth_runtime::interface::Image;
use k8s_openapi::api::core::v1::ContainerImage;

/// The most names of an image, as upstream.
const MAX_NAMES: usize = 5;

/// The largest images first, `most` of them: digests before tags.
pub(super) fn told(mut images: Vec<Image>, most: Option<usize>) -> Vec<ContainerImage> {
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    images.truncate(most.unwrap_or(usize::MAX));
    let one = |image: Image| ContainerImage {
        names: Some(image.digests.into_iter().chain(image.tags).take(MAX_NAMES).collect()),
        size_bytes: i64::try_from(image.size_bytes).ok(),
    };
    images.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, size_bytes: u64) -> Image {
        let mut image = crate::fake::image(name);
        image.digests = vec![format!("r/{name}@sha256:0")];
        image.tags = (0..6).map(|tag| format!("r/{name}:{tag}")).collect();
        image.size_bytes = size_bytes;
        image
    }

    #[test]
    fn the_largest_images_are_named_by_digests_then_tags() {
        let images = vec![image("small", 1), image("large", 3), image("middle", 2)];
        let all = told(images.clone(), Some(2));
        assert_eq!(all.iter().map(|i| i.size_bytes).collect::<Vec<_>>(), [Some(3), Some(2)]);
        let names = all[0].names.clone().unwrap();
        assert_eq!(names, ["r/large@sha256:0", "r/large:0", "r/large:1", "r/large:2", "r/large:3"]);
        assert_eq!(told(images.clone(), None).len(), 3);
        assert!(told(images, Some(0)).is_empty());
    }
}
