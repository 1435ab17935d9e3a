//! `http[].delegate`: the entries of another `VirtualService` in place of one (istio-surface 1.1.1,
//! "Delegate").
//!
//! A delegate's entry keeps of its conditions what narrows its root's, and takes what it does not
//! write from its root. Invariant: a root's other entries do not depend on a delegate.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::view::{Entry, View};
use crate::config::diagnostic::Report;
use crate::config::translate::{MatchFacts, RouteFacts, Target, VirtualServiceFacts, exported};
use crate::model::{HttpMatch, KeyMatch, StringMatch};

type Name<'a> = (&'a str, &'a str);

/// What can be delegated to.
pub(super) struct Delegates<'a> {
    /// Virtual services by namespace and name.
    all: HashMap<Name<'a>, &'a Entry<'a, VirtualServiceFacts>>,
    /// Those that a root names.
    named: HashSet<Name<'a>>,
}

/// What an object's entries become, with those of its delegates in place.
pub(super) struct Expanded<'a> {
    /// The entries; none of them delegates.
    pub(super) routes: Vec<RouteFacts>,
    /// Delegates that some of them come from.
    pub(super) from: Vec<&'a Entry<'a, VirtualServiceFacts>>,
}

// === impl Delegates ===

impl<'a> Delegates<'a> {
    /// Indexes the objects.
    pub(super) fn new(view: &'a View<'_>) -> Self {
        let entries = view.virtual_services.iter();
        let all = entries.map(|entry| (name_of(entry), entry)).collect();
        let roots = view.virtual_services.iter().filter(|entry| !entry.facts.is_delegate);
        let named = roots.flat_map(|root| &root.facts.routes).filter_map(|route| {
            let Target::Delegate { namespace, name } = &route.target else { return None };
            Some((&**namespace, &**name))
        });
        Self { all, named: named.collect() }
    }

    /// Whether a root names this one.
    pub(super) fn is_named(&self, entry: &Entry<'_, VirtualServiceFacts>) -> bool {
        self.named.contains(&name_of(entry))
    }

    /// Puts delegates in place of the entries that name them; one that cannot be is left out.
    pub(super) fn expand(
        &self,
        root: &Entry<'_, VirtualServiceFacts>,
        view: &View<'_>,
        report: &mut Report,
    ) -> Expanded<'a> {
        let mut expanded = Expanded { routes: Vec::new(), from: Vec::new() };
        for route in &root.facts.routes {
            let Target::Delegate { namespace, name } = &route.target else {
                expanded.routes.push(route.clone());
                continue;
            };
            let field = format!("{}.delegate", route.field);
            match self.find((&**namespace, &**name), &root.object.key.namespace, view) {
                Ok(delegate) => {
                    let all = delegate.facts.routes.iter();
                    let merged = all.filter_map(|entry| {
                        let merged = merge(route, entry);
                        if merged.is_none() {
                            let place = &entry.field;
                            let message = format!(
                                "{place} of VirtualService {namespace}/{name} is left out: no \
                                 `match` of it narrows one of this route"
                            );
                            report.warning(field.as_str(), message);
                        }
                        merged
                    });
                    expanded.routes.extend(merged);
                    expanded.from.push(delegate);
                }
                Err(fault) => {
                    let message = format!(
                        "VirtualService {namespace}/{name} {fault}: this route is left out"
                    );
                    report.warning(field, message);
                }
            }
        }
        expanded
    }

    fn find(
        &self,
        name: Name<'_>,
        root_namespace: &str,
        view: &View<'_>,
    ) -> Result<&'a Entry<'a, VirtualServiceFacts>, &'static str> {
        let found = *self.all.get(&name).ok_or("is not there")?;
        if !found.facts.is_delegate {
            return Err("has hosts, so nothing can be delegated to it");
        }
        let default = || exported(&view.mesh.virtual_services, &found.object.key.namespace);
        let visibility = found.facts.visibility.clone().unwrap_or_else(default);
        if !visibility.includes(root_namespace) {
            return Err("is not exported to this namespace");
        }
        Ok(found)
    }
}

