"""Asks the server of http2_server.py for everything it can do: HOST. Says `done`, or why not."""

import json
import socket
import sys
import time

from h2 import config, connection, events

HOST = sys.argv[1]
CANCEL = 8
PATIENCE = 20


class Stream:
    def __init__(self):
        self.hints, self.fields, self.trailers = [], None, None
        self.data, self.ended, self.reset = b"", False, None


class Client:
    def __init__(self):
        self.h2 = connection.H2Connection(config.H2Configuration(header_encoding="utf-8"))
        self.socket = socket.create_connection((HOST, 80), PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.streams = {}
        self.h2.initiate_connection()

    def ask(self, path, *fields, method="POST", end=False):
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", HOST), (":path", path)]
        self.h2.send_headers(stream, head + list(fields), end_stream=end)
        self.streams[stream] = Stream()
        return stream, self.streams[stream]

    def get(self, path, *fields, method="GET"):
        _, stream = self.ask(path, *fields, method=method, end=True)
        self.until(lambda: stream.ended, path)
        return stream

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def until(self, true, what):
        self.flush()
        while not true():
            data = self.socket.recv(65536)
            assert data, f"{what}: the connection has ended"
            for event in self.h2.receive_data(data):
                self.on(event, what)
            self.flush()

    def on(self, event, what):
        assert not isinstance(event, events.ConnectionTerminated), f"{what}: {event}"
        stream = self.streams.get(getattr(event, "stream_id", None))
        if isinstance(event, events.InformationalResponseReceived):
            stream.hints.append(dict(event.headers))
        elif isinstance(event, events.ResponseReceived):
            stream.fields = dict(event.headers)
        elif isinstance(event, events.TrailersReceived):
            stream.trailers = dict(event.headers)
        elif isinstance(event, events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            stream.data += event.data
        elif isinstance(event, events.StreamEnded):
            stream.ended = True
        elif isinstance(event, events.StreamReset):
            stream.reset = int(event.error_code)


def message(text):
    """gRPC's frame: not compressed, length, message."""
    return b"\0" + len(text).to_bytes(4, "big") + text


def call(client, path, *fields):
    """A call whose answer begins before anything of its body is sent."""
    grpc = [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "30S")]
    number, stream = client.ask(path, *grpc, *fields)
    client.until(lambda: stream.fields or stream.reset is not None, f"{path}: the head")
    assert stream.fields, f"{path}: reset {stream.reset} without a head"
    assert stream.fields[":status"] == "200", stream.fields
    return number, stream


def each(client):
    """Many calls at once, each of which goes back and forth, and ends with a status of its own."""
    calls = [(status, call(client, "/each", ("tag", str(status)))) for status in range(10)]
    for _, (_, stream) in calls:
        assert stream.fields["seen-grpc-timeout"] == "30S", stream.fields
        assert stream.fields["seen-te"] == "trailers", stream.fields
    for turn in range(5):
        for status, (number, stream) in calls:
            said = message(f"{status}: turn {turn}".encode())
            before = stream.data
            client.h2.send_data(number, said)
            client.until(lambda: stream.data == before + said, f"call {status}, turn {turn}")
    for status, (number, stream) in calls:
        client.h2.end_stream(number)
        client.until(lambda: stream.ended, f"the end of call {status}")
        assert stream.trailers == {"grpc-status": str(status), "x-rounds": "5"}, stream.trailers


def large(client):
    """A few MB both ways at once, many times what the windows hold."""
    data = b"".join(b"%015d\n" % number for number in range(200_000))
    number, stream = call(client, "/each")
    sent = 0
    while sent < len(data):
        room = lambda: client.h2.local_flow_control_window(number)
        client.until(lambda: room() > 0, f"room behind {sent} bytes")
        step = min(room(), client.h2.max_outbound_frame_size)
        client.h2.send_data(number, data[sent : sent + step])
        sent += step
    client.h2.end_stream(number)
    client.until(lambda: stream.ended, "the end of a large call")
    assert stream.data == data, (len(stream.data), len(data))
    assert stream.trailers["grpc-status"] == "0", stream.trailers


def taken_back(client):
    """Resets pass both ways, and so does the end of a client."""
    number, stream = call(client, "/broken")
    client.h2.send_data(number, b"some")
    client.until(lambda: stream.reset is not None, "a reset by the server")
    assert stream.reset == CANCEL, stream.reset
    assert not stream.ended
    # The server is one for all who ask.
    cancelled, gone = f"cancelled {time.time_ns()}", f"gone {time.time_ns()}"
    number, _ = call(client, "/wait", ("tag", cancelled))
    client.h2.reset_stream(number, CANCEL)
    other = Client()
    call(other, "/wait", ("tag", gone))
    other.socket.close()
    end = time.monotonic() + PATIENCE
    seen = {}
    while not (cancelled in seen and gone in seen):
        assert time.monotonic() < end, ("the server was not told", seen)
        time.sleep(0.02)
        seen = dict(json.loads(client.get("/resets").data))
    assert seen[cancelled] == CANCEL, seen


def answers(client):
    only = client.get("/trailers-only", ("content-type", "application/grpc"), method="POST")
    assert only.fields["grpc-status"] == "12" and only.fields["grpc-message"] == "no%20such"
    assert only.data == b"" and only.trailers is None, "one block of fields, not two"
    hints = client.get("/hints")
    assert [hint[":status"] for hint in hints.hints] == ["103"], hints.hints
    assert hints.hints[0]["link"] == "</a.css>" and hints.fields[":status"] == "200"
    for status in ("204", "304"):
        got = client.get(f"/{status}")
        assert (got.fields[":status"], got.fields["x-own"], got.data) == (status, "1", b"")
    head = client.get("/", method="HEAD")
    assert (head.fields["content-length"], head.data) == ("12345", b""), head.fields
    # 54 KB of fields, in several frames.
    many = client.get("/many", *[(f"x-many-{number}", "v" * 900) for number in range(60)])
    assert many.fields.get("x-size") == "54000", many.fields
    number, early = client.ask("/early")
    client.h2.send_data(number, b"some")
    client.until(lambda: early.ended, "an answer before the request's end")
    assert early.data == b"enough" and early.reset in (None, 0), (early.data, early.reset)


client = Client()
each(client)
large(client)
answers(client)
taken_back(client)
print("done")
