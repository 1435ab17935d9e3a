//! What a connection that carries nothing holds in the agents' memory.

use anyhow::ensure;
use serde::Serialize;
use serde_json::Value;

use super::ground::{Ground, Server, Way};

const ECHO: u16 = 9000;
/// Makes the agents' buffers and tables warm: their growth is not a connection's.
const WARM: usize = 200;

/// Memory of idle connections.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Idle {
    /// How many there were.
    pub(super) connections: usize,
    /// Resident memory a connection, in KiB, at the client's end and at the server's.
    pub(super) kib: [f64; 2],
}

/// Opens connections through the mesh and looks at the agents while they are held.
pub(super) fn measure(ground: &Ground, connections: usize) -> anyhow::Result<Idle> {
    hold(ground, WARM.min(connections))?;
    let before = ground.agents_memory();
    let [near, far] = hold(ground, connections)?;
    let each = |after: u64, before: u64| after.saturating_sub(before) as f64 / connections as f64;
    Ok(Idle { connections, kib: [each(near, before[0]), each(far, before[1])] })
}

/// Resident memory of the agents, KiB, while so many connections are held.
fn hold(ground: &Ground, connections: usize) -> anyhow::Result<[u64; 2]> {
    let target = ground.target(Way::Mesh, Server::Far, ECHO)?.to_string();
    let count = connections.to_string();
    let words = ["tcp", "idle", &target, "--connections", &count, "--hold", "1"];
    let mut held = ground.beside(Way::Mesh, &words)?;
    held.line()?;
    let memory = ground.agents_memory();
    let done: Value = serde_json::from_str(&held.line()?)?;
    ensure!(done["alive"] == connections, "of {connections} connections: {done}");
    Ok(memory)
}
