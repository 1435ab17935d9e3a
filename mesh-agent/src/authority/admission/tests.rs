//! Reviews and what is answered, and that no review at all makes the webhook stumble.

use super::*;

/// `spec` of a sound VirtualService.
const SOUND: &str = r#"{"hosts":["cart"],"http":[{"route":[{"destination":{"host":"cart"}}]}]}"#;

fn rules() -> Rules {
    Rules { mesh: MeshSettings::default(), accept_not_enforced: false }
}

fn accepting() -> Rules {
    Rules { accept_not_enforced: true, ..rules() }
}

fn object(group: &str, kind: &str, spec: &str) -> Value {
    json!({
        "apiVersion": format!("{group}.istio.io/v1"),
        "kind": kind,
        "metadata": { "namespace": "shop", "name": "cart" },
        "spec": serde_json::from_str::<Value>(spec).unwrap(),
    })
}

fn route(spec: &str) -> Value {
    object("networking", "VirtualService", spec)
}

fn create(object: &Value) -> Value {
    review(json!({ "operation": "CREATE", "namespace": "shop", "name": "cart", "object": object }))
}

fn review(mut request: Value) -> Value {
    request["uid"] = "1".into();
    json!({ "apiVersion": VERSION, "kind": KIND, "request": request })
}

fn response(review: &Value, rules: &Rules) -> Value {
    let (outcome, body) = answer(review.to_string().as_bytes(), rules).unwrap();
    check_form(outcome, &body);
    body["response"].clone()
}

/// As the API server wants an answer.
fn check_form(outcome: Outcome, body: &Value) {
    assert_eq!((&body["apiVersion"], &body["kind"]), (&json!(VERSION), &json!(KIND)));
    let response = &body["response"];
    let is_allowed = response["allowed"].as_bool().unwrap();
    assert!(response["uid"].as_str().is_some_and(|uid| !uid.is_empty()));
    assert_eq!(is_allowed, outcome != Outcome::Refused);
    if !is_allowed {
        let message = response["status"]["message"].as_str().unwrap();
        assert!(!message.is_empty() && message.chars().count() <= LONGEST_REFUSAL + 1);
        assert_eq!(response["status"]["code"], 422);
    }
    let warnings = response["warnings"].as_array().cloned().unwrap_or_default();
    assert!(warnings.len() <= MOST_FINDINGS);
    for warning in warnings {
        assert!(warning.as_str().unwrap().chars().count() <= LONGEST_WARNING + 1);
    }
}

fn refusal(review: &Value, rules: &Rules) -> String {
    let response = response(review, rules);
    assert_eq!(response["allowed"], false, "{response}");
    response["status"]["message"].as_str().unwrap().to_owned()
}

fn warnings(review: &Value, rules: &Rules) -> Vec<String> {
    let response = response(review, rules);
    assert_eq!(response["allowed"], true, "{response}");
    serde_json::from_value(response["warnings"].clone()).unwrap_or_default()
}

#[test]
fn a_sound_object_is_admitted() {
    assert_eq!(warnings(&create(&route(SOUND)), &rules()), Vec::<String>::new());
}