fn name_of<'a>(entry: &Entry<'a, VirtualServiceFacts>) -> Name<'a> {
    (&entry.object.key.namespace, &entry.object.key.name)
}

// === merging ===

/// A delegate's entry below a root's; `None` if no request can meet both as they are written.
fn merge(root: &RouteFacts, entry: &RouteFacts) -> Option<RouteFacts> {
    let matches = if root.matches.is_empty() {
        entry.matches.clone()
    } else if entry.matches.is_empty() {
        root.matches.clone()
    } else {
        merge_matches(&root.matches, &entry.matches)?
    };
    Some(RouteFacts {
        field: entry.field.clone(),
        name: joined(&root.name, &entry.name),
        matches,
        target: entry.target.clone(),
        options: entry.options.clone().or(&root.options),
    })
}

/// Each of the delegate's with each of the root's that it narrows; one that narrows none spoils the
/// entry, as in Istio.
fn merge_matches(roots: &[MatchFacts], leaves: &[MatchFacts]) -> Option<Vec<MatchFacts>> {
    let mut merged = Vec::with_capacity(leaves.len());
    for leaf in leaves {
        let before = merged.len();
        merged.extend(roots.iter().filter_map(|root| merge_match(root, leaf)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

/// `root-leaf`, where both have a name.
fn joined(root: &str, leaf: &str) -> String {
    match (root, leaf) {
        ("", name) | (name, "") => name.to_owned(),
        (root, leaf) => format!("{root}-{leaf}"),
    }
}

/// Both together, if `leaf` narrows `root`.
fn merge_match(root: &MatchFacts, leaf: &MatchFacts) -> Option<MatchFacts> {
    let (above, below) = (&root.conditions, &leaf.conditions);
    let inherits = leaf.gateways.is_empty();
    let gateways = if inherits { &root.gateways } else { &leaf.gateways };
    if !root.gateways.is_empty() && !gateways.iter().all(|name| root.gateways.contains(name)) {
        return None;
    }
    let both = above.uri.is_some() && below.uri.is_some();
    if both && above.ignore_uri_case != below.ignore_uri_case {
        return None;
    }
    let mut merged = HttpMatch {
        name: joined(&above.name, &below.name).into(),
        uri: narrowed(above.uri.as_ref(), below.uri.as_ref())?,
        ignore_uri_case: above.ignore_uri_case || below.ignore_uri_case,
        scheme: narrowed(above.scheme.as_ref(), below.scheme.as_ref())?,
        method: narrowed(above.method.as_ref(), below.method.as_ref())?,
        authority: narrowed(above.authority.as_ref(), below.authority.as_ref())?,
        headers: narrowed_keys(&above.headers, &below.headers)?,
        without_headers: above.without_headers.clone(),
        query: narrowed_keys(&above.query, &below.query)?,
        port: one_of(above.port, below.port)?,
        ..HttpMatch::default()
    };
    for excluded in &below.without_headers {
        if !merged.without_headers.contains(excluded) {
            merged.without_headers.push(excluded.clone());
        }
    }
    // `gateways` decide alone: the source is then not looked at (istio-surface 7.2, 5).
    if gateways.is_empty() {
        merged.source_namespace =
            one_of(above.source_namespace.clone(), below.source_namespace.clone())?;
        merged.source_labels.clone_from(&above.source_labels);
        for (label, value) in &below.source_labels {
            let before = merged.source_labels.insert(Arc::clone(label), Arc::clone(value));
            if before.is_some_and(|before| before != *value) {
                return None;
            }
        }
    }
    Some(MatchFacts { conditions: merged, gateways: gateways.clone() })
}

/// The value that one of them has; `None` if they differ.
fn one_of<T: PartialEq>(root: Option<T>, leaf: Option<T>) -> Option<Option<T>> {
    match (root, leaf) {
        (Some(root), Some(leaf)) => (root == leaf).then_some(Some(leaf)),
        (root, leaf) => Some(leaf.or(root)),
    }
}

/// The condition that holds for both; `None` if `leaf` does not narrow `root`.
fn narrowed(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> Option<Option<StringMatch>> {
    match (root, leaf) {
        (Some(root), Some(leaf)) => narrows(root, leaf).then(|| Some(leaf.clone())),
        (root, leaf) => Some(leaf.or(root).cloned()),
    }
}

/// Whether what `leaf` matches is a part of what `root` matches, as far as it can be told: not of an
/// expression.
fn narrows(root: &StringMatch, leaf: &StringMatch) -> bool {
    match (root, leaf) {
        (StringMatch::Present, _) => true,
        (StringMatch::Exact(root), StringMatch::Exact(leaf)) => root == leaf,
        (StringMatch::Prefix(root), StringMatch::Exact(leaf) | StringMatch::Prefix(leaf)) => {
            leaf.starts_with(&**root)
        }
        _ => false,
    }
}

fn narrowed_keys(root: &[KeyMatch], leaf: &[KeyMatch]) -> Option<Vec<KeyMatch>> {
    let mut merged = root.to_vec();
    for condition in leaf {
        match merged.iter_mut().find(|other| other.key == condition.key) {
            Some(other) if narrows(&other.value, &condition.value) => {
                other.value = condition.value.clone();
            }
            Some(_) => return None,
            None => merged.push(condition.clone()),
        }
    }
    Some(merged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Short words of few letters, so that some match.
    fn words() -> impl Strategy<Value = String> {
        "[ab]{0,3}"
    }

    fn conditions() -> impl Strategy<Value = StringMatch> {
        prop_oneof![
            words().prop_map(|text| StringMatch::Exact(text.into())),
            words().prop_map(|text| StringMatch::Prefix(text.into())),
            Just(StringMatch::Present),
            words().prop_map(|text| {
                StringMatch::Regex(regex::Regex::new(&format!(r"\A(?:{text}.*)\z")).unwrap())
            }),
        ]
    }

    fn matches() -> impl Strategy<Value = HttpMatch> {
        let headers = prop::collection::btree_map("[xy]", conditions(), 0..3);
        let without = prop::collection::btree_map("[xy]", conditions(), 0..2);
        let list = |map: std::collections::BTreeMap<String, StringMatch>| {
            map.into_iter().map(|(key, value)| KeyMatch { key: key.into(), value }).collect()
        };
        let ports = prop::option::of(80..82_u16);
        (prop::option::of(conditions()), headers, without, ports).prop_map(
            move |(uri, headers, without, port)| HttpMatch {
                uri,
                headers: list(headers),
                without_headers: list(without),
                port,
                ..HttpMatch::default()
            },
        )
    }

    /// What of a request these conditions look at: path, values of `x` and `y`, port.
    type Request = (String, std::collections::BTreeMap<String, String>, u16);

    fn requests() -> impl Strategy<Value = Request> {
        (words(), prop::collection::btree_map("[xy]", words(), 0..3), 80..82_u16)
    }

    fn holds(found: &HttpMatch, (path, headers, port): &Request) -> bool {
        let meets = |condition: &KeyMatch| {
            headers.get(&*condition.key).is_some_and(|value| condition.value.matches(value, false))
        };
        found.uri.as_ref().is_none_or(|uri| uri.matches(path, false))
            && found.headers.iter().all(meets)
            && !found.without_headers.iter().any(meets)
            && found.port.is_none_or(|wanted| wanted == *port)
    }

    proptest! {
        /// Where a delegate's match stands below a root's, a request meets the result if and only if
        /// it meets both.
        #[test]
        fn a_merged_match_asks_for_both(
            (root, leaf) in (matches(), matches()),
            requests in prop::collection::vec(requests(), 1..20),
        ) {
            let of = |conditions: &HttpMatch| {
                MatchFacts { conditions: conditions.clone(), gateways: Vec::new() }
            };
            let Some(merged) = merge_match(&of(&root), &of(&leaf)) else { return Ok(()) };
            for request in requests {
                let both = holds(&root, &request) && holds(&leaf, &request);
                prop_assert_eq!(holds(&merged.conditions, &request), both, "{:?}", request);
            }
        }
    }
}
