/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for the agent, to measure boots and to try images: the kernel starts it as /init. It loads the modules of
 * /modules/order, says READY when the groups core and channel are in, mounts the disk if there is one, says what it
 * found there, and ends the machine. Each line on the console starts with the kernel's clock in milliseconds.
 *
 * With rawport=1 on the kernel's command line it serves the agent's port instead, with nothing but read and write, as
 * cat would: tests/bench compares transfers with that. The host sends 'r' or 'w' and a size (8 bytes, little endian);
 * the guest then reads so many bytes into a file in memory and answers with one byte, or writes so many of that file.
 *
 *     gcc -O2 -static -o init init.c
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void say(const char *format, ...) {
        struct timespec now;
        clock_gettime(CLOCK_BOOTTIME, &now);
        printf("%lld ", (long long) now.tv_sec * 1000 + now.tv_nsec / 1000000);
        va_list args;
        va_start(args, format);
        vprintf(format, args);
        va_end(args);
        printf("\n");
        fflush(stdout);
}

static void load(const char *wanted) {
        FILE *order = fopen("/modules/order", "re");
        char group[32], file[96], path[128];
        if (!order) {
                say("ERROR /modules/order: %s", strerror(errno));
                return;
        }
        while (fscanf(order, "%31s %95s", group, file) == 2) {
                if (strcmp(group, wanted) != 0)
                        continue;
                snprintf(path, sizeof path, "/modules/%s", file);
                int fd = open(path, O_RDONLY | O_CLOEXEC);
                if (fd < 0 || syscall(SYS_finit_module, fd, "", 0) != 0)
                        say("ERROR %s: %s", path, strerror(errno));
                if (fd >= 0)
                        close(fd);
        }
        fclose(order);
}

static void run(char *const argv[]) {
        int status = 0;
        pid_t child = fork();
        if (child == 0) {
                execv(argv[0], argv);
                _exit(127);
        }
        waitpid(child, &status, 0);
        say("EXIT %s %d", argv[0], WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

static void try_disk(void) {
        int tries = 0;
        load("disk");
        while (tries < 300 && mount("/dev/vda", "/mnt", "ext4", 0, "") != 0) {
                usleep(1000);
                tries++;
        }
        if (tries == 300) {
                say("NODISK %s", strerror(errno));
                return;
        }
        say("DISK");
        if (chdir("/mnt") != 0 || mount("/dev", "dev", NULL, MS_MOVE, NULL) != 0 ||
            mount("/proc", "proc", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0) {
                say("ERROR entering the disk: %s", strerror(errno));
                return;
        }
        printf("ROOT");
        DIR *root = opendir("/");
        for (struct dirent *e; root && (e = readdir(root));)
                if (e->d_name[0] != '.')
                        printf(" %s", e->d_name);
        printf("\n");
        struct stat st;
        say("SH %s", stat("/bin/sh", &st) == 0 && S_ISREG(st.st_mode) ? "yes" : "no");
        run((char *[]){"/bin/sh", "-c", "echo SHELL $0 $(id -u) $(ls -ld /workspace)", NULL});
        sync();
}

/* Moves size bytes as cat would: in pieces of 128 KiB, or what a read gives. */
static int move(int from, int to, unsigned long long size) {
        static char piece[128 * 1024];

        while (size > 0) {
                ssize_t n = read(from, piece, size < sizeof piece ? (size_t) size : sizeof piece);
                if (n <= 0)
                        return -1;
                for (ssize_t at = 0; at < n;) {
                        ssize_t k = write(to, piece + at, (size_t) (n - at));
                        if (k <= 0)
                                return -1;
                        at += k;
                }
                size -= (unsigned long long) n;
        }
        return 0;
}

/* One request: 'r' from the port into a file in memory, 'w' from that file to the port. */
static int serve_request(int port, char direction, unsigned long long size) {
        int result = -1, file = open("/moved", O_RDWR | O_CREAT | O_CLOEXEC | (direction == 'r' ? O_TRUNC : 0), 0600);

        if (file < 0)
                return -1;
        if (direction == 'w')
                result = move(file, port, size);
        else if (move(port, file, size) == 0 && write(port, "k", 1) == 1)
                result = 0;
        close(file);
        return result;
}

static int read_request(int port, char *direction, unsigned long long *size) {
        unsigned char request[9];

        for (size_t have = 0; have < sizeof request;) {
                ssize_t n = read(port, request + have, sizeof request - have);
                if (n < 0)
                        return -1;
                if (n == 0)
                        usleep(1000); /* nobody has connected yet */
                have += (size_t) n;
        }
        *direction = (char) request[0];
        *size = 0;
        for (int i = 8; i > 0; i--)
                *size = *size << 8 | request[i];
        return 0;
}

static void serve_port(void) {
        int port = -1;
        char direction;
        unsigned long long size;

        for (int tries = 0; port < 0 && tries < 5000; tries++) {
                port = open("/dev/vport0p1", O_RDWR | O_CLOEXEC);
                if (port < 0)
                        usleep(1000);
        }
        say("PORT");
        while (port >= 0 && read_request(port, &direction, &size) == 0 && serve_request(port, direction, size) == 0)
                continue;
        say("ERROR the port: %s", strerror(errno));
}

static int wants_port(void) {
        char line[2048] = "";
        FILE *file = fopen("/proc/cmdline", "re");
        int found = file && fgets(line, sizeof line, file) && strstr(line, "rawport=1");

        if (file)
                fclose(file);
        return found;
}

int main(void) {
        mount("proc", "/proc", "proc", 0, NULL);
        mount("dev", "/dev", "devtmpfs", 0, NULL);
        mount("sys", "/sys", "sysfs", 0, NULL);
        say("INIT");
        load("core");
        load("channel");
        say("READY");
        load("net");
        load("rng");
        if (wants_port())
                serve_port();
        else
                try_disk();
        say("END");
        reboot(RB_AUTOBOOT);
        return 1;
}
