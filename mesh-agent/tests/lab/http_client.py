# Sends the bytes of standard input's first line (JSON) to a host and prints what comes back. `then`
# is a list of what to wait for and what to send at that (null: the end of this side).
import json
import socket
import sys

asked = json.loads(sys.stdin.readline())
s = socket.create_connection((asked["host"], 80), 60)
s.settimeout(15)
s.sendall(asked["send"].encode("latin-1"))
if asked.get("half_close"):
    s.shutdown(socket.SHUT_WR)
got, then = b"", asked.get("then", [])
# Until the connection ends, or what was waited for is there.
while asked["until"] is None or asked["until"].encode("latin-1") not in got:
    part = s.recv(65536)
    if not part:
        break
    got += part
    while then and then[0][0].encode("latin-1") in got:
        text = then.pop(0)[1]
        s.shutdown(socket.SHUT_WR) if text is None else s.sendall(text.encode("latin-1"))
if asked.get("after_end"):
    s.sendall(asked["after_end"].encode("latin-1"))
print(json.dumps(got.decode("latin-1")), flush=True)
