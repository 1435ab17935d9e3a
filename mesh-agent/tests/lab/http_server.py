# A server that shows the bytes of what it was asked, and answers as the path says.
import json
import socket
import socketserver


class Handler(socketserver.StreamRequestHandler):
    def head(self):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = self.rfile.readline(1 << 20)
            if not line:
                return None
            head += line
        return head

    def body(self, fields):
        """The body, and its trailers."""
        value = lambda name: next((v for n, v in fields if n.lower() == name), None)
        if value("content-length"):
            return self.rfile.read(int(value("content-length"))), []
        if value("transfer-encoding") != "chunked":
            return b"", []
        body, trailers = b"", []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while (line := self.rfile.readline().strip()):
            trailers.append(line.decode())
        return body, trailers

    def say(self, text):
        self.wfile.write(text.replace("\n", "\r\n").encode())

    def duplex(self):
        """Each chunk goes back before the next one is read."""
        self.say("HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n")
        size = True
        while size:
            line = self.rfile.readline()
            size = int(line, 16)
            self.wfile.write(line + self.rfile.read(size) + self.rfile.readline())

    def upgraded(self, path):
        """Bytes both ways; either side may be the first to end its half."""
        self.say("HTTP/1.1 101 Switching Protocols\nconnection: upgrade\nupgrade: websocket\n\n")
        if path == "/upgrade":
            while part := self.rfile.read1(65536):
                self.wfile.write(part)
            self.say("late")
        else:
            self.say("first")
            self.connection.shutdown(socket.SHUT_WR)
            Server.heard = self.rfile.read()

    def handle(self):
        while head := self.head():
            first, *lines = head.decode("latin-1").split("\r\n")
            fields = [tuple(line.split(": ", 1)) for line in lines if line]
            method, target, version = first.split(" ")
            path = target.split("?")[0]
            if path == "/refuse":
                self.say("HTTP/1.1 417 Expectation Failed\ncontent-length: 3\n\nno!")
                return
            if any(n.lower() == "expect" for n, _ in fields):
                self.say("HTTP/1.1 100 Continue\n\n")
            if path == "/duplex":
                self.duplex()
                continue
            if path.startswith("/upgrade"):
                return self.upgraded(path)
            body, trailers = self.body(fields)
            if path == "/hints":
                self.say("HTTP/1.1 103 Early Hints\nlink: </a.css>\n\n")
                self.say("HTTP/1.1 102 Processing\n\nHTTP/1.1 200 OK\ncontent-length: 2\n\nok")
            elif path in ("/204", "/304"):
                self.say(f"HTTP/1.1 {path[1:]} Nothing\nx-own: 1\n\n")
            elif method == "HEAD":
                self.say("HTTP/1.1 200 OK\ncontent-length: 12345\n\n")
            elif path == "/trailers":
                self.say("HTTP/1.1 200 OK\ntransfer-encoding: chunked\ntrailer: x-sum\n\n")
                self.say("3\nabc\n0\nx-sum: 7\n\n")
            elif path == "/until-close":
                self.say("HTTP/1.1 200 OK\n\nuntil the end")
                return
            elif path == "/cut":
                self.say("HTTP/1.1 200 OK\ncontent-length: 100\n\nonly this")
                return
            elif path == "/lengths":
                self.say("HTTP/1.1 200 OK\ncontent-length: 2\ncontent-length: 40\n\nhi")
            elif path == "/signed":
                self.say("HTTP/1.1 200 OK\ncontent-length: +2\n\nhi")
            elif path == "/both":
                self.say("HTTP/1.1 200 OK\ncontent-length: 40\ntransfer-encoding: chunked\n\n0\n\n")
            elif path == "/twice":
                self.say("HTTP/1.1 200 OK\ncontent-length: 2\n\nhi" * 2)
            elif path == "/switch":
                self.say("HTTP/1.1 101 Switching Protocols\nupgrade: h2c\nconnection: upgrade\n\n")
            elif path == "/old":
                self.say("hello, this is HTTP/0.9\n\n")
                return
            elif path == "/cookies":
                self.say("HTTP/1.1 200 OK\nset-cookie: a=1\nset-cookie: b=2\ncontent-length: 0\n\n")
            else:
                seen = {"first": first, "fields": fields, "trailers": trailers}
                seen["heard"] = Server.heard.decode("latin-1")
                seen["body"] = body.decode("latin-1")
                text = json.dumps(seen)
                self.say(f"HTTP/1.1 200 OK\ncontent-length: {len(text)}\n\n{text}")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True
    # What was said to /upgrade-first after its own side had ended.
    heard = b""


Server(("0.0.0.0", 8080), Handler).serve_forever()
