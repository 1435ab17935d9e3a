//! What starting a container means: the manifest's container with its image looked up, its
//! environment, arguments and volumes worked out.
//!
//! Fields that would change what runs and that the lab does not honour are refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::host;
use super::image::{self, Image};
use super::manifest::{list_at, text_at};

/// What the container may ask about its pod, by downward API path, and the ConfigMaps around it.
pub(super) struct Surroundings<'a> {
    pub(super) fields: BTreeMap<&'static str, String>,
    /// `data` of a ConfigMap in the pod's namespace.
    pub(super) config_map: &'a dyn Fn(&str) -> Option<BTreeMap<String, String>>,
    /// Where the pod's volumes are.
    pub(super) volumes: &'a Path,
}

/// A container ready to be started any number of times.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) image: Image,
    /// Program and arguments.
    pub(super) command: Vec<String>,
    /// In the manifest's order.
    pub(super) environment: Vec<(String, String)>,
    pub(super) directory: String,
    /// Source on the machine, path in the container, writable.
    pub(super) mounts: Vec<(PathBuf, String, bool)>,
    /// Declared TCP ports: listening on all of them counts as ready.
    pub(super) ports: Vec<u16>,
    pub(super) probe: Option<Probe>,
}

/// A readiness probe, run inside the pod (over its loopback), so that it needs no exemption.
#[derive(Clone, Debug)]
pub(super) enum Probe {
    /// Something listens there.
    Tcp(u16),
    /// Any command that ends with success; `httpGet` becomes one.
    Command(Vec<String>),
}

/// Refuses what the lab cannot run, naming the field. `at` is the path of the pod's spec.
pub(super) fn check(spec: &Value, at: &str) -> anyhow::Result<()> {
    for field in ["initContainers", "ephemeralContainers", "hostPID", "hostIPC"] {
        ensure!(spec.get(field).is_none(), "{at}.{field}: not played by the lab");
    }
    let containers = list_at(spec, "/containers");
    ensure!(!containers.is_empty(), "{at}.containers: missing");
    for (number, container) in containers.iter().enumerate() {
        let at = format!("{at}.containers[{number}]");
        let image = text_at(container, "/image").with_context(|| format!("{at}.image: missing"))?;
        image::look_up(image).with_context(|| format!("{at}.image"))?;
        text_at(container, "/name").with_context(|| format!("{at}.name: missing"))?;
    }
    Ok(())
}

/// Works out container `number` of a pod.
pub(super) fn plan(spec: &Value, number: usize, around: &Surroundings<'_>) -> anyhow::Result<Plan> {
    let at = format!("spec.containers[{number}]");
    let container = list_at(spec, "/containers").get(number).context("no such container")?;
    let image = image::look_up(text_at(container, "/image").unwrap_or_default())
        .with_context(|| format!("{at}.image"))?;
    let mut environment = image.environment.clone();
    environment.extend(self::environment(container, around).with_context(|| at.clone())?);
    let ports: Vec<u16> = list_at(container, "/ports")
        .iter()
        .filter(|port| text_at(port, "/protocol").unwrap_or("TCP") == "TCP")
        .filter_map(|port| port_number(port.get("containerPort")?))
        .collect();
    Ok(Plan {
        name: text_at(container, "/name").unwrap_or_default().to_owned(),
        command: command(container, &image, &environment).with_context(|| at.clone())?,
        directory: text_at(container, "/workingDir").unwrap_or("/").to_owned(),
        mounts: mounts(spec, container, around).with_context(|| at.clone())?,
        probe: probe(container).with_context(|| at.clone())?,
        environment,
        ports,
        image,
    })
}

fn command(
    container: &Value,
    image: &Image,
    environment: &[(String, String)],
) -> anyhow::Result<Vec<String>> {
    let own = strings(container, "command")?;
    let arguments = strings(container, "args")?;
    // Kubernetes: `command` drops the image's arguments too.
    let mut words = own.clone().unwrap_or_else(|| image.entrypoint.clone());
    match (arguments, own) {
        (Some(arguments), _) => words.extend(arguments),
        (None, None) => words.extend(image.arguments.iter().cloned()),
        (None, Some(_)) => {}
    }
    ensure!(!words.is_empty(), "command: nothing to run");
    Ok(words.iter().map(|word| expand(word, environment)).collect())
}

/// A list of strings, or why it is none.
fn strings(container: &Value, field: &str) -> anyhow::Result<Option<Vec<String>>> {
    let Some(list) = container.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
    let words = list.as_array().with_context(|| format!("{field}: not a list"))?;
    let word = |word: &Value| {
        word.as_str().map(str::to_owned).with_context(|| format!("{field}: {word} is no string"))
    };
    words.iter().map(word).collect::<anyhow::Result<_>>().map(Some)
}

