/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over all files in the folders that are given: the seeds, and what once crashed it. */

#include <dirent.h>
#include <string.h>

#include "base/file.h"
#include "fuzz.h"

#define SEED_MAX (16u * 1024u * 1024u)

static int replay(const char *folder, const char *name) {
        _cleanup_free_ char *path = path_join(folder, name);
        _cleanup_free_ char *data = NULL;
        uint8_t *exact;
        size_t len;

        if (!path || file_read_all(path, SEED_MAX, &data, &len) < 0) {
                fprintf(stderr, "cannot read %s/%s\n", folder, name);
                return -EIO;
        }
        /* In memory of exactly this size, so that a sanitizer sees a read behind the end. */
        exact = malloc(len);
        if (len > 0 && !exact)
                return -ENOMEM;
        if (len > 0)
                memcpy(exact, data, len);
        printf("%s\n", path);
        fflush(stdout);
        LLVMFuzzerTestOneInput(exact, len);
        free(exact);
        return 0;
}

int main(int argc, char **argv) {
        int n = 0;

        for (int i = 1; i < argc; i++) {
                DIR *dir = opendir(argv[i]);
                struct dirent *e;

                if (!dir) {
                        fprintf(stderr, "cannot open %s: %s\n", argv[i], strerror(errno));
                        return 1;
                }
                while ((e = readdir(dir)))
                        if (e->d_name[0] != '.') {
                                if (replay(argv[i], e->d_name) < 0)
                                        return 1;
                                n++;
                        }
                closedir(dir);
        }
        if (n == 0) {
                fprintf(stderr, "usage: %s FOLDER-WITH-SEEDS...\n", argv[0]);
                return 1;
        }
        printf("%d seeds\n", n);
        return 0;
}
