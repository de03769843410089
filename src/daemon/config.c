/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/config.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/json.h"
#include "daemon/toml.h"

#define SYSTEM_CONFIG "/etc/agentiso/config.toml"
#define SYSTEM_STATE_DIR "/var/lib/agentiso"

/* The longest and the shortest network prefix: two hosts behind the gateway, and all of 10.0.0.0/8. */
#define PREFIX_LEN_MIN 8u
#define PREFIX_LEN_MAX 29u

static int check_absolute(const char *value, struct error *err) {
        if (value[0] != '/')
                return error_set(err, ERROR_INVALID_ARGUMENT, "'%s' is no absolute path", value);
        if (strlen(value) >= PATH_MAX / 2)
                return error_set(err, ERROR_INVALID_ARGUMENT, "the path is longer than %d bytes", PATH_MAX / 2 - 1);
        return 0;
}

static int check_image_name(const char *value, struct error *err) {
        if (!image_name_valid(value))
                return error_set(err, ERROR_INVALID_ARGUMENT, "'%s' is no name of an image", value);
        return 0;
}

static int check_qemu(const char *value, struct error *err) {
        if (strchr(value, '/') && value[0] != '/')
                return error_set(err, ERROR_INVALID_ARGUMENT,
                                 "'%s' is neither an absolute path nor the name of a program in PATH", value);
        return 0;
}

static int parse_cidr(const char *value, unsigned prefix_min, unsigned prefix_max, uint32_t *ret_network,
                      unsigned *ret_prefix_len) {
        char address[INET_ADDRSTRLEN];
        const char *slash = strchr(value, '/');
        uint64_t prefix_len;
        struct in_addr in;

        if (!slash || (size_t) (slash - value) >= sizeof(address) || parse_u64(slash + 1, &prefix_len) < 0)
                return -EINVAL;
        memcpy(address, value, (size_t) (slash - value));
        address[slash - value] = 0;
        if (inet_pton(AF_INET, address, &in) != 1 || prefix_len < prefix_min || prefix_len > prefix_max)
                return -EINVAL;
        uint32_t host_mask = prefix_len == 32 ? 0 : UINT32_MAX >> prefix_len;
        if (ntohl(in.s_addr) & host_mask)
                return -EINVAL;
        *ret_network = ntohl(in.s_addr);
        *ret_prefix_len = (unsigned) prefix_len;
        return 0;
}

static int check_cidr(const char *value, struct error *err) {
        uint32_t network;
        unsigned prefix_len;

        if (parse_cidr(value, PREFIX_LEN_MIN, PREFIX_LEN_MAX, &network, &prefix_len) < 0)
                return error_set(err, ERROR_INVALID_ARGUMENT,
                                 "'%s' is no IPv4 network such as 10.99.0.0/16 (prefix %u to %u, host bits zero)",
                                 value, PREFIX_LEN_MIN, PREFIX_LEN_MAX);
        return 0;
}

/* "10.1.0.0/16, 192.168.7.5/32": at most `max` of them. ret NULL: only counts. */
static int parse_ranges(const char *value, struct network_range *ret, size_t max, size_t *ret_n, struct error *err) {
        _cleanup_free_ char *copy = strdup(value);
        char *rest = NULL;
        size_t n = 0;

        if (!copy)
                return -ENOMEM;
        for (char *word = strtok_r(copy, ", ", &rest); word; word = strtok_r(NULL, ", ", &rest)) {
                struct network_range range;

                if (parse_cidr(word, 1, 32, &range.network, &range.prefix_len) < 0)
                        return error_set(err, ERROR_INVALID_ARGUMENT,
                                         "'%s' is no IPv4 network such as 10.1.0.0/16 (host bits zero)", word);
                if (n == max)
                        return error_set(err, ERROR_INVALID_ARGUMENT, "there are more than %zu networks", max);
                if (ret)
                        ret[n] = range;
                n++;
        }
        *ret_n = n;
        return 0;
}

static int check_ranges(const char *value, struct error *err) {
        size_t n;

        return parse_ranges(value, NULL, NETWORK_EXCEPTIONS_MAX, &n, err);
}

