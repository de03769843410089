# SPDX-License-Identifier: Apache-2.0
"""A workspace as a network test uses it."""


class Guest:
    def __init__(self, client, name, create=True, **options):
        self.client, self.name = client, name
        options = {"memory_mb": 256, "vcpus": 1, **options}
        made = client.call("workspace_create", name=name, **options) if create else \
            client.call("workspace_info", workspace_id=name)
        self.id, self.ip = made["workspace_id"], made["ip"]

    def call(self, tool, **arguments):
        return self.client.call(tool, workspace_id=self.name, **arguments)

    def exec(self, command, **options):
        return self.call("exec", command=command, **{"timeout_secs": 60, **options})

    def run(self, command, **options):
        result = self.exec(command, **options)
        assert result["exit_code"] == 0, result
        return result["stdout"]

    def start(self, command):
        return self.call("exec_background", action="start", command=command)["job_id"]

    def output(self, job, **options):
        return self.call("exec_background", action="poll", job_id=job, **options)

    def policy(self, **change):
        return self.call("network_policy", **change)["network_policy"]

    def connects(self, address, port, timeout=5):
        """Whether a TCP connection comes about."""
        return self.exec("python3 -c \"import socket; s = socket.socket(); s.settimeout(%g); "
                         "exit(0 if s.connect_ex(('%s', %d)) == 0 else 1)\"" % (timeout, address, port))["exit_code"] == 0

    def serve(self, port, address="0.0.0.0"):
        """A web server; returns when it listens."""
        job = self.start(f"exec python3 -m http.server {port} --bind {address}")
        self.run(f"for i in $(seq 200); do ss -ltnH | grep -q ':{port} ' && exit 0; sleep 0.1; done; exit 1")
        return job
