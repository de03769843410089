/* SPDX-License-Identifier: Apache-2.0 */
/* The disk of a running machine: which file it is on, its size, its way to another file. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/json.h"
#include "base/str.h"
#include "vm/state_private.h"

/* The node of a disk's file, for a disk that was opened as `node`: argv.c calls the first one so, too. */
#define FILE_NODE_SUFFIX "-file"

/* The block node that is the machine's disk now: what the device's property "drive" has. The answer of query-block
 * would have one image inside the other for each file below the disk. */
static int ask_node(struct qmp *qmp, const struct op *op, char ret[NODE_NAME_LEN + 1], struct error *err) {
        _cleanup_json_ json_t *reply = NULL,
                              *arguments = json_pack("{s:s, s:s}", "path", "/machine/peripheral/" VM_DISK_DEVICE,
                                                     "property", "drive");

        int r = arguments ? qmp_call(qmp, "qom-get", arguments, op, &reply, err) : -ENOMEM;
        if (r < 0)
                return r;
        const char *node = json_string_value(reply);
        if (str_empty(node) || strlen(node) > NODE_NAME_LEN)
                return error_set(err, ERROR_NOT_FOUND, "The machine has no disk");
        memcpy(ret, node, strlen(node) + 1);
        return 0;
}

/* The path of the file of a node. The node itself has no plain name, once its backing file was opened before it
 * (bdrv_refresh_filename() of QEMU's block.c makes it "json:" and the options, cut at 4 KiB). */
static int ask_path(struct qmp *qmp, const char *node, const struct op *op, char **ret, struct error *err) {
        _cleanup_json_ json_t *reply = NULL, *arguments = json_pack("{s:b}", "flat", true);
        char wanted[NODE_NAME_LEN + sizeof(FILE_NODE_SUFFIX)];
        const json_t *one;
        size_t i;

        snprintf(wanted, sizeof(wanted), "%s" FILE_NODE_SUFFIX, node);
        if (!arguments)
                return error_set_errno(err, ENOMEM, "Cannot look for a disk");
        int r = qmp_call(qmp, "query-named-block-nodes", arguments, op, &reply, err);
        if (r < 0)
                return r;
        json_array_foreach (reply, i, one) {
                const char *name = NULL, *file = NULL;

                if (json_get_str(one, "node-name", &name, NULL) >= 0 && str_eq(name, wanted) &&
                    json_get_str(one, "file", &file, NULL) >= 0) {
                        *ret = strdup(file);
                        return *ret ? 0 : error_set_errno(err, ENOMEM, "Cannot look for a disk");
                }
        }
        return error_set(err, ERROR_INTERNAL, "QEMU has no file for its disk \"%s\"", node);
}

int vm_disk_file(struct vm *vm, const struct op *op, char **ret, struct error *err) {
        _cleanup_qmp_ struct qmp *qmp = NULL;
        char node[NODE_NAME_LEN + 1];

        int r = vm_qmp(vm, op, &qmp, err);
        if (r >= 0)
                r = ask_node(qmp, op, node, err);
        return r < 0 ? r : ask_path(qmp, node, op, ret, err);
}

int vm_disk_resize(struct vm *vm, uint64_t bytes, const struct op *op, struct error *err) {
        _cleanup_json_ json_t *arguments = NULL;
        _cleanup_qmp_ struct qmp *qmp = NULL;
        char node[NODE_NAME_LEN + 1];

        if (bytes > INT64_MAX)
                return error_set(err, ERROR_INVALID_ARGUMENT, "A disk of %llu bytes is too large",
                                 (unsigned long long) bytes);
        int r = vm_qmp(vm, op, &qmp, err);
        if (r >= 0)
                r = ask_node(qmp, op, node, err);
        if (r < 0)
                return r;
        arguments = json_pack("{s:s, s:I}", "node-name", node, "size", (json_int_t) bytes);
        return arguments ? qmp_call(qmp, "block_resize", arguments, op, NULL, err)
                         : error_set_errno(err, ENOMEM, "Cannot resize the disk of the VM %s", vm->id);
}