static int check_address(const char *value, struct error *err) {
        struct in_addr in;

        if (inet_pton(AF_INET, value, &in) != 1)
                return error_set(err, ERROR_INVALID_ARGUMENT, "'%s' is no IPv4 address", value);
        return 0;
}

static const char *const log_levels[] = {"debug", "info", "warn", "error", NULL};
static const char *const accels[] = {"auto", "kvm", "tcg", NULL};
static const char *const network_modes[] = {"auto", "namespace", "user", NULL};

#define STRING(key, field, def, ...) \
        { .name = key, .is_string = true, .offset = offsetof(struct config, field), .default_string = def, __VA_ARGS__ }
#define BOOLEAN(key, field, def) \
        { .name = key, .is_boolean = true, .offset = offsetof(struct config, field), .default_integer = def, .max = 1 }
#define INTEGER(key, field, def, lowest, highest)                                                               \
        {                                                                                                       \
                .name = key, .offset = offsetof(struct config, field), .default_integer = def, .min = (lowest), \
                .max = (highest)                                                                                \
        }

static const struct config_key keys[] = {
        STRING("paths.state_dir", state_dir, NULL, .check = check_absolute),
        STRING("paths.image_dir", image_dir, NULL, .check = check_absolute),
        STRING("paths.transfer_dir", transfer_dir, NULL, .check = check_absolute),
        STRING("log.level", log_level, "info", .choices = log_levels),
        STRING("defaults.base_image", default_image, "debian-dev", .check = check_image_name),
        INTEGER("defaults.vcpus", default_vcpus, 2, 1, 64),
        INTEGER("defaults.memory_mb", default_memory_mb, 512, 128, 1048576),
        INTEGER("defaults.disk_gb", default_disk_gb, 10, 1, 65536),
        BOOLEAN("defaults.allow_internet", default_allow_internet, false),
        INTEGER("limits.vcpus", max_vcpus, 8, 1, 64),
        INTEGER("limits.memory_mb", max_memory_mb, 8192, 128, 1048576),
        INTEGER("limits.disk_gb", max_disk_gb, 100, 1, 65536),
        INTEGER("limits.workspaces", max_workspaces, 100, 1, 10000),
        INTEGER("limits.snapshots", max_snapshots, 20, 1, 100),
        INTEGER("limits.transfer_gb", max_transfer_gb, 64, 1, 65536),
        STRING("vm.accel", accel, "auto", .choices = accels),
        STRING("vm.qemu", qemu, "", .check = check_qemu),
        INTEGER("vm.boot_timeout_secs", boot_timeout_secs, 60, 1, 3600),
        INTEGER("storage.reserve_mb", reserve_mb, 1024, 0, 1073741824),
        INTEGER("templates.max_gb", max_templates_gb, 8, 0, 65536),
        INTEGER("pool.size", pool_size, 2, 0, 100),
        INTEGER("pool.memory_mb", pool_memory_mb, 2048, 0, 1048576),
        INTEGER("pool.min_free_mb", pool_min_free_mb, 1024, 0, 1048576),
        STRING("network.mode", network_mode, "auto", .choices = network_modes),
        STRING("network.cidr", network_cidr, "10.99.0.0/16", .check = check_cidr),
        STRING("network.allow_private", network_allow_private, "", .check = check_ranges),
        STRING("network.bind", network_bind, "127.0.0.1", .check = check_address),
};

static const char *const tables[] = {"paths",   "log",       "defaults", "limits", "vm",
                                     "storage", "templates", "pool",     "network"};

const struct config_key *config_keys(size_t *ret_n) {
        *ret_n = ARRAY_SIZE(keys);
        return keys;
}

static char **string_field(struct config *c, const struct config_key *key) {
        return (char **) ((char *) c + key->offset);
}

static int64_t *integer_field(struct config *c, const struct config_key *key) {
        return (int64_t *) ((char *) c + key->offset);
}

void config_clear(struct config *c) {
        for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
                if (keys[i].is_string)
                        free(*string_field(c, &keys[i]));
        free(c->path);
        *c = (struct config){0};
}

/* What is being read, for messages. */
struct source {
        const char *path;
        json_t *positions; /* NULL: the value comes from the environment, and path is the name of the variable */
};

