// SPDX-License-Identifier: Apache-2.0
// One client's whole session with a server: connect, use every tool, leave.
// usage: node session.mjs CLIENT TRANSFER_DIR SERVER [ARGUMENT...]
//
// The client itself checks every record against the tool's outputSchema and every message against the protocol. Each
// step is printed before it is taken, so the last line before an error says where it happened.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";

import { CLIENTS } from "./clients.mjs";

// Far more than any step takes; some steps override it because it is less than what the server may take.
const LIMIT_MS = 60_000;
const START_MS = 180_000;

const [clientName, transferDir, command, ...args] = process.argv.slice(2);
const complaints = [];

function step(text) {
  console.log(`${clientName}: ${text}`);
}

class Session {
  constructor(connection) {
    this.connection = connection;
    this.succeeded = new Set();
  }

  raw(name, parameters, options = {}) {
    return this.connection.call({ name, arguments: parameters }, { timeout: LIMIT_MS, ...options });
  }

  // The record of a call that succeeds. Some clients show a model the text only, others the record only.
  async record(name, parameters, options) {
    const result = await this.raw(name, parameters, options);
    assert.ok(!result.isError, `${name} failed: ${JSON.stringify(result)}`);
    assert.equal(result.content.length, 1, JSON.stringify(result.content));
    assert.deepEqual(JSON.parse(result.content[0].text), result.structuredContent);
    this.succeeded.add(name);
    return result.structuredContent;
  }

  async text(name, parameters) {
    const result = await this.raw(name, parameters);
    assert.ok(!result.isError, `${name} failed: ${JSON.stringify(result)}`);
    assert.equal(result.structuredContent, undefined);
    this.succeeded.add(name);
    return result.content[0].text;
  }

  // A call that fails as the tool's own result does, with its code and a text that has `words`.
  async fails(code, words, name, parameters) {
    const result = await this.raw(name, parameters);
    assert.equal(result.isError, true, JSON.stringify(result));
    assert.equal(result._meta?.code, code, JSON.stringify(result));
    for (const word of words) {
      assert.ok(result.content[0].text.includes(word), `no '${word}' in: ${result.content[0].text}`);
    }
  }

  exec(workspace_id, line, more = {}, options = {}) {
    return this.record("exec", { workspace_id, command: line, timeout_secs: 50, ...more }, options);
  }
}

// A callback for progress, and what it was told: beats that count up.
function progress() {
  const values = [];
  const onprogress = (beat) => {
    assert.ok(values.length === 0 || beat.progress > values.at(-1), `${beat.progress} after ${values.at(-1)}`);
    values.push(beat.progress);
  };
  return { values, onprogress };
}

async function tools(session) {
  step("list the tools");
  const { tools: listed } = await session.connection.client.listTools();
  for (const tool of listed) {
    assert.ok(tool.description.length > 20, tool.name);
    assert.equal(tool.inputSchema.type, "object", tool.name);
    assert.equal(typeof tool.annotations?.readOnlyHint, "boolean", tool.name);
  }
  return listed.map((tool) => tool.name);
}

async function create(session, name) {
  step(`create the workspace ${name}`);
  const beats = progress();
  const created = await session.record("workspace_create", { name, vcpus: 1 },
    { timeout: START_MS, onprogress: beats.onprogress });
  assert.equal(created.name, name);
  assert.equal(created.state, "running");
  assert.ok(beats.values.length > 0, "no progress came");
  return created.workspace_id;
}

