//! A Rust file cut into code and comments, line by line.
//!
//! Not a parser: it knows comments, strings and characters, so that words inside them are not taken
//! for code. In `code` they are blank, in `comments` everything else is; both keep every line where
//! it was.

/// A file and its two views.
pub(super) struct Source<'a> {
    pub(super) path: &'a str,
    pub(super) text: &'a str,
    pub(super) code: String,
    pub(super) comments: String,
    /// Line (from 1) where the tests at the end of the file begin; past the end if there are none.
    pub(super) tests_from: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

impl<'a> Source<'a> {
    pub(super) fn new(path: &'a str, text: &'a str) -> Self {
        let (code, comments) = views(text);
        let lines: Vec<&str> = code.lines().collect();
        let is_tests = path.contains("/tests/") || path.ends_with("/tests.rs");
        let marker = lines.iter().zip(lines.iter().skip(1)).position(|(line, next)| {
            line.trim() == "#[cfg(test)]" && next.contains("mod ") && next.contains('{')
        });
        let tests_from = match marker {
            _ if is_tests => 1,
            Some(index) => index + 1,
            None => usize::MAX,
        };
        Self { path, text, code, comments, tests_from }
    }

    /// Lines of code with their numbers, from 1.
    pub(super) fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.code.lines())
    }

    /// Lines of comments with their numbers, from 1.
    pub(super) fn comment_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.comments.lines())
    }

    /// The leading `//!` lines as one text.
    pub(super) fn header(&self) -> String {
        let lines = self.text.lines().map_while(|line| line.strip_prefix("//!"));
        lines.collect::<Vec<_>>().join(" ")
    }

    /// The line (from 1) of a byte offset in `code`.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.code.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }
}

/// Whether `word` begins at `offset` of `text` and is not a part of a longer name.
pub(super) fn is_word(text: &str, offset: usize, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    let before = text.get(..offset).and_then(|text| text.chars().next_back());
    let after = text.get(offset + word.len()..).and_then(|text| text.chars().next());
    let starts = word.starts_with(part_of_name) && before.is_some_and(part_of_name);
    let ends = word.ends_with(part_of_name) && after.is_some_and(part_of_name);
    !starts && !ends
}

/// Whether `word` stands in `text` as a whole name.
pub(super) fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(offset, _)| is_word(text, offset, word))
}

/// The text with all but code blank, and with all but comments blank.
fn views(text: &str) -> (String, String) {
    let mut code = String::with_capacity(text.len());
    let mut comments = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (kind, length) = piece(rest, code.chars().next_back());
        let (piece, after) = rest.split_at(length);
        for c in piece.chars() {
            let blank = if c == '\n' { '\n' } else { ' ' };
            code.push(if kind == Kind::Code { c } else { blank });
            comments.push(if kind == Kind::Comment { c } else { blank });
        }
        rest = after;
    }
    (code, comments)
}

/// The kind and the length in bytes of what `rest` begins with; `before` is the code's last letter.
fn piece(rest: &str, before: Option<char>) -> (Kind, usize) {
    if rest.starts_with("//") {
        return (Kind::Comment, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (Kind::Comment, block_comment(rest));
    }
    let in_name = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let prefix = ["br", "cr", "r", "b", "c"].into_iter().find(|p| rest.starts_with(p));
    let prefix = if in_name { "" } else { prefix.unwrap_or("") };
    let after = rest.get(prefix.len()..).unwrap_or("");
    let hashes = after.len() - after.trim_start_matches('#').len();
    if prefix.contains('r') && after.trim_start_matches('#').starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let start = prefix.len() + hashes + 1;
        let length = rest.get(start..).and_then(|text| text.find(&end));
        return (Kind::Literal, length.map_or(rest.len(), |length| start + length + end.len()));
    }
    if after.starts_with('"') {
        return (Kind::Literal, prefix.len() + quoted(after, '"'));
    }
    if after.starts_with('\'') && (prefix.is_empty() || prefix == "b") && is_character(after) {
        return (Kind::Literal, prefix.len() + quoted(after, '\''));
    }
    (Kind::Code, rest.chars().next().map_or(1, char::len_utf8))
}

/// Tells `'a'` and `'\n'` from a lifetime.
fn is_character(text: &str) -> bool {
    let mut letters = text.chars().skip(1);
    match letters.next() {
        Some('\\') => true,
        Some(_) => letters.next() == Some('\''),
        None => false,
    }
}

/// Length of a literal that begins with `quote`, with both quotes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (offset, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return offset + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Length of a block comment; they nest.
fn block_comment(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut offset = 0;
    while let Some(rest) = text.get(offset..) {
        if rest.starts_with("/*") {
            depth += 1;
            offset += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            offset += 2;
            if depth == 0 {
                return offset;
            }
        } else {
            match rest.chars().next() {
                Some(c) => offset += c.len_utf8(),
                None => break,
            }
        }
    }
    text.len()
}
