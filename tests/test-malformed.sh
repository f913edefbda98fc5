#!/bin/bash
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# Proves that a thousand malformed requests to the control interface leave it
# serving, with all of its connections free again, and change nothing: random
# bytes, requests that are cut off, headers and bodies that are too large, wrong
# methods and paths.  The clone serves its clients meanwhile.

. "$(dirname "$0")/functions.sh"

requests=$(fewer 1000)
make_disk "$tmp/src" 1M
serve_clone "$tmp/src" destination="$tmp/dest" region-size=64K hydration=off
settings=$(status '.settings | tojson')

$python - "$tmp/clone.ctl" "$requests" <<'PY'
import json, random, socket, sys

path, count = sys.argv[1], int(sys.argv[2])
r = random.Random(1)
good = (b"PATCH /settings HTTP/1.1\r\nHost: x\r\nContent-Length: 21\r\n\r\n"
        b'{"hydration-rate": 5}')

def noise(n):
    return r.randbytes(n)

def cut():
    return good[:r.randrange(len(good))]

def flipped():
    data = bytearray(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
    for _ in range(r.randrange(1, 4)):
        data[r.randrange(len(data))] = r.randrange(256)
    return bytes(data)

def large_header():
    return (b"GET /status HTTP/1.1\r\nX: " + b"y" * r.choice([20000, 100000]) +
            b"\r\n\r\n")

def many_headers():
    return (b"GET /status HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n")

def large_line():
    return b"GET /" + b"x" * r.choice([20000, 100000]) + b" HTTP/1.1\r\n\r\n"

def wrong_method():
    method = bytes(r.choice(b"ABCDEFGHIJ") for _ in range(r.randrange(1, 9)))
    return method + b" /settings HTTP/1.1\r\nHost: x\r\n\r\n"

def wrong_length():
    return (b"PATCH /settings HTTP/1.1\r\nHost: x\r\nContent-Length: " +
            r.choice([b"-1", b"99999999999999999999", b"x", b"3"]) +
            b'\r\n\r\n{"hydration-rate": 5}')

def bad_chunks():
    return (b"PATCH /settings HTTP/1.1\r\nHost: x\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" +
            r.choice([b"zz\r\n", b"fffffffffffffffff\r\n", b"5\r\nabc"]) +
            noise(30))

def bad_json():
    body = r.choice([b'{"\\\xc3\xa9": 5}', b"[" * 60000, noise(500), b"{",
                     b'{"hydration-rate": 5, "x": 1}', b'"\xff"'])
    return (b"PATCH /settings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            % len(body) + body)

kinds = [lambda: noise(r.randrange(1, 2000)), cut, flipped, large_header,
         many_headers, large_line, wrong_method, wrong_length, bad_chunks,
         bad_json]

def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(path)
    return s

def serves():
    with connect() as s:
        s.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n"
                  b"Connection: close\r\n\r\n")
        data = b""
        while True:
            piece = s.recv(1 << 16)
            if not piece:
                break
            data += piece
    json.loads(data.split(b"\r\n\r\n", 1)[1])

held = [] # connections that stay open, with half a request perhaps
for i in range(count):
    s = connect()
    try:
        s.sendall(r.choice(kinds)())
        if r.randrange(2):
            s.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        pass
    if r.randrange(2):
        held.append(s)
    else:
        s.close()
    if len(held) > 100:
        held.pop(0).close()
    if i % 100 == 0:
        serves()
serves()
print("%d requests, %d connections still open" % (count, len(held)))
PY

# The python process has ended, so all connections are closed.
test "$(status '.settings | tojson')" = "$settings"
status_is '.state == "paused" and .hydrated == 0'
has_no_connection ()
{
  # The listening socket only, and the one of this question.
  [ "$(grep -c " $tmp/clone.ctl\$" /proc/net/unix)" -le 2 ]
}
eventually has_no_connection
export_to clone "$tmp/out"
same "$tmp/out" "$tmp/src"
stop clone