async function commands(session, ws) {
  step("commands");
  const good = await session.exec(ws, "echo out; echo err >&2");
  assert.deepEqual([good.stdout, good.stderr, good.exit_code], ["out\n", "err\n", 0]);
  const bad = await session.exec(ws, "cat; exit 7", { stdin: "grüße\n", workdir: "/usr/lib", env: { A: "b" } });
  assert.deepEqual([bad.stdout, bad.exit_code, bad.timed_out], ["grüße\n", 7, false]);
  const killed = await session.exec(ws, "kill -SEGV $$");
  assert.equal(killed.signal, 11);
  const late = await session.exec(ws, "echo partial; sleep 600", { timeout_secs: 1 });
  assert.deepEqual([late.stdout, late.timed_out], ["partial\n", true]);
  const long = await session.exec(ws, "seq 1 1000000");
  assert.equal(long.truncated, true);

  step("progress");
  const beats = progress();
  await session.exec(ws, "sleep 1", {}, { onprogress: beats.onprogress });
  assert.ok(beats.values.length > 0, "no progress came");

  step("three calls at once");
  const echoes = await Promise.all([1, 2, 3].map((n) => session.exec(ws, `sleep 0.${n}; echo ${n}`)));
  assert.deepEqual(echoes.map((result) => result.stdout), ["1\n", "2\n", "3\n"]);
}

async function cancel(session, ws) {
  step("cancel a command");
  const abort = new AbortController();
  const cancelled = session.exec(ws, "touch /tmp/began; exec sleep 8765", {}, { signal: abort.signal });
  const outcome = assert.rejects(cancelled);
  const began = await session.exec(ws, "for i in $(seq 300); do test -e /tmp/began && exit 0; sleep 0.1; done; exit 1");
  assert.equal(began.exit_code, 0, "the command did not begin");
  abort.abort();
  await outcome;
  const ended = await session.exec(ws,
    "for i in $(seq 300); do pgrep -f 'sleep 876[5]' >/dev/null || exit 0; sleep 0.1; done; exit 1");
  assert.equal(ended.exit_code, 0, "the cancelled command still runs");
}

async function files(session, ws) {
  step("files");
  const file = "/workspace/a/b.txt";
  const content = "eins\nzwei ✓\n";
  const written = await session.record("file_write", { workspace_id: ws, path: file, content });
  assert.deepEqual(written, { path: file, bytes_written: Buffer.byteLength(content) });
  assert.equal(await session.text("file_read", { workspace_id: ws, path: file }), content);
  const edited = await session.record("file_edit",
    { workspace_id: ws, path: file, old_string: "eins", new_string: "drei" });
  assert.equal(edited.replacements, 1);
  assert.equal(await session.text("file_read", { workspace_id: ws, path: file }), "drei\nzwei ✓\n");
  const listed = await session.record("file_list", { workspace_id: ws, path: "/workspace/a" });
  assert.deepEqual(listed.entries.map((entry) => [entry.name, entry.kind]), [["b.txt", "file"]]);
}

async function errors(session, ws) {
  step("errors");
  await session.fails("not_found", ["/no/such"], "file_read", { workspace_id: ws, path: "/no/such" });
  await session.fails("not_found", ["nobody"], "exec", { workspace_id: "nobody", command: "true" });
  await session.fails("invalid_argument", ["timeout_secs"], "exec",
    { workspace_id: ws, command: "true", timeout_secs: "soon" });
  await session.fails("invalid_argument", ["command"], "exec", { workspace_id: ws });
  await assert.rejects(session.raw("no_such_tool", {}), (error) => error.code === -32602);
}

async function life(session, ws, name) {
  step("what is known of the workspace");
  const info = await session.record("workspace_info", { workspace_id: name });
  assert.deepEqual([info.workspace_id, info.state], [ws, "running"]);
  const { workspaces } = await session.record("workspace_list", { name_prefix: name });
  assert.ok(workspaces.some((one) => one.workspace_id === ws && one.owned));
  const logs = await session.record("workspace_logs", { workspace_id: ws, log_type: "console" });
  assert.ok(logs.console.length > 0);

  step("stop and start");
  assert.equal((await session.record("workspace_stop", { workspace_id: ws })).state, "stopped");
  await session.fails("not_running", ["workspace_start"], "exec", { workspace_id: ws, command: "true" });
  const started = await session.record("workspace_start", { workspace_id: ws }, { timeout: START_MS });
  assert.equal(started.state, "running");
  assert.equal((await session.record("workspace_info", { workspace_id: ws })).state, "running");
}

