//! What the admission webhook answers: from a review of the API server's to its verdict. Pure.
//!
//! Invariant: an object is refused for what `config` itself would refuse it for, or because it is meant
//! to protect and would not; never when it is being deleted, or when what it says stays as it was.
//!
//! Source: `admission.k8s.io/v1`,
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{Checked, Diagnostic, Standing, check};
use crate::model::MeshSettings;

const VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Octets of a review's `uid`; the API server's have 36.
const LONGEST_UID: usize = 128;
/// Findings that are told of one object; a person fixes the first ones first.
const MOST_FINDINGS: usize = 32;
/// Characters of a warning: the API server cuts longer ones at 256, and all of an answer at 4096.
const LONGEST_WARNING: usize = 250;
/// Characters of a refusal.
const LONGEST_REFUSAL: usize = 8192;
/// The option that accepts what is not enforced, as it is told to people.
const OPTION: &str = "to accept it all the same, install with acceptNotEnforced=true \
     (--accept-not-enforced of the authority)";

/// By what is judged.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) mesh: MeshSettings,
    /// Security objects that are not enforced are admitted, with a warning.
    pub(super) accept_not_enforced: bool,
}

/// What was answered, for the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Admitted,
    /// Admitted, with warnings.
    Warned,
    Refused,
}

/// Not a review that can be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an AdmissionReview of admission.k8s.io/v1: {0}")]
pub(super) struct BadReview(String);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    operation: String,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    object: Option<Map<String, Value>>,
    old_object: Option<Map<String, Value>>,
}

/// What is decided, before it is written down.
#[derive(Default)]
struct Verdict {
    refusal: Option<String>,
    warnings: Vec<String>,
}

/// Answers a review.
pub(super) fn answer(review: &[u8], rules: &Rules) -> Result<(Outcome, Value), BadReview> {
    let bad = |what: &str| BadReview(what.to_owned());
    let review: Review =
        serde_json::from_slice(review).map_err(|error| BadReview(error.to_string()))?;
    if review.api_version != VERSION || review.kind != KIND {
        return Err(bad("it says to be something else"));
    }
    let request = review.request.ok_or_else(|| bad("it has no request"))?;
    let uid = request.uid.clone();
    if uid.is_empty() || uid.len() > LONGEST_UID {
        return Err(bad("its uid is empty or too long"));
    }
    let verdict = decide(request, rules)?;
    let outcome = match (&verdict.refusal, verdict.warnings.is_empty()) {
        (Some(_), _) => Outcome::Refused,
        (None, false) => Outcome::Warned,
        (None, true) => Outcome::Admitted,
    };
    Ok((outcome, written(uid, verdict)))
}

fn written(uid: String, verdict: Verdict) -> Value {
    let mut response = json!({ "uid": uid, "allowed": verdict.refusal.is_none() });
    if let Some(message) = verdict.refusal {
        let status = json!({
            "status": "Failure",
            "code": 422,
            "reason": "Invalid",
            "message": message,
        });
        response["status"] = status;
    }
    if !verdict.warnings.is_empty() {
        response["warnings"] = verdict.warnings.into();
    }
    json!({ "apiVersion": VERSION, "kind": KIND, "response": response })
}

fn decide(request: Request, rules: &Rules) -> Result<Verdict, BadReview> {
    let is_asked = matches!(&*request.operation, "CREATE" | "UPDATE");
    if !is_asked || !request.sub_resource.is_empty() {
        return Ok(Verdict::default());
    }
    let Request { name, namespace, object, old_object, .. } = request;
    let Some(mut object) = object else {
        return Err(BadReview("it has no object".to_owned()));
    };
    // Its finalizers must be able to go.
    if is_deleted(&object) {
        return Ok(Verdict::default());
    }
    let is_unchanged = old_object.is_some_and(|old| old.get("spec") == object.get("spec"));
    complete(&mut object, name, namespace);
    let checked = check(Value::Object(object), &rules.mesh);
    let verdict = judge(&checked, rules);
    Ok(if is_unchanged { verdict.without_refusal() } else { verdict })
}

fn judge(checked: &Checked, rules: &Rules) -> Verdict {
    let mut errors: Vec<String> = checked.errors().map(sentence).collect();
    let mut warnings: Vec<String> = checked.warnings().map(sentence).collect();
    let object = &checked.object;
    match checked.standing {
        Standing::InForce => {}
        Standing::NotRead => warnings.push(format!(
            "{object}: the mesh does not support {} yet: it is stored, but not in force",
            object.kind
        )),
        standing @ (Standing::NotEnforced | Standing::PartlyEnforced) => {
            let what = match standing {
                Standing::PartlyEnforced => "all of it yet: the rest is not enforced",
                _ => "it yet: nothing of it is enforced",
            };
            let text = format!("{object}: the mesh does not support {what}");
            if rules.accept_not_enforced {
                warnings.insert(0, text);
            } else {
                errors.push(format!("{text}; {OPTION}"));
            }
        }
    }
    Verdict {
        refusal: (!errors.is_empty()).then(|| joined(&errors)),
        warnings: warnings
            .iter()
            .take(MOST_FINDINGS)
            .map(|one| cut(one, LONGEST_WARNING))
            .collect(),
    }
}

impl Verdict {
    /// What was admitted once may stay, so that its metadata can be changed.
    fn without_refusal(mut self) -> Self {
        if let Some(refusal) = self.refusal.take() {
            self.warnings.insert(0, cut(&refusal, LONGEST_WARNING));
            self.warnings.truncate(MOST_FINDINGS);
        }
        self
    }
}

fn is_deleted(object: &Map<String, Value>) -> bool {
    let metadata = object.get("metadata");
    metadata.and_then(|found| found.get("deletionTimestamp")).is_some_and(|time| !time.is_null())
}

/// Fills in what the API server gives an object only after it was admitted.
fn complete(object: &mut Map<String, Value>, name: String, namespace: String) {
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    let Value::Object(metadata) = metadata else { return };
    let is_missing = |found: Option<&Value>| {
        found.is_none_or(|value| value.is_null() || value.as_str() == Some(""))
    };
    if is_missing(metadata.get("name")) {
        let generated = metadata.get("generateName").and_then(Value::as_str);
        let generated = generated.map(|prefix| format!("{prefix}*"));
        let known = (!name.is_empty()).then_some(name);
        metadata.insert("name".to_owned(), known.or(generated).unwrap_or("*".to_owned()).into());
    }
    if is_missing(metadata.get("namespace")) && !namespace.is_empty() {
        metadata.insert("namespace".to_owned(), namespace.into());
    }
}

/// A finding in the words of the diagnostics, without how bad it is.
pub(super) fn sentence(found: &Diagnostic) -> String {
    let mut text = found.object.as_ref().map(ToString::to_string).unwrap_or_default();
    if !found.field.is_empty() {
        text = format!("{text} {}", found.field);
    }
    format!("{text}: {}", found.message)
}

fn joined(errors: &[String]) -> String {
    let told = errors.iter().take(MOST_FINDINGS).map(String::as_str).collect::<Vec<_>>();
    let more = errors.len() - told.len();
    let mut text = told.join("; ");
    if more > 0 {
        text = format!("{text}; and {more} more");
    }
    cut(&text, LONGEST_REFUSAL)
}

/// At most so many characters.
pub(super) fn cut(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests;
