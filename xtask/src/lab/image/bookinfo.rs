//! The applications of Istio's Bookinfo sample: echo servers that ask each other as those do, and
//! so say which versions a request has been through.

use super::words;

const PORT: &str = "9080";
const DETAILS: &str = "http://details:9080/details/0";
const REVIEWS: &str = "http://reviews:9080/reviews/0";
const RATINGS: &str = "http://ratings:9080/ratings/0";

/// Arguments of the echo server for `istio/examples-bookinfo-<application>-<version>`.
pub(super) fn arguments(image: &str) -> Option<Vec<String>> {
    let name = image.strip_prefix("istio/examples-bookinfo-")?;
    let (application, version) = name.rsplit_once('-')?;
    let calls: &[&str] = match (application, version) {
        ("productpage", _) => &[DETAILS, REVIEWS],
        ("reviews", "v2" | "v3") => &[RATINGS],
        ("details" | "ratings" | "reviews", _) => &[],
        _ => return None,
    };
    let calls = calls.iter().flat_map(|url| ["--call", url]);
    let own = ["--http", PORT, "--app-version", version, "--log"];
    Some(words(&own.into_iter().chain(calls).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_asks_those_that_it_depends_on() {
        let calls = |image: &str| {
            let arguments = arguments(image)?;
            Some(arguments.into_iter().filter(|word| word.starts_with("http:")).collect::<Vec<_>>())
        };
        let of = |name: &str| calls(&format!("istio/examples-bookinfo-{name}"));
        assert_eq!(of("productpage-v1").unwrap(), [DETAILS, REVIEWS]);
        assert_eq!(of("reviews-v1"), Some(vec![]));
        assert_eq!(of("reviews-v3").unwrap(), [RATINGS]);
        assert_eq!((of("mongodb"), calls("nginx")), (None, None));
    }
}
