//! When it is asked who may use images that are there (KEP-2535). Pure.

use berth_kubelet::image_access::{Allowed, Verification};

use super::documents::{KubeletConfiguration, gates};

const FIELD: &str = "imagePullCredentialsVerificationPolicy";
const LIST: &str = "preloadedImagesVerificationAllowlist";

/// What was said, with all that is wrong with it.
pub(super) fn resolve(given: &KubeletConfiguration) -> Result<Verification, Vec<String>> {
    let policy = given.image_pull_credentials_verification_policy.as_deref().unwrap_or_default();
    let listed = &given.preloaded_images_verification_allowlist;
    if !gates::has_ensured_secrets(&given.feature_gates) {
        let said = [(FIELD, !policy.is_empty()), (LIST, !listed.is_empty())];
        let faults = said.into_iter().filter(|(_, is_said)| *is_said).map(|(field, _)| {
            format!("{field}: the feature gate KubeletEnsureSecretPulledImages is off")
        });
        let faults: Vec<_> = faults.collect();
        return if faults.is_empty() { Ok(Verification::Never) } else { Err(faults) };
    }
    let verification = match policy {
        "NeverVerify" => Verification::Never,
        "" | "NeverVerifyPreloadedImages" => Verification::Pulled,
        "AlwaysVerify" => Verification::Always,
        "NeverVerifyAllowlistedImages" => {
            let (mut allowed, mut faults) = (Vec::new(), Vec::new());
            for (place, pattern) in listed.iter().enumerate() {
                match Allowed::parse(pattern) {
                    Ok(pattern) => allowed.push(pattern),
                    Err(fault) => faults.push(format!("{LIST}[{place}]: {fault}")),
                }
            }
            let verification = Verification::Unlisted(allowed);
            return if faults.is_empty() { Ok(verification) } else { Err(faults) };
        }
        other => return Err(vec![format!("{FIELD}: {other:?} is no such policy")]),
    };
    match listed.is_empty() {
        true => Ok(verification),
        false => Err(vec![format!("{LIST}: only with {FIELD}: NeverVerifyAllowlistedImages")]),
    }
}

/// The policy's name, as `/configz` shows it.
pub(super) fn name(verification: &Verification) -> &'static str {
    match verification {
        Verification::Never => "NeverVerify",
        Verification::Pulled => "NeverVerifyPreloadedImages",
        Verification::Unlisted(_) => "NeverVerifyAllowlistedImages",
        Verification::Always => "AlwaysVerify",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_upstreams_and_lists_go_with_one_of_them() {
        let read = |fields: &str| resolve(&serde_saphyr::from_str(fields).unwrap());
        let listed = "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\n\
                      preloadedImagesVerificationAllowlist: [r.example/app, r.example/team/*]\n";
        let allowed = ["r.example/app", "r.example/team/*"].map(|p| Allowed::parse(p).unwrap());
        let off = "featureGates: {KubeletEnsureSecretPulledImages: false}\n";
        for (fields, expected) in [
            ("{}", Verification::Pulled),
            (off, Verification::Never),
            ("imagePullCredentialsVerificationPolicy: NeverVerify", Verification::Never),
            (
                "imagePullCredentialsVerificationPolicy: NeverVerifyPreloadedImages",
                Verification::Pulled,
            ),
            ("imagePullCredentialsVerificationPolicy: AlwaysVerify", Verification::Always),
            (listed, Verification::Unlisted(allowed.into())),
        ] {
            let found = read(fields).unwrap();
            assert_eq!(found, expected, "{fields}");
            assert!(fields.contains("Gates") || fields == "{}" || fields.contains(name(&found)));
        }
        let both = format!("{listed}{off}");
        for (fields, faults) in [
            ("imagePullCredentialsVerificationPolicy: Sometimes", 1),
            ("preloadedImagesVerificationAllowlist: [r.example/app]", 1),
            (&listed.replace("r.example/app", "'*', app"), 2),
            (&both, 2),
        ] {
            assert_eq!(read(fields).unwrap_err().len(), faults, "{fields}");
        }
    }
}
