//! Acting as somebody else (`kubectl --as`): whom a request says it is made as, and whether who makes it may.
//!
//! Differs: UIDs and extra attributes of users are refused, as nothing here looks at them.

use hyper::header::{HeaderMap, HeaderName};

use super::access::{ANONYMOUS, Identity, may};
use crate::failure::Failure;
use crate::rbac::Asked;
use crate::store::Store;

const PREFIX: &str = "impersonate-";
const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const ACCOUNTS: &str = "system:serviceaccounts";

/// Whom a request counts for: who makes it, or whom they ask to act as.
///
/// # Errors
/// 400 for what is not understood, 403 where who asks may not act as that user or group.
pub(super) fn effective(
    store: &Store,
    identity: Identity,
    headers: &HeaderMap,
) -> Result<Identity, Failure> {
    let Some(wanted) = wanted(headers)? else { return Ok(identity) };
    check(store, &identity, ("users", &wanted.user))?;
    let asked = texts(headers, &GROUP)?;
    asked.iter().try_for_each(|group| check(store, &identity, ("groups", group)))?;
    Ok(wanted)
}

fn texts(headers: &HeaderMap, name: &HeaderName) -> Result<Vec<String>, Failure> {
    let text = |value: &hyper::header::HeaderValue| value.to_str().map(str::to_owned);
    let all: Result<_, _> = headers.get_all(name).iter().map(text).collect();
    all.map_err(|_| Failure::bad_request(format!("the header {name} is no text")))
}

fn wanted(headers: &HeaderMap) -> Result<Option<Identity>, Failure> {
    let names: Vec<&HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).collect();
    if let Some(other) = names.iter().find(|name| **name != USER && **name != GROUP) {
        let why = format!("the header {other} is not supported by this server");
        return Err(Failure::bad_request(why));
    }
    let user = texts(headers, &USER)?.into_iter().next().unwrap_or_default();
    let mut groups = texts(headers, &GROUP)?;
    if user.is_empty() {
        return match names.first() {
            Some(name) => Err(Failure::bad_request(format!(
                "the header {name} is there without a user to impersonate"
            ))),
            None => Ok(None),
        };
    }
    if groups.is_empty()
        && let Some((namespace, _)) = account(&user)
    {
        groups = vec![ACCOUNTS.to_owned(), format!("{ACCOUNTS}:{namespace}")];
    }
    if user == ANONYMOUS && groups.is_empty() {
        groups.push("system:unauthenticated".to_owned());
    }
    Ok(Some(Identity { user, groups }))
}

/// Namespace and name of a service account that is a user.
fn account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

fn check(store: &Store, who: &Identity, (kind, name): (&str, &str)) -> Result<(), Failure> {
    let of_account = account(name).filter(|_| kind == "users");
    let (resource, namespace, object) = match of_account {
        Some((namespace, object)) => ("serviceaccounts", namespace, object),
        None => (kind, "", name),
    };
    let asked =
        Asked { verb: "impersonate", resource, namespace, name: object, ..Asked::default() };
    if may(store, who, &asked) {
        return Ok(());
    }
    let place = match namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    Err(Failure::forbidden_review(
        &format!("{resource} {object:?}"),
        &format!(
            "User {:?} cannot impersonate resource {resource:?} in API group \"\" {place}",
            who.user
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(headers: &[(&'static str, &str)]) -> Result<Option<Identity>, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        wanted(&map).map_err(|failure| failure.to_string())
    }

    fn who(user: &str, groups: &[&str]) -> Result<Option<Identity>, String> {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Ok(Some(Identity { user: user.to_owned(), groups }))
    }

    #[test]
    fn a_request_is_made_as_the_user_and_the_groups_it_names() {
        assert_eq!(asked(&[("accept", "*/*")]), Ok(None));
        let user = ("impersonate-user", "eve");
        assert_eq!(asked(&[user]), who("eve", &[]));
        let groups = [("impersonate-group", "a"), ("impersonate-group", "b")];
        assert_eq!(asked(&[user, groups[0], groups[1]]), who("eve", &["a", "b"]));
        let account = "system:serviceaccount:team:robot";
        let own = ["system:serviceaccounts", "system:serviceaccounts:team"];
        assert_eq!(asked(&[("impersonate-user", account)]), who(account, &own));
        assert_eq!(
            asked(&[("impersonate-user", ANONYMOUS)]),
            who(ANONYMOUS, &["system:unauthenticated"])
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        let alone = asked(&[("impersonate-group", "system:masters")]).unwrap_err();
        assert!(alone.contains("without a user"), "{alone}");
        for name in ["impersonate-uid", "impersonate-extra-scopes"] {
            let refused = asked(&[("impersonate-user", "eve"), (name, "1")]).unwrap_err();
            assert!(refused.contains(name), "{refused}");
        }
    }
}
