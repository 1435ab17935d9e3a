//! Route tables for the fuzz target `router`, chosen by its input. Pure. How they are written as
//! objects: `objects`.
//!
//! Invariant: every object is one that the compiler takes, but for the free texts of redirects and
//! rewrites, which may be no part of a URI.

use serde_json::{Map, Value, json};

use super::bytes::Bytes;

pub(super) const NAMESPACES: [&str; 3] = ["shop", "bank", "other"];
pub(super) const PATHS: [&str; 10] =
    ["/", "/a", "/a/", "/a/b", "/A", "/ab", "", "/a/b/c", "/old", "/x%20y"];
pub(super) const METHODS: [&str; 5] = ["GET", "POST", "get", "PUT", "X-OWN"];
pub(super) const HEADERS: [&str; 3] = ["x-a", "cookie", "host"];
pub(super) const VALUES: [&str; 4] = ["", "a", "ab", "a,b"];
pub(super) const AUTHORITIES: [&str; 12] = [
    "web",
    "web:80",
    "web.shop",
    "web.shop.svc",
    "web.shop.svc.cluster.local",
    "WEB.shop.svc.cluster.local.:80",
    "api",
    "alias",
    "example.com",
    "a.example.com:80",
    "10.96.0.3",
    "web.bank",
];
const HOSTS: [&str; 10] = [
    "web",
    "web",
    "web.shop.svc.cluster.local",
    "*.shop.svc.cluster.local",
    "web.bank.svc.cluster.local",
    "*.cluster.local",
    "example.com",
    "*.example.com",
    "api.shop.svc.cluster.local",
    "a.b.example.com",
];
/// Hosts and ports that there are: a rule that names others is refused.
const DESTINATIONS: [(&str, u16); 3] = [
    ("web.shop.svc.cluster.local", 80),
    ("api.shop.svc.cluster.local", 8000),
    ("web.bank.svc.cluster.local", 80),
];
const EXPORTS: [&[&str]; 5] = [&[], &["*"], &["."], &["bank"], &["shop", "other"]];
const CODES: [u16; 6] = [0, 301, 302, 303, 307, 308];

/// What an expression is to match.
type Matches = fn(&str) -> bool;

/// Expressions of `regex` conditions, with what they are to match.
pub(super) const REGEXES: [(&str, Matches); 6] = [
    (".*", |text| !text.contains('\n')),
    ("a|ab", |text| text == "a" || text == "ab"),
    ("/a/[a-z]+", |text| {
        let rest = text.strip_prefix("/a/").unwrap_or_default();
        !rest.is_empty() && rest.bytes().all(|letter| letter.is_ascii_lowercase())
    }),
    ("(?i)get", |text| text.eq_ignore_ascii_case("get")),
    ("", str::is_empty),
    ("*", |_| true),
];

/// Index of the expression that stands for presence.
pub(super) const PRESENT: usize = 5;

/// Istio's `StringMatch`, as written.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    Exact(String),
    Prefix(String),
    /// Index into [`REGEXES`].
    Regex(usize),
    Present,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    pub(super) uri: Option<Condition>,
    pub(super) ignore_case: bool,
    pub(super) method: Option<Condition>,
    pub(super) authority: Option<Condition>,
    pub(super) scheme: Option<Condition>,
    pub(super) headers: Vec<(&'static str, Condition)>,
    pub(super) without: Vec<(&'static str, Condition)>,
    pub(super) query: Vec<(&'static str, Condition)>,
    pub(super) port: Option<u16>,
    pub(super) label: Option<&'static str>,
    pub(super) namespace: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) entries: Vec<Entry>,
    /// The part of the object that says what to do.
    pub(super) action: Map<String, Value>,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) namespace: &'static str,
    pub(super) hosts: Vec<&'static str>,
    pub(super) export: &'static [&'static str],
    /// Seconds in a minute of the year 2026.
    pub(super) created: u8,
    pub(super) rules: Vec<Rule>,
}

impl Table {
    pub(super) fn choose(name: &'static str, bytes: &mut Bytes<'_>) -> Self {
        let namespace = bytes.pick(&NAMESPACES);
        let mut hosts: Vec<&str> = Vec::new();
        for host in (0..=bytes.below(2)).map(|_| bytes.pick(&HOSTS)).collect::<Vec<_>>() {
            if hosts.iter().all(|other| expand(other, namespace) != expand(host, namespace)) {
                hosts.push(host);
            }
        }
        Self {
            name,
            namespace,
            hosts,
            export: bytes.pick(&EXPORTS),
            created: bytes.octet() % 4,
            rules: (0..=bytes.below(3)).map(|_| Rule::choose(bytes)).collect(),
        }
    }
}

impl Rule {
    fn choose(bytes: &mut Bytes<'_>) -> Self {
        let entries = bytes.list(2, Entry::choose);
        let action = match bytes.below(4) {
            0 | 1 => forward(bytes),
            2 => redirect(bytes),
            _ => [("directResponse".to_owned(), json!({"status": 200}))].into_iter().collect(),
        };
        Self { entries, action }
    }
}

