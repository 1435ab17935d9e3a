//! One kind of object, listed and watched for as long as the agent runs.
//!
//! `kube`'s watcher resumes by resource version, takes bookmarks, and lists anew after `410 Gone`.
//! Around it: a streaming list where the server has them, else pages; the version of the kind that
//! the server serves; a kind that it does not know is asked for again from time to time; every wait
//! has jitter, so that the agents of a cluster do not come back in step.

use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Client, ResourceExt as _};
use tokio::sync::mpsc;

use super::super::api::Kind;
use super::super::objects::Key;
use super::super::parse::key_of;
use crate::waits::{growing, jittered};

/// Objects in one page of a list; the server's own clients take as many.
const PAGE: u32 = 500;
/// First wait after a failure; each next is twice as long, with up to as much again by chance.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait, but for chance: an agent notices within twice this that the server is back.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often a kind is asked for that the server does not know.
const ABSENT_WAIT: Duration = Duration::from_secs(2);

/// What a kind's watcher has to say.
#[derive(Debug)]
pub(super) enum Heard {
    /// A list begins: what is not in it is gone.
    Begin(Kind),
    /// An object of the list.
    Found(Kind, Box<DynamicObject>),
    /// The list is complete, and changes follow.
    Complete(Kind),
    /// An object that is new or has changed.
    Applied(Kind, Box<DynamicObject>),
    /// An object that is gone.
    Deleted(Key),
    /// The server does not serve the kind: its CustomResourceDefinition is not there.
    Absent(Kind),
    /// The server does not answer, or refuses; it is asked again.
    Failed(Kind, String),
}

/// Why one watcher is given up for another.
enum Other {
    Version,
    Pages,
}

/// Follows one kind until the receiver is gone.
pub(super) async fn follow(client: Client, kind: Kind, out: mpsc::Sender<Heard>) {
    let mut config = Config::default().page_size(PAGE).streaming_lists();
    if let Some(name) = kind.only_name() {
        // Also what the agent's role lets it read.
        config = config.fields(&format!("metadata.name={name}"));
    }
    let versions = kind.versions();
    // Versions that the server did not know, since one that it does.
    let mut unknown = 0;
    for version in versions.iter().cycle() {
        let resource = resource(kind, version);
        loop {
            let api = Api::all_with(client.clone(), &resource);
            match one(kind, watcher(api, config.clone()), &out, &mut unknown).await {
                Some(Other::Pages) => {
                    tracing::info!(kind = kind.name(), "no streaming lists here, reading pages");
                    config.initial_list_strategy = watcher::InitialListStrategy::ListWatch;
                }
                Some(Other::Version) => break,
                None => return,
            }
        }
        unknown += 1;
        if unknown >= versions.len() {
            unknown = 0;
            if out.send(Heard::Absent(kind)).await.is_err() {
                return;
            }
            tokio::time::sleep(jittered(ABSENT_WAIT)).await;
        }
    }
}

/// Passes on what one watcher finds. `None`: nobody listens any more.
async fn one(
    kind: Kind,
    events: impl futures_util::Stream<Item = watcher::Result<Event<DynamicObject>>>,
    out: &mpsc::Sender<Heard>,
    unknown: &mut usize,
) -> Option<Other> {
    let mut events = std::pin::pin!(events);
    let mut waits = growing(FIRST_WAIT, LONGEST_WAIT);
    while let Some(event) = events.next().await {
        let heard = match event {
            Ok(event) => {
                // That is not yet an answer: a list by pages begins before the server is asked.
                if !matches!(event, Event::Init) {
                    *unknown = 0;
                    waits = growing(FIRST_WAIT, LONGEST_WAIT);
                }
                said(kind, event)
            }
            Err(error) if code(&error) == Some(404) => return Some(Other::Version),
            Err(error) if refuses_streams(&error) => return Some(Other::Pages),
            Err(error) => {
                let wait = waits.next().unwrap_or(LONGEST_WAIT);
                out.send(Heard::Failed(kind, error.to_string())).await.ok()?;
                tokio::time::sleep(wait).await;
                continue;
            }
        };
        out.send(heard).await.ok()?;
    }
    None
}

fn said(kind: Kind, event: Event<DynamicObject>) -> Heard {
    match event {
        Event::Init => Heard::Begin(kind),
        Event::InitApply(object) => Heard::Found(kind, Box::new(object)),
        Event::InitDone => Heard::Complete(kind),
        Event::Apply(object) => Heard::Applied(kind, Box::new(object)),
        Event::Delete(object) => {
            Heard::Deleted(key_of(kind, object.namespace().as_deref(), &object.name_any()))
        }
    }
}

/// The kind as the server serves it; the version is one of [`Kind::versions`].
pub fn resource(kind: Kind, version: &str) -> ApiResource {
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let kind_name = GroupVersionKind::gvk(group, version, kind.name());
    ApiResource::from_gvk_with_plural(&kind_name, kind.plural())
}

/// The server's answer, if it gave one.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::WatchError(status) => Some(status.code),
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    }
}

/// A server without the `WatchList` feature: before Kubernetes 1.32, or where it is switched off.
fn refuses_streams(error: &watcher::Error) -> bool {
    matches!(code(error), Some(400 | 422)) && error.to_string().contains("sendInitialEvents")
}
