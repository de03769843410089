/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/pending.h"

#include <string.h>

#include "base/str.h"

void pending_free(struct pending *p) {
        for (size_t i = 0; i < p->n; i++)
                free(p->v[i].id);
        free(p->v);
        *p = (struct pending){0};
}

void pending_add(struct pending *p, const char *id, uint64_t begin) {
        if (p->n == PENDING_MAX)
                return;
        if (p->n == p->cap) {
                size_t cap = MAX(p->cap * 2, (size_t) 16);
                struct pending_request *v = reallocarray(p->v, cap, sizeof(*v));
                if (!v)
                        return;
                p->v = v;
                p->cap = cap;
        }
        char *copy = strdup(id);
        if (copy)
                p->v[p->n++] = (struct pending_request){.id = copy, .begin = begin};
}

static char *take_at(struct pending *p, size_t i) {
        char *id = p->v[i].id;

        memmove(&p->v[i], &p->v[i + 1], (p->n - i - 1) * sizeof(*p->v));
        p->n--;
        return id;
}

bool pending_has(const struct pending *p, const char *id) {
        for (size_t i = 0; i < p->n; i++)
                if (str_eq(p->v[i].id, id))
                        return true;
        return false;
}

void pending_remove(struct pending *p, const char *id) {
        for (size_t i = 0; i < p->n; i++)
                if (str_eq(p->v[i].id, id)) {
                        free(take_at(p, i));
                        return;
                }
}

char *pending_take_before(struct pending *p, uint64_t before, const char *keep) {
        for (size_t i = 0; i < p->n; i++)
                if (p->v[i].begin < before && !(keep && str_eq(p->v[i].id, keep)))
                        return take_at(p, i);
        return NULL;
}
