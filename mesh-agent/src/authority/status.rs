//! What the status of an object should say: conditions and validation messages. Pure.
//!
//! Conditions and messages of others (an Istio's) stay as they are: a condition is the mesh's by its
//! type, a message by its code. Invariant: what is there already is not written again, whatever the
//! spelling: `lastTransitionTime` alone is no difference, and changes only with the condition's status.
//!
//! Source: `istio.meta.v1alpha1.IstioStatus`; conditions as in Kubernetes' `metav1.Condition`.

use serde_json::{Map, Value, json};

use super::admission::cut;
use crate::config::{Diagnostic, Kind, Severity};

/// Whether the object is in force as it is now.
const ACCEPTED: &str = "Accepted";
/// Present, and `True`, on objects that are meant to protect and do not.
const NOT_ENFORCED: &str = "NotEnforced";
/// Types of conditions that are the mesh's.
const OWN: [&str; 2] = [ACCEPTED, NOT_ENFORCED];
/// Start of the codes of messages that are the mesh's.
const CODES: &str = "MALHA";
/// What people read about a message.
const DOCUMENTATION: &str = "https://github.com/malha-mesh/malha#limits";
/// Characters of a condition's message.
const LONGEST: usize = 2048;
/// Findings that a message tells.
const MOST_FINDINGS: usize = 16;

/// What is known of an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) kind: Kind,
    pub(super) generation: i64,
    /// What is wrong with that generation, worst first.
    pub(super) findings: &'a [&'a Diagnostic],
}

/// The status in place of `there`; `None` if that says the same. `now`: RFC 3339.
///
/// Only the fields that are the mesh's are in it; one that is null is to be removed.
pub(super) fn desired(there: &Value, facts: Facts<'_>, now: &str) -> Option<Value> {
    let before = list(there, "conditions");
    let own = conditions(facts);
    let mut conditions: Vec<Value> = before.iter().filter(|one| !is_own(one)).cloned().collect();
    let count = before.len() - conditions.len();
    let mut is_same = count == own.len() && same_generation(there, facts.generation);
    for condition in own {
        let before = before.iter().find(|before| before["type"] == condition["type"]);
        match before {
            Some(before) if same(before, &condition) => conditions.push(before.clone()),
            before => {
                is_same = false;
                conditions.push(dated(condition, before, now));
            }
        }
    }
    let before = list(there, "validationMessages");
    let is_own_message = |message: &Value| {
        message.pointer("/type/code").and_then(Value::as_str).is_some_and(|c| c.starts_with(CODES))
    };
    let (own, mut messages): (Vec<_>, Vec<_>) = before.into_iter().partition(is_own_message);
    let wanted = validation_messages(facts);
    is_same &= own == wanted;
    messages.extend(wanted);
    let messages = if messages.is_empty() { Value::Null } else { messages.into() };
    (!is_same).then(|| {
        json!({
            "conditions": conditions,
            "validationMessages": messages,
            "observedGeneration": facts.generation,
        })
    })
}

/// The conditions that are the mesh's, without their dates.
fn conditions(facts: Facts<'_>) -> Vec<Value> {
    let has_error = facts.findings.iter().any(|found| found.severity == Severity::Error);
    let is_enforced = facts.kind.is_enforced();
    let (status, reason) = match (is_enforced, has_error) {
        (true, false) => ("True", "Accepted"),
        (true, true) => ("False", "Invalid"),
        (false, _) => ("False", "NotSupported"),
    };
    let message = message(facts);
    let condition = |name: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": name,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": facts.generation,
        })
    };
    let mut found = vec![condition(ACCEPTED, status, reason, &message)];
    if !is_enforced {
        let what = format!("{} is not supported yet: nothing of it is enforced", facts.kind.name());
        found.push(condition(NOT_ENFORCED, "True", "NotSupported", &what));
    }
    found
}

/// Whether a condition is the mesh's.
pub(super) fn is_own(condition: &Value) -> bool {
    OWN.iter().any(|own| condition["type"] == **own)
}

