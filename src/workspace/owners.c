/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "workspace/core-internal.h"

bool owner_alive_locked(struct core *core, const char *owner) {
        for (struct owner *o = core->owners; o; o = o->next)
                if (str_eq(o->id, owner))
                        return true;
        return false;
}

int core_owner_add(struct core *core, char ret_id[UUID_LEN + 1]) {
        struct owner *o = calloc(1, sizeof(*o));
        if (!o)
                return -ENOMEM;
        int r = uuid_new(o->id);
        if (r < 0) {
                free(o);
                return r;
        }
        LOCK(&core->lock);
        if (core->n_owners >= OWNERS_MAX) {
                free(o);
                return -EUSERS;
        }
        memcpy(ret_id, o->id, sizeof(o->id));
        o->next = core->owners;
        core->owners = o;
        core->n_owners++;
        return 0;
}

void core_owner_gone(struct core *core, const char *owner) {
        LOCK(&core->lock);
        for (struct owner **at = &core->owners; *at; at = &(*at)->next) {
                struct owner *o = *at;
                if (!str_eq(o->id, owner))
                        continue;
                *at = o->next;
                core->n_owners--;
                free(o);
                return;
        }
}

static int fail_not_owner(const char *name, struct error *err) {
        int r = error_set(err, ERROR_NOT_OWNER, "Workspace \"%s\" belongs to another client that is connected", name);
        error_hint(err, "Make your own with workspace_create. When that client has gone, the next call that uses it "
                        "adopts it.");
        return r;
}

static int fail_orphan(const char *name, struct error *err) {
        int r = error_set(err, ERROR_NOT_OWNER, "Workspace \"%s\" belongs to a client that is gone", name);
        error_hint(err, "Adopt it first: any call that uses it does, workspace_start for example.");
        return r;
}

int ws_authorize(struct core *core, const char *ref, const char *owner, bool adopt, char ret_id[UUID_LEN + 1],
                 bool *ret_adopted, struct error *err) {
        _cleanup_workspace_ struct workspace *ws = NULL;
        _cleanup_free_ char *name = NULL;

        *ret_adopted = false;
        {
                LOCK(&core->lock);
                struct workspace *found = registry_find_locked(core, ref);
                if (!found)
                        return registry_not_found_locked(core, ref, err);
                memcpy(ret_id, found->id, sizeof(found->id));
                if (str_eq(found->row.owner, owner))
                        return 0;
                if (owner_alive_locked(core, found->row.owner))
                        return fail_not_owner(found->row.name, err);
                if (!adopt)
                        return fail_orphan(found->row.name, err);
                name = strdup(found->row.name);
                found->refs++;
                ws = found;
        }
        int r = workspace_adopt(ws, owner, err);
        if (r == -EPERM)
                return fail_not_owner(name ? name : ref, err);
        if (r < 0)
                return r;
        *ret_adopted = true;
        return 0;
}