impl Entry {
    /// One or two conditions, each of a few words: with more, hardly a request would meet them all.
    fn choose(bytes: &mut Bytes<'_>) -> Self {
        let mut entry = Self::default();
        for _ in 0..=bytes.below(2) {
            entry.add(bytes);
        }
        entry
    }

    fn add(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(12) {
            0 => self.uri = Some(Condition::of_part(bytes, &PATHS)),
            1 => {
                self.uri = Some(Condition::of_part(bytes, &PATHS));
                self.ignore_case = true;
            }
            2 => self.method = Some(Condition::of_part(bytes, &METHODS)),
            3 => self.authority = Some(Condition::of_part(bytes, &AUTHORITIES)),
            4 => self.scheme = Some(Condition::of_part(bytes, &["http", "https"])),
            5 | 6 => add_keyed(&mut self.headers, bytes),
            7 => add_keyed(&mut self.without, bytes),
            8 => add_keyed(&mut self.query, bytes),
            9 => self.port = Some(bytes.pick(&[80, 8000])),
            10 => self.label = Some(bytes.pick(&["v1", "v2"])),
            _ => self.namespace = Some(bytes.pick(&NAMESPACES)),
        }
    }
}

/// Each key once.
fn add_keyed(list: &mut Vec<(&'static str, Condition)>, bytes: &mut Bytes<'_>) {
    let (key, condition) = (bytes.pick(&HEADERS), Condition::choose(bytes, &VALUES));
    if list.iter().all(|(other, _)| *other != key) {
        list.push((key, condition));
    }
}

impl Condition {
    /// Of a part that every request has: to ask for its presence is worth a warning, and each warning
    /// costs a second reading of the file.
    fn of_part(bytes: &mut Bytes<'_>, words: &[&str]) -> Self {
        match Self::choose(bytes, words) {
            Self::Present => Self::Prefix(String::new()),
            Self::Regex(index) if index == PRESENT => Self::Regex(0),
            other => other,
        }
    }

    fn choose(bytes: &mut Bytes<'_>, words: &[&str]) -> Self {
        // Expressions are few, as it takes a hundred times longer to compile them.
        match bytes.below(32) {
            0..=14 => Self::Prefix(bytes.text(words)),
            15..=27 => Self::Exact(bytes.text(words)),
            28..=30 => Self::Present,
            _ => Self::Regex(bytes.below(REGEXES.len())),
        }
    }
}

fn forward(bytes: &mut Bytes<'_>) -> Map<String, Value> {
    let route: Vec<Value> = (0..=bytes.below(3))
        .map(|index| {
            // The first has a weight, so that there is something to choose.
            let weight = u32::from(bytes.octet()) + u32::from(index == 0);
            let (host, port) = bytes.pick(&DESTINATIONS);
            let mut destination = json!({"host": host});
            if bytes.flag() {
                destination["port"] = json!({"number": port});
            }
            json!({"destination": destination, "weight": weight})
        })
        .collect();
    let mut action = Map::new();
    action.insert("route".to_owned(), route.into());
    match bytes.below(4) {
        1 => {
            let uri = Some(bytes.text(&PATHS)).filter(|uri| !uri.is_empty());
            let uri = uri.unwrap_or_else(|| "/".to_owned());
            action.insert("rewrite".to_owned(), json!({"uri": uri}));
        }
        2 => {
            let (pattern, by) = bytes.pick(&[("/a(.*)", r"/b\1"), ("/", "-"), ("[^/]+$", r"\0")]);
            let regex = json!({"match": pattern, "rewrite": by});
            action.insert("rewrite".to_owned(), json!({"uriRegexRewrite": regex}));
        }
        _ => {}
    }
    action
}

fn redirect(bytes: &mut Bytes<'_>) -> Map<String, Value> {
    let mut found = json!({"redirectCode": bytes.pick(&CODES)});
    match bytes.below(3) {
        1 => found["uri"] = bytes.text(&PATHS).into(),
        2 => found["prefixRewrite"] = bytes.text(&PATHS).into(),
        _ => {}
    }
    match bytes.below(4) {
        1 => found["port"] = bytes.pick(&[80, 443, 8443]).into(),
        2 => found["derivePort"] = "FROM_PROTOCOL_DEFAULT".into(),
        3 => found["derivePort"] = "FROM_REQUEST_PORT".into(),
        _ => {}
    }
    if let Some(authority) = bytes.maybe(|bytes| bytes.text(&AUTHORITIES)) {
        found["authority"] = authority.into();
    }
    // Something must change.
    found["scheme"] = bytes.text(&["https", "http"]).into();
    if found["scheme"] == "" {
        found["scheme"] = "https".into();
    }
    [("redirect".to_owned(), found)].into_iter().collect()
}

/// The full name that a host in an object of `namespace` means.
pub(super) fn expand(host: &str, namespace: &str) -> String {
    match host.contains('.') {
        true => host.to_owned(),
        false => format!("{host}.{namespace}.svc.cluster.local"),
    }
}
