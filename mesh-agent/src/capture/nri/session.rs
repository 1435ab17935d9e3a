//! One connection to a runtime: registers the plugin, then answers what the runtime asks.
//!
//! Invariant: requests are answered in the order in which they come, each by what the hook has done
//! by then, and never with an error for a pod: the runtime would not start it.

use std::io;

use prost::Message as _;
use prost::bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::messages::{
    Configure, Configured, OfPod, PLUGIN, REMOVE_POD, RUN_POD, RUNTIME, RegisterPlugin, Request,
    Response, STOP_POD, StateChange, Status, Synchronize, Synchronized,
};
use super::wire::{Frames, Kind, Message, Messages};
use super::{PodHooks, Sandbox};

/// The connection on which the runtime is the client.
const TO_PLUGIN: u32 = 1;
/// The connection on which the plugin is.
const TO_RUNTIME: u32 = 2;
/// How the runtime names the plugin in its log.
const NAME: &str = "malha";
/// Plugins are called in this order, two digits.
const INDEX: &str = "10";
/// The plugin asks once, for its registration. ttrpc's clients use odd numbers.
const REGISTRATION: u32 = 1;
const READ: usize = 16 << 10;

/// google.rpc.Code
const INVALID_ARGUMENT: i32 = 3;
const UNIMPLEMENTED: i32 = 12;

/// Serves a connection until the runtime closes it.
///
/// # Errors
/// The socket's, or what the runtime says that cannot be understood, or its refusal to register.
pub(super) async fn serve(
    mut socket: impl AsyncRead + AsyncWrite + Unpin,
    hooks: &impl PodHooks,
) -> io::Result<()> {
    let mut out = Vec::new();
    registration().write(TO_RUNTIME, &mut out);
    // Configure may overtake the answer, so that is awaited with everything else.
    socket.write_all(&out).await?;
    let mut frames = Frames::default();
    let (mut requests, mut answers) = (Messages::default(), Messages::default());
    let mut buffer = vec![0; READ];
    loop {
        let length = socket.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        frames.push(
            buffer.get(..length).unwrap_or_default(),
            |connection, bytes| match connection {
                TO_PLUGIN => requests.push(bytes),
                TO_RUNTIME => answers.push(bytes),
                _ => {}
            },
        );
        while let Some(message) = answers.next().map_err(io::Error::other)? {
            registered(&message)?;
        }
        while let Some(message) = requests.next().map_err(io::Error::other)? {
            if message.kind != Kind::Request {
                continue;
            }
            let response = respond(message.payload, hooks).await;
            let payload = response.encode_to_vec().into();
            out.clear();
            let response = Message { stream: message.stream, kind: Kind::Response, payload };
            response.write(TO_PLUGIN, &mut out);
            socket.write_all(&out).await?;
        }
    }
}

fn registration() -> Message {
    let plugin = RegisterPlugin { name: NAME.to_owned(), index: INDEX.to_owned() };
    let request = Request {
        service: RUNTIME.to_owned(),
        method: "RegisterPlugin".to_owned(),
        payload: plugin.encode_to_vec().into(),
        ..Request::default()
    };
    let payload = request.encode_to_vec().into();
    Message { stream: REGISTRATION, kind: Kind::Request, payload }
}

fn registered(message: &Message) -> io::Result<()> {
    let response = Response::decode(&message.payload[..]).map_err(io::Error::other)?;
    match response.status {
        Some(status) if status.code != 0 => {
            Err(io::Error::other(format!("registration refused: {}", status.message)))
        }
        _ => Ok(()),
    }
}

async fn respond(request: Bytes, hooks: &impl PodHooks) -> Response {
    let answer = match Request::decode(request) {
        Ok(request) => answer(&request, hooks).await,
        Err(error) => Err(invalid(&error)),
    };
    match answer {
        Ok(payload) => Response { status: None, payload: payload.into() },
        Err(status) => {
            tracing::debug!(code = status.code, message = status.message, "runtime's call refused");
            Response { status: Some(status), payload: Bytes::new() }
        }
    }
}

async fn answer(request: &Request, hooks: &impl PodHooks) -> Result<Vec<u8>, Status> {
    let payload = &request.payload[..];
    let method = request.method.as_str();
    match (request.service.as_str(), method) {
        (PLUGIN, "Configure") => {
            let runtime: Configure = decode(payload)?;
            tracing::info!(
                runtime = runtime.runtime,
                version = runtime.version,
                "plugin of the container runtime: pods are captured before their first process"
            );
            let events = [RUN_POD, STOP_POD, REMOVE_POD];
            let events = events.into_iter().fold(0, |mask, event| mask | 1 << (event - 1));
            Ok(Configured { events }.encode_to_vec())
        }
        (PLUGIN, "Synchronize") => {
            let found: Synchronize = decode(payload)?;
            let sandboxes = found.pods.into_iter().filter_map(Sandbox::new).collect();
            hooks.running(sandboxes).await;
            Ok(Synchronized { more: found.more }.encode_to_vec())
        }
        (PLUGIN, "RunPodSandbox") => happened(RUN_POD, decode(payload)?, hooks).await,
        (PLUGIN, "StopPodSandbox") => happened(STOP_POD, decode(payload)?, hooks).await,
        (PLUGIN, "RemovePodSandbox") => happened(REMOVE_POD, decode(payload)?, hooks).await,
        // Runtimes before NRI 0.12 have no calls of their own for pods.
        (PLUGIN, "StateChange") => {
            let change: StateChange = decode(payload)?;
            happened(change.event, OfPod { pod: change.pod }, hooks).await
        }
        (PLUGIN, "Shutdown") => Ok(Vec::new()),
        _ => Err(Status { code: UNIMPLEMENTED, message: format!("no method {method}") }),
    }
}

async fn happened(event: i32, of: OfPod, hooks: &impl PodHooks) -> Result<Vec<u8>, Status> {
    if let Some(sandbox) = of.pod.and_then(Sandbox::new) {
        match event {
            RUN_POD => hooks.started(sandbox).await,
            // A pod that fails to start may be removed without having been stopped.
            STOP_POD | REMOVE_POD => hooks.stopped(sandbox).await,
            _ => {}
        }
    }
    Ok(Vec::new())
}

fn decode<M: prost::Message + Default>(payload: &[u8]) -> Result<M, Status> {
    M::decode(payload).map_err(|error| invalid(&error))
}

fn invalid(error: &prost::DecodeError) -> Status {
    Status { code: INVALID_ARGUMENT, message: error.to_string() }
}
