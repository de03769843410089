/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/file.h"
#include "daemon/config.h"
#include "tap.h"

static char dir[] = "/tmp/test-config-XXXXXX";
static char file[64];

static int load(const char *text, struct config *cfg, struct error *err) {
        if (file_write_atomic(file, text, strlen(text), 0600) < 0)
                return -EIO;
        return config_load(file, cfg, err);
}

/* The message that a text gives, after the name of the file; "" when there is no error. */
static const char *complaint(const char *text) {
        static char message[1024];
        _cleanup_config_ struct config cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;

        message[0] = 0;
        if (load(text, &cfg, &err) < 0) {
                const char *m = error_message(&err);
                size_t n = strlen(file);
                snprintf(message, sizeof(message), "%s", strncmp(m, file, n) == 0 ? m + n : m);
        }
        return message;
}

static void test_defaults(void) {
        _cleanup_config_ struct config cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;

        REQUIRE(load("", &cfg, &err) == 0);
        CHECK_STR(cfg.path, file);
        CHECK_STR(cfg.log_level, "info");
        CHECK_STR(cfg.default_image, "debian-dev");
        CHECK_INT(cfg.default_memory_mb, 512);
        CHECK_INT(cfg.max_workspaces, 100);
        CHECK_INT(cfg.max_transfer_gb, 64);
        CHECK_STR(cfg.network_cidr, "10.99.0.0/16");
        CHECK_STR(cfg.qemu, "");
}

static void test_values(void) {
        _cleanup_config_ struct config cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;

        REQUIRE(load("[paths]\nstate_dir = \"/srv/a\"\n[vm]\naccel = \"tcg\"\nboot_timeout_secs = 9\n"
                     "[network]\ncidr = \"192.168.64.0/20\"\n",
                     &cfg, &err) == 0);
        CHECK_STR(cfg.state_dir, "/srv/a");
        CHECK_STR(cfg.image_dir, "/srv/a/images");
        CHECK_STR(cfg.transfer_dir, "/srv/a/transfers");
        CHECK_STR(cfg.accel, "tcg");
        CHECK_INT(cfg.boot_timeout_secs, 9);

        uint32_t network;
        unsigned prefix_len;
        config_network(&cfg, &network, &prefix_len);
        CHECK_INT(network, 0xc0a84000);
        CHECK_INT(prefix_len, 20);

        char *path = config_socket_path(&cfg);
        CHECK_STR(path, "/srv/a/agentiso.sock");
        free(path);
}

static void test_transfer_values(void) {
        _cleanup_config_ struct config cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;

        REQUIRE(load("[paths]\ntransfer_dir = \"/srv/share\"\n[limits]\ntransfer_gb = 2\n", &cfg, &err) == 0);
        CHECK_STR(cfg.transfer_dir, "/srv/share");
        CHECK_INT(cfg.max_transfer_gb, 2);
        CHECK(strstr(complaint("[paths]\ntransfer_dir = \"share\"\n"), "'paths.transfer_dir': 'share' is no absolute"));
        CHECK(strstr(complaint("[limits]\ntransfer_gb = 0\n"), "'limits.transfer_gb' is 0 but must be between 1"));
}

static void test_what_is_kept_ready(void) {
        _cleanup_config_ struct config as_is = {0}, cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;

        REQUIRE(load("", &as_is, &err) == 0);
        CHECK_INT(as_is.max_snapshots, 20);
        CHECK_INT(as_is.max_templates_gb, 8);
        CHECK_INT(as_is.pool_size, 2);
        CHECK_INT(as_is.pool_memory_mb, 2048);
        CHECK_INT(as_is.pool_min_free_mb, 1024);
        REQUIRE(load("[limits]\nsnapshots = 3\n[templates]\nmax_gb = 0\n"
                     "[pool]\nsize = 0\nmemory_mb = 512\nmin_free_mb = 0\n",
                     &cfg, &err) == 0);
        CHECK_INT(cfg.max_snapshots, 3);
        CHECK_INT(cfg.max_templates_gb, 0);
        CHECK_INT(cfg.pool_size, 0);
        CHECK_INT(cfg.pool_memory_mb, 512);
        CHECK_INT(cfg.pool_min_free_mb, 0);
        CHECK_STR(complaint("[limits]\nsnapshots = 0\n"),
                  ":2:1: 'limits.snapshots' is 0 but must be between 1 and 100");
        CHECK_STR(complaint("[pool]\nsize = -1\n"), ":2:1: 'pool.size' is -1 but must be between 0 and 100");
        CHECK_STR(complaint("[template]\nmax_gb = 1\n"), ":1:2: unknown table 'template'; did you mean 'templates'?");
        CHECK_STR(complaint("[storage]\nmax_gb = 1\n"),
                  ":2:1: unknown key 'storage.max_gb'; did you mean 'templates.max_gb'?");
}

