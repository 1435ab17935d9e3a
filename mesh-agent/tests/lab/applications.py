"""Uses one server as its clients do: APPLICATION HOST PORT WAY. Silent success, or a traceback."""

import io
import select
import socket
import subprocess
import sys
import threading
import time

APPLICATION, HOST, PORT, WAY = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
PATIENCE = 50
# A few MB in lines that differ, so that a piece lost, doubled or out of place shows.
ROWS = [f"{number}\t{WAY} {number * 2654435761 % 2**32:08x} {'x' * 80}" for number in range(30000)]


def eventually(probe):
    end = time.monotonic() + PATIENCE
    while not probe():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


# === PostgreSQL ===


def postgres():
    import psycopg2

    def connect(sslmode):
        connection = psycopg2.connect(
            host=HOST, port=PORT, user="postgres", password="secret", dbname="postgres",
            sslmode=sslmode, connect_timeout=PATIENCE, application_name=WAY,
        )
        connection.autocommit = True
        return connection

    for sslmode, encrypted in (("disable", False), ("require", True)):
        connection = connect(sslmode)
        cursor = connection.cursor()
        cursor.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert cursor.fetchone() == (encrypted,), sslmode
        copy(cursor, f"rows_{WAY}_{sslmode}")
        other = connect(sslmode)
        notify(connection, other)
        cancel(connection, other)
        connection.close()
        other.close()


def copy(cursor, table):
    cursor.execute(f"CREATE TABLE {table} (number int PRIMARY KEY, text text)")
    sent = "\n".join(ROWS) + "\n"
    cursor.copy_expert(f"COPY {table} FROM STDIN", io.StringIO(sent))
    got = io.StringIO()
    cursor.copy_expert(f"COPY (SELECT * FROM {table} ORDER BY number) TO STDOUT", got)
    assert got.getvalue() == sent, (len(got.getvalue()), len(sent))


def notify(listener, speaker):
    """What the server says without having been asked."""
    listener.cursor().execute(f"LISTEN {WAY}")
    speaker.cursor().execute(f"NOTIFY {WAY}, 'told'")
    assert select.select([listener], [], [], PATIENCE)[0], "no notification"
    listener.poll()
    assert [notice.payload for notice in listener.notifies] == ["told"]
    listener.notifies.clear()


def cancel(sleeper, watcher):
    """A request on a connection of its own, which the server closes without an answer."""
    from psycopg2.extensions import QueryCanceledError

    ended = []

    def sleep():
        try:
            sleeper.cursor().execute("SELECT pg_sleep(600)")
        except QueryCanceledError as error:
            ended.append(error)

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    sleeps = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
    cursor = watcher.cursor()

    def asleep():
        cursor.execute(sleeps, [sleeper.info.backend_pid])
        return cursor.fetchone() == (1,)

    eventually(asleep)
    sleeper.cancel()
    thread.join(PATIENCE)
    assert ended, "the query was not cancelled"
    sleeper.cursor().execute("SELECT 1")


# === MariaDB ===


