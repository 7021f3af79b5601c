//! get and list.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hyper::StatusCode;
use serde_json::{Value, json};

use crate::api::Api;
use crate::failure::Failure;
use crate::http::answer::{self, Answer};
use crate::http::form;
use crate::http::handle::{Call, rendered};
use crate::http::query::Query;
use crate::http::route::Target;
use crate::selector::{Selector, field, label};
use crate::store::{Listing, Store};

/// Reads one object.
///
/// # Errors
/// 404, or 504 for a revision not reached yet.
pub(crate) fn get(api: &Api, target: &Target, call: &Call) -> Result<Answer, Failure> {
    not_beyond(&api.store, wanted_revision(&call.query)?)?;
    let object = api
        .store
        .get(&target.key())
        .ok_or_else(|| Failure::not_found(target.resource, &target.name))?;
    Ok(rendered(call, target, (StatusCode::OK, &object)))
}

/// Reads the selectors of a request.
///
/// # Errors
/// 400 when one is malformed.
pub(crate) fn selector(target: &Target, query: &Query) -> Result<Selector, Failure> {
    let bad = |error: crate::selector::Malformed| Failure::bad_request(error.to_string());
    Ok(Selector {
        labels: label::Selector::parse(query.text("labelSelector")).map_err(bad)?,
        fields: field::Selector::parse(target.resource.kind, query.text("fieldSelector"))
            .map_err(bad)?,
    })
}

/// The `resourceVersion` parameter; absent and "0" are different things.
///
/// # Errors
/// 400 when it is no number.
pub(crate) fn wanted_revision(query: &Query) -> Result<Option<u64>, Failure> {
    match query.text("resourceVersion") {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| Failure::bad_request(format!("resourceVersion: Invalid value: {text:?}"))),
    }
}

/// Refuses a revision that is not reached yet.
///
/// # Errors
/// 504.
pub(crate) fn not_beyond(store: &Store, wanted: Option<u64>) -> Result<(), Failure> {
    let current = store.revision();
    match wanted {
        Some(wanted) if wanted > current => Err(Failure::too_new(wanted, current)),
        _ => Ok(()),
    }
}

/// Lists a collection.
///
/// # Errors
/// 400 for malformed parameters, 410 when the revision asked for is forgotten.
pub(crate) fn list(api: &Api, target: &Target, call: &Call) -> Result<Answer, Failure> {
    let selector = selector(target, &call.query)?;
    let limit = usize::try_from(call.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    let prefix = target.resource.prefix(&target.namespace);
    let (listing, start) = snapshot(&api.store, &prefix, &call.query)?;

    let after = |key: &str| start.as_deref().is_none_or(|start| key > start);
    let mut selected = listing
        .items
        .iter()
        .filter(|(key, object)| after(key) && selector.matches(object))
        .peekable();
    let mut page = Vec::new();
    while let Some(item) = selected.peek() {
        if limit > 0 && page.len() == limit {
            break;
        }
        page.push(*item);
        selected.next();
    }
    let mut metadata = json!({"resourceVersion": listing.revision.to_string()});
    if let (Some(_), Some((last, _))) = (selected.peek(), page.last()) {
        metadata["continue"] = token(listing.revision, last).into();
        if selector.is_everything() {
            metadata["remainingItemCount"] = selected.count().into();
        }
    }
    let items = page.into_iter().map(|(_, object)| object.as_ref());
    let list = form::many(call.form, target.resource, (metadata, items));
    Ok(answer::json(StatusCode::OK, &list))
}

/// The objects to list and the key to start after.
fn snapshot(
    store: &Store,
    prefix: &str,
    query: &Query,
) -> Result<(Listing, Option<String>), Failure> {
    let wanted = wanted_revision(query)?;
    let rule = query.text("resourceVersionMatch");
    if let Some(text) = query.get("continue").filter(|text| !text.is_empty()) {
        if wanted.is_some_and(|wanted| wanted != 0) || !rule.is_empty() {
            return Err(Failure::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let (revision, start) = parse_token(text)?;
        let listing = store.list_at(prefix, revision).map_err(|_| {
            Failure::expired(
                "The provided continue parameter is too old to display a consistent list result. \
                 You can start a new list without the continue parameter.",
            )
        })?;
        return Ok((listing, Some(start)));
    }
    match (rule, wanted) {
        ("" | "NotOlderThan" | "Exact", None) if rule.is_empty() => {}
        ("NotOlderThan" | "Exact", None) => {
            return Err(Failure::bad_request(
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        ("Exact", Some(0)) => {
            return Err(Failure::bad_request(
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
        ("Exact", Some(exact)) => {
            not_beyond(store, wanted)?;
            let listing = store
                .list_at(prefix, exact)
                .map_err(|gone| Failure::too_old(exact, gone.oldest))?;
            return Ok((listing, None));
        }
        ("" | "NotOlderThan", Some(_)) => not_beyond(store, wanted)?,
        (other, _) => {
            return Err(Failure::bad_request(format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \
                 \"NotOlderThan\""
            )));
        }
    }
    Ok((store.list(prefix), None))
}

fn token(revision: u64, last: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({"v": "berth/v1", "rv": revision, "start": last}).to_string())
}

fn parse_token(text: &str) -> Result<(u64, String), Failure> {
    let bad = || Failure::bad_request("continue key is not valid");
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    let revision = value["rv"].as_u64().ok_or_else(bad)?;
    Ok((revision, value["start"].as_str().ok_or_else(bad)?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continue_token_comes_back_as_it_was() {
        let (revision, start) = parse_token(&token(7, "pods/a/x")).unwrap();
        assert_eq!((revision, start.as_str()), (7, "pods/a/x"));
        assert!(parse_token("nonsense!").is_err());
    }
}
