/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "guest/agent.h"
#include "guest/args.h"
#include "guest/path.h"

#define NAMES_MAX 200000 /* of one folder that are sorted; what is beyond is left out and `truncated` says so */
#define DEPTH_MAX 128    /* of a recursive listing: one open folder each */
#define LINE_MAX_BYTES (64UL * 1024)
#define BATCH (32UL * 1024) /* sent in pieces of about this size */

struct lister {
        struct request *req;
        bool recursive;
        size_t max_entries, count;
        bool truncated;
        struct buf out;
};

static int flush(struct lister *l) {
        struct op op = OP_INIT_NEVER;
        int r = l->out.len ? mux_send_data(l->req->stream, WIRE_CH_OUT, l->out.data, l->out.len, &op) : 0;

        buf_clear(&l->out);
        return r;
}

/* A name need not be UTF-8: what is not is shown as U+FFFD, and the exact bytes are given beside it. */
static int put_text(json_t *o, const char *key, const char *s) {
        _cleanup_buf_ struct buf text = BUF_INIT(LINE_MAX_BYTES), exact = BUF_INIT(LINE_MAX_BYTES);
        char exact_key[32];
        int r;

        if (utf8_valid(s, strlen(s)))
                return json_put(o, key, json_string(s));
        r = utf8_sanitize(&text, s, strlen(s), NULL);
        if (r == 0)
                r = base64_encode(&exact, s, strlen(s));
        if (r < 0)
                return r;
        snprintf(exact_key, sizeof(exact_key), "%s_base64", key);
        r = json_put(o, key, json_string(text.data));
        return r < 0 ? r : json_put(o, exact_key, json_string(exact.data));
}

static int put_entry(struct lister *l, int dir_fd, const char *base, const char *relative, const struct stat *st) {
        _cleanup_json_ json_t *o = json_object();
        char permissions[8], target[PATH_MAX];
        int r;

        snprintf(permissions, sizeof(permissions), "%04o", (unsigned) (st->st_mode & 07777));
        r = put_text(o, "name", relative);
        r |= json_put(o, "kind", json_string(file_kind(st->st_mode)));
        r |= json_put(o, "size", json_integer(st->st_size));
        r |= json_put(o, "permissions", json_string(permissions));
        r |= json_put(o, "modified_ms",
                      json_integer(st->st_mtim.tv_sec * MSEC_PER_SEC + st->st_mtim.tv_nsec / NSEC_PER_MSEC));
        if (S_ISLNK(st->st_mode)) {
                ssize_t n = readlinkat(dir_fd, base, target, sizeof(target) - 1);
                if (n >= 0) {
                        target[n] = '\0';
                        r |= put_text(o, "target", target);
                }
        }
        if (r < 0)
                return -ENOMEM;
        r = json_write(o, &l->out);
        if (r == 0)
                r = buf_append_byte(&l->out, '\n');
        if (r < 0)
                return r;
        l->count++;
        return l->out.len >= BATCH ? flush(l) : 0;
}

static int compare_names(const void *a, const void *b) {
        return strcmp(*(char *const *) a, *(char *const *) b);
}

static int read_names(struct lister *l, DIR *dir, struct strv *names) {
        struct dirent *de;

        while ((de = readdir(dir))) {
                int r;

                if (str_eq(de->d_name, ".") || str_eq(de->d_name, ".."))
                        continue;
                if (names->n >= NAMES_MAX) {
                        l->truncated = true;
                        break;
                }
                r = strv_add(names, de->d_name);
                if (r < 0)
                        return r;
        }
        if (names->n > 1)
                qsort(names->v, names->n, sizeof(names->v[0]), compare_names);
        return 0;
}

/* Takes over fd. `prefix` is what stands before the names: "" or "sub/folder/". */
static int list_folder(struct lister *l, int fd, const char *prefix, unsigned depth) {
        _cleanup_strv_ struct strv names = {0};
        DIR *dir = fdopendir(fd);
        int r;

        if (!dir) {
                close_fd(fd);
                return -ENOMEM;
        }
        r = read_names(l, dir, &names);
        for (size_t i = 0; r == 0 && i < names.n; i++) {
                _cleanup_free_ char *relative = NULL;
                struct stat st;

                if (fstatat(fd, names.v[i], &st, AT_SYMLINK_NOFOLLOW) < 0)
                        continue; /* gone since */
                if (l->count >= l->max_entries) {
                        l->truncated = true;
                        break;
                }
                relative = str_printf("%s%s", prefix, names.v[i]);
                r = relative ? put_entry(l, fd, names.v[i], relative, &st) : -ENOMEM;
                if (r < 0 || !l->recursive || !S_ISDIR(st.st_mode))
                        continue;

                int sub = depth < DEPTH_MAX ? openat(fd, names.v[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                                            : -1;
                _cleanup_free_ char *below = str_printf("%s/", relative);
                if (sub < 0) {
                        l->truncated = true;
                        continue;
                }
                if (!below) {
                        close_fd(sub);
                        r = -ENOMEM;
                        break;
                }
                r = list_folder(l, sub, below, depth + 1);
        }
        closedir(dir);
        return r;
}

static int open_folder(const char *path, struct error *err) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r;

        if (fd >= 0)
                return fd;
        if (errno != ENOTDIR)
                return error_set_errno(err, errno, "%s", path);
        r = error_set(err, ERROR_INVALID_ARGUMENT, "%s is not a directory", path);
        error_hint(err, "Read a file with file_read.");
        return r;
}

static int send_end(struct lister *l) {
        struct op op = OP_INIT_NEVER;
        json_t *end;
        int r = flush(l);

        if (r == 0)
                r = mux_send_eof(l->req->stream, WIRE_CH_OUT, &op);
        if (r < 0)
                return r;
        end = json_object();
        r = json_put(end, "count", json_integer((json_int_t) l->count));
        r |= json_put(end, "truncated", json_boolean(l->truncated));
        if (r < 0) {
                json_decref(end);
                return -ENOMEM;
        }
        return request_send(l->req, WIRE_MSG_END, end);
}

int handle_file_list(struct request *req, struct error *err) {
        struct lister l = {.req = req, .out = BUF_INIT(BATCH + LINE_MAX_BYTES)};
        struct file_list_args a;
        int fd, r = file_list_args_parse(req->args, &a, err);

        if (r < 0)
                return r;
        fd = open_folder(a.path, err);
        if (fd < 0)
                return fd;
        l.recursive = a.recursive;
        l.max_entries = a.max_entries;
        r = list_folder(&l, fd, "", 0);
        if (r == 0)
                r = send_end(&l);
        buf_free(&l.out);
        return r < 0 ? error_set_errno(err, r, "Listing %s", a.path) : 1;
}
