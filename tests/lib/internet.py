# SPDX-License-Identifier: Apache-2.0
"""The servers of netlab.py. usage: internet.py LOG internet WEB NAMES PRIVATE... | internet.py LOG host PORT

Each connection and datagram is a line of JSON in LOG: server, local address, remote address. The end of a connection
is one, too: closed-SERVER.
"""

import json
import os
import socket
import struct
import sys
import threading

CHUNK = bytes(range(256)) * 256
ANSWERS = {"web.test": "198.51.100.10", "names.test": "198.51.100.53"}

log_fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def hit(server, local, remote):
    os.write(log_fd, (json.dumps([server, local, remote]) + "\n").encode())


def tcp(server, address, port, serve):
    listener = socket.create_server((address, port), backlog=512)

    def loop():
        while True:
            connection, remote = listener.accept()
            hit(server, connection.getsockname()[0], remote[0])
            threading.Thread(target=guarded, args=(server, serve, connection, remote[0]), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()


def guarded(server, serve, connection, remote):
    local = connection.getsockname()[0]
    try:
        with connection:
            serve(connection)
    except OSError:
        pass
    hit(f"closed-{server}", local, remote)


def udp(server, address, port, answer):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))

    def loop():
        while True:
            data, remote = sock.recvfrom(65535)
            hit(server, address, remote[0])
            reply = answer(data)
            if reply:
                sock.sendto(reply, remote)

    threading.Thread(target=loop, daemon=True).start()


def web(connection):
    """GET /bytes/N: N bytes; anything else: a word."""
    request = b""
    while b"\r\n\r\n" not in request:
        data = connection.recv(65536)
        if not data:
            return
        request += data
    path = request.split()[1].decode()
    n = int(path.split("/")[2]) if path.startswith("/bytes/") else 6
    connection.sendall(f"HTTP/1.0 200 OK\r\nContent-Length: {n}\r\n\r\n".encode())
    if n == 6:
        connection.sendall(b"hello\n")
        return
    while n > 0:
        n -= connection.send(CHUNK[:min(n, len(CHUNK))])


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


def sink(connection):
    """Takes all, then says how much it was."""
    n = 0
    while data := connection.recv(1 << 20):
        n += len(data)
    connection.sendall(str(n).encode())


def name_of(message):
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1:at + 1 + message[at]].decode())
        at += 1 + message[at]
    return ".".join(labels), at + 5


def names(message):
    name, end = name_of(message)
    address = ANSWERS.get(name)
    kind = struct.unpack("!H", message[end - 4:end - 2])[0]
    answers = 1 if address and kind == 1 else 0
    head = message[:2] + struct.pack("!HHHHH", 0x8180 if address else 0x8183, 1, answers, 0, 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(address) if answers else b""
    return head + message[12:end] + record


def names_tcp(connection):
    while head := connection.recv(2, socket.MSG_WAITALL):
        reply = names(connection.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL))
        connection.sendall(struct.pack("!H", len(reply)) + reply)


def main():
    if sys.argv[2] == "host":
        tcp("host", "0.0.0.0", int(sys.argv[3]), web)
        udp("host", "0.0.0.0", int(sys.argv[3]), lambda data: data)
    else:
        address, resolver, private = sys.argv[3], sys.argv[4], sys.argv[5:]
        tcp("web", address, 80, web)
        tcp("echo", address, 7, echo)
        tcp("sink", address, 9, sink)
        udp("echo", address, 7, lambda data: data)
        udp("names", resolver, 53, names)
        tcp("names", resolver, 53, names_tcp)
        for other in private:
            tcp("private", other, 80, web)
            udp("private", other, 53, names)
    print("ready", flush=True)
    threading.Event().wait()


main()
