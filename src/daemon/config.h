/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The configuration: a TOML file with defaults that need no file. Every key is a row of one table (name, type, range,
 * default), from which reading, checking and config.example.toml's test work. A wrong or unknown key is refused with
 * file, line and column and the nearest known key.
 */

#include "base/error.h"
#include "base/io.h"
#include "base/log.h"
#include "base/str.h"
#include "network/network.h"
#include "vm/platform.h"
#include "workspace/workspace.h"

struct config {
        char *path;         /* file it was read from, or NULL */
        char *state_dir;    /* state.db, agentiso.sock, lock, daemon.log, vms/, disks/ */
        char *image_dir;    /* boot/ and the base images */
        char *transfer_dir; /* the host's side of file_transfer */
        char *log_level;
        char *default_image;
        int64_t default_vcpus, default_memory_mb, default_disk_gb;
        int64_t max_vcpus, max_memory_mb, max_disk_gb, max_workspaces, max_snapshots, max_transfer_gb;
        char *accel; /* auto, kvm, tcg */
        char *qemu;  /* path, or "" for the one in PATH */
        int64_t boot_timeout_secs;
        int64_t reserve_mb;       /* free disk space that a create, a snapshot and a download must leave */
        int64_t max_templates_gb; /* of the disk; 0: no templates */
        int64_t pool_size, pool_memory_mb, pool_min_free_mb;
        int64_t default_allow_internet; /* 0 or 1 */
        char *network_mode;             /* auto, namespace, user */
        char *network_cidr;             /* e.g. 10.99.0.0/16 */
        char *network_allow_private;    /* networks, e.g. "10.1.0.0/16, 192.168.7.0/24" */
        char *network_bind;             /* IPv4 address of the host that port forwards listen on */
};
void config_clear(struct config *c);
#define _cleanup_config_ _cleanup_(config_clear)

/*
 * path NULL: $AGENTISO_CONFIG, else the first that exists of $XDG_CONFIG_HOME/agentiso/config.toml (not for root) and
 * /etc/agentiso/config.toml, else defaults. $AGENTISO_STATE_DIR and $AGENTISO_IMAGE_DIR override the file. Default
 * state_dir: /var/lib/agentiso for root, $XDG_STATE_HOME/agentiso or ~/.local/state/agentiso for others; default
 * image_dir: images below it; default transfer_dir: transfers below it.
 */
int config_load(const char *path, struct config *ret, struct error *err);
char *config_socket_path(const struct config *c);
/* `network_cidr` as numbers, in host byte order. It was checked when the configuration was read. */
void config_network(const struct config *c, uint32_t *ret_network, unsigned *ret_prefix_len);

/* `network_allow_private` likewise. How many there are. */
size_t config_exceptions(const struct config *c, struct network_range ret[NETWORK_EXCEPTIONS_MAX]);
/* `network_bind`, in host byte order. */
uint32_t config_bind(const struct config *c);

/* Bytes of a configuration file. */
#define CONFIG_FILE_MAX (64u * 1024u)

/* A row of the table, for the test of config.example.toml. */
struct config_key {
        const char *name; /* dotted: "vm.accel" */
        bool is_string;
        bool is_boolean; /* kept as 0 or 1 in an int64_t */
        size_t offset;   /* of the char * or int64_t in struct config */
        int64_t min, max;
        const char *default_string; /* NULL: depends on the user and the environment */
        int64_t default_integer;
        const char *const *choices;                         /* NULL-terminated; NULL: any */
        int (*check)(const char *value, struct error *err); /* NULL: nothing more to check */
};
const struct config_key *config_keys(size_t *ret_n);
