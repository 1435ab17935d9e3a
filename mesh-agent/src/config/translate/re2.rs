//! Istio's regular expressions are RE2's, in which `\w`, `\d`, `\s` and `\b` mean ASCII; in the `regex`
//! crate they mean Unicode, whose tables make an expression a hundred times as large. They are spelled
//! out. Pure.
//!
//! Invariant: whatever else stands in an expression, such as literals, `.` and `\pL`, goes by characters
//! in both. Source: RE2's `syntax.md`, "Perl character classes" and "Empty strings".

use std::borrow::Cow;
use std::convert::Infallible;
use std::ops::Range;

use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{
    Assertion, AssertionKind, Ast, ClassPerl, ClassPerlKind, ClassSetItem, Visitor, visit,
};

/// An expression with RE2's meaning for the `regex` crate. One that cannot be parsed stays as it is.
pub(super) fn ascii_classes(text: &str) -> Cow<'_, str> {
    let Ok(parsed) = Parser::new().parse(text) else { return Cow::Borrowed(text) };
    let Ok(found) = visit(&parsed, Found::default());
    let Some(last) = found.last() else { return Cow::Borrowed(text) };
    let tail = text.get(last.place.end..).unwrap_or_default();
    let (mut made, mut from) = (String::with_capacity(2 * text.len()), 0);
    for Spelled { place, by } in &found {
        made.push_str(text.get(from..place.start).unwrap_or_default());
        made.push_str(by);
        from = place.end;
    }
    made.push_str(tail);
    Cow::Owned(made)
}

/// What stands at a place in the text, and what is to stand there.
struct Spelled {
    place: Range<usize>,
    by: &'static str,
}

/// In the order of the text, in which an expression is visited.
#[derive(Default)]
struct Found(Vec<Spelled>);

impl Found {
    fn class(&mut self, class: &ClassPerl) {
        let by = match (&class.kind, class.negated) {
            (ClassPerlKind::Digit, false) => "[0-9]",
            (ClassPerlKind::Digit, true) => "[^0-9]",
            // Unlike elsewhere without the vertical tab. No blank as such: `(?x)` would skip it.
            (ClassPerlKind::Space, false) => r"[\t\n\f\r\x20]",
            (ClassPerlKind::Space, true) => r"[^\t\n\f\r\x20]",
            (ClassPerlKind::Word, false) => "[0-9A-Za-z_]",
            (ClassPerlKind::Word, true) => "[^0-9A-Za-z_]",
        };
        self.0.push(Spelled { place: class.span.start.offset..class.span.end.offset, by });
    }

    fn assertion(&mut self, found: &Assertion) {
        let by = match found.kind {
            AssertionKind::WordBoundary => r"(?-u:\b)",
            AssertionKind::NotWordBoundary => r"(?-u:\B)",
            // RE2 has no other boundaries of words.
            _ => return,
        };
        self.0.push(Spelled { place: found.span.start.offset..found.span.end.offset, by });
    }
}

impl Visitor for Found {
    type Output = Vec<Spelled>;
    type Err = Infallible;

    fn finish(self) -> Result<Self::Output, Self::Err> {
        Ok(self.0)
    }

    fn visit_pre(&mut self, ast: &Ast) -> Result<(), Self::Err> {
        if let Ast::ClassPerl(class) = ast {
            self.class(class);
        }
        if let Ast::Assertion(assertion) = ast {
            self.assertion(assertion);
        }
        Ok(())
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Self::Err> {
        if let ClassSetItem::Perl(class) = item {
            self.class(class);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use regex::Regex;

    use super::*;

    fn is_match(expression: &str, text: &str) -> bool {
        Regex::new(&format!(r"\A(?:{})\z", ascii_classes(expression))).unwrap().is_match(text)
    }

    #[test]
    fn classes_are_spelled_out_wherever_they_stand() {
        for (expression, expected) in [
            (r"/users/\w+", "/users/[0-9A-Za-z_]+"),
            (r"[\w.-]+\D", "[[0-9A-Za-z_].-]+[^0-9]"),
            (r"[^\s\d]", r"[^[\t\n\f\r\x20][0-9]]"),
            (r"(?i)(\bé\B|\W)", r"(?i)((?-u:\b)é(?-u:\B)|[^0-9A-Za-z_])"),
            // Not classes.
            (r"\\w\pL.é", r"\\w\pL.é"),
            ("", ""),
            // Not an expression either; whoever compiles it will say so.
            (r"(\w", r"(\w"),
        ] {
            assert_eq!(ascii_classes(expression), expected, "{expression}");
        }
    }

    #[test]
    fn classes_are_ascii_and_characters_are_not() {
        for (expression, text, expected) in [
            (r"\w+", "Az_09", true),
            (r"\w", "é", false),
            (r"\d", "٣", false),
            (r"\s", "\u{a0}", false),
            (r"\s", "\u{b}", false),
            (r"\s+", " \t\n\u{c}\r", true),
            (r"[^\w]", "é", true),
            (r"(?x) a \s b", "a b", true),
            // One character, of two octets.
            (r"\W", "é", true),
            (r"\D\S", "éé", true),
            (".", "é", true),
            ("é{2}", "éé", true),
            ("(?i)É", "é", true),
            (r"[à-ü]+", "éà", true),
            (r"\pL", "é", true),
            // Between two octets of a letter that is no word's there is no boundary, around `a` there are.
            (r"é\ba\bé", "éaé", true),
            (r"é\Bé", "éé", true),
        ] {
            assert_eq!(is_match(expression, text), expected, "{expression} {text:?}");
        }
    }

    #[test]
    fn the_first_letter_of_a_folded_class_is_found_as_before() {
        assert!(is_match(r"(?i)[\w]x", "aX") && !is_match(r"(?i)\d", "a"));
    }

    proptest! {
        /// Of ASCII but the vertical tab both understand the same.
        #[test]
        fn ascii_is_understood_as_before(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", r"\b", r"\B", r"[\w.-]", r"[^\d\s]",
                    "a", "-", ".", r"\.", "(?:", ")*", "|",
                ]),
                0..8,
            ),
            text in "[ -~\t\n]{0,12}",
        ) {
            let expression = parts.concat();
            let Ok(unicode) = Regex::new(&format!(r"\A(?:{expression})\z")) else { return Ok(()) };
            prop_assert_eq!(is_match(&expression, &text), unicode.is_match(&text));
        }

        /// Whatever is written, it is still one expression, or none as before.
        #[test]
        fn expressions_stay_expressions(text in r"([\\\[\]()^$|?*+{}\-&~wWdDsSbB0-9a,é ]|\(\?[ixsm]\)){0,16}") {
            let before = Regex::new(&text).is_ok();
            prop_assert!(!before || Regex::new(&ascii_classes(&text)).is_ok(), "{}", ascii_classes(&text));
        }
    }
}
