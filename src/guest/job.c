/* SPDX-License-Identifier: Apache-2.0 */
#include "guest/job.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "base/str.h"
#include "guest/agent.h"
#include "guest/tree.h"

#define EMPTY_MS 20         /* for the last processes of an ended job to be gone */
#define VEOF_DEFAULT 4      /* Ctrl-D */
#define TAIL_LOOKED_AT 4096 /* bytes of output in which the newest line is looked for */

struct job *job_ref(struct job *j) {
        atomic_fetch_add(&j->refs, 1);
        return j;
}

void job_unref(struct job *j) {
        if (!j || atomic_fetch_sub(&j->refs, 1) != 1)
                return;
        for (size_t i = 0; i < JOB_STREAMS; i++) {
                close_fd(j->stream[i].fd);
                spool_free(&j->stream[i].spool);
        }
        close_fd(j->in_fd);
        close_fd(j->wake_fd);
        child_release(j->child);
        cgroup_release(&j->agent->cgroups, &j->cgroup);
        pthread_mutex_destroy(&j->lock);
        free(j);
}

/* ---- state ---- */

bool job_ended(struct job *j, struct job_end *ret) {
        LOCK(&j->lock);
        if (j->ended && ret)
                *ret = j->end;
        return j->ended;
}

void job_set_end(struct job *j, const struct job_end *end, int64_t duration_ms) {
        LOCK(&j->lock);
        j->ended = true;
        j->end = *end;
        j->end.timed_out = j->timed_out;
        j->duration_ms = duration_ms;
        j->in_fd = close_fd(j->in_fd);
        j->wake_fd = close_fd(j->wake_fd);
}

int64_t job_duration_ms(struct job *j) {
        LOCK(&j->lock);
        return j->ended ? j->duration_ms : (monotonic_ns() - j->started_ns) / NSEC_PER_MSEC;
}

uint64_t job_id(struct job *j) {
        LOCK(&j->agent->jobs.lock);
        return j->id;
}

/* ---- news ---- */

int job_waiter_begin(struct job *j, unsigned news, struct job_waiter *w) {
        bool ended;

        *w = (struct job_waiter){.token = cancel_new(), .news = news};
        if (!w->token)
                return -ENOMEM;
        pthread_mutex_lock(&j->lock);
        ended = j->ended;
        if (!ended) {
                w->next = j->waiters;
                w->pprev = &j->waiters;
                if (w->next)
                        w->next->pprev = &w->next;
                j->waiters = w;
        }
        pthread_mutex_unlock(&j->lock);
        if (ended && (news & JOB_NEWS_END))
                cancel_fire(w->token);
        return 0;
}

static void waiter_unlink_locked(struct job_waiter *w) {
        if (!w->pprev)
                return;
        *w->pprev = w->next;
        if (w->next)
                w->next->pprev = w->pprev;
        w->pprev = NULL;
}

void job_waiter_end(struct job *j, struct job_waiter *w) {
        pthread_mutex_lock(&j->lock);
        waiter_unlink_locked(w);
        pthread_mutex_unlock(&j->lock);
        cancel_unref(TAKE_PTR(w->token));
}

/* The token of one that wants such news, with a reference: the waiter itself may be gone when it is fired. */
static struct cancel *take_waiter(struct job *j, unsigned news) {
        LOCK(&j->lock);
        for (struct job_waiter *w = j->waiters; w; w = w->next)
                if (w->news & news) {
                        waiter_unlink_locked(w);
                        return cancel_ref(w->token);
                }
        return NULL;
}

void job_wake(struct job *j, unsigned news) {
        struct cancel *token;

        while ((token = take_waiter(j, news))) {
                cancel_fire(token);
                cancel_unref(token);
        }
}

void job_wake_thread(struct job *j) {
        LOCK(&j->lock);
        if (j->wake_fd >= 0)
                (void) eventfd_write(j->wake_fd, 1);
}

/* ---- the newest line ---- */

/* Behind an escape sequence that begins at s[i]: ESC [ ... letter, ESC ] ... BEL or ESC \, ESC and one more. */
static size_t skip_escape(const char *s, size_t i, size_t n) {
        if (++i >= n)
                return n;
        if (s[i] == '[') {
                while (++i < n && (unsigned char) s[i] < 0x40)
                        ;
                return MIN(i + 1, n);
        }
        if (s[i] == ']') {
                while (++i < n && s[i] != '\a' && s[i] != '\033')
                        ;
                return i < n && s[i] == '\033' ? MIN(i + 2, n) : MIN(i + 1, n);
        }
        return i + 1;
}