fn environment(
    container: &Value,
    around: &Surroundings<'_>,
) -> anyhow::Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for (number, source) in list_at(container, "/envFrom").iter().enumerate() {
        let name = text_at(source, "/configMapRef/name")
            .with_context(|| format!("envFrom[{number}]: only configMapRef is played"))?;
        let prefix = text_at(source, "/prefix").unwrap_or_default();
        let data = (around.config_map)(name)
            .with_context(|| format!("envFrom[{number}]: there is no ConfigMap {name}"))?;
        variables.extend(data.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
    }
    for (number, variable) in list_at(container, "/env").iter().enumerate() {
        let at = format!("env[{number}]");
        let name = text_at(variable, "/name").with_context(|| format!("{at}.name: missing"))?;
        let value = match (variable.get("value"), variable.get("valueFrom")) {
            (Some(Value::String(value)), _) => expand(value, &variables),
            (Some(other), _) => bail!("{at}.value: {other} is no string"),
            (None, Some(source)) => from_source(source, around).with_context(|| at)?,
            (None, None) => String::new(),
        };
        variables.push((name.to_owned(), value));
    }
    Ok(variables)
}

fn from_source(source: &Value, around: &Surroundings<'_>) -> anyhow::Result<String> {
    if let Some(path) = text_at(source, "/fieldRef/fieldPath") {
        return around.fields.get(path).cloned().with_context(|| {
            format!("valueFrom.fieldRef.fieldPath: {path} is not played by the lab")
        });
    }
    let name = text_at(source, "/configMapKeyRef/name")
        .context("valueFrom: only fieldRef and configMapKeyRef are played")?;
    let key = text_at(source, "/configMapKeyRef/key").unwrap_or_default();
    (around.config_map)(name)
        .and_then(|mut data| data.remove(key))
        .with_context(|| format!("valueFrom.configMapKeyRef: no key {key} in ConfigMap {name}"))
}

