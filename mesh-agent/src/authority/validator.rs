//! The trusted roots in the webhook's configuration, so that the API server believes the webhook.
//!
//! The chart makes the ValidatingWebhookConfiguration; only `caBundle` is written here, by every replica
//! alike. Invariant: a root of the authority's that is missing there is added at once; one that is
//! there though it should not be is removed only after [`SETTLE`], since a replica may not have read the
//! newest roots yet, and two of them must not undo each other's writes.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{Config, Event, watcher};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::root::Root;

/// Name of the configuration, as the chart has it.
const NAME: &str = "malha-validator";
/// How often the roots are compared with what is there; it costs no request.
const CHECK: Duration = Duration::from_secs(1);
/// Longer than replicas take to read a change of the root's Secret.
const SETTLE: Duration = Duration::from_secs(30);
/// Wait after a write, whatever came of it.
const AGAIN: Duration = Duration::from_secs(5);
/// Time for a write.
const TIMEOUT: Duration = Duration::from_secs(10);
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// What to do about one state of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    Now,
    /// Unless it is put right by then.
    After(Duration),
}

/// Bundles by webhook; empty without a configuration.
type Bundles = BTreeMap<String, String>;

/// Keeps the roots in the configuration; never returns.
pub(super) async fn follow(client: Client, root: &Root) {
    let api: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let config = Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = pin!(watcher(api.clone(), config).default_backoff());
    let mut there = Bundles::new();
    // Since when the bundles differ, and when one was written last.
    let (mut since, mut wrote) = (None, None::<Instant>);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => hear(event, &mut there),
                Some(Err(error)) => {
                    tracing::warn!(%error, "the webhook's configuration cannot be watched");
                }
                None => return,
            },
            () = tokio::time::sleep(CHECK) => {}
        }
        let Some(held) = root.current() else { continue };
        let now = Instant::now();
        let wait = match due(&there, &held.bundle) {
            Due::Nothing => {
                since = None;
                continue;
            }
            Due::Now => Duration::ZERO,
            Due::After(wait) => wait,
        };
        let is_early = now.duration_since(*since.get_or_insert(now)) < wait;
        if is_early || wrote.is_some_and(|at| now.duration_since(at) < AGAIN) {
            continue;
        }
        wrote = Some(now);
        write(&api, &there, &held.bundle).await;
    }
}

fn hear(event: Event<ValidatingWebhookConfiguration>, there: &mut Bundles) {
    match event {
        Event::Init | Event::Delete(_) => there.clear(),
        Event::InitDone => {}
        Event::Apply(found) | Event::InitApply(found) => {
            let webhooks = found.webhooks.unwrap_or_default().into_iter();
            *there = webhooks.map(|one| (one.name, text(one.client_config.ca_bundle))).collect();
        }
    }
}

fn text(bundle: Option<ByteString>) -> String {
    String::from_utf8(bundle.unwrap_or_default().0).unwrap_or_default()
}

async fn write(api: &Api<ValidatingWebhookConfiguration>, there: &Bundles, bundle: &str) {
    let patch = Patch::Strategic(patch(there, bundle));
    let params = PatchParams::default();
    match tokio::time::timeout(TIMEOUT, api.patch(NAME, &params, &patch)).await {
        Ok(Ok(_)) => tracing::info!(configuration = NAME, "the webhook's roots are written"),
        Ok(Err(error)) => tracing::warn!(%error, "the webhook's roots cannot be written"),
        Err(_) => tracing::warn!("the webhook's roots cannot be written in time"),
    }
}

/// Webhooks of the list are told by their names (strategic merge).
fn patch(there: &Bundles, bundle: &str) -> Value {
    let bundle = ByteString(bundle.as_bytes().to_vec());
    let webhooks = there
        .keys()
        .map(|name| json!({ "name": name, "clientConfig": { "caBundle": bundle } }))
        .collect::<Vec<_>>();
    json!({ "webhooks": webhooks })
}

fn due(there: &Bundles, ours: &str) -> Due {
    let lacks_one = there.values().any(|bundle| {
        let trusted = roots(bundle);
        roots(ours).iter().any(|root| !trusted.contains(root))
    });
    match lacks_one {
        true => Due::Now,
        false if there.values().any(|bundle| bundle != ours) => Due::After(SETTLE),
        false => Due::Nothing,
    }
}

/// The certificates of a bundle.
fn roots(bundle: &str) -> Vec<&str> {
    bundle.split(BEGIN).skip(1).map(str::trim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(name: &str) -> String {
        format!("{BEGIN}\n{name}\n-----END CERTIFICATE-----\n")
    }

    fn there(bundle: &str) -> Bundles {
        Bundles::from([("a.malha.dev".to_owned(), bundle.to_owned())])
    }

    #[test]
    fn a_missing_root_is_added_at_once() {
        let (old, new) = (root("old"), root("new"));
        assert_eq!(due(&there(""), &old), Due::Now);
        assert_eq!(due(&there(&old), &old), Due::Nothing);
        assert_eq!(due(&there(&old), &format!("{old}{new}")), Due::Now);
        assert_eq!(due(&Bundles::new(), &old), Due::Nothing, "there is no configuration");
    }

    #[test]
    fn a_root_too_many_may_be_anothers_news() {
        let (old, new) = (root("old"), root("new"));
        let both = format!("{old}{new}");
        assert_eq!(due(&there(&both), &old), Due::After(SETTLE));
        assert_eq!(due(&there(&both), &new), Due::After(SETTLE));
        assert_eq!(due(&there("rubbish"), &new), Due::Now);
    }

    #[test]
    fn only_the_bundle_is_written() {
        let patch = patch(&there(""), "roots");
        let expected = json!({
            "webhooks": [{ "name": "a.malha.dev", "clientConfig": { "caBundle": "cm9vdHM=" } }],
        });
        assert_eq!(patch, expected);
    }
}