def mariadb():
    # The greeting: a packet's header with sequence number 0, then protocol version 10.
    with socket.create_connection((HOST, PORT), PATIENCE) as silent:
        greeting = silent.makefile("rb").read(5)
        assert greeting[3:] == b"\x00\x0a", greeting
    path = f"/tmp/{WAY}.tsv"
    with open(path, "w") as file:
        file.write("\n".join(ROWS) + "\n")
    database = f"db_{WAY}"
    sql = f"""
        CREATE DATABASE {database};
        USE {database};
        CREATE TABLE rows_in (number int PRIMARY KEY, text varchar(200));
        LOAD DATA LOCAL INFILE '{path}' INTO TABLE rows_in;
        PREPARE one FROM 'SELECT ? + number FROM rows_in WHERE number = ?';
        SET @a = 1000000, @b = 7;
        EXECUTE one USING @a, @b;
        SET @b = 8;
        EXECUTE one USING @a, @b;
        DEALLOCATE PREPARE one;
        SELECT * FROM rows_in ORDER BY number;
    """
    command = [
        "mariadb", "--no-defaults", f"--host={HOST}", f"--port={PORT}", "--protocol=tcp",
        "--user=root", "--password=secret", "--local-infile=1", "--batch", "--skip-column-names",
        f"--connect-timeout={PATIENCE}",
    ]
    done = subprocess.run(command, input=sql, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    got = done.stdout.splitlines()
    assert got[:2] == ["1000007", "1000008"], got[:2]
    assert got[2:] == ROWS, len(got)


# === Redis ===


class Redis:
    """RESP2 by hand, to decide what is in one write."""

    def __init__(self):
        self.socket = socket.create_connection((HOST, PORT), PATIENCE)
        self.file = self.socket.makefile("rb")

    def send(self, *commands):
        words = [[str(word).encode() for word in command] for command in commands]
        one = lambda word: b"$%d\r\n%s\r\n" % (len(word), word)
        self.socket.sendall(
            b"".join(b"*%d\r\n" % len(command) + b"".join(map(one, command)) for command in words)
        )

    def read(self):
        kind, rest = (line := self.file.readline())[:1], line[1:-2]
        assert line.endswith(b"\r\n"), ("cut off", line)
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2].decode()
        if kind == b"*":
            return [self.read() for _ in range(int(rest))]
        assert kind in b"+:", line
        return int(rest) if kind == b":" else rest.decode()

    def ask(self, *command):
        self.send(command)
        return self.read()


def redis():
    redis, other = Redis(), Redis()
    redis.send(*[("INCR", f"{WAY}-count")] * 5000)
    assert [redis.read() for _ in range(5000)] == list(range(1, 5001))
    value = "\n".join(ROWS)
    assert redis.ask("SET", f"{WAY}-value", value) == "OK"
    assert redis.ask("GET", f"{WAY}-value") == value
    # A line by hand, which begins like a request of HTTP's.
    inline = Redis()
    inline.socket.sendall(f"GET {WAY}-count\r\n".encode())
    assert inline.read() == "5000"
    assert redis.ask("SUBSCRIBE", f"{WAY}-news") == ["subscribe", f"{WAY}-news", 1]
    assert other.ask("PUBLISH", f"{WAY}-news", "told") == 1
    assert redis.read() == ["message", f"{WAY}-news", "told"]
    blocked = Redis()
    blocked.send(["BLPOP", f"{WAY}-list", 0])
    waits = lambda: "blocked_clients:0" not in other.ask("INFO", "clients")
    eventually(waits)
    assert other.ask("RPUSH", f"{WAY}-list", "pushed") == 1
    assert blocked.read() == [f"{WAY}-list", "pushed"]


# === MQTT ===


def mqtt():
    """A subscription that is silent until its keep-alive was answered; then each QoS."""
    address = ["-h", HOST, "-p", str(PORT)]
    subscriber = subprocess.Popen(
        ["stdbuf", "-oL", "mosquitto_sub", *address, "-t", WAY, "-q", "2", "-k", "5", "-C", "4", "-d",
         "-F", "got %q %l"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    lines = []
    for line in subscriber.stdout:
        lines.append(line)
        if "received PINGRESP" in line:
            break
    assert any("received SUBACK" in line for line in lines), lines
    path = f"/tmp/{WAY}.payload"
    with open(path, "w") as file:
        file.write("\n".join(ROWS))
    for qos, what in (("0", ["-m", "a"]), ("1", ["-m", "bb"]), ("2", ["-m", "ccc"]), ("2", ["-f", path])):
        command = ["mosquitto_pub", *address, "-t", WAY, "-q", qos, *what]
        subprocess.run(command, check=True, timeout=PATIENCE)
    rest = subscriber.communicate(timeout=PATIENCE)[0]
    got = [line for line in rest.splitlines() if line.startswith("got ")]
    size = len("\n".join(ROWS))
    assert got == ["got 0 1", "got 1 2", "got 2 3", f"got 2 {size}"], (got, rest)
    assert subscriber.returncode == 0, rest


{"postgres": postgres, "mariadb": mariadb, "redis": redis, "mqtt": mqtt}[APPLICATION]()
