/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of any size between the host and a guest. On the host, a client reaches the transfer directory and nothing else
 * (base/beneath.h).
 */
#include "tools/transfer.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/statvfs.h>

#include "base/beneath.h"
#include "base/json.h"
#include "base/str.h"

#define GIB ((uint64_t) 1 << 30)
#define MIB (1024u * 1024u)
#define MODE_BITS 0777u /* no set-user-ID and the like */

struct request {
        const struct core_transfer *limits;
        const char *direction, *guest_path;
        struct beneath folder;
        char *relative; /* of the host's file */
        struct agent_transfer done;
};

static void request_clear(struct request *rq) {
        beneath_close(&rq->folder);
        free(rq->relative);
}

static int read_request(const struct tool_call *call, struct request *rq, struct error *err) {
        const char *host_path = NULL;

        int r = json_get_str(call->args, "direction", &rq->direction, err);
        if (r >= 0)
                r = json_get_str(call->args, "host_path", &host_path, err);
        if (r >= 0)
                r = json_get_str(call->args, "guest_path", &rq->guest_path, err);
        if (r < 0)
                return r;
        if (!rq->limits->dir)
                return error_set(err, ERROR_UNSUPPORTED, "This server has no transfer directory");
        r = beneath_open(rq->limits->dir, &rq->folder, err);
        if (r < 0) {
                error_hint(err, "The user of the host must make it, or set paths.transfer_dir; see the daemon's log.");
                return r;
        }
        return beneath_relative(&rq->folder, host_path, &rq->relative, err);
}

/* Says what may be done about it. Returns r. */
static int too_large(const struct request *rq, int r, struct error *err) {
        error_hint(err, "limits.transfer_gb is %" PRIu64 " on this host. Split the file, or compress it first.",
                   rq->limits->max_bytes / GIB);
        return r;
}

/* Without a deadline for the whole: agent_upload() and agent_download() notice a guest that does nothing. */
static struct op without_deadline(const struct tool_call *call) {
        struct op op = *call->op;

        op.deadline = DEADLINE_NEVER;
        return op;
}

static int upload(const struct tool_call *call, struct request *rq, struct error *err) {
        _cleanup_agent_ struct agent *agent = NULL;
        const struct op op = without_deadline(call);
        struct stat st;

        _cleanup_close_ int fd = beneath_read(&rq->folder, rq->relative, &st, err);
        if (fd < 0)
                return fd;
        if ((uint64_t) st.st_size > rq->limits->max_bytes) {
                int r = error_set(err, ERROR_QUOTA_EXCEEDED,
                                  "%s has %lld bytes; one transfer may have at most %" PRIu64, rq->relative,
                                  (long long) st.st_size, rq->limits->max_bytes);
                return too_large(rq, r, err);
        }
        int r = ws_agent(call->core, call->workspace_id, call->op, &agent, err);
        if (r < 0)
                return r;
        return agent_upload(agent, fd, rq->guest_path, st.st_mode & MODE_BITS, &op, &rq->done, err);
}

/* Bytes of the host's disk that a download may take. */
static int room(const struct request *rq, int fd, uint64_t *ret_free, uint64_t *ret_room, struct error *err) {
        struct statvfs st;

        if (fstatvfs(fd, &st) < 0)
                return error_set_errno(err, errno, "%s", rq->folder.path);
        *ret_free = (uint64_t) st.f_bavail * st.f_frsize;
        *ret_room = *ret_free - MIN(*ret_free, rq->limits->reserve_bytes);
        return 0;
}

static int explain_download(const struct request *rq, int r, uint64_t free_bytes, struct error *err) {
        if (r < 0 && error_is_set(err) && err->code == ERROR_QUOTA_EXCEEDED)
                return too_large(rq, r, err);
        if (r < 0 && error_is_set(err) && err->code == ERROR_NO_SPACE && !err->hint)
                error_hint(err,
                           "%s has %" PRIu64 " MiB free, of which %" PRIu64 " MiB stay free (storage.reserve_mb). Free "
                           "space on the host, or compress the file in the workspace first.",
                           rq->folder.path, free_bytes / MIB, rq->limits->reserve_bytes / MIB);
        return explain_not_found(r, rq->guest_path, err);
}

static int download(const struct tool_call *call, struct request *rq, struct error *err) {
        _cleanup_beneath_file_ struct beneath_file file = BENEATH_FILE_INIT;
        _cleanup_agent_ struct agent *agent = NULL;
        const struct op op = without_deadline(call);
        uint64_t free_bytes = 0, disk_bytes = 0;

        int r = ws_agent(call->core, call->workspace_id, call->op, &agent, err);
        if (r >= 0)
                r = beneath_create(&rq->folder, rq->relative, &file, err);
        if (r >= 0)
                r = room(rq, file.fd, &free_bytes, &disk_bytes, err);
        if (r < 0)
                return r;
        r = agent_download(agent, rq->guest_path, file.fd, rq->limits->max_bytes, disk_bytes, &op, &rq->done, err);
        if (r < 0)
                return explain_download(rq, r, free_bytes, err);
        return beneath_commit(&file, rq->done.mode & MODE_BITS, err);
}

static int build_result(const struct request *rq, json_t **ret) {
        _cleanup_free_ char *host_path = str_printf("%s/%s", rq->folder.path, rq->relative);
        char mode[8];

        if (!host_path)
                return -ENOMEM;
        snprintf(mode, sizeof(mode), "%04o", rq->done.mode & MODE_BITS);
        *ret = json_pack("{s:s, s:s, s:s, s:I, s:s, s:s}", "direction", rq->direction, "host_path", host_path,
                         "guest_path", rq->guest_path, "bytes", (json_int_t) rq->done.bytes, "sha256", rq->done.sha256,
                         "mode", mode);
        return *ret ? 0 : -ENOMEM;
}

int file_transfer(const struct tool_call *call, struct tool_result *ret, struct error *err) {
        _cleanup_(request_clear) struct request rq = {.limits = core_transfer(call->core), .folder = BENEATH_INIT};

        int r = read_request(call, &rq, err);
        if (r >= 0)
                r = str_eq(rq.direction, "upload") ? upload(call, &rq, err) : download(call, &rq, err);
        return r < 0 ? r : build_result(&rq, &ret->value);
}