#[test]
fn every_error_is_named_with_its_field() {
    let spec = r#"{"hosts":["cart"],"http":[
        {"match":[{"uri":{"prefix":"/a"}}],"route":[{"destination":{"host":"cart"},"weight":-1}]},
        {}]}"#;
    assert_eq!(
        refusal(&create(&route(spec)), &rules()),
        "VirtualService shop/cart spec.http[0].route[0].weight: -1 is negative; VirtualService \
         shop/cart spec.http[1]: must have one of `route`, `redirect` and `directResponse`"
    );
    let wrong = refusal(&create(&route(r#"{"hosts":"cart"}"#)), &rules());
    assert!(wrong.starts_with("VirtualService shop/cart spec.hosts: must be a list"), "{wrong}");
}

#[test]
fn what_is_not_honoured_is_a_warning() {
    let spec = SOUND.replace("\"route\"", "\"match\":[{\"statPrefix\":\"x\"}],\"route\"");
    let field =
        "VirtualService shop/cart spec.http[0].match[0].statPrefix: not supported yet, ignored";
    assert_eq!(warnings(&create(&route(&spec)), &rules()), [field]);
    let gateway = object("networking", "Gateway", r#"{"servers":[]}"#);
    let [text] = <[String; 1]>::try_from(warnings(&create(&gateway), &rules())).unwrap();
    assert!(text.starts_with("Gateway shop/cart: ") && text.ends_with("not in force"), "{text}");
}

#[test]
fn what_protects_nothing_is_refused_unless_told_otherwise() {
    for kind in ["AuthorizationPolicy", "RequestAuthentication"] {
        let review = create(&object("security", kind, "{}"));
        let text = refusal(&review, &rules());
        let begin = format!("{kind} shop/cart: the mesh does not support it yet: nothing of it is");
        assert!(text.starts_with(&begin), "{text}");
        assert!(text.contains("--accept-not-enforced") && text.contains("acceptNotEnforced"));
        let [text] = <[String; 1]>::try_from(warnings(&review, &accepting())).unwrap();
        assert!(text.starts_with(&begin), "{text}");
    }
    // Errors are errors all the same.
    let odd = object("security", "AuthorizationPolicy", r#"{"actoin":"DENY"}"#);
    let text = refusal(&create(&odd), &accepting());
    assert!(text.contains("spec.actoin: unknown field; did you mean `action`?"), "{text}");
    let newer = r#"{"mtls":{"mode":"STRICT"},"postQuantumOnly":true}"#;
    let newer = create(&object("security", "PeerAuthentication", newer));
    let text = refusal(&newer, &rules());
    assert!(text.contains("support all of it yet: the rest is not enforced"), "{text}");
    assert_eq!(warnings(&newer, &accepting()).len(), 2);
}

#[test]
fn what_is_there_can_be_deleted_and_annotated() {
    let bad = route(r#"{"hosts":"cart"}"#);
    let delete = review(json!({ "operation": "DELETE", "oldObject": bad, "object": null }));
    assert_eq!(warnings(&delete, &rules()), Vec::<String>::new());
    let update = |object: &Value, old: &Value| {
        review(json!({ "operation": "UPDATE", "object": object, "oldObject": old }))
    };
    let mut labelled = bad.clone();
    labelled["metadata"]["labels"] = json!({ "a": "b" });
    labelled["status"] = json!({ "conditions": [] });
    assert_eq!(warnings(&update(&labelled, &bad), &rules()).len(), 1);
    let worse = route(r#"{"hosts":7}"#);
    refusal(&update(&worse, &bad), &rules());
    let mut deleted = worse;
    deleted["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z".into();
    assert_eq!(warnings(&update(&deleted, &bad), &rules()), Vec::<String>::new());
    let status = json!({ "operation": "UPDATE", "subResource": "status", "object": bad });
    assert_eq!(warnings(&review(status), &rules()), Vec::<String>::new());
}

#[test]
fn a_name_may_come_later() {
    let mut object = route(r#"{"hosts":"cart"}"#);
    object["metadata"] = json!({ "generateName": "cart-" });
    let request = json!({ "operation": "CREATE", "namespace": "shop", "object": object });
    let text = refusal(&review(request), &rules());
    assert!(text.starts_with("VirtualService shop/cart-* spec.hosts"), "{text}");
}

#[test]
fn what_is_no_review_is_said_so() {
    for text in ["", "{", "[]", "null", "{}", r#"{"apiVersion":"admission.k8s.io/v1beta1"}"#] {
        assert!(answer(text.as_bytes(), &rules()).is_err(), "{text}");
    }
    let deep = "[".repeat(100_000);
    assert!(answer(deep.as_bytes(), &rules()).is_err());
    for request in [
        json!({ "operation": "CREATE" }),
        json!({ "operation": "CREATE", "object": [] }),
        json!({ "operation": 1, "object": {} }),
        json!({ "object": {} }),
    ] {
        let review = review(request);
        assert!(answer(review.to_string().as_bytes(), &rules()).is_err(), "{review}");
    }
}

#[test]
fn answers_are_bounded() {
    let odd = "x".repeat(1000);
    let many: Vec<Value> = (0..200)
        .map(|_| json!({ "route": [{ "destination": { "host": odd }, "weight": -1 }] }))
        .collect();
    let review = create(&route(&json!({ "hosts": ["cart"], "http": many }).to_string()));
    assert!(refusal(&review, &rules()).chars().count() > 1000);
    let many: Map<String, Value> =
        (0..200).map(|n| (format!("{odd}{n}"), Value::Bool(true))).collect();
    let mut spec: Value = serde_json::from_str(SOUND).unwrap();
    spec.as_object_mut().unwrap().extend(many);
    assert_eq!(warnings(&create(&route(&spec.to_string())), &rules()).len(), MOST_FINDINGS);
}

// === Mutations ===

/// Reproducible, and no more: xorshift64.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn value(&mut self) -> Value {
        let values = [
            Value::Null,
            json!(-1),
            json!(1e300),
            json!(u64::MAX),
            json!(true),
            json!("*"),
            json!(""),
            json!("\u{0}ü/.."),
            json!("x".repeat(2000)),
            json!([]),
            json!({}),
            json!([[[[[{ "a": [null] }]]]]]),
        ];
        values[self.below(values.len())].clone()
    }

    /// Changes one place below `value`: takes away, replaces, doubles or renames.
    fn mutate(&mut self, value: &mut Value) {
        let deeper = self.below(5) > 0;
        match value {
            Value::Object(map) if deeper && !map.is_empty() => {
                let key = map.keys().nth(self.below(map.len())).unwrap().clone();
                match self.below(6) {
                    0 => drop(map.remove(&key)),
                    1 => {
                        let found = map.remove(&key).unwrap();
                        map.insert(format!("{key}{}", self.below(3)), found);
                    }
                    _ => self.mutate(map.get_mut(&key).unwrap()),
                }
            }
            Value::Array(list) if deeper && !list.is_empty() => {
                let index = self.below(list.len());
                match self.below(6) {
                    0 => drop(list.remove(index)),
                    1 => list.push(list[index].clone()),
                    _ => self.mutate(&mut list[index]),
                }
            }
            _ => *value = self.value(),
        }
    }
}

fn samples() -> Vec<Value> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kube/samples");
    let mut found = Vec::new();
    for folder in [folder.join("accepted"), folder.join("refused")] {
        let mut files: Vec<_> =
            folder.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        for file in files {
            let text = std::fs::read_to_string(file).unwrap();
            let documents = text.split("\n---\n");
            found.extend(documents.map(|text| serde_saphyr::from_str::<Value>(text).unwrap()));
        }
    }
    found
}

#[test]
fn mutated_objects_are_answered_in_form() {
    let (samples, mut draw) = (samples(), Draw(0x6d61_6c68_6101));
    let mut outcomes = [0; 3];
    for round in 0..2_000 {
        let mut object = samples[draw.below(samples.len())].clone();
        for _ in 0..=draw.below(3) {
            draw.mutate(&mut object);
        }
        let mut review = create(&object);
        if round % 4 == 3 {
            draw.mutate(&mut review);
        }
        for rules in [rules(), accepting()] {
            let text = review.to_string();
            let first = answer(text.as_bytes(), &rules);
            assert_eq!(first, answer(text.as_bytes(), &rules), "not the same twice: {text}");
            if let Ok((outcome, body)) = first {
                check_form(outcome, &body);
                outcomes[outcome as usize] += 1;
            }
        }
    }
    // Most samples have something that is not honoured.
    assert!(outcomes.iter().all(|count| *count >= 5), "too much of the same: {outcomes:?}");
}

#[test]
fn mutated_bytes_are_answered_in_form() {
    let (samples, mut draw) = (samples(), Draw(0x6d61_6c68_6102));
    for _ in 0..400 {
        let mut text = create(&samples[draw.below(samples.len())]).to_string().into_bytes();
        for _ in 0..=draw.below(4) {
            let at = draw.below(text.len());
            text[at] = u8::try_from(draw.below(256)).unwrap();
        }
        if let Ok((outcome, body)) = answer(&text, &rules()) {
            check_form(outcome, &body);
        }
    }
}
