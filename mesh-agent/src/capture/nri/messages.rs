//! What of NRI's and ttrpc's messages this plugin reads and writes
//! (`nri/pkg/api/api.proto`, `ttrpc/request.proto`). Fields that it has no use for are skipped.

use std::collections::BTreeMap;

use prost::Message;

/// The service of a plugin, which the runtime calls.
pub(super) const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service of a runtime.
pub(super) const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";

/// Of the events: a pod's sandbox runs.
pub(super) const RUN_POD: i32 = 1;
/// It is about to stop.
pub(super) const STOP_POD: i32 = 2;
/// It is removed.
pub(super) const REMOVE_POD: i32 = 3;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(string, tag = "2")]
    pub(super) method: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) payload: prost::bytes::Bytes,
    #[prost(int64, tag = "4")]
    pub(super) timeout_nano: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) payload: prost::bytes::Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RegisterPlugin {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) index: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Configure {
    #[prost(string, tag = "2")]
    pub(super) runtime: String,
    #[prost(string, tag = "3")]
    pub(super) version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Configured {
    #[prost(int32, tag = "2")]
    pub(super) events: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Synchronize {
    #[prost(message, repeated, tag = "1")]
    pub(super) pods: Vec<PodSandbox>,
    #[prost(bool, tag = "3")]
    pub(super) more: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Synchronized {
    #[prost(bool, tag = "2")]
    pub(super) more: bool,
}

/// Of RunPodSandbox, StopPodSandbox and RemovePodSandbox.
#[derive(Clone, PartialEq, Message)]
pub(super) struct OfPod {
    #[prost(message, optional, tag = "1")]
    pub(super) pod: Option<PodSandbox>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StateChange {
    #[prost(int32, tag = "1")]
    pub(super) event: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) pod: Option<PodSandbox>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) uid: String,
    #[prost(string, tag = "4")]
    pub(super) namespace: String,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(super) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub(super) annotations: BTreeMap<String, String>,
    #[prost(string, tag = "7")]
    pub(super) runtime_handler: String,
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<Linux>,
    #[prost(uint32, tag = "9")]
    pub(super) pid: u32,
    #[prost(string, repeated, tag = "10")]
    pub(super) ips: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Linux {
    #[prost(message, repeated, tag = "5")]
    pub(super) namespaces: Vec<Namespace>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Namespace {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(string, tag = "2")]
    pub(super) path: String,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Request::decode(&bytes[..]);
            let _ = Response::decode(&bytes[..]);
            let _ = Synchronize::decode(&bytes[..]);
            let _ = StateChange::decode(&bytes[..]);
        }
    }
}
