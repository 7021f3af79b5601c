//! Who a process is: the one parser of user strings, `/etc/passwd` and `/etc/group`. Pure.
//!
//! Digits are ids and are never looked up as names, and ids end at 2³¹−1: what a string means does
//! not depend on what an image calls its users (CVE-2016-3697, CVE-2024-40635). Reading the files is
//! [`super::process`]'s.

use super::{Error, Result};
use crate::protocol::{ResolvedUser, UserSelector};

const MAX_ID: u32 = i32::MAX as u32;

/// A resolved user and where its home is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: ResolvedUser,
    /// The passwd entry's home, when there is one.
    pub(crate) home: Option<String>,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= MAX_ID)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn passwd(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        Some(PasswdEntry {
            name: fields.first().filter(|name| !name.is_empty())?,
            uid: id(fields.get(2)?)?,
            gid: id(fields.get(3)?)?,
            home: fields.get(5).copied().unwrap_or_default(),
        })
    })
}

fn group(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        Some(GroupEntry {
            name: fields.first().filter(|name| !name.is_empty())?,
            gid: id(fields.get(2)?)?,
            members: fields.get(3).copied().unwrap_or_default(),
        })
    })
}

fn out_of_range(what: &str, text: &str) -> Error {
    Error::invalid("user", format!("{what} {text} is not in the range 0 to {MAX_ID}"))
}

/// Resolves a selector against the contents of the two files.
pub(crate) fn resolve(
    selector: &UserSelector,
    passwd_text: &str,
    group_text: &str,
) -> Result<Identity> {
    let (user_part, group_part) = match selector.user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (selector.user.as_str(), None),
    };
    let (uid, entry) = match user_part {
        "" => (0, passwd(passwd_text).find(|entry| entry.uid == 0)),
        number if is_number(number) => {
            let uid = id(number).ok_or_else(|| out_of_range("uid", number))?;
            (uid, passwd(passwd_text).find(|entry| entry.uid == uid))
        }
        name => match passwd(passwd_text).find(|entry| entry.name == name) {
            Some(entry) => (entry.uid, Some(entry)),
            None => {
                let reason =
                    format!("unable to find user {name}: no matching entries in passwd file");
                return Err(Error::invalid("user", reason));
            }
        },
    };
    let gid = match (selector.group, group_part) {
        (Some(gid), _) if gid <= MAX_ID => gid,
        (Some(gid), _) => return Err(out_of_range("gid", &gid.to_string())),
        (None, Some(group)) => named_group(group, group_text)?,
        (None, None) => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    // Statuses show them in this order, and are compared with what containerd and CRI-O make.
    let mut groups = vec![gid];
    if let (false, Some(entry)) = (selector.strict_groups, &entry) {
        let lists =
            |group: &GroupEntry<'_>| group.members.split(',').any(|name| name == entry.name);
        groups.extend(group(group_text).filter(lists).map(|group| group.gid));
    }
    groups.extend(&selector.supplemental_groups);
    if let Some(large) = groups.iter().find(|gid| **gid > MAX_ID) {
        return Err(out_of_range("gid", &large.to_string()));
    }
    let home = entry.map(|entry| entry.home.to_owned()).filter(|home| !home.is_empty());
    if home.as_ref().is_some_and(|home| home.chars().any(char::is_control)) {
        return Err(Error::invalid(
            "user",
            "the home directory in passwd holds control characters",
        ));
    }
    Ok(Identity { user: ResolvedUser { uid, gid, supplemental_groups: unique(groups) }, home })
}

fn named_group(text: &str, group_text: &str) -> Result<u32> {
    if is_number(text) {
        return id(text).ok_or_else(|| out_of_range("gid", text));
    }
    let found = group(group_text).find(|group| group.name == text).map(|group| group.gid);
    found.ok_or_else(|| {
        let reason = format!("unable to find group {text}: no matching entries in group file");
        Error::invalid("user", reason)
    })
}

fn unique(groups: Vec<u32>) -> Vec<u32> {
    let mut kept = Vec::with_capacity(groups.len());
    for group in groups {
        if !kept.contains(&group) {
            kept.push(group);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/srv:/bin/sh\n\
                          1000:x:0:0::/:/bin/sh\n7:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n\
                          broken\nbig:x:4294967295:0::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:50:web,other\nadm:x:51:other\n99:x:0:\n";

    fn resolve_user(user: &str) -> Result<Identity> {
        let selector = UserSelector { user: user.to_owned(), ..UserSelector::default() };
        resolve(&selector, PASSWD, GROUP)
    }

    fn ids(user: &str) -> (u32, u32) {
        let user = resolve_user(user).unwrap().user;
        (user.uid, user.gid)
    }

    #[test]
    fn names_and_ids_resolve() {
        assert_eq!(ids(""), (0, 0));
        assert_eq!(ids("web"), (33, 34));
        assert_eq!(ids("33"), (33, 34));
        assert_eq!(ids("web:log"), (33, 50));
        assert_eq!(ids("12:13"), (12, 13));
        assert_eq!(ids(":log"), (0, 50));
        assert_eq!(resolve_user("web").unwrap().home.as_deref(), Some("/srv"));
    }

    #[test]
    fn digits_never_fall_back_to_a_name() {
        assert_eq!(ids("1000"), (1000, 0));
        assert_eq!(ids("007"), (7, 0));
        assert_eq!(ids("1:99"), (1, 99));
        for user in ["4294967296", "2147483648", "1:4294967296", "1:2147483648"] {
            assert!(resolve_user(user).is_err(), "{user}");
        }
    }

    #[test]
    fn what_looks_like_a_number_but_is_none_is_a_missing_name() {
        for user in [" 1", "+1", "-1", "0x1", "1 ", "big", "nobody", "web:nobody"] {
            assert!(resolve_user(user).is_err(), "{user}");
        }
    }

    #[test]
    fn groups_of_the_image_are_merged_unless_strict() {
        let mut selector = UserSelector {
            user: "33".to_owned(),
            group: Some(70),
            supplemental_groups: vec![80, 40, 50, 80],
            strict_groups: false,
        };
        let merged = resolve(&selector, PASSWD, GROUP).unwrap().user;
        assert_eq!(merged.supplemental_groups, [70, 50, 80, 40], "the image's before the pod's");
        assert_eq!(merged.gid, 70);
        selector.strict_groups = true;
        selector.supplemental_groups.clear();
        let strict = resolve(&selector, PASSWD, GROUP).unwrap().user;
        assert_eq!(strict.supplemental_groups, [70]);
    }

    #[test]
    fn control_characters_in_a_home_are_refused() {
        let passwd = "x:x:1:1::/root\tx:/bin/sh\n";
        let selector = UserSelector { user: "x".to_owned(), ..UserSelector::default() };
        assert!(resolve(&selector, passwd, "").is_err());
    }
}
