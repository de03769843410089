/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What snapshot-create.c, snapshot-view.c, restore.c and fork.c share. */

#include "workspace/core-internal.h"

/* Saves a claimed, settled workspace, which goes on; the snapshot is ready and pinned. name NULL: one that goes when
 * nothing stands on it. transient: its memory need not outlive the host. On failure the workspace is as it was. */
int workspace_snapshot(struct workspace *ws, const char *name, bool memory, bool transient, const struct op *op,
                       struct snapshot **ret, struct error *err);
/* Undoes a snapshot that was being taken when the daemon, or the store, failed; and all of a claimed workspace. */
int snapshot_undo(struct snapshot *s, struct workspace *ws, const struct op *op, struct error *err);
int workspace_undo_snapshots(struct workspace *ws, const struct op *op, struct error *err);
/* Pins the workspace's snapshot of that name; not_found with the nearest one. */
int workspace_find_snapshot(struct workspace *ws, const char *name, struct snapshot **ret, struct error *err);
/* Whether machines can go on from its memory: 0, or unsupported with what to do. */
int snapshot_check_memory(struct snapshot *s, const struct op *op, struct error *err);
int snapshot_view(struct snapshot *s, struct snap_view *ret, struct error *err);
