//! A small reader of HTTP/1 messages, to check the engine against (RFC 9112). Pure.
//!
//! [`Rules::Strict`] takes what a sender may write, and nothing else; [`Rules::Lenient`] also what a
//! recipient may overlook. It shares no code with hyper.

/// How much is forgiven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    Strict,
    /// Line feeds alone, empty lines before a request, both framings at once (§2.2, §6.3).
    Lenient,
}

/// How a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    /// The input ends before it does.
    Partial,
    /// Not HTTP; what was read before is there.
    Bad,
}

/// What was read; `None`: the input ends before it does; an error: it is not HTTP.
type Read<T> = Result<Option<T>, ()>;

/// How the body's length is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// A request or a response, as far as it goes.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// The first line's three parts.
    pub(super) start: [String; 3],
    /// Names in lower case.
    pub(super) fields: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
    pub(super) end: End,
    /// Octets that it takes.
    pub(super) length: usize,
    /// Its end is the connection's.
    pub(super) until_close: bool,
}

impl Message {
    /// Values of a field.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(own, _)| own == name).map(|(_, value)| &**value)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    pub(super) fn status(&self) -> u16 {
        self.start[1].parse().unwrap_or(0)
    }
}

/// The requests of a connection, the last one perhaps incomplete; and whether what follows is bad.
pub(super) fn requests(mut input: &[u8], rules: Rules) -> (Vec<Message>, bool) {
    let mut found = Vec::new();
    loop {
        if rules == Rules::Lenient {
            let text = input.iter().position(|octet| !b"\r\n".contains(octet));
            input = input.get(text.unwrap_or(input.len())..).unwrap_or_default();
        }
        match request(input, rules) {
            Ok(Some(message)) => {
                let (length, end) = (message.length, message.end);
                found.push(message);
                if end != End::Complete {
                    return (found, end == End::Bad);
                }
                input = input.get(length..).unwrap_or_default();
            }
            Ok(None) => return (found, false),
            Err(()) => return (found, true),
        }
    }
}

/// One request. `None`: its head is not complete.
fn request(input: &[u8], rules: Rules) -> Read<Message> {
    let Some((mut message, rest)) = head(input, rules)? else { return Ok(None) };
    let [method, target, version] = &message.start;
    let version_known = matches!(version.as_str(), "HTTP/1.0" | "HTTP/1.1");
    if !is_token(method.as_bytes()) || target.is_empty() || !version_known {
        return Err(());
    }
    let framing = if method == "CONNECT" {
        Framing::Length(0)
    } else {
        framing(&message, rules)?.unwrap_or(Framing::Length(0))
    };
    take_body(&mut message, (rest, input.len()), framing, rules);
    Ok(Some(message))
}

/// One response to a request with `method`, as strictly as can be. `None`: its head is not complete.
pub(super) fn response(input: &[u8], method: &str) -> Read<Message> {
    let Some((mut message, rest)) = head(input, Rules::Strict)? else { return Ok(None) };
    let status = message.status();
    let digits = message.start[1].len() == 3 && (100..1000).contains(&status);
    if !message.start[0].starts_with("HTTP/1.") || !digits {
        return Err(());
    }
    let told = framing(&message, Rules::Strict)?;
    let none = method == "HEAD" || status < 200 || matches!(status, 204 | 304);
    let framing = if none { Framing::Length(0) } else { told.unwrap_or(Framing::UntilClose) };
    take_body(&mut message, (rest, input.len()), framing, Rules::Strict);
    Ok(Some(message))
}

/// A head and what follows it.
fn head(mut input: &[u8], rules: Rules) -> Read<(Message, &[u8])> {
    let Some((line, rest)) = line(input, rules)? else { return Ok(None) };
    input = rest;
    let text = String::from_utf8_lossy(line);
    let mut parts = text.splitn(3, ' ').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let start = [part(), part(), part()];
    let mut fields = Vec::new();
    loop {
        let Some((line, rest)) = self::line(input, rules)? else { return Ok(None) };
        input = rest;
        if line.is_empty() {
            break;
        }
        fields.push(field(line)?);
    }
    let end = End::Partial;
    let message = Message { start, fields, body: Vec::new(), end, length: 0, until_close: false };
    Ok(Some((message, input)))
}

