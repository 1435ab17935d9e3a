# Sends the bytes of standard input's first line (JSON) to a host and prints what comes back.
import json
import socket
import sys

asked = json.loads(sys.stdin.readline())
s = socket.create_connection((asked["host"], 80), 60)
s.settimeout(15)
s.sendall(asked["send"].encode("latin-1"))
if asked.get("half_close"):
    s.shutdown(socket.SHUT_WR)
got = b""
# Until the connection ends, or what was waited for is there.
while asked["until"] is None or asked["until"].encode("latin-1") not in got:
    part = s.recv(65536)
    if not part:
        break
    got += part
    if asked.get("then") and asked["then_at"].encode() in got:
        s.sendall(asked["then"].encode("latin-1"))
        asked["then"] = None
print(json.dumps(got.decode("latin-1")), flush=True)