/* Sets a message that begins with where `key` stands. */
static int wrong(const struct source *src, const char *key, struct error *err, const char *message) {
        json_int_t line = 0, column = 0;

        if (!src->positions)
                return error_set(err, ERROR_INVALID_ARGUMENT, "%s: %s", src->path, message);
        json_unpack(json_object_get(src->positions, key), "[I, I]", &line, &column);
        return error_set(err, ERROR_INVALID_ARGUMENT, "%s:%" JSON_INTEGER_FORMAT ":%" JSON_INTEGER_FORMAT ": %s",
                         src->path, line, column, message);
}

static _printf_(4, 5) int wrongf(const struct source *src, const char *key, struct error *err, const char *fmt, ...) {
        _cleanup_buf_ struct buf text = BUF_INIT(4096);
        va_list ap;

        va_start(ap, fmt);
        int r = buf_vprintf(&text, fmt, ap);
        va_end(ap);
        return wrong(src, key, err, r < 0 ? key : text.data);
}

/* The known key that was meant: the nearest by spelling, or the one of this name in another table. */
static const char *meant_key(const char *name) {
        const char *names[ARRAY_SIZE(keys)];
        const char *last = strrchr(name, '.');

        last = last ? last + 1 : name;
        for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
                names[i] = keys[i].name;
        const char *nearest = str_nearest(name, names, ARRAY_SIZE(names));
        for (size_t i = 0; !nearest && i < ARRAY_SIZE(keys); i++)
                if (str_eq(strchr(keys[i].name, '.') + 1, last))
                        nearest = keys[i].name;
        return nearest;
}

static int unknown(const struct source *src, const char *what, const char *name, const char *meant, struct error *err) {
        int r = meant ? wrongf(src, name, err, "unknown %s '%s'; did you mean '%s'?", what, name, meant)
                      : wrongf(src, name, err, "unknown %s '%s'", what, name);
        error_hint(err, "config.example.toml lists every key with its default.");
        return r;
}

static int set_string(struct config *c, const struct config_key *key, const char *value, const struct source *src,
                      struct error *err) {
        _cleanup_error_ struct error why = ERROR_INIT;
        bool chosen = !key->choices;

        for (const char *const *choice = key->choices; !chosen && *choice; choice++)
                chosen = str_eq(*choice, value);
        if (!chosen) {
                _cleanup_buf_ struct buf list = BUF_INIT(256);
                for (const char *const *choice = key->choices; *choice; choice++)
                        if (buf_printf(&list, "%s'%s'", list.len ? ", " : "", *choice) < 0)
                                return -ENOMEM;
                return wrongf(src, key->name, err, "'%s' is '%s' but must be one of %s", key->name, value, list.data);
        }
        if (key->check && key->check(value, &why) < 0)
                return wrongf(src, key->name, err, "'%s': %s", key->name, error_message(&why));
        return str_replace(string_field(c, key), value);
}

static int set_value(struct config *c, const struct config_key *key, json_t *value, const struct source *src,
                     struct error *err) {
        if (key->is_string) {
                if (!json_is_string(value))
                        return wrongf(src, key->name, err, "'%s' must be a string, not %s", key->name,
                                      json_type_name(value));
                if (strlen(json_string_value(value)) != json_string_length(value))
                        return wrongf(src, key->name, err, "'%s' contains a NUL character", key->name);
                return set_string(c, key, json_string_value(value), src, err);
        }
        if (key->is_boolean) {
                if (!json_is_boolean(value))
                        return wrongf(src, key->name, err, "'%s' must be true or false, not %s", key->name,
                                      json_type_name(value));
                *integer_field(c, key) = json_is_true(value);
                return 0;
        }
        if (!json_is_integer(value))
                return wrongf(src, key->name, err, "'%s' must be an integer, not %s", key->name, json_type_name(value));
        int64_t number = json_integer_value(value);
        if (number < key->min || number > key->max)
                return wrongf(src, key->name, err, "'%s' is %" PRId64 " but must be between %" PRId64 " and %" PRId64,
                              key->name, number, key->min, key->max);
        *integer_field(c, key) = number;
        return 0;
}

