"""A gRPC server on gRPC's own library."""

import threading
import time
from concurrent import futures

import grpc

# Tags of the calls whose client has gone, or has had enough.
ENDED = []


def tag(context):
    return dict(context.invocation_metadata())["x-tag"]


def echo(request, context):
    context.send_initial_metadata([("x-initial", tag(context))])
    context.set_trailing_metadata([("x-trailing", tag(context)), ("x-octets-bin", b"\x00\xff")])
    return request


def fail(request, context):
    context.set_trailing_metadata([("x-trailing", tag(context))])
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "100 % é\n")


def fail_late(request, context):
    yield b"one"
    yield b"two"
    context.abort(grpc.StatusCode.DATA_LOSS, "after two")


def count(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def total(requests, context):
    return b"%d" % sum(len(request) for request in requests)


def chat(requests, context):
    yield from requests


def wait(request, context):
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait(60)
    ENDED.append(tag(context))
    return b"late"


def pour(request, context):
    name = tag(context)
    context.add_callback(lambda: ENDED.append(name))
    while context.is_active():
        yield b"x" * 10_000


def ended(request, context):
    return "\n".join(ENDED).encode()


METHODS = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Total": grpc.stream_unary_rpc_method_handler(total),
    "Chat": grpc.stream_stream_rpc_method_handler(chat),
    "Wait": grpc.unary_unary_rpc_method_handler(wait),
    "Pour": grpc.unary_stream_rpc_method_handler(pour),
    "Ended": grpc.unary_unary_rpc_method_handler(ended),
}

server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("lab.Peer", METHODS)])
for address in ("0.0.0.0:8080", "[::]:8080"):
    try:
        server.add_insecure_port(address)
    except RuntimeError:
        pass  # The first may have taken both families.
server.start()
print("listening", flush=True)
while True:
    time.sleep(3600)
