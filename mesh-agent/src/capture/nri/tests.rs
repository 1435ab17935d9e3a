//! Against a runtime that is played here.

use std::sync::Mutex;

use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use super::messages::{
    Configured, Linux, Namespace, OfPod, PLUGIN, PodSandbox, RUN_POD, RegisterPlugin, Request,
    Response, StateChange, Synchronize, Synchronized,
};
use super::wire::{Frames, Kind, Message, Messages};
use super::{PodHooks, Sandbox, serve_runtime, session};

/// Writes down what happened.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn add(&self, what: &str, sandbox: &Sandbox) {
        let line = format!("{what} {} {} {:?}", sandbox.id, sandbox.name, sandbox.ips);
        self.0.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl PodHooks for Notes {
    async fn running(&self, sandboxes: Vec<Sandbox>) {
        sandboxes.iter().for_each(|sandbox| self.add("runs", sandbox));
    }

    async fn started(&self, sandbox: Sandbox) {
        self.add("started", &sandbox);
    }

    async fn stopped(&self, sandbox: Sandbox) {
        self.add("stopped", &sandbox);
    }
}

/// The runtime's end.
struct Runtime {
    socket: UnixStream,
    frames: Frames,
    /// By connection: answers of the plugin, requests of the plugin.
    heard: [Messages; 2],
    stream: u32,
}

impl Runtime {
    fn new(socket: UnixStream) -> Self {
        Self { socket, frames: Frames::default(), heard: Default::default(), stream: 1 }
    }

    /// The next message of a connection.
    async fn hear(&mut self, connection: u32) -> Message {
        loop {
            let heard = &mut self.heard[connection as usize - 1];
            if let Some(message) = heard.next().unwrap() {
                return message;
            }
            let mut buffer = [0; 100];
            let length = self.socket.read(&mut buffer).await.unwrap();
            assert!(length > 0, "the plugin closed the connection");
            let heard = &mut self.heard;
            self.frames.push(&buffer[..length], |connection, bytes| {
                heard[connection as usize - 1].push(bytes);
            });
        }
    }

    async fn say(&mut self, connection: u32, message: &Message) {
        let mut bytes = Vec::new();
        message.write(connection, &mut bytes);
        // In pieces that fit nothing.
        for piece in bytes.chunks(7) {
            self.socket.write_all(piece).await.unwrap();
        }
    }

    async fn call(&mut self, method: &str, payload: Vec<u8>) -> Response {
        let request = Request {
            service: PLUGIN.to_owned(),
            method: method.to_owned(),
            payload: payload.into(),
            timeout_nano: 2_000_000_000,
        };
        let payload = request.encode_to_vec().into();
        let stream = self.stream;
        self.stream += 2;
        self.say(1, &Message { stream, kind: Kind::Request, payload }).await;
        let answer = self.hear(1).await;
        assert_eq!((answer.stream, answer.kind), (stream, Kind::Response));
        Response::decode(&answer.payload[..]).unwrap()
    }

    /// The name and index that the plugin registers under; it is configured before it gets an answer.
    async fn accept(&mut self) -> (String, String) {
        let request = self.hear(2).await;
        let asked = Request::decode(&request.payload[..]).unwrap();
        assert_eq!(asked.method, "RegisterPlugin");
        let configured = self.call("Configure", Vec::new()).await;
        assert_eq!(Configured::decode(&configured.payload[..]).unwrap().events, 7);
        let answer = Message { kind: Kind::Response, payload: Default::default(), ..request };
        self.say(2, &answer).await;
        let plugin = RegisterPlugin::decode(&asked.payload[..]).unwrap();
        (plugin.name, plugin.index)
    }
}

fn pod(id: &str, pid: u32) -> PodSandbox {
    let namespace = Namespace { kind: "network".to_owned(), path: "/var/run/netns/x".to_owned() };
    PodSandbox {
        id: id.to_owned(),
        name: format!("pod-{id}"),
        uid: format!("uid-{id}"),
        namespace: "default".to_owned(),
        labels: [("app".to_owned(), "a".to_owned())].into(),
        linux: Some(Linux { namespaces: vec![namespace] }),
        pid,
        ips: vec!["10.0.0.1".to_owned(), "nonsense".to_owned()],
        ..PodSandbox::default()
    }
}