static void test_unknown_keys(void) {
        CHECK_STR(complaint("[vm]\nacel = \"kvm\"\n"), ":2:1: unknown key 'vm.acel'; did you mean 'vm.accel'?");
        CHECK_STR(complaint("\n[vmm]\n"), ":2:2: unknown table 'vmm'; did you mean 'vm'?");
        CHECK_STR(complaint("accel = \"kvm\"\n"), ":1:1: unknown key 'accel'; did you mean 'vm.accel'?");
        CHECK_STR(complaint("[log]\n  colour = 1\n"), ":2:3: unknown key 'log.colour'");
        CHECK_STR(complaint("vm = 3\n"), ":1:1: 'vm' is a table: write [vm] and the keys below it");
}

static void test_wrong_values(void) {
        CHECK_STR(complaint("[vm]\naccel = 1\n"), ":2:1: 'vm.accel' must be a string, not integer");
        CHECK_STR(complaint("[vm]\naccel = \"xen\"\n"),
                  ":2:1: 'vm.accel' is 'xen' but must be one of 'auto', 'kvm', 'tcg'");
        CHECK_STR(complaint("[defaults]\nvcpus = 0\n"), ":2:1: 'defaults.vcpus' is 0 but must be between 1 and 64");
        CHECK_STR(complaint("[defaults]\nvcpus = \"2\"\n"), ":2:1: 'defaults.vcpus' must be an integer, not string");
        CHECK_STR(complaint("[paths]\nstate_dir = \"x\"\n"), ":2:1: 'paths.state_dir': 'x' is no absolute path");
        CHECK_STR(complaint("[vm]\nqemu = \"a\\u0000b\"\n"), ":2:1: 'vm.qemu' contains a NUL character");
        CHECK(strstr(complaint("[defaults]\nbase_image = \"../x\"\n"), ":2:1: 'defaults.base_image'"));
        CHECK(strstr(complaint("[vm]\nqemu = \"bin/qemu\"\n"), ":2:1: 'vm.qemu'"));
}

static void test_networks(void) {
        static const char *const bad[] = {
                "10.99.0.0", "10.99.0.1/16", "10.99.0.0/7", "10.99.0.0/30", "10.99.0/16", "::/64",
                "",          "10.0.0.0/",    "10.0.0.0/ 8"};
        char text[128];

        for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
                snprintf(text, sizeof(text), "[network]\ncidr = \"%s\"\n", bad[i]);
                CHECK(strstr(complaint(text), ":2:1: 'network.cidr'"));
        }
        CHECK_STR(complaint("[network]\ncidr = \"10.0.0.0/8\"\n"), "");
}

static void test_defaults_within_limits(void) {
        CHECK_STR(complaint("[limits]\nmemory_mb = 256\n"),
                  ":2:1: 'defaults.memory_mb' is 512, more than 'limits.memory_mb', which is 256");
        CHECK_STR(complaint("[defaults]\nvcpus = 9\n"),
                  ":2:1: 'defaults.vcpus' is 9, more than 'limits.vcpus', which is 8");
        CHECK_STR(complaint("[defaults]\nvcpus = 9\n[limits]\nvcpus = 9\n"), "");
}

