/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A process that maps a file privately and writes to some of its pages, as QEMU does with a guest's memory: the test
 * program itself, started again. main() begins with
 *
 *     if (argc > 1)
 *             return mapper_main(argc, argv);
 */

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "base/io.h"
#include "base/process.h"
#include "base/str.h"
#include "tap.h"

#define MAPPER_PAGE 4096u
#define MAPPER_MS 60000

struct mapper {
        pid_t pid;
        uintptr_t address; /* of the mapping */
        int hold_fd;       /* the process ends when this is closed */
};
/* In place of a run: only a privileged process may look at this one. */
#define MAPPER_HIDDEN "hidden"

/* What page n holds once the process has written to it: every byte is this. */
static inline uint8_t mapper_byte(uint64_t page) {
        return (uint8_t) (0x80 | (page * 7 & 0x7f));
}

/* FILE BYTES [FIRST-COUNT | every-N | hidden]... */
static inline int mapper_main(int argc, char **argv) {
        const size_t bytes = strtoull(argv[2], NULL, 10);
        int fd = open(argv[1], O_RDWR | O_CLOEXEC);
        char byte = 0;
        uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

        if (memory == MAP_FAILED)
                return 1;
        for (int i = 3; i < argc; i++) {
                unsigned long long first = 0, count = 0;

                if (str_eq(argv[i], MAPPER_HIDDEN)) {
                        (void) prctl(PR_SET_DUMPABLE, 0);
                        continue;
                }
                if (sscanf(argv[i], "every-%llu", &count) == 1) {
                        for (uint64_t page = 0; page < bytes / MAPPER_PAGE; page += count)
                                memset(memory + page * MAPPER_PAGE, mapper_byte(page), MAPPER_PAGE);
                        continue;
                }
                if (sscanf(argv[i], "%llu-%llu", &first, &count) != 2)
                        return 1;
                for (uint64_t page = first; page < first + count; page++)
                        memset(memory + page * MAPPER_PAGE, mapper_byte(page), MAPPER_PAGE);
        }
        /* A page that is only read belongs to the file. */
        byte = *(volatile char *) (memory + bytes - MAPPER_PAGE);
        byte = write(1, &memory, sizeof(memory)) == sizeof(memory) ? byte : 1;
        return read(0, &byte, 1) == 0 ? 0 : 1;
}

/* Starts it and waits until it has written. runs: NULL at the end. */
static inline int mapper_start(struct mapper *m, const char *file, uint64_t bytes, const char *const *runs) {
        const struct op op = {.deadline = deadline_in_ms(MAPPER_MS)};
        _cleanup_strv_ struct strv argv = {0};
        int in[2], out[2];

        if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)
                return -errno;
        int r = strv_add(&argv, "/proc/self/exe");
        if (r >= 0)
                r = strv_add(&argv, file);
        if (r >= 0)
                r = strv_addf(&argv, "%llu", (unsigned long long) bytes);
        for (; r >= 0 && *runs; runs++)
                r = strv_add(&argv, *runs);
        const struct fd_map fds[] = {{.from = in[0], .to = 0}, {.from = out[1], .to = 1}, {.from = 2, .to = 2}};
        const struct spawn spawn = {.argv = argv.v, .fds = fds, .n_fds = ARRAY_SIZE(fds)};
        if (r >= 0)
                r = process_spawn(&spawn, &m->pid, NULL);
        close_fd(in[0]);
        close_fd(out[1]);
        m->hold_fd = in[1];
        if (r >= 0)
                r = read_full(out[0], &m->address, sizeof(m->address), &op);
        close_fd(out[0]);
        return r;
}

static inline void mapper_end(struct mapper *m) {
        const struct op op = op_timeout(MAPPER_MS);

        m->hold_fd = close_fd(m->hold_fd);
        (void) process_wait(m->pid, &op, NULL);
}

/* Takes from the calling thread the right to look into other processes, as far as it has it. */
static inline void unprivileged_thread(void) {
        struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
        struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

        if (syscall(SYS_capget, &header, data) < 0)
                return;
        data[0].effective &= ~(1u << CAP_SYS_PTRACE);
        data[0].permitted &= ~(1u << CAP_SYS_PTRACE);
        (void) syscall(SYS_capset, &header, data);
}