// Polls a job to its end; the output of all polls is the job's whole output.
async function pollToEnd(session, ws, job_id, stdout_offset = 0, stderr_offset = 0) {
  let stdout = "";
  let next = { stdout_offset, stderr_offset };
  for (let round = 0; round < 100; round++) {
    const news = await session.record("exec_background",
      { workspace_id: ws, action: "poll", job_id, wait_secs: 5, ...next });
    stdout += news.stdout;
    next = { stdout_offset: news.stdout_offset, stderr_offset: news.stderr_offset };
    if (!news.running && news.stdout === "" && news.stderr === "") {
      return { ...news, stdout };
    }
    assert.ok(news.running || news.exit_code !== null);
  }
  throw new Error(`job ${job_id} did not end`);
}

async function jobs(session, ws) {
  const job = (action, more) => session.record("exec_background", { workspace_id: ws, action, ...more });

  step("a job: start, poll, write, kill, list");
  const reader = await job("start", { command: "echo up; read line; echo got $line; exit 3" });
  assert.equal(reader.status, "started");
  const first = await job("poll", { job_id: reader.job_id, wait_secs: 30 });
  assert.deepEqual([first.stdout, first.running, first.exit_code], ["up\n", true, null]);
  await job("write", { job_id: reader.job_id, data: "this\n", eof: true });
  const ended = await pollToEnd(session, ws, reader.job_id, first.stdout_offset, first.stderr_offset);
  assert.deepEqual([ended.stdout, ended.exit_code], ["got this\n", 3]);
  const sleeper = await job("start", { command: "sleep 7654", pty: true, cols: 100, rows: 30 });
  await job("resize", { job_id: sleeper.job_id, cols: 120, rows: 40 });
  const killed = await job("kill", { job_id: sleeper.job_id });
  assert.deepEqual([killed.status, killed.signal], ["killed", 9]);
  assert.equal((await pollToEnd(session, ws, sleeper.job_id)).exit_code, 137);
  const listed = await job("list");
  assert.deepEqual(listed.jobs.map((one) => one.running), [false, false]);
  await session.fails("not_found", ["424242", "list"], "exec_background",
    { workspace_id: ws, action: "poll", job_id: 424242 });

  step("a command that yields");
  const yielded = await session.exec(ws, "echo early; sleep 3; echo late; exit 4", { yield_secs: 1 });
  assert.deepEqual([yielded.running, yielded.exit_code, yielded.stdout], [true, null, "early\n"]);
  const rest = await pollToEnd(session, ws, yielded.job_id, yielded.stdout_offset, yielded.stderr_offset);
  assert.deepEqual([rest.stdout, rest.exit_code], ["late\n", 4]);

  step("variables");
  const set = await session.record("set_env", { workspace_id: ws, vars: { COLOUR: "blue", SHAPE: "round" } });
  assert.deepEqual([set.count, set.status], [2, "set"]);
  assert.equal((await session.exec(ws, "echo $COLOUR $SHAPE")).stdout, "blue round\n");
  await session.fails("invalid_argument", ["PATH"], "set_env", { workspace_id: ws, vars: { PATH: "/" } });
}

async function parallel(session, ws, second) {
  step("commands in two workspaces");
  const both = await session.record("exec_parallel",
    { workspace_ids: [ws, second], commands: ["echo one", "echo two; exit 5"], timeout_secs: 50 });
  assert.deepEqual(both.results.map((one) => [one.stdout, one.exit_code]), [["one\n", 0], ["two\n", 5]]);
  assert.deepEqual([both.summary.total, both.summary.succeeded, both.summary.failed], [2, 1, 1]);
  const names = await session.record("exec_parallel", { workspace_ids: [ws, second], commands: "hostname" });
  assert.deepEqual(names.results.map((one) => one.stdout), names.results.map((one) => `${one.workspace_name}\n`));
}