/* Without escape sequences, control characters and blanks around it. */
static size_t clean_line(const char *s, size_t n, char *ret, size_t max) {
        _cleanup_buf_ struct buf raw = BUF_INIT(TAIL_LOOKED_AT), text = BUF_INIT(4 * TAIL_LOOKED_AT);
        size_t replaced, start;

        for (size_t i = 0; i < n;)
                if (s[i] == '\033') {
                        i = skip_escape(s, i, n);
                } else {
                        unsigned char c = (unsigned char) (s[i] == '\t' ? ' ' : s[i]);

                        if (c >= ' ' && c != 0x7f && buf_append_byte(&raw, c) < 0)
                                return 0;
                        i++;
                }
        if (!raw.data || utf8_sanitize(&text, raw.data, raw.len, &replaced) < 0 || !text.data)
                return 0;
        start = strspn(text.data, " ");
        n = utf8_floor(text.data + start, MIN(text.len - start, max));
        while (n > 0 && text.data[start + n - 1] == ' ')
                n--;
        memcpy(ret, text.data + start, n);
        return n;
}

size_t job_newest_line(struct job *j, char *ret, size_t max) {
        char tail[TAIL_LOOKED_AT];
        size_t end = spool_tail(&j->stream[atomic_load(&j->newest)].spool, tail, sizeof(tail));

        while (end > 0) {
                size_t begin = end, n;

                while (begin > 0 && tail[begin - 1] != '\n' && tail[begin - 1] != '\r')
                        begin--;
                n = clean_line(tail + begin, end - begin, ret, max);
                if (n > 0)
                        return n;
                end = begin > 0 ? begin - 1 : 0;
        }
        return 0;
}

/* ---- standard input ---- */

bool job_write_begin(struct job *j) {
        LOCK(&j->lock);
        if (j->writing)
                return false;
        return j->writing = true;
}

void job_write_end(struct job *j) {
        pthread_mutex_lock(&j->lock);
        j->writing = j->want_room = false;
        pthread_mutex_unlock(&j->lock);
        job_wake(j, JOB_NEWS_INPUT);
}

/* Under the lock, as the end of the job closes the descriptor; it is non-blocking. */
ssize_t job_write(struct job *j, const void *data, size_t n) {
        ssize_t k;

        LOCK(&j->lock);
        if (j->in_fd < 0)
                return -EPIPE;
        do
                k = write(j->in_fd, data, n);
        while (k < 0 && errno == EINTR);
        if (k > 0)
                return k;
        if (k == 0 || errno == EAGAIN)
                return -EAGAIN;
        if (!j->pty)
                j->in_fd = close_fd(j->in_fd);
        return -EPIPE;
}

int job_write_eof(struct job *j) {
        struct termios t;
        unsigned char c = VEOF_DEFAULT;
        ssize_t k;

        if (j->pty) {
                pthread_mutex_lock(&j->lock);
                if (j->in_fd >= 0 && tcgetattr(j->in_fd, &t) == 0 && t.c_cc[VEOF] != _POSIX_VDISABLE)
                        c = t.c_cc[VEOF];
                pthread_mutex_unlock(&j->lock);
                k = job_write(j, &c, 1);
                return k < 0 ? (int) k : 0;
        }
        LOCK(&j->lock);
        if (j->in_fd < 0)
                return -EPIPE;
        j->in_fd = close_fd(j->in_fd);
        return 0;
}

void job_want_room(struct job *j) {
        pthread_mutex_lock(&j->lock);
        j->want_room = true;
        pthread_mutex_unlock(&j->lock);
        job_wake_thread(j);
}

int job_resize(struct job *j, unsigned cols, unsigned rows) {
        struct winsize size = {0};

        if (!j->pty)
                return -ENOTTY;
        LOCK(&j->lock);
        if (j->in_fd < 0)
                return -EPIPE;
        if (ioctl(j->in_fd, TIOCGWINSZ, &size) < 0)
                return -errno;
        if (cols > 0)
                size.ws_col = (unsigned short) cols;
        if (rows > 0)
                size.ws_row = (unsigned short) rows;
        return ioctl(j->in_fd, TIOCSWINSZ, &size) < 0 ? -errno : 0;
}

