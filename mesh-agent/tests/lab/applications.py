"""Databases and a broker as their users use them: `applications.py NAME HOST PORT`.

Prints "ok", or fails. Standard clients where there are some; Redis is simple enough without.
"""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

PATIENCE = 60
ROWS = 100_000


def run(words, given=None, **more):
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=PATIENCE, **more)
    if done.returncode != 0:
        raise SystemExit(f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def until(stream, text):
    """Lines up to the one that has this in it."""
    for line in stream:
        if text in line:
            return line
    raise SystemExit(f"no {text!r} came")


def rows():
    return "".join(f"{n}\t{hashlib.md5(str(n).encode()).hexdigest()}\n" for n in range(ROWS))


def postgres(host, port):
    for mode in ["disable", "require"]:
        at = f"host={host} port={port} user=postgres password=secret sslmode={mode} connect_timeout=20"
        psql = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", at]
        asked = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert run([*psql, "-c", asked]).strip() == {"disable": "f", "require": "t"}[mode]
        table = rows()
        run([*psql, "-c", "DROP TABLE IF EXISTS t; CREATE TABLE t(n int, h text)"])
        run([*psql, "-c", "COPY t FROM STDIN"], table)
        assert run([*psql, "-c", "COPY (SELECT * FROM t ORDER BY n) TO STDOUT"]) == table
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(psql, text=True, bufsize=1, **pipes) as listener:
            listener.stdin.write("LISTEN c; SELECT 'listening';\n")
            until(listener.stdout, "listening")
            run([*psql, "-c", "NOTIFY c, 'hello'"])
            listener.stdin.write("SELECT pg_sleep(0.5);\n")
            assert '"hello"' in until(listener.stdout, "Asynchronous notification")
            # Interrupted, psql asks on a second connection to cancel what runs on the first.
            listener.stdin.write("SELECT 'begun'; SELECT pg_sleep(1000);\n")
            until(listener.stdout, "begun")
            time.sleep(0.5)
            listener.send_signal(signal.SIGINT)
            until(listener.stdout, "canceling statement due to user request")


def mariadb(host, port):
    client = ["mariadb", "--no-defaults", "-h", host, "-P", port, "-uroot", "-psecret", "--local-infile"]
    client += ["--batch", "--raw", "--skip-column-names", "--connect-timeout=20"]
    # Once more on the same connection after it was idle: the server speaks first only once.
    with tempfile.NamedTemporaryFile("w") as file:
        table = rows()
        file.write(table)
        file.flush()
        run(client, f"""
            CREATE DATABASE IF NOT EXISTS d; USE d;
            DROP TABLE IF EXISTS t; CREATE TABLE t(n int, h text);
            LOAD DATA LOCAL INFILE '{file.name}' INTO TABLE t;
        """)
    assert run(client, "SELECT * FROM d.t ORDER BY n") == table
    prepared = "PREPARE s FROM 'SELECT ? + ?'; SET @a = 3, @b = 4; EXECUTE s USING @a, @b; SELECT SLEEP(2);"
    assert run(client, prepared + "EXECUTE s USING @b, @b") == "7\n0\n8\n"


class Redis:
    def __init__(self, host, port):
        self.socket = socket.create_connection((host, int(port)), PATIENCE)
        self.file = self.socket.makefile("rb")

    def send(self, *words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        parts = [b"*%d\r\n" % len(words)] + [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        self.socket.sendall(b"".join(parts))

    def reply(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        assert kind in (b"+", b":"), line
        return rest

    def ask(self, *words):
        self.send(*words)
        return self.reply()


def redis(host, port):
    one, two = Redis(host, port), Redis(host, port)
    one.ask("DEL", "count", "list")
    # 10,000 requests before the first answer is read.
    for _ in range(10_000):
        one.send("INCR", "count")
    assert [int(one.reply()) for _ in range(10_000)] == list(range(1, 10_001))
    value = os.urandom(8 << 20)
    assert one.ask("SET", "large", value) == b"OK" and two.ask("GET", "large") == value
    one.send("BLPOP", "list", 0)
    time.sleep(1)
    assert two.ask("LPUSH", "list", "x") == b"1" and one.reply() == [b"list", b"x"]
    assert one.ask("SUBSCRIBE", "news")[:2] == [b"subscribe", b"news"]
    time.sleep(1)
    assert two.ask("PUBLISH", "news", "hello") == b"1"
    assert one.reply() == [b"message", b"news", b"hello"]


def mosquitto(host, port):
    at = ["-h", host, "-p", port, "-V", "mqttv5", "-t", f"topic/{os.getpid()}"]
    for quality in ["0", "1", "2"]:
        words = ["stdbuf", "-oL", "mosquitto_sub", *at, "-q", quality, "-C", "21", "-W", "60", "-k", "5", "-d"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, bufsize=1) as subscriber:
            until(subscriber.stdout, "Subscribed")
            # Alive by pings only, which the broker answers.
            if quality == "0":
                until(subscriber.stdout, "received PINGRESP")
            lines = "".join(f"message-{n}\n" for n in range(20))
            run(["mosquitto_pub", *at, "-q", quality, "-l"], lines)
            large = "x" * (1 << 20)
            run(["mosquitto_pub", *at, "-q", quality, "-s"], large)
            told = [line.strip() for line in subscriber.stdout]
            got = [line for line in told if line.startswith(("message-", "xx"))]
            assert got == [*lines.split(), large], [line[:60] for line in told]
            assert subscriber.wait(PATIENCE) == 0


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    print("ok")
