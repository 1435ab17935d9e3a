//! The rules of a host, and which of them a path may fall under. Pure.

use std::ops::Deref;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{HttpRule, StringMatch};

/// With so many rules a path is looked up; below, each rule is looked at.
const INDEXED: usize = 32;

/// `http[]` in order. Invariant: what matches is found as if each rule were tried in turn.
#[derive(Clone, Debug, Default)]
pub struct HttpRules {
    rules: Vec<HttpRule>,
    index: Option<Arc<PathIndex>>,
}

/// Rules by what they ask of the path: places in the list, ascending.
#[derive(Debug, Default)]
struct PathIndex {
    exact: FxHashMap<Arc<str>, Vec<usize>>,
    prefix: FxHashMap<Arc<str>, Vec<usize>>,
    /// Lengths of prefixes.
    lengths: Vec<usize>,
    /// Those that ask nothing of the path, or what cannot be looked up.
    others: Vec<usize>,
}

impl HttpRules {
    /// The rules that may match a path, in order. Their conditions are still to be tried.
    pub fn of_path<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a HttpRule> + use<'a> {
        let (all, found) = match &self.index {
            None => (&*self.rules, Vec::new()),
            Some(index) => (&[][..], index.find(path)),
        };
        all.iter().chain(found.into_iter().filter_map(|at| self.rules.get(at)))
    }

    /// For changes to what rules do; what they match must stay.
    pub fn actions_mut(&mut self) -> impl Iterator<Item = &mut super::Action> {
        self.rules.iter_mut().map(|rule| &mut rule.action)
    }
}

impl From<Vec<HttpRule>> for HttpRules {
    fn from(rules: Vec<HttpRule>) -> Self {
        let index = (rules.len() >= INDEXED).then(|| Arc::new(PathIndex::new(&rules)));
        Self { rules, index }
    }
}

impl Deref for HttpRules {
    type Target = [HttpRule];

    fn deref(&self) -> &[HttpRule] {
        &self.rules
    }
}

impl<'a> IntoIterator for &'a HttpRules {
    type Item = &'a HttpRule;
    type IntoIter = std::slice::Iter<'a, HttpRule>;

    fn into_iter(self) -> Self::IntoIter {
        self.rules.iter()
    }
}

impl PartialEq for HttpRules {
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
    }
}

impl PathIndex {
    fn new(rules: &[HttpRule]) -> Self {
        let mut index = Self::default();
        for (at, rule) in rules.iter().enumerate() {
            if rule.matches.is_empty() {
                index.others.push(at);
            }
            for entry in &rule.matches {
                let places = match &entry.uri {
                    Some(StringMatch::Exact(path)) if !entry.ignore_uri_case => {
                        index.exact.entry(Arc::clone(path)).or_default()
                    }
                    Some(StringMatch::Prefix(path)) if !entry.ignore_uri_case => {
                        index.prefix.entry(Arc::clone(path)).or_default()
                    }
                    _ => &mut index.others,
                };
                if places.last() != Some(&at) {
                    places.push(at);
                }
            }
        }
        index.lengths = index.prefix.keys().map(|path| path.len()).collect();
        index.lengths.sort_unstable();
        index.lengths.dedup();
        index
    }

    fn find(&self, path: &str) -> Vec<usize> {
        let mut found = self.others.clone();
        found.extend(self.exact.get(path).into_iter().flatten());
        let prefixes = self.lengths.iter().map_while(|length| match *length <= path.len() {
            // Not where it would cut a letter: no prefix ends there.
            true => Some(path.get(..*length)),
            false => None,
        });
        for prefix in prefixes.flatten() {
            found.extend(self.prefix.get(prefix).into_iter().flatten());
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Action, DirectResponse, HeaderOps, HttpMatch};
    use super::*;

    fn rule(name: usize, uris: &[Option<StringMatch>]) -> HttpRule {
        let entry =
            |uri: &Option<StringMatch>| HttpMatch { uri: uri.clone(), ..HttpMatch::default() };
        HttpRule {
            name: name.to_string().into(),
            matches: uris.iter().map(entry).collect(),
            action: Action::Direct(DirectResponse {
                status: http::StatusCode::OK,
                body: bytes::Bytes::new(),
            }),
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            fault: None,
            cors: None,
        }
    }

    fn matches(rule: &HttpRule, path: &str) -> bool {
        let of = |entry: &HttpMatch| {
            entry.uri.as_ref().is_none_or(|uri| uri.matches(path, entry.ignore_uri_case))
        };
        rule.matches.is_empty() || rule.matches.iter().any(of)
    }

    fn uri() -> impl Strategy<Value = Option<StringMatch>> {
        let path = || proptest::string::string_regex("/[abé]{0,3}").unwrap();
        prop_oneof![
            8 => path().prop_map(|path| Some(StringMatch::Exact(path.into()))),
            8 => path().prop_map(|path| Some(StringMatch::Prefix(path.into()))),
            1 => Just(None),
            1 => Just(Some(StringMatch::Regex(regex::Regex::new("^/a+$").unwrap()))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_looked_up_is_what_would_be_found(
            uris in proptest::collection::vec(proptest::collection::vec(uri(), 0..3), 32..60),
            path in "/[abé]{0,4}",
        ) {
            let rules: Vec<_> = uris.iter().enumerate().map(|(at, uris)| rule(at, uris)).collect();
            let expected: Vec<_> = rules.iter().filter(|rule| matches(rule, &path)).collect();
            let table = HttpRules::from(rules.clone());
            let found: Vec<_> = table.of_path(&path).filter(|rule| matches(rule, &path)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
