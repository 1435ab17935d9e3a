//! "Did you mean": the nearest known word. Pure.

/// The known word nearest to `word`, if it is near enough to be a misspelling: at most one edit
/// for words up to three letters, two up to seven, else three; case does not count.
pub(in crate::config) fn nearest<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let limit = match word.chars().count() {
        0 => return None,
        1..=3 => 1,
        4..=7 => 2,
        _ => 3,
    };
    let lower = word.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&lower, &candidate.to_ascii_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["httpHeaderName", "httpCookie", "LEAST_CONN", "LEAST_REQUEST", "uri", "name"];
        assert_eq!(nearest("httpsHeaderName", known), Some("httpHeaderName"));
        assert_eq!(nearest("LEST_CONN", known), Some("LEAST_CONN"));
        assert_eq!(nearest("Uri", known), Some("uri"));
        assert_eq!(nearest("color", known), None);
        assert_eq!(nearest("", known), None);
    }
}