/// All findings in a text, the object itself left out.
fn message(facts: Facts<'_>) -> String {
    let told = facts.findings.iter().take(MOST_FINDINGS).map(|found| {
        let severity = match found.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        match found.field.is_empty() {
            true => format!("{severity}{}", found.message),
            false => format!("{severity}{}: {}", found.field, found.message),
        }
    });
    let told: Vec<String> = told.collect();
    let more = facts.findings.len() - told.len();
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    cut(&format!("{}{more}", told.join("; ")), LONGEST)
}

/// One of each type: they hold no text.
fn validation_messages(facts: Facts<'_>) -> Vec<Value> {
    let any = |severity| facts.findings.iter().any(|found| found.severity == severity);
    let mut found = Vec::new();
    if facts.kind.is_enforced() {
        if any(Severity::Error) {
            found.push(("Invalid", "MALHA0101", "ERROR"));
        }
    } else {
        found.push(("NotEnforced", "MALHA0103", "ERROR"));
    }
    if any(Severity::Warning) {
        found.push(("PartlyInForce", "MALHA0102", "WARNING"));
    }
    let message = |(name, code, level)| {
        json!({
            "type": { "name": name, "code": code },
            "level": level,
            "documentationUrl": DOCUMENTATION,
        })
    };
    found.into_iter().map(message).collect()
}