#[tokio::test]
async fn a_runtime_registers_it_and_tells_of_pods() {
    let (socket, plugin) = UnixStream::pair().unwrap();
    let notes = Notes::default();
    let runtime = async {
        let mut runtime = Runtime::new(socket);
        assert_eq!(runtime.accept().await, ("malha".to_owned(), "10".to_owned()));
        let mut pods = vec![pod("a", 1)];
        // More than one frame holds.
        pods[0].annotations = [("long".to_owned(), "x".repeat(100_000))].into();
        let found = Synchronize { pods, more: true };
        let answer = runtime.call("Synchronize", found.encode_to_vec()).await;
        assert!(Synchronized::decode(&answer.payload[..]).unwrap().more);
        assert_eq!(notes.take(), ["runs a pod-a [10.0.0.1]"]);

        let of = |id| OfPod { pod: Some(pod(id, 1)) }.encode_to_vec();
        assert_eq!(runtime.call("RunPodSandbox", of("b")).await, Response::default());
        assert_eq!(runtime.call("StopPodSandbox", of("b")).await, Response::default());
        assert_eq!(runtime.call("RemovePodSandbox", of("b")).await, Response::default());
        let change = StateChange { event: RUN_POD, pod: Some(pod("c", 1)) };
        runtime.call("StateChange", change.encode_to_vec()).await;
        let happened = notes.take();
        let happened: Vec<&str> = happened.iter().map(|line| &line[..9]).collect();
        assert_eq!(happened, ["started b", "stopped b", "stopped b", "started c"]);

        assert_eq!(runtime.call("CreateContainer", Vec::new()).await.status.unwrap().code, 12);
        assert_eq!(runtime.call("RunPodSandbox", vec![255]).await.status.unwrap().code, 3);
        // A pod without a name is nobody's business, and no reason to keep it from starting.
        assert_eq!(runtime.call("RunPodSandbox", Vec::new()).await, Response::default());
        assert!(notes.take().is_empty());
    };
    let (ended, ()) = tokio::join!(session::serve(plugin, &notes), runtime);
    ended.unwrap();
}

#[tokio::test]
async fn what_cannot_be_understood_ends_the_connection() {
    let (mut socket, plugin) = UnixStream::pair().unwrap();
    let runtime = async {
        socket.write_all(&[0, 0, 0, 1, 0, 0, 0, 10]).await.unwrap();
        socket.write_all(&[255; 10]).await.unwrap();
    };
    let notes = Notes::default();
    let (ended, ()) = tokio::join!(session::serve(plugin, &notes), runtime);
    ended.unwrap_err();
}

#[tokio::test]
async fn it_comes_back_to_a_runtime_that_was_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nri.sock");
    let notes = Notes::default();
    let runtime = async {
        // Not there at first.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let listener = UnixListener::bind(&path).unwrap();
        for _ in 0..2 {
            let mut runtime = Runtime::new(listener.accept().await.unwrap().0);
            runtime.accept().await;
            let found = Synchronize { pods: vec![pod("a", 1)], more: false };
            runtime.call("Synchronize", found.encode_to_vec()).await;
        }
    };
    tokio::select! {
        () = serve_runtime(&path, &notes) => {}
        () = runtime => {}
    }
    assert_eq!(notes.take().len(), 2);
}

#[test]
fn a_sandbox_has_a_network_while_it_lives_and_if_it_is_its_own() {
    let has_network = |pod| Sandbox::new(pod).unwrap().has_network();
    assert!(has_network(pod("a", 1)));
    assert!(!has_network(pod("a", 0)));
    assert!(!has_network(PodSandbox { linux: None, ..pod("a", 1) }));
    assert_eq!(Sandbox::new(PodSandbox::default()), None);
}
