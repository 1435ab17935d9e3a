//! Path rewriting. Pure.
//!
//! Invariant: the query is kept, the result starts with `/`. Source: Istio `HTTPRewrite`; Envoy's
//! prefix rewrite is a replacement in the string, so `prefix: /a/` with `uri: /` makes `/a/b` `/b`.

use http::Uri;
use http::uri::PathAndQuery;

use crate::model::{HttpMatch, PathRewrite, StringMatch, path_of};

/// The new path and query of `uri`.
pub(super) fn rewritten(
    rewrite: &PathRewrite,
    entry: Option<&HttpMatch>,
    uri: &Uri,
) -> Option<PathAndQuery> {
    let path = path_of(uri);
    let path = match rewrite {
        PathRewrite::Uri(replacement) => replace_match(path, entry, replacement),
        PathRewrite::Regex { pattern, replacement } => {
            pattern.replace_all(path, &**replacement).into_owned()
        }
    };
    with_query(&path, uri.query())
}

/// `replacement` in place of the prefix that `entry` matched, or of the whole path if it matched
/// another way. Without a condition on the path, the prefix is `/`.
pub(super) fn replace_match(path: &str, entry: Option<&HttpMatch>, replacement: &str) -> String {
    match entry.and_then(|entry| entry.uri.as_ref()) {
        Some(StringMatch::Prefix(prefix)) => replace_prefix(path, prefix.len(), replacement),
        Some(StringMatch::Exact(_) | StringMatch::Regex(_) | StringMatch::Present) => {
            replacement.to_owned()
        }
        None => replace_prefix(path, 1, replacement),
    }
}

fn replace_prefix(path: &str, length: usize, replacement: &str) -> String {
    format!("{replacement}{}", path.get(length..).unwrap_or(""))
}

/// A path (which gets a leading slash if it has none) and a query. `None` if it is no legal target.
pub(super) fn with_query(path: &str, query: Option<&str>) -> Option<PathAndQuery> {
    let slash = if path.starts_with('/') { "" } else { "/" };
    match query {
        Some(query) => format!("{slash}{path}?{query}"),
        None => format!("{slash}{path}"),
    }
    .parse()
    .ok()
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    fn check(uri: Option<StringMatch>, rewrite: PathRewrite, cases: &[(&str, &str)]) {
        let entry = HttpMatch { uri, ..HttpMatch::default() };
        for (from, to) in cases {
            let rewritten = rewritten(&rewrite, Some(&entry), &from.parse().unwrap()).unwrap();
            assert_eq!(rewritten.as_str(), *to, "{from}");
        }
    }

    fn uri(text: &str) -> PathRewrite {
        PathRewrite::Uri(text.into())
    }

    #[test]
    fn a_prefix_is_replaced_in_the_string() {
        let prefix = |text: &str| Some(StringMatch::Prefix(text.into()));
        let cases = [("/old", "/new"), ("/old/x?q=1", "/new/x?q=1"), ("/older", "/newer")];
        check(prefix("/old"), uri("/new"), &cases);
        check(prefix("/a/"), uri("/"), &[("/a/b", "/b"), ("/a/", "/")]);
        check(prefix("/a"), uri("/"), &[("/a/b", "//b"), ("/a", "/")]);
        check(prefix("/"), uri("/x/"), &[("/b", "/x/b"), ("/", "/x/")]);
        check(prefix("/a"), uri(""), &[("/a/b", "/b"), ("/a", "/")]);
    }

    #[test]
    fn exact_and_regex_matches_lose_the_whole_path() {
        check(Some(StringMatch::Exact("/a/b".into())), uri("/x"), &[("/a/b?q", "/x?q")]);
        let regex = StringMatch::Regex(Regex::new("^/a.*$").unwrap());
        check(Some(regex), uri("/x"), &[("/abc/d?q=1", "/x?q=1")]);
    }

    #[test]
    fn without_a_path_condition_the_prefix_is_the_slash() {
        check(None, uri("/x/"), &[("/a/b?q", "/x/a/b?q"), ("/", "/x/")]);
    }

    #[test]
    fn regexes_substitute_groups() {
        let rewrite = PathRewrite::Regex {
            pattern: Regex::new("^/users/([0-9]+)/(.*)$").unwrap(),
            replacement: "/${2}/by/${1}".into(),
        };
        let cases = [("/users/7/posts?p=2", "/posts/by/7?p=2"), ("/other", "/other")];
        check(None, rewrite, &cases);
    }

    #[test]
    fn an_illegal_target_is_refused() {
        let uri = "/a".parse().unwrap();
        assert_eq!(rewritten(&self::uri("/with space"), None, &uri), None);
    }
}
