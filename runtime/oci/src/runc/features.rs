//! `features`: what this runtime offers, for callers that choose by it. OCI runtime spec, `features.md`.

use lexopt::Parser;
use serde_json::json;

use super::state::print_json;
use super::{Context, Result, arguments};

/// The version of the specification that is followed.
pub(super) const SPEC_VERSION: &str = "1.2.1";

pub(super) const USAGE: &str = "features";

/// Prints what is offered.
pub(super) fn features(_context: &Context, parser: &mut Parser) -> Result<u8> {
    arguments::collect(parser, |flag, _| Err(arguments::unknown(flag)))?;
    print_json(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
    }));
    Ok(0)
}
