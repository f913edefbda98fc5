# nbdkit-clone
# SPDX-License-Identifier: BSD-3-Clause

# A server that is not quite a clone's control interface.
#
#   fake-control.py SOCKET PIDFILE HOW [FILE]
#
# SOCKET is the path of a unix socket.  HOW is
#
#   silent    accept connections, and never answer
#   hangup    close each connection at once
#   garbage   answer with bytes that are not HTTP
#   html      answer with a page of HTML
#   text      answer with JSON that is no object
#   object    answer with an object that is not a status
#   escapes   answer with an error that contains escape sequences
#   endless   answer with a body that never ends
#   redirect  send each client to another address
#   stuck     answer GET /status with FILE/status.json, then answer nothing, and
#             close the connection of the third request
#   files     answer GET /NAME with the content of FILE/NAME.json, or with 404
#
# Each request is a line in SOCKET.requests.

import os, socketserver, sys

path, pidfile, how = sys.argv[1:4]
folder = sys.argv[4] if len(sys.argv) > 4 else None
asked = 0


def http(status, body, headers=b""):
    return (b"HTTP/1.1 %s\r\n%sConnection: close\r\nContent-Length: %d\r\n\r\n"
            % (status, headers, len(body)) + body)


ANSWERS = {
    "garbage": b"\0\1\2 this is not HTTP\r\n\r\n",
    "html": http(b"200 OK", b"<html>hello</html>"),
    "text": http(b"200 OK", b'"hello"'),
    "object": http(b"200 OK", b'{"hello": 1}'),
    "escapes": http(b"400 Bad", b'{"error": "a\\u001b[31mb\\u009bc\\u0007"}'),
    "redirect": http(b"302 Found", b"{}",
                     b"Location: http://127.0.0.1:9/\r\n"),
}


class Handler(socketserver.StreamRequestHandler):
    def answer_file(self, name):
        try:
            with open(os.path.join(folder, name + ".json"), "rb") as f:
                self.wfile.write(http(b"200 OK", f.read()))
        except FileNotFoundError:
            self.wfile.write(http(b"404 Not Found",
                                  b'{"error": "no such path"}'))

    def handle(self):
        if how == "hangup":
            return
        line = self.rfile.readline().decode().strip()
        while self.rfile.readline().strip():
            pass
        with open(path + ".requests", "a") as f:
            f.write(line + "\n")
        if how == "silent":
            self.rfile.read()
        elif how == "endless":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                self.wfile.write(b" " * 65536)
        elif how == "stuck":
            global asked
            asked += 1
            if asked == 1:
                self.answer_file("status")
            elif asked == 2:
                self.rfile.read()
        elif how == "files":
            self.answer_file(line.split()[1].strip("/").split("?")[0])
        else:
            self.wfile.write(ANSWERS[how])


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request, address):
        pass


with Server(path, Handler) as server:
    with open(pidfile, "w") as f:
        print(os.getpid(), file=f)
    server.serve_forever()