/// `$(NAME)` becomes the variable's value, `$$(NAME)` stays literal, an unknown name stays as it is.
fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(literal) = rest.strip_prefix("$$") {
            out.push('$');
            rest = literal;
            continue;
        }
        let name = rest.strip_prefix("$(").and_then(|inner| inner.split_once(')'));
        let value = name.and_then(|(name, after)| {
            let (_, value) = variables.iter().rev().find(|(known, _)| known == name)?;
            Some((value, after))
        });
        match value {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('$');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

fn mounts(
    spec: &Value,
    container: &Value,
    around: &Surroundings<'_>,
) -> anyhow::Result<Vec<(PathBuf, String, bool)>> {
    let mut mounts = Vec::new();
    for (number, mount) in list_at(container, "/volumeMounts").iter().enumerate() {
        let at = format!("volumeMounts[{number}]");
        let name = text_at(mount, "/name").unwrap_or_default();
        let target = text_at(mount, "/mountPath")
            .filter(|path| path.starts_with('/'))
            .with_context(|| format!("{at}.mountPath: not an absolute path"))?;
        let volume = list_at(spec, "/volumes")
            .iter()
            .find(|volume| text_at(volume, "/name") == Some(name))
            .with_context(|| format!("{at}.name: there is no volume {name}"))?;
        let mut source = match text_at(volume, "/hostPath/path") {
            Some(path) => path.into(),
            None => around.volumes.join(name),
        };
        if let Some(part) = text_at(mount, "/subPath") {
            source.push(part);
        }
        let read_only = mount.get("readOnly") == Some(&Value::Bool(true));
        let writable = volume.get("configMap").is_none() && !read_only;
        mounts.push((source, target.trim_end_matches('/').to_owned(), writable));
    }
    Ok(mounts)
}

/// Writes the pod's volumes, again when a ConfigMap has changed.
pub(super) fn write_volumes(spec: &Value, around: &Surroundings<'_>) -> anyhow::Result<()> {
    for (number, volume) in list_at(spec, "/volumes").iter().enumerate() {
        let at = format!("spec.volumes[{number}]");
        let dir = around.volumes.join(text_at(volume, "/name").unwrap_or_default());
        if let Some(name) = text_at(volume, "/configMap/name") {
            fs::create_dir_all(&dir)?;
            let data = (around.config_map)(name)
                .with_context(|| format!("{at}.configMap: there is no ConfigMap {name}"))?;
            for (file, text) in chosen(volume, data).with_context(|| at)? {
                let path = dir.join(file);
                fs::create_dir_all(path.parent().unwrap_or(&dir))?;
                host::replace(&dir.join(".draft"), &path, &text)?;
            }
        } else if volume.get("emptyDir").is_some() {
            fs::create_dir_all(&dir)?;
        } else if volume.get("hostPath").is_none() {
            bail!("{at}: only configMap, emptyDir and hostPath are played");
        }
    }
    Ok(())
}

/// The files of a ConfigMap volume: all keys, or those that `items` names.
fn chosen(volume: &Value, data: BTreeMap<String, String>) -> anyhow::Result<Vec<(String, String)>> {
    let items = list_at(volume, "/configMap/items");
    if items.is_empty() {
        return Ok(data.into_iter().collect());
    }
    let file = |item: &Value| {
        let key = text_at(item, "/key").unwrap_or_default();
        let text = data.get(key).with_context(|| format!("configMap.items: no key {key}"))?;
        Ok((text_at(item, "/path").unwrap_or(key).to_owned(), text.clone()))
    };
    items.iter().map(file).collect()
}

fn probe(container: &Value) -> anyhow::Result<Option<Probe>> {
    let Some(probe) = container.get("readinessProbe") else { return Ok(None) };
    let port = |at: &str| {
        let value = probe.pointer(at).with_context(|| format!("readinessProbe{at}: missing"))?;
        let named = list_at(container, "/ports")
            .iter()
            .find(|port| port.get("name").is_some_and(|name| name == value))
            .and_then(|port| port.get("containerPort"));
        port_number(named.unwrap_or(value)).with_context(|| format!("readinessProbe{at}: {value}"))
    };
    if probe.get("tcpSocket").is_some() {
        return Ok(Some(Probe::Tcp(port("/tcpSocket/port")?)));
    }
    if probe.get("httpGet").is_some() {
        let path = text_at(probe, "/httpGet/path").unwrap_or("/");
        let url = format!("http://127.0.0.1:{}{path}", port("/httpGet/port")?);
        let words = ["curl", "-sf", "-m", "2", "-o", "/dev/null", &url];
        return Ok(Some(Probe::Command(words.map(str::to_owned).to_vec())));
    }
    if let Some(exec) = probe.get("exec") {
        let words = strings(exec, "command").context("readinessProbe.exec")?.unwrap_or_default();
        return Ok(Some(Probe::Command(words)));
    }
    bail!("readinessProbe: only httpGet, tcpSocket and exec are played")
}

/// A port given as a number or as text.
pub(super) fn port_number(value: &Value) -> Option<u16> {
    match value {
        Value::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn planned(container: Value) -> anyhow::Result<Plan> {
        let spec = json!({"containers": [container]});
        let fields = BTreeMap::from([("metadata.name", "web-1".to_owned())]);
        let data = BTreeMap::from([("greeting".to_owned(), "hello".to_owned())]);
        let config_map = |name: &str| (name == "words").then(|| data.clone());
        let around =
            Surroundings { fields, config_map: &config_map, volumes: Path::new("/volumes") };
        plan(&spec, 0, &around)
    }

    #[test]
    fn command_and_args_replace_what_the_image_has() {
        let image = json!({"name": "c", "image": "curlimages/curl"});
        assert_eq!(planned(image.clone()).unwrap().command, ["sleep", "infinity"]);
        let mut own = image.clone();
        own["command"] = json!(["/bin/sh", "-c"]);
        assert_eq!(planned(own.clone()).unwrap().command, ["/bin/sh", "-c"]);
        own["args"] = json!(["echo $(WHO) $$(WHO) $(NOBODY) $HOME"]);
        own["env"] = json!([
            {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "WHO", "value": "$(ME)!"},
            {"name": "SAYS", "valueFrom": {"configMapKeyRef": {"name": "words", "key": "greeting"}}},
        ]);
        let plan = planned(own).unwrap();
        assert_eq!(plan.command[2], "echo web-1! $(WHO) $(NOBODY) $HOME");
        assert_eq!(plan.environment[2], ("SAYS".to_owned(), "hello".to_owned()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (container, message) in [
            (json!({"name": "c", "image": "nobody/this"}), "spec.containers[0].image: nobody/this"),
            (json!({"name": "c", "image": "alpine", "command": [1]}), "command: 1 is no string"),
            (
                json!({"name": "c", "image": "alpine", "env": [{"name": "A", "value": 1}]}),
                "env[0].value: 1 is no string",
            ),
            (
                json!({"name": "c", "image": "alpine",
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
                "volumeMounts[0].name: there is no volume v",
            ),
        ] {
            let error = format!("{:#}", planned(container).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_probe_may_name_its_port() {
        let container = json!({"name": "c", "image": "alpine",
            "ports": [{"name": "web", "containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}],
            "readinessProbe": {"tcpSocket": {"port": "web"}}});
        let plan = planned(container).unwrap();
        assert_eq!(plan.ports, [8080]);
        assert!(matches!(plan.probe, Some(Probe::Tcp(8080))), "{:?}", plan.probe);
    }
}
