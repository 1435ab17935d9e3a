"""Ends, errors and order of TCP connections, as the two applications see them.

`streams.py server` serves; `streams.py client ADDRESS` prints a line for each case: what the client
saw, and what the server did (asked for over a connection of its own).
"""

import errno
import hashlib
import select
import socket
import struct
import sys
import threading
import time

TALK, GREET = 9100, 9101
BLOCK = bytes(range(256)) * 4096
seen, told = {}, threading.Condition()


def name(error):
    return "timed out" if isinstance(error, TimeoutError) else errno.errorcode.get(error.errno)


def drain(s):
    """Everything up to the end, and how that came."""
    got = hashlib.sha256()
    length = 0
    try:
        while part := s.recv(65536):
            got.update(part)
            length += len(part)
        return f"{length} {got.hexdigest()[:8]} FIN"
    except OSError as error:
        return f"{length} {got.hexdigest()[:8]} {name(error)}"


def attempt(action):
    try:
        return action() or "done"
    except OSError as error:
        return name(error)


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def line(s):
    got = b""
    while not got.endswith(b"\n"):
        part = s.recv(1)
        if not part:
            break
        got += part
    return got.decode().strip()


# === The server's part of each case ===


def half_close_by_client(s):
    result = drain(s)
    s.sendall(BLOCK)
    s.close()
    return result


def half_close_by_server(s):
    s.sendall(b"begin")
    s.shutdown(socket.SHUT_WR)
    result = drain(s)
    s.close()
    return result


def long_half_close(s):
    result = drain(s)
    for _ in range(5):
        time.sleep(0.3)
        s.sendall(b"late")
    s.close()
    return result


def reset_by_client(s):
    s.sendall(b"begin")
    return drain(s)


def reset_after_half_close(s):
    s.sendall(b"begin")
    s.shutdown(socket.SHUT_WR)
    return drain(s)


def reset_by_server(s):
    s.recv(5)
    s.sendall(b"begin")
    # The client has read what went before: a reset may overtake data (tcp(7)).
    s.recv(4)
    reset(s)


def reset_at_once(s):
    reset(s)


def close_with_unread_data(s):
    # Waits for data that it never reads: close(2) then resets (RFC 2525, section 2.17).
    select.select([s], [], [])
    s.close()


def both_ways(s):
    sender = threading.Thread(target=lambda: (s.sendall(BLOCK * 16), s.shutdown(socket.SHUT_WR)))
    sender.start()
    result = drain(s)
    sender.join()
    s.close()
    return result


def urgent(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    s.sendall(b"ready")
    result = drain(s)
    s.close()
    return result


def server_keeps_quiet(s):
    return drain(s)


def small_writes(s):
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while part := s.recv(100):
        s.sendall(part)
    s.close()


# === The client's part of each case ===


def c_half_close_by_client(s):
    s.sendall(BLOCK)
    s.shutdown(socket.SHUT_WR)
    return drain(s)


def c_half_close_by_server(s):
    result = drain(s)
    time.sleep(0.3)
    s.sendall(BLOCK)
    s.close()
    return result


def c_long_half_close(s):
    s.shutdown(socket.SHUT_WR)
    return drain(s)


def c_reset_by_client(s):
    s.recv(5)
    reset(s)


def c_reset_after_half_close(s):
    result = drain(s)
    reset(s)
    return result


def c_reset_by_server(s):
    s.sendall(b"hello")
    got = s.recv(5)
    s.sendall(b"read")
    return f"{got.decode()} {drain(s)}"


def c_reset_at_once(s):
    return drain(s)


def c_close_with_unread_data(s):
    s.sendall(b"unread")
    return drain(s)


def c_both_ways(s):
    sender = threading.Thread(target=lambda: (s.sendall(BLOCK * 16), s.shutdown(socket.SHUT_WR)))
    sender.start()
    result = drain(s)
    sender.join()
    return result


def c_urgent(s):
    s.recv(5)
    s.sendall(b"before")
    s.send(b"!", socket.MSG_OOB)
    s.sendall(b"after")
    s.shutdown(socket.SHUT_WR)
    return drain(s)


def c_server_keeps_quiet(s):
    s.close()


def c_small_writes(s):
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    got = b""
    for i in range(200):
        s.sendall(bytes([i]))
        got += s.recv(1)
    s.shutdown(socket.SHUT_WR)
    return f"{got == bytes(range(200))} {drain(s)}"


CASES = [
    half_close_by_client,
    half_close_by_server,
    long_half_close,
    reset_by_client,
    reset_after_half_close,
    reset_by_server,
    reset_at_once,
    close_with_unread_data,
    both_ways,
    urgent,
    server_keeps_quiet,
    small_writes,
]


def serve_talk(s):
    s.settimeout(60)
    word, _, key = line(s).partition(" ")
    if word == "result":
        with told:
            told.wait_for(lambda: key in seen, 60)
            s.sendall(seen.get(key, "nothing").encode())
        return s.close()
    case = {case.__name__: case for case in CASES}[word]
    result = attempt(lambda: case(s))
    with told:
        seen[key] = result
        told.notify_all()


def serve_greet(s):
    s.settimeout(60)
    s.sendall(b"220 welcome\r\n")
    s.sendall(b"hello " + s.recv(100))
    s.close()


def serve():
    def accept(port, serve):
        l = socket.create_server(("::", port), family=socket.AF_INET6, backlog=1000, dualstack_ipv6=True)
        while True:
            threading.Thread(target=serve, args=(l.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, args=(GREET, serve_greet), daemon=True).start()
    threading.Thread(target=accept, args=(TALK, serve_talk), daemon=True).start()
    print("listening", flush=True)
    sys.stdin.readline()


def ask(address):
    def connect(port):
        return socket.create_connection((address, port), 60)

    for number, case in enumerate(CASES):
        key = f"{address}-{number}-{time.monotonic_ns()}"
        with connect(TALK) as s:
            s.sendall(f"{case.__name__} {key}\n".encode())
            here = attempt(lambda: globals()["c_" + case.__name__](s))
        with connect(TALK) as s:
            s.sendall(f"result {key}\n".encode())
            there = s.recv(100).decode()
        print(case.__name__, here, there, sep="\t", flush=True)
    with connect(GREET) as s:
        greeting = line(s)
        s.sendall(b"client")
        print("server_first", greeting, drain(s), sep="\t", flush=True)


serve() if sys.argv[1] == "server" else ask(sys.argv[2])
