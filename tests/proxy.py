#!/usr/bin/python3
# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

"""A network that fails on command.

  proxy.py serve LISTEN UPSTREAM CONTROL [PIDFILE]
  proxy.py tell CONTROL COMMAND...

`serve' passes each connection to LISTEN on to UPSTREAM.  Both are the path of a
unix socket, or ADDRESS:PORT.  It ends with SIGTERM.  `tell' sends a command to
it and prints the answer, after the command has taken effect.

  normal      pass on; the initial mode
  refuse      refuse connections, like a machine without this server
  drop        accept connections, and close them at once
  hole        a black hole: open connections stay open, the end of a peer is not
              noticed, new connections are accepted, and no byte is passed on
              until `normal'
  cut         close all connections, once; the mode does not change
  limit N     pass on, but only N new connections: others are accepted, and
              closed at once
  delay MS    delay each byte in each direction; 0 for no delay
  accepted    prints how many connections were accepted
  open        prints how many are open
  dropped     prints how many were closed at once
"""

import collections
import os
import selectors
import signal
import socket
import sys
import time

CHUNK = 1 << 20
# Bytes that may be on their way in one direction: enough for a delay of 100 ms
# and more than a gigabit a second.
IN_FLIGHT = 32 << 20


def address_of(name):
    if "/" in name:
        return socket.AF_UNIX, name
    host, port = name.rsplit(":", 1)
    return socket.AF_INET, (host, int(port))


def listener(name):
    family, address = address_of(name)
    s = socket.socket(family)
    if family == socket.AF_UNIX:
        if os.path.exists(address):
            os.unlink(address)
    else:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(address)
    s.listen(1000)
    s.setblocking(False)
    return s


class End:
    """One of the two sockets of a connection.  What is read from it goes to
    the other end, after the delay."""

    def __init__(self, sock, is_upstream):
        self.sock = sock
        self.is_upstream = is_upstream
        self.other = None
        self.queue = collections.deque()  # (when, bytes) to write
        self.queued = 0
        self.eof = False  # the peer has said all
        self.events = 0   # what the selector looks for

    def due(self, now):
        return bool(self.queue) and self.queue[0][0] <= now


