/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Machines that go on from a saved state instead of booting.
 *
 * A kernel boot costs seconds under emulation. It is paid once for a kind of machine, by a *template*: a VM whose
 * memory is a file (VM_MEMORY_SHARED) boots until its agent serves, then vm_save_template() stops it for good and saves
 * what else there is, the devices: some 60 KiB. The memory file never changes from then on. A *child*
 * (VM_MEMORY_PRIVATE, VM_STATE_TEMPLATE) maps it copy on write, loads the devices and goes on at that instant. Children
 * share the page cache, and cost what they write themselves.
 *
 * A *snapshot* of a running child, vm_snapshot(), is its devices and the pages that are its own. The child stands still
 * while QEMU writes the former (some 24 KiB) and we copy the latter (memory.h), and for changing its disk to a new
 * overlay, so that the old one is frozen at the same instant. A *fork* (VM_STATE_DEVICES) maps the template's memory,
 * too, and the pages are laid over it before it goes on; or many forks share a memory file that memory_image_build()
 * makes of the two. A fork is a child: it can be snapshotted the same way.
 *
 *     template     migrate, capability x-ignore-shared: everything but the shared memory
 *     snapshot     xen-save-devices-state, which needs no Xen: migrate would write private memory too
 *     whole state  migrate, into one file: for machines whose memory is anonymous, and for a QEMU or a host on which a
 *                  step of the snapshot does not work. The machine stands still until all of its memory is written
 *
 * A state fits only a machine made in the same way: the same devices in the same order (a disk, if it had one, of
 * whatever size, until the guest has loaded its driver), the same number of processors and memory, the same QEMU.
 * vm_template_key() has all of it in one text.
 *
 * QEMU gets the files as descriptors, over its QMP socket: it may run where it can open none of them. It may not start
 * processes, so there are no "exec:" URIs.
 *
 * Whatever goes wrong, the machine that is saved goes on: the way back to `cont` depends on nobody's deadline or token.
 * Only when QEMU itself does not answer it stays as it is, and the error says so. After a daemon that was killed in the
 * middle, vm_attach() lets the machine go on. vm_disk_file() tells whether it is on the new overlay.
 *
 * What a guest must be given after it resumes, because its copies have the same: entropy, clock, names, address. Its
 * monotonic clock goes on from the instant of the state. Its agent still believes in the connection that it had then;
 * the handshake puts that right.
 */

#include "base/buf.h"
#include "vm/vm.h"

/* Saves the state of a VM with shared memory in a new file, and makes both files last. The connection to its agent is
 * ended first: hold no other reference to it. The VM then stands still and can only be killed. On failure it goes on
 * and the file is removed. */
int vm_save_template(struct vm *vm, const char *state_path, const struct op *op, struct error *err);

struct vm_snapshot_args {
        const char *state_path;   /* new file. NULL: the disk alone, which changes to overlay_path */
        const char *pages_path;   /* new file: the machine's own pages of memory. NULL: save the whole state */
        const char *overlay_path; /* an empty qcow2 overlay of the machine's disk, on which it goes on. NULL: no disk,
                                     or it stays as it is, and then is no part of the snapshot */
        bool transient;           /* the files need not outlive the host: they are not flushed */
};

struct vm_snapshot_result {
        enum vm_state_kind kind; /* VM_STATE_DEVICES, or VM_STATE_FULL: then there is no pages file */
        int64_t pause_ns;        /* for which the machine stood still */
        bool switched;           /* The disk is on the overlay now: set on failure, too. Also when nobody can tell,
                                    because QEMU does not answer: an overlay without content is as good as the disk */
        uint64_t state_bytes, pages_bytes;
};

/* Saves a running machine, which goes on. Falls back to the whole state where the short way does not work. Files last
 * when it returns, unless they are transient; on failure they are removed. For the disk alone the machine does not even
 * stand still: QEMU holds its requests back, and what it has written and not flushed is there as after a loss of power
 * (agent_freeze() for more than that). *ret is written on failure, too. One at a time: ERROR_CONFLICT. */
int vm_snapshot(struct vm *vm, const struct vm_snapshot_args *args, const struct op *op, struct vm_snapshot_result *ret,
                struct error *err);

/* The file on which the machine's disk is now (owned by the caller): the overlay of the last snapshot that got so far,
 * whether or not it succeeded. ERROR_NOT_FOUND: it has no disk. */
int vm_disk_file(struct vm *vm, const struct op *op, char **ret, struct error *err);

/* Appends all on which a template of this spec depends, as lines of text: two equal texts mean that children of one are
 * children of the other. Of the spec count vcpus, memory and which devices there are; names, paths and addresses do
 * not. Bound of the text: VM_KEY_MAX. */
#define VM_KEY_MAX (32u * 1024u)
int vm_template_key(const struct platform *p, const struct vm_spec *spec, struct buf *out, struct error *err);
/* The same for the state of a machine that has booted: its kernel, its agent and the rate of its clock are in it. */
int vm_machine_key(const struct platform *p, const struct vm_spec *spec, struct buf *out, struct error *err);