/*
 * QEMU writes out what the host's page cache has of the disk when it stops a machine and when it changes the disk. That
 * may be seconds' worth of data: so it is done before, while the guest runs.
 */
static void flush_file(const char *path) {
        struct stat st;

        _cleanup_close_ int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
                (void) fdatasync(fd); /* what comes of it QEMU will see itself */
}

int disk_change_open(struct qmp *qmp, const char *overlay, struct disk_change *d, const struct op *op,
                     struct error *err) {
        _cleanup_json_ json_t *arguments = NULL;
        _cleanup_free_ char *file = NULL;
        char random[8 + 1], file_node[NODE_NAME_LEN + sizeof(FILE_NODE_SUFFIX)];

        int r = ask_node(qmp, op, d->node, err);
        if (r >= 0)
                r = ask_path(qmp, d->node, op, &file, err);
        if (r >= 0)
                r = random_hex(random, 4);
        if (r < 0)
                return r;
        snprintf(d->overlay, sizeof(d->overlay), "disk-%s", random);
        snprintf(file_node, sizeof(file_node), "%s" FILE_NODE_SUFFIX, d->overlay);
        /* The options are those that argv.c gives a disk; the disk itself becomes the backing file later. */
        arguments = json_pack("{s:s, s:s, s:n, s:s, s:s, s:{s:b, s:b}, s:{s:s, s:s, s:s, s:s, s:s, s:{s:b, s:b}}}",
                              "driver", "qcow2", "node-name", d->overlay, "backing", "discard", "unmap",
                              "detect-zeroes", "unmap", "cache", "direct", false, "no-flush", false, "file", "driver",
                              "file", "node-name", file_node, "filename", overlay, "aio", "threads", "discard", "unmap",
                              "cache", "direct", false, "no-flush", false);
        r = arguments ? qmp_call(qmp, "blockdev-add", arguments, op, NULL, err)
                      : error_set_errno(err, ENOMEM, "Cannot open a disk");
        if (r < 0)
                return r;
        d->opened = true;
        flush_file(file);
        return 0;
}

int disk_change_do(struct qmp *qmp, struct disk_change *d, const struct op *op, struct error *err) {
        _cleanup_json_ json_t *arguments = json_pack("{s:s, s:s}", "node", d->node, "overlay", d->overlay);

        if (!arguments)
                return error_set_errno(err, ENOMEM, "Cannot change the disk of a VM");
        int r = qmp_call(qmp, "blockdev-snapshot", arguments, op, NULL, err);
        if (r >= 0)
                d->done = true;
        else
                d->unknown = r == -ETIMEDOUT || r == -ECANCELED || r == -ENOTCONN;
        return r;
}

static bool same_file(const char *a, const char *b) {
        struct stat x, y;

        return str_eq(a, b) || (stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino);
}

/* No answer came to the change: whether it was made, or nobody can tell. */
static bool is_on_overlay(struct vm *vm, struct qmp *qmp, const char *overlay, const struct op *op) {
        const struct op moment = op_sub(op, VM_QUIT_MS);
        _cleanup_free_ char *file = NULL;

        if (qmp_is_lost(qmp)) /* a QEMU that ends closes it a moment before it is gone */
                (void) vm_wait_exit(vm, &moment);
        return vm_has_exited(vm) || vm_disk_file(vm, op, &file, NULL) < 0 || same_file(file, overlay);
}

bool disk_change_end(struct vm *vm, struct qmp *qmp, struct disk_change *d, const char *overlay) {
        const struct op op = op_timeout(VM_GO_ON_MS);

        if (d->unknown)
                d->done = is_on_overlay(vm, qmp, overlay, &op);
        if (d->opened && !d->done) {
                _cleanup_json_ json_t *arguments = json_pack("{s:s}", "node-name", d->overlay);

                (void) qmp_call(qmp, "blockdev-del", arguments, &op, NULL, NULL);
        }
        d->opened = false;
        return d->done;
}
