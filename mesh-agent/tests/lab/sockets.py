"""Opens TCP sockets to an echo in every way that Linux has, and says what each end saw."""

import ctypes
import errno
import json
import mmap
import os
import select
import socket
import struct
import sys

V4, V6, OWN4, OWN6 = sys.argv[1:5]
PORT = 8080
REQUEST = b"GET /way HTTP/1.1\r\nhost: far\r\nconnection: close\r\n\r\n"
MSG_FASTOPEN, TCP_FASTOPEN_CONNECT = 0x20000000, 30
IP_BIND_ADDRESS_NO_PORT, IPPROTO_MPTCP = 24, 262
libc = ctypes.CDLL(None, use_errno=True)


def new(family=socket.AF_INET, protocol=0):
    made = socket.socket(family, socket.SOCK_STREAM, protocol)
    made.settimeout(20)
    return made


def to(s):
    return (V6 if s.family == socket.AF_INET6 else V4, PORT)


def plain(family=socket.AF_INET):
    s = new(family)
    s.connect(to(s))
    return s


def non_blocking(wait):
    s = new()
    s.setblocking(False)
    assert s.connect_ex(to(s)) in (0, errno.EINPROGRESS)
    wait(s)
    assert s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    s.settimeout(20)
    return s


def poll(s):
    poller = select.poll()
    poller.register(s, select.POLLOUT)
    assert poller.poll(20000)


def epoll(s):
    poller = select.epoll()
    poller.register(s, select.EPOLLOUT | select.EPOLLET)
    assert poller.poll(20)


def bound(address, port, option=None):
    s = new(socket.AF_INET6 if ":" in address else socket.AF_INET)
    if option:
        s.setsockopt(socket.IPPROTO_IP, option, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    s.connect(to(s))
    if port:
        assert s.getsockname()[1] == port, s.getsockname()
    return s


def device(family):
    s = new(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
    s.connect(to(s))
    return s


class Sent(socket.socket):
    """Has sent its request already."""

    sent = True


def fast_open_send(family):
    s = Sent(family, socket.SOCK_STREAM)
    s.sendto(REQUEST, MSG_FASTOPEN, to(s))
    s.settimeout(20)
    return s


def fast_open_connect(family):
    s = new(family)
    s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    s.connect(to(s))
    return s


def mptcp():
    try:
        s = new(protocol=IPPROTO_MPTCP)
    except OSError:
        return None
    s.connect(to(s))
    return s


def mapped():
    s = new(socket.AF_INET6)
    s.connect(("::ffff:" + V4, PORT))
    return s


def disconnect(s):
    unspec = struct.pack("H14x", socket.AF_UNSPEC)
    assert libc.connect(s.fileno(), unspec, len(unspec)) == 0, ctypes.get_errno()


def reconnected():
    s = plain()
    disconnect(s)
    s.connect(to(s))
    return s


def after_failure():
    s = new()
    s.setblocking(True)
    # Nobody listens there, and it is not captured.
    assert s.connect_ex(("127.0.0.1", 9)) == errno.ECONNREFUSED
    s.connect(to(s))
    s.settimeout(20)
    return s


def received(make):
    """A socket that another process has made, over SCM_RIGHTS (unix(7))."""
    here, there = socket.socketpair()
    if os.fork() == 0:
        # Not a second run of this program, whatever happens.
        try:
            made = make()
            socket.send_fds(there, [b"s"], [made.fileno()])
        finally:
            os._exit(0)
    there.close()
    _, fds, _, _ = socket.recv_fds(here, 1, 1)
    os.wait()
    s = socket.socket(fileno=fds[0])
    s.settimeout(20)
    return s


def passed():
    s = received(new)
    s.connect(to(s))
    return s


def io_uring():
    """IORING_OP_CONNECT (io_uring(7)), by bare system calls."""
    setup, enter, op_connect, get_events = 425, 426, 16, 1
    params = (ctypes.c_uint32 * 30)()
    ring = libc.syscall(setup, 4, ctypes.byref(params))
    if ring < 0:
        return None
    sq, cq = params[10:18], params[20:28]
    size = max(sq[6] + params[0] * 4, cq[5] + params[1] * 16)
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    rings = mmap.mmap(ring, size, flags=flags)
    entries = mmap.mmap(ring, params[0] * 64, flags=flags, offset=0x10000000)
    s = new()
    s.setblocking(True)
    address = struct.pack("!2s H 4s 8x", struct.pack("=H", socket.AF_INET), PORT, socket.inet_aton(V4))
    buffer = ctypes.create_string_buffer(address, len(address))
    entries[:32] = struct.pack(
        "=BBHiQQII", op_connect, 0, 0, s.fileno(), len(address), ctypes.addressof(buffer), 0, 0
    )
    struct.pack_into("=I", rings, sq[6], 0)
    struct.pack_into("=I", rings, sq[1], 1)
    done = libc.syscall(enter, ring, 1, 1, get_events, None, 0)
    assert done == 1, ctypes.get_errno()
    _, result, _ = struct.unpack_from("=QiI", rings, cq[5])
    assert result == 0, result
    s.settimeout(20)
    return s


INET, INET6 = socket.AF_INET, socket.AF_INET6
WAYS = {
    "plain": plain,
    "plain-v6": lambda: plain(INET6),
    "poll": lambda: non_blocking(poll),
    "epoll": lambda: non_blocking(epoll),
    "bound-address": lambda: bound(OWN4, 0),
    "bound-address-v6": lambda: bound(OWN6, 0),
    "bound-port": lambda: bound(OWN4, 25001),
    "bound-port-v6": lambda: bound(OWN6, 25002),
    "bound-any-port": lambda: bound("0.0.0.0", 25003),
    "bound-any-port-v6": lambda: bound("::", 25004),
    "bound-no-port": lambda: bound(OWN4, 0, IP_BIND_ADDRESS_NO_PORT),
    "device": lambda: device(INET),
    "device-v6": lambda: device(INET6),
    "fast-open-send": lambda: fast_open_send(INET),
    "fast-open-send-v6": lambda: fast_open_send(INET6),
    "fast-open-connect": lambda: fast_open_connect(INET),
    "fast-open-connect-v6": lambda: fast_open_connect(INET6),
    "mptcp": mptcp,
    "mapped": mapped,
    "reconnected": reconnected,
    "after-failure": after_failure,
    "passed": passed,
    "passed-connected": lambda: received(plain),
    "io_uring": io_uring,
}


def plain_ip(text):
    return text.rsplit(":", 1)[0].strip("[]").removeprefix("::ffff:")


for name, way in WAYS.items():
    try:
        s = way()
        if s is None:
            print(name, "unsupported", "", sep="\t")
            continue
        if not getattr(s, "sent", False):
            s.sendall(REQUEST)
        answer = b""
        while part := s.recv(65536):
            answer += part
        body = json.loads(answer.split(b"\r\n\r\n", 1)[1])
        local = s.getsockname()[0].removeprefix("::ffff:")
        print(name, plain_ip(body["remote"]), local, sep="\t", flush=True)
    except Exception as error:
        print(name, "failed", repr(error), sep="\t", flush=True)