static int read_table(struct config *c, const char *table, json_t *values, const struct source *src,
                      struct error *err) {
        const char *key;
        json_t *value;

        json_object_foreach (values, key, value) {
                _cleanup_free_ char *name = str_printf("%s.%s", table, key);
                const struct config_key *row = NULL;

                if (!name)
                        return -ENOMEM;
                for (size_t i = 0; i < ARRAY_SIZE(keys) && !row; i++)
                        if (str_eq(keys[i].name, name))
                                row = &keys[i];
                if (!row)
                        return unknown(src, "key", name, meant_key(name), err);
                int r = set_value(c, row, value, src, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int read_document(struct config *c, json_t *document, const struct source *src, struct error *err) {
        const char *name;
        json_t *value;

        json_object_foreach (document, name, value) {
                bool known = false;
                for (size_t i = 0; i < ARRAY_SIZE(tables) && !known; i++)
                        known = str_eq(tables[i], name);
                if (!known && json_is_object(value))
                        return unknown(src, "table", name, str_nearest(name, tables, ARRAY_SIZE(tables)), err);
                if (!known)
                        return unknown(src, "key", name, meant_key(name), err);
                if (!json_is_object(value))
                        return wrongf(src, name, err, "'%s' is a table: write [%s] and the keys below it", name, name);
                int r = read_table(c, name, value, src, err);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int check_together(const struct config *c, const struct source *src, struct error *err) {
        static const struct {
                const char *name;
                size_t value, limit;
        } pairs[] = {
                {"vcpus", offsetof(struct config, default_vcpus), offsetof(struct config, max_vcpus)},
                {"memory_mb", offsetof(struct config, default_memory_mb), offsetof(struct config, max_memory_mb)},
                {"disk_gb", offsetof(struct config, default_disk_gb), offsetof(struct config, max_disk_gb)},
        };

        for (size_t i = 0; i < ARRAY_SIZE(pairs); i++) {
                int64_t value = *(const int64_t *) ((const char *) c + pairs[i].value);
                int64_t limit = *(const int64_t *) ((const char *) c + pairs[i].limit);
                if (value <= limit)
                        continue;
                /* One of the two may have no position, as it has its default. */
                _cleanup_free_ char *key = str_printf("defaults.%s", pairs[i].name);
                if (key && !json_object_get(src->positions, key)) {
                        free(key);
                        key = str_printf("limits.%s", pairs[i].name);
                }
                if (!key)
                        return -ENOMEM;
                return wrongf(src, key, err, "'defaults.%s' is %" PRId64 ", more than 'limits.%s', which is %" PRId64,
                              pairs[i].name, value, pairs[i].name, limit);
        }
        return 0;
}

static int read_text(struct config *c, const char *path, const char *text, size_t len, struct error *err) {
        _cleanup_json_ json_t *document = NULL, *positions = NULL;
        _cleanup_free_ char *message = NULL;
        unsigned line, column;

        int r = toml_to_json(text, len, &document, &positions, &message, &line, &column);
        if (r == -1)
                return error_set(err, ERROR_INVALID_ARGUMENT, "%s:%u:%u: %s", path, line, column, message);
        if (r < 0)
                return error_set(err, ERROR_INTERNAL, "out of memory while reading %s", path);
        const struct source src = {.path = path, .positions = positions};
        r = read_document(c, document, &src, err);
        return r < 0 ? r : check_together(c, &src, err);
}

static int set_defaults(struct config *c) {
        for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
                if (!keys[i].is_string)
                        *integer_field(c, &keys[i]) = keys[i].default_integer;
                else if (str_replace(string_field(c, &keys[i]), keys[i].default_string) < 0)
                        return -ENOMEM;
        }
        return 0;
}

/* $variable/agentiso, or <home>/fallback/agentiso. A relative value counts as unset (XDG Base Directory 0.8). */
static char *user_dir(const char *variable, const char *fallback) {
        const char *dir = getenv(variable);
        const char *home = getenv("HOME");

        if (dir && dir[0] == '/')
                return path_join(dir, "agentiso");
        if (!home || home[0] != '/') {
                const struct passwd *user = getpwuid(geteuid());
                home = user && user->pw_dir ? user->pw_dir : "/";
        }
        return str_printf("%s/%s/agentiso", home, fallback);
}

/* The file to read: *ret stays NULL when there is none and none was asked for. */
static int find_file(const char *path, char **ret) {
        if (!path)
                path = getenv("AGENTISO_CONFIG");
        if (!str_empty(path))
                return str_replace(ret, path);
        if (geteuid() != 0) {
                _cleanup_free_ char *dir = user_dir("XDG_CONFIG_HOME", ".config");
                _cleanup_free_ char *file = dir ? path_join(dir, "config.toml") : NULL;
                if (!file)
                        return -ENOMEM;
                if (access(file, F_OK) == 0) {
                        *ret = TAKE_PTR(file);
                        return 0;
                }
        }
        return access(SYSTEM_CONFIG, F_OK) == 0 ? str_replace(ret, SYSTEM_CONFIG) : 0;
}

static int read_file(struct config *c, struct error *err) {
        _cleanup_free_ char *text = NULL;
        size_t len;

        int r = file_read_all(c->path, CONFIG_FILE_MAX, &text, &len);
        if (r < 0)
                return error_set_errno(err, r, "cannot read the configuration %s", c->path);
        return read_text(c, c->path, text, len, err);
}

static int read_environment(struct config *c, struct error *err) {
        static const struct {
                const char *variable, *key;
        } rows[] = {{"AGENTISO_STATE_DIR", "paths.state_dir"}, {"AGENTISO_IMAGE_DIR", "paths.image_dir"}};

        for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
                const char *value = getenv(rows[i].variable);
                const struct source src = {.path = rows[i].variable};
                for (size_t k = 0; !str_empty(value) && k < ARRAY_SIZE(keys); k++) {
                        int r = str_eq(keys[k].name, rows[i].key) ? set_string(c, &keys[k], value, &src, err) : 0;
                        if (r < 0)
                                return r;
                }
        }
        return 0;
}

static int default_paths(struct config *c, struct error *err) {
        if (!c->state_dir) {
                c->state_dir = geteuid() == 0 ? strdup(SYSTEM_STATE_DIR) : user_dir("XDG_STATE_HOME", ".local/state");
                if (!c->state_dir)
                        return -ENOMEM;
                if (check_absolute(c->state_dir, err) < 0) {
                        error_hint(err, "Set paths.state_dir or AGENTISO_STATE_DIR to a shorter path.");
                        return -EINVAL;
                }
        }
        if (!c->image_dir)
                c->image_dir = path_join(c->state_dir, "images");
        if (!c->transfer_dir)
                c->transfer_dir = path_join(c->state_dir, "transfers");
        return c->image_dir && c->transfer_dir ? 0 : -ENOMEM;
}

int config_load(const char *path, struct config *ret, struct error *err) {
        _cleanup_config_ struct config c = {0};

        int r = set_defaults(&c);
        if (r >= 0)
                r = find_file(path, &c.path);
        if (r >= 0 && c.path)
                r = read_file(&c, err);
        if (r >= 0)
                r = read_environment(&c, err);
        if (r >= 0)
                r = default_paths(&c, err);
        if (r < 0)
                return error_is_set(err) ? r : error_set_errno(err, r, "cannot read the configuration");
        *ret = c;
        c = (struct config){0};
        return 0;
}

char *config_socket_path(const struct config *c) {
        return path_join(c->state_dir, "agentiso.sock");
}

void config_network(const struct config *c, uint32_t *ret_network, unsigned *ret_prefix_len) {
        *ret_network = 0;
        *ret_prefix_len = PREFIX_LEN_MAX;
        (void) parse_cidr(c->network_cidr, PREFIX_LEN_MIN, PREFIX_LEN_MAX, ret_network, ret_prefix_len);
}

size_t config_exceptions(const struct config *c, struct network_range ret[NETWORK_EXCEPTIONS_MAX]) {
        size_t n = 0;

        (void) parse_ranges(c->network_allow_private, ret, NETWORK_EXCEPTIONS_MAX, &n, NULL);
        return n;
}

uint32_t config_bind(const struct config *c) {
        struct in_addr in = {0};

        (void) inet_pton(AF_INET, c->network_bind, &in);
        return ntohl(in.s_addr);
}
