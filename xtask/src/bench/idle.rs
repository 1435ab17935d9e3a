//! What a connection that carries nothing holds in the agents' memory.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, ensure};
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
    hold(ground, WARM.min(connections), || Ok(()))?;
    let before = ground.agents_memory();
    let mut after = before;
    hold(ground, connections, || {
        after = ground.agents_memory();
        Ok(())
    })?;
    let each = |index: usize| {
        let grown = after.get(index).zip(before.get(index));
        grown.map_or(0.0, |(after, before)| after.saturating_sub(*before) as f64)
            / connections as f64
    };
    Ok(Idle { connections, kib: [each(0), each(1)] })
}

fn hold(
    ground: &Ground,
    connections: usize,
    mut look: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let target = ground.target(Way::Mesh, Server::Far, ECHO)?.to_string();
    let count = connections.to_string();
    let words = ["tcp", "idle", &target, "--connections", &count, "--hold", "1"];
    let mut command = ground.client(Way::Mesh)?.command(&ground.load_words(&words))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("hold connections")?;
    let mut out = BufReader::new(child.stdout.take().context("no output")?);
    let mut step = || {
        let mut line = String::new();
        out.read_line(&mut line)?;
        serde_json::from_str::<Value>(&line).context("the load generator has ended")
    };
    step()?;
    look()?;
    let done = step()?;
    // It ends by itself after its last line.
    child.wait()?;
    ensure!(done["alive"] == connections, "of {connections} connections: {done}");
    Ok(())
}