fn list(status: &Value, field: &str) -> Vec<Value> {
    status.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Adds the dates of a condition.
fn dated(mut condition: Value, before: Option<&Value>, now: &str) -> Value {
    let since = before
        .filter(|before| before["status"] == condition["status"])
        .and_then(|before| before["lastTransitionTime"].as_str())
        .filter(|since| !since.is_empty());
    condition["lastTransitionTime"] = since.unwrap_or(now).into();
    condition
}

/// Whether two conditions say the same.
fn same(before: &Value, condition: &Value) -> bool {
    let text = |of: &Value, field: &str| of[field].as_str().unwrap_or_default().to_owned();
    ["status", "reason", "message"]
        .iter()
        .all(|field| text(before, field) == text(condition, field))
        && generation(before) == generation(condition)
        && !text(before, "lastTransitionTime").is_empty()
}

fn same_generation(status: &Value, wanted: i64) -> bool {
    generation(status) == Some(wanted)
}

/// `observedGeneration`, which protobuf's JSON writes as text.
fn generation(of: &Value) -> Option<i64> {
    let found = of.get("observedGeneration")?;
    found.as_i64().or_else(|| found.as_str()?.parse().ok())
}

/// A merge patch of the status, for the version of the object that it was made from.
pub(super) fn patch(status: Value, resource_version: &str) -> Value {
    let mut patch = Map::new();
    patch.insert("metadata".to_owned(), json!({ "resourceVersion": resource_version }));
    patch.insert("status".to_owned(), status);
    Value::Object(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-02-01T00:00:00Z";
    const LATER: &str = "2026-02-02T00:00:00Z";

    fn found(severity: Severity, field: &str, message: &str) -> Diagnostic {
        let (field, message) = (field.to_owned(), message.to_owned());
        Diagnostic { severity, object: None, place: None, field, message }
    }

    fn status(there: &Value, kind: Kind, generation: i64, found: &[Diagnostic]) -> Option<Value> {
        let findings: Vec<&Diagnostic> = found.iter().collect();
        let facts = Facts { kind, generation, findings: &findings };
        desired(there, facts, if there.is_null() { NOW } else { LATER })
    }

    /// As the API server keeps what was written.
    fn stored(mut status: Value) -> Value {
        status.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        status
    }

    #[test]
    fn a_sound_object_is_accepted_and_written_once() {
        let first = status(&Value::Null, Kind::VirtualService, 1, &[]).unwrap();
        let expected = json!({
            "conditions": [{
                "type": "Accepted",
                "status": "True",
                "reason": "Accepted",
                "message": "",
                "observedGeneration": 1,
                "lastTransitionTime": NOW,
            }],
            "validationMessages": null,
            "observedGeneration": 1,
        });
        assert_eq!(first, expected);
        let mut there = stored(first);
        assert_eq!(status(&there, Kind::VirtualService, 1, &[]), None);
        // Whatever the spelling.
        there["observedGeneration"] = "1".into();
        there["conditions"][0]["observedGeneration"] = "1".into();
        assert_eq!(status(&there, Kind::VirtualService, 1, &[]), None);
        there["conditions"][0].as_object_mut().unwrap().remove("message");
        assert_eq!(status(&there, Kind::VirtualService, 1, &[]), None);
    }

    #[test]
    fn findings_are_told_with_their_fields() {
        let there = stored(status(&Value::Null, Kind::VirtualService, 1, &[]).unwrap());
        let all = [
            found(Severity::Error, "spec.http[0].route", "the weights add up to 0"),
            found(Severity::Warning, "", "its last good version stays in force"),
        ];
        let second = status(&there, Kind::VirtualService, 2, &all).unwrap();
        let accepted = &second["conditions"][0];
        assert_eq!(
            (&accepted["status"], &accepted["reason"]),
            (&json!("False"), &json!("Invalid"))
        );
        assert_eq!(accepted["lastTransitionTime"], LATER);
        assert_eq!(
            accepted["message"],
            "spec.http[0].route: the weights add up to 0; warning: its last good version stays in \
             force"
        );
        let codes: Vec<&Value> =
            (0..2).map(|n| &second["validationMessages"][n]["type"]["code"]).collect();
        assert_eq!(codes, ["MALHA0101", "MALHA0102"]);
        assert_eq!(status(&stored(second.clone()), Kind::VirtualService, 2, &all), None);
        // Another fault, the same status: it has been so since then.
        let third = status(&stored(second), Kind::VirtualService, 3, &all[..1]).unwrap();
        assert_eq!(third["conditions"][0]["lastTransitionTime"], LATER);
        let good = status(&stored(third), Kind::VirtualService, 4, &[]).unwrap();
        assert_eq!(good["validationMessages"], Value::Null);
    }

    #[test]
    fn what_is_not_enforced_says_so_and_no_longer() {
        let error =
            [found(Severity::Error, "spec", "not supported yet: nothing of it is enforced")];
        let first = status(&Value::Null, Kind::AuthorizationPolicy, 1, &error).unwrap();
        let types: Vec<&Value> = (0..2).map(|n| &first["conditions"][n]["type"]).collect();
        assert_eq!(types, ["Accepted", "NotEnforced"]);
        assert_eq!(first["conditions"][0]["status"], "False");
        assert_eq!(first["conditions"][1]["reason"], "NotSupported");
        let there = stored(first);
        assert_eq!(status(&there, Kind::AuthorizationPolicy, 1, &error), None);
        // A version that enforces the kind takes the condition away.
        let then = status(&there, Kind::PeerAuthentication, 1, &[]).unwrap();
        assert_eq!(then["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(then["conditions"][0]["status"], "True");
    }

    #[test]
    fn what_others_wrote_stays() {
        let others = json!({
            "conditions": [{ "type": "Reconciled", "status": "True" }],
            "validationMessages": [{ "type": { "name": "X", "code": "IST0101" }, "level": "INFO" }],
        });
        let error = [found(Severity::Error, "spec.hosts", "none")];
        let first = stored(status(&others, Kind::VirtualService, 1, &error).unwrap());
        assert_eq!(first["conditions"][0], others["conditions"][0]);
        assert_eq!(first["validationMessages"][0], others["validationMessages"][0]);
        assert_eq!(first["validationMessages"].as_array().unwrap().len(), 2);
        let good = status(&first, Kind::VirtualService, 2, &[]).unwrap();
        assert_eq!(good["validationMessages"], others["validationMessages"]);
    }

    #[test]
    fn odd_statuses_are_no_trouble_and_texts_are_bounded() {
        let many: Vec<Diagnostic> =
            (0..100).map(|_| found(Severity::Error, "spec", &"ü".repeat(500))).collect();
        for there in
            [json!(7), json!([]), json!({ "conditions": {} }), json!({ "conditions": [1] })]
        {
            let status = status(&there, Kind::DestinationRule, 1, &many).unwrap();
            let own = status["conditions"].as_array().unwrap().last().unwrap().clone();
            assert_eq!(own["message"].as_str().unwrap().chars().count(), LONGEST + 1);
        }
    }
}