async function saved(session, ws, name) {
  const snapshot = (action, more, options) =>
    session.record("snapshot", { workspace_id: ws, action, ...more }, options);
  const note = async (workspace_id) => (await session.exec(workspace_id, "cat /root/note")).stdout;
  const running = async (workspace_id) => {
    const { jobs } = await session.record("exec_background", { workspace_id, action: "list" });
    return jobs.filter((job) => job.running).map((job) => job.job_id);
  };

  step("snapshots");
  await session.exec(ws, "echo first >/root/note");
  const plain = await snapshot("create", { name: "plain" });
  assert.deepEqual([plain.name, plain.has_memory, plain.workspace_id], ["plain", false, ws]);
  const { job_id } = await session.record("exec_background",
    { workspace_id: ws, action: "start", command: "exec sleep 7653" });
  await session.exec(ws, "echo second >/root/note");
  const beats = progress();
  const live = await snapshot("create", { name: "live", include_memory: true }, { onprogress: beats.onprogress });
  assert.ok(live.has_memory && beats.values.length > 0);
  const { snapshots } = await snapshot("list");
  assert.deepEqual(snapshots.map((one) => [one.name, one.has_memory, one.parent]),
    [["plain", false, null], ["live", true, "plain"]]);
  const info = await session.record("workspace_info", { workspace_id: ws });
  assert.deepEqual(info.snapshots.map((one) => one.snapshot_id), [plain.snapshot_id, live.snapshot_id]);
  await session.fails("conflict", ["live"], "snapshot", { workspace_id: ws, action: "create", name: "live" });
  await session.fails("not_found", ["lost"], "snapshot", { workspace_id: ws, action: "restore", name: "lost" });
  await session.fails("invalid_argument", ["name"], "snapshot", { workspace_id: ws, action: "delete" });

  step("a fork of a snapshot");
  await session.exec(ws, "echo third >/root/note");
  const fork = await session.record("workspace_fork",
    { workspace_id: ws, snapshot_name: "live", new_name: `${name}-fork` }, { timeout: START_MS });
  assert.deepEqual([fork.name, fork.state], [`${name}-fork`, "running"]);
  assert.deepEqual(fork.forked_from,
    { source_workspace_id: ws, source_workspace_name: name, snapshot_name: "live" });
  assert.deepEqual([await note(fork.workspace_id), await running(fork.workspace_id)], ["second\n", [job_id]]);
  await session.fails("conflict", [fork.name], "snapshot", { workspace_id: ws, action: "delete", name: "live" });

  step("three forks of this instant");
  const three = await session.record("workspace_fork", { workspace_id: ws, count: 3, name_prefix: name },
    { timeout: START_MS });
  assert.deepEqual([three.requested_count, three.success_count, three.failure_count, three.snapshot_name],
    [3, 3, 0, null]);
  assert.deepEqual(three.workers.map((one) => one.name), [1, 2, 3].map((n) => `${name}-${n}`));
  const workers = three.workers.map((one) => one.workspace_id);
  const seen = await session.record("exec_parallel", { workspace_ids: workers, commands: "hostname; cat /root/note" });
  assert.deepEqual(seen.results.map((one) => one.stdout), three.workers.map((one) => `${one.name}\nthird\n`));
  assert.deepEqual(await running(workers[2]), [job_id]);
  assert.equal(await note(ws), "third\n");

  step("restore");
  const restored = await snapshot("restore", { name: "live" }, { timeout: START_MS });
  assert.deepEqual([restored.name, restored.state, restored.has_memory], [name, "running", true]);
  assert.deepEqual([await note(ws), await running(ws)], ["second\n", [job_id]]);
  const anew = await snapshot("restore", { name: "plain" }, { timeout: START_MS });
  assert.deepEqual([anew.state, anew.has_memory], ["running", false]);
  assert.deepEqual([await note(ws), await running(ws)], ["first\n", []]);
  assert.deepEqual((await snapshot("list")).snapshots.map((one) => one.name), ["plain", "live"]);

  step("delete them");
  for (const workspace_id of [fork.workspace_id, ...workers]) {
    await session.record("workspace_destroy", { workspace_id });
  }
  for (const one of ["live", "plain"]) {
    assert.deepEqual((await snapshot("delete", { name: one })).deleted, true);
  }
  assert.deepEqual((await snapshot("list")).snapshots, []);
  assert.equal(await note(ws), "first\n");
}