static void test_environment(void) {
        _cleanup_config_ struct config cfg = {0}, second = {0};
        _cleanup_error_ struct error err = ERROR_INIT;

        setenv("AGENTISO_STATE_DIR", "/env/state", 1);
        setenv("AGENTISO_IMAGE_DIR", "/env/images", 1);
        CHECK_INT(load("[paths]\nstate_dir = \"/srv/a\"\n", &cfg, &err), 0);
        CHECK_STR(cfg.state_dir, "/env/state");
        CHECK_STR(cfg.image_dir, "/env/images");

        setenv("AGENTISO_STATE_DIR", "relative", 1);
        CHECK(load("", &second, &err) < 0);
        CHECK_STR(error_message(&err), "AGENTISO_STATE_DIR: 'paths.state_dir': 'relative' is no absolute path");
        unsetenv("AGENTISO_STATE_DIR");
        unsetenv("AGENTISO_IMAGE_DIR");
}

static void test_missing_file(void) {
        _cleanup_config_ struct config cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;

        CHECK_INT(config_load("/nonexistent/agentiso.toml", &cfg, &err), -ENOENT);
        CHECK(strstr(error_message(&err), "/nonexistent/agentiso.toml"));
}

static void test_named_by_environment(void) {
        _cleanup_config_ struct config cfg = {0};
        _cleanup_error_ struct error err = ERROR_INIT;

        REQUIRE(file_write_atomic(file, "[log]\nlevel = \"debug\"\n", 22, 0600) == 0);
        setenv("AGENTISO_CONFIG", file, 1);
        CHECK_INT(config_load(NULL, &cfg, &err), 0);
        CHECK_STR(cfg.log_level, "debug");
        unsetenv("AGENTISO_CONFIG");
}

/* In the example a key with its default is a comment without a blank: "#level = ...". */
static char *uncomment(const char *text) {
        char *out = calloc(1, strlen(text) + 1), *to = out;

        for (const char *c = text; out && *c; c++)
                if (*c != '#' || (c > text && c[-1] != '\n') || !islower((unsigned char) c[1]))
                        *to++ = *c;
        return out;
}

static void check_default(const struct config *cfg, const struct config_key *key) {
        const char *base = (const char *) cfg;

        if (!key->is_string)
                CHECK_INT(*(const int64_t *) (base + key->offset), key->default_integer);
        else if (key->default_string)
                CHECK_STR(*(char *const *) (base + key->offset), key->default_string);
}

static void test_example(void) {
        _cleanup_free_ char *example = NULL;
        _cleanup_config_ struct config cfg = {0}, as_is = {0};
        _cleanup_error_ struct error err = ERROR_INIT;
        size_t n;

        REQUIRE(file_read_all(EXAMPLE, CONFIG_FILE_MAX, &example, NULL) == 0);
        CHECK_INT(load(example, &as_is, &err), 0);
        CHECK_STR(error_is_set(&err) ? error_message(&err) : "", "");
        _cleanup_free_ char *text = uncomment(example);
        REQUIRE(text);
        CHECK_INT(load(text, &cfg, &err), 0);
        CHECK_STR(error_is_set(&err) ? error_message(&err) : "", "");
        CHECK_STR(cfg.state_dir, "/var/lib/agentiso");
        CHECK_STR(cfg.image_dir, "/var/lib/agentiso/images");

        const struct config_key *keys = config_keys(&n);
        for (size_t i = 0; i < n; i++) {
                char line[80];
                snprintf(line, sizeof(line), "\n#%s = ", strchr(keys[i].name, '.') + 1);
                if (!strstr(example, line))
                        printf("# config.example.toml lacks %s\n", keys[i].name);
                CHECK(strstr(example, line));
                check_default(&cfg, &keys[i]);
        }
}

int main(void) {
        if (!mkdtemp(dir))
                return 1;
        snprintf(file, sizeof(file), "%s/config.toml", dir);
        unsetenv("AGENTISO_STATE_DIR");
        unsetenv("AGENTISO_IMAGE_DIR");
        unsetenv("AGENTISO_CONFIG");
        RUN(test_defaults);
        RUN(test_values);
        RUN(test_transfer_values);
        RUN(test_what_is_kept_ready);
        RUN(test_unknown_keys);
        RUN(test_wrong_values);
        RUN(test_networks);
        RUN(test_defaults_within_limits);
        RUN(test_environment);
        RUN(test_missing_file);
        RUN(test_named_by_environment);
        RUN(test_example);
        (void) rm_rf(dir);
        return tap_done();
}
