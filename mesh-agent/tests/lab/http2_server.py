"""An HTTP/2 server (prior knowledge) that does to each stream what its path says."""

import json
import socket
import socketserver

from h2 import config, connection, events, exceptions

# Streams that were taken back: `tag` of the request, error code, or none if the connection went.
RESETS = []
CANCEL, NO_ERROR = 8, 0
GRPC = ("content-type", "application/grpc")


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2 = connection.H2Connection(
            config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self.streams = {}
        self.h2.initiate_connection()
        self.request.sendall(self.h2.data_to_send())
        while data := self.received():
            for event in self.h2.receive_data(data):
                try:
                    self.on(event)
                except exceptions.StreamClosedError:
                    pass  # Taken back by an event that comes later in this list.
            self.request.sendall(self.h2.data_to_send())
        RESETS.extend((fields.get("tag"), None) for fields in self.streams.values())

    def received(self):
        try:
            return self.request.recv(65536)
        except ConnectionResetError:
            return b""

    def answer(self, stream, *fields, end=False):
        self.h2.send_headers(stream, [(":status", "200"), *fields], end_stream=end)

    def on(self, event):
        if isinstance(event, events.RequestReceived):
            fields = dict(event.headers)
            self.streams[event.stream_id] = fields
            self.asked(event.stream_id, fields[":path"], fields)
        elif isinstance(event, events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.body(event.stream_id, self.streams[event.stream_id], event.data)
        elif isinstance(event, events.WindowUpdated):
            for stream, fields in self.streams.items():
                self.push(stream, fields)
        elif isinstance(event, events.StreamEnded):
            self.streams[event.stream_id]["ended"] = True
            self.push(event.stream_id, self.streams[event.stream_id])
        elif isinstance(event, events.StreamReset):
            RESETS.append((self.streams.pop(event.stream_id).get("tag"), int(event.error_code)))

    def asked(self, stream, path, fields):
        if path in ("/each", "/wait", "/broken"):
            told = [(name, fields[name]) for name in ("grpc-timeout", "te") if name in fields]
            self.answer(stream, GRPC, *[(f"seen-{name}", value) for name, value in told])
        elif path == "/trailers-only":
            self.answer(stream, GRPC, ("grpc-status", "12"), ("grpc-message", "no%20such"), end=True)
        elif path == "/hints":
            self.h2.send_headers(stream, [(":status", "103"), ("link", "</a.css>")])
            self.answer(stream, end=True)
        elif path in ("/204", "/304"):
            self.h2.send_headers(stream, [(":status", path[1:]), ("x-own", "1")], end_stream=True)
        elif fields[":method"] == "HEAD":
            self.answer(stream, ("content-length", "12345"), end=True)
        elif path == "/many":
            size = sum(len(value) for name, value in fields.items() if name.startswith("x-many-"))
            self.answer(stream, ("x-size", str(size)), end=True)
        elif path == "/resets":
            self.answer(stream)
            self.h2.send_data(stream, json.dumps(RESETS).encode(), end_stream=True)

    def body(self, stream, fields, data):
        if fields[":path"] == "/each":
            fields["rounds"] = fields.get("rounds", 0) + bool(data)
            fields["pending"] = fields.get("pending", b"") + data
            self.push(stream, fields)
        elif fields[":path"] == "/broken":
            self.h2.reset_stream(stream, CANCEL)
        elif fields[":path"] == "/early":
            self.answer(stream)
            self.h2.send_data(stream, b"enough", end_stream=True)
            # RFC 9113 section 8.1: the rest of the request is not wanted.
            self.h2.reset_stream(stream, NO_ERROR)

    def push(self, stream, fields):
        """Echoes as far as the windows allow, then the trailers."""
        if fields[":path"] != "/each" or fields.get("done"):
            return
        pending = fields.get("pending", b"")
        while pending and (room := self.h2.local_flow_control_window(stream)) > 0:
            room = min(room, self.h2.max_outbound_frame_size)
            self.h2.send_data(stream, pending[:room])
            pending = pending[room:]
        fields["pending"] = pending
        if fields.get("ended") and not pending:
            fields["done"] = True
            trailers = [("grpc-status", fields.get("tag", "0")), ("x-rounds", str(fields["rounds"]))]
            self.h2.send_headers(stream, trailers, end_stream=True)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True


Server(("0.0.0.0", 8080), Handler).serve_forever()
