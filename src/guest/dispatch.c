/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <time.h>

#include "guest/connection.h"

static const struct {
        const char *type;
        request_handler run;
        bool needs_root; /* the disk must be mounted: there is nothing to work on before */
        bool for_all;    /* also for a host that has not got the secret */
} handlers[] = {
        {WIRE_REQ_INFO, handle_info, false, true},
        {WIRE_REQ_MOUNT_ROOT, handle_mount_root, false},
        {WIRE_REQ_CONFIGURE, handle_configure, false},
        {WIRE_REQ_FREEZE, handle_freeze, true},
        {WIRE_REQ_THAW, handle_thaw, true},
        {WIRE_REQ_SYNC, handle_sync, true},
        {WIRE_REQ_EXEC, handle_exec, true},
        {WIRE_REQ_JOB_START, handle_job_start, true},
        {WIRE_REQ_JOB_READ, handle_job_read, true},
        {WIRE_REQ_JOB_WRITE, handle_job_write, true},
        {WIRE_REQ_JOB_KILL, handle_job_kill, true},
        {WIRE_REQ_JOB_RESIZE, handle_job_resize, true},
        {WIRE_REQ_JOB_LIST, handle_job_list, true},
        {WIRE_REQ_SET_ENV, handle_set_env, true},
        {WIRE_REQ_FILE_READ, handle_file_read, true},
        {WIRE_REQ_FILE_WRITE, handle_file_write, true},
        {WIRE_REQ_FILE_EDIT, handle_file_edit, true},
        {WIRE_REQ_FILE_LIST, handle_file_list, true},
        {WIRE_REQ_RELAY, handle_relay, false},
        {WIRE_REQ_SHUTDOWN, handle_shutdown, false},
};

int handle_info(struct request *r, struct error *err) {
        struct timespec ts;
        int64_t boot_ns;
        int k;

        clock_gettime(CLOCK_BOOTTIME, &ts);
        boot_ns = (int64_t) ts.tv_sec * NSEC_PER_SEC + ts.tv_nsec;
        k = json_put(r->reply, "version", json_string(AGENTISO_VERSION));
        k |= json_put(r->reply, "root_mounted", json_boolean(agent_root_mounted(r->agent)));
        k |= json_put(r->reply, "boot_ns", json_integer(boot_ns));
        k |= json_put(r->reply, "cgroup", json_boolean(r->agent->cgroups.fd >= 0));
        return k < 0 ? error_set(err, ERROR_INTERNAL, "The agent is out of memory") : 0;
}

int request_send(struct request *r, const char *type, json_t *members) {
        _cleanup_json_ json_t *m = members ? members : json_object();
        struct op op = OP_INIT_NEVER;
        int k = json_put(m, "type", json_string(type));

        return k < 0 ? k : mux_send_msg(r->stream, m, &op);
}

int request_wait(struct request *r, struct cancel *token, deadline_t deadline) {
        struct op op = {.deadline = deadline, .cancel = token};

        for (;;) {
                _cleanup_mux_event_ struct mux_event ev = MUX_EVENT_INIT;
                int k = mux_recv(r->stream, &op, &ev);

                if (k < 0)
                        return k;
                /* A host that was stopped for a while gives up what it waited for: nobody has cancelled that. */
                if (ev.kind == MUX_CLOSED)
                        return ev.error.code == ERROR_TIMEOUT ? -ENOTCONN : -EPIPE;
                if (ev.kind == MUX_LOST)
                        return -ENOTCONN;
        }
}

static void send_error(struct request *r, const struct error *err) {
        _cleanup_json_ json_t *m = wire_error_to_json(err);
        struct op op = OP_INIT_NEVER;

        if (m)
                mux_send_msg(r->stream, m, &op);
}

static int refuse_stranger(struct error *err) {
        int r = error_set(err, ERROR_CONFLICT, "This agent belongs to another session");

        error_hint(err, "The machine goes on from a saved state, or has another host: connect with its own secret.");
        return r;
}

static int run(struct request *r, struct error *err) {
        const char *type;
        int k = json_get_str(r->args, "type", &type, err);

        if (k < 0)
                return k;
        for (size_t i = 0; i < ARRAY_SIZE(handlers); i++) {
                if (strcmp(handlers[i].type, type) != 0)
                        continue;
                if (!handlers[i].for_all && !connection_trusted(r->connection))
                        return refuse_stranger(err);
                if (handlers[i].needs_root && !agent_root_mounted(r->agent))
                        return error_set(err, ERROR_NOT_RUNNING, "The machine has no root file system yet");
                return handlers[i].run(r, err);
        }
        return error_set(err, ERROR_UNSUPPORTED, "This agent (version %s) knows no request \"%.60s\"", AGENTISO_VERSION,
                         type);
}

static void request_free(struct request *r) {
        struct agent *a = r->agent;

        mux_close(r->stream, NULL);
        mux_stream_unref(r->stream);
        json_decref(r->args);
        json_decref(r->reply);
        connection_unref(r->connection);
        free(r);

        LOCK(&a->lock);
        if (--a->requests == 0)
                pthread_cond_broadcast(&a->idle);
}

/* What to do about an error of the system that the handler has said no more about. */
static void advise(int r, struct error *err) {
        if (err->hint)
                return;
        switch (-r) {
        case ENOSPC:
        case EDQUOT:
                error_hint(err,
                           "df -h shows what is full. Delete something, or make a workspace with a larger disk_gb.");
                break;
        case EACCES:
        case EPERM:
        case EROFS:
                err->code = ERROR_INVALID_ARGUMENT; /* not ours, nor the machine's */
                error_hint(err, "Not even root may do that there. Choose another path.");
                break;
        case ENOTDIR:
                error_hint(err, "A part of the path is a file where a directory must be.");
                break;
        default:
                break;
        }
}

static void request_main(struct work *work) {
        struct request *r = (struct request *) work; /* its first member */
        _cleanup_error_ struct error err = ERROR_INIT;
        int k = run(r, &err);

        if (k < 0) {
                if (!error_is_set(&err))
                        error_set_errno(&err, k, "The request failed");
                advise(k, &err);
                send_error(r, &err);
        } else if (k == 0) {
                request_send(r, WIRE_MSG_OK, TAKE_PTR(r->reply));
        }
        request_free(r);
}

static void refuse(struct mux_stream *stream, int err_no) {
        _cleanup_error_ struct error err = ERROR_INIT;

        error_set_errno(&err, err_no, "The agent cannot start another request");
        mux_close(stream, &err);
        mux_stream_unref(stream);
}

void dispatch_opened(struct connection *c, struct mux_stream *stream, json_t *request) {
        struct agent *a = c->agent;
        struct request *r = calloc(1, sizeof(*r));
        int k;

        if (!r) {
                json_decref(request);
                refuse(stream, -ENOMEM);
                return;
        }
        *r = (struct request){
                .work = {.run = request_main},
                .agent = a,
                .connection = connection_ref(c),
                .stream = stream,
                .args = request,
                .reply = json_object(),
        };
        pthread_mutex_lock(&a->lock);
        a->requests++;
        pthread_mutex_unlock(&a->lock);

        k = r->reply ? workers_run(&a->request_workers, &r->work) : -ENOMEM;
        if (k < 0) {
                refuse(mux_stream_ref(stream), k);
                request_free(r);
        }
}
