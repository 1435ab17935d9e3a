//! HPACK (RFC 7541): a whole decoder, and the few literals that we send.
//!
//! Peers use Huffman and the dynamic table, so both are decoded. What we send is literals
//! without indexing: a CONNECT every few milliseconds does not pay for a table on both sides.
//!
//! Invariant: the decoder's table never holds more than [`TABLE_SIZE`] octets as the RFC counts
//! them, whatever the peer asks for.

use std::collections::VecDeque;

use super::huffman;

/// Octets of dynamic table that we let a peer use: HTTP/2's default, so it is not announced.
pub(super) const TABLE_SIZE: usize = 4096;

/// What an entry counts besides its octets (RFC 7541 section 4.1).
pub(super) const ENTRY_OVERHEAD: usize = 32;

/// Why a header block cannot be decoded; each is a connection error `COMPRESSION_ERROR`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HpackError {
    /// The block ends inside a field.
    Truncated,
    /// An integer above 2^28 or with needless octets.
    Integer,
    /// An index that neither table has.
    Index,
    /// A string that is not valid Huffman.
    Huffman,
    /// A table size above what was allowed, or not at the start of the block.
    TableSize,
}

struct Entry {
    name_len: usize,
    octets: Box<[u8]>,
}

impl Entry {
    fn size(&self) -> usize {
        self.octets.len() + ENTRY_OVERHEAD
    }

    fn split(&self) -> (&[u8], &[u8]) {
        self.octets.split_at_checked(self.name_len).unwrap_or_default()
    }
}

/// The decoding half of one connection.
pub(super) struct Decoder {
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
    /// Reused from field to field, so that a block costs no allocation.
    name: Vec<u8>,
    value: Vec<u8>,
}

// === impl Decoder ===

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            limit: TABLE_SIZE,
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Hands each field of a whole block to `field`, in order.
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        mut field: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), HpackError> {
        let mut input = block;
        let mut at_start = true;
        while let Some(&first) = input.first() {
            if first & 0x80 != 0 {
                let index = integer(&mut input, 7)?;
                let (name, value) = self.lookup(index)?;
                field(name, value);
            } else if first & 0xe0 == 0x20 {
                let size = integer(&mut input, 5)?;
                if !at_start || size > TABLE_SIZE {
                    return Err(HpackError::TableSize);
                }
                self.limit = size;
                self.evict(size);
                continue;
            } else {
                let indexed = first & 0x40 != 0;
                let index = integer(&mut input, if indexed { 6 } else { 4 })?;
                self.literal(index, &mut input)?;
                field(&self.name, &self.value);
                if indexed {
                    self.insert();
                }
            }
            at_start = false;
        }
        Ok(())
    }

    /// Reads a literal's name and value into the scratch buffers.
    fn literal(&mut self, index: usize, input: &mut &[u8]) -> Result<(), HpackError> {
        let mut name = std::mem::take(&mut self.name);
        name.clear();
        if index == 0 {
            string(input, &mut name)?;
        } else {
            name.extend_from_slice(self.lookup(index)?.0);
        }
        self.name = name;
        self.value.clear();
        string(input, &mut self.value)
    }

    fn lookup(&self, index: usize) -> Result<(&[u8], &[u8]), HpackError> {
        let nth = index.checked_sub(1).ok_or(HpackError::Index)?;
        if let Some((name, value)) = STATIC.get(nth) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(nth - STATIC.len()).ok_or(HpackError::Index)?;
        Ok(entry.split())
    }

    fn insert(&mut self) {
        let mut octets = Vec::with_capacity(self.name.len() + self.value.len());
        octets.extend_from_slice(&self.name);
        octets.extend_from_slice(&self.value);
        let entry = Entry { name_len: self.name.len(), octets: octets.into() };
        // An entry larger than the table empties it and is not an error (RFC 7541 section 4.4).
        self.evict(self.limit.saturating_sub(entry.size()));
        if entry.size() <= self.limit {
            self.size += entry.size();
            self.entries.push_front(entry);
        }
    }

    fn evict(&mut self, target: usize) {
        while self.size > target {
            match self.entries.pop_back() {
                Some(entry) => self.size -= entry.size(),
                None => self.size = 0,
            }
        }
    }
}

// === free helpers ===

/// An integer with an `n`-bit prefix (RFC 7541 section 5.1).
fn integer(input: &mut &[u8], prefix: u32) -> Result<usize, HpackError> {
    let mask = (1_usize << prefix) - 1;
    let mut value = usize::from(next(input)?) & mask;
    if value < mask {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let octet = next(input)?;
        value += usize::from(octet & 0x7f) << shift;
        if octet & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(HpackError::Integer)
}

/// A string literal, appended to `output` (RFC 7541 section 5.2).
fn string(input: &mut &[u8], output: &mut Vec<u8>) -> Result<(), HpackError> {
    let huffman = input.first().is_some_and(|octet| octet & 0x80 != 0);
    let length = integer(input, 7)?;
    let (octets, rest) = input.split_at_checked(length).ok_or(HpackError::Truncated)?;
    *input = rest;
    if huffman {
        return huffman::decode(octets, output).ok_or(HpackError::Huffman);
    }
    output.extend_from_slice(octets);
    Ok(())
}

fn next(input: &mut &[u8]) -> Result<u8, HpackError> {
    let (first, rest) = input.split_first().ok_or(HpackError::Truncated)?;
    *input = rest;
    Ok(*first)
}

/// Appends a field whose name is in the static table, without indexing.
pub(super) fn encode_indexed_name(index: u8, value: &[u8], output: &mut Vec<u8>) {
    encode_integer(0x00, 4, usize::from(index), output);
    encode_string(value, output);
}

/// Appends a field as two plain literals, without indexing.
pub(super) fn encode_literal(name: &[u8], value: &[u8], output: &mut Vec<u8>) {
    output.push(0x00);
    encode_string(name, output);
    encode_string(value, output);
}

/// Appends a field that the static table has whole.
pub(super) fn encode_indexed(index: u8, output: &mut Vec<u8>) {
    output.push(0x80 | index);
}

/// Appends "my table is empty from now on". Sent once, before our first block: it satisfies any
/// smaller table that the peer's SETTINGS may ask for (RFC 7541 section 4.2).
pub(super) fn encode_no_table(output: &mut Vec<u8>) {
    output.push(0x20);
}

fn encode_string(octets: &[u8], output: &mut Vec<u8>) {
    encode_integer(0x00, 7, octets.len(), output);
    output.extend_from_slice(octets);
}

#[expect(clippy::cast_possible_truncation, reason = "each cast follows a comparison or a mask")]
fn encode_integer(pattern: u8, prefix: u32, value: usize, output: &mut Vec<u8>) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        output.push(pattern | value as u8);
        return;
    }
    output.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        output.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    output.push(rest as u8);
}

/// RFC 7541 Appendix A.
#[rustfmt::skip]
static STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"),
    (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"), (":status", "200"),
    (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""),
    ("accept", ""), ("access-control-allow-origin", ""), ("age", ""), ("allow", ""),
    ("authorization", ""), ("cache-control", ""), ("content-disposition", ""),
    ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""),
    ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""),
    ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""),
    ("vary", ""), ("via", ""), ("www-authenticate", ""),
];

#[cfg(test)]
mod tests;