fn field(line: &[u8]) -> Result<(String, Vec<u8>), ()> {
    let colon = line.iter().position(|octet| *octet == b':').ok_or(())?;
    let (name, value) = line.split_at(colon);
    let value = value.get(1..).unwrap_or_default().trim_ascii();
    let legal = |octet: &u8| *octet == b'\t' || (*octet >= b' ' && *octet != 0x7f);
    if !is_token(name) || !value.iter().all(legal) {
        return Err(());
    }
    Ok((String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()))
}

/// A line without its end, and what follows.
fn line(input: &[u8], rules: Rules) -> Read<(&[u8], &[u8])> {
    let Some(at) = input.iter().position(|octet| *octet == b'\n') else {
        return Ok(None);
    };
    let (line, rest) = input.split_at(at);
    let rest = rest.get(1..).unwrap_or_default();
    let line = match line.strip_suffix(b"\r") {
        Some(line) => line,
        None if rules == Rules::Lenient => line,
        None => return Err(()),
    };
    match line.contains(&b'\r') {
        true => Err(()),
        false => Ok(Some((line, rest))),
    }
}

/// `None`: the head does not tell.
fn framing(message: &Message, rules: Rules) -> Read<Framing> {
    let codings: Vec<u8> =
        message.all("transfer-encoding").collect::<Vec<_>>().join(&b","[..]).to_ascii_lowercase();
    let mut lengths = message.all("content-length").map(|value| {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
        number.filter(|_| digits).ok_or(())
    });
    if message.has("transfer-encoding") {
        let chunked = codings.rsplit(|octet| *octet == b',').next().unwrap_or_default();
        let both = rules == Rules::Strict && message.has("content-length");
        return match chunked.trim_ascii() == b"chunked" && !both {
            true => Ok(Some(Framing::Chunked)),
            false => Err(()),
        };
    }
    let Some(first) = lengths.next().transpose()? else { return Ok(None) };
    let more: Vec<u64> = lengths.collect::<Result<_, _>>()?;
    let same = more.iter().all(|other| *other == first);
    match same && (more.is_empty() || rules == Rules::Lenient) {
        true => Ok(Some(Framing::Length(first))),
        false => Err(()),
    }
}

/// `all` is the length of the input, of which `rest` is what follows the head.
fn take_body(message: &mut Message, (rest, all): (&[u8], usize), framing: Framing, rules: Rules) {
    let (end, left) = match framing {
        Framing::Length(length) => {
            let there = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
            let (body, left) = rest.split_at(there);
            message.body = body.to_vec();
            let whole = there as u64 == length;
            (if whole { End::Complete } else { End::Partial }, left)
        }
        Framing::UntilClose => {
            message.body = rest.to_vec();
            message.until_close = true;
            (End::Complete, &rest[rest.len()..])
        }
        Framing::Chunked => match chunks(rest, &mut message.body, rules) {
            Ok(Some(left)) => (End::Complete, left),
            Ok(None) => (End::Partial, &rest[rest.len()..]),
            Err(()) => (End::Bad, &rest[rest.len()..]),
        },
    };
    message.end = end;
    message.length = all - left.len();
}

/// The chunks and trailers; what follows them, if they are complete.
fn chunks<'a>(mut input: &'a [u8], body: &mut Vec<u8>, rules: Rules) -> Read<&'a [u8]> {
    loop {
        let Some((line, rest)) = line(input, Rules::Strict)? else { return Ok(None) };
        let size = line.split(|octet| *octet == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(size).map_err(|_| ())?.trim_end_matches([' ', '\t']);
        if size.is_empty() || !size.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(());
        }
        let size = u64::from_str_radix(size, 16).map_err(|_| ())?;
        if size == 0 {
            return trailers(rest, rules);
        }
        let there = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
        let (data, after) = rest.split_at(there);
        body.extend_from_slice(data);
        if (there as u64) < size || after.len() < 2 {
            return Ok(None);
        }
        input = after.strip_prefix(b"\r\n").ok_or(())?;
    }
}

fn trailers(mut input: &[u8], rules: Rules) -> Read<&[u8]> {
    loop {
        let Some((line, rest)) = line(input, rules)? else { return Ok(None) };
        if line.is_empty() {
            return Ok(Some(rest));
        }
        if rules == Rules::Strict {
            field(line)?;
        }
        input = rest;
    }
}

fn is_token(text: &[u8]) -> bool {
    let legal = |octet: &u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(octet);
    !text.is_empty() && text.iter().all(legal)
}
