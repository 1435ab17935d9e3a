//! The route tables of the fuzz target `router`, and the services that they name, as the objects that
//! a user would write. Pure.

use serde_json::{Map, Value, json};

use super::reference::Site;
use super::table::{Condition, Entry, REGEXES, Rule, Table};

impl Table {
    pub(super) fn object(&self) -> Value {
        let rules = self.rules.iter().enumerate().map(|(index, rule)| rule.object(index));
        json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", self.created),
            },
            "spec": {
                "hosts": self.hosts,
                "exportTo": self.export,
                "http": rules.collect::<Vec<_>>(),
            },
        })
    }
}

impl Rule {
    /// Rules and entries are named by their numbers.
    fn object(&self, index: usize) -> Value {
        let mut object = self.action.clone();
        let entries = self.entries.iter().enumerate().map(|(index, entry)| entry.object(index));
        object.insert("name".to_owned(), index.to_string().into());
        object.insert("match".to_owned(), entries.collect());
        object.into()
    }
}

impl Entry {
    fn object(&self, index: usize) -> Value {
        let mut object = json!({
            "name": index.to_string(),
            "ignoreUriCase": self.ignore_case,
            "headers": keyed(&self.headers),
            "withoutHeaders": keyed(&self.without),
            "queryParams": keyed(&self.query),
        });
        let parts = [
            ("uri", &self.uri),
            ("method", &self.method),
            ("authority", &self.authority),
            ("scheme", &self.scheme),
        ];
        for (name, condition) in parts {
            if let Some(condition) = condition {
                object[name] = condition.object();
            }
        }
        if let Some(port) = self.port {
            object["port"] = port.into();
        }
        if let Some(label) = self.label {
            object["sourceLabels"] = json!({"version": label});
        }
        if let Some(namespace) = self.namespace {
            object["sourceNamespace"] = namespace.into();
        }
        object
    }
}

impl Condition {
    fn object(&self) -> Value {
        match self {
            Self::Exact(text) => json!({"exact": text}),
            Self::Prefix(text) => json!({"prefix": text}),
            Self::Regex(index) => {
                json!({"regex": REGEXES.get(*index).map_or("", |(text, _)| *text)})
            }
            Self::Present => json!({}),
        }
    }
}

fn keyed(list: &[(&str, Condition)]) -> Value {
    let entries = list.iter().map(|(key, condition)| ((*key).to_owned(), condition.object()));
    entries.collect::<Map<_, _>>().into()
}

pub(super) fn service(site: &Site) -> Value {
    let spec = match site.ip {
        Some(ip) => json!({"clusterIP": ip, "ports": [{"name": "http", "port": site.port}]}),
        None => {
            let target = "web.shop.svc.cluster.local";
            let ports = [json!({"name": "http", "port": site.port})];
            json!({"type": "ExternalName", "externalName": target, "ports": ports})
        }
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": site.name, "namespace": site.namespace},
        "spec": spec,
    })
}
