/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the agent makes of a request: the checks of every request's arguments on one JSON object, and the search for the
 * nearest lines on the bytes behind it. The input is the JSON, a NUL, the wanted text, a NUL, the file.
 *
 *     FUZZ_SOURCES: src/guest/args.c src/guest/job_args.c src/guest/nearest.c
 */

#include <string.h>

#include "base/str.h"
#include "fuzz.h"
#include "guest/args.h"
#include "guest/job_args.h"
#include "guest/nearest.h"
#include "wire/wire.h"

#define LINES_MAX 4096

/* Either it is accepted, or the error is an invalid_argument with a message that can be sent. */
static void check(int r, const struct error *err) {
        if (r >= 0)
                return;
        ASSERT(err->code == ERROR_INVALID_ARGUMENT);
        ASSERT(err->message && utf8_valid(err->message, strlen(err->message)));
}

static void check_job_args(const json_t *o) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct exec_args exec;
        struct job_start_args start;
        struct job_read_args read;
        struct job_write_args write;
        struct job_kill_args kill;
        struct job_resize_args resize;
        struct set_env_args env;
        int64_t max;

        if (exec_args_parse(o, &exec, &err) == 0)
                ASSERT(exec.max_output >= 0 && exec.max_output <= WIRE_OUTPUT_MAX);
        else
                check(-1, &err);
        check(job_start_args_parse(o, &start, &err), &err);
        if (job_read_args_parse(o, &read, &err) == 0)
                ASSERT(read.out_offset >= -1 && read.err_offset >= -1 && read.wait_ms <= WIRE_JOB_WAIT_MAX_MS);
        else
                check(-1, &err);
        check(job_write_args_parse(o, &write, &err), &err);
        check(job_kill_args_parse(o, &kill, &err), &err);
        check(job_resize_args_parse(o, &resize, &err), &err);
        check(job_list_args_parse(o, &max, &err), &err);
        check(set_env_args_parse(o, &env, &err), &err);
}

static void check_args(const json_t *o) {
        _cleanup_error_ struct error err = ERROR_INIT;
        struct file_read_args read;
        struct file_write_args write;
        struct file_edit_args edit;
        struct file_list_args list;
        struct mount_root_args root;
        struct configure_args configure;
        struct freeze_args freeze;

        if (file_read_args_parse(o, &read, &err) == 0)
                ASSERT(read.path[0] == '/' && read.offset >= 0 && read.start_line >= 1);
        else
                check(-1, &err);
        if (file_write_args_parse(o, &write, &err) == 0)
                ASSERT(write.path[0] == '/' && write.mode <= 07777);
        else
                check(-1, &err);
        if (file_edit_args_parse(o, &edit, &err) == 0)
                ASSERT(edit.old_len > 0 && edit.old_len + edit.new_len <= 2 * (size_t) ARGS_EDIT_TEXT_MAX);
        else
                check(-1, &err);
        if (file_list_args_parse(o, &list, &err) == 0)
                ASSERT(list.max_entries >= 1 && list.max_entries <= ARGS_LIST_MAX);
        else
                check(-1, &err);
        if (mount_root_args_parse(o, &root, &err) == 0)
                ASSERT(str_starts_with(root.device, "/dev/") && !strchr(root.device + 5, '/'));
        else
                check(-1, &err);
        if (configure_args_parse(o, &configure, &err) == 0)
                ASSERT(configure.n_dns <= ARGS_DNS_MAX &&
                       (!configure.session || strlen(configure.session) == WIRE_SESSION_LEN));
        else
                check(-1, &err);
        if (freeze_args_parse(o, &freeze, &err) == 0)
                ASSERT(freeze.max_ms >= 1 && freeze.max_ms <= WIRE_FREEZE_MAX_MS);
        else
                check(-1, &err);
}

static void check_nearest(const char *data, size_t size) {
        _cleanup_buf_ struct buf out = BUF_INIT(LINES_MAX);
        const char *nul = memchr(data, '\0', size);

        if (!nul)
                return;
        size_t wanted = (size_t) (nul - data);
        int r = nearest_lines(nul + 1, size - wanted - 1, data, wanted, &out);
        ASSERT(r >= 0 && r <= NEAREST_LINES);
        ASSERT(utf8_valid(out.data ? out.data : "", out.len));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        const char *text = (const char *) data;
        const char *nul = size > 0 ? memchr(text, '\0', size) : NULL;
        size_t len = nul ? (size_t) (nul - text) : size;
        _cleanup_json_ json_t *o = NULL;

        if (json_parse(text, len, WIRE_FRAME_MAX, WIRE_JSON_DEPTH_MAX, &o, NULL) == 0) {
                check_args(o);
                check_job_args(o);
        }
        if (nul)
                check_nearest(nul + 1, size - len - 1);
        return 0;
}
