//! What is said of each request as it ends (`--lines`), and the header that tells requests apart
//! (`--vary`).

use std::time::Duration;

use anyhow::Context;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;

use super::report::Failure;

/// A header whose value goes with the request's number.
#[derive(Debug)]
pub(super) struct Vary {
    name: HeaderName,
    count: u64,
}

/// How a request has ended.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    /// Its number, the first being 0.
    number: u64,
    /// Milliseconds from the beginning of the run until it ended.
    at: u64,
    /// Milliseconds that it took.
    took: u64,
    /// 0: it was not answered.
    status: u16,
    /// What `--count-header` asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<&'a str>,
    /// The answer's body, or its hash if it is long.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl Vary {
    /// Reads `NAME=COUNT`.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let (name, count) =
            text.split_once('=').with_context(|| format!("--vary {text}: write `name=count`"))?;
        let name = name.parse().with_context(|| format!("--vary {text}"))?;
        let count = count.parse().with_context(|| format!("--vary {text}"))?;
        anyhow::ensure!(count > 0, "--vary {text}: the count must be over 0");
        Ok(Self { name, count })
    }

    /// Sets the header of the request with this number.
    pub(super) fn apply(&self, number: u64, headers: &mut HeaderMap) {
        // Digits and letters are a header's value.
        if let Ok(value) = HeaderValue::from_str(&format!("user-{}", number % self.count)) {
            headers.insert(self.name.clone(), value);
        }
    }
}

impl<'a> Line<'a> {
    /// One that ended now, so long `after` the run's beginning.
    pub(super) fn new(number: u64, after: Duration, took: Duration) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            number,
            at: millis(after),
            took: millis(took),
            status: 0,
            header: None,
            body: None,
            error: None,
        }
    }

    /// It was answered.
    pub(super) fn answered(self, status: u16, header: Option<&'a str>, body: &'a str) -> Self {
        Self { status, header, body: Some(body), ..self }
    }

    /// It was not.
    pub(super) fn failed(self, failure: &'a Failure) -> Self {
        Self { error: Some(&failure.text), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_come_again() {
        let vary = Vary::parse("x-user=3").unwrap();
        let mut headers = HeaderMap::new();
        let seen = [0, 2, 3].map(|number| {
            vary.apply(number, &mut headers);
            headers["x-user"].clone()
        });
        assert_eq!(seen, ["user-0", "user-2", "user-0"]);
        for wrong in ["x-user", "x-user=0", "x user=1"] {
            assert!(Vary::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_has_what_there_is() {
        let line = Line::new(7, Duration::from_millis(1500), Duration::from_millis(20));
        let answered = line.answered(200, Some("v1"), "OK");
        assert_eq!(
            serde_json::to_string(&answered).unwrap(),
            r#"{"number":7,"at":1500,"took":20,"status":200,"header":"v1","body":"OK"}"#
        );
    }
}