async function transfer(session, ws) {
  step("a file there and back");
  const data = Buffer.alloc(3_000_001, "transfer ");
  const sha256 = createHash("sha256").update(data).digest("hex");
  const up = path.join(transferDir, `${clientName}-up`);
  const down = path.join(transferDir, `${clientName}-down`);
  await writeFile(up, data);
  const sent = await session.record("file_transfer",
    { workspace_id: ws, direction: "upload", host_path: up, guest_path: "/root/big" });
  assert.deepEqual([sent.bytes, sent.sha256], [data.length, sha256]);
  assert.equal((await session.exec(ws, "sha256sum </root/big")).stdout.split(" ")[0], sha256);
  const received = await session.record("file_transfer",
    { workspace_id: ws, direction: "download", host_path: down, guest_path: "/root/big" });
  assert.deepEqual([received.bytes, received.sha256], [data.length, sha256]);
  assert.ok(data.equals(await readFile(down)), "the file that came back is another");
}

async function network(session, ws) {
  step("what it may reach");
  const policy = await session.record("network_policy", { workspace_id: ws });
  assert.deepEqual(policy.network_policy, { allow_internet: false, allow_inter_vm: false, allowed_ports: [] });

  step("a port of it");
  const forward = (action, more) => session.record("port_forward", { workspace_id: ws, action, ...more });
  await session.record("exec_background", { workspace_id: ws, action: "start",
    command: "cd /root && exec python3 -m http.server 8000 --bind 127.0.0.1" });
  const listens = await session.exec(ws,
    "for i in $(seq 300); do ss -ltnH | grep -q ':8000 ' && exit 0; sleep 0.1; done; exit 1");
  assert.equal(listens.exit_code, 0, "the server in the workspace does not listen");
  await session.exec(ws, "echo by the forward >/root/page");
  const added = await forward("add", { guest_port: 8000 });
  assert.equal(await (await fetch(`${added.url}/page`)).text(), "by the forward\n");
  const { port_forwards } = await forward("list");
  assert.deepEqual(port_forwards.map((one) => [one.guest_port, one.host_port]), [[8000, added.host_port]]);
  await session.fails("conflict", ["8000"], "port_forward", { workspace_id: ws, action: "add", guest_port: 8000 });
  await forward("remove", { guest_port: 8000 });
  await assert.rejects(fetch(`${added.url}/page`));
}

async function destroy(session, ws) {
  step("destroy");
  assert.equal((await session.record("workspace_destroy", { workspace_id: ws })).destroyed, true);
  await session.fails("not_found", [ws], "workspace_info", { workspace_id: ws });
}

// The server is to end by itself when its input ends: the client would kill it soon after.
async function leave(connection) {
  step("leave");
  // The transports keep their child to themselves, and its end is what matters here.
  const ended = once(connection.transport._process, "exit");
  await connection.client.close();
  assert.deepEqual(await ended, [0, null], "exit status and signal of the server's process");
}

async function main() {
  step("connect");
  const connection = await CLIENTS[clientName]({ command, args, stderr: "inherit" }, (error) => {
    step(`the client complains: ${error.stack}`);
    complaints.push(error);
  });
  assert.equal(connection.client.getServerVersion().name, "agentiso");
  assert.ok(connection.client.getInstructions().includes("workspace_create"));

  const session = new Session(connection);
  const names = await tools(session);
  const name = `${clientName}-one`;
  const ws = await create(session, name);
  await commands(session, ws);
  await cancel(session, ws);
  await files(session, ws);
  await errors(session, ws);
  await life(session, ws, name);
  await jobs(session, ws);
  await transfer(session, ws);
  await saved(session, ws, name);
  await network(session, ws);
  const second = await create(session, `${clientName}-two`);
  await parallel(session, ws, second);
  await destroy(session, ws);
  await destroy(session, second);
  await leave(connection);

  const missed = names.filter((one) => !session.succeeded.has(one));
  assert.deepEqual(missed, [], "tools that this session does not use");
  assert.deepEqual(complaints, []);
  step("done");
}

await main();
