/* SPDX-License-Identifier: Apache-2.0 */
#include "network/policy-sets.h"

#include "network/rules.h"

#define PORT_BITS 16
#define QUAD "%u.%u.%u.%u"
#define QUAD_OF(a) (a) >> 24, (a) >> 16 & 0xff, (a) >> 8 & 0xff, (a) &0xff

static const char *const names[_POLICY_SET_MAX] = {
        [POLICY_INTERNET] = "internet",
        [POLICY_INTER_VM] = "inter_vm",
        [POLICY_OPEN_PORTS] = "open_ports",
        [POLICY_HOST] = "host",
};

/* ---- contents ---- */

void policy_sets_clear(struct policy_sets *s) {
        for (size_t i = 0; i < _POLICY_SET_MAX; i++)
                free(s->elements[i]);
        *s = (struct policy_sets){0};
}

static void put(struct policy_sets *s, enum policy_set set, uint32_t address, uint16_t port) {
        s->elements[set][s->n[set]++] = (uint64_t) address << PORT_BITS | port;
}

static int compare(const void *a, const void *b) {
        const uint64_t *x = a, *y = b;

        return (*x > *y) - (*x < *y);
}

static void sort(struct policy_sets *s, enum policy_set set) {
        uint64_t *v = s->elements[set];
        size_t kept = 0;

        qsort(v, s->n[set], sizeof(*v), compare);
        for (size_t i = 0; i < s->n[set]; i++)
                if (kept == 0 || v[kept - 1] != v[i])
                        v[kept++] = v[i];
        s->n[set] = kept;
}

static int make_room(struct policy_sets *s, const size_t n[_POLICY_SET_MAX]) {
        for (size_t i = 0; i < _POLICY_SET_MAX; i++) {
                s->elements[i] = calloc(MAX(n[i], (size_t) 1), sizeof(*s->elements[i]));
                if (!s->elements[i])
                        return -ENOMEM;
        }
        return 0;
}

int policy_sets_make(const struct network_policy *list, size_t n, const uint32_t *host, size_t n_host,
                     struct policy_sets *ret) {
        _cleanup_policy_sets_ struct policy_sets s = {0};
        size_t room[_POLICY_SET_MAX] = {n, n, 0, n_host};

        for (size_t i = 0; i < n; i++)
                room[POLICY_OPEN_PORTS] += list[i].n_ports;
        int r = make_room(&s, room);
        if (r < 0)
                return r;
        for (size_t i = 0; i < n; i++) {
                if (list[i].internet)
                        put(&s, POLICY_INTERNET, list[i].address, 0);
                if (list[i].inter_vm)
                        put(&s, POLICY_INTER_VM, list[i].address, 0);
                for (size_t j = 0; j < list[i].n_ports; j++)
                        put(&s, POLICY_OPEN_PORTS, list[i].address, list[i].ports[j]);
        }
        for (size_t i = 0; i < n_host; i++)
                put(&s, POLICY_HOST, host[i], 0);
        for (enum policy_set set = 0; set < _POLICY_SET_MAX; set++)
                sort(&s, set);
        *ret = s;
        s = (struct policy_sets){0};
        return 0;
}

/* ---- the way from one to the other ---- */

struct writer {
        struct buf text;
        size_t elements; /* in the text */
        int (*load)(const struct buf *text, void *arg);
        void *arg;
};

static int finish(struct writer *w) {
        int r = w->text.len > 0 ? w->load(&w->text, w->arg) : 0;

        buf_clear(&w->text);
        w->elements = 0;
        return r;
}

static int write_element(struct writer *w, enum policy_set set, uint64_t element) {
        const uint32_t address = (uint32_t) (element >> PORT_BITS);
        const unsigned port = element & ((1U << PORT_BITS) - 1);

        if (set == POLICY_OPEN_PORTS)
                return buf_printf(&w->text, QUAD " . tcp . %u, " QUAD " . udp . %u", QUAD_OF(address), port,
                                  QUAD_OF(address), port);
        return buf_printf(&w->text, QUAD, QUAD_OF(address));
}

/* One command for the elements of `of` that `without` does not have, or several with a transaction's end in between. */
static int write_set(struct writer *w, const char *verb, enum policy_set set, const struct policy_sets *of,
                     const struct policy_sets *without) {
        bool open = false;
        size_t j = 0;
        int r = 0;

        for (size_t i = 0; r >= 0 && i < of->n[set]; i++) {
                const uint64_t element = of->elements[set][i];

                while (without && j < without->n[set] && without->elements[set][j] < element)
                        j++;
                if (without && j < without->n[set] && without->elements[set][j] == element)
                        continue;
                r = open ? buf_append_str(&w->text, ", ")
                         : buf_printf(&w->text, "%s element ip agentiso %s { ", verb, names[set]);
                if (r >= 0)
                        r = write_element(w, set, element);
                open = true;
                if (r >= 0 && ++w->elements == RULES_ELEMENTS_MAX) {
                        open = false;
                        r = buf_append_str(&w->text, " }\n");
                        r = r < 0 ? r : finish(w);
                }
        }
        return r >= 0 && open ? buf_append_str(&w->text, " }\n") : r;
}

static int write_change(struct writer *w, const struct policy_sets *from, const struct policy_sets *to) {
        int r = 0;

        for (enum policy_set set = 0; r >= 0 && set < _POLICY_SET_MAX; set++)
                r = from ? write_set(w, "delete", set, from, to)
                         : buf_printf(&w->text, "flush set ip agentiso %s\n", names[set]);
        for (enum policy_set set = 0; r >= 0 && set < _POLICY_SET_MAX; set++)
                r = write_set(w, "add", set, to, from);
        return r < 0 ? r : finish(w);
}

int policy_sets_change(const struct policy_sets *from, const struct policy_sets *to,
                       int (*load)(const struct buf *text, void *arg), void *arg) {
        struct writer w = {.text = BUF_INIT(RULES_TEXT_MAX), .load = load, .arg = arg};

        int r = write_change(&w, from, to);
        buf_free(&w.text);
        return r;
}
