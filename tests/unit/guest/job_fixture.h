/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What tests of jobs have in common. */

#include <signal.h>
#include <sys/stat.h>

#include "fixture.h"

static _unused_ json_t *start_request(const char *text) {
        json_t *o = json_of("{\"type\":\"job_start\"}");

        json_object_set_new(o, "command", json_string(text));
        return o;
}

static _unused_ int64_t start_job_of(json_t *request) {
        _cleanup_outcome_ struct outcome o = {0};

        ask(request, NULL, 0, &o);
        return o.last ? member_int(o.last, "job_id") : -1;
}

static _unused_ int64_t start_job(const char *text) {
        return start_job_of(start_request(text));
}

/* Offsets of -1: all of it. */
static _unused_ json_t *read_request(int64_t id, int64_t wait_ms, int64_t out_offset, int64_t err_offset) {
        json_t *o = json_of("{\"type\":\"job_read\",\"job_id\":%lld,\"wait_ms\":%lld,\"max_output\":%u}",
                            (long long) id, (long long) wait_ms, WIRE_OUTPUT_MAX);

        if (out_offset >= 0)
                json_object_set_new(o, "out_offset", json_integer(out_offset));
        if (err_offset >= 0)
                json_object_set_new(o, "err_offset", json_integer(err_offset));
        return o;
}

static _unused_ int64_t total(const json_t *msg, const char *key) {
        return member_int(json_object_get(msg, key), "total");
}

/* Waits for the end and then reads all. False when it does not end. */
static _unused_ bool read_end(int64_t id, struct outcome *o) {
        int64_t out = 0, err = 0;

        for (int i = 0; i < 10000; i++) {
                _cleanup_outcome_ struct outcome news = {0};

                ask(read_request(id, 20000, out, err), NULL, 0, &news);
                if (!news.last)
                        break;
                out = total(news.last, "out");
                err = total(news.last, "err");
                if (member_int(news.last, "running") == 0) {
                        ask(read_request(id, 0, -1, -1), NULL, 0, o);
                        return true;
                }
        }
        *o = (struct outcome){0};
        return false;
}

/* Waits until its output holds the text. */
static _unused_ bool wait_output(int64_t id, const char *text) {
        int64_t out = 0;

        for (int i = 0; i < 1000; i++) {
                _cleanup_outcome_ struct outcome whole = {0}, news = {0};

                ask(read_request(id, 0, -1, -1), NULL, 0, &whole);
                if (!whole.last)
                        return false;
                if (whole.out.data && strstr(whole.out.data, text))
                        return true;
                if (member_int(whole.last, "running") == 0)
                        return false;
                out = total(whole.last, "out");
                ask(read_request(id, 10000, out, total(whole.last, "err")), NULL, 0, &news);
        }
        return false;
}

static _unused_ void write_to(int64_t id, const void *data, size_t n, bool eof, int64_t wait_ms, struct outcome *o) {
        ask(json_of("{\"type\":\"job_write\",\"job_id\":%lld,\"eof\":%s,\"wait_ms\":%lld}", (long long) id,
                    eof ? "true" : "false", (long long) wait_ms),
            data, n, o);
}

static _unused_ void type_in(int64_t id, const char *text) {
        _cleanup_outcome_ struct outcome o = {0};

        write_to(id, text, strlen(text), false, 5000, &o);
        CHECK_INT(o.last ? member_int(o.last, "written") : -1, strlen(text));
}

static _unused_ void signal_job(int64_t id, int sig, struct outcome *o) {
        ask(json_of("{\"type\":\"job_kill\",\"job_id\":%lld,\"signal\":%d}", (long long) id, sig), NULL, 0, o);
}

static _unused_ void kill_job(int64_t id) {
        _cleanup_outcome_ struct outcome o = {0};

        signal_job(id, SIGKILL, &o);
        CHECK_INT(o.last ? member_int(o.last, "running") : -1, 0);
}

/* The entry of a job in the list, or NULL. */
static _unused_ json_t *listed(struct outcome *o, const char *text) {
        size_t i;
        json_t *job, *found = NULL;

        ask(json_of("{\"type\":\"job_list\",\"max\":300}"), NULL, 0, o);
        json_array_foreach (json_object_get(o->last, "jobs"), i, job)
                if (strstr(member_str(job, "command"), text))
                        found = job;
        return found;
}

static _unused_ int64_t start_on_terminal(const char *text) {
        json_t *o = start_request(text);

        json_object_set_new(o, "pty", json_true());
        return start_job_of(o);
}

/* A folder of our own in the cgroups of this machine, or NULL. */
static _unused_ const char *cgroup_folder(void) {
        static const char *const mounts[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
        static char path[128], file[256];

        for (size_t i = 0; i < ARRAY_SIZE(mounts); i++) {
                snprintf(path, sizeof(path), "%s/agentiso-test-%d", mounts[i], (int) getpid());
                snprintf(file, sizeof(file), "%s/cgroup.kill", path);
                if (mkdir(path, 0755) < 0)
                        continue;
                if (access(file, W_OK) == 0)
                        return path;
                rmdir(path);
        }
        return NULL;
}