/* ---- signals ---- */

static struct child *child_get(struct job *j) {
        LOCK(&j->lock);
        if (j->child)
                j->child_users++;
        return j->child;
}

void job_child_put(struct job *j) {
        struct child *gone = NULL;

        pthread_mutex_lock(&j->lock);
        if (--j->child_users == 0)
                gone = TAKE_PTR(j->child);
        pthread_mutex_unlock(&j->lock);
        child_release(gone);
}

/* The cgroup's folder with a descriptor of the caller's own. */
static struct cgroup cgroup_get(struct job *j) {
        struct cgroup c = CGROUP_INIT;

        LOCK(&j->lock);
        if (j->cgroup.fd >= 0) {
                c = j->cgroup;
                c.fd = fcntl(j->cgroup.fd, F_DUPFD_CLOEXEC, 0);
        }
        return c;
}

/* What is found without a cgroup: as long as the shell runs, its number is its own, and so is that of its session. */
static int signal_tree(struct child *child, int sig, deadline_t deadline, size_t *ret_processes) {
        *ret_processes = 0;
        if (sig == SIGKILL)
                return child_ended(child, NULL) ? 0 : tree_kill(child, deadline, ret_processes);
        *ret_processes = child_signal_group(child, sig) == 0 ? 1 : 0;
        return 0;
}

/* A command can move processes to other cgroups: its shell is found nevertheless, with all that is in its session, and
 * so is what is still in the shell's process group. */
static int signal_outside(const struct cgroup *c, struct child *child, int sig, deadline_t deadline,
                          size_t *ret_processes) {
        *ret_processes = 0;
        if (!cgroup_holds(c, child_pid(child)))
                return signal_tree(child, sig, deadline, ret_processes);
        if (sig == SIGKILL)
                (void) child_signal_group(child, sig);
        return 0;
}

static int signal_cgroup(const struct cgroup *c, struct child *child, int sig, deadline_t deadline,
                         size_t *ret_processes) {
        size_t outside = 0;
        int r = 0, k = 0;

        /* Before the shell is killed, by which alone the rest can be found then. */
        if (sig == SIGKILL && !cgroup_can_kill(c))
                return -EOPNOTSUPP;
        *ret_processes = cgroup_signal(c, sig == SIGKILL ? 0 : sig);
        if (child)
                r = signal_outside(c, child, sig, deadline, &outside);
        *ret_processes += outside;
        if (sig == SIGKILL)
                k = cgroup_kill(c, deadline);
        if (k == -EOPNOTSUPP || k == -ENODEV)
                k = 0; /* the job has ended meanwhile, and its folder is gone */
        return k < 0 ? k : r;
}

int job_signal(struct job *j, int sig, size_t *ret_processes) {
        deadline_t deadline = deadline_in_ms(JOB_KILL_MAX_MS);
        struct cgroup c = cgroup_get(j);
        _cleanup_close_ int fd = c.fd;
        struct child *child = child_get(j);
        size_t n = 0;
        int r = fd >= 0 ? signal_cgroup(&c, child, sig, deadline, &n) : -EOPNOTSUPP;

        if (r == -EOPNOTSUPP)
                r = child ? signal_tree(child, sig, deadline, &n) : 0;
        if (child)
                job_child_put(j);
        if (ret_processes)
                *ret_processes = n;
        return r;
}

void job_destroy(struct job *j) {
        struct job_waiter w;
        struct op op = op_timeout(JOB_KILL_MAX_MS);

        job_signal(j, SIGKILL, NULL);
        if (job_waiter_begin(j, JOB_NEWS_END, &w) == 0) {
                op.cancel = w.token;
                wait_fd(-1, 0, &op);
                job_waiter_end(j, &w);
        }
        if (job_ended(j, NULL))
                return;
        j->given_up = true;
        job_wake_thread(j);
}

void job_settle(struct job *j) {
        struct cgroup c = cgroup_get(j);
        _cleanup_close_ int fd = c.fd;

        if (fd < 0 || cgroup_wait_empty(&c, deadline_in_ms(EMPTY_MS)) < 0)
                return;
        pthread_mutex_lock(&j->lock);
        c = j->cgroup;
        j->cgroup.fd = -1;
        pthread_mutex_unlock(&j->lock);
        cgroup_release(&j->agent->cgroups, &c);
}