class Proxy:
    def __init__(self, listen, upstream, control):
        self.selector = selectors.DefaultSelector()
        self.listen_name, self.upstream = listen, upstream
        self.mode = "normal"
        self.delay = 0
        self.accepted = self.dropped = 0
        self.limit = None  # new connections
        self.ends = set()
        self.waiting = []  # accepted in the hole, without an upstream yet
        self.buffer = bytearray(CHUNK)
        self.listen = None
        self.set_listening(True)
        self.control = listener(control)
        self.selector.register(self.control, selectors.EVENT_READ,
                               self.on_control)

    def set_listening(self, wanted):
        if wanted and self.listen is None:
            self.listen = listener(self.listen_name)
            self.selector.register(self.listen, selectors.EVENT_READ,
                                   self.on_accept)
        elif not wanted and self.listen is not None:
            self.selector.unregister(self.listen)
            self.listen.close()
            self.listen = None

    # Connections.

    def on_accept(self, events):
        try:
            sock, _ = self.listen.accept()
        except BlockingIOError:
            return
        self.accepted += 1
        if self.mode == "drop" or self.limit == 0:
            self.dropped += 1
            sock.close()
            return
        if self.limit is not None:
            self.limit -= 1
        if self.mode == "hole":
            self.waiting.append(sock)
        else:
            self.connect(sock)

    def connect(self, sock):
        family, address = address_of(self.upstream)
        upstream = socket.socket(family)
        try:
            # Near, and with a backlog: this does not wait.
            upstream.connect(address)
        except OSError:
            upstream.close()
            sock.close()
            return
        a, b = End(sock, False), End(upstream, True)
        a.other, b.other = b, a
        for end in a, b:
            end.sock.setblocking(False)
            if end.sock.family == socket.AF_INET:
                end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
            self.ends.add(end)
            self.arm(end)

    # The upstream is let down gently: nbdkit 1.32 aborts where it cannot send
    # its replies any more, and it is not what is tested.
    def close(self, end):
        if end not in self.ends:
            return
        for e in end, end.other:
            self.ends.remove(e)
            self.watch(e, 0)
            if not e.is_upstream or e.eof:
                e.sock.close()
                continue
            try:
                e.sock.shutdown(socket.SHUT_WR)
                self.selector.register(e.sock, selectors.EVENT_READ,
                                       lambda events, e=e: self.drain(e))
            except OSError:
                e.sock.close()

    def drain(self, end):
        try:
            if end.sock.recv_into(self.buffer) > 0:
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.selector.unregister(end.sock)
        end.sock.close()

    def cut(self):
        while self.ends:
            self.close(next(iter(self.ends)))
        while self.waiting:
            self.waiting.pop().close()

    def watch(self, end, events):
        if events == end.events:
            return
        if end.events == 0:
            self.selector.register(end.sock, events,
                                   lambda ev: self.on_ready(end, ev))
        elif events == 0:
            self.selector.unregister(end.sock)
        else:
            self.selector.modify(end.sock, events,
                                 lambda ev: self.on_ready(end, ev))
        end.events = events

    def arm(self, end):
        events = 0
        if self.mode != "hole":
            if not end.eof and end.other.queued < IN_FLIGHT:
                events |= selectors.EVENT_READ
            if end.due(time.monotonic()):
                events |= selectors.EVENT_WRITE
        self.watch(end, events)

    def on_ready(self, end, events):
        try:
            if events & selectors.EVENT_READ:
                self.receive(end)
            if end in self.ends:
                self.send(end)
        except BlockingIOError:
            pass
        except OSError:
            self.close(end)
        for e in end, end.other:
            if e in self.ends:
                self.arm(e)

    def receive(self, end):
        n = end.sock.recv_into(self.buffer)
        other = end.other
        if n == 0:
            end.eof = True
            other.queue.append((time.monotonic() + self.delay, None))
        else:
            data = memoryview(bytes(memoryview(self.buffer)[:n]))
            other.queue.append((time.monotonic() + self.delay, data))
            other.queued += n
        self.send(other)

    def send(self, end):
        while end.due(time.monotonic()):
            when, data = end.queue.popleft()
            if data is None:
                end.sock.shutdown(socket.SHUT_WR)
                if end.eof:
                    self.close(end)
                    return
                continue
            try:
                n = end.sock.send(data)
            except BlockingIOError:
                n = 0
            end.queued -= n
            if n < len(data):
                end.queue.appendleft((when, data[n:]))
                return

    # Commands.

    def on_control(self, events):
        conn, _ = self.control.accept()
        with conn:
            conn.settimeout(10)
            try:
                command = conn.makefile("r").readline().split()
                conn.sendall((self.obey(*command) + "\n").encode())
            except OSError:
                pass

    def obey(self, command, *args):
        if command in ("normal", "refuse", "drop", "hole"):
            self.limit = None
            self.set_mode(command)
        elif command == "limit":
            self.limit = int(args[0])
        elif command == "cut":
            self.cut()
        elif command == "delay":
            self.delay = float(args[0]) / 1000
        elif command == "accepted":
            return str(self.accepted)
        elif command == "dropped":
            return str(self.dropped)
        elif command == "open":
            return str(len(self.ends) // 2 + len(self.waiting))
        else:
            return "error: no such command: " + command
        return "ok"

    def set_mode(self, mode):
        self.mode = mode
        self.set_listening(mode != "refuse")
        if mode != "hole":
            while self.waiting:
                self.connect(self.waiting.pop())
        for end in list(self.ends):
            self.arm(end)

    # The loop.

    def run(self):
        while True:
            for key, events in self.selector.select(self.next_due()):
                # It may have been closed by what came before it.
                if key.fileobj.fileno() >= 0:
                    key.data(events)
            if self.delay or any(end.queue for end in self.ends):
                for end in list(self.ends):
                    if end in self.ends:
                        self.arm(end)

    def next_due(self):
        """Seconds until something that was delayed is due."""
        now = time.monotonic()
        if self.mode == "hole":
            return None
        times = [end.queue[0][0] - now for end in self.ends if end.queue
                 and not end.events & selectors.EVENT_WRITE]
        return max(min(times), 0) if times else None


def serve(listen, upstream, control, pidfile=None):
    def on_term(signum, frame):
        sys.exit(0)

    signal.signal(signal.SIGTERM, on_term)
    proxy = Proxy(listen, upstream, control)
    try:
        if pidfile:
            with open(pidfile, "w") as f:
                print(os.getpid(), file=f)
        proxy.run()
    finally:
        for name in listen, control, pidfile:
            if name and "/" in name and os.path.exists(name):
                os.unlink(name)


def tell(control, *command):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(control)
        s.sendall((" ".join(command) + "\n").encode())
        answer = s.makefile("r").readline().strip()
    if not answer or answer.startswith("error:"):
        sys.exit("proxy.py: " + (answer or "no answer"))
    if answer != "ok":
        print(answer)


if len(sys.argv) < 2 or sys.argv[1] not in ("serve", "tell"):
    sys.exit(__doc__)
{"serve": serve, "tell": tell}[sys.argv[1]](*sys.argv[2:])
