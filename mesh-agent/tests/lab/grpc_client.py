"""Uses every kind of call of gRPC's own library; the argument is the server's host."""

import os
import queue
import sys
import time

# As the application's other names are found.
os.environ["GRPC_DNS_RESOLVER"] = "native"
import grpc

OPTIONS = [
    # Pings, also in the middle of calls.
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
PATIENCE = 20
ME = f"{sys.argv[1]}-{os.getpid()}"

channel = grpc.insecure_channel(f"{sys.argv[1]}:80", options=OPTIONS)


def call(kind, method, request, name=ME, timeout=PATIENCE):
    made = getattr(channel, kind)(f"/lab.Peer/{method}")
    return made(request, timeout=timeout, metadata=[("x-tag", name)])


def unary(method, request=b"", name=ME, timeout=PATIENCE):
    made = channel.unary_unary(f"/lab.Peer/{method}")
    return made.with_call(request, timeout=timeout, metadata=[("x-tag", name)])


def fails(code, act):
    try:
        act()
    except grpc.RpcError as error:
        assert error.code() == code, error
        return error
    raise AssertionError(f"no {code}")


def until(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def ended():
    return unary("Ended")[0].decode().split("\n")


def unary_calls():
    for size in (0, 1, 16_384, 3_000_000):
        request = os.urandom(size)
        answer, done = unary("Echo", request)
        assert answer == request, size
        assert dict(done.initial_metadata())["x-initial"] == ME
        trailers = dict(done.trailing_metadata())
        assert (trailers["x-trailing"], trailers["x-octets-bin"]) == (ME, b"\x00\xff"), trailers


def parallel_calls():
    echo = channel.unary_unary("/lab.Peer/Echo")
    requests = [b"%d" % number for number in range(300)]
    made = [echo.future(one, timeout=PATIENCE, metadata=[("x-tag", ME)]) for one in requests]
    assert [one.result() for one in made] == requests


def failures():
    error = fails(grpc.StatusCode.FAILED_PRECONDITION, lambda: unary("Fail"))
    assert error.details() == "100 % é\n", error
    assert dict(error.trailing_metadata())["x-trailing"] == ME
    fails(grpc.StatusCode.UNIMPLEMENTED, lambda: unary("Absent"))
    got = []
    late = lambda: got.extend(call("unary_stream", "FailLate", b""))
    assert fails(grpc.StatusCode.DATA_LOSS, late).details() == "after two"
    assert got == [b"one", b"two"], got


def streams():
    numbers = list(call("unary_stream", "Count", b"2000"))
    assert numbers == [b"%d" % number for number in range(2000)]
    pieces = (b"y" * 50_000 for _ in range(100))
    assert call("stream_unary", "Total", pieces) == b"5000000"
    # Each message waits for the answer to the last: nothing may be held back.
    said = queue.Queue()
    answers = call("stream_stream", "Chat", iter(said.get, None))
    for number in range(50):
        said.put(b"%d" % number)
        assert next(answers) == b"%d" % number
    said.put(None)
    assert list(answers) == []
    assert answers.code() == grpc.StatusCode.OK


def deadlines_and_cancellations():
    start = time.monotonic()
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: unary("Wait", name=f"{ME}-late", timeout=0.5))
    assert time.monotonic() - start < 10
    poured = call("unary_stream", "Pour", b"", name=f"{ME}-poured")
    for _ in range(100):
        next(poured)
    poured.cancel()
    fails(grpc.StatusCode.CANCELLED, lambda: list(poured))
    # The server hears of both.
    until("the deadline", lambda: f"{ME}-late" in ended())
    until("the cancellation", lambda: f"{ME}-poured" in ended())


for check in (unary_calls, parallel_calls, failures, streams, deadlines_and_cancellations):
    check()
    print(check.__name__, "ok", flush=True)
channel.close()
